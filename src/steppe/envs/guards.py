"""Judges what envs return: whole columns on the hot path, single rows only to name the culprit."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import numpy as np
import numpy.typing as npt

from steppe import spaces
from steppe.errors import CODES, CheckpointError, ConfigError, EnvError, SpaceError
from steppe.spaces import Spec
from steppe.types import AgentID, BoolArray, IntArray, State, Tree

logger = logging.getLogger("steppe.envs")

MOST_KEYS = 100
"""Kinds of oddities that are counted apart; the rest is counted as elsewhere."""
LARGEST_REWARD = float(np.finfo(np.float32).max)
"""Lanes and learners hold float32: what is larger would become infinite there."""

OutOfSpace = Literal["warn", "raise", "clip"]


class Place(NamedTuple):
    """Where a value came from: vector index, episode, env step within it, the action that led here, whose."""

    env: int
    episode: int
    step: int
    action: Any = None
    agent: AgentID | None = None


Where = Callable[[int], Place]
"""The place of a row of the column that is judged; asked only when something is wrong."""


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What a run says of its envs, whatever kind they are of; adapters take it as keywords.

    Attributes:
        runner: worker index, for messages.
        observation_space: a space or Spec that overrides what the envs say; that of every agent.
        action_space: likewise.
        max_episode_steps: an episode of this many env steps is closed as truncated.
        max_sequence_length: for Sequence spaces that state no maximum.
        on_out_of_space: see :class:`Guard`.
    """

    runner: int = 0
    observation_space: Any = None
    action_space: Any = None
    max_episode_steps: int | None = None
    max_sequence_length: int | None = None
    on_out_of_space: OutOfSpace = "warn"


@final
class Guard:
    """Turns bad values into :class:`EnvError`, and counts and says what is odd but survivable.

    Args:
        env_class: class name of the envs, or one name per env.
        runner: worker index, for messages.
        seeds: seed of each env; the adapter's own list, so that it may change.
        on_out_of_space: what happens to a finite value outside its Box: ``"warn"`` counts it and says so
            once, ``"raise"`` raises, ``"clip"`` counts it, says so once and clips it.
    """

    def __init__(
        self,
        env_class: str | Sequence[str],
        runner: int,
        seeds: list[int],
        on_out_of_space: OutOfSpace = "warn",
    ) -> None:
        if on_out_of_space not in ("warn", "raise", "clip"):
            raise ConfigError(
                f"on_out_of_space is 'warn' (the default), 'raise' or 'clip', not {on_out_of_space!r}"
            )
        self._classes, self._runner, self._seeds = env_class, runner, seeds
        self._mode = on_out_of_space
        self.counts: dict[str, int] = {}

    def state(self, env_steps: int) -> State:
        """What all adapters that have begun keep alike: steps, seeds, and the counts of what was odd."""
        health, seeds = dict(self.counts), list(self._seeds)
        return {"started": True, "env_steps": env_steps, "health": health, "seeds": seeds}

    def adopt(self, state: State) -> None:
        """Take seeds and counts from an adapter's state.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        count = len(state["seeds"])
        if count != len(self._seeds):
            raise CheckpointError(f"the state is of {count} envs, here are {len(self._seeds)}")
        self._seeds[:] = state["seeds"]
        self.counts = dict(state.get("health", {}))

    def class_of(self, env: int) -> str:
        """Class name of an env."""
        return self._classes if isinstance(self._classes, str) else self._classes[env]

    def error(self, code: str, message: str, place: Place, leaf: str = "") -> EnvError:
        """An :class:`EnvError` with everything known about its place; to be raised by the caller."""
        return EnvError(
            code,
            message,
            env_class=self.class_of(place.env),
            runner=self._runner,
            env=place.env,
            episode=place.episode,
            step=place.step,
            seed=self._seeds[place.env],
            action=place.action.item() if isinstance(place.action, np.generic) else place.action,
            leaf=leaf,
            agent=place.agent,
        )

    def annotate(self, error: BaseException, place: Place) -> None:
        """Add to a user's own exception where in the run it happened."""
        action = place.action.item() if isinstance(place.action, np.generic) else place.action
        after = "" if action is None else f", after action {action!r}"
        error.add_note(
            f"steppe: {self.class_of(place.env)}, runner {self._runner}, env {place.env}, episode "
            f"{place.episode}, step {place.step}, seed {self._seeds[place.env]}{after}"
        )

    def odd(self, code: str, leaf: str, env: int, text: str, rows: int = 1) -> None:
        """Count something survivable; the first of its kind is said aloud."""
        key = f"{code} {leaf}"
        if key not in self.counts:
            if len(self.counts) >= MOST_KEYS:  # every pixel of an image may be a leaf of its own
                key = f"{code} elsewhere"
            logger.warning(
                "%s %s: %s (%s, runner %d, env %d; said once, counted in env_health)",
                *(code, CODES[code], text, self.class_of(env), self._runner, env),
            )
        self.counts[key] = self.counts.get(key, 0) + rows

    def observations(self, spec: Spec, values: Sequence[Any], where: Where, root: str = "obs") -> Tree:
        """A fresh column ``(n, ...)`` of ``n`` observations, judged against ``spec``.

        Raises:
            EnvError: E101 to E105, naming the leaf.
        """

        def converted(code: str, leaf: str, row: int, text: str) -> None:
            self.odd(code, leaf, where(row).env, text)

        try:
            column = spaces.collect(spec, values, converted, root)
        except spaces.BadLeaf as bad:
            message = f"{bad.leaf}: expected {bad.expected}, got {bad.got}"
            raise self.error(bad.code, message, where(bad.row), bad.leaf) from None
        found = spaces.outside(spec, column, root)
        return self._outside(spec, column, found, where) if found else column

    def _outside(self, spec: Spec, column: Tree, found: Sequence[spaces.Outside], where: Where) -> Tree:
        for one in found:
            text = f"{one.leaf} is {one.value}, its bound is {one.bound}"
            place = where(one.row)
            if self._mode == "raise":
                fix = "widen the space, or set on_out_of_space to 'warn' or 'clip'"
                raise self.error("E101", f"{text}; {fix}", place, one.leaf)
            clipped = ", clipped" if self._mode == "clip" else ""
            self.odd("E101", one.leaf, place.env, text + clipped, one.count)
        return spaces.clip(spec, column) if self._mode == "clip" else column

    def rewards(self, values: Sequence[Any], where: Where) -> npt.NDArray[np.float64]:
        """``(n,)`` float64 of ``n`` rewards.

        Raises:
            EnvError: E201 where one is not a single finite number.
        """
        try:
            column = np.array(values)
        except ValueError:  # arrays of different lengths among them
            column = np.empty(0, dtype=object)
        if column.dtype.kind in "fiub" and column.shape == (len(values),):
            rewards: npt.NDArray[np.float64] = column.astype(np.float64, copy=False)
            if (np.abs(rewards) <= LARGEST_REWARD).all():
                return rewards
        return np.array([self._reward(value, where, row) for row, value in enumerate(values)])

    def _reward(self, value: Any, where: Where, row: int) -> float:
        if is_reward(value):
            return float(value)
        fix = "return one finite Python or numpy number, within the range of float32"
        raise self.error("E201", f"reward: got {show(value)}; {fix}", where(row), "reward")

    def flags(self, name: str, values: Sequence[Any], where: Where) -> BoolArray:
        """``(n,)`` bools of ``n`` flags; 0 and 1 are taken, and said once.

        Raises:
            EnvError: E302 where one is anything else, such as a string.
        """
        try:
            column = np.array(values)
        except ValueError:
            column = np.empty(0, dtype=object)
        if column.shape == (len(values),):
            if column.dtype.kind == "b":
                return column
            if column.dtype.kind in "iu" and ((column == 0) | (column == 1)).all():
                numbers = [row for row, value in enumerate(values) if not isinstance(value, (bool, np.bool_))]
                row = numbers[0]
                text = f"{name} is {values[row]!r}, taken as a bool"
                self.odd("E302", name, where(row).env, text, len(numbers))
                return column.astype(np.bool_)
        return self._blame_flag(name, values, where)

    def _blame_flag(self, name: str, values: Sequence[Any], where: Where) -> BoolArray:
        for row, value in enumerate(values):
            if not is_flag(value):
                fix = "return a bool"
                raise self.error("E302", f"{name}: got {show(value)}; {fix}", where(row), name)
        return np.array([bool(value) for value in values])

    def infos(self, values: Sequence[Any], where: Where) -> None:
        """Judge that all of ``values`` are dicts.

        Raises:
            EnvError: E303.
        """
        if set(map(type, values)) != {dict}:
            for row, value in enumerate(values):
                if not isinstance(value, dict):
                    message = f"info: got {show(value)}; return a dict, {{}} if there is nothing to tell"
                    raise self.error("E303", message, where(row), "info")


def is_reward(value: Any) -> bool:
    """Whether this is one finite number."""
    number = isinstance(value, (int, float, np.integer, np.floating, np.bool_))
    scalar = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "fiub"
    return (number or scalar) and bool(-LARGEST_REWARD <= value <= LARGEST_REWARD)


def is_flag(value: Any) -> bool:
    """Whether this is a bool, or 0 or 1."""
    whole = isinstance(value, (int, np.integer)) and value in (0, 1)
    scalar = isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind == "b"
    return whole or scalar or isinstance(value, (bool, np.bool_))


def show(value: Any) -> str:
    """A short text of any value: repr, type, shape."""
    text = repr(value)
    short = text if len(text) <= 60 else f"{text[:57]}..."
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    return f"{short} ({type(value).__name__}{shape})"


def shared_spec(envs: Sequence[Any], name: str, given: Any, maximum: int | None) -> Spec:
    """The spec that all these Gymnasium envs share; ``given`` overrides them."""
    attribute = f"{name}_space"
    if given is not None:
        return spaces.spec_of(given, max_sequence_length=maximum, name=attribute)
    specs = []
    for i, env in enumerate(envs):
        space = getattr(env, attribute, None)
        kind = type(env.unwrapped).__name__
        if space is None:
            raise SpaceError(
                f"{kind} has no {attribute}: set self.{attribute} in its __init__, "
                f"or give {attribute} in the config"
            )
        specs.append(spaces.spec_of(space, max_sequence_length=maximum, name=f"{kind}.{attribute}"))
        if specs[i] != specs[0]:
            raise ConfigError(
                f"env {i} ({kind}) has {attribute} {spaces.summary(specs[i])}, but env 0 has "
                f"{spaces.summary(specs[0])}: the envs of one run must share their spaces"
            )
    return specs[0]


def own(obs: Any) -> Any:
    """A copy of an observation that its env cannot write to."""
    return obs.copy() if type(obs) is np.ndarray else copy.deepcopy(obs)


def share_memory(observations: Sequence[Any]) -> bool:
    """Whether some of these are, or hold, the very same array: envs that write to one buffer."""
    arrays = [array for obs in observations for array in _arrays(obs)]
    return len({id(array) for array in arrays}) < len(arrays)


def _arrays(obs: Any) -> Iterator[Any]:
    if isinstance(obs, np.ndarray):
        yield obs
    elif isinstance(obs, (dict, tuple, list)):
        for part in obs.values() if isinstance(obs, dict) else obs:
            yield from _arrays(part)


def copied_step(step: Callable[[Any], Any], action: Any) -> Any:
    """A step whose observation is the caller's own at once."""
    result = step(action)
    return (own(result[0]), *result[1:]) if isinstance(result, (tuple, list)) and result else result


def check_copies(envs: int, seeds: int, limit: int | None) -> None:
    """What every adapter is made of: one env at least, a seed for each, and a limit that lets them step.

    Raises:
        ValueError: the numbers of envs and seeds do not fit.
        ConfigError: the limit does not.
    """
    if envs < 1 or seeds != envs:
        raise ValueError(f"{envs} envs and {seeds} seeds: give at least one env, and one seed for each")
    if limit is not None and limit < 1:
        raise ConfigError(f"max_episode_steps is at least 1, not {limit}")


def check_alive(closed: bool, failure: BaseException | None) -> None:
    """Raise RuntimeError if an adapter's envs were closed, or failed."""
    if closed or failure is not None:
        what = "was closed" if closed else "failed before"
        raise RuntimeError(f"this env {what}: build it anew, or restore a state") from failure


def check_answers(slots: IntArray, wrong: BoolArray) -> None:
    """Raise ValueError if a slot is ``wrong``, for it awaits no action, or is answered twice at once."""
    if np.count_nonzero(wrong) or len(np.unique(slots)) < len(slots):
        culprit = slots[wrong][0] if wrong.any() else next(s for s in slots if (slots == s).sum() > 1)
        raise ValueError(
            f"slot {culprit} awaits no action (it has ended, or was answered since the last poll); "
            "answer each row that is neither terminated nor truncated once"
        )
