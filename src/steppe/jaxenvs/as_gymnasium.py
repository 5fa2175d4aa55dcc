"""An env written in JAX as one of Gymnasium's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import gymnasium
import jax
import numpy as np

from steppe.spaces import map_leaves, rows, spec_of

if TYPE_CHECKING:
    from steppe.jaxenvs.protocol import JaxEnv


@final
class JaxGym(gymnasium.Env[Any, Any]):
    """Steps one copy of a :class:`~steppe.jaxenvs.JaxEnv`; chance comes from Gymnasium's own generator.

    Args:
        env: to step.

    Attributes:
        env: as given.
        state: of the running episode, which may be replaced.
    """

    def __init__(self, env: JaxEnv) -> None:
        self.env, self.state = env, None
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._spec = spec_of(env.observation_space)
        self._reset, self._step = jax.jit(env.reset_env), jax.jit(env.step_env)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        obs, self.state = self._reset(self._key(), self.env.default_params)
        return self._seen(obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step."""
        made = self._step(self._key(), self.state, action, self.env.default_params)
        obs, self.state, reward, terminated, truncated, info = made
        told = jax.tree.map(np.asarray, dict(info))
        return self._seen(obs), float(reward), bool(terminated), bool(truncated), told

    def _key(self) -> jax.Array:
        return jax.random.key(int(self.np_random.integers(1 << 32)))

    def _seen(self, obs: Any) -> Any:
        """As the space has it: whole numbers of Discretes, dicts and tuples of arrays."""
        return rows(self._spec, map_leaves(lambda a: np.asarray(a)[None], obs))[0]
