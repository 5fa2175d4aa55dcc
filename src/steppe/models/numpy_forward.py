"""The networks that act, in numpy alone: rebuilt from their description and their arrays by name.

Each function mirrors a module of the same name in :mod:`steppe.models`, over whole columns instead of one
observation. What a network looks like is said by those modules (``describe``), so no rule about spaces stands
here a second time; only the arithmetic does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from steppe.errors import ConfigError
from steppe.models.actions import LOG_STD_RANGE, MASKED, Actions
from steppe.models.before import repeated, told
from steppe.models.framestack import Frames, stacked_spec
from steppe.models.numpy_cells import cell_of
from steppe.models.observations import CLIP, EPSILON, MASK, normalized_leaves, visit
from steppe.models.sight import check_mask, shown, without
from steppe.spaces import BoxSpec, Spec, collect, from_description, leaves, map_leaves, narrowed, zeros
from steppe.types import Array, FloatArray, Tree

Arrays: TypeAlias = Mapping[str, Array]
Forward: TypeAlias = Callable[[Tree], FloatArray]
"""A column of ``n`` to ``(n, size)``."""


@final
class Network:
    """Observations to distribution parameters to env actions, as the learner's policy does it.

    Attributes:
        observation: spec of what it observes.
        actions: of its action space.

    Args:
        description: as the policy's ``export`` gave it: JSON values.
        arrays: by name, float32; likewise.

    Raises:
        LookupError: a part of the description or an array is missing, or of a kind that is not known here.
        ValueError: sizes do not fit, or a space's description is damaged.
        TypeError: a part of the description is of a wrong type.
    """

    def __init__(self, description: Mapping[str, Any], arrays: Arrays) -> None:
        if description["kind"] != "actor":
            raise LookupError(f"network of kind {description['kind']!r}; only 'actor' is known")
        self.observation: Spec = from_description(description["observation"])
        if "own" in description["distribution"]:
            raise not_in_numpy("distribution", description["distribution"]["own"])
        self.actions = Actions(from_description(description["action"]), **description["distribution"])
        # Older checkpoints lack some of these.
        self._masked, self._hidden = description.get("masked", False), description.get("critic_only", ())
        self._bounded = description.get("bounded_log_std", 0)
        unseen = [description["scores"]["place"]] if "scores" in description else []
        self._frames, seen = None, self.observation
        if (depth := description.get("framestack", 1)) > 1:
            self._frames = Frames(self.observation, depth, tuple(description["unstacked"]))
            seen = stacked_spec(self._frames)
        self._seen = without(seen, [MASK, *unseen] if self._masked else unseen)
        self._statistics = statistics(self._seen, arrays) if description["normalizer"] else []
        self._torso: _Torso | None = None
        self._fresh = fresh_state(description, self.actions)
        if (torso := description.get("torso")) is not None:
            self._torso = _Torso(torso, self.actions, arrays)
            arrays = {name.removeprefix("out."): array for name, array in arrays.items()}
        self._encoder = _encoder(description["encoder"], "encoder", arrays)
        self._mlp = _mlp(description["mlp"], "mlp", arrays)
        scores = description.get("scores")
        self._scores = None if scores is None else _scores(scores, "scores", arrays)
        # Of action values: which action is best, however much is explored; and the returns they are means of.
        self._greedy, self._support = description.get("greedy", False), description.get("support")
        self._log_std = arrays["log_std"] if description["free_log_std"] else np.zeros(0, np.float32)
        found, size = self.params(zeros(self.observation, 1)).shape[1], self.actions.param_size
        if found != size:
            raise ValueError(f"the network yields {found} numbers, the action space takes {size}")

    def column(self, observations: Sequence[Any]) -> Tree:
        """Observations as a column; what only the critic saw of them in training may be there or not.

        Raises:
            BadLeaf: one does not fit the space.
        """
        return collect(self.observation, shown(observations, self._hidden) if self._hidden else observations)

    def initial_state(self, n: int) -> Tree:
        """What ``n`` fresh trajectories are met with; None without a memory."""
        state = None if self._fresh is None else repeated(self._fresh, n)
        return state if self._frames is None else {**(state or {}), **self._frames.initial(n)}

    def params(self, column: Tree) -> FloatArray:
        """Distribution parameters, or action values, ``(n, P)`` of a column of at least one observation.

        With a memory: of the first ones of their trajectories.
        """
        return self.met(column, self.initial_state(len(leaves(column)[0])))[0]

    def met(self, column: Tree, state: Tree) -> tuple[FloatArray, dict[str, Any]]:
        """These, and what is remembered from then on: see :meth:`after`."""
        with np.errstate(all="ignore"):  # as compiled code is: silent, and the result says it
            column = map_leaves(_narrow, narrowed(self.observation, column))
            after: dict[str, Any] = {}
            if self._frames is not None:
                column, after = self._frames.step(column, state)
            if self._statistics:
                column = normalized(self._seen, self._statistics, column)
            seen = column
            if self._torso is not None:
                seen, after["memory"] = self._torso(column, state)
            heads = self._mlp(self._encoder(seen))
            if self._scores is not None:
                heads = self._scores(heads, column)
            if self._support is not None:
                heads = _expected(heads, *self._support)
            if self._masked:
                legal = heads[:, : column[MASK].shape[1]]  # contexts of a chain follow
                legal[...] = np.where(column[MASK] != 0, legal, np.float32(MASKED))
            if self._bounded:
                scales = np.clip(heads[:, -self._bounded :], *LOG_STD_RANGE)
                return np.concatenate([heads[:, : -self._bounded], scales], axis=1), after
            if self._log_std.size:
                heads = np.concatenate([heads, self._log_std[None].repeat(len(heads), axis=0)], axis=1)
            return heads, after

    def act(self, column: Tree, noise: FloatArray | None, state: Tree = None) -> tuple[Tree, Tree]:
        """A column of env actions: the likeliest, or those that the noise ``(n, K)`` picks; and the state.

        Raises:
            BadLeaf: a mask allows nothing.
        """
        self.check(column)
        params, found = self.met(column, state)
        with np.errstate(all="ignore"):
            action = self.actions.choose(params, None if self._greedy else noise)
            return self.actions.to_env_direct(action), self.after(found, action, state)

    def check(self, column: Tree) -> None:
        """Judge the masks of a column.

        Raises:
            BadLeaf: one allows nothing.
        """
        if self._masked:
            check_mask(column[MASK], self.actions)

    @staticmethod
    def after(found: dict[str, Any], action: Tree, state: Tree) -> Tree:
        """The state behind rows that were met with ``state``, of what :meth:`met` found and was chosen."""
        if state is None:
            return None
        found |= {"action": action, "reward": np.zeros(len(leaves(action)[0]), np.float32)}
        return {name: found[name] for name in state}


def fresh_state(description: Mapping[str, Any], actions: Actions) -> Tree:
    """What one fresh trajectory of a network that is described is met with; None without a memory."""
    if (torso := description.get("torso")) is None:
        return None
    state = {"memory": cell_of(torso["cell"], "", {}).initial()}
    if torso["action"]:
        params = np.zeros((1, actions.param_size), np.float32)
        state["action"] = map_leaves(lambda a: np.zeros_like(a[0]), actions.choose(params, None))
    return {**state, "reward": np.zeros((), np.float32)} if torso["reward"] else state


@final
class _Torso:
    """Mirrors :class:`steppe.models.memory.Torso`."""

    def __init__(self, description: Mapping[str, Any], actions: Actions, arrays: Arrays) -> None:
        self._encoder = _encoder(description["encoder"], "torso.encoder", arrays)
        self._mlp, self._activation = None, _ACTIVATIONS["linear"]
        if (mlp := description["mlp"]) is not None:
            self._mlp, self._activation = _mlp(mlp, "torso.mlp", arrays), _ACTIVATIONS[mlp["activation"]]
        self._reward, self._cell = description["reward"], cell_of(description["cell"], "torso.cell", arrays)
        self._actions = actions if description["action"] else None

    def __call__(self, column: Tree, state: Tree) -> tuple[FloatArray, Tree]:
        x = self._encoder(column)
        if self._mlp is not None:
            x = self._activation(self._mlp(x))
        parts = [x, *told(np, self._actions, self._reward, state)]
        return self._cell.step(np.concatenate(parts, axis=1), state["memory"])


def _scores(
    description: Mapping[str, Any], name: str, arrays: Arrays
) -> Callable[[FloatArray, Tree], FloatArray]:
    """Queries ``(n, (d + 1) * atoms)`` and described choices to ``(n, choices * atoms)``."""
    mlp, place = _mlp(description["mlp"], f"{name}.mlp", arrays), description["place"]
    size = description["mlp"]["sizes"][-1] + 1

    def forward(heads: FloatArray, column: Tree) -> FloatArray:
        keys, query = mlp(column[place].astype(np.float32)), heads.reshape(len(heads), size, -1)
        scores: FloatArray = keys @ query[:, :-1] + query[:, -1:]
        return scores.reshape(len(heads), -1)

    return forward


def _expected(heads: FloatArray, low: float, high: float, atoms: int) -> FloatArray:
    """Mean returns ``(n, A)`` of logits ``(n, A * atoms)`` over a support."""
    logits = heads.reshape(len(heads), -1, atoms)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    mean: FloatArray = p @ np.linspace(low, high, atoms, dtype=np.float32) / p.sum(-1)
    return mean


def _narrow(leaf: Array) -> Array:
    """64-bit numbers as the learner's compiled functions take them: in 32 bits."""
    return leaf.astype(f"{leaf.dtype.kind}4") if leaf.dtype.itemsize == 8 else leaf


def statistics(spec: Spec, arrays: Arrays) -> list[tuple[Any, Any, Any]]:
    """Per covered leaf ``(whether it has statistics, mean, one over the standard deviation)``."""
    found = []
    for path in normalized_leaves(spec):
        count, mean, m2 = (arrays[f"normalizer.{path}.{name}"] for name in ("count", "mean", "m2"))
        variance = m2 / np.maximum(count, 1.0)
        found.append((bool(count >= 2.0), mean, 1.0 / np.sqrt(variance + EPSILON)))
    return found


def normalized(spec: Spec, found: list[tuple[Any, Any, Any]], column: Tree) -> Tree:
    """A column as the network sees it, by what :func:`statistics` found."""
    rest = iter(found)

    def scaled(leaf: BoxSpec, x: FloatArray, mask: Any) -> FloatArray:
        known, mean, scale = next(rest)
        return np.minimum(np.maximum((x - mean) * scale if known else x, -CLIP), CLIP)

    return visit(spec, column, np.ones((), np.bool_), scaled)


def _relu(x: FloatArray) -> FloatArray:
    return np.maximum(x, np.float32(0.0))


def _swish(x: FloatArray) -> FloatArray:
    share: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * x)
    return x * share


_ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "tanh": np.tanh,
    "relu": _relu,
    "swish": _swish,
    "silu": _swish,
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, np.float32(0.0)))),
    "linear": lambda x: x,
}


def _mlp(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    layers = range(len(description["sizes"]) - 1)
    weights, biases = ([arrays[f"{name}.{part}.{i}"] for i in layers] for part in ("weights", "biases"))
    activation = _ACTIVATIONS[description["activation"]]

    def forward(x: FloatArray) -> FloatArray:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = activation(x @ weight + bias)
        out: FloatArray = x @ weights[-1] + biases[-1]
        return out

    return forward


def _cnn(strides: list[int], name: str, arrays: Arrays) -> Forward:
    kernels, biases = (
        [arrays[f"{name}.{part}.{i}"] for i in range(len(strides))] for part in ("kernels", "biases")
    )
    dense, dense_bias = arrays[f"{name}.dense"], arrays[f"{name}.dense_bias"]

    def forward(images: FloatArray) -> FloatArray:
        for kernel, bias, stride in zip(kernels, biases, strides, strict=True):
            views = np.lib.stride_tricks.sliding_window_view(images, kernel.shape[:2], axis=(1, 2))
            views = views[:, ::stride, ::stride]  # (n, rows, columns, channels, k, k)
            images = _relu(np.tensordot(views, kernel, axes=([4, 5, 3], [0, 1, 2])) + bias)
        return _relu(images.reshape(len(images), -1) @ dense + dense_bias)

    return forward


def _encoder(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    if description["kind"] == "custom":
        raise not_in_numpy(description.get("role", "encoder"), description["name"])
    return _ENCODERS[description["kind"]](description, name, arrays)


def _flat(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    return lambda obs: obs.astype(np.float32).reshape(len(obs), -1)


def _image(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    cnn, scale = _cnn(description["strides"], f"{name}.cnn", arrays), np.float32(description["scale"])
    axes = (0, 1, 2, 3) if description["axis"] == 2 else (0, 2, 3, 1)
    return lambda obs: cnn((obs.astype(np.float32) * scale).transpose(axes))


def _choices(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    counts, large = description["counts"], description["large"]
    starts = np.array(description["starts"], np.int64).astype(np.int32)
    tables = [(i, arrays[f"{name}.tables.{place}"]) for place, i in enumerate(large)]
    small = [i for i in range(len(counts)) if i not in large]
    column = np.concatenate([np.arange(0), *(np.arange(counts[i]) for i in small)])
    at = np.repeat(np.array(small, np.int64), [counts[i] for i in small])

    def forward(obs: Array) -> FloatArray:
        choices = obs.reshape(len(obs), -1) - starts
        # Padding and parts that were not chosen are zeros, which need not lie in a space: hence the clip.
        rows = [table[choices[:, i].clip(0, len(table) - 1)] for i, table in tables]
        return np.concatenate([(choices[:, at] == column).astype(np.float32), *rows], axis=1)

    return forward


def _parts(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    parts = [_encoder(part, f"{name}.parts.{i}", arrays) for i, part in enumerate(description["parts"])]
    places = range(len(parts)) if description["keys"] is None else description["keys"]
    return lambda obs: np.concatenate(
        [part(obs[place]) for part, place in zip(parts, places, strict=True)], axis=1
    )


def _items(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    item = _encoder(description["item"], f"{name}.item", arrays)
    mlp, places = _mlp(description["mlp"], f"{name}.mlp", arrays), np.arange(description["maximum"])

    def forward(obs: Tree) -> FloatArray:
        length = obs["length"][:, None]
        flat = map_leaves(lambda a: a.reshape(-1, *a.shape[2:]), obs["items"])
        features = _relu(mlp(item(flat))).reshape(len(length), len(places), -1)
        features = np.where((places < length)[:, :, None], features, np.float32(0.0))
        mean = features.sum(1) / np.maximum(length, 1).astype(np.float32)
        return np.concatenate([mean, features.max(1)], axis=1)

    return forward


def _alternatives(description: Mapping[str, Any], name: str, arrays: Arrays) -> Forward:
    parts = [_encoder(part, f"{name}.parts.{i}", arrays) for i, part in enumerate(description["parts"])]

    def forward(obs: Tree) -> FloatArray:
        chosen = obs["choice"][:, None] == np.arange(len(parts))
        encoded = [
            np.where(chosen[:, i : i + 1], part(value), np.float32(0.0))
            for i, (part, value) in enumerate(zip(parts, obs["values"], strict=True))
        ]
        return np.concatenate([chosen.astype(np.float32), *encoded], axis=1)

    return forward


def not_in_numpy(role: str, name: str) -> ConfigError:
    """The error of code of the user's, of which a file holds the name only; to be raised by the caller."""
    return ConfigError(
        f"its {role} is code of your own, {name}, which is in no file and not in numpy: act with "
        f"algo = steppe.load(path, models={{{role!r}: {name}}}) and algo.compute_single_action(obs)"
    )


_ENCODERS: dict[str, Callable[[Mapping[str, Any], str, Arrays], Forward]] = {
    "flat": _flat,
    "image": _image,
    "choices": _choices,
    "parts": _parts,
    "items": _items,
    "alternatives": _alternatives,
}
