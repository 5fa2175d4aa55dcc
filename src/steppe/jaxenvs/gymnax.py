"""Envs of gymnax (Lange, 2022), of either form that its steps have had."""

from __future__ import annotations

from typing import Any, final

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.jaxenvs.protocol import JaxEnv, Step


@final
class Gymnax(JaxEnv):
    """An env of gymnax, stepped without its own resets.

    From gymnax 1.0 on the flag of a step means terminated, and ``is_truncated`` knows the limit. Before, one
    flag meant both: an episode is then truncated if it has reached its limit, else terminated.

    Args:
        env: its id, such as ``"CartPole-v1"``, or what ``gymnax.make`` returned first, or one of your own.
        params: of the env, or a dict of those that differ from its default.

    Raises:
        ConfigError: gymnax is not installed, or does not know the id or a parameter.
    """

    def __init__(self, env: Any = "CartPole-v1", params: Any = None) -> None:
        self._env = made = _made(env) if isinstance(env, str) else env
        self.__name__ = str(getattr(made, "name", type(made).__name__))  # what a run is named by
        self.default_params = made.default_params if params is None else params
        if isinstance(params, dict):
            known = vars(made.default_params)
            if unknown := sorted(params.keys() - known.keys()):
                raise ConfigError(
                    f"{self.__name__} has no parameter {unknown[0]!r}; choose among {', '.join(known)}"
                )
            self.default_params = made.default_params.replace(**params)
        self.observation_space = _space(made.observation_space(self.default_params))
        self.action_space = _space(made.action_space(self.default_params))

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """As gymnax has it."""
        obs, state = self._env.reset_env(key, params)
        return self._shaped(obs), state

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> Step:
        """One step; its flag, or flags, become two."""
        obs, state, reward, over, info = self._env.step_env(key, state, action, params)
        over = jnp.reshape(over, ()) != 0
        if hasattr(self._env, "is_truncated"):
            terminated, truncated = over, ~over & self._env.is_truncated(state, params)
        else:
            limit = getattr(params, "max_steps_in_episode", np.inf)
            truncated = over & (getattr(state, "time", 0) >= limit)
            terminated = over & ~truncated
        return Step(self._shaped(obs), state, jnp.reshape(reward, ()), terminated, truncated, info)

    def _shaped(self, obs: Any) -> Any:
        """Some of its numbers come as vectors of one, which its spaces do not say."""
        space = self.observation_space
        return obs if space.shape is None else jnp.reshape(obs, space.shape)


def _made(name: str) -> Any:
    try:
        import gymnax
    except ImportError as error:
        raise ConfigError(f"{name}: no gymnax ({error}): pip install 'steppe[gymnax]'") from None
    if name not in gymnax.registered_envs:
        raise ConfigError(f"gymnax has no env {name!r}; choose among {', '.join(gymnax.registered_envs)}")
    return gymnax.make(name)[0]


def _space(space: Any) -> gymnasium.Space[Any]:
    """One of gymnax's spaces, by its name, as Gymnasium's."""
    kind = type(space).__name__
    if kind == "Discrete":
        return gymnasium.spaces.Discrete(int(space.n))
    if kind == "Box":
        low, high = (np.broadcast_to(bound, space.shape) for bound in (space.low, space.high))
        return gymnasium.spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)
    if kind == "Dict":
        return gymnasium.spaces.Dict({name: _space(part) for name, part in space.spaces.items()})
    if kind == "Tuple":
        return gymnasium.spaces.Tuple(tuple(map(_space, space.spaces)))
    raise ConfigError(f"a space {kind} of gymnax is none of Discrete, Box, Dict and Tuple")
