"""Envs of many agents, as users write them: dicts by agent, in which agents come, skip turns and go."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from steppe.envs.guards import show
from steppe.envs.replay import seed_spaces
from steppe.types import AgentID

ALL = "__all__"
"""The key of the flags that end an episode for everyone."""
LATER: Any = object()
"""What our own envs return from ``reset`` where the first observations come later."""


class MultiAgentEnv(ABC):
    """Subclass it to write an env of many agents. An agent is named by a text or a whole number.

    Only the agents in the dict of observations act next; agents may come, skip turns and go at any time. What
    an agent earns while it has no observation is summed until its next one, or its end. The older spelling is
    understood: a ``reset()`` that returns the observations alone, and a ``step`` of four dicts
    (observations, rewards, dones, infos).

    Spaces are said in one of these ways; without any, policies have to name theirs:

    - ``observation_space`` and ``action_space``, shared by all agents;
    - ``observation_spaces`` and ``action_spaces``, dicts by agent; the two above may be such dicts, too, or a
      ``Dict`` space whose keys are exactly the ``possible_agents``;
    - the methods ``get_observation_space(agent)`` and ``get_action_space(agent)``.

    A subclass that has ``get_state()``, which returns JSON values and numpy arrays, and
    ``set_state(state)`` is resumed by them; any other by playing its episode again.

    Attributes:
        possible_agents: everyone who may ever appear; empty if that is not known.
        observation_space: see above; likewise ``action_space``, ``observation_spaces``, ``action_spaces``.
    """

    possible_agents: Sequence[AgentID] = ()
    observation_space: Any = None
    action_space: Any = None
    observation_spaces: Mapping[Any, Any] | None = None
    action_spaces: Mapping[Any, Any] | None = None

    @abstractmethod
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; a seed comes with the first one only.

        Returns:
            Observations and infos by agent.
        """

    @abstractmethod
    def step(self, action_dict: dict[Any, Any]) -> Any:
        """Go on with an action for each agent that had an observation; ``{}`` if none had.

        Returns:
            Observations, rewards, terminated and truncated flags, and infos by agent. A flag ``"__all__"``
            ends the episode. The observation of an agent that ends here is its last one, and may be left out.
        """

    def get_observation_space(self, agent: AgentID) -> Any:
        """What ``agent`` observes; None if this env does not say."""
        return self._space(agent, self.observation_spaces, self.observation_space)

    def get_action_space(self, agent: AgentID) -> Any:
        """What ``agent`` does; None if this env does not say."""
        return self._space(agent, self.action_spaces, self.action_space)

    def _space(self, agent: AgentID, own: Mapping[Any, Any] | None, shared: Any) -> Any:
        if own is not None:
            return own.get(agent)
        if isinstance(shared, Mapping):  # Gymnasium's Dict space is one, too
            named = list(shared)
            if isinstance(shared, dict) or (named and set(named) == set(self.possible_agents)):
                return shared[agent] if agent in named else None
        return shared

    @property
    def unwrapped(self) -> Any:
        """The innermost env."""
        return self

    @property
    def shown_as(self) -> str:
        """What messages call this env: its class."""
        return type(self.unwrapped).__name__

    def with_agent_groups(self, groups: Any, *spaces: Any, **named: Any) -> MultiAgentEnv:
        """This env with groups of agents that act as one; ``env.with_agent_groups(env, groups)`` works, too.

        A group observes and does what its members do, as tuples in their order. It earns the sum of their
        rewards (the single ones are in its info, as ``"individual_rewards"``), and ends when all have ended.

        Args:
            groups: lists of agents by name of the group; other agents stay as they are.
            spaces: ``obs_space`` and ``act_space`` of the groups, Tuple spaces; by default what members have.
            named: the same by name.

        Raises:
            ConfigError: an agent is in two groups or unknown, or a space is no Tuple.
        """
        from steppe.envs.groups import AgentGroups

        if groups is self:
            groups, spaces = spaces[0], spaces[1:]
        return AgentGroups(self, groups, *spaces, **named)

    def seed(self, seed: int | None = None) -> Any:
        """Seed an env whose ``reset`` takes no seed."""
        return None

    def render(self) -> Any:
        """Draw the env, if it can be drawn."""
        return None

    def close(self) -> None:
        """Release everything."""
        return None


def seeded_reset(env: MultiAgentEnv, seed: int, **options: Any) -> Any:
    """The first reset: seeds the spaces, and calls ``seed()`` before it where ``reset`` takes no seed."""
    seed_spaces(env.unwrapped, seed)
    parameters = inspect.signature(env.reset).parameters.values()
    if any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters):
        return env.reset(seed=seed, **options)
    env.seed(seed)
    return env.reset(**options)


def misnamed(agent: Any) -> str | None:
    """What is wrong with the name of an agent; None if nothing is."""
    if isinstance(agent, (str, int)) and not isinstance(agent, bool) and agent != ALL:
        return None
    return f'{show(agent)}; name agents by texts (except "__all__") or by whole numbers, as int(agent)'
