"""Vector envs by one interface: steppe's own kind, which is asked for each reset, and Gymnasium's three.

Nothing is judged here but the form of what comes; the adapter judges the values and names their place.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformObservation

from steppe import spaces
from steppe.envs.guards import own
from steppe.envs.replay import first_obs, seed_spaces
from steppe.spaces import BadLeaf, DictSpec, OneOfSpec, SequenceSpec, Spec, TupleSpec
from steppe.spaces.columns import keyed
from steppe.types import Array, BoolArray, IntArray, Tree

logger = logging.getLogger("steppe.envs")

_FINAL_KEYS = ("final_obs", "final_info")


class BadResult(Exception):  # noqa: N818 - an answer for the adapter, which turns it into an EnvError
    """What a vector env returned has a wrong form; ``row`` is the env that did, as far as that is known."""

    def __init__(self, code: str, message: str, leaf: str, row: int = 0) -> None:
        super().__init__(message)
        self.code, self.leaf, self.row = code, leaf, row


class Stepped(NamedTuple):
    """What one step of a vector env returned; each item is over the n envs."""

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    infos: Any


class Batch(ABC):
    """A vector env.

    Attributes:
        env: the user's object.
        num_envs: how many envs it steps.
        subs: the envs inside it that it shows, or none.
        names: class of each env, for messages.
        listed: lists and tuples that it returns are over its envs; otherwise they have the form of its space.
        mode: when an ended env is reset: DISABLED means when it is asked to.
        can_reset: it can be asked to reset some of its envs.
        odd: said and counted by the adapter: ``(code, leaf, text)``.
    """

    env: Any
    num_envs: int
    subs: list[Any]
    names: str | list[str]
    listed: bool
    mode: AutoresetMode
    can_reset: bool
    odd: list[tuple[str, str, str]]

    @abstractmethod
    def space_pair(self) -> tuple[Any, Any]:
        """Observation and action space of one env, None where there is none."""

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Seed and reset all envs: their observations and infos."""

    @abstractmethod
    def reset_some(self, envs: IntArray) -> tuple[Any, Any]:
        """Reset some envs: observations and infos over all n, of which the others do not matter."""

    @abstractmethod
    def step(self, spec: Spec, actions: Tree) -> Stepped:
        """Step all envs with a column of actions."""


@final
class OwnBatch(Batch):
    """A :class:`~steppe.envs.vector.VectorEnv`, in today's or the older spelling."""

    def __init__(self, env: Any, observation: Callable[[], Spec]) -> None:
        self.env, self.num_envs, self.subs = env, int(env.num_envs), list(env.get_sub_environments() or ())
        self.names, self.listed, self.can_reset = type(env).__name__, True, True
        self.mode = AutoresetMode.DISABLED
        self.odd: list[tuple[str, str, str]] = []
        self._observation = observation

    def space_pair(self) -> tuple[Any, Any]:
        """Observation and action space of one env."""
        return getattr(self.env, "observation_space", None), getattr(self.env, "action_space", None)

    def reset(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Seed and reset all envs."""
        seed_spaces(self.env, seeds[0])
        self._seed_subs(seeds)
        takes = _parameters(self.env.vector_reset)
        if takes & {"seeds", "**"}:
            result = self.env.vector_reset(seeds=list(seeds))
        elif _parameters(self.env.reset_at) & {"seed", "**"}:
            return self._each(enumerate(seeds))
        else:
            if not self.subs:
                text = "neither vector_reset takes seeds nor reset_at a seed: its envs are not seeded"
                self.odd.append(("E401", "seed", text))
            result = self.env.vector_reset()
        if isinstance(result, tuple) and len(result) == 2 and _are_infos(result[1], self.num_envs):
            return result
        self.odd.append(("E401", "reset", "vector_reset returned observations without infos"))
        return result, [{} for _ in seeds]

    def _seed_subs(self, seeds: Sequence[int]) -> None:
        """Envs inside that have the old ``seed()`` get it, once, before their first reset."""
        for env, seed in zip(self.subs, seeds, strict=False):
            seed_spaces(env, seed)
            if callable(getattr(env, "seed", None)):
                env.seed(seed)

    def reset_some(self, envs: IntArray) -> tuple[Any, Any]:
        """Reset some envs."""
        return self._each((i, None) for i in envs.tolist())

    def _each(self, which: Any) -> tuple[list[Any], list[dict[str, Any]]]:
        obs: list[Any] = [None] * self.num_envs
        infos: list[dict[str, Any]] = [{} for _ in obs]
        for i, seed in which:
            try:
                result = self.env.reset_at(i) if seed is None else self.env.reset_at(i, seed=seed)
            except Exception as error:
                error.add_note(f"steppe: in reset_at({i})")
                raise
            if result is None:
                message = f"reset_at({i}) returned None; return (observation, info), info being a dict"
                raise BadResult("E304", message, "reset", i)
            obs[i], infos[i] = self._pair(result)
        return obs, infos

    def _pair(self, result: Any) -> tuple[Any, dict[str, Any]]:
        """Observation and info; the space decides whether two items are an observation alone."""
        spec = self._observation()
        pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        whole = isinstance(spec, TupleSpec) and len(spec.items) == 2 and spaces.contains(spec, result)
        if pair and not whole:
            return result[0], result[1]
        if not any(leaf == "reset" for _, leaf, _ in self.odd):
            self.odd.append(("E401", "reset", "reset_at returned an observation without info"))
        return (result if whole else first_obs(result)), {}

    def step(self, spec: Spec, actions: Tree) -> Stepped:
        """Step all envs."""
        column = list(actions) if isinstance(spec, spaces.DiscreteSpec) else spaces.rows(spec, actions)
        result = self.env.vector_step(column)
        if isinstance(result, (tuple, list)) and len(result) == 4:
            return self._modern(*result)
        return _five(result, "vector_step")

    def _modern(self, obs: Any, reward: Any, done: Any, infos: Any) -> Stepped:
        """Five columns out of the older four."""
        if not any(leaf == "step" for _, leaf, _ in self.odd):
            self.odd.append(("E401", "step", "vector_step returned 4 items"))
        told = _are_infos(infos, self.num_envs)
        cut = [told and bool(infos[i].get("TimeLimit.truncated")) for i in range(self.num_envs)]
        ended = np.asarray(done)
        if ended.shape != (len(cut),) or ended.dtype.kind not in "biu" or not np.isin(ended, (0, 1)).all():
            return Stepped(obs, reward, done, np.zeros(self.num_envs, np.bool_), infos)  # to be judged
        ended = ended.astype(np.bool_)
        return Stepped(obs, reward, ended & ~np.array(cut), ended & cut, infos)


@final
class GymnasiumBatch(Batch):
    """A ``gymnasium.vector.VectorEnv`` in any of its autoreset modes."""

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        inner: Any = env.unwrapped
        plain = isinstance(inner, (SyncVectorEnv, AsyncVectorEnv))
        self.env, self.num_envs, self.listed = env, int(env.num_envs), False
        self.subs = list(inner.envs) if isinstance(inner, SyncVectorEnv) else []
        self.names = [type(sub.unwrapped).__name__ for sub in self.subs] or type(inner).__name__
        self.odd: list[tuple[str, str, str]] = []
        mode = (env.metadata or {}).get("autoreset_mode")
        if mode is None:
            logger.warning("metadata of %s has no autoreset_mode: NEXT_STEP is assumed", type(inner).__name__)
            mode = AutoresetMode.NEXT_STEP
        self.mode = AutoresetMode(mode)
        if self.subs and self.mode is AutoresetMode.SAME_STEP:
            # It hands out last observations uncopied: a reset would overwrite those in an env's own buffer.
            inner.envs = [TransformObservation(sub, own, sub.observation_space) for sub in self.subs]
        self.can_reset = plain or self.mode is AutoresetMode.DISABLED
        self._seeds_apart = plain

    def space_pair(self) -> tuple[Any, Any]:
        """Observation and action space of one env."""
        names = ("single_observation_space", "single_action_space")
        observation, action = (getattr(self.env, name, None) for name in names)
        return observation, action

    def reset(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Seed and reset all envs."""
        seed_spaces(self.env, seeds[0])
        for sub, word in zip(self.subs, seeds, strict=False):
            seed_spaces(sub, word)
        # Only Gymnasium's own two take a seed for each env; others draw all from one.
        seed: Any = list(seeds) if self._seeds_apart else seeds[0]
        return _two(self.env.reset(seed=seed))

    def reset_some(self, envs: IntArray) -> tuple[Any, Any]:
        """Reset some envs."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[envs] = True
        return _two(self.env.reset(options={"reset_mask": mask}))

    def step(self, spec: Spec, actions: Tree) -> Stepped:
        """Step all envs."""
        return _five(self.env.step(batched(spec, actions)), "step")


def _two(result: Any) -> tuple[Any, Any]:
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        return result
    message = f"reset returned {_kind(result)}; return (observations, infos), infos being a dict"
    raise BadResult("E304", message, "reset")


def _five(result: Any, name: str) -> Stepped:
    if isinstance(result, (tuple, list)) and len(result) == 5:
        return Stepped(*result)
    message = f"{name} returned {_kind(result)}; return (observations, rewards, terminated, truncated, infos)"
    raise BadResult("E301", message, "step")


def _kind(value: Any) -> str:
    return f"{len(value)} items" if isinstance(value, (tuple, list)) else type(value).__name__


def _are_infos(value: Any, n: int) -> bool:
    listed = isinstance(value, (list, tuple)) and len(value) == n
    return listed and all(isinstance(info, dict) for info in value)


def _parameters(method: Any) -> set[str]:
    parameters = inspect.signature(method).parameters.values()
    return {"**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters}


def batched(spec: Spec, column: Tree) -> Any:
    """A column of actions as Gymnasium batches them; a fresh copy."""
    match spec:
        case DictSpec():
            return {key: batched(part, column[key]) for key, part in spec.items}
        case TupleSpec():
            return tuple(batched(part, values) for part, values in zip(spec.items, column, strict=True))
        case SequenceSpec() | OneOfSpec():
            return tuple(spaces.rows(spec, column))
        case _:
            return np.asarray(column).astype(spec.dtype, order="C", casting="same_kind")


def filler(spec: Spec, n: int) -> Tree:
    """A column of valid actions, for envs that do nothing with theirs."""
    match spec:
        case DictSpec():
            return {key: filler(part, n) for key, part in spec.items}
        case TupleSpec():
            return tuple(filler(part, n) for part in spec.items)
        case SequenceSpec() | OneOfSpec():
            return spaces.zeros(spec, n)
        case _:
            column = spaces.zeros(spec, n)
            return column if spec.limits is None else np.clip(column, *spec.limits).astype(spec.dtype)


def column_of(spec: Spec, given: Any, n: int) -> Tree | None:
    """A fresh column out of batched values if nothing at all is to be said about them, else None."""
    match spec:
        case DictSpec():
            if not isinstance(given, Mapping) or given.keys() != {key for key, _ in spec.items}:
                return None
            named = {key: column_of(part, given[key], n) for key, part in spec.items}
            return None if any(part is None for part in named.values()) else named
        case TupleSpec():
            if not isinstance(given, tuple) or len(given) != len(spec.items):
                return None
            parts = tuple(column_of(part, one, n) for part, one in zip(spec.items, given, strict=True))
            return None if any(part is None for part in parts) else parts
        case SequenceSpec() | OneOfSpec():
            return None
        case _:
            return _leaf_column(spec, given, n)


def _leaf_column(spec: spaces.spec.LeafSpec, given: Any, n: int) -> Array | None:
    if type(given) is not np.ndarray or given.shape != (n, *spec.shape):
        return None
    integer = isinstance(spec, spaces.DiscreteSpec) and given.dtype.kind in "iu"
    if given.dtype != spec.dtype and not integer:
        return None
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        return None
    if spec.limits is not None and ((given < spec.limits[0]) | (given > spec.limits[1])).any():
        return None
    return np.array(given, spec.dtype, order="C")


def values_of(spec: Spec, given: Any, n: int, *, listed: bool, root: str = "obs") -> list[Any]:
    """The n values of one batch, whatever they are.

    Raises:
        BadLeaf: they are not n, or not in the form of their space.
    """
    if listed and isinstance(given, (list, tuple)):
        return _counted(given, n, root)
    match spec:
        case DictSpec():
            keys = [key for key, _ in spec.items]
            if not isinstance(given, Mapping) or given.keys() != set(keys):
                got = (
                    f"keys {sorted(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
                )
                raise BadLeaf("E105", 0, root, f"a dict of batches with keys {keys}", got)
            named = [
                values_of(part, given[key], n, listed=listed, root=keyed(root, key))
                for key, part in spec.items
            ]
            return [dict(zip(keys, values, strict=True)) for values in zip(*named, strict=True)]
        case TupleSpec():
            if not isinstance(given, (tuple, list)) or len(given) != len(spec.items):
                got = _kind(given)
                raise BadLeaf("E105", 0, root, f"a tuple of {len(spec.items)} batches", got)
            parts = [
                values_of(part, one, n, listed=listed, root=f"{root}[{i}]")
                for i, (part, one) in enumerate(zip(spec.items, given, strict=True))
            ]
            return list(zip(*parts, strict=True))
        case _:
            return _counted(given, n, root)


def _counted(given: Any, n: int, root: str) -> list[Any]:
    counted = is_over_envs(given)
    if not counted or len(given) != n:
        got = f"{len(given)} of them" if counted else type(given).__name__
        raise BadLeaf("E103", 0, root, f"{n} values, one for each env", got)
    return list(given)


def is_over_envs(value: Any) -> bool:
    """Whether this has a length that can be the number of envs."""
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def final_values(infos: Any, envs: IntArray, spec: Spec, n: int) -> list[Any]:
    """Last observations of envs that were reset within their last step.

    Raises:
        BadLeaf: they are neither n nor in the form of their space.
        BadResult: they are not in the infos.
    """
    found = infos.get("final_obs") if isinstance(infos, Mapping) else None
    if found is None:
        message = 'an env that resets in the same step puts its last observation into infos["final_obs"]'
        raise BadResult("E301", message, "final_obs", int(envs[0]))
    per_env = isinstance(found, (list, np.ndarray)) and len(found) == n
    values = list(found) if per_env else values_of(spec, found, n, listed=False, root="final_obs")
    return [values[i] for i in envs.tolist()]


@final
class Infos(Mapping[int, dict[str, Any]]):
    """Infos by slot, taken out of a batch when somebody looks; empty ones are left out.

    Args:
        parts: of each, the infos over the n envs, and slots and envs of its rows.
        n: number of envs.
    """

    def __init__(self, parts: Sequence[tuple[Any, IntArray, IntArray]], n: int) -> None:
        self._parts, self._n = parts, n
        self._found: dict[int, dict[str, Any]] | None = None

    def _all(self) -> dict[int, dict[str, Any]]:
        if self._found is None:
            self._found = {
                slot: info
                for infos, slots, envs in self._parts
                for slot, info in zip(slots.tolist(), split_infos(infos, envs, self._n), strict=True)
                if info
            }
        return self._found

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return self._all()[slot]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


def split_infos(infos: Any, envs: IntArray, n: int) -> list[dict[str, Any]]:
    """An info for each of ``envs`` out of a list of them, or out of Gymnasium's arrays with their masks."""
    if not isinstance(infos, Mapping):
        return [dict(infos[i]) for i in envs.tolist()]
    found: list[dict[str, Any]] = [{} for _ in envs]
    for key, value in infos.items():
        mask = infos.get(f"_{key}")
        if key in _FINAL_KEYS or (isinstance(key, str) and key[:1] == "_" and key[1:] in infos):
            continue
        chosen: BoolArray = np.ones(len(envs), np.bool_) if mask is None else np.asarray(mask)[envs]
        rows = np.flatnonzero(chosen)
        if isinstance(value, Mapping):
            for row, part in zip(rows.tolist(), split_infos(value, envs[rows], n), strict=True):
                if part or mask is not None:
                    found[row][key] = part
        elif is_over_envs(value) and len(value) == n:
            for row in rows.tolist():
                found[row][key] = value[envs[row]]
        else:  # said of the whole batch
            for row in rows.tolist():
                found[row][key] = value
    return found


def has_infos(infos: Any) -> bool:
    """Whether there is anything in the infos of a batch."""
    return bool(infos) if isinstance(infos, Mapping) else any(infos)


def own_state(env: Any) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """An env's ``get_state`` and ``set_state``; a wrapper around one may have a state of its own."""
    names = ("get_state", "set_state")
    if isinstance(env, gymnasium.vector.VectorWrapper):
        return None
    get, put = (getattr(env, name, None) for name in names)
    return (get, put) if callable(get) and callable(put) else None


def check_infos(infos: Any, n: int, *, listed: bool) -> None:
    """Judge that infos come as a list of n, or as one dict of arrays.

    Raises:
        BadResult: they do not.
    """
    if listed and not (isinstance(infos, (list, tuple)) and len(infos) == n):
        raise BadResult("E303", f"infos: got {_kind(infos)}; return a list of {n} dicts", "info")
    if not listed and not isinstance(infos, Mapping):
        raise BadResult("E303", f"infos: got {_kind(infos)}; return a dict, {{}} if it is empty", "info")


def check_kind(own: Array, given: Any) -> None:
    """As an assignment would cut fractions off without a word."""
    if not np.can_cast(given.dtype, own.dtype, "same_kind"):
        raise TypeError(f"an action column of {given.dtype}, the space is of {own.dtype}")
