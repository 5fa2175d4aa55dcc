"""Masks of actions that envs tell in their infos, put where they are looked for: into the observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import gymnasium
import numpy as np

from steppe.envs.batch import Batch, Stepped
from steppe.envs.batch_values import split_infos
from steppe.envs.multi_agent import ALL, MultiAgentEnv, seeded_reset
from steppe.errors import ConfigError
from steppe.spaces import (
    DictSpec,
    DiscreteSpec,
    MultiBinarySpec,
    MultiDiscreteSpec,
    Spec,
    TupleSpec,
    spec_of,
    summary,
)
from steppe.types import AgentID, IntArray, Tree

MASK, OBSERVATION, MEMBERS = "action_mask", "observation", "individual_infos"


@final
class Missing:
    """Stands where an info had no mask; what it is asked for says so, with env, step and agent."""

    def __repr__(self) -> str:
        """What a message shows."""
        return f"no {MASK!r} in the env's info, which reset and step have to tell"


@final
class Masks:
    """How a run's observations get their masks.

    Args:
        given: the setting ``observation_space``, of what envs return.
        action: the setting ``action_space``.
        maximum: see :func:`~steppe.spaces.spec_of`.
    """

    def __init__(self, given: Any, action: Any, maximum: int | None) -> None:
        self._given, self._action, self._maximum = given, action, maximum

    def spec(self, observation: Any, action: Any) -> DictSpec | TupleSpec | None:
        """The space with the mask, of two spaces of an env; None where the actions have no masks.

        A group's has a mask for each of its members, if the actions of all have one.

        Raises:
            ConfigError: the observation has a mask of its own.
            SpaceError: a space is missing or cannot be handled.
        """
        own = self.returned(observation)
        chosen = spec_of(action if self._action is None else self._action, name="action")
        if not isinstance(own, TupleSpec) or not isinstance(chosen, TupleSpec):
            return self._with_mask(own, chosen)
        members = [self._with_mask(*pair) for pair in zip(own.items, chosen.items, strict=False)]
        return None if None in members else TupleSpec(tuple(filter(None, members)))

    def _with_mask(self, own: Spec, chosen: Spec) -> DictSpec | None:
        if not isinstance(chosen, DiscreteSpec | MultiDiscreteSpec):
            return None
        size = chosen.n if isinstance(chosen, DiscreteSpec) else int(np.sum(chosen.nvec))
        parts = own.items if isinstance(own, DictSpec) else ((OBSERVATION, own),)
        if MASK in dict(parts):
            raise ConfigError(
                f'action_mask="info": the observation {summary(own)} has a mask already; leave that out'
            )
        return DictSpec((*parts, (MASK, MultiBinarySpec((size,)))))

    def checked(self, observation: Any, action: Any) -> DictSpec:
        """The same of an env of one agent.

        Raises:
            ConfigError: its actions have no masks.
        """
        spec = self.spec(observation, action)
        if not isinstance(spec, DictSpec):
            raise ConfigError(
                'action_mask="info" is for Discrete and MultiDiscrete actions, and the action space is '
                f"{summary(spec_of(action, name='action'))}; leave it out"
            )
        return spec

    def returned(self, observation: Any) -> Spec:
        """The space of what an env returns."""
        space = observation if self._given is None else self._given
        return spec_of(space, max_sequence_length=self._maximum)


def mask_of(info: Any, spec: DictSpec, *, over: bool) -> Any:
    """The mask that an info tells; once an episode is over, when nothing is chosen, none is needed."""
    mask = info.get(MASK) if isinstance(info, Mapping) else None
    if mask is None:
        size = dict(spec.items)[MASK]
        assert isinstance(size, MultiBinarySpec)
        return np.zeros(size.shape, np.int8) if over else Missing()
    array = np.asarray(mask)
    return (array != 0).astype(np.int8) if array.dtype.kind in "biuf" else mask


def with_mask(obs: Any, info: Any, spec: Spec | None, *, over: bool = False) -> Any:
    """One observation with its mask; that of a group, with those of its members."""
    if isinstance(spec, TupleSpec) and isinstance(obs, tuple):
        told = info.get(MEMBERS) if isinstance(info, Mapping) else None
        each = zip(obs, told or ({},) * len(obs), spec.items, strict=True)
        return tuple(with_mask(*one, over=over) for one in each)
    if not isinstance(spec, DictSpec):
        return obs
    own = obs if isinstance(obs, Mapping) else {OBSERVATION: obs}
    return {**own, MASK: mask_of(info, spec, over=over)}


@final
class MaskedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An env of one agent."""

    def __init__(self, env: gymnasium.Env[Any, Any], masks: Masks) -> None:
        super().__init__(env)
        self._spec = masks.checked(env.observation_space, env.action_space)
        self.observation_space: Any = self._spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        result: Any = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2:
            return result  # to be judged where the env is
        return with_mask(*result, self._spec), result[1]

    def step(self, action: Any) -> Any:
        """Step the env."""
        result: Any = self.env.step(action)
        if not isinstance(result, tuple | list) or len(result) != 5:
            return result
        obs, reward, terminated, truncated, info = result
        over = bool(terminated) or bool(truncated)
        return with_mask(obs, info, self._spec, over=over), reward, terminated, truncated, info


@final
class MaskedAgents(MultiAgentEnv):
    """An env of many agents; those whose actions have no masks observe what they did."""

    def __init__(self, env: MultiAgentEnv, masks: Masks) -> None:
        self.env, self._masks = env, masks
        self.possible_agents = env.possible_agents
        self._known: dict[AgentID, DictSpec | TupleSpec | None] = {}

    @property
    def unwrapped(self) -> Any:
        """The innermost env."""
        return self.env.unwrapped

    @property
    def shown_as(self) -> str:
        """What messages call the innermost env."""
        return self.env.shown_as

    def get_observation_space(self, agent: AgentID) -> Any:
        """That of the env, with the mask."""
        own = self.env.get_observation_space(agent)
        return self._spec(agent) or own

    def get_action_space(self, agent: AgentID) -> Any:
        """That of the env."""
        return self.env.get_action_space(agent)

    def _spec(self, agent: AgentID) -> DictSpec | TupleSpec | None:
        if agent not in self._known:
            spaces = self.env.get_observation_space(agent), self.env.get_action_space(agent)
            self._known[agent] = None if None in spaces else self._masks.spec(*spaces)
        return self._known[agent]

    def _seen(self, obs: Mapping[AgentID, Any], infos: Any, ended: Callable[[AgentID], bool]) -> Any:
        if not isinstance(obs, dict) or not isinstance(infos, dict):
            return obs
        return {
            agent: with_mask(one, infos.get(agent), self._spec(agent), over=ended(agent))
            for agent, one in obs.items()
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        keywords: dict[str, Any] = {} if options is None else {"options": options}
        result = self.env.reset(**keywords) if seed is None else seeded_reset(self.env, seed, **keywords)
        if not isinstance(result, tuple) or len(result) != 2:
            return result
        return self._seen(*result, lambda agent: False), result[1]

    def step(self, action_dict: dict[Any, Any]) -> Any:
        """Step the env."""
        result = self.env.step(action_dict)
        if not isinstance(result, tuple | list) or {*map(type, result)} != {dict} or len(result) != 5:
            return result
        obs, rewards, *flags, infos = result
        over = {agent for one in flags for agent, flag in one.items() if bool(flag)}
        return self._seen(obs, infos, lambda agent: agent in over or ALL in over), rewards, *flags, infos

    def seed(self, seed: int | None = None) -> Any:
        """Seed the env."""
        return self.env.seed(seed)

    def render(self) -> Any:
        """Draw the env."""
        return self.env.render()

    def close(self) -> None:
        """Close the env."""
        self.env.close()


@final
class MaskedBatch(Batch):
    """A vector env of any kind."""

    def __init__(self, inner: Batch, masks: Masks) -> None:
        self.env, self.num_envs, self.subs, self.names = inner.env, inner.num_envs, inner.subs, inner.names
        self.listed, self.mode, self.can_reset, self.odd = (
            inner.listed,
            inner.mode,
            inner.can_reset,
            inner.odd,
        )
        self._inner, self._spec = inner, masks.checked(*inner.space_pair)
        self._dict = isinstance(masks.returned(inner.space_pair[0]), DictSpec)
        self.space_pair = self._spec, inner.space_pair[1]

    def reset(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Seed and reset all envs."""
        obs, infos = self._inner.reset(seeds)
        return self._seen(obs, infos), infos

    def reset_some(self, envs: IntArray) -> tuple[Any, Any]:
        """Reset some envs."""
        obs, infos = self._inner.reset_some(envs)
        return self._seen(obs, infos), infos

    def step(self, spec: Spec, actions: Tree) -> Stepped:
        """Step all envs."""
        stepped = self._inner.step(spec, actions)
        over = np.asarray(stepped.terminated) | np.asarray(stepped.truncated)
        infos = stepped.infos
        if isinstance(infos, Mapping) and "final_obs" in infos:
            last = [
                None if one is None else with_mask(one, {}, self._spec, over=True)
                for one in infos["final_obs"]
            ]
            infos = {**infos, "final_obs": last}
        return stepped._replace(obs=self._seen(stepped.obs, infos, over), infos=infos)

    def _seen(self, obs: Any, infos: Any, over: Any = None) -> Any:
        if not (
            isinstance(infos, Mapping) or (isinstance(infos, list | tuple) and len(infos) == self.num_envs)
        ):
            return obs  # to be judged where the env is
        told = split_infos(infos, np.arange(self.num_envs), self.num_envs)
        ended = [False] * self.num_envs if over is None else over.tolist()
        masks = [mask_of(info, self._spec, over=end) for info, end in zip(told, ended, strict=True)]
        if isinstance(obs, Mapping):
            return {**obs, MASK: masks}
        if not self._dict:
            return {OBSERVATION: obs, MASK: masks}
        pairs = zip(obs, masks, strict=True)
        return [{**one, MASK: mask} if isinstance(one, Mapping) else one for one, mask in pairs]


def masked(
    envs: list[Any], limits: dict[str, Any], name: str, *, low_level: bool, together: bool
) -> tuple[dict[str, Any], list[Any]]:
    """The envs with masks in their observations, and what is left to say to their adapter.

    Args:
        envs: of a runner; one that is many, if they step ``together``.
        limits: arguments of the adapter.
        name: what messages call the envs.
        low_level: they are a BaseEnv, or run by themselves.
        together: see ``envs``.

    Raises:
        ConfigError: they are low-level.
    """
    if low_level:
        raise ConfigError(
            f'action_mask="info": {name} is a BaseEnv or external; put the mask into the observation instead'
        )
    given = limits.pop("observation_space", None)
    masks = Masks(given, limits.get("action_space"), limits.get("max_sequence_length"))
    if together:
        return {**limits, "masks": masks}, envs
    many = MultiAgentEnv
    return limits, [MaskedAgents(e, masks) if isinstance(e, many) else MaskedEnv(e, masks) for e in envs]
