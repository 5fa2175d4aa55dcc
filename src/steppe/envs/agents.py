"""Envs of many agents as an :class:`~steppe.types.AsyncEnv`: n copies in this process, a row per agent."""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np

from steppe import spaces
from steppe.envs.guards import Guard, OutOfSpace, Place, copied_step, own, share_memory, show
from steppe.envs.multi_agent import ALL, MultiAgentEnv
from steppe.envs.replay import seed_spaces
from steppe.errors import ConfigError, EnvError, SpaceError
from steppe.types import (
    AgentID,
    BoolArray,
    EpisodeEnd,
    IntArray,
    SlotInfo,
    SpacePair,
    State,
    TimeStep,
    Tree,
)

PairFor = Callable[[SlotInfo], SpacePair]
"""The spaces of an agent whose env does not say them."""

_UNSEEN: Any = object()  # in the place of an observation: the last known one is meant
_RESULTS = ("obs", "rewards", "terminateds", "truncateds", "infos")
_MOST_KNOWN = 10_000  # agents whose spaces are remembered; ids may be new in every episode


@dataclass(slots=True)
class _Episode:
    """What one env has under way.

    Attributes:
        number: counts the episodes of this env.
        t: env steps taken.
        live: slots of the agents that have had an observation and have not ended, in the order they came.
        ended: agents that have ended, as keys.
        known: the keys that flags may have at no cost: the live agents and ``"__all__"``.
        turn: who had an observation in the newest step, and acts next.
        slots: theirs.
        early: what agents earned before their first observation.
        tenants: ``(slot, agent, t)`` of everyone who came.
        actions: what led to the newest step, for messages.
    """

    number: int
    t: int = 0
    live: dict[AgentID, int] = field(default_factory=dict)
    ended: dict[AgentID, None] = field(default_factory=dict)
    known: set[AgentID] = field(default_factory=lambda: {ALL})
    turn: list[AgentID] = field(default_factory=list)
    slots: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    early: dict[AgentID, float] = field(default_factory=dict)
    tenants: list[tuple[int, AgentID, int]] = field(default_factory=list)
    actions: dict[AgentID, Any] = field(default_factory=dict)


class _Final(NamedTuple):
    """The last row of an agent."""

    slot: int
    t: int
    obs: Any
    terminated: bool


@dataclass(slots=True)
class _Rows:
    """What one poll has gathered, env by env."""

    slots: list[IntArray] = field(default_factory=list)
    ts: list[int] = field(default_factory=list)
    obs: list[Any] = field(default_factory=list)
    earning: list[IntArray] = field(default_factory=list)
    rewards: list[Any] = field(default_factory=list)
    finals: list[_Final] = field(default_factory=list)
    opened: list[SlotInfo] = field(default_factory=list)
    closed: list[EpisodeEnd] = field(default_factory=list)
    info: dict[int, dict[str, Any]] = field(default_factory=dict)
    actions: dict[tuple[int, int], dict[AgentID, Any]] = field(default_factory=dict)
    """By env and episode."""


class _Sent(NamedTuple):
    """A column of actions for the agents in some slots, with the env, episode and step of each."""

    space: int
    slots: IntArray
    envs: IntArray
    episodes: IntArray
    ts: IntArray
    column: Tree


@final
class MultiAgentRows:
    """``n`` multi-agent envs; each steps in the next ``poll`` after its last awaited agent was answered.

    An env that awaits nobody steps in the next ``poll``. A poll's rows stand in env order, those of an env in
    the order of its dict of observations; then come the final rows, in the same order, the agents without a
    last observation last. Slots are given to agents as they come, the smallest free one first.

    An agent ends as its env says, or with the episode; then it has terminated if its own flag or that of
    ``"__all__"`` says so, else it is truncated.

    Args:
        envs: distinct envs; the adapter owns and closes them.
        seeds: one per env, given to its first ``reset`` and to nothing else.
        runner: worker index, for messages.
        observation_space: of every agent; overrides what the envs say; ``action_space`` likewise.
        max_episode_steps: an episode of this many env steps ends, its agents truncated.
        max_sequence_length: for Sequence spaces that state no maximum.
        on_out_of_space: see :class:`~steppe.envs.guards.Guard`.
        pair_for: the spaces of an agent whose env does not say them, asked whenever one comes.

    Raises:
        ConfigError: ``max_episode_steps`` is below 1.
        SpaceError: a space cannot be handled.
    """

    steps_together = False

    def __init__(
        self,
        envs: Sequence[MultiAgentEnv],
        *,
        seeds: Sequence[int],
        runner: int = 0,
        observation_space: Any = None,
        action_space: Any = None,
        max_episode_steps: int | None = None,
        max_sequence_length: int | None = None,
        on_out_of_space: OutOfSpace = "warn",
        pair_for: PairFor | None = None,
    ) -> None:
        n = len(envs)
        if n == 0 or len(seeds) != n:
            raise ValueError(f"{n} envs and {len(seeds)} seeds: give at least one env, and one seed for each")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ConfigError(f"max_episode_steps is at least 1, not {max_episode_steps}")
        self.num_envs, self._envs, self._seeds = n, list(envs), [int(seed) for seed in seeds]
        self._given, self._pair_for = (observation_space, action_space), pair_for
        self._max_steps, self._max_length = max_episode_steps, max_sequence_length
        names = [type(env.unwrapped).__name__ for env in envs]
        self._guard = Guard(names, runner, self._seeds, on_out_of_space)
        self._possible = [set(env.possible_agents) for env in envs]
        self._pairs: list[dict[AgentID, int]] = [{} for _ in envs]
        self.spaces: tuple[SpacePair, ...] = ()
        self.agents: Mapping[AgentID, int] = {}
        self._foresee()
        self._closed = False
        self._rewind()

    def _rewind(self) -> None:
        """Be as before the first poll, which resets and seeds the envs."""
        self.env_steps, self._started, self._sharing = 0, False, False
        self._failure: BaseException | None = None
        self._episodes = [_Episode(-1) for _ in self._envs]
        self._sent: list[_Sent] = []
        self._answers: dict[int, Any] = {}
        self._awaited = np.zeros(self.num_envs, np.int64)
        # By slot. "waiting" is what was earned since the newest row, "reward" what that row said.
        self._who: list[SlotInfo] = []
        self._free: list[int] = []
        self._freed: list[int] = []
        self._space_of, self._env_of = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._t, self._awaits = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        self._waiting, self._reward, self._earned = np.zeros(0), np.zeros(0), np.zeros(0)
        self._last: list[Tree] = []

    # Who has which spaces.

    def _foresee(self) -> None:
        """Find the spaces of all agents that are known before they come."""
        for i, env in enumerate(self._envs):
            for agent in env.possible_agents or list(env.observation_spaces or ()):
                space = self._stated(i, agent)
                if space is not None:
                    self.agents = {**self.agents, agent: space}
        if not self.spaces:
            anyone = [self._spec(0, axis, space) for axis, space in enumerate(self._shared(self._envs[0]))]
            if None not in anyone:
                self._index(SpacePair(*anyone))

    def _shared(self, env: MultiAgentEnv) -> tuple[Any, Any]:
        own = (env.observation_space, env.action_space)
        shared = [None if isinstance(space, dict) else space for space in own]
        return tuple(b if a is None else a for a, b in zip(self._given, shared, strict=True))  # type: ignore[return-value]

    def _spec(self, i: int, axis: int, space: Any) -> Any:
        if space is None:
            return None
        name = f"{self._guard.class_of(i)}.{('observation', 'action')[axis]}_space"
        return spaces.spec_of(space, max_sequence_length=self._max_length, name=name)

    def _stated(self, i: int, agent: AgentID) -> int | None:
        """Index of the space pair that env ``i`` says for ``agent``; None if it does not."""
        found = self._pairs[i].get(agent)
        if found is None:
            pair = self._halves(i, agent)
            if None in pair:
                return None
            if len(self._pairs[i]) >= _MOST_KNOWN:
                self._pairs[i].clear()
            found = self._pairs[i][agent] = self._index(SpacePair(*pair))
        return found

    def _halves(self, i: int, agent: AgentID) -> list[Any]:
        env = self._envs[i]
        own = (env.get_observation_space, env.get_action_space)
        both = [ask(agent) if given is None else given for ask, given in zip(own, self._given, strict=True)]
        return [self._spec(i, axis, space) for axis, space in enumerate(both)]

    def _index(self, pair: SpacePair) -> int:
        if pair not in self.spaces:
            self.spaces += (pair,)
        return self.spaces.index(pair)

    def _space_for(self, info: SlotInfo) -> int:
        """Index of the space pair of somebody who has come.

        Raises:
            SpaceError: nobody says it.
        """
        found = self._stated(info.env, info.agent)
        if found is not None:
            return found
        if self._pair_for is None:
            raise SpaceError(
                f"{self._guard.class_of(info.env)} has no spaces for agent {info.agent!r}: set "
                "self.observation_space and self.action_space (for all agents), or self.observation_spaces "
                "and self.action_spaces (dicts by agent) in its __init__, or name them in the policies"
            )
        halves, other = self._halves(info.env, info.agent), self._pair_for(info)
        return self._index(SpacePair(*(b if a is None else a for a, b in zip(halves, other, strict=True))))

    # Polling.

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Step the envs that await nobody any more; resets all at the first call; [] if there are none.

        Raises:
            EnvError: an env returned something that is not in its contract.
            Exception: whatever an env raised, with a note that says where in the run.
        """
        self._check_alive()
        try:
            return self._step() if self._started else self._first()
        except BaseException as error:  # a keyboard interrupt, too, leaves some envs stepped and some not
            self._failure = error
            raise

    def _check_alive(self) -> None:
        if self._closed or self._failure is not None:
            what = "was closed" if self._closed else "failed before"
            raise RuntimeError(f"this env {what}: build it anew, or restore a state") from self._failure

    def _first(self) -> Sequence[TimeStep]:
        rows, raw = _Rows(), list[Any]()
        for i in range(self.num_envs):
            self._begin(i, rows, raw)
        self._started, self._sharing = True, share_memory(raw)
        return self._emit(rows)

    def _step(self) -> Sequence[TimeStep]:
        for sent in self._sent:
            values = spaces.rows(self.spaces[sent.space].action, sent.column)
            self._answers.update(zip(sent.slots.tolist(), values, strict=True))
        self._sent.clear()
        for slot in self._freed:
            heapq.heappush(self._free, slot)
        self._freed.clear()
        ready = np.flatnonzero(self._awaited == 0).tolist()
        rows = _Rows()
        for i in ready:
            self._advance(i, rows)
        return self._emit(rows) if ready else []

    def _advance(self, i: int, rows: _Rows) -> None:
        """Step env ``i`` with the answers of its agents."""
        episode, env = self._episodes[i], self._envs[i]
        answers = map(self._answers.pop, episode.slots.tolist())
        episode.actions = dict(zip(episode.turn, answers, strict=True))
        episode.t += 1
        actions = dict(episode.actions)
        step = partial(copied_step, env.step) if self._sharing else env.step
        result = self._called(i, partial(step, actions))
        self.env_steps += 1
        rows.actions[i, episode.number] = episode.actions
        limit = self._max_steps is not None and episode.t >= self._max_steps
        if not limit and _as_before(episode, result):
            obs, rewards, _, _, infos = result
            rows.earning.append(episode.slots)
            rows.rewards += map(rewards.__getitem__, episode.turn)
            self._tell(i, infos, rows)
            self._show(episode, obs.values(), rows)
        else:
            self._digest(i, self._five(i, result), limit, rows)

    def _called(self, i: int, call: Callable[[], Any]) -> Any:
        """What an env returns; what it raises gets a note of the place, an EnvError from within the place."""
        try:
            return call()
        except EnvError as error:
            place = self._place(i)._replace(agent=error.agent)
            raise self._guard.error(error.code, error.text, place, error.leaf) from error.__cause__
        except Exception as error:
            self._guard.annotate(error, self._place(i))
            raise

    def _show(self, episode: _Episode, obs: Any, rows: _Rows) -> None:
        """Those whose turn it is get a row."""
        rows.slots.append(episode.slots)
        rows.ts.append(episode.t)
        rows.obs += obs

    def _tell(self, i: int, infos: Mapping[AgentID, Any], rows: _Rows, copy: bool = False) -> None:
        if not {*map(type, infos.values())} <= {dict}:
            agents = list(infos)
            self._guard.infos(list(infos.values()), lambda row: self._place(i, agents[row]))
        if any(infos.values()):
            live = self._episodes[i].live
            told = {live[agent]: info for agent, info in infos.items() if info and agent in live}
            rows.info |= {slot: dict(info) for slot, info in told.items()} if copy else told

    def _begin(self, i: int, rows: _Rows, raw: list[Any] | None = None) -> None:
        """Reset env ``i`` for its next episode; ``raw`` gets what an env may write to later."""
        number = self._episodes[i].number + 1
        episode = self._episodes[i] = _Episode(number)
        env = self._envs[i]
        first = partial(_seeded_reset, env, self._seeds[i])
        obs, infos = self._two(i, self._called(i, env.reset if number else first))
        for agent in obs:
            self._open(i, agent, rows)
        episode.turn = list(obs)
        episode.slots = np.array([episode.live[agent] for agent in obs], np.int64)
        self._tell(i, infos, rows)
        values = list(obs.values())
        if raw is not None:
            raw += values
        self._show(episode, map(own, values) if self._sharing or raw is not None else values, rows)

    def _open(self, i: int, agent: AgentID, rows: _Rows) -> None:
        """An agent has come: give it a slot."""
        episode = self._episodes[i]
        if isinstance(agent, bool) or not isinstance(agent, (str, int)) or agent == ALL:
            fix = 'name agents by texts (except "__all__") or by whole numbers, as int(agent)'
            raise self._guard.error("E407", f"obs has the agent {show(agent)}; {fix}", self._place(i))
        if not self._free:
            self._grow(max(2 * self.num_envs, 2 * len(self._space_of), 8))
        slot = heapq.heappop(self._free)
        info = self._who[slot] = SlotInfo(slot, i, agent, episode.number, self._seeds[i])
        self._space_of[slot], self._env_of[slot] = self._space_for(info), i
        while len(self._last) < len(self.spaces):
            spec = self.spaces[len(self._last)].observation
            self._last.append(spaces.zeros(spec, len(self._space_of)))
        self._waiting[slot], self._earned[slot] = episode.early.pop(agent, 0.0), 0.0
        episode.live[agent] = slot
        episode.known.add(agent)
        episode.tenants.append((slot, agent, episode.t))
        rows.opened.append(info)

    def _grow(self, slots: int) -> None:
        before = len(self._space_of)
        for slot in range(before, slots):
            heapq.heappush(self._free, slot)
        self._who += [SlotInfo(-1, 0, 0, 0, 0)] * (slots - before)

        def longer(column: Any) -> Any:
            return np.concatenate([column, np.zeros((slots - before, *column.shape[1:]), column.dtype)])

        self._space_of, self._env_of, self._t = map(longer, (self._space_of, self._env_of, self._t))
        self._awaits, self._waiting = longer(self._awaits), longer(self._waiting)
        self._reward, self._earned = longer(self._reward), longer(self._earned)
        self._last = [spaces.map_leaves(longer, column) for column in self._last]

    # What an env returned, where it is not simply as before.

    def _two(self, i: int, result: Any) -> tuple[dict[AgentID, Any], dict[AgentID, Any]]:
        """Observations and infos out of what ``reset`` returned."""
        if isinstance(result, dict):
            self._guard.odd("E401", "reset", i, "reset returned observations without infos")
            return result, {}
        if isinstance(result, tuple) and len(result) == 2 and {*map(type, result)} == {dict}:
            return result
        message = f"reset returned {show(result)}; return (observations, infos), two dicts by agent"
        raise self._guard.error("E304", message, self._place(i), "reset")

    def _five(self, i: int, result: Any) -> Sequence[dict[AgentID, Any]]:
        """Five dicts out of what ``step`` returned."""
        if isinstance(result, (tuple, list)) and len(result) == 4:
            self._guard.odd("E401", "step", i, "step returned 4 items")
            result = (*result[:3], {}, result[3])
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            message = f"step returned {show(result)}; return ({', '.join(_RESULTS)}), five dicts by agent"
            raise self._guard.error("E301", message, self._place(i), "step")
        for name, part in zip(_RESULTS, result, strict=True):
            if not isinstance(part, dict):
                message = f"{name}: got {show(part)}; return a dict by agent"
                raise self._guard.error("E301", message, self._place(i), name)
        return result

    def _digest(self, i: int, five: Sequence[dict[AgentID, Any]], limit: bool, rows: _Rows) -> None:
        """Take in a step in which agents came, went or kept silent."""
        obs, rewards, terminateds, truncateds, infos = five
        episode = self._episodes[i]
        for agent in obs:
            if agent in episode.ended:
                fix = "an agent that comes back needs another id"
                message = f"obs has agent {agent!r}, which ended before; {fix}"
                raise self._guard.error("E405", message, self._place(i, agent), "obs")
            if agent not in episode.live:
                self._open(i, agent, rows)
        self._earn(i, rewards)
        terminated = self._flags(i, "terminateds", terminateds)
        truncated = self._flags(i, "truncateds", truncateds)
        everyone = (terminated.pop(ALL, None), truncated.pop(ALL, None))
        over = bool(everyone[0] or everyone[1] or limit)
        ends = {agent: False for agent, flag in truncated.items() if flag} | {
            agent: True for agent, flag in terminated.items() if flag
        }
        if over:
            ends |= {agent: bool(everyone[0] or ends.get(agent)) for agent in episode.live}
        elif everyone == (None, None):
            text = f'flags of {sorted(map(str, terminateds))} without "__all__": taken as an end when all end'
            self._guard.odd("E406", "step", i, text)
            over = bool(episode.live or episode.ended) and episode.live.keys() <= ends.keys()
        self._tell(i, infos, rows, copy=True)
        for agent in [*obs, *(agent for agent in episode.live if agent not in obs)]:
            if agent in ends:
                value = obs.get(agent, _UNSEEN)
                last = own(value) if over and value is not _UNSEEN else value
                rows.finals.append(_Final(episode.live[agent], episode.t, last, ends[agent]))
        episode.turn = [agent for agent in obs if agent not in ends]
        episode.slots = np.array([episode.live[agent] for agent in episode.turn], np.int64)
        self._show(episode, [obs[agent] for agent in episode.turn], rows)
        self._depart(episode, ends)
        if over:
            self._close_episode(i, rows)
            self._begin(i, rows)

    def _depart(self, episode: _Episode, ends: Mapping[AgentID, bool]) -> None:
        for agent in ends:
            episode.ended[agent] = None
            episode.known.discard(agent)
            slot = episode.live.pop(agent, None)
            if slot is not None:
                self._freed.append(slot)

    def _close_episode(self, i: int, rows: _Rows) -> None:
        episode = self._episodes[i]
        lost = [agent for agent, reward in episode.early.items() if reward]
        if lost:
            text = f"agent {lost[0]!r} earned something but never had an observation: its reward is lost"
            self._guard.odd("E404", "rewards", i, text, len(lost))
        rows.closed.append(EpisodeEnd(i, episode.number, episode.t))

    def _earn(self, i: int, rewards: dict[AgentID, Any]) -> None:
        """Keep what agents earned for their next rows."""
        episode, agents = self._episodes[i], list(rewards)
        values = self._guard.rewards(list(rewards.values()), lambda row: self._place(i, agents[row]))
        for agent, reward in zip(agents, values.tolist(), strict=True):
            slot = episode.live.get(agent)
            if slot is not None:
                self._waiting[slot] += reward
                self._earned[slot] += reward
            elif agent not in episode.ended:
                self._check_known(i, agent, "rewards")
                episode.early[agent] = episode.early.get(agent, 0.0) + reward
            elif reward:
                message = (
                    f"rewards has {reward} for agent {agent!r}, which ended before; give it with its end"
                )
                raise self._guard.error("E403", message, self._place(i, agent), "rewards")

    def _check_known(self, i: int, agent: AgentID, name: str) -> None:
        episode = self._episodes[i]
        if agent not in episode.live and agent not in episode.ended and agent not in self._possible[i]:
            names = ", ".join(map(repr, [*episode.live, *episode.ended]))
            message = (
                f"{name} has agent {agent!r}, which has had no observation and is not in possible_agents; "
                f"in this episode there are {names or 'none yet'}"
            )
            raise self._guard.error("E404", message, self._place(i, agent), name)

    def _flags(self, i: int, name: str, flags: dict[AgentID, Any]) -> dict[AgentID, bool]:
        """The flags of agents that have not ended, and that of all."""
        episode, agents = self._episodes[i], list(flags)
        values = self._guard.flags(name, list(flags.values()), lambda row: self._place(i, agents[row]))
        for agent in agents:
            if agent != ALL:
                self._check_known(i, agent, name)
        told = zip(agents, values.tolist(), strict=True)
        return {agent: flag for agent, flag in told if agent not in episode.ended}

    def _place(self, i: int, agent: AgentID | None = None) -> Place:
        episode = self._episodes[i]
        agent = None if agent == ALL else agent
        actions: Any = episode.actions or None
        if agent is not None:
            actions = episode.actions.get(agent)
        elif len(episode.actions) > _MOST_SHOWN:
            actions = f"the actions of {len(episode.actions)} agents"
        return Place(i, episode.number, episode.t, actions, agent)

    # Columns.

    def _emit(self, rows: _Rows) -> Sequence[TimeStep]:
        """The rows of a poll, by space pair, and all that changes by slot."""
        finals = rows.finals
        slots = np.concatenate([*rows.slots, np.array([final.slot for final in finals], np.int64)])
        t = np.repeat([*rows.ts, *(f.t for f in finals)], [*map(len, rows.slots), *(1 for _ in finals)])
        self._earn_together(rows)
        active = len(slots) - len(finals)
        terminated, truncated = np.zeros(len(slots), np.bool_), np.zeros(len(slots), np.bool_)
        terminated[active:] = [final.terminated for final in finals]
        truncated[active:] = ~terminated[active:]
        reward = self._waiting[slots]
        self._waiting[slots] = 0.0
        self._t[slots], self._reward[slots] = t, reward
        self._awaits[slots[:active]] = True
        self._awaited += np.bincount(self._env_of[slots[:active]], minlength=self.num_envs)
        values = rows.obs + [final.obs for final in finals]
        whole = TimeStep(slots, t, values, reward, terminated, truncated, rows.opened, rows.closed, rows.info)
        parts = [(whole, active)] if len(self.spaces) == 1 else self._by_space(whole, active)
        for step, count in parts:
            step.obs = self._column(step, rows)
            head = slice(count)
            spaces.put(self._last[step.space], step.slot[head], spaces.take(step.obs, head))
        return [step for step, _ in parts]

    def _earn_together(self, rows: _Rows) -> None:
        if not rows.earning:
            return
        slots = np.concatenate(rows.earning)
        rewards = self._guard.rewards(rows.rewards, lambda row: self._place_of(int(slots[row]), rows))
        self._waiting[slots] += rewards
        self._earned[slots] += rewards

    def _by_space(self, whole: TimeStep, active: int) -> list[tuple[TimeStep, int]]:
        """The rows of each space pair, with the number of those that are not final."""
        space = self._space_of[whole.slot]
        present = np.unique(space).tolist() or [0]
        parts = []
        for index in present:
            rows = np.flatnonzero(space == index)
            slots = whole.slot[rows]
            mine = set(slots.tolist())
            step = TimeStep(
                slots,
                whole.t[rows],
                [whole.obs[row] for row in rows.tolist()],
                whole.reward[rows],
                whole.terminated[rows],
                whole.truncated[rows],
                [info for info in whole.opened if info.slot in mine],
                whole.closed if index == present[-1] else (),
                {slot: info for slot, info in whole.info.items() if slot in mine},
                index,
            )
            parts.append((step, int(np.count_nonzero(rows < active))))
        return parts

    def _column(self, step: TimeStep, rows: _Rows) -> Tree:
        """The observations of some rows, the last known ones where there are no new ones."""
        if not self.spaces:  # nobody has ever come
            return None
        spec = self.spaces[step.space].observation
        values = step.obs
        seen = [row for row, value in enumerate(values) if value is not _UNSEEN]
        if len(seen) == len(values):
            return self._collected(spec, values, step, range(len(values)), rows)
        column = spaces.zeros(spec, len(values))
        spaces.put(column, seen, self._collected(spec, [values[row] for row in seen], step, seen, rows))
        unseen = np.setdiff1d(np.arange(len(values)), seen)
        spaces.put(column, unseen, spaces.take(self._last[step.space], step.slot[unseen]))
        return column

    def _collected(
        self, spec: Any, values: list[Any], step: TimeStep, at: Sequence[int], rows: _Rows
    ) -> Tree:
        found = spaces.stack(spec, values) if values else None
        if found is not None:
            return found

        def where(row: int) -> Place:
            return self._place_of(int(step.slot[at[row]]), rows)

        return self._guard.observations(spec, values, where)

    def _place_of(self, slot: int, rows: _Rows) -> Place:
        info, t = self._who[slot], int(self._t[slot])
        action = rows.actions.get((info.env, info.episode), {}).get(info.agent)
        return Place(info.env, info.episode, t, action, info.agent)

    # Answers.

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """Answer ``slots``, all of one space pair, with a column of actions; the column is copied.

        Raises:
            ValueError: a slot awaits no action, or is of another pair, or the column has another length.
        """
        self._check_alive()
        if not self._started:
            raise ValueError("no slot awaits an action yet: poll() first")
        column = spaces.map_leaves(np.array, actions)
        for leaf in spaces.leaves(column):
            if leaf.shape[:1] != slots.shape:
                raise ValueError(f"{slots.shape[0]} slots, but an action column of shape {leaf.shape}")
        if not len(slots):
            return
        slots = np.array(slots, np.int64)
        self._check_awaited(slots)
        space = int(self._space_of[slots[0]])
        if np.count_nonzero(self._space_of[slots] != space):
            raise ValueError("the slots are of several space pairs: send the actions of each pair by itself")
        envs = self._env_of[slots]
        numbers = np.array([episode.number for episode in self._episodes])
        steps = np.array([episode.t for episode in self._episodes])
        self._awaits[slots] = False
        self._awaited -= np.bincount(envs, minlength=self.num_envs)
        self._sent.append(_Sent(space, slots, envs, numbers[envs], steps[envs], column))

    def _check_awaited(self, slots: IntArray) -> None:
        known = (slots >= 0) & (slots < len(self._awaits))
        wrong = ~known | ~self._awaits[np.where(known, slots, 0)]
        twice = len(np.unique(slots)) < len(slots)
        if twice or wrong.any():
            culprit = slots[wrong][0] if wrong.any() else next(s for s in slots if (slots == s).sum() > 1)
            raise ValueError(
                f"slot {culprit} awaits no action (it has ended, or was answered since the last poll); "
                "answer each row that is neither terminated nor truncated once"
            )

    def pending(self) -> Sequence[TimeStep]:
        """The rows that await an action; ``opened`` has their slots and those of silent agents."""
        if not self._started:
            return []
        awaiting = [slot for episode in self._episodes for slot in episode.slots.tolist()]
        slots = np.array([slot for slot in awaiting if self._awaits[slot]], np.int64)
        live = [slot for episode in self._episodes for slot in episode.live.values()]
        none: BoolArray = np.zeros(len(slots), np.bool_)
        opened = [self._who[slot] for slot in live]
        whole = TimeStep(slots, self._t[slots], [None] * len(slots), self._reward[slots], none, none, opened)
        found = []
        for index in range(len(self.spaces)):
            at = np.flatnonzero(self._space_of[slots] == index)
            mine = slots[at]
            opened = [info for info in whole.opened if self._space_of[info.slot] == index]
            if len(mine) or opened:
                obs, none = spaces.take(self._last[index], mine), np.zeros(len(mine), np.bool_)
                t, reward = self._t[mine], self._reward[mine]
                found.append(TimeStep(mine, t, obs, reward, none, none, opened=opened, space=index))
        return found

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``."""
        return dict(self._guard.counts)

    def get_sub_environments(self) -> list[Any]:
        """The multi-agent envs, by vector index."""
        return list(self._envs)

    def get_state(self) -> State:
        """All envs at their newest rows."""
        self._check_alive()
        numbers = [episode.number for episode in self._episodes]
        return {"started": self._started, "seeds": list(self._seeds), "episodes": numbers}

    def set_state(self, state: State) -> list[str]:
        """Begin new episodes in all envs."""
        self._seeds[:] = state["seeds"]
        self._rewind()
        if not state["started"]:
            return []
        raise NotImplementedError

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


_MOST_SHOWN = 8  # agents whose actions a message shows


def _as_before(episode: _Episode, result: Any) -> bool:
    """Whether just those who acted are back, in the same order, and nobody ended: the common case."""
    if type(result) is not tuple or len(result) != 5 or {*map(type, result)} != {dict} or not episode.turn:
        return False
    obs, rewards, terminateds, truncateds, _ = result
    flags = [*terminateds.values(), *truncateds.values()]
    return (
        list(obs) == episode.turn
        and rewards.keys() == obs.keys()
        and {*map(type, flags)} == {bool}
        and True not in flags
        and ALL in terminateds
        and terminateds.keys() <= episode.known
        and truncateds.keys() <= episode.known
    )


def _seeded_reset(env: MultiAgentEnv, seed: int) -> Any:
    """The first reset, by ``seed()`` before it where ``reset`` takes no seed."""
    seed_spaces(env, seed)
    parameters = inspect.signature(env.reset).parameters.values()
    if any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters):
        return env.reset(seed=seed)
    env.seed(seed)
    return env.reset()
