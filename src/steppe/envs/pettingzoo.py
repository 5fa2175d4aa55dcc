"""PettingZoo's two kinds of env as multi-agent envs: agents move by turns, or all together.

Source: PettingZoo's AEC and parallel interfaces (Terry et al., "PettingZoo: Gym for multi-agent reinforcement
learning", NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

from pettingzoo import AECEnv, ParallelEnv

from steppe.envs.guards import own, show
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.errors import ConfigError, SteppeError
from steppe.types import AgentID

_Results = tuple[
    dict[AgentID, Any], dict[AgentID, Any], dict[AgentID, Any], dict[AgentID, Any], dict[AgentID, Any]
]


@final
class _Spaces(Mapping[AgentID, Any]):
    """Spaces by agent, which PettingZoo tells when it is asked; also of agents that it did not announce."""

    def __init__(self, agents: Sequence[AgentID], ask: Callable[[AgentID], Any]) -> None:
        self._agents, self._ask = agents, ask

    def __getitem__(self, agent: AgentID) -> Any:
        return self._ask(agent)

    def __iter__(self) -> Iterator[AgentID]:
        return iter(self._agents)

    def __len__(self) -> int:
        return len(self._agents)


@final
class PettingZooEnv(MultiAgentEnv):
    """A PettingZoo AEC env: its agents move by turns.

    A step takes the action of the agent whose turn it is, and returns the observation of the agent whose turn
    comes next, with all that it earned since its last one. An agent that ended is given its last observation
    when PettingZoo comes to it; the ``None`` that PettingZoo then wants for an action is given here. So an
    episode has one env step for each turn, and an agent's first row comes with its first turn.

    An observation ``{"observation", "action_mask"}`` is passed on as it is.

    Args:
        env: an AEC env, such as ``tictactoe_v3.env()``.

    Attributes:
        env: that env; ``env.state()``, where it has one, is the global state.

    Raises:
        ConfigError: ``env`` is something else.
    """

    def __init__(self, env: Any) -> None:
        _check_kind(env, AECEnv, "PettingZooEnv", "an AEC env, such as tictactoe_v3.env()")
        super().__init__()
        self.env, self.possible_agents = env, list(getattr(env, "possible_agents", ()))
        self.observation_spaces = _Spaces(self.possible_agents, env.observation_space)
        self.action_spaces = _Spaces(self.possible_agents, env.action_space)
        self.render_mode, self.metadata = getattr(env, "render_mode", None), env.metadata

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode: the observation and the info of the agent that moves first."""
        self.env.reset(seed=seed, options=options)
        obs, _, _, _, infos = self._next_turn([])
        return obs, infos

    def step(self, action_dict: dict[AgentID, Any]) -> _Results:
        """Make the move of the agent whose turn it is.

        Raises:
            ValueError: ``action_dict`` is not of that agent alone.
        """
        before = list(self.env.agents)
        if before:
            turn = self.env.agent_selection
            if list(action_dict) != [turn]:
                raise ValueError(f"it is the turn of {turn!r} alone, the actions are of {list(action_dict)}")
            self.env.step(action_dict[turn])
        return self._next_turn(before)

    def _next_turn(self, before: list[AgentID]) -> _Results:
        """Go on to the next agent that can move, past all that ended; ``before``: who lived until now."""
        env, results = self.env, _results()
        while env.agents:
            agent = env.agent_selection
            if agent in results[2] or agent not in env.agents:
                raise SteppeError(_STUCK.format(agent=agent, env=env, agents=list(env.agents)))
            observation, *told = env.last()
            terminated, truncated = told[1], told[2]
            ended = terminated or truncated
            if observation is not None or not ended:
                # Before the env goes on, which may write the next agent's observation to the same memory.
                results[0][agent] = own(observation) if ended else observation
            for result, value in zip(results[1:], told, strict=True):
                result[agent] = value
            if not ended:
                break
            env.step(None)
        for agent in before:
            if agent not in env.agents and agent not in results[2]:  # it was removed without a last turn
                results[1][agent] = env._cumulative_rewards.get(agent, 0.0)
                results[2][agent] = bool(env.terminations.get(agent, False))
                results[3][agent] = not results[2][agent]
        return _with_all(results, over=not env.agents)

    def render(self) -> Any:
        """What PettingZoo's ``render`` returns."""
        return self.env.render()

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def state(self) -> Any:
        """The global state, where the env has one."""
        return self.env.state()


@final
class ParallelPettingZooEnv(MultiAgentEnv):
    """A PettingZoo parallel env: its agents move together.

    Args:
        env: a parallel env, such as ``pistonball_v6.parallel_env()``.

    Attributes:
        env: that env; ``env.state()``, where it has one, is the global state.

    Raises:
        ConfigError: ``env`` is something else.
    """

    def __init__(self, env: Any) -> None:
        example = "a parallel env, such as pistonball_v6.parallel_env()"
        _check_kind(env, ParallelEnv, "ParallelPettingZooEnv", example)
        super().__init__()
        self.env, self.possible_agents = env, list(getattr(env, "possible_agents", ()))
        self.observation_spaces = _Spaces(self.possible_agents, env.observation_space)
        self.action_spaces = _Spaces(self.possible_agents, env.action_space)
        self.render_mode, self.metadata = getattr(env, "render_mode", None), env.metadata
        self._live: list[AgentID] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode: observations and infos of the agents."""
        obs, infos = self.env.reset(seed=seed, options=options)
        self._live = list(self.env.agents)
        return obs, infos

    def step(self, action_dict: dict[AgentID, Any]) -> _Results:
        """Move all agents at once."""
        before = self._live
        obs, rewards, terminateds, truncateds, infos = self.env.step(action_dict)
        terminateds, truncateds = dict(terminateds), dict(truncateds)
        flagged = {agent for flags in (terminateds, truncateds) for agent, flag in flags.items() if flag}
        self._live = [agent for agent in self.env.agents if agent not in flagged]
        known = {*before, *self._live}
        for agent in before:
            if agent not in self.env.agents and agent not in flagged:
                truncateds[agent] = True
        # Some envs go on describing those that ended before.
        shown = {agent: one for agent, one in obs.items() if agent in known}
        return _with_all((shown, rewards, terminateds, truncateds, infos), over=not self._live)

    def render(self) -> Any:
        """What PettingZoo's ``render`` returns."""
        return self.env.render()

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def state(self) -> Any:
        """The global state, where the env has one."""
        return self.env.state()


def _check_kind(env: Any, kind: type, name: str, wanted: str) -> None:
    """Raise ConfigError if ``env`` is not of this kind."""
    if isinstance(env, kind):
        return
    fix = f"give {wanted}"
    if isinstance(env, (AECEnv, ParallelEnv)):
        fix = f"use steppe.{'PettingZooEnv' if isinstance(env, AECEnv) else 'ParallelPettingZooEnv'}"
    elif callable(env):
        fix = "call it, which makes the env"
    raise ConfigError(f"{name} takes {wanted}; got {show(env)}: {fix}")


def _results() -> _Results:
    return {}, {}, {}, {}, {}


def _with_all(results: _Results, *, over: bool) -> _Results:
    """Say in the flags whether the episode is over; it was cut off if that is true of any agent in it now."""
    _, _, terminateds, truncateds, _ = results
    cut = any(flag and not terminateds.get(agent) for agent, flag in truncateds.items())
    terminateds["__all__"], truncateds["__all__"] = over and not cut, over and cut
    return results


_STUCK = (
    "{env}: agent {agent!r} has the turn, but it has left or ended (agents: {agents}). step(None) for an "
    "agent that ended removes it from agents and passes the turn on: call self._was_dead_step(action)"
)
