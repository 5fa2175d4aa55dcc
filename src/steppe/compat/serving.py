"""``PolicyServerInput`` and ``RandomMultiAgentEnv``: how programs for RLlib 1.x serve a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from gymnasium import spaces

from steppe.config import say_once
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.serving.env import PolicyServer


def policy_server_input(
    ioctx: Any,
    address: str = "127.0.0.1",
    port: int = 9900,
    idle_timeout: float | None = None,
    **accepted: Any,
) -> PolicyServer:
    """What ``config["input"]`` is to return: ``lambda ioctx: PolicyServerInput(ioctx, host, port)``.

    Args:
        ioctx: accepted.
        address: a host; RLlib's own programs name ``localhost``.
        port: 0 for one that is free.
        idle_timeout: accepted: RLlib's says how long it waits before it looks again.
        accepted: ``max_sample_queue_size``; without effect.
    """
    for name in accepted:
        say_once(f"{name} is accepted and has no effect: what waits for the learner is bounded in bytes")
    return PolicyServer("127.0.0.1" if address == "localhost" else address, port)


@final
class RandomMultiAgentEnv(MultiAgentEnv):
    """Agents that observe and earn by chance: a stub of their spaces for a policy server.

    Args:
        config: observation and action space by agent, ``{"goalie": (Box(...), Discrete(3))}``; or as RLlib's
            programs give them, ``observation_space`` and ``action_space``, the same for ``num_agents`` agents
            0, 1, ..., with ``reward_space``, ``p_done`` and ``max_episode_len``.
    """

    def __init__(self, config: Mapping[Any, Any] | None = None) -> None:
        given = dict(config or {})
        about: dict[str, Any] = {"num_agents": 1, "reward_space": None, "max_episode_len": None}
        about |= {"p_done": 0.1, "observation_space": spaces.Discrete(2), "action_space": spaces.Discrete(2)}
        by_agent = given if given and not given.keys() & about.keys() else {}
        about |= {} if by_agent else given
        if not by_agent:
            pair = about["observation_space"], about["action_space"]
            by_agent = dict.fromkeys(range(about["num_agents"]), pair)
        self.possible_agents = list(by_agent)
        self.observation_spaces = {agent: pair[0] for agent, pair in by_agent.items()}
        self.action_spaces = {agent: pair[1] for agent, pair in by_agent.items()}
        self._rewards: Any = about["reward_space"] or spaces.Box(-1.0, 1.0, (), np.float32)
        self._p_done, self._longest, self._t = about["p_done"], about["max_episode_len"], 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Observations of everyone."""
        self._t = 0
        self._rewards.seed(seed)
        return self._observed(), {}

    def step(self, action_dict: dict[Any, Any]) -> Any:
        """The next ones, until chance or the longest length ends the episode for all."""
        self._t += 1
        chance = self._rewards.np_random.random() < self._p_done
        rewards = {agent: float(self._rewards.sample()) for agent in action_dict}
        long = self._longest is not None and self._t >= self._longest
        return self._observed(), rewards, {"__all__": bool(chance)}, {"__all__": bool(long)}, {}

    def _observed(self) -> dict[Any, Any]:
        return {agent: space.sample() for agent, space in (self.observation_spaces or {}).items()}
