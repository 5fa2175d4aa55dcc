"""PettingZoo's two kinds of env as multi-agent envs: agents move by turns, or all together.

Source: PettingZoo's AEC and parallel interfaces (Terry et al., "PettingZoo: Gym for multi-agent reinforcement
learning", NeurIPS 2021).
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

from steppe.envs.guards import is_flag, own, show
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.errors import ConfigError, EnvError
from steppe.types import AgentID

_Results = tuple[
    dict[AgentID, Any], dict[AgentID, Any], dict[AgentID, Any], dict[AgentID, Any], dict[AgentID, Any]
]


class _Wrapped(MultiAgentEnv):
    """What both kinds have in common: spaces by agent, drawing, closing, and a seed for every episode."""

    def __init__(self, env: Any, state: bool) -> None:
        super().__init__()
        self.env, self.possible_agents = env, list(getattr(env, "possible_agents", ()))
        self._state_space = _state_space(env) if state else None
        self.observation_spaces = {agent: self.get_observation_space(agent) for agent in self.possible_agents}
        self.action_spaces = {agent: env.action_space(agent) for agent in self.possible_agents}
        self.render_mode, self.metadata = getattr(env, "render_mode", None), getattr(env, "metadata", {})
        self._seeds: np.random.Generator | None = None

    @property
    def shown_as(self) -> str:
        """What PettingZoo calls the env."""
        return str(self.env)

    def get_observation_space(self, agent: AgentID) -> Any:
        """What ``agent`` observes; PettingZoo knows it of agents that it did not announce, too."""
        space = self.env.observation_space(agent)
        if self._state_space is None:
            return space
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        if "state" in parts:
            raise ConfigError(f'state=True: what {agent!r} observes has a key "state" already; leave it out')
        return spaces.Dict({**parts, "state": self._state_space})

    def _seen(self, obs: dict[AgentID, Any]) -> dict[AgentID, Any]:
        """Observations, with the global state in each if it is wanted."""
        if self._state_space is None or not obs or not isinstance(obs, dict):
            return obs
        state = self.env.state()
        return {
            agent: {**(one if isinstance(one, dict) else {"observation": one}), "state": state}
            for agent, one in obs.items()
        }

    def get_action_space(self, agent: AgentID) -> Any:
        """What ``agent`` does."""
        return self.env.action_space(agent)

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
class PettingZooEnv(_Wrapped):
    """A PettingZoo AEC env: its agents move by turns.

    A step takes the action of the agent whose turn it is, and returns the observation of the agent whose turn
    comes next, with all that it earned since its last one. An agent that ended is given its last observation
    when PettingZoo comes to it; the ``None`` that PettingZoo then wants for an action is given here. So an
    episode has one env step for each turn, and an agent's first row comes with its first turn.
    Every episode gets a seed of its own, drawn from that of the first.

    An observation ``{"observation", "action_mask"}`` is passed on as it is. PettingZoo tells what an agent
    earned at its turns alone: where ``max_episode_steps`` cuts an episode off, the newest of it is not known.

    Args:
        env: an AEC env, such as ``tictactoe_v3.env()``.
        state: observations become ``{"observation": ..., "state": env.state()}``; those that are dicts get
            the key ``"state"``. ``critic_only=["state"]`` then hides it from acting.

    Attributes:
        env: that env; ``env.state()``, where it has one, is the global state.

    Raises:
        ConfigError: ``env`` is something else, or has no global state, though it is wanted.
    """

    def __init__(self, env: Any, *, state: bool = False) -> None:
        _check_kind(env, AECEnv, "PettingZooEnv", "an AEC env, such as tictactoe_v3.env()")
        super().__init__(env, state)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode: the observation and the info of the agent that moves first."""
        self._seeds, seed = _next_seed(self._seeds, seed)
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
        env, results = self.env, _nothing()
        obs, rewards, terminateds, truncateds, infos = results
        while env.agents:
            agent = env.agent_selection
            if agent in terminateds or agent not in env.agents:
                message = _STUCK.format(agent=agent, agents=list(env.agents))
                raise EnvError("E404", message, env_class=self.shown_as)
            seen, rewards[agent], terminateds[agent], truncateds[agent], infos[agent] = env.last()
            if not (_raised(terminateds[agent]) or _raised(truncateds[agent])):
                obs |= self._seen({agent: seen})
                break
            if seen is not None:  # the env goes on, and may write the next one to the same memory
                obs[agent] = own(self._seen({agent: seen})[agent])
            env.step(None)
        for agent in before:
            if agent not in env.agents and agent not in terminateds:  # it was removed without a last turn
                rewards[agent] = env._cumulative_rewards.get(agent, 0.0)
                terminateds[agent] = bool(env.terminations.get(agent, False))
                truncateds[agent] = not terminateds[agent]
        return _with_all(results, over=not env.agents)


@final
class ParallelPettingZooEnv(_Wrapped):
    """A PettingZoo parallel env: its agents move together. Every episode gets a seed, as the first one did.

    Args:
        env: a parallel env, such as ``pistonball_v6.parallel_env()``.
        state: as :class:`PettingZooEnv` takes it.

    Attributes:
        env: that env; ``env.state()``, where it has one, is the global state.

    Raises:
        ConfigError: ``env`` is something else, or has no global state, though it is wanted.
    """

    def __init__(self, env: Any, *, state: bool = False) -> None:
        example = "a parallel env, such as pistonball_v6.parallel_env()"
        _check_kind(env, ParallelEnv, "ParallelPettingZooEnv", example)
        super().__init__(env, state)
        self._live: list[AgentID] = []
        self._left: set[AgentID] = set()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode: observations and infos of the agents."""
        self._seeds, seed = _next_seed(self._seeds, seed)
        obs, infos = self.env.reset(seed=seed, options=options)
        self._live, self._left = list(self.env.agents), set()
        return self._seen(obs), infos

    def step(self, action_dict: dict[AgentID, Any]) -> Any:
        """Move all agents at once."""
        before, result = self._live, self.env.step(action_dict)
        if not _are_dicts(result):
            return result  # to be judged like that of any other env
        obs, rewards, terminateds, truncateds, infos = map(dict, result)
        flagged = {a for flags in (terminateds, truncateds) for a, flag in flags.items() if _raised(flag)}
        self._live = [agent for agent in self.env.agents if agent not in flagged]
        for agent in before:
            if agent not in self.env.agents and agent not in flagged:
                truncateds[agent] = True
        # Some envs go on describing those that ended before.
        shown = {agent: one for agent, one in obs.items() if agent not in self._left}
        self._left |= {agent for agent in before if agent not in self._live}
        return _with_all((self._seen(shown), rewards, terminateds, truncateds, infos), over=not self._live)


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


def _state_space(env: Any) -> Any:
    """The space of the global state.

    Raises:
        ConfigError: the env does not say it.
    """
    space = getattr(env, "state_space", None)
    if space is None:
        raise ConfigError(
            f"state=True: {env} has no state_space, so it has no global state; leave state out, or make "
            "observations of all agents one with observation_fn"
        )
    return space


def _next_seed(
    seeds: np.random.Generator | None, seed: int | None
) -> tuple[np.random.Generator | None, int | None]:
    """The seed of an episode, drawn where none is given, and what the next ones are drawn from.

    PettingZoo does not say what a ``reset`` without a seed does, and some of its games then ask the operating
    system: no run would be the same again.
    """
    if seed is not None:
        return np.random.default_rng(seed), seed
    return seeds, None if seeds is None else int(seeds.integers(1 << 31))


def _are_dicts(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 5 and all(isinstance(one, dict) for one in result)


def _raised(flag: Any) -> bool:
    """Whether this is a flag, and set; what is none is judged like that of any other env."""
    return is_flag(flag) and bool(flag)


def _nothing() -> _Results:
    return {}, {}, {}, {}, {}


def _with_all(results: _Results, *, over: bool) -> _Results:
    """Say in the flags whether the episode is over; it was cut off if that is true of any agent in it now."""
    _, _, terminateds, truncateds, _ = results
    cut = any(_raised(flag) and not _raised(terminateds.get(agent)) for agent, flag in truncateds.items())
    terminateds["__all__"], truncateds["__all__"] = over and not cut, over and cut
    return results


_STUCK = (
    "agent {agent!r} has the turn, but it has left or ended (agents: {agents}). step(None) for an agent that "
    "ended removes it from agents and passes the turn on: call self._was_dead_step(action)"
)
