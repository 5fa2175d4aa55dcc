"""Envs of Brax (Freeman et al., 2021, arXiv:2106.13281)."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import gymnasium
import jax
import numpy as np

from steppe.errors import ConfigError
from steppe.jaxenvs.protocol import JaxEnv, Step


class BraxState(NamedTuple):
    """What Brax calls a state, and the steps so far."""

    brax: Any
    t: Any


@final
class Brax(JaxEnv):
    """An env of Brax, stepped without its own resets; actions are within [-1, 1].

    Args:
        env: its name, such as ``"ant"``, or an object, such as ``brax.envs.get_environment("ant")``.
        episode_length: an episode of so many steps is truncated.
        options: where ``env`` is a name, further arguments of the env, such as ``backend``.

    Raises:
        ConfigError: Brax is not installed, or does not know the name; or the env resets itself, or is many.
    """

    def __init__(self, env: Any = "ant", episode_length: int = 1000, **options: Any) -> None:
        self._env, self._length = _made(env, options) if isinstance(env, str) else env, episode_length
        self.__name__ = env if isinstance(env, str) else type(getattr(env, "unwrapped", env)).__name__
        begun = jax.eval_shape(self._env.reset, jax.random.key(0))
        if "first_obs" in begun.info or begun.done.shape != ():
            raise ConfigError(
                f"{self.__name__} resets itself, or steps many copies; leave out AutoResetWrapper and "
                "VmapWrapper: brax.envs.get_environment(name), or brax.envs.create(name, auto_reset=False)"
            )
        self.observation_space = _space(begun.obs)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self._env.action_size,), np.float32)

    def reset_env(self, key: jax.Array, params: tuple[()]) -> tuple[Any, BraxState]:
        """As Brax has it."""
        begun = self._env.reset(key)
        return begun.obs, BraxState(begun, 0)

    def step_env(self, key: jax.Array, state: BraxState, action: jax.Array, params: tuple[()]) -> Step:
        """One step; where Brax counts the steps as well, its own limit holds, too."""
        moved, t = self._env.step(state.brax, action), state.t + 1
        cut = moved.info.get("truncation", 0) != 0
        terminated = (moved.done != 0) & ~cut
        truncated = cut | ((t >= self._length) & ~terminated)
        return Step(moved.obs, BraxState(moved, t), moved.reward, terminated, truncated, moved.metrics)


def _made(name: str, options: dict[str, Any]) -> Any:
    try:
        from brax import envs
    except ImportError as error:
        raise ConfigError(f"{name}: no Brax ({error}): pip install 'steppe[brax]'") from None
    try:
        return envs.get_environment(name, **options)
    except KeyError:
        raise ConfigError(f"Brax has no env {name!r}; such as 'ant', see brax.envs") from None


def _space(obs: Any) -> gymnasium.Space[Any]:
    """Any number, in the form of an observation: Brax does not know bounds."""
    if isinstance(obs, dict):
        return gymnasium.spaces.Dict({name: _space(part) for name, part in obs.items()})
    return gymnasium.spaces.Box(-np.inf, np.inf, obs.shape, np.dtype(obs.dtype).type)
