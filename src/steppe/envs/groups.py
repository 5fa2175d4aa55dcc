"""Groups of agents that observe and act as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from gymnasium import spaces

from steppe.envs.guards import is_flag, is_reward, show
from steppe.envs.multi_agent import ALL, MultiAgentEnv, seeded_reset
from steppe.errors import ConfigError, EnvError
from steppe.types import AgentID

_INFO_KEYS = ("individual_rewards", "_group_rewards")


@final
class AgentGroups(MultiAgentEnv):
    """An env some of whose agents are in groups; see :meth:`MultiAgentEnv.with_agent_groups`.

    Args:
        env: the env of single agents.
        groups: lists of agents by name of the group.
        obs_space: of every group, a Tuple space; by default what the members have, in the order of the list.
        act_space: likewise.

    Attributes:
        env: the env of single agents.
        groups: the lists of agents.

    Raises:
        ConfigError: an agent is in two groups or unknown, or a space is no Tuple of one part per member.
    """

    def __init__(
        self,
        env: MultiAgentEnv,
        groups: Mapping[AgentID, Sequence[AgentID]],
        obs_space: Any = None,
        act_space: Any = None,
    ) -> None:
        self.env, self.groups = env, {group: list(members) for group, members in groups.items()}
        self._group_of: dict[AgentID, AgentID] = {}
        for group, members in self.groups.items():
            if not members:
                raise ConfigError(f"group {group!r} has no members")
            for agent in members:
                self._admit(group, agent)
            for name, space in (("obs_space", obs_space), ("act_space", act_space)):
                parts = getattr(space, "spaces", None)
                if space is not None and (not isinstance(parts, tuple | list) or len(parts) != len(members)):
                    want = f"a Tuple space of the {len(members)} members' spaces"
                    raise ConfigError(f"{name} of group {group!r} is {want}, not {show(space)}")
            if group in env.possible_agents and group not in members:
                raise ConfigError(f"group {group!r} has the name of an agent that is not in it")
        self._given = (obs_space, act_space)
        alone = {a: s for a, s in (env.observation_spaces or {}).items() if a not in self._group_of}
        self.observation_spaces = {group: self.get_observation_space(group) for group in self.groups} | alone
        others = [agent for agent in env.possible_agents if agent not in self._group_of]
        self.possible_agents = [*self.groups, *others] if env.possible_agents else []
        self._terminated: dict[AgentID, bool] = {}  # of the members that have ended

    def _admit(self, group: AgentID, agent: AgentID) -> None:
        known = self.env.possible_agents or list(self.env.observation_spaces or ())
        if agent in self._group_of:
            both = f"{self._group_of[agent]!r} and {group!r}"
            raise ConfigError(f"agent {agent!r} is named twice, in groups {both}: an agent is in one group")
        if known and agent not in known:
            raise ConfigError(
                f"group {group!r} has agent {agent!r}, which is none of {', '.join(map(repr, known))}"
            )
        self._group_of[agent] = group

    @property
    def unwrapped(self) -> Any:
        """The innermost env."""
        return self.env.unwrapped

    @property
    def shown_as(self) -> str:
        """What messages call the innermost env."""
        return self.env.shown_as

    def get_observation_space(self, agent: AgentID) -> Any:
        """A Tuple for a group."""
        return self._tuple(agent, self._given[0], self.env.get_observation_space)

    def get_action_space(self, agent: AgentID) -> Any:
        """A Tuple for a group."""
        return self._tuple(agent, self._given[1], self.env.get_action_space)

    def _tuple(self, agent: AgentID, given: Any, ask: Callable[[AgentID], Any]) -> Any:
        if agent not in self.groups:
            return ask(agent)
        parts = [] if given is not None else [ask(member) for member in self.groups[agent]]
        return given if given is not None or None in parts else spaces.Tuple(parts)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        self._terminated.clear()
        keywords: dict[str, Any] = {} if options is None else {"options": options}
        result = self.env.reset(**keywords) if seed is None else seeded_reset(self.env, seed, **keywords)
        if isinstance(result, dict):
            return self._observed(result, set())
        if not isinstance(result, tuple) or {*map(type, result)} != {dict}:
            return result  # to be judged where the env is
        return self._observed(result[0], set()), self._informed(result[1], {})

    def step(self, action_dict: dict[Any, Any]) -> Any:
        """Step the env with the actions of all members."""
        actions: dict[AgentID, Any] = {}
        for agent, action in action_dict.items():
            if agent in self.groups:
                actions.update(zip(self.groups[agent], action, strict=True))
            else:
                actions[agent] = action
        result = self.env.step(actions)
        if (
            not isinstance(result, tuple | list)
            or {*map(type, result)} != {dict}
            or len(result) not in (4, 5)
        ):
            return result  # to be judged where the env is
        obs, rewards, *flags, infos = result
        ended, over = self._flagged(flags)
        return self._observed(obs, over), self._earned(rewards), *ended, self._informed(infos, rewards)

    def _flagged(self, flags: Sequence[dict[AgentID, Any]]) -> tuple[list[dict[AgentID, Any]], set[AgentID]]:
        """The flags of groups instead of members', and which groups end here."""
        before = {group for group in self.groups if self._all_ended(group)}
        for terminated, values in zip((True, False), flags, strict=False):
            for agent, flag in values.items():
                if agent in self._group_of and is_flag(flag) and flag:
                    self._terminated[agent] = self._terminated.get(agent, False) or terminated
        over = {group for group in self.groups if self._all_ended(group)} - before
        shown = [self._others(values, is_flag) for values in flags]
        for group in over:  # a group has terminated if all have; else there was more to come
            whole = all(self._terminated[member] for member in self.groups[group])
            shown[0 if whole or len(shown) == 1 else 1][group] = True
        if any(is_flag(values.get(ALL)) and values[ALL] for values in flags):
            over = set(self.groups)
        return shown, over

    def _all_ended(self, group: AgentID) -> bool:
        return all(member in self._terminated for member in self.groups[group])

    def _others(self, values: Mapping[AgentID, Any], good: Callable[[Any], bool]) -> dict[AgentID, Any]:
        """What is of no group; bad values of members, too, to be refused by their names."""
        of = self._group_of
        return {agent: value for agent, value in values.items() if agent not in of or not good(value)}

    def _observed(self, obs: dict[AgentID, Any], over: set[AgentID]) -> dict[AgentID, Any]:
        """Groups stand where their first member stood; one that ends needs no last observation."""
        grouped: dict[AgentID, Any] = {}
        for agent, value in obs.items():
            group = self._group_of.get(agent)
            if group is None:
                grouped[agent] = value
            elif group not in grouped:
                missing = [member for member in self.groups[group] if member not in obs]
                if not missing:
                    grouped[group] = tuple(obs[member] for member in self.groups[group])
                elif group not in over:
                    raise EnvError(
                        "E408",
                        f"group {group!r}: {missing[0]!r} has no observation, but {agent!r} has; give one to "
                        "all members or to none, or leave them ungrouped",
                        env_class=self.shown_as,
                        agent=group,
                    )
        return grouped

    def _earned(self, rewards: dict[AgentID, Any]) -> dict[AgentID, Any]:
        earned = self._others(rewards, is_reward)
        for agent, reward in rewards.items():
            if agent in self._group_of and agent not in earned:
                group = self._group_of[agent]
                earned[group] = earned.get(group, 0.0) + reward
        return earned

    def _informed(self, infos: dict[AgentID, Any], rewards: dict[AgentID, Any]) -> dict[AgentID, Any]:
        told = self._others(infos, lambda info: isinstance(info, dict))
        for group, members in self.groups.items():
            if any(member in rewards for member in members):
                single = [rewards.get(member, 0.0) for member in members]
                told[group] = dict.fromkeys(_INFO_KEYS, single)
            if any(infos.get(member) for member in members):
                told.setdefault(group, {})["individual_infos"] = [infos.get(member, {}) for member in members]
        return told

    def render(self) -> Any:
        """Draw the env."""
        return self.env.render()

    def close(self) -> None:
        """Close the env."""
        self.env.close()
