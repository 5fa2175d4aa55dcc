"""What brings an env back to where it was: its generators at the last reset, and the actions since."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, final

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from steppe import spaces
from steppe.spaces import DiscreteSpec, Spec
from steppe.types import Array, IntArray, State, Tree

LOG_LIMIT = 100_000
"""Sends that are remembered; a longer episode is not replayed (which would take as long as it did)."""

_STATELESS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
_PLAIN_CONTAINERS = (dict, list, tuple)
_MOST_HELD = 1000  # longer lists are data
_MAY_HOLD = (gymnasium.Env, gymnasium.Space, *_PLAIN_CONTAINERS)


class NotExact(Exception):  # noqa: N818 - an answer for the caller, never an error that a user sees
    """An env could not be brought back; the message says why."""


class NotPlain(Exception):  # noqa: N818 - likewise
    """The state of env ``env`` holds something that no file can; the message names it."""

    def __init__(self, env: int, message: str) -> None:
        super().__init__(message)
        self.env = env


class Restored(NamedTuple):
    """Where a replay arrived: the newest observation and the sum of the episode's rewards."""

    obs: Any
    total: float


class _Holder(NamedTuple):
    path: str
    owner: Any
    key: Any

    @property
    def value(self) -> Any:
        """What is there now; None if nothing is."""
        try:
            return self.owner[self.key]
        except (LookupError, TypeError):
            return None


def seed_spaces(env: Any, seed: int) -> None:
    """Seed the env's spaces, from which many an env samples, each with a stream of its own."""
    named = ("action_space", "observation_space", "action_spaces", "observation_spaces")
    for index, name in enumerate(named):
        space = getattr(env, name, None)
        for place, part in enumerate(space.values() if isinstance(space, dict) else [space]):
            seed_space = getattr(part, "seed", None)
            if callable(seed_space):
                key = (index, place) if isinstance(space, dict) else (index,)
                word = np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0]
                seed_space(int(word) >> 1)


@final
class Generators:
    """What each of ``n`` envs draws from, as it was right before its last reset.

    An env that has both ``get_state()`` and ``set_state(state)`` (and no wrapper with a state of its own) is
    asked for its whole state instead, which must consist of JSON values and numpy arrays.

    Attributes:
        native: whether an env gives and takes its own state.
        captured: for each env, the states of its generators right before its last reset, by path.
        sole: the one generator that an env was seen to draw from, if it is one of numpy's: what most envs
            have, and the adapter captures it without a call.
    """

    def __init__(self, envs: Sequence[Any]) -> None:
        self._envs = envs
        self.native = [_has_state(env) for env in envs]
        self._holders: list[list[_Holder]] = [[] for _ in envs]
        self._resets = [0] * len(envs)
        self._idle: list[list[tuple[_Holder, Any]]] = [[] for _ in envs]
        self.captured: list[list[tuple[str, Any]]] = [[] for _ in envs]
        self.sole: list[_Holder | None] = [None] * len(envs)

    def before_reset(self, i: int) -> None:
        """Keep the state of env ``i``'s generators; call it right before each reset."""
        if self.native[i]:
            return
        if self._resets[i] < 3:  # generators come into being in the constructor, at reset, in the first steps
            self._holders[i] = list(_holders(self._envs[i]))
            self._resets[i] += 1
            if self._resets[i] == 3:
                self._set_idle_aside(i)
        found = ((holder.path, holder.value) for holder in self._holders[i])
        self.captured[i] = [(path, _capture(value)) for path, value in found if value is not None]

    def _set_idle_aside(self, i: int) -> None:
        """What drew nothing in a whole episode (mostly the spaces) is not copied at every reset."""
        before, busy = dict(self.captured[i]), []
        for holder in self._holders[i]:
            now = _capture(holder.value)
            if _same(now, before.get(holder.path)):
                self._idle[i].append((holder, now))
            else:
                busy.append(holder)
        self._holders[i] = busy
        if len(busy) == 1 and isinstance(busy[0].value, np.random.Generator):
            self.sole[i] = busy[0]

    def _captures(self, i: int) -> State:
        """The generators' states at the last reset, by path; None where that is not known."""
        found = dict(self.captured[i])
        for holder, state in list(self._idle[i]):
            found[holder.path] = state
            if not _same(_capture(holder.value), state):
                found[holder.path] = None
                self._idle[i].remove((holder, state))
                self._holders[i].append(holder)
                self.sole[i] = None
        return found

    def save(self, i: int, t: int) -> State:
        """What :meth:`restore` needs of env ``i``, ``t`` steps into its episode.

        Raises:
            NotPlain: the env's own ``get_state()`` gave what no file can hold.
        """
        if not self.native[i]:
            return {"rng": plain(self._captures(i), "rng", i)}
        native = plain(self._envs[i].unwrapped.get_state(), "get_state()", i)
        now = {holder.path: _capture(holder.value) for holder in _holders(self._envs[i])}
        return {"native": native, "rng": plain(now, "rng", i), "t": t}

    def restore(self, i: int, saved: State, reset: Callable[[bool], Any], *, first: bool) -> Any:
        """Bring env ``i`` to its state, or else to the beginning of its episode; ``first``: its first one.

        Args:
            i: which env.
            saved: of :meth:`save`.
            reset: resets the env; seeds it, and its spaces, if it is given True.
            first: it was saved in its first episode.

        Returns:
            What the reset that began the episode returned; None if the env took its own state back.

        Raises:
            NotExact: it could not, and why.
        """
        env = self._envs[i]
        result = reset(True)
        native = "native" in saved
        if native:
            env.unwrapped.set_state(saved["native"])
            _set_elapsed(env, saved["t"])
        if native or not first:
            self._install(i, saved["rng"])
        if not native and not first:
            result = reset(False)
        self._holders[i], self._idle[i], self._resets[i] = list(_holders(env)), [], 0
        self.sole[i] = None
        self.captured[i] = [] if native else list(saved["rng"].items())
        return None if native else result

    def _install(self, i: int, rng: State) -> None:
        holders = {holder.path: holder for holder in _holders(self._envs[i])}
        for path, state in rng.items():
            holder = holders.get(path)
            if state is None:
                raise NotExact(f"its generator {path!r} came into use only lately")
            if holder is None:
                raise NotExact(f"it has no generator {path!r} any more")
            _set_generator(holder.value, state)


@final
class EpisodeMemory:
    """Remembers for each of ``n`` envs of one agent how its running episode came about.

    Attributes:
        generators: what the envs draw from.
        log: ``(envs, actions)`` of each step, appended by the adapter; ``envs`` None means all, in order.
        base: index of the log's first entry, counted from the beginning of time.
        start: ``(n,)`` that index for the first step of each env's episode.
    """

    def __init__(self, envs: Sequence[gymnasium.Env[Any, Any]], action: Spec) -> None:
        self._envs, self._action = envs, action
        self.generators = Generators(envs)
        self.log: list[tuple[IntArray | None, Tree]] = []
        self.base = 0
        self.start = np.zeros(len(envs), dtype=np.int64)

    def before_reset(self, i: int) -> None:
        """Keep the state of env ``i``'s generators; call it right before each reset."""
        self.start[i] = self.base + len(self.log)
        self.generators.before_reset(i)

    def forget(self) -> None:
        """Drop the older half of a log at its limit; the episodes that began there cannot be replayed."""
        past = len(self.log) // 2
        del self.log[:past]
        self.base += past

    def save(self, ts: IntArray) -> list[State]:
        """For each env, ``ts[i]`` steps into its episode, what :meth:`restore` needs: JSON values and arrays.

        Raises:
            NotPlain: an env's own ``get_state()`` gave something else.
        """
        taken = self._taken()
        return [self._save(i, int(t), *taken) for i, t in enumerate(ts)]

    def _save(self, i: int, t: int, envs: IntArray, actions: Tree) -> State:
        saved = self.generators.save(i, t)
        if "native" in saved:
            return saved
        if self.start[i] < self.base:
            return saved | {"actions": None}
        mine = np.flatnonzero(envs == i)
        column = spaces.take(actions, mine[len(mine) - t :])
        return saved | {"actions": spaces.leaves(column)}

    def _taken(self) -> tuple[IntArray, Tree]:
        """All remembered actions as one column, with the env of each."""
        everyone = np.arange(len(self._envs))
        ids = [everyone if envs is None else envs for envs, _ in self.log]
        columns = [spaces.zeros(self._action, 0), *(column for _, column in self.log)]
        joined = spaces.map_leaves(lambda *leaves: np.concatenate(leaves), *columns)
        return np.concatenate([np.zeros(0, dtype=np.int64), *ids]), joined

    def restore(self, i: int, saved: State, *, seed: int, first: bool) -> Restored | None:
        """Bring env ``i`` to where it was saved; ``first``: in its first episode.

        Returns:
            Where a replay arrived, to be compared by the caller; None if the env took its own state back.

        Raises:
            NotExact: it could not, and why.
        """
        env = self._envs[i]

        def reset(seeded: bool) -> Any:
            if not seeded:
                return env.reset()
            seed_spaces(env, seed)
            return env.reset(seed=seed)

        try:
            result = self.generators.restore(i, saved, reset, first=first)
            self.start[i] = self.base + len(self.log)
            return None if result is None else self._replay(i, saved["actions"], first_obs(result))
        except NotExact:
            raise
        except Exception as error:
            raise NotExact(f"it raised {type(error).__name__}: {error}") from error

    def _replay(self, i: int, actions: Sequence[Array] | None, obs: Any) -> Restored:
        if actions is None:
            raise NotExact(f"its episode is longer than the {LOG_LIMIT} actions that are remembered")
        column, count, total = from_leaves(self._action, actions), len(actions[0]), 0.0
        single = isinstance(self._action, DiscreteSpec)
        for row, action in enumerate(column if single else spaces.rows(self._action, column)):
            obs, reward, *flags, _ = self._envs[i].step(action)
            total += float(reward)
            if row < count - 1 and any(flags):
                raise NotExact(f"its episode ended after {row + 1} steps, not {count}")
        self.log.append((np.full(count, i), column))
        return Restored(obs, total)


def from_leaves(spec: Spec, arrays: Sequence[Array]) -> Tree:
    """The column of ``spec`` whose leaves, in order, are ``arrays``."""
    remaining = iter(arrays)
    return spaces.map_leaves(lambda _: next(remaining), spaces.zeros(spec, 0))


def same_columns(a: Tree, b: Tree) -> bool:
    """Whether two columns are equal, bit by bit but for NaN, which equals itself."""
    return all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(spaces.leaves(a), spaces.leaves(b), strict=True)
    )


def first_obs(result: Any) -> Any:
    """The observation out of what ``reset`` returned, with or without an info."""
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    return result[0] if pair else result


def _has_state(env: Any) -> bool:
    layer = env
    while isinstance(layer, _STATELESS):
        layer = layer.env
    if isinstance(layer, gymnasium.Wrapper) or getattr(layer, "unwrapped", layer) is not env.unwrapped:
        return False
    return all(callable(getattr(env.unwrapped, name, None)) for name in ("get_state", "set_state"))


def _set_elapsed(env: Any, t: int) -> None:
    """Put the time limits around an env that took its own state back to step ``t``."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            vars(env)["_elapsed_steps"] = t
        env = env.env


def _holders(root: Any) -> Iterator[_Holder]:
    """Where the generators of an env live: its attributes, those of its spaces and of the envs inside it.

    Lists, tuples and dicts of generators, envs and spaces are looked through, too.
    """
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        prefix, thing = todo.pop()
        owner = thing if isinstance(thing, _PLAIN_CONTAINERS) else getattr(thing, "__dict__", None)
        if owner is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, _PLAIN_CONTAINERS) and len(thing) > _MOST_HELD:
            continue
        for key, value in enumerate(owner) if isinstance(owner, (list, tuple)) else owner.items():
            path = f"{prefix}{key}"
            if isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
                yield _Holder(path, owner, key)
            elif isinstance(value, _MAY_HOLD) or key == "env":
                todo.append((f"{path}.", value))


def _capture(value: Any) -> Any:
    """A generator's state as it is now; None if what was a generator is none any more."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return value.getstate() if isinstance(value, random.Random) else None


def _same(a: Any, b: Any) -> bool:
    """Whether two captured states are equal; those of MT19937 hold arrays."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


def _set_generator(value: Any, state: Any) -> None:
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    elif isinstance(value, np.random.RandomState):
        value.set_state(state)
    else:
        version, words, gauss = state
        value.setstate((version, tuple(words), gauss))


def plain(value: Any, path: str, env: int) -> Any:
    """A deep copy out of JSON values and arrays; tuples become lists, numpy scalars Python numbers."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biufU":
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value.copy()
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{path}[{key!r}]", env) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{path}[{index}]", env) for index, item in enumerate(value)]
    raise NotPlain(env, f"{path} is a {type(value).__name__}: only JSON values and numpy arrays can be saved")
