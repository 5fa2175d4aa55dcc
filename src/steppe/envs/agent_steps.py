"""What multi-agent envs return: taken apart by agent, judged, and refused with the name of the agent."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from steppe.envs.guards import Guard, Place, show
from steppe.envs.multi_agent import ALL, MultiAgentEnv, misnamed
from steppe.errors import EnvError
from steppe.types import AgentID, State

ByAgent = dict[AgentID, Any]

_RESULTS = ("obs", "rewards", "terminateds", "truncateds", "infos")
_MOST_SHOWN = 8  # agents whose actions, or names, a message shows


@dataclass(slots=True)
class Episode:
    """What one env has under way.

    Attributes:
        env: vector index.
        number: counts the episodes of this env.
        t: env steps taken.
        live: slots of the agents that have had an observation and have not ended, in the order they came.
        ended: agents that have ended, as keys.
        known: the keys that flags may have at no cost: the live agents and ``"__all__"``.
        turn: who had an observation in the newest step, and acts next.
        seats: their slots.
        early: what agents earned before their first observation.
        tenants: ``(slot, agent, space pair)`` of everyone who came, in that order.
        actions: what led to the newest step, for messages.
    """

    env: int
    number: int
    t: int = 0
    live: dict[AgentID, int] = field(default_factory=dict)
    ended: dict[AgentID, None] = field(default_factory=dict)
    known: set[AgentID] = field(default_factory=lambda: {ALL})
    turn: list[AgentID] = field(default_factory=list)
    seats: list[int] = field(default_factory=list)
    early: dict[AgentID, float] = field(default_factory=dict)
    tenants: list[tuple[int, AgentID, int]] = field(default_factory=list)
    actions: ByAgent = field(default_factory=dict)

    def acts_next(self, turn: list[AgentID]) -> None:
        """These live agents have an observation."""
        self.turn, self.seats = turn, [self.live[agent] for agent in turn]

    def place(self, agent: AgentID | None = None) -> Place:
        """Where the env is, for messages."""
        actions: Any = None
        if agent is not None and agent != ALL:
            return Place(self.env, self.number, self.t, self.actions.get(agent), agent)
        if len(self.actions) > _MOST_SHOWN:
            actions = f"the actions of {len(self.actions)} agents"
        elif self.actions:
            actions = {a: v.item() if isinstance(v, np.generic) else v for a, v in self.actions.items()}
        return Place(self.env, self.number, self.t, actions)

    def save(self) -> State:
        """All but the messages, as JSON values."""
        pairs = {"live": self.live.items(), "early": self.early.items(), "tenants": self.tenants}
        told = {name: [[*one] for one in value] for name, value in pairs.items()}
        return {"number": self.number, "t": self.t, "ended": [*self.ended], "turn": [*self.turn], **told}

    @staticmethod
    def load(env: int, saved: State) -> Episode:
        """What :meth:`save` gave."""
        live = {agent: slot for agent, slot in saved["live"]}
        episode = Episode(env, saved["number"], saved["t"], live, dict.fromkeys(saved["ended"]))
        episode.known |= live.keys()
        episode.acts_next(list(saved["turn"]))
        episode.early = {agent: reward for agent, reward in saved["early"]}
        episode.tenants = [(slot, agent, space) for slot, agent, space in saved["tenants"]]
        return episode

    def same(self, other: Episode) -> bool:
        """Whether both tell the same story."""
        return self.save() == other.save()


def as_before(episode: Episode, result: Any) -> bool:
    """Whether just those who acted are back, in the same order, and nobody ended: the common case.

    This runs for every step of every env, so it asks what costs least.
    """
    if type(result) is not tuple or len(result) != 5:
        return False
    obs, rewards, terminateds, truncateds, infos = result
    if not type(obs) is type(rewards) is type(terminateds) is type(truncateds) is type(infos) is dict:
        return False
    turn = episode.turn
    if not turn or list(obs) != turn or list(rewards) != turn or ALL not in terminateds:
        return False
    for flags in (terminateds, truncateds):
        for flag in flags.values():
            if flag is not False and (type(flag) is not np.bool_ or flag):
                return False
    for info in infos.values():
        if type(info) is not dict:
            return False
    return terminateds.keys() <= episode.known and truncateds.keys() <= episode.known


def _near(agent: AgentID, others: Iterable[AgentID]) -> str:
    near = difflib.get_close_matches(repr(agent), map(repr, others), n=1)
    return f"; did you mean {near[0]}?" if near else ""


@final
class Judge:
    """Takes results apart.

    Args:
        guard: counts what is odd, and judges values.
        envs: whose ``possible_agents`` may be named before they come.
    """

    def __init__(self, guard: Guard, envs: Sequence[MultiAgentEnv]) -> None:
        self._guard = guard
        self._possible = [dict.fromkeys(env.possible_agents) for env in envs]

    def expect(self, env: int, agents: Iterable[AgentID]) -> None:
        """Agents come that an env does not name in its ``possible_agents``, if it names any."""
        if self._possible[env]:
            self._possible[env] |= dict.fromkeys(agents)

    def called(self, episode: Episode, call: Callable[[], Any]) -> Any:
        """What a call of an env returns; what it raises gets its place."""
        try:
            return call()
        except Exception as error:
            self.blame(episode, error)
            raise

    def blame(self, episode: Episode, error: Exception) -> None:
        """Give what an env raised a note, to be raised again.

        Raises:
            EnvError: that is what was raised; this one has its place.
        """
        if isinstance(error, EnvError):
            place = episode.place()._replace(agent=error.agent)
            raise self._guard.error(error.code, error.text, place, error.leaf) from error.__cause__
        self._guard.annotate(error, episode.place())

    def first(self, episode: Episode, result: Any) -> tuple[ByAgent, ByAgent]:
        """Observations and infos out of what ``reset`` returned."""
        if isinstance(result, dict):
            self._guard.odd("E401", "reset", episode.env, "reset returned observations without infos")
            return result, {}
        if isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, dict) for part in result):
            return result
        message = f"reset returned {show(result)}; return (observations, infos), two dicts by agent"
        raise self._guard.error("E304", message, episode.place(), "reset")

    def five(self, episode: Episode, result: Any) -> Sequence[ByAgent]:
        """Five dicts out of what ``step`` returned."""
        if isinstance(result, (tuple, list)) and len(result) == 4:
            self._guard.odd("E401", "step", episode.env, "step returned 4 items")
            result = (*result[:2], *split_dones(*result[2:]), result[3])
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            got = f"{len(result)} items" if isinstance(result, (tuple, list)) else show(result)
            message = f"step returned {got}; return ({', '.join(_RESULTS)}), five dicts by agent"
            raise self._guard.error("E301", message, episode.place(), "step")
        for name, part in zip(_RESULTS, result, strict=True):
            if not isinstance(part, dict):
                message = f"{name}: got {show(part)}; return a dict by agent"
                raise self._guard.error("E301", message, episode.place(), name)
        return result

    def newcomer(self, episode: Episode, agent: Any) -> None:
        """Judge who has an observation for the first time.

        Raises:
            EnvError: E405 it has ended, E407 it has no proper name.
        """
        if (text := misnamed(agent)) is not None:
            raise self._guard.error("E407", f"obs has the agent {text}", episode.place(), "obs")
        if agent in episode.ended:
            message = (
                f"obs has agent {agent!r}, which ended before; an agent that comes back needs another id"
            )
            raise self._guard.error("E405", message, episode.place(agent), "obs")
        possible = self._possible[episode.env]
        if possible and agent not in possible:
            text = f"agent {agent!r} came, which is not in possible_agents{_near(agent, possible)}"
            self._guard.odd("E404", "obs", episode.env, text)

    def rewards(self, episode: Episode, rewards: ByAgent) -> list[tuple[AgentID, float]]:
        """What each agent earned, of those that have not ended."""
        agents = list(rewards)
        values = self._guard.rewards(list(rewards.values()), lambda row: episode.place(agents[row]))
        pairs = list(zip(agents, values.tolist(), strict=True))
        if ALL in rewards:
            raise self._guard.error(
                "E407", f"rewards has the agent {misnamed(ALL)}", episode.place(), "rewards"
            )
        self._check_known(episode, agents, "rewards")
        for agent, reward in pairs if episode.ended else ():
            if reward and agent in episode.ended:
                message = (
                    f"rewards has {reward} for agent {agent!r}, which ended before; give it with its end"
                )
                raise self._guard.error("E403", message, episode.place(agent), "rewards")
        return [(agent, reward) for agent, reward in pairs if agent not in episode.ended]

    def flags(self, episode: Episode, name: str, flags: ByAgent) -> dict[AgentID, bool]:
        """The flags of agents that have not ended, and that of all."""
        if {*map(type, flags.values())} <= {bool} and flags.keys() <= episode.known:
            return dict(flags)
        agents = list(flags)
        values = self._guard.flags(name, list(flags.values()), lambda row: episode.place(agents[row]))
        self._check_known(episode, agents, name)
        told = zip(agents, values.tolist(), strict=True)
        return {agent: flag for agent, flag in told if agent not in episode.ended}

    def _check_known(self, episode: Episode, agents: Sequence[AgentID], name: str) -> None:
        strange = {*agents} - episode.known - episode.ended.keys() - self._possible[episode.env].keys()
        if strange:
            agent = next(agent for agent in agents if agent in strange)
            others = [*episode.live, *episode.ended, *self._possible[episode.env]]
            names = list(dict.fromkeys(map(repr, others)))
            more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
            message = (
                f"{name} has agent {agent!r}, which has had no observation and is not in possible_agents; "
                f"there are {', '.join(names[:_MOST_SHOWN]) or 'none yet'}{more}{_near(agent, others)}"
            )
            raise self._guard.error("E404", message, episode.place(agent), name)

    def ends(
        self, episode: Episode, terminateds: ByAgent, truncateds: ByAgent, limit: bool
    ) -> tuple[dict[AgentID, bool], bool]:
        """Who ends in this step (True: terminated, False: truncated), and whether the episode does."""
        terminated = self.flags(episode, "terminateds", terminateds)
        truncated = self.flags(episode, "truncateds", truncateds)
        all_terminated, all_truncated = terminated.pop(ALL, None), truncated.pop(ALL, None)
        ends = {agent: False for agent, flag in truncated.items() if flag}
        ends |= {agent: True for agent, flag in terminated.items() if flag}
        if all_terminated or all_truncated or limit:
            ends |= {agent: bool(all_terminated or ends.get(agent)) for agent in episode.live}
            return ends, True
        if all_terminated is not None or all_truncated is not None:
            return ends, False
        text = 'neither terminateds nor truncateds has "__all__": the episode ends when all its agents have'
        self._guard.odd("E406", "step", episode.env, text)
        return ends, bool(episode.tenants) and episode.live.keys() <= ends.keys()

    def infos(self, episode: Episode, infos: ByAgent) -> dict[int, dict[str, Any]]:
        """By slot, what there is to tell of live agents."""
        if not infos:
            return {}
        agents, live = list(infos), episode.live
        self._guard.infos(list(infos.values()), lambda row: episode.place(agents[row]))
        if not infos.keys() <= live.keys():
            self._lost_infos(episode, infos)
        return {live[agent]: info for agent, info in infos.items() if info and agent in live}

    def _lost_infos(self, episode: Episode, infos: ByAgent) -> None:
        known = episode.live.keys() | episode.ended.keys() | self._possible[episode.env].keys()
        lost = [agent for agent, info in infos.items() if info and agent not in known]
        if lost:
            text = f"infos has {lost[0]!r}, which is no agent that has had an observation: it is lost"
            self._guard.odd("E404", "infos", episode.env, text, len(lost))

    def closed(self, episode: Episode) -> None:
        """An episode is over: nobody comes any more to whom a reward is owed."""
        lost = [agent for agent, reward in episode.early.items() if reward]
        if lost:
            text = f"agent {lost[0]!r} earned something but never had an observation: its reward is lost"
            self._guard.odd("E404", "rewards", episode.env, text, len(lost))


def split_dones(dones: Any, infos: Any) -> tuple[Any, Any]:
    """Flags of old, as terminated and truncated ones: gym told of a time limit in the infos."""
    if not isinstance(dones, dict) or not isinstance(infos, dict):
        return dones, {}
    limited = {a for a, info in infos.items() if isinstance(info, dict) and info.get("TimeLimit.truncated")}
    late = {agent: flag for agent, flag in dones.items() if agent in limited or (limited and agent == ALL)}
    return {agent: flag for agent, flag in dones.items() if agent not in late}, late
