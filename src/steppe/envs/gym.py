"""Gymnasium envs as an :class:`~steppe.types.AsyncEnv`: n copies in this process, in lock-step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import gymnasium
import numpy as np

from steppe import spaces
from steppe.envs import replay
from steppe.envs.guards import (
    LARGEST_REWARD,
    Guard,
    Limits,
    Place,
    Where,
    check_alive,
    check_answers,
    check_copies,
    copied_step,
    own,
    share_memory,
    shared_spec,
    show,
)
from steppe.envs.replay import EpisodeMemory, NotExact, NotPlain, first_obs, from_leaves, same_columns
from steppe.spaces import DiscreteSpec
from steppe.types import (
    ALONE,
    SINGLE_AGENT,
    Array,
    EpisodeEnd,
    IntArray,
    SlotInfo,
    SpacePair,
    State,
    TimeStep,
    Tree,
)

ModernStep = Callable[[Any], Any]

_EVERY: Any = slice(None)
_NOTHING: list[Any] = []
_LONG_LOG = 512  # steps; then the action log is pruned whenever an episode ends


@final
class GymEnv:
    """``n`` Gymnasium envs; an env steps in the next ``poll`` after its slot was answered.

    Env ``i`` uses the slots ``i`` and ``i + n`` by turns. A TimeStep holds first the rows that await an
    action, one per stepped env in env order, then the final rows of the episodes that ended.

    Args:
        envs: distinct envs with equal spaces; the adapter owns and closes them.
        seeds: one per env, given to its first ``reset`` and to nothing else.
        modern_step: turns an old 4-item step result into 5 items; without it one is an error.
        limits: see :class:`~steppe.envs.guards.Limits`.

    Raises:
        ConfigError: the envs' spaces differ.
        SpaceError: a space is missing or cannot be handled.
    """

    steps_together = False

    def __init__(
        self,
        envs: Sequence[gymnasium.Env[Any, Any]],
        *,
        seeds: Sequence[int],
        modern_step: ModernStep | None = None,
        **limits: Any,
    ) -> None:
        n, limit = len(envs), Limits(**limits)
        check_copies(n, len(seeds), limit.max_episode_steps)
        self.num_envs, self.agents = n, ALONE
        maximum = limit.max_sequence_length
        self._obs_spec = shared_spec(envs, "observation", limit.observation_space, maximum)
        self._action_spec = shared_spec(envs, "action", limit.action_space, maximum)
        self.spaces: tuple[SpacePair, ...] = (SpacePair(self._obs_spec, self._action_spec),)
        self._discrete = isinstance(self._action_spec, DiscreteSpec)
        self._envs, self._seeds = list(envs), [int(seed) for seed in seeds]
        self._keep_apart(False)
        names = [type(env.unwrapped).__name__ for env in envs]
        self._guard = Guard(names, limit.runner, self._seeds, limit.on_out_of_space)
        self._max_steps, self._modern_step, self._closed = limit.max_episode_steps, modern_step, False
        self._all = np.arange(n)
        self._rewind()

    def _rewind(self) -> None:
        """Be as before the first poll, which resets and seeds the envs."""
        n, self.env_steps = self.num_envs, 0
        self._memory = EpisodeMemory(self._envs, self._action_spec)
        self._sent: list[tuple[IntArray | None, Tree]] = []
        self._started = False
        self._failure: BaseException | None = None
        # The newest row of every env. Arrays are replaced, never written to: callers may hold them.
        self._slot, self._t = self._all, np.zeros(n, dtype=np.int64)
        self._episode = [0] * n
        self._obs: Tree = None
        self._reward, self._total = np.zeros(n), np.zeros(n)

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Step the envs that were answered; resets all at the first call; [] if none was answered.

        Raises:
            EnvError: an env returned something that is not in its contract.
            Exception: whatever an env raised, with a note that says where in the run.
        """
        if not self._sent:
            return self._poll_idle()
        envs, where, steps, actions = self._all, _EVERY, self._steps, _NOTHING
        sent, self._sent = self._sent, []
        stepped, results = self._t + 1, list[Any]()

        def place(row: int) -> Place:
            i = int(envs[row])
            return Place(i, self._episode[i], int(stepped[row]), actions[row])

        try:
            self._memory.log += sent
            if sent[0][0] is None:
                column = sent[0][1]
                # Numpy's integers are what Discrete.sample() gives, and what its contains() is fastest with.
                actions = list(column) if self._discrete else spaces.rows(self._action_spec, column)
            else:
                envs, where, steps, actions = self._answers(sent)
                stepped = stepped[where]
            append = results.append
            for step, action in zip(steps, actions, strict=True):
                append(step(action))
            self.env_steps += len(results)
            columns = _transposed(results) or self._judged(results, place)
            obs, reward, terminated, truncated, infos = columns
            if self._max_steps is not None:
                truncated = truncated | ((stepped >= self._max_steps) & ~terminated)
            slots = self._slot if where is _EVERY else self._slot[where]
            now = TimeStep(slots, stepped, None, reward, terminated, truncated)
            told = zip(slots.tolist(), infos, strict=True) if any(infos) else ()
            now.info = {slot: info for slot, info in told if info}
            self._total[where] += reward
            if np.count_nonzero(terminated) or np.count_nonzero(truncated):
                return [self._turn_over(now, where, envs, list(obs), place)]
            found = spaces.stack(self._obs_spec, obs)
            now.obs = self._guard.observations(self._obs_spec, obs, place) if found is None else found
            if where is _EVERY:
                self._obs, self._reward, self._t = now.obs, reward, stepped
            else:
                self._keep(where, now.obs, reward, stepped, now.slot)
            return [now]
        except BaseException as error:  # a keyboard interrupt, too, leaves some envs stepped and some not
            self._failure = error
            if isinstance(error, Exception) and len(results) < len(actions):
                self._guard.annotate(error, place(len(results)))
            raise

    def _poll_idle(self) -> Sequence[TimeStep]:
        self._check_alive()
        if self._started:
            return []
        try:
            return [self._first()]
        except BaseException as error:
            self._failure = error
            raise

    def _check_alive(self) -> None:
        check_alive(self._closed, self._failure)

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """Answer ``slots`` with a column of actions; the column is copied.

        Raises:
            ValueError: a slot awaits no action, or the column has another length.
        """
        if self._failure is not None or self._closed or not self._started:
            self._check_alive()
            raise ValueError("no slot awaits an action yet: poll() first")
        array = isinstance(actions, np.ndarray)
        column = np.array(actions) if array else spaces.map_leaves(np.array, actions)
        for leaf in (column,) if array else spaces.leaves(column):
            if leaf.shape[:1] != slots.shape:
                raise ValueError(f"{slots.shape[0]} slots, but an action column of shape {leaf.shape}")
        if len(self._memory.log) >= replay.LOG_LIMIT:
            self._memory.forget()
        if not self._sent and slots.dtype == np.int64 and slots.tobytes() == self._slot.tobytes():
            self._sent.append((None, column))
        elif len(slots):
            self._sent.append((self._envs_of(slots), column))

    def pending(self) -> Sequence[TimeStep]:
        """The newest row of every env, all with ``opened``; [] before the first poll."""
        if not self._started:
            return []
        none = np.zeros(self.num_envs, dtype=np.bool_)
        opened = [self._info(i) for i in range(self.num_envs)]
        return [TimeStep(self._slot, self._t, self._obs, self._reward, none, none, opened=opened)]

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``."""
        return dict(self._guard.counts)

    def get_sub_environments(self) -> list[Any]:
        """The Gymnasium envs, by vector index."""
        return list(self._envs)

    def close(self) -> None:
        """Close every env, even if one raises; then raise what the first one raised."""
        if self._closed:
            return
        self._closed = True
        errors: list[Exception] = []
        for i, env in enumerate(self._envs):
            try:
                env.close()
            except Exception as error:
                self._guard.annotate(error, self._place(i))
                errors.append(error)
        if errors:
            raise errors[0]

    def get_state(self) -> State:
        """All envs at their newest rows; only between a poll and the send that answers it.

        Raises:
            EnvError: E402, an env's own ``get_state()`` returned what cannot be saved.
            RuntimeError: an env failed, or all were closed.
            ValueError: actions were sent that no poll has used.
        """
        self._check_alive()
        if self._sent:
            raise ValueError("actions were sent: take the state between a poll and the send that answers it")
        if not self._started:
            return {"started": False, "seeds": list(self._seeds)}
        try:
            envs = self._memory.save(self._t)
        except NotPlain as bad:
            raise self._guard.error("E402", str(bad), self._place(bad.env)) from None
        return self._guard.state(self.env_steps) | {
            "episodes": list(self._episode),
            "t": self._t.copy(),
            "reward": self._reward.copy(),
            "total": self._total.copy(),
            "obs": [leaf.copy() for leaf in spaces.leaves(self._obs)],
            "envs": envs,
            "sharing": self._sharing,
        }

    def set_state(self, state: State) -> list[str]:
        """Bring every env back by its own ``set_state``, or by replaying its episode.

        An env that does not come out the same is named in the answer and begins a new episode. A state from
        before the first poll makes the next poll reset and seed all envs.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        self._guard.adopt(state)
        if not state["started"]:
            self._rewind()
            return []
        self.env_steps = state["env_steps"]
        self._episode = list(state["episodes"])
        self._t, self._reward = np.array(state["t"]), np.array(state["reward"])
        self._total = np.array(state["total"])
        self._obs = from_leaves(self._obs_spec, [np.array(leaf) for leaf in state["obs"]])
        self._slot = self._all + self.num_envs * (np.array(self._episode) % 2)
        self._started, self._sent, self._failure = True, [], None
        self._keep_apart(state["sharing"])
        return [text for i in range(self.num_envs) if (text := self._restore(i, state["envs"][i]))]

    def _restore(self, i: int, saved: State) -> str:
        """Restore one env; a sentence if it had to begin a new episode."""
        try:
            arrived = self._memory.restore(i, saved, seed=self._seeds[i], first=self._episode[i] == 0)
            if arrived is not None:
                column = self._guard.observations(self._obs_spec, [arrived.obs], lambda _: self._place(i))
                same = same_columns(column, spaces.take(self._obs, slice(i, i + 1)))
                if not same or arrived.total != self._total[i]:
                    raise NotExact("its replay gave another observation or reward")
        except NotExact as why:
            step = int(self._t[i])
            self._restart(i)
            name = self._guard.class_of(i)
            return f"E402 env {i} ({name}) begins a new episode, it was at step {step}: {why}"
        return ""

    def _restart(self, i: int) -> None:
        obs, _ = self._reset(i, self._episode[i] + 1)
        column = self._guard.observations(self._obs_spec, [obs], lambda _: Place(i, self._episode[i], 0))
        self._slot[i] = self._info(i).slot
        self._t[i] = self._reward[i] = self._total[i] = 0
        spaces.put(self._obs, np.array([i]), column)

    def _first(self) -> TimeStep:
        raw, obs, infos = [], [], []
        for i in range(self.num_envs):
            first, info = self._reset(i, 0)
            raw.append(first)
            obs.append(own(first))
            infos.append(info)
        self._keep_apart(share_memory(raw))
        self._obs = self._guard.observations(self._obs_spec, obs, lambda row: Place(row, 0, 0))
        self._started = True
        (step,) = self.pending()
        step.info = {i: info for i, info in enumerate(infos) if info}
        return step

    def _keep_apart(self, sharing: bool) -> None:
        """Envs that write to one buffer have their observations copied at each step, not at each poll."""
        self._sharing = sharing
        self._steps = [partial(copied_step, env.step) if sharing else env.step for env in self._envs]

    def _reset(self, i: int, episode: int) -> tuple[Any, dict[str, Any]]:
        self._episode[i] = episode
        env, place = self._envs[i], Place(i, episode, 0)
        memory, sole = self._memory, self._memory.generators.sole[i]
        if sole is not None and isinstance(sole.owner[sole.key], np.random.Generator):
            memory.generators.captured[i] = [(sole.path, sole.owner[sole.key].bit_generator.state)]
            memory.start[i] = memory.base + len(memory.log)
        else:
            memory.before_reset(i)
        try:
            if episode:
                result: Any = env.reset()
            else:
                replay.seed_spaces(env, self._seeds[i])
                result = env.reset(seed=self._seeds[i])
        except Exception as error:
            self._guard.annotate(error, place)
            raise
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
            return result
        no_info = isinstance(result, tuple) and len(result) == 2 and result[1] is None
        if self._modern_step is None or result is None or no_info:
            message = f"reset returned {show(result)}; return (observation, info), info being a dict"
            raise self._guard.error("E304", message, place, "reset")
        self._guard.odd("E401", "reset", i, "reset returned an observation without info")
        return first_obs(result), {}

    def _answers(
        self, sent: Sequence[tuple[IntArray | None, Tree]]
    ) -> tuple[IntArray, IntArray, list[Any], list[Any]]:
        """The envs that were answered, in env order (twice: also as an index), their steps and actions."""
        rows = list if self._discrete else partial(spaces.rows, self._action_spec)
        actions = [action for _, column in sent for action in rows(column)]
        answered = np.concatenate([envs for envs, _ in sent if envs is not None])
        order = np.argsort(answered)
        envs = answered[order]
        return envs, envs, [self._steps[i] for i in envs], [actions[row] for row in order]

    def _judged(self, results: list[Any], place: Where) -> tuple[Any, ...]:
        """Five columns out of step results that are not plain, or the error that says why not."""
        modern = [self._modern(result, row, place) for row, result in enumerate(results)]
        obs, rewards, terminations, truncations, infos = zip(*modern, strict=True)
        reward = self._guard.rewards(rewards, place)
        terminated = self._guard.flags("terminated", terminations, place)
        truncated = self._guard.flags("truncated", truncations, place)
        self._guard.infos(infos, place)
        return obs, reward, terminated, truncated, infos

    def _modern(self, result: Any, row: int, place: Where) -> Sequence[Any]:
        if isinstance(result, (tuple, list)):
            if len(result) == 5:
                return result
            if len(result) == 4 and self._modern_step is not None:
                self._guard.odd("E401", "step", place(row).env, "step returned 4 items")
                modern: Sequence[Any] = self._modern_step(result)
                return modern
            got = f"{len(result)} items"
        else:
            got = show(result)
        message = f"step returned {got}; return (observation, reward, terminated, truncated, info)"
        raise self._guard.error("E301", message, place(row), "step")

    def _turn_over(
        self, step: TimeStep, where: slice | IntArray, envs: IntArray, obs: list[Any], place: Where
    ) -> TimeStep:
        """Reset the envs whose episodes ended: final rows go to the end, first rows take their places."""
        n = len(obs)
        ended: IntArray = np.flatnonzero(step.terminated | step.truncated)
        # An env may reuse its observation and info for the episode that begins now.
        last = [obs[j].copy() if type(obs[j]) is np.ndarray else own(obs[j]) for j in ended]
        info = {slot: dict(content) for slot, content in step.info.items()}
        opened, closed = list[SlotInfo](), list[EpisodeEnd]()
        for j in ended.tolist():
            i = int(envs[j])
            episode = self._episode[i] + 1
            closed.append(EpisodeEnd(i, episode - 1, int(step.t[j])))
            begun, first = self._reset(i, episode)
            obs[j] = begun.copy() if type(begun) is np.ndarray else own(begun)
            slot = i + self.num_envs * (episode % 2)
            opened.append(SlotInfo(slot, i, SINGLE_AGENT, episode, self._seeds[i]))
            if first:
                info[slot] = first

        def now(row: int) -> Place:
            if row >= n:
                return place(ended[row - n])._replace(episode=closed[row - n].episode)
            begun = row in ended
            return Place(int(envs[row]), self._episode[int(envs[row])], 0) if begun else place(row)

        values = obs + last
        found = spaces.stack(self._obs_spec, values)
        rows = self._guard.observations(self._obs_spec, values, now) if found is None else found
        both = np.concatenate((self._all[:n], ended))
        slots, t, reward = step.slot[both], step.t[both], step.reward[both]
        terminated, truncated = step.terminated[both], step.truncated[both]
        slots[ended] = [one.slot for one in opened]
        t[ended] = reward[ended] = 0
        terminated[:n] = truncated[:n] = False
        active = rows[:n] if isinstance(rows, np.ndarray) else spaces.take(rows, slice(n))
        if where is _EVERY:
            self._obs, self._reward, self._t, self._slot = active, reward[:n], t[:n], slots[:n]
        else:
            self._keep(where, active, reward[:n], t[:n], slots[:n])
        self._total[envs[ended]] = 0.0
        memory = self._memory
        if len(memory.log) >= _LONG_LOG:  # forget actions that no running episode needs
            past = int(memory.start.min()) - memory.base
            if past > 0:
                del memory.log[:past]
                memory.base += past
        return TimeStep(slots, t, rows, reward, terminated, truncated, opened, closed, info)

    def _keep(self, where: Any, obs: Tree, reward: Array, t: IntArray, slot: IntArray) -> None:
        """Remember the newest rows of some envs."""
        self._obs = spaces.map_leaves(np.copy, self._obs)
        spaces.put(self._obs, where, obs)
        self._reward, self._t, self._slot = self._reward.copy(), self._t.copy(), self._slot.copy()
        self._reward[where], self._t[where], self._slot[where] = reward, t, slot

    def _info(self, i: int) -> SlotInfo:
        slot = i + self.num_envs * (self._episode[i] % 2)
        return SlotInfo(slot, i, SINGLE_AGENT, self._episode[i], self._seeds[i])

    def _place(self, i: int) -> Place:
        return Place(i, self._episode[i], int(self._t[i]))

    def _envs_of(self, slots: IntArray) -> IntArray:
        envs = np.asarray(slots % self.num_envs, dtype=np.int64)
        taken = [self._all if sent is None else sent for sent, _ in self._sent]
        wrong = (self._slot[envs] != slots) | np.isin(envs, np.concatenate([self._all[:0], *taken]))
        check_answers(slots, wrong)
        return envs


def _transposed(results: list[Any]) -> tuple[Any, ...] | None:
    """Five columns when all step results are plain: tuples of finite rewards, bools and dicts; else None."""
    if set(map(type, results)) != {tuple}:
        return None
    try:
        obs, rewards, terminations, truncations, infos = zip(*results, strict=True)
        reward, terminated, truncated = np.array(rewards), np.array(terminations), np.array(truncations)
    except ValueError:  # of unequal length, or not of five items, or arrays among the numbers
        return None
    n = (len(results),)
    plain = (
        reward.dtype.kind in "fiu"
        and terminated.dtype.kind == truncated.dtype.kind == "b"
        and reward.shape == terminated.shape == truncated.shape == n
        and set(map(type, infos)) == {dict}
        and np.count_nonzero(np.abs(reward) <= LARGEST_REWARD) == len(results)
    )
    return (obs, reward.astype(np.float64, copy=False), terminated, truncated, infos) if plain else None
