"""What settings of other processes ask of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steppe.errors import ConfigError

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig


def check_processes(config: AlgorithmConfig) -> None:
    """Check what is evaluated, and watched over, in other processes.

    Raises:
        ConfigError: there are no such processes, or they have not what is asked for.
    """
    name, evaluators = type(config).__name__, config.spelling("evaluation_num_env_runners")
    if config.evaluation_envs == "shared" and config.evaluation_num_env_runners:
        raise ConfigError(
            f"{name}: {config.spelt('evaluation_num_env_runners')}: evaluation_envs='shared' evaluates in "
            f"the training envs, which are not there; write {evaluators}=0, or evaluation_envs='separate'"
        )
    elsewhere = config.num_env_runners and not config.local_mode
    if config.env_step_timeout is not None and not (elsewhere or config.remote_worker_envs):
        raise ConfigError(
            f"{name}: {config.spelt('env_step_timeout')}: a step in this process cannot be ended; "
            "write remote_worker_envs=True, or num_env_runners=1 or more, or leave it out"
        )
