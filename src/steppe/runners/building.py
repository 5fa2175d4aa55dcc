"""How the envs of a runner are built, where they are in other processes, or outlive errors."""

from __future__ import annotations

from collections.abc import Callable

from steppe.config import AlgorithmConfig
from steppe.types import AsyncEnv


def builder(config: AlgorithmConfig) -> Callable[..., AsyncEnv]:
    """What is called as :func:`steppe.envs.registry.build` is."""
    if config.remote_worker_envs:
        from steppe.envs import remote

        rules = remote.Rules(
            wait_ms=config.remote_env_batch_wait_ms,
            step_timeout=config.env_step_timeout,
            restarts=config.on_env_error == "restart",
            most_restarts=config.max_env_restarts,
        )
        return remote.building(rules, config.ray_address)
    from steppe.envs import restarting

    return restarting.building(config.max_env_restarts)
