"""How the envs of a runner are built, where they are elsewhere, or outlive errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

from steppe.config import AlgorithmConfig
from steppe.errors import ConfigError
from steppe.types import AsyncEnv


def builder(config: AlgorithmConfig) -> Callable[..., AsyncEnv]:
    """What is called as :func:`steppe.envs.registry.build` is.

    Raises:
        ConfigError: the function that was to make the run's ``input`` made something else.
    """
    if (given := config.input) is not None:
        if not callable(getattr(given, "build", None)):  # as RLlib has it: a function of where it is called
            worker = SimpleNamespace(worker_index=0, num_workers=0)
            given = given(SimpleNamespace(worker=worker, config=config.to_dict(), **vars(worker)))
        if not callable(getattr(given, "build", None)):
            raise ConfigError(f"input made {given!r:.60}: return a PolicyServer")
        return partial(given.build, config=config)
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
