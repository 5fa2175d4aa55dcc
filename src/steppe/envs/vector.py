"""Vector envs as an :class:`~steppe.types.AsyncEnv`: one object that steps n envs together, in columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
from gymnasium.vector import AutoresetMode

from steppe import spaces
from steppe.envs import batch_values
from steppe.envs.batch import Batch, GymnasiumBatch, OwnBatch, Stepped, own_state
from steppe.envs.batch_values import BadResult, Infos
from steppe.envs.guards import (
    Guard,
    Limits,
    Place,
    Where,
    check_alive,
    check_answers,
    check_copies,
    is_reward,
)
from steppe.envs.replay import NotPlain, from_leaves, plain
from steppe.errors import ConfigError, EnvError, SteppeError
from steppe.spaces import BadLeaf, Spec
from steppe.types import (
    ALONE,
    SINGLE_AGENT,
    Array,
    BoolArray,
    EpisodeEnd,
    IntArray,
    SlotInfo,
    SpacePair,
    State,
    TimeStep,
    Tree,
)

if TYPE_CHECKING:
    from steppe.envs.masking import Masks


class VectorEnv(ABC):
    """Subclass it to step many envs at once, such as a simulator that computes them in one call.

    What is returned of n envs is a list over them, or an array; observations of a Dict space may be a dict
    of such. Those of a Tuple space are a list of n tuples, never a tuple of batches. After a step that ended
    an episode, ``reset_at`` is called for that env, at once. The older spelling is understood:
    ``vector_reset()`` and ``reset_at(i)`` that return observations alone, and a ``vector_step`` of four items
    (observations, rewards, dones, infos).

    A subclass that has ``get_state()``, which returns JSON values and numpy arrays, and
    ``set_state(state)`` is resumed exactly; any other begins new episodes.

    Args:
        observation_space: of one env.
        action_space: of one env.
        num_envs: how many there are; ``ctx.num_envs`` says how many are wanted.
    """

    def __init__(self, observation_space: Any, action_space: Any, num_envs: int) -> None:
        self.observation_space, self.action_space, self.num_envs = observation_space, action_space, num_envs

    @abstractmethod
    def vector_reset(
        self, *, seeds: list[int] | None = None, options: list[dict[str, Any]] | None = None
    ) -> tuple[Any, Any]:
        """Reset all envs; called once, with a seed for each.

        Returns:
            n observations and n infos.
        """

    @abstractmethod
    def reset_at(
        self, index: int, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset one env, whose episode has ended; called without a seed.

        Returns:
            Its observation and info.
        """

    @abstractmethod
    def vector_step(self, actions: list[Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Step every env with its action.

        Returns:
            n observations, rewards, terminated and truncated flags, and infos. The observation of an env
            whose episode ends here is its last one.
        """

    @staticmethod
    def wrap(make_env: Any = None, existing_envs: Any = None, num_envs: int = 1, **spaces: Any) -> VectorEnv:
        """Envs of one agent as one vector env, which steps them in turn; old envs are adapted.

        Args:
            make_env: function of an index that makes the env of that place.
            existing_envs: the first of them, made already.
            num_envs: how many there are in the end.
            spaces: ``observation_space`` and ``action_space``, where those of the first env are not meant.

        Raises:
            ConfigError: there are fewer envs than ``num_envs``, and nothing to make them.
        """
        from steppe.envs.wrapped import WrappedEnvs

        return WrappedEnvs(make_env, list(existing_envs or ()), num_envs, **spaces)

    def restart_at(self, index: int) -> None:
        """Repair one env before it begins anew where its episode was lost; by default there is no need."""
        return None

    def get_sub_environments(self) -> list[Any]:
        """The envs inside, by index, where there are such objects."""
        return []

    def try_render_at(self, index: int | None = None) -> Any:
        """Draw one env, if it can be drawn."""
        return None

    def close(self) -> None:
        """Release everything; by default the envs inside are closed."""
        for env in self.get_sub_environments():
            env.close()


class _Now(NamedTuple):
    """Where every env is after a step: columns over the n envs."""

    slot: IntArray
    t: IntArray
    episode: IntArray
    obs: Tree
    reward: Array
    terminated: BoolArray
    truncated: BoolArray


class _Turn(NamedTuple):
    """Which envs' episodes ended, as masks over the n envs."""

    ended: BoolArray
    asked: BoolArray
    """Ended, and to be asked to begin the next one."""
    within: BoolArray
    """Ended, and has begun the next one in the same step."""


@final
class VectorRows:
    """The envs of one vector env: all step in the ``poll`` after the last awaited slot was answered.

    Env ``i`` uses the slots ``i`` and ``i + n`` by turns. A TimeStep holds first the rows that await an
    action, in env order, then the final rows of the episodes that ended. Where the vector env resets an env
    in the step after its episode's end, that env has no row to answer in between.

    Args:
        env: a :class:`VectorEnv` or one of Gymnasium's; the adapter owns and closes it.
        seeds: one per env, given to the first reset and to nothing else.
        masks: how observations get masks of the actions out of the infos; None where they have their own.
        limits: see :class:`~steppe.envs.guards.Limits`; the spaces are those of one env.

    Raises:
        ConfigError: the vector env is empty, or cannot be asked to reset an env at ``max_episode_steps``.
        SpaceError: a space is missing or cannot be handled.
    """

    steps_together = True

    def __init__(self, env: Any, *, seeds: Sequence[int], masks: Masks | None = None, **limits: Any) -> None:
        limit = Limits(**limits)
        own = self._own = isinstance(env, VectorEnv)
        self._batch: Batch = OwnBatch(env, lambda: self._returned) if own else GymnasiumBatch(env)
        self.num_envs = n = self._batch.num_envs
        kind = self._kind = type(getattr(env, "unwrapped", env)).__name__
        self._max_steps = limit.max_episode_steps
        check_copies(n, len(seeds), self._max_steps)
        if self._max_steps is not None and not self._batch.can_reset:
            raise ConfigError(
                f"max_episode_steps={self._max_steps}: {kind} cannot be asked to reset one of its envs; give "
                "the limit to its constructor, or use autoreset mode DISABLED"
            )
        observation, action = self._batch.space_pair
        if masks is not None:
            from steppe.envs.masking import MaskedBatch

            self._batch = MaskedBatch(self._batch, masks)
            observation, returned = self._batch.space_pair[0], masks.returned(observation)
        self._obs_spec = self._spec("observation", observation, limit.observation_space, limit)
        self._returned = self._obs_spec if masks is None else returned
        self._action_spec = self._spec("action", action, limit.action_space, limit)
        self.agents = ALONE
        self.spaces: tuple[SpacePair, ...] = (SpacePair(self._obs_spec, self._action_spec),)
        self._seeds, self._runner = [int(seed) for seed in seeds], limit.runner
        self._guard = Guard(self._batch.names, limit.runner, self._seeds, limit.on_out_of_space)
        self._all, self._closed = np.arange(n), False
        self._own_state = own_state(env)
        self._rewind()

    def _rewind(self) -> None:
        """Be as before the first poll, which resets and seeds the envs."""
        n, self.env_steps, self._started = self.num_envs, 0, False
        self._failure: BaseException | None = None
        # The newest row of every env. Arrays are replaced, never written to: callers may hold them.
        self._slot, self._t, self._episode = self._all, np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._obs: Tree = None
        self._reward = np.zeros(n)
        self._actions = batch_values.filler(self._action_spec, n)
        self._set_live(np.ones(n, np.bool_))

    def _spec(self, name: str, own: Any, given: Any, limit: Limits) -> Spec:
        space = own if given is None else given
        name = f"{self._kind}.{name}_space"
        return spaces.spec_of(space, max_sequence_length=limit.max_sequence_length, name=name)

    def _set_live(self, live: BoolArray) -> None:
        """These envs have rows to answer; the others begin an episode in the next step."""
        self._live, self._awaits = live, live.copy()
        self._live_envs = np.flatnonzero(live)
        self._live_slots = self._slot[self._live_envs]
        self._awaited = len(self._live_envs)

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Step all envs if all were answered; resets all at the first call; [] while an answer is missing.

        Raises:
            EnvError: the vector env returned something that is not in its contract.
            Exception: whatever it raised, with a note that says where in the run.
        """
        self._check_alive()
        if self._started and self._awaited:
            return []
        try:
            return [self._step() if self._started else self._reset(self._seeds)]
        except BaseException as error:
            self._failure = error
            if isinstance(error, Exception) and not isinstance(error, SteppeError):
                where = f"{self._kind}, runner {self._runner}, its {self.num_envs} envs"
                error.add_note(f"steppe: {where}, after {self.env_steps} env steps")
            raise

    def _check_alive(self) -> None:
        check_alive(self._closed, self._failure)

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """Answer ``slots`` with a column of actions; the column is copied.

        Raises:
            ValueError: a slot awaits no action, or the column has another length.
        """
        self._check_alive()
        if not self._started:
            raise ValueError("no slot awaits an action yet: poll() first")
        for leaf in spaces.leaves(actions):
            if np.shape(leaf)[:1] != slots.shape:
                raise ValueError(f"{slots.shape[0]} slots, but an action column of shape {np.shape(leaf)}")
        spaces.map_leaves(batch_values.check_kind, self._actions, actions)
        everyone = self._awaited == len(self._live_envs) and np.array_equal(slots, self._live_slots)
        envs = self._live_envs if everyone else self._envs_of(slots)
        spaces.put(self._actions, envs, actions)
        self._awaits[envs] = False
        self._awaited -= len(envs)

    def _envs_of(self, slots: IntArray) -> IntArray:
        envs = np.asarray(slots % self.num_envs, dtype=np.int64)
        wrong = (self._slot[envs] != slots) | ~self._awaits[envs]
        check_answers(slots, wrong)
        return envs

    def pending(self) -> Sequence[TimeStep]:
        """The rows that await an action, all with ``opened``; [] where there are none."""
        envs = np.flatnonzero(self._awaits)
        if not self._started or not len(envs):
            return []
        none, obs = np.zeros(len(envs), np.bool_), spaces.take(self._obs, envs)
        opened, t, reward = self._opened(envs, self._slot, self._episode), self._t[envs], self._reward[envs]
        return [TimeStep(self._slot[envs], t, obs, reward, none, none, opened=opened)]

    def _opened(self, envs: IntArray, slot: IntArray, episode: IntArray) -> list[SlotInfo]:
        named = zip(envs.tolist(), slot[envs].tolist(), episode[envs].tolist(), strict=True)
        return [SlotInfo(s, i, SINGLE_AGENT, e, self._seeds[i]) for i, s, e in named]

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``."""
        return dict(self._guard.counts)

    def get_sub_environments(self) -> list[Any]:
        """The envs inside the vector env, where it shows them."""
        return list(self._batch.subs)

    def close(self) -> None:
        """Close the vector env; may be called twice."""
        if not self._closed:
            self._closed = True
            self._batch.env.close()

    def _reset(self, seeds: Sequence[int]) -> TimeStep:
        """Reset all envs; ``_episode`` says which episodes they begin."""
        n, none = self.num_envs, np.zeros(self.num_envs, np.bool_)

        def place(env: int) -> Place:
            return Place(env, int(self._episode[env]), 0)

        try:
            obs, infos = self._batch.reset(seeds)
            self._tell_odd()
            self._judge_infos(infos, place)
        except (BadResult, BadLeaf) as bad:
            raise self._bad(bad, place) from None
        self._obs = self._column(obs, place)
        self._slot, self._t, self._reward = self._all + n * (self._episode % 2), self._all * 0, np.zeros(n)
        self._set_live(~none)
        self._started = True
        opened = self._opened(self._all, self._slot, self._episode)
        told = self._told((infos, self._slot, self._all))
        return TimeStep(self._slot, self._t, self._obs, self._reward, none, none, opened=opened, info=told)

    def _step(self) -> TimeStep:
        t, episode, slot = self._t + 1, self._episode, self._slot
        begun = np.flatnonzero(~self._live) if len(self._live_envs) < self.num_envs else self._all[:0]
        if len(begun):  # they begin an episode in this step, and their actions mean nothing
            episode, slot = episode.copy(), slot.copy()
            t[begun] = 0
            episode[begun] += 1
            slot[begun] = begun + self.num_envs * (episode[begun] % 2)

        def place(env: int) -> Place:
            action = None
            if t[env]:
                (action,) = spaces.rows(self._action_spec, spaces.take(self._actions, slice(env, env + 1)))
            return Place(env, int(episode[env]), int(t[env]), action)

        try:
            raw = self._batch.step(self._action_spec, self._actions)
            self.env_steps += len(self._live_envs)
            self._tell_odd()
            reward, terminated, truncated, turn = self._judged(raw, t, place)
            self._judge_infos(raw.infos, place)

            def shown(env: int) -> Place:
                return Place(env, int(episode[env]) + 1, 0) if turn.within[env] else place(env)

            obs = self._column(raw.obs, shown)
            now = _Now(slot, t, episode, obs, reward, terminated, truncated)
            if turn.ended.any():
                return self._turn_over(now, begun, turn, raw.infos, place)
        except (BadResult, BadLeaf) as bad:
            raise self._bad(bad, place) from None
        self._keep(now)
        if len(begun):
            self._set_live(np.ones_like(self._live))
        else:  # as before, and nothing to work out again
            self._awaits[:], self._awaited = True, self.num_envs
        opened = self._opened(begun, slot, episode)
        told = self._told((raw.infos, slot, self._all))
        return TimeStep(slot, t, obs, reward, terminated, truncated, opened, info=told)

    def _keep(self, now: _Now) -> None:
        self._slot, self._t, self._episode, self._obs, self._reward = now[:5]

    def _judged(self, raw: Stepped, t: IntArray, place: Where) -> tuple[Array, BoolArray, BoolArray, _Turn]:
        """Rewards and flags over the n envs, zero where an env did not act, and whose episodes ended."""
        n, live, envs = self.num_envs, self._live, self._live_envs
        given = []
        for name, values in zip(("rewards", "terminated", "truncated"), raw[1:4], strict=True):
            column = batch_values.over_envs(name, values, n)
            if len(envs) < n:
                array = isinstance(column, np.ndarray)
                for env in np.flatnonzero(~live).tolist() if name == "rewards" else ():
                    if is_reward(column[env]) and column[env]:
                        text = f"rewards has {column[env]} in the step that resets the env"
                        raise self._guard.error("E403", f"{text}; give it with the end", place(env), name)
                column = column[live] if array else [column[i] for i in envs.tolist()]
            given.append(column)

        def where(row: int) -> Place:
            return place(int(envs[row]))

        reward: Array = self._guard.rewards(given[0], where)
        terminated = self._guard.flags("terminated", given[1], where)
        truncated = self._guard.flags("truncated", given[2], where)
        if len(envs) < n:
            reward, terminated, truncated = (self._spread(a) for a in (reward, terminated, truncated))
        ended = over = terminated | truncated
        if self._max_steps is not None:
            truncated = truncated | (live & (t >= self._max_steps) & ~terminated)
            ended = over | truncated
        mode = self._batch.mode
        asked = ended if mode is AutoresetMode.DISABLED else ended & ~over
        return reward, terminated, truncated, _Turn(ended, asked, over & (mode is AutoresetMode.SAME_STEP))

    def _spread(self, values: Array) -> Array:
        whole = np.zeros(self.num_envs, values.dtype)
        whole[self._live] = values
        return whole

    def _turn_over(self, now: _Now, begun: IntArray, turn: _Turn, infos: Any, place: Where) -> TimeStep:
        """Begin the next episodes: final rows go to the end, first rows take their places."""
        n, ended = self.num_envs, np.flatnonzero(turn.ended)
        last, told = self._last(now, ended, turn.within, infos, place)
        renewed, slot, t, reward = turn.asked | turn.within, now.slot.copy(), now.t.copy(), now.reward.copy()
        episode = now.episode + renewed
        slot[renewed] = (self._all + n * (episode % 2))[renewed]
        t[renewed] = reward[renewed] = 0
        shown = np.flatnonzero(~turn.ended | turn.within)
        parts = [(told, now.slot[ended], self._all[: len(ended)]), (infos, slot[shown], shown)]
        if turn.asked.any():
            asked = np.flatnonzero(turn.asked)
            obs, fresh = self._batch.reset_some(asked)
            self._tell_odd()
            first = self._column(obs, lambda row: Place(int(asked[row]), int(episode[asked[row]]), 0), asked)
            spaces.put(now.obs, asked, first)
            parts.append((fresh, slot[asked], asked))
        self._keep(_Now(slot, t, episode, now.obs, reward, now.terminated, now.truncated))
        self._set_live(~turn.ended | renewed)
        live = self._live_envs
        none = np.zeros(len(live), np.bool_)
        new = np.union1d(begun, np.flatnonzero(renewed))
        closed = zip(ended.tolist(), now.episode[ended].tolist(), now.t[ended].tolist(), strict=True)
        return TimeStep(
            np.concatenate((slot[live], now.slot[ended])),
            np.concatenate((t[live], now.t[ended])),
            spaces.map_leaves(lambda a, b: np.concatenate((a[live], b)), now.obs, last),
            np.concatenate((reward[live], now.reward[ended])),
            np.concatenate((none, now.terminated[ended])),
            np.concatenate((none, now.truncated[ended])),
            self._opened(new, slot, episode),
            [EpisodeEnd(*one) for one in closed],
            self._told(*parts),
        )

    def _last(
        self, now: _Now, ended: IntArray, within: BoolArray, infos: Any, place: Where
    ) -> tuple[Tree, list[dict[str, Any]]]:
        """Last observations and infos of the episodes that ended: copies, the env may reuse its own."""
        last = spaces.take(now.obs, ended)
        told = batch_values.split_infos(infos, ended, self.num_envs)
        at = np.flatnonzero(within[ended])
        if len(at):
            envs = ended[at]
            values = batch_values.final_values(infos, envs, self._obs_spec, self.num_envs)
            spaces.put(last, at, self._observed(values, lambda row: place(int(envs[row]))))
            final_infos = batch_values.split_infos(infos.get("final_info", {}), envs, self.num_envs)
            for row, info in zip(at.tolist(), final_infos, strict=True):
                told[row] = info
        return last, told

    def _column(self, given: Any, where: Where, envs: IntArray | None = None) -> Tree:
        """The observations of all envs, or of some, as a fresh column, judged; the others' do not matter."""
        spec, n = self._obs_spec, self.num_envs
        try:
            found = batch_values.column_of(spec, given, n)
            if found is not None:
                return found if envs is None else spaces.take(found, envs)
            values = batch_values.values_of(spec, given, n, listed=self._batch.listed)
            values = values if envs is None else [values[i] for i in envs.tolist()]
            return self._observed(batch_values.readable(values, "obs"), where)
        except BadLeaf as bad:
            raise self._bad(bad, where) from None

    def _observed(self, values: Sequence[Any], where: Where) -> Tree:
        found = spaces.stack(self._obs_spec, values)
        return self._guard.observations(self._obs_spec, values, where) if found is None else found

    def _judge_infos(self, infos: Any, place: Where) -> None:
        batch_values.check_infos(infos, self.num_envs, listed=self._batch.listed)
        if self._batch.listed:
            self._guard.infos(infos, place)

    def _told(self, *parts: tuple[Any, IntArray, IntArray]) -> Mapping[int, dict[str, Any]]:
        kept = [part for part in parts if batch_values.has_infos(part[0])]
        return Infos(kept, self.num_envs) if kept else {}

    def _tell_odd(self) -> None:
        for code, leaf, text in self._batch.odd:
            self._guard.odd(code, leaf, 0, text)
        self._batch.odd.clear()

    def _bad(self, bad: BadResult | BadLeaf, where: Where) -> EnvError:
        message = str(bad)
        if isinstance(bad, BadLeaf):
            message = f"{bad.leaf}: expected {bad.expected}, got {bad.got}"
        return self._guard.error(bad.code, message, where(bad.row), bad.leaf)

    def get_state(self) -> State:
        """All envs at their newest rows; only between a poll and the send that answers it.

        Raises:
            EnvError: E402, the vector env's own ``get_state()`` returned what cannot be saved.
            RuntimeError: it failed, or was closed.
            ValueError: actions were sent that no poll has used.
        """
        self._check_alive()
        if self._awaited < len(self._live_envs):
            raise ValueError("actions were sent: take the state between a poll and the send that answers it")
        if not self._started:
            return {"started": False, "seeds": list(self._seeds)}
        try:
            native = None if self._own_state is None else plain(self._own_state[0](), "get_state()", 0)
        except NotPlain as bad:
            raise self._guard.error(
                "E402", str(bad), Place(0, int(self._episode[0]), int(self._t[0]))
            ) from None
        return self._guard.state(self.env_steps) | {
            "episodes": self._episode.copy(),
            "t": self._t.copy(),
            "reward": self._reward.copy(),
            "obs": [leaf.copy() for leaf in spaces.leaves(self._obs)],
            "live": self._live.copy(),
            "native": native,
        }

    def set_state(self, state: State) -> list[str]:
        """Bring the vector env back by its own ``set_state``; without one all begin new episodes.

        That is said in one sentence. A state from before the first poll makes the next poll reset and seed.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        self._guard.adopt(state)
        self._rewind()
        if not state["started"]:
            return []
        self._started, self.env_steps = True, int(state["env_steps"])
        self._episode = np.array(state["episodes"], np.int64)
        why = "it has no get_state() and set_state(state)"
        if self._own_state is not None and state.get("native") is not None:
            try:
                self._batch.reset(self._seeds)
                self._batch.odd.clear()  # it was counted when this run was begun
                self._own_state[1](state["native"])
            except Exception as error:
                why = f"it raised {type(error).__name__}: {error}"
            else:
                self._slot = self._all + self.num_envs * (self._episode % 2)
                self._t, self._reward = np.array(state["t"]), np.array(state["reward"])
                self._obs = from_leaves(self._obs_spec, [np.array(leaf) for leaf in state["obs"]])
                self._set_live(np.array(state["live"], np.bool_))
                return []
        return [self._begin_anew(why)]

    def _begin_anew(self, why: str) -> str:
        """Reset all envs with seeds of their own, or they would live through their first episodes again."""
        if self._own:
            for i in range(self.num_envs):
                self._batch.env.restart_at(i)
        self._episode = self._episode + 1
        entropy = zip(self._seeds, self._episode.tolist(), strict=True)
        words = [np.random.SeedSequence(seed, spawn_key=(e,)).generate_state(1)[0] for seed, e in entropy]
        self._reset([int(word) >> 1 for word in words])
        again = "; they take no seed, so these may be the first ones again"
        why += again if "E401 seed" in self._guard.counts else ""
        return f"E402 the {self.num_envs} envs of {self._kind} begin new episodes: {why}"
