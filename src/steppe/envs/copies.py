"""Envs of one agent as an env of many: each agent has a copy to itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np

from steppe.containers import copied
from steppe.envs.context import EnvContext
from steppe.envs.multi_agent import ALL, MultiAgentEnv
from steppe.envs.registry import Creator, creator_of, env_name, is_multi_agent, is_vector
from steppe.errors import ConfigError


def make_multi_agent(env: Any) -> Callable[..., MultiAgentEnv]:
    """A creator of envs in which agents 0 to n - 1 live in copies of ``env``, each by itself.

    The n is ``env_config["num_agents"]``, 2 if it is not there; the rest of ``env_config`` is for the copies.
    An agent ends when its copy does, and the episode when all have ended.

    Args:
        env: any spelling of an env of one agent.

    Raises:
        ConfigError: the spelling is unknown.
    """
    creator, name = creator_of(env), env_name(env)

    def create(config: Mapping[str, Any] | None = None) -> MultiAgentEnv:
        return Copies(creator, name, config or {})

    create.__name__ = f"{name}-agents"
    return create


@final
class Copies(MultiAgentEnv):
    """See :func:`make_multi_agent`.

    Attributes:
        envs: the copies, by agent.

    Raises:
        ConfigError: ``num_agents`` is below 1, or the copies are no envs of one agent.
    """

    def __init__(self, creator: Creator, name: str, config: Mapping[str, Any]) -> None:
        context = config if isinstance(config, EnvContext) else EnvContext(config)
        rest = {key: value for key, value in context.items() if key != "num_agents"}
        n = context.get("num_agents", 2)
        if not isinstance(n, int) or n < 1:
            raise ConfigError(f"num_agents is a whole number from 1, not {n!r}")
        self.envs = [creator(context.copy_with_overrides(copied(rest))) for _ in range(n)]
        if is_vector(self.envs[0]) or is_multi_agent(self.envs[0]):
            raise ConfigError(f"make_multi_agent: {name} is an env of many already; give one of one agent")
        self.possible_agents = list(range(n))
        self.observation_spaces = {i: env.observation_space for i, env in enumerate(self.envs)}
        self.action_spaces = {i: env.action_space for i, env in enumerate(self.envs)}
        self._terminated: dict[int, bool] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all copies, each with a seed of its own."""
        self._terminated.clear()
        results = [
            env.reset(seed=None if seed is None else _word(seed, i), options=options)
            for i, env in enumerate(self.envs)
        ]
        return {i: obs for i, (obs, _) in enumerate(results)}, {
            i: info for i, (_, info) in enumerate(results)
        }

    def step(self, action_dict: dict[Any, Any]) -> Any:
        """Step the copies of the agents that act."""
        obs: dict[Any, Any] = {}
        rewards, terminateds, truncateds, infos = obs.copy(), obs.copy(), obs.copy(), obs.copy()
        for agent, action in action_dict.items():
            seen, rewards[agent], terminated, truncated, infos[agent] = self.envs[agent].step(action)
            obs[agent], terminateds[agent], truncateds[agent] = seen, terminated, truncated
            if terminated or truncated:
                self._terminated[agent] = bool(terminated)
        over = len(self._terminated) == len(self.envs)
        terminateds[ALL] = over and all(self._terminated.values())
        truncateds[ALL] = over and not terminateds[ALL]
        return obs, rewards, terminateds, truncateds, infos

    def render(self) -> Any:
        """Draw the first copy."""
        return self.envs[0].render()

    def close(self) -> None:
        """Close all copies."""
        for env in self.envs:
            env.close()


def _word(seed: int, i: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(i,)).generate_state(1)[0]) >> 1
