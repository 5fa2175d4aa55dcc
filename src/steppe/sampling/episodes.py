"""Episodes as hooks see them: followed row by row, where a hook of episodes is set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, final

import numpy as np

from steppe.sampling.callbacks import OF_EPISODES, Callbacks, Hook, Surroundings, hook_of
from steppe.sampling.metrics import EpisodeRecord, Sample
from steppe.spaces import map_leaves, take
from steppe.types import SINGLE_AGENT, AgentID, Rollout, SlotInfo, State, TimeStep, Tree

logger = logging.getLogger("steppe")


@final
class Episode:
    """A running episode, or one that just ended, as hooks see it.

    Attributes:
        id: unique in the run; those of evaluations begin with "e".
        env_index: of its env in the runner.
        worker_index: of the runner.
        number: counts the episodes of that env.
        length: env steps so far.
        total_reward: of all agents so far.
        agent_rewards: by agent id.
        user_data: yours: what one hook wants to tell another.
        custom_metrics: numbers by name; at the end of the episode they go into the result.
    """

    def __init__(self, worker: int, env: int, episode: int, place: str = "") -> None:
        self.id = f"{place}{worker}-{env}-{episode}"
        self.env_index, self.worker_index, self.number = env, worker, episode
        self.length, self.total_reward = 0, 0.0
        self.agent_rewards: dict[AgentID, float] = {}
        self.user_data: dict[str, Any] = {}
        self.custom_metrics: dict[str, float] = {}
        self._rows: dict[AgentID, tuple[Tree, int]] = {}
        self._infos: dict[AgentID, dict[str, Any]] = {}
        self._policies: dict[AgentID, str] = {}

    def get_agents(self) -> list[AgentID]:
        """Agents that have appeared so far."""
        return list(self._policies)

    def policy_for(self, agent_id: AgentID = SINGLE_AGENT) -> str:
        """Id of the policy that acts for an agent."""
        return self._policies[self._known(agent_id)]

    def last_info_for(self, agent_id: AgentID = SINGLE_AGENT) -> dict[str, Any]:
        """What the env told with the agent's newest observation; empty if nothing."""
        return self._infos.get(self._known(agent_id), {})

    def last_observation_for(self, agent_id: AgentID = SINGLE_AGENT) -> Tree:
        """The agent's newest observation, as the env's spaces lay it out in arrays."""
        if self._known(agent_id) not in self._rows:
            raise KeyError(f"agent {agent_id!r} was not observed since the run was resumed")
        return take(*self._rows[agent_id])

    def enter(self, agent: AgentID, policy: str) -> None:
        """Somebody appears."""
        self._policies[agent] = policy

    def see(self, info: SlotInfo, step: TimeStep, row: int, obs: Tree) -> None:
        """Take in one row of one agent; ``obs`` is the step's column, which nobody writes to."""
        agent, reward = info.agent, float(step.reward[row])
        self.length = max(self.length, int(step.t[row]))
        self.total_reward += reward
        self.agent_rewards[agent] = self.agent_rewards.get(agent, 0.0) + reward
        self._rows[agent] = obs, row
        self._infos[agent] = step.info.get(info.slot, {})

    def get_state(self) -> State:
        """What was counted, and of ``user_data`` what can be stored; the rest is said."""
        kept = {key: value for key, value in self.user_data.items() if _storable({key: value})}
        for key in self.user_data.keys() - kept.keys():
            logger.warning("episode.user_data[%r] is nothing that a checkpoint can hold: left out", key)
        counted: State = {"length": self.length, "total_reward": self.total_reward}
        counted["agent_rewards"] = [[agent, reward] for agent, reward in self.agent_rewards.items()]
        about = {"env": self.env_index, "episode": self.number, "custom_metrics": self.custom_metrics}
        return deepcopy({**counted, **about, "user_data": kept})

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`; rows and infos come with the next poll."""
        for name in ("length", "total_reward", "custom_metrics", "user_data"):
            setattr(self, name, deepcopy(state[name]))
        self.agent_rewards = {agent: reward for agent, reward in state["agent_rewards"]}

    def _known(self, agent_id: AgentID) -> AgentID:
        if agent_id not in self._policies:
            raise KeyError(f"no agent {agent_id!r} in episode {self.id}; there are {list(self._policies)}")
        return agent_id


@final
class EpisodeHooks:
    """Follows the rows of one sampler and calls the hooks of its episodes.

    Args:
        callbacks: whose overrides are called.
        around: what they are given.
        worker_index: of the runner.
    """

    def __init__(self, callbacks: Sequence[Callbacks], around: Surroundings, worker_index: int) -> None:
        self._around, self._index = around, worker_index
        self._start, self._step, self._end, self._fragment, self._trajectory = (
            hook_of(callbacks, name) for name in OF_EPISODES
        )
        self._place = "e" if around.worker.in_evaluation else ""
        self._live: dict[int, SlotInfo] = {}
        # None: it was under way before anybody looked, so nobody is told of it.
        self._open: dict[tuple[int, int], Episode | None] = {}
        self._ended: dict[tuple[int, int], Episode] = {}

    def received(
        self, steps: Sequence[TimeStep], policy_of: Callable[[int], str], records: Sequence[EpisodeRecord]
    ) -> None:
        """Call what the rows of one poll make due: steps first, then ends, then starts.

        Args:
            steps: of the poll.
            policy_of: id of the policy that acts for a slot.
            records: of ended episodes, which get their metrics; this poll's are the last ones.
        """
        begun: dict[tuple[int, int], Episode] = {}
        for info in [info for step in steps for info in step.opened]:
            key = info.env, info.episode
            if key not in self._open:
                self._open[key] = begun[key] = Episode(self._index, *key, self._place)
            self._live[info.slot] = info
            if (episode := self._open[key]) is not None:
                episode.enter(info.agent, policy_of(info.slot))
        stepped: dict[tuple[int, int], Episode] = {}
        for step in steps:
            self._see(step, begun, stepped)
        for episode in stepped.values():
            self._call(self._step, episode)
        for key in [(end.env, end.episode) for step in steps for end in step.closed]:
            if (ended := self._open.pop(key, None)) is not None:
                record = next(r for r in reversed(records) if (r.env, r.episode) == key)
                record.custom_metrics = ended.custom_metrics  # the same dict: hooks may still add to it
                self._ended[key] = ended
                ended.length = record.length
                self._call(self._end, ended)
        for episode in begun.values():
            self._call(self._start, episode)

    def _see(
        self,
        step: TimeStep,
        begun: Mapping[tuple[int, int], Episode],
        stepped: dict[tuple[int, int], Episode],
    ) -> None:
        """Take in the rows of one TimeStep; ``stepped`` gets the episodes that they belong to."""
        obs, final = map_leaves(np.copy, step.obs), step.terminated | step.truncated
        for row, slot in enumerate(step.slot.tolist()):
            info = self._live.pop(slot) if final[row] else self._live[slot]
            key = info.env, info.episode
            if (episode := self._open[key]) is not None:
                episode.see(info, step, row, obs)
                if key not in begun:
                    stepped[key] = episode

    def sampled(self, sample: Sample) -> None:
        """Call the hooks of a complete fragment."""
        if self._trajectory is not None:
            self._postprocess(sample.rollouts, self._trajectory)
        if self._fragment is not None:
            self._fragment(worker=self._around.worker, samples=sample)
        self._ended = {}

    def moved(self, infos: Sequence[SlotInfo], policy_of: Callable[[int], str]) -> None:
        """Other policies act for some agents from now on."""
        for info in infos:
            if (episode := self._open.get((info.env, info.episode))) is not None:
                episode.enter(info.agent, policy_of(info.slot))

    def lost(self, env: int) -> None:
        """The running episode of an env will not come to its end."""
        self._live = {slot: info for slot, info in self._live.items() if info.env != env}
        self._open = {key: episode for key, episode in self._open.items() if key[0] != env}

    def get_state(self) -> list[State]:
        """The open episodes; of ``user_data`` what a checkpoint can hold."""
        return [episode.get_state() for episode in self._open.values() if episode is not None]

    def set_state(
        self, state: Sequence[State], live: Sequence[SlotInfo], policy_of: Callable[[int], str]
    ) -> None:
        """Go on from :meth:`get_state`, with the slots that are live."""
        self._live, self._ended = {info.slot: info for info in live}, {}
        self._open = dict.fromkeys((info.env, info.episode) for info in live)
        for saved in state:
            key = saved["env"], saved["episode"]
            self._open[key] = episode = Episode(self._index, *key, self._place)
            episode.set_state(saved)
            for info in live:
                if (info.env, info.episode) == key:
                    episode.enter(info.agent, policy_of(info.slot))

    def _call(self, hook: Hook | None, episode: Episode) -> None:
        if hook is not None:
            hook(**self._around._asdict(), episode=episode, env_index=episode.env_index)

    def _postprocess(self, rollouts: Sequence[Rollout], hook: Hook) -> None:
        from steppe.sampling.trajectories import batch_of, trajectories, write_back  # for this one hook

        found = [(rollout, part) for rollout in rollouts for part in trajectories(rollout)]
        batches = [batch_of(rollout, part) for rollout, part in found]
        together: dict[tuple[int, int], dict[AgentID, Any]] = {}
        for (rollout, part), batch in zip(found, batches, strict=True):
            everyone = together.setdefault((part.env, part.episode), {})
            policy = self._around.policies[rollout.policy]
            everyone[part.agent] = (
                policy,
                {name: map_leaves(np.copy, column) for name, column in batch.items()},
            )
        for (rollout, part), batch in zip(found, batches, strict=True):
            key = part.env, part.episode
            episode = self._ended.get(key) or self._open.get(key)
            if episode is None:
                continue
            hook(
                worker=self._around.worker,
                episode=episode,
                agent_id=part.agent,
                policy_id=rollout.policy,
                policies=self._around.policies,
                postprocessed_batch=batch,
                original_batches=together[key],
            )
            write_back(rollout, part, batch, self._around.policies[rollout.policy])


def _storable(value: Any, depth: int = 0) -> bool:
    """Whether a checkpoint can hold it; what is nested deeper than 20 may go in circles."""
    if type(value) is dict:
        items = value.items()
        return depth < 20 and all(type(key) is str and _storable(item, depth + 1) for key, item in items)
    if type(value) in (list, tuple):
        return depth < 20 and all(_storable(item, depth + 1) for item in value)
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return value.dtype.kind in "biuf"
    return value is None or type(value) in (bool, int, float, str)
