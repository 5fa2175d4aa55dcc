"""The one loop: poll, act, write, send."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from steppe.errors import IdleError
from steppe.sampling.lanes import Lanes, Ready, T, check_fits, in_order, in_own_units, select, state_after
from steppe.sampling.metrics import EpisodeRecord, Sample, Tally
from steppe.sampling.quota import Quota
from steppe.seeding import SMALLEST_NOISE
from steppe.spaces import BadLeaf, map_leaves, put, take, tupled
from steppe.types import AgentID, Array, AsyncEnv, IntArray, Policy, SlotInfo, State, TimeStep, Tree, Weights

if TYPE_CHECKING:
    from steppe.sampling.episodes import EpisodeHooks
    from steppe.types import EpisodeEnd

logger = logging.getLogger("steppe")

_PATIENCE = 10_000  # env steps per env, after which a wait for the first end of an episode is said aloud
_NEVER_ENDS = (
    "waiting for an episode to end, %d env steps by now; "
    "if the env has no end of its own, set max_episode_steps to truncate its episodes"
)
CUT_SHORT = "sampling failed or was interrupted before, in mid-fragment: restore a checkpoint, or build anew"


class Sampler:
    """Drives one :class:`AsyncEnv` with some policies and cuts the experience into fragments.

    Args:
        env: the env, which is not polled before the first :meth:`sample`.
        policies: by id; their order is their index.
        trained: ids of the policies whose rows are kept.
        mapping: policy id of an agent, asked once per agent and episode.
        fragment_length: env steps per env and fragment.
        complete_episodes: close fragments at episode ends only.
        explore: draw actions; otherwise take the most likely ones.
        rng: the stream that noise comes from.
        runner: worker index, for the record.

    Attributes:
        cut_short: the env was left in the middle of something: only :meth:`set_state` repairs that.
        rng: the stream of noise.
        hooks: told of every poll; None when no hook of episodes or samples is set.
        driven: others act in the env, so that nothing can be held back there.
    """

    def __init__(
        self,
        env: AsyncEnv,
        policies: Mapping[str, Policy],
        *,
        trained: Sequence[str],
        mapping: Callable[[SlotInfo], str],
        fragment_length: int,
        rng: np.random.Generator,
        complete_episodes: bool = False,
        explore: bool = True,
        runner: int = 0,
    ) -> None:
        self.env = env
        self._mapping, self._runner, self.rng, self.explore = mapping, runner, rng, explore
        self.hooks: EpisodeHooks | None = None
        self._fragment_steps, self._complete = fragment_length * env.num_envs, complete_episodes
        self._rows = fragment_length * 3 // 2 + 16
        # By policy. Recurrent states by slot: "next" meets the next row, "last" met the newest row acted on.
        self._ids, self._policies, self._lanes = list[str](), list[Policy](), list[Lanes | None]()
        self._weights, self._versions = list[Any](), list[int]()
        self._states, self._initial = list[Tree](), list[Tree]()
        self._agents: dict[AgentID, int] = {}
        self._fits: set[tuple[int, int]] = set()
        self._live: dict[int, SlotInfo] = {}
        self._episodes: dict[tuple[int, int], EpisodeRecord] = {}
        self._pending: list[Ready] = []
        self._edge = np.full((env.num_envs, 2), -1)  # each env's episode and step as the fragment began
        self._started, self.cut_short, self._sequence, self._tally = False, False, 0, Tally()
        self.driven, self._idle = False, False
        self._policy_of = np.zeros(0, np.int64)
        self._identity, self._returns = np.zeros((0, 4), np.int32), np.zeros(0)
        for id, policy in policies.items():
            self.add_policy(id, policy, trained=id in trained)
        self._grow(2 * env.num_envs)

    def add_policy(self, id: str, policy: Policy, *, trained: bool) -> None:
        """Let agents be mapped to a further policy from now on; between two fragments only."""
        lanes = Lanes(id, policy.observation, self._rows, self.env.num_envs) if trained else None
        if lanes is not None:
            lanes.grow_slots(len(self._policy_of))
        self._ids.append(id)
        self._policies.append(policy)
        self._lanes.append(lanes)
        self._weights.append(None)
        self._versions.append(0)
        self._states.append(None)
        self._initial.append(policy.initial_state(1))

    def remove_policy(self, id: str, mapping: Callable[[SlotInfo], str], trained: Sequence[str]) -> None:
        """Take a policy away, between two fragments: its agents go on with others from their next rows on.

        Args:
            id: of the policy.
            mapping: is asked for them anew, and from now on.
            trained: ids of the policies whose rows are kept from now on.

        Raises:
            ConfigError: nobody else can act for one of them; nothing changed.
        """
        gone, steps = self._ids.index(id), self.env.pending() if self._started else ()
        ids = [one for one in self._ids if one != id]
        moved: dict[int, str] = {}
        for step in steps:
            for info in step.opened:
                if self._live.get(info.slot) == info and self._policy_of[info.slot] == gone:
                    moved[info.slot] = new = mapping(info) if len(ids) > 1 else ids[0]
                    self._fit(self._ids.index(new), step.space, info)
        del self._ids[gone], self._policies[gone], self._lanes[gone], self._weights[gone]
        del self._versions[gone], self._states[gone], self._initial[gone]
        self._mapping, self._fits = mapping, set()
        self._lanes = [lanes if ids[index] in trained else None for index, lanes in enumerate(self._lanes)]
        self._policy_of[self._policy_of > gone] -= 1
        ready = [r._replace(policy=r.policy - (r.policy > gone)) for r in self._pending if r.policy != gone]
        self._pending = in_order(ready + self._move(steps, moved), self._identity, self._edge)

    def _move(self, steps: Sequence[TimeStep], chosen: Mapping[int, str]) -> list[Ready]:
        """Others act for some slots from the rows that wait on; what was earned so far stays earned."""
        earned, (hooks, self.hooks) = self._returns.copy(), (self.hooks, None)  # no episode begins
        parts = []
        for step in steps:
            opened = tuple(info for info in step.opened if info.slot in chosen)
            self._open(opened, [chosen[info.slot] for info in opened])
            part = select(step, np.flatnonzero(np.isin(step.slot, list(chosen))))
            parts.append(replace(part, opened=(), reward=np.zeros_like(part.reward)))
        ready, self.hooks, self._returns = self._receive(parts), hooks, earned
        if hooks is not None:
            hooks.moved([self._live[slot] for slot in chosen], self.policy_of)
        return ready

    def set_weights(self, weights: Mapping[str, Weights]) -> None:
        """Act with these from now on."""
        for id, new in weights.items():
            index = self._ids.index(id)
            self._weights[index], self._versions[index] = self._policies[index].load(new), new.version

    def weights_of(self, policy: str) -> Any:
        """What ``policy`` acts with now, as its ``load`` made it."""
        return self._weights[self._ids.index(policy)]

    def sample(self) -> Sample:
        """Run until the envs have taken a fragment's steps; the first call resets them.

        Raises:
            RuntimeError: an earlier call did not come to its end; only :meth:`set_state` repairs that.
        """
        if self.cut_short:
            raise RuntimeError(CUT_SHORT)
        self.cut_short, self._idle = True, False  # until this fragment is closed
        if not self._started:  # the first poll resets the envs
            self._pending, self._started = self._round(()), True
        before, ready = self.env.env_steps, self._pending
        earlier = self._under_way(ready) if self._complete and self.env.steps_together else set()
        while self.env.env_steps < before + self._fragment_steps and not self._idle:
            ready = self._round(ready)
        if self._complete:
            ready = self._finish(ready, [0] * self.env.num_envs, self._under_way(ready) - earlier)
            self._tally.episodes = [e for e in self._tally.episodes if (e.env, e.episode) not in earlier]
        self._pending = in_order(ready, self._identity, self._edge)
        return self._close(self.env.env_steps - before)

    def sample_episodes(self, quota: Sequence[int]) -> Sample:
        """Run ``quota[i]`` whole episodes in env ``i``; the first rows of further ones wait."""
        if self.cut_short:
            raise RuntimeError(CUT_SHORT)
        self.cut_short, self._idle = True, False  # until this fragment is closed
        if not self._started:  # the first poll resets the envs
            self._pending, self._started = self._round(()), True
        before = self.env.env_steps
        self._pending = in_order(self._finish(self._pending, quota, set()), self._identity, self._edge)
        return self._close(self.env.env_steps - before)

    def _round(self, ready: Sequence[Ready]) -> list[Ready]:
        """Choose, write, send: in this order, or lanes would hold the next observation. Then poll."""
        began = perf_counter()
        for policy, slots, obs, t in ready:
            actor, lanes = self._policies[policy], self._lanes[policy]
            table, noise = self._states[policy], None
            if self.explore or actor.draws:
                noise = self.rng.random((len(slots), actor.noise_size), np.float32)
                np.maximum(noise, SMALLEST_NOISE, out=noise)
            state = None if table is None else take(table["next"], slots)
            try:
                decision = actor.act(self._weights[policy], obs, state, noise)
            except BadLeaf as bad:
                from steppe.models.sight import unanswerable

                info = self._live[int(slots[bad.row])]
                raise unanswerable(bad, self.env, info, int(t[bad.row]), self._runner) from None
            if table is not None:
                put(table, slots, {"last": state, "next": decision.state})
            if lanes is not None:
                lanes.write_decision(slots, decision, self._versions[policy])
            self._tally.agent_steps += len(slots)
            self.env.send_actions(slots, actor.to_env(decision.action))
        acted = perf_counter()
        try:
            steps = self.env.poll()
        except IdleError:
            self._idle, steps = True, ()
        self._tally.env_time += perf_counter() - acted
        self._tally.inference_time += acted - began
        if steps and steps[0].lost:
            self._lose(steps[0].lost)
        return self._receive(steps)

    def _finish(
        self, ready: Sequence[Ready], new: Sequence[int], allowed: set[tuple[int, int]]
    ) -> list[Ready]:
        """Step until open episodes, and ``new[i]`` further ones in env ``i``, are over.

        Envs that step together cannot be held back one by one: there all go on until the ``allowed`` episodes
        and the new ones are over, and the others are not counted.
        """
        together, counted = self.env.steps_together or self.driven, len(self._tally.episodes)
        began = self.env.env_steps
        patience: float = began + _PATIENCE * self.env.num_envs
        quota = Quota(new, allowed, together=together)
        while True:
            running = quota.split(ready, self._live)
            quota.admit(self._episodes if self.driven else ())
            if self._idle or (not running and not quota.owed(self._live, self._episodes)):
                ended, tally = self._tally.episodes[counted:], self._tally.episodes
                tally[counted:] = [e for e in ended if not together or (e.env, e.episode) in quota]
                return quota.waiting
            if self.env.env_steps > patience and not self._tally.episodes:
                logger.warning(_NEVER_ENDS, self.env.env_steps - began)
                patience = np.inf
            if together:
                running, quota.waiting = list(ready), []
            ready = self._round(running)
            quota.give_back(self._tally.lost)

    def _receive(self, steps: Sequence[TimeStep]) -> list[Ready]:
        """Write the rows of one poll into their lanes; returns those that await an action."""
        ready: list[Ready] = []
        for step in steps:
            if step.opened:
                self._open(step.opened, space=step.space)
            self._returns[step.slot] += step.reward
            for policy, part in ((0, step),) if len(self._ids) == 1 else self._by_policy(step):
                final = part.terminated | part.truncated
                ends = np.count_nonzero(final) > 0
                lanes = self._lanes[policy]
                if lanes is not None:
                    lanes.write(part, self._identity[part.slot], final if ends else None)
                if ends:
                    self._end(part.slot[final])
                    part = select(part, np.flatnonzero(~final))
                if self._states[policy] is not None or part.decided is not None:
                    part = self._settle(policy, part)
                if len(part.slot):
                    ready.append(Ready(policy, part.slot, part.obs, part.t))
        for end in [end for step in steps for end in step.closed]:  # the last rows may be of several pairs
            key = end.env, end.episode
            record = self._episodes.pop(key, None) or EpisodeRecord(*key, self._runner)
            record.length = end.length
            self._tally.episodes.append(record)
        if self.hooks is not None:
            self.hooks.received(steps, self.policy_of, self._tally.episodes)
        return ready

    def _open(
        self, opened: Sequence[SlotInfo], chosen: Sequence[str] | None = None, space: int | None = None
    ) -> None:
        """Someone new lives in some slots: choose their policies, once."""
        for place, info in enumerate(opened):
            slot, policy = info.slot, 0
            if len(self._ids) > 1:
                policy = self._ids.index(chosen[place] if chosen else self._mapping(info))
            if space is not None and (policy, space) not in self._fits:
                self._fit(policy, space, info)
            if slot >= len(self._policy_of):
                self._grow(2 * slot)
            self._live[slot] = info
            self._policy_of[slot], self._returns[slot] = policy, 0.0
            agent = self._agents.setdefault(info.agent, len(self._agents))
            self._identity[slot, :T] = info.env, agent, info.episode
            if (info.env, info.episode) not in self._episodes:
                self._episodes[info.env, info.episode] = EpisodeRecord(info.env, info.episode, self._runner)
            if self._initial[policy] is not None:
                both = {"next": self._initial[policy], "last": self._initial[policy]}
                put(self._state_table(policy, both), np.array([slot]), both)

    def _fit(self, policy: int, space: int, info: SlotInfo) -> None:
        """Agents of a space pair are mapped to a policy for the first time.

        Raises:
            ConfigError: the policy observes or chooses something else.
        """
        who = f"agent {info.agent!r} (env {info.env}, episode {info.episode})"
        check_fits(self._policies[policy], self._ids[policy], self.env.spaces[space], who)
        self._fits.add((policy, space))

    def policy_of(self, slot: int) -> str:
        """Id of the policy that acts for who lives in ``slot``."""
        return self._ids[int(self._policy_of[slot])]

    def _by_policy(self, step: TimeStep) -> Iterator[tuple[int, TimeStep]]:
        policy = self._policy_of[step.slot]
        for index in np.unique(policy):
            yield int(index), select(step, np.flatnonzero(policy == index))

    def _settle(self, policy: int, step: TimeStep) -> TimeStep:
        """Keep the memory that new lanes begin with, and take over what was decided elsewhere.

        Returns:
            The rows that still await an action.
        """
        table, lanes = self._states[policy], self._lanes[policy]
        if table is not None and isinstance(table["next"], dict) and "reward" in table["next"]:
            table["next"]["reward"][step.slot] = step.reward
        if table is not None and lanes is not None:
            first = lanes.at_row0(step.slot)
            lanes.write_state0(first, take(table["next"], first))
        if step.decided is None or step.decision is None or not step.decided.any():
            return step
        slots, actor = step.slot[step.decided], self._policies[policy]
        decision = in_own_units(actor, step.decision)
        if table is not None:
            obs, last = take(step.obs, step.decided), take(table["next"], slots)
            after = state_after(actor, self._weights[policy], obs, last, decision)
            put(table, slots, {"last": last, "next": after})
        if lanes is not None:
            lanes.write_decision(slots, decision, self._versions[policy])
        self._tally.agent_steps += len(slots)
        return select(step, np.flatnonzero(~step.decided))

    def _end(self, slots: IntArray) -> None:
        """Trajectories are over: count what they earned."""
        for slot in slots.tolist():
            info, earned = self._live.pop(slot), float(self._returns[slot])
            record, policy = self._episodes[info.env, info.episode], self._ids[self._policy_of[slot]]
            record.reward += earned
            agent = str(info.agent)
            record.agent_rewards[agent] = record.agent_rewards.get(agent, 0.0) + earned
            record.policy_rewards.setdefault(policy, []).append(earned)
            self._tally.reward += earned

    def _close(self, env_steps: int) -> Sample:
        """Cut the fragment for all lanes and policies at once."""
        rollouts = []
        about = {"runner": self._runner, "incarnation": 0, "sequence": self._sequence, "env_steps": env_steps}
        for index, lanes in enumerate(self._lanes):
            if lanes is not None:
                rollouts.append(lanes.close(**about, agents=tuple(self._agents)))
                if self._states[index] is not None:
                    self._write_state0(index, lanes)
        self._sequence += 1
        self.cut_short, open_return = False, float(self._returns[list(self._live)].sum())
        # What open episodes have earned so far is counted here.
        tally, self._tally = self._tally, Tally(reward=-open_return)
        earned, times = tally.reward + open_return, (tally.env_time, tally.inference_time)
        discarded = {"env_error": sum(end.length for end in tally.lost)} if tally.lost else {}
        return Sample(rollouts, tally.episodes, env_steps, tally.agent_steps, earned, *times, discarded)

    def _slots_of(self, policy: int) -> IntArray:
        slots = np.array(sorted(self._live), np.int64)
        mine: IntArray = slots[self._policy_of[slots] == policy]
        return mine

    def _write_state0(self, policy: int, lanes: Lanes) -> None:
        """Row 0 of the next fragment meets the next state if it waits, and met the last one otherwise."""
        table, slots = self._states[policy], lanes.live_slots()
        for rows in self._pending:
            if rows.policy == policy:
                put(table["last"], rows.slots, take(table["next"], rows.slots))
        lanes.write_state0(slots, take(table["last"], slots))

    def _grow(self, slots: int) -> None:
        more = slots - len(self._policy_of)
        self._policy_of = np.concatenate([self._policy_of, np.full(more, -1, np.int64)])
        for lanes in self._lanes:
            if lanes is not None:
                lanes.grow_slots(more)

        def longer(column: Array) -> Array:
            return np.concatenate([column, np.zeros((more, *column.shape[1:]), column.dtype)])

        self._identity, self._returns = longer(self._identity), longer(self._returns)
        self._states = [None if table is None else map_leaves(longer, table) for table in self._states]

    def _state_table(self, policy: int, example: Tree) -> Tree:
        if self._states[policy] is None:
            size = len(self._policy_of)
            self._states[policy] = map_leaves(lambda a: np.zeros((size, *a.shape[1:]), a.dtype), example)
        return self._states[policy]

    def get_state(self) -> State:
        """All that the next fragment depends on; between two fragments only.

        Raises:
            RuntimeError: a fragment was begun and never closed.
        """
        if self.cut_short:
            raise RuntimeError(CUT_SHORT)
        slots = list(self._live)
        return {
            "env": self.env.get_state(),
            "rng": self.rng.bit_generator.state,
            "live": [[*info] for info in self._live.values()],
            "policy_of": [self._ids[index] for index in self._policy_of[slots]],
            "returns": self._returns[slots],
            "recurrent": [
                None if t is None else take(t, self._slots_of(i)) for i, t in enumerate(self._states)
            ],
            "lanes": [None if lanes is None else lanes.get_state() for lanes in self._lanes],
            "episodes": [asdict(record) for record in self._episodes.values()],
            "agents": list(self._agents),
            **{"started": self._started, "sequence": self._sequence, "reward": self._tally.reward},
            "hooks": [] if self.hooks is None else self.hooks.get_state(),
        }

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly."""
        notes = self.env.set_state(state["env"])
        self.rng.bit_generator.state = state["rng"]
        self._live, self._pending, self._states = {}, [], [None] * len(self._ids)
        self._agents = {agent: index for index, agent in enumerate(state["agents"])}
        infos = [SlotInfo(*values) for values in state["live"]]
        self._open(infos, state["policy_of"])
        self._returns[[info.slot for info in infos]] = state["returns"]
        for index, recurrent in enumerate(state["recurrent"]):
            if recurrent is not None:
                put(self._state_table(index, tupled(recurrent)), self._slots_of(index), tupled(recurrent))
        for index, (lanes, saved) in enumerate(zip(self._lanes, state["lanes"], strict=True)):
            if lanes is not None and saved is not None:  # else its rows are kept from here on
                lanes.set_state(saved)
                if self._states[index] is not None:
                    self._write_state0(index, lanes)
        records = [EpisodeRecord(**values) for values in deepcopy(state["episodes"])]
        self._episodes = {(record.env, record.episode): record for record in records}
        if self.hooks is not None:
            self.hooks.set_state(state["hooks"], infos, self.policy_of)
        self._started, self._sequence = state["started"], int(state["sequence"])
        self.cut_short, self._tally = False, Tally(reward=float(state["reward"]))
        if self._started:
            self._pending = self._resume(self.env.pending())
        return notes

    def _resume(self, steps: Sequence[TimeStep]) -> list[Ready]:
        """Rows that wait are in their lanes, except of episodes begun anew and policies kept anew."""
        ready, renewed = [], []
        for step in steps:
            known = {info.slot for info in step.opened if self._live.get(info.slot) == info}
            mask = np.array([slot in known for slot in step.slot.tolist()], np.bool_)
            for policy, part in self._by_policy(select(step, np.flatnonzero(mask))):
                if (lanes := self._lanes[policy]) is not None and (lanes.lane_of[part.slot] < 0).any():
                    lanes.write(part, self._identity[part.slot], None)
                    if (table := self._states[policy]) is not None:
                        lanes.write_state0(part.slot, take(table["next"], part.slot))
                ready.append(Ready(policy, part.slot, part.obs, part.t))
            fresh = tuple(info for info in step.opened if info.slot not in known)
            if fresh:
                renewed.append(replace(select(step, np.flatnonzero(~mask)), opened=fresh))
        anew = {info.env for step in renewed for info in step.opened}
        for env in sorted(anew & {info.env for info in self._live.values()}):
            self._discard(env)
        return in_order(ready + self._receive(renewed), self._identity, self._edge)

    def adopt(self, *, anew: bool = False) -> None:
        """Take over the env from another sampler that drove it, between fragments.

        What was sampled of episodes that ended meanwhile is dropped from the running fragment.

        Args:
            anew: this one keeps no lanes, and knows nothing of what it saw before.
        """
        steps = self.env.pending()
        if anew:
            self._live, self._episodes, self._pending = {}, {}, []
            if self.hooks is not None:  # nobody is told of what is under way
                waiting = {slot: t for step in steps for slot, t in zip(step.slot, step.t, strict=True)}
                infos = [info for step in steps for info in step.opened if waiting.get(info.slot, 1) > 0]
                self.hooks.set_state([], infos, self.policy_of)
        if steps:  # else nobody has polled it yet
            self._pending, self._started = self._resume(steps), True

    def _under_way(self, ready: Sequence[Ready]) -> set[tuple[int, int]]:
        """(env, episode) of the rows that are not the first of their episodes; of all, where others act."""
        if self.driven:
            return set(self._episodes)
        slots = [slot for rows in ready for slot in rows.slots[rows.t > 0].tolist()]
        return {(self._live[slot].env, self._live[slot].episode) for slot in slots}

    def _lose(self, lost: Sequence[EpisodeEnd]) -> None:
        """Envs failed, and their episodes will not come to an end."""
        for end in lost:
            self._discard(end.env)
            before = self._edge[end.env, 1] if self._edge[end.env, 0] == end.episode else 0
            self._tally.lost.append(end._replace(length=end.length - int(before)))

    def _discard(self, env: int) -> None:
        """An env's episode was lost: who is in it has its rows in this fragment unfilled, and no record."""
        for info in [info for info in self._live.values() if info.env == env]:
            if (lanes := self._lanes[self._policy_of[info.slot]]) is not None:
                lanes.discard(info.slot)
            self._tally.reward += float(self._returns[info.slot])
            del self._live[info.slot]
        for key in [key for key in self._episodes if key[0] == env]:
            del self._episodes[key]
        if self.hooks is not None:
            self.hooks.lost(env)
