"""Envs of many agents as an :class:`~steppe.types.AsyncEnv`: n copies in this process, a row per agent."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np

from steppe import spaces
from steppe.envs.agent_log import AGENT_LOG_LIMIT, AgentLog, Answers, BySlot
from steppe.envs.agent_rows import UNSEEN, Final, Rows, by_space
from steppe.envs.agent_slots import Slots
from steppe.envs.agent_spaces import AgentSpaces, PairFor
from steppe.envs.agent_steps import ByAgent, Episode, Judge, as_before
from steppe.envs.guards import (
    Guard,
    OutOfSpace,
    Place,
    check_alive,
    check_copies,
    copied_step,
    own,
    share_memory,
)
from steppe.envs.multi_agent import LATER, MultiAgentEnv, seeded_reset
from steppe.envs.observing import Moment, Observing
from steppe.envs.replay import Generators, NotExact, NotPlain
from steppe.errors import CheckpointError, EnvError
from steppe.types import AgentID, EpisodeEnd, IntArray, SlotInfo, SpacePair, State, TimeStep, Tree


@final
class MultiAgentRows:
    """``n`` multi-agent envs; each steps in the next ``poll`` after its last awaited agent was answered.

    An env that awaits nobody steps in the next ``poll``. A poll's rows stand in env order, those of an env in
    the order of its dict of observations; then come the final rows, likewise, in each env those without a
    last observation last. Newcomers get the smallest free slots.

    Who ends, by itself or with the episode, has terminated if its own flag or that of ``"__all__"`` says so;
    otherwise it is truncated.

    Args:
        envs: distinct envs; the adapter owns and closes them.
        seeds: one per env, given to its first ``reset`` and to nothing else.
        runner: worker index, for messages.
        observation_space: of every agent; overrides what the envs say; ``action_space`` likewise.
        max_episode_steps: an episode of this many env steps ends, its agents truncated.
        max_sequence_length: for Sequence spaces that state no maximum.
        on_out_of_space: see :class:`~steppe.envs.guards.Guard`.
        pair_for: the spaces of an agent whose env does not say them, asked whenever one comes.
        observing: what is done to observations before anybody gets them.
        ready: which envs may step now, asked once a poll; others wait, as does one whose reset is ``LATER``.

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
        observing: Observing | None = None,
        ready: Callable[[], Container[int]] | None = None,
    ) -> None:
        n = len(envs)
        check_copies(n, len(seeds), max_episode_steps)
        self.num_envs, self._envs, self._seeds = n, list(envs), [int(seed) for seed in seeds]
        given, self._observing = (observation_space, action_space), observing
        if observing is not None:
            observing.meet(self._envs)
        self._agent_spaces = AgentSpaces(self._envs, given, max_sequence_length, pair_for, observing)
        self.spaces: tuple[SpacePair, ...] = self._agent_spaces.pairs
        self.agents: Mapping[AgentID, int] = self._agent_spaces.agents
        names = [env.shown_as for env in envs]
        self._guard = Guard(names, runner, self._seeds, on_out_of_space)
        self._judge = Judge(self._guard, self._envs)
        self._max_steps, self._closed = max_episode_steps, False
        self._ready = ready or (lambda: range(n))
        self._rewind()

    def _rewind(self) -> None:
        """Be as before the first poll, which resets and seeds the envs."""
        n, self.env_steps = self.num_envs, 0
        self._started, self._sharing = False, False
        self._late: set[int] = set()
        self._failure: BaseException | None = None
        self._generators, self._log = Generators(self._envs), AgentLog(n)
        self._slots = Slots()
        self._episodes = [Episode(i, -1) for i in range(n)]
        self._numbers = np.zeros(n, np.int64)
        self._sent: list[Answers] = []
        self._answers: dict[int, Any] = {}
        self._awaited = np.zeros(n, np.int64)
        self._tenants: list[tuple[int, AgentID, int]] | None = None  # who will come, where a replay knows it

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
        check_alive(self._closed, self._failure)

    def _first(self) -> Sequence[TimeStep]:
        rows, raw = Rows(), list[Any]()
        self._ready()
        self._sharing = True  # until it is known: whatever was returned is copied
        for i in range(self.num_envs):
            raw += self._reset(i, rows)
        self._started, self._sharing = True, share_memory(raw)
        return self._emit(rows)

    def _step(self) -> Sequence[TimeStep]:
        self._slots.recycle()
        for sent in self._sent:
            self._answers |= sent.by_slot(self.spaces[sent.space].action)
            self._log.add(sent, self._numbers)
        self._sent.clear()
        able, rows = self._ready(), Rows()
        ready = [i for i in np.flatnonzero(self._awaited == 0).tolist() if i in able]
        self._advance(ready, rows)
        return self._emit(rows) if ready else []

    def _advance(self, ready: Sequence[int], rows: Rows) -> None:
        """Step some envs with the answers of their agents."""
        envs, episodes, late, answer = self._envs, self._episodes, self._late, self._answers.pop
        most, sharing, observing = self._max_steps, self._sharing, self._observing
        slots, seen, earned = rows.slots, rows.obs, rows.rewards
        for i in ready:
            if i in late:
                self._reset(i, rows)
                continue
            episode, step = episodes[i], envs[i].step
            actions = episode.actions = dict(zip(episode.turn, map(answer, episode.seats), strict=True))
            episode.t += 1
            try:  # the env may change its dict
                result = copied_step(step, actions.copy()) if sharing else step(actions.copy())
            except Exception as error:
                self._judge.blame(episode, error)
                raise
            self.env_steps += 1
            if observing is not None:
                result = self._observed_step(episode, result)
            limit = most is not None and episode.t >= most
            if limit or not as_before(episode, result):
                self._digest(episode, self._judge.five(episode, result), limit, rows)
                continue
            slots += episode.seats
            seen += result[0].values()
            earned += result[1].values()
            if any(result[4].values()):
                rows.info |= self._judge.infos(episode, result[4])

    def _observed_step(self, episode: Episode, result: Any) -> Any:
        obs, *rest = self._judge.five(episode, result)
        seen = self._observed(episode, obs)
        return (own(seen) if self._sharing else seen, *rest)

    def _observed(self, episode: Episode, obs: ByAgent) -> ByAgent:
        """What agents get of what the env returned; one that gets nothing is known nevertheless."""
        if self._observing is None:
            return obs
        episode.known |= obs.keys() - episode.ended.keys()
        slots = episode.live if self._tenants is None else {}  # a replay's slots are nobody's yet
        moment = Moment(episode.env, episode.number, episode.t, slots)
        seen: ByAgent = self._judge.called(episode, partial(self._observing.observed, moment, obs))
        self._judge.expect(episode.env, seen.keys() - obs.keys())
        return seen

    def _digest(self, episode: Episode, five: Sequence[ByAgent], limit: bool, rows: Rows) -> None:
        """Take in a step in which agents came, went or kept silent."""
        obs, rewards, terminateds, truncateds, infos = five
        for agent in obs:
            if agent not in episode.live:
                self._open(episode, agent, rows)
        for agent, reward in self._judge.rewards(episode, rewards):
            if agent in episode.live:
                self._slots.earn(episode.live[agent], reward)
            else:
                episode.early[agent] = episode.early.get(agent, 0.0) + reward
        ends, over = self._judge.ends(episode, terminateds, truncateds, limit)
        rows.info |= {slot: dict(info) for slot, info in self._judge.infos(episode, infos).items()}
        silent = [agent for agent in episode.live if agent not in obs] if ends else []
        for agent in [agent for agent in (*obs, *silent) if agent in ends]:
            last = obs.get(agent, UNSEEN)
            value = own(last) if over and last is not UNSEEN else last  # the next reset may write to it
            rows.finals.append(Final(episode.live[agent], episode.t, value, ends[agent]))
        episode.acts_next([agent for agent in obs if agent not in ends])
        rows.slots += episode.seats
        rows.rewards += [0.0] * len(episode.seats)
        rows.obs += [obs[agent] for agent in episode.turn]
        for agent in ends:
            episode.ended[agent] = None
            episode.known.discard(agent)
            if agent in episode.live:
                self._slots.leave(episode.live.pop(agent))
        if over:
            rows.actions[episode.env, episode.number] = episode.actions
            self._judge.closed(episode)
            rows.closed.append(EpisodeEnd(episode.env, episode.number, episode.t))
            self._reset(episode.env, rows)

    def _reset(self, i: int, rows: Rows) -> list[Any]:
        """Begin the next episode of env ``i``; returns the observations as they came."""
        number, env = self._episodes[i].number + (i not in self._late), self._envs[i]
        episode = self._episodes[i] = Episode(i, number)
        self._numbers[i] = number
        self._generators.before_reset(i)
        reset = env.reset if number else partial(seeded_reset, env, self._seeds[i])
        result = self._judge.called(episode, reset)
        (self._late.add if result is LATER else self._late.discard)(i)
        return [] if result is LATER else self._begin(episode, result, rows)

    def _begin(self, episode: Episode, result: Any, rows: Rows) -> list[Any]:
        """Take in what ``reset`` returned."""
        obs, infos = self._judge.first(episode, result)
        obs = self._observed(episode, obs)
        for agent in obs:
            self._open(episode, agent, rows)
        episode.acts_next(list(obs))
        rows.info |= self._judge.infos(episode, infos)
        values = list(obs.values())
        rows.slots += episode.seats
        rows.rewards += [0.0] * len(episode.seats)
        rows.obs += map(own, values) if self._sharing else values
        return values

    def _open(self, episode: Episode, agent: AgentID, rows: Rows) -> None:
        """An agent has come: give it a slot."""
        self._judge.newcomer(episode, agent)
        if self._tenants is None:
            slot = self._slots.take()
        else:
            slot, expected, space = self._tenants.pop(0) if self._tenants else (0, None, 0)
            if agent != expected:
                raise NotExact(f"agent {agent!r} came, it was {expected!r} then")
        info = SlotInfo(slot, episode.env, agent, episode.number, self._seeds[episode.env])
        if self._tenants is None:
            space = self._agent_spaces.of(info)
            self.spaces = self._agent_spaces.pairs
        self._slots.settle(info, space, self.spaces, episode.early.pop(agent, 0.0))
        episode.live[agent] = slot
        episode.known.add(agent)
        episode.tenants.append((slot, agent, space))
        rows.opened.append(info)

    def _emit(self, rows: Rows) -> Sequence[TimeStep]:
        """The rows of a poll, by space pair; writes all that changes by slot."""
        known, whole = self._slots, rows.whole()
        slots = whole.slot
        whole.t = np.array([episode.t for episode in self._episodes])[known.env[slots]]
        whole.t[len(rows.slots) :] = [final.t for final in rows.finals]
        known.t[slots] = whole.t
        active = slots[: len(rows.slots)]
        if len(active):
            rewards = self._guard.rewards(rows.rewards, lambda row: self._place(rows.slots[row], rows))
            known.earn(active, rewards)
        whole.reward = known.reward[slots] = known.waiting[slots]
        known.waiting[slots] = 0.0
        known.awaits[active] = True
        self._awaited += np.bincount(known.env[active], minlength=self.num_envs)
        steps = [whole] if len(self.spaces) < 2 else by_space(whole, known.space[slots])
        for step in steps:
            step.obs = self._column(step, rows)
            if len(step.slot):
                head = slice(int(np.count_nonzero(~(step.terminated | step.truncated))))
                spaces.put(known.last[step.space], step.slot[head], spaces.take(step.obs, head))
        return [step for step in steps if len(step.slot) or step.closed]

    def _column(self, step: TimeStep, rows: Rows) -> Tree:
        """The observations of some rows, the last known ones where there are no new ones."""
        values: list[Any] = step.obs
        if not self.spaces:  # nobody has ever come
            return None
        spec = self.spaces[step.space].observation
        seen = [row for row, value in enumerate(values) if value is not UNSEEN]
        if len(seen) < len(values):
            values = [values[row] for row in seen]

        def where(row: int) -> Place:
            return self._place(int(step.slot[seen[row]]), rows)

        found = spaces.stack(spec, values) if values else None
        if found is None:
            try:
                found = self._guard.observations(spec, values, where)
            except EnvError as error:
                raise (
                    error if self._observing is None else self._observing.blame(error, self._guard)
                ) from None
        if len(seen) == len(step.slot):
            return found
        column = spaces.take(self._slots.last[step.space], step.slot)
        spaces.put(column, seen, found)
        return column

    def _place(self, slot: int, rows: Rows) -> Place:
        info = self._slots.who[slot]
        now, over = self._episodes[info.env], rows.actions.get((info.env, info.episode), {})
        action = (now.actions if now.number == info.episode else over).get(info.agent)
        return Place(info.env, info.episode, int(self._slots.t[slot]), action, info.agent)

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
        self._slots.check_awaited(slots)
        space = int(self._slots.space[slots[0]])
        if np.count_nonzero(self._slots.space[slots] != space):
            raise ValueError("the slots are of several space pairs: send the actions of each pair by itself")
        envs, ts = self._slots.env[slots], np.array([episode.t for episode in self._episodes])
        self._slots.awaits[slots] = False
        self._awaited -= np.bincount(envs, minlength=self.num_envs)
        self._sent.append(Answers(space, slots, envs, self._numbers[envs], ts[envs], column))

    def pending(self) -> Sequence[TimeStep]:
        """The rows that await an action; ``opened`` has their slots and those of silent agents."""
        if not self._started:
            return []
        turn = np.array([slot for episode in self._episodes for slot in episode.seats], np.int64)
        return self._slots.pending(turn, [slot for one in self._episodes for slot in one.live.values()])

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``."""
        return dict(self._guard.counts)

    def get_sub_environments(self) -> list[Any]:
        """The multi-agent envs, by vector index."""
        return list(self._envs)

    def close(self) -> None:
        """Close every env, even if one raises; then raise what the first one raised."""
        if self._closed:
            return
        self._closed = True
        errors: list[Exception] = []
        for env, episode in zip(self._envs, self._episodes, strict=True):
            try:
                self._judge.called(episode, env.close)
            except Exception as error:
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
        episodes = self._episodes
        try:
            envs = [self._generators.save(one.env, one.t) for one in episodes]
        except NotPlain as bad:
            raise self._guard.error("E402", str(bad), episodes[bad.env].place()) from None
        native = self._generators.native  # of these the answers that no step has used yet, of others all
        since = np.array([one.t if native[one.env] else 0 for one in episodes])
        return {
            "started": True,
            "env_steps": self.env_steps,
            "health": dict(self._guard.counts),
            "seeds": list(self._seeds),
            "sharing": self._sharing,
            "spaces": self._agent_spaces.save(),
            "slots": self._slots.known([slot for one in episodes for slot in one.live.values()]),
            "episodes": [one.save() for one in episodes],
            "known": [self._log.knows(one.env, one.number) for one in episodes],
            "log": self._log.save(self._numbers, since),
            "envs": envs,
            "observing": [] if self._observing is None else self._observing.get_state(native),
        }

    def set_state(self, state: State) -> list[str]:
        """Bring every env back by its own ``set_state``, or by replaying its episode.

        An env that does not come out the same is named in the answer and begins a new episode. A state from
        before the first poll makes the next poll reset and seed all envs.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        count = len(state["seeds"])
        if count != self.num_envs:
            raise CheckpointError(f"the state is of {count} envs, here are {self.num_envs}")
        self._seeds[:] = state["seeds"]
        self._rewind()
        self._guard.counts = dict(state.get("health", {}))
        if self._observing is not None:
            self._observing.set_state(state.get("observing", []))
        if not state["started"]:
            return []
        self._agent_spaces.load(state["spaces"])
        self.spaces, self._sharing = self._agent_spaces.pairs, state["sharing"]
        then = [Episode.load(i, saved) for i, saved in enumerate(state["episodes"])]
        self._numbers = np.array([episode.number for episode in then])
        slots, answers = Slots(), self._log.load(state["log"], self.spaces, self._numbers)
        slots.load(state["slots"], self.spaces)
        why = [self._restore(one, slots, answers, state) for one in then]
        self._started, self.env_steps, self._guard.counts = True, state["env_steps"], dict(state["health"])
        self._episodes, self._slots = then, slots
        self._answers = {slot: action for one in then for slot, action in answers.get((one.env, one.t), ())}
        self._awaited = np.array([np.count_nonzero(slots.awaits[one.seats]) for one in then])
        return [self._renew(i, reason) for i, reason in enumerate(why) if reason]

    def _restore(
        self,
        then: Episode,
        slots: Slots,
        answers: BySlot,
        state: State,
    ) -> str:
        """Bring an env to where it was; the reason if it cannot be done."""
        i, env = then.env, self._envs[then.env]
        if not state["known"][i] and not self._generators.native[i]:
            return f"its episode is longer than the {AGENT_LOG_LIMIT} actions that are remembered"

        def reset(seeded: bool) -> Any:
            return seeded_reset(env, self._seeds[i]) if seeded else env.reset()

        self._tenants = list(then.tenants)
        try:
            result = self._generators.restore(i, state["envs"][i], reset, first=then.number == 0)
            if result is not None:
                self._replay(then, result, answers)
                if not self._episodes[i].same(then) or not self._slots.same(slots, list(then.live.values())):
                    raise NotExact("its replay gave other agents, observations or rewards")
        except NotExact as why:
            return str(why)
        except Exception as error:
            return f"it raised {type(error).__name__}: {error}"
        finally:
            self._tenants = None
        return ""

    def _replay(self, then: Episode, result: Any, answers: BySlot) -> None:
        """Play an episode again from its beginning; the slots of other envs are put right afterwards."""
        episode = self._episodes[then.env] = Episode(then.env, then.number)
        rows = Rows()
        self._begin(episode, result, rows)
        self._emit(rows)
        for t in range(then.t):
            self._answers.update(answers.get((then.env, t), ()))
            rows = Rows()
            self._advance([then.env], rows)
            if self._episodes[then.env] is not episode:
                raise NotExact(f"its episode ended after {t + 1} steps, not {then.t}")
            self._emit(rows)

    def _renew(self, i: int, why: str) -> str:
        """Begin a new episode in an env whose old one is lost; says so."""
        episode, rows = self._episodes[i], Rows()
        for slot in episode.live.values():
            self._slots.leave(slot)
        self._awaited[i] = 0
        self._reset(i, rows)
        self._emit(rows)
        name = self._guard.class_of(i)
        return f"E402 env {i} ({name}) begins a new episode, it was at step {episode.t}: {why}"
