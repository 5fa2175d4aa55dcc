"""How policies learn from what they remember: what is the same whatever the loss is.

An algorithm gives one step's update and its networks; here they become a learner: fragments go to a replay
buffer, minibatches are drawn from it, and all updates that the env steps since the last call are worth run in
one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.learning.independent import PolicyLearner
from steppe.learning.learner import Stats
from steppe.learning.networks import arrays_of, refilled
from steppe.learning.optimizer import closed, opened
from steppe.learning.schedules import Schedule, points
from steppe.models.encoders import norm_merge, normalize
from steppe.models.framestack import Frames
from steppe.seeding import stream
from steppe.spaces import Spec, leaves, take, zeros
from steppe.types import Array, FloatArray, Policy, Rollout, State, Tree, Weights

_MOST = 64
"""Updates of one compiled call: bounds how old the priorities of its minibatches are, and their memory."""
_ROOM = 32 << 20
"""Bytes of observations drawn for one call, if there are several updates in it: more are not reused, and take
many times as long to get from the system as to fill."""


class LearnerState(NamedTuple):
    """Everything that learning changes.

    Attributes:
        params: ``(p,)``, all parameters, those that act first, those that have targets last.
        target: ``(q,)``, slowly following copies of the last ``q`` parameters.
        opt: of the optimizers, whatever the algorithm has.
        normalizer: observation statistics, empty where observations are left alone.
    """

    params: Any
    target: Any
    opt: Any
    normalizer: Any = ()


class Method(NamedTuple):
    """What one algorithm is made of; hashable, for compiled programs are keyed by it.

    Attributes:
        hyper: a NamedTuple class of the numbers that may change without compiling anew.
        update: one step, a pure function of ``static``, state, batch, hyper and a random key: the new state,
            parts to be averaged and reported, the norms of all gradients among them: a step whose parts are
            not finite is undone; and a TD error ``(n,)`` per row. The batch holds obs, action,
            reward (over n steps), discount (0 where that ended), next_obs and weight, ``(n, ...)`` each;
            ``number``, which counts the updates; ``sync``, whether the targets are due.
        values: function of ``static``, parameters and observations: their values ``(n,)``.
        static: the networks' choices, hashable.
        form: of the state: a layout where updates see a tree instead of a flat vector, None elsewhere.
        observation: what networks see, and statistics are of.
        frames: how the observations of the replay become that, where they are stacked.
        remembers: the networks have a memory: the batch holds sequences, see
            :meth:`steppe.buffers.sequences.Sequences.columns`, and errors are one a sequence.
    """

    hyper: Any
    update: Callable[..., tuple[LearnerState, dict[str, jax.Array], jax.Array]]
    values: Callable[..., jax.Array]
    static: Any
    form: Any
    observation: Spec
    frames: Frames | None = None
    remembers: bool = False


class Buffer(Protocol):
    """What the learner needs of a replay buffer."""

    def add(self, rollout: Rollout) -> int:
        """Take a fragment."""

    def __len__(self) -> int:
        """Rows that can be drawn."""

    @property
    def sample(self) -> Callable[..., dict[str, Any]]:
        """Draw columns ``(batches, size, ...)``, with ``index`` and ``weight``."""

    def get_state(self) -> State:
        """All of it."""

    def check(self, state: State) -> None:
        """Refuse a state that is not of such a buffer; changes nothing."""

    def set_state(self, state: State) -> None:
        """Go on from that."""


class Priorities(NamedTuple):
    """Rows are drawn by how wrong their values were.

    Attributes:
        update: takes the indices and TD errors of rows that were learned from.
        beta: how far weights make up for it, given to ``sample``.
    """

    update: Callable[[Array, Array], None]
    beta: Schedule


def followed(target: Any, params: Any, sync: Any, tau: Any) -> Any:
    """The targets after an update: where it is due, moved by ``tau`` towards the parameters."""
    step = jnp.where(sync, tau, 0.0)
    return jax.tree.map(lambda old, new: (1.0 - step) * old + step * new, target, params)


@lru_cache(maxsize=64)
def _compiled(method: Method) -> tuple[Any, Any]:
    """The updates of a call, and values; shared by all policies of this structure."""
    # Three programs: joined in that of the loop, vectors took ten times as long to make.
    opens, closes = (jax.jit(partial(function, method.form)) for function in (opened, closed))
    loop = jax.jit(partial(_updates, method))

    def updates(state: LearnerState, *given: Any) -> Any:
        state, *told = loop(opens(state), *given)
        return closes(state), *told

    return updates, jax.jit(partial(_values, method))


def _seen(frames: Frames, rows: dict[str, Any]) -> dict[str, Any]:
    """Rows whose stacked observations are what networks see."""
    lead = rows["reward"].ndim
    return rows | {name: frames.joined(rows[name], lead) for name in ("obs", "next_obs") if name in rows}


def _values(method: Method, params: Any, normalizer: Any, obs: Tree) -> jax.Array:
    if normalizer:
        obs = normalize(method.observation, normalizer, obs)
    return method.values(method.static, opened(method.form.params, params), obs)


def _updates(
    method: Method, state: LearnerState, batches: dict[str, Any], count: Any, hyper: Any, seed: Any
) -> tuple[LearnerState, dict[str, jax.Array], jax.Array]:
    """Updates, one after the other; one that is not finite changes nothing and counts as skipped.

    Args:
        method: of the algorithm.
        state: as it is, and in the form that updates see.
        batches: columns ``(k, n, ...)``; of sequences ``(k, n, rows, ...)``, and ``filled`` says which are.
        count: how many of the ``k`` are learned from: a traced loop bound, so that shapes are few.
        hyper: coefficients.
        seed: of the random keys, one an update.

    Returns:
        The new state; the means of the parts, and ``skipped``; the TD errors ``(k, n)``.
    """
    frames = method.frames
    if state.normalizer:
        batches = batches if frames is None else _seen(frames, batches)
        frames, spec = None, method.observation
        filled = batches.get("filled", jnp.ones(batches["reward"].shape, bool))
        real = filled & (jnp.arange(len(filled)) < count).reshape(-1, *[1] * (filled.ndim - 1))
        state = state._replace(normalizer=norm_merge(spec, state.normalizer, batches["obs"], real))
        names = [name for name in ("obs", "next_obs") if name in batches]
        batches = batches | {name: normalize(spec, state.normalizer, batches[name]) for name in names}

    def one(state: LearnerState, i: Any) -> Any:
        batch = jax.tree.map(lambda a: a[i], batches)
        batch = batch if frames is None else _seen(frames, batch)  # of one minibatch: images take room
        key = jax.random.fold_in(jax.random.key(seed), batch["number"])
        return method.update(method.static, state, batch, hyper, key)

    def step(i: Any, carry: Any) -> Any:
        state, sums, errors = carry
        new, parts, error = one(state, i)
        # The norm of the gradient is among the parts: no need to look through all of the new state.
        fine = jnp.isfinite(jnp.stack(list(parts.values()))).all()
        parts = {name: jnp.where(fine, part, 0.0) for name, part in parts.items()} | {"skipped": ~fine}
        state = jax.tree.map(partial(jnp.where, fine), new, state)
        error = jnp.where(fine, error, 0.0)
        return (
            state,
            jax.tree.map(jnp.add, sums, parts),
            jax.lax.dynamic_update_index_in_dim(errors, error, i, 0),
        )

    shapes = jax.eval_shape(one, state, 0)[1]
    sums = {name: jnp.float32(0.0) for name in (*shapes, "skipped")}
    errors = jnp.zeros(batches["weight"].shape, jnp.float32)
    state, sums, errors = jax.lax.fori_loop(0, count, step, (state, sums, errors))
    learned = jnp.maximum(count - sums["skipped"], 1.0)
    means = {name: total if name == "skipped" else total / learned for name, total in sums.items()}
    return state, means, errors


@final
class OffPolicyLearner(PolicyLearner):
    """Learns one policy from a replay buffer.

    Args:
        method: of the algorithm.
        policy: what runners act with; its flat parameters are the first of the state's.
        state: before the first update.
        seed: minibatches and noise of updates are drawn from streams of their own.
        replay: what fragments are added to and minibatches are drawn from.
        coefficients: the fields of the method's ``hyper``, each a number or a schedule over env steps.
        scalars: numbers that acting needs, such as ``epsilon``; likewise.
        acting: how many of the parameters act.
        batch_size: rows of one update.
        updates_per_step: updates an env step is worth; what is left over waits for the next call.
        learning_starts: env steps before the first update.
        target_update_freq: env steps between updates of the targets; 0 moves them at each update.
        observed: observations that come with each of the batch: a row's and its outcome's, or a sequence's.
        priorities: of a prioritized buffer.
        about: the summary's text.
    """

    takes_older_rows = True

    def __init__(
        self,
        method: Method,
        policy: Policy,
        state: LearnerState,
        seed: int,
        *,
        replay: Buffer,
        coefficients: Mapping[str, Schedule],
        acting: int,
        batch_size: int,
        updates_per_step: float,
        learning_starts: int,
        target_update_freq: int = 0,
        observed: int = 2,
        scalars: Mapping[str, Schedule] | None = None,
        priorities: Priorities | None = None,
        about: str = "",
    ) -> None:
        self.policy, self.state, self._replay = policy, state, replay
        if method.frames is not None:
            from steppe.policies.frames import FramesPolicy  # most policies see one observation at a time

            self.policy = FramesPolicy(policy, method.frames)
        self._method, (self._updates, self._values) = method, _compiled(method)
        self._rng = stream(seed, "minibatches")
        self._seed = np.uint32(stream(seed, "updates").integers(1 << 32))
        self._points = {name: points(given) for name, given in coefficients.items()}
        self._scalars = {name: points(given) for name, given in (scalars or {}).items()}
        self._priorities, self._about, self._acting = priorities, about, acting
        self._beta = None if priorities is None else points(priorities.beta)
        self._size, self._ratio, self._starts = batch_size, updates_per_step, learning_starts
        one = sum(leaf.nbytes for leaf in leaves(zeros(method.observation, 1)))
        most = _ROOM // (one * observed * batch_size)
        self._most = min(_MOST, 1 << max(most.bit_length() - 1, 0))
        self._freq = target_update_freq
        self._version = self._skipped = self._number = self._env_steps = 0
        self._owed = 0.0

    def add(self, rollout: Rollout) -> None:
        """Remember a fragment."""
        self._replay.add(rollout)

    def update(self, env_steps: int) -> Stats:
        """Learn as often as the env steps since the last call are worth; {} where that is not yet."""
        before, self._env_steps = self._env_steps, env_steps
        if env_steps < self._starts or len(self._replay) < self._size:
            return {}
        self._owed += (env_steps - before) * self._ratio
        count = int(self._owed)
        if not count:
            return {}
        self._owed -= count
        hyper = self._method.hyper(
            **{name: np.float32(np.interp(env_steps, *given)) for name, given in self._points.items()}
        )
        sync = self._due(before, env_steps, count)
        sums: dict[str, float] = {}
        for start in range(0, count, self._most):
            part = sync[start : start + self._most]
            for name, value in self._learn(part, hyper).items():
                sums[name] = sums.get(name, 0.0) + value * (1.0 if name == "skipped" else len(part))
        self._version += 1
        self._skipped += int(sums.pop("skipped"))
        stats = {name: total / count for name, total in sums.items()}
        stats |= {f"cur_{name}": self._scalar(given) for name, given in self._scalars.items()}
        counts = {"updates": self._number, "updates_skipped": self._skipped, "replay_rows": len(self._replay)}
        return stats | {"cur_lr": float(hyper.lr)} | {name: float(n) for name, n in counts.items()}

    def _due(self, before: int, now: int, count: int) -> Array:
        """After which of ``count`` updates, spread evenly over the env steps, the targets move."""
        if not self._freq:
            return np.ones(count, np.bool_)
        steps = np.linspace(before, now, count + 1)
        due: Array = np.diff(steps // self._freq) > 0
        return due

    def _learn(self, sync: Array, hyper: Any) -> dict[str, float]:
        """One compiled call: as many updates as ``sync`` is long."""
        count = len(sync)
        padded = 1 << (count - 1).bit_length()
        beta = () if self._beta is None else (float(np.interp(self._env_steps, *self._beta)),)
        with np.errstate(over="ignore"):  # a sum that overflows is infinite, and its update undone
            batches = self._replay.sample(self._rng, padded, self._size, *beta)
        if self.on_batch is not None:
            self.on_batch(batches)
        index = batches.pop("index")
        batches["number"] = np.arange(self._number, self._number + padded, dtype=np.uint32)
        batches["sync"] = np.resize(sync, padded)
        self._number += count
        told = self._updates(self.state, batches, np.int32(count), hyper, self._seed)
        self.state, parts, errors = told
        if self._priorities is not None:
            self._priorities.update(index[:count], np.asarray(errors)[:count])
        return {name: float(value) for name, value in jax.device_get(parts).items()}

    def _scalar(self, given: Any) -> float:
        return float(np.interp(self._env_steps, *given))

    def values(self, obs: Tree) -> FloatArray:
        """What the critic makes of some observations ``(n, ...)``: ``(n,)``.

        Raises:
            ConfigError: it needs to know what came before them.
        """
        if self._method.frames is not None or self._method.remembers:
            raise ConfigError(
                "the critic judges observations with what came before them (framestack, memory), and single "
                "ones are not enough; leave that out, or let the function do without the critic's values"
            )
        n = len(leaves(obs)[0])
        index = np.minimum(np.arange(1 << (n - 1).bit_length()), n - 1)  # padded: few shapes to compile
        found = self._values(self.state.params, self.state.normalizer, take(obs, index))
        return np.asarray(found)[:n]

    def publish(self) -> Weights:
        """The parameters that act, statistics of what they observe, and schedules at this env step."""
        actor = np.asarray(self.state.params)[: self._acting]
        scalars = {name: self._scalar(given) for name, given in self._scalars.items()}
        return Weights(self._version, actor, tuple(map(np.asarray, self.state.normalizer)), scalars)

    def get_weights(self) -> FloatArray:
        """All parameters but the targets, flat."""
        flat: FloatArray = np.asarray(self.state.params).copy()
        return flat

    def set_weights(self, weights: Array) -> None:
        """Replace the parameters, and the targets with them; the optimizer keeps its moments."""
        params = np.array(weights, np.float32)
        target = params[len(params) - len(self.state.target) :].copy()
        self.state = self.state._replace(params=params, target=target)
        self._version += 1

    def summary(self) -> str:
        """Network and parameter count."""
        return self._about

    def get_state(self) -> State:
        """Parameters, optimizer, statistics, replay, stream and counters."""
        return {
            "arrays": arrays_of(self.state),
            "rng": self._rng.bit_generator.state,
            "replay": self._replay.get_state(),
            "counters": [self._version, self._skipped, self._number, self._env_steps],
            "owed": self._owed,
        }

    def checked(self, state: State) -> LearnerState:
        """The arrays in their places."""
        checked = refilled(self.state, state["arrays"])
        self._replay.check(state["replay"])
        return checked

    def set_state(self, state: State, checked: LearnerState) -> None:
        """Go on from ``state``."""
        self._replay.set_state(state["replay"])
        self.state, self._owed = checked, float(state["owed"])
        self._rng.bit_generator.state = state["rng"]
        self._version, self._skipped, self._number, self._env_steps = map(int, state["counters"])
