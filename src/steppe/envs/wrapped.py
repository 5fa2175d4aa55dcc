"""Envs of one agent in one vector env."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from steppe.envs.guards import show
from steppe.envs.legacy_gym import modern_step, modernize
from steppe.envs.vector import VectorEnv
from steppe.errors import ConfigError


@final
class WrappedEnvs(VectorEnv):
    """See :meth:`steppe.VectorEnv.wrap`.

    Attributes:
        envs: the envs, old ones adapted.
    """

    def __init__(
        self,
        make_env: Callable[[int], Any] | None,
        existing: list[Any],
        num_envs: int,
        observation_space: Any = None,
        action_space: Any = None,
    ) -> None:
        missing = max(num_envs, 1) - len(existing)
        if missing > 0 and not callable(make_env):
            raise ConfigError(
                f"VectorEnv.wrap: {missing} of {max(num_envs, 1)} envs are missing and make_env is "
                f"{show(make_env)}; give a function of an index that makes one, or more existing_envs"
            )
        self._make = make_env
        self.envs = [modernize(env) for env in existing]
        self.envs += [self._made(i) for i in range(len(existing), num_envs)]
        observation = self.envs[0].observation_space if observation_space is None else observation_space
        action = self.envs[0].action_space if action_space is None else action_space
        super().__init__(observation, action, len(self.envs))

    def _made(self, index: int) -> Any:
        assert self._make is not None
        return modernize(self._make(index))

    def vector_reset(
        self, *, seeds: list[int] | None = None, options: list[dict[str, Any]] | None = None
    ) -> tuple[Any, Any]:
        """Reset all envs."""
        none = [None] * self.num_envs
        parts = zip(self.envs, seeds or none, options or none, strict=True)
        obs, infos = zip(*(env.reset(seed=seed, options=one) for env, seed, one in parts), strict=True)
        return list(obs), list(infos)

    def reset_at(
        self, index: int, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset one env."""
        return self.envs[index].reset(seed=seed, options=options)

    def vector_step(self, actions: list[Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Step one env after the other."""
        steps = [modern_step(env.step(action)) for env, action in zip(self.envs, actions, strict=True)]
        return tuple(map(list, zip(*steps, strict=True)))  # type: ignore[return-value]  # judged elsewhere

    def restart_at(self, index: int) -> None:
        """Make one env anew, where there is something to make it."""
        if self._make is not None:
            self.envs[index].close()
            self.envs[index] = self._made(index)

    def get_sub_environments(self) -> list[Any]:
        """The envs, by index."""
        return list(self.envs)

    def try_render_at(self, index: int | None = None) -> Any:
        """Draw one env, the first by default."""
        return self.envs[index or 0].render()
