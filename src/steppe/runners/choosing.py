"""Which runner samples for a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from steppe.config import AlgorithmConfig
from steppe.envs import registry
from steppe.runners.evaluation import Evaluator
from steppe.runners.local import LocalRunner
from steppe.sampling.callbacks import Callbacks
from steppe.types import Policy


def make_runner(config: AlgorithmConfig, callbacks: Sequence[Callbacks]) -> Any:
    """The runner that samples for training; what each of them does is told in :class:`LocalRunner`."""
    if config.input is not None:
        return LocalRunner(config, callbacks=callbacks)
    if config.env is not None:
        registry.creator_of(config.env)  # a name may say what to import
    if "steppe.jaxenvs.protocol" in sys.modules:  # else nobody has written an env in JAX
        from steppe.jaxenvs.protocol import jax_env
        from steppe.runners.jit import JitRunner

        if (env := jax_env(config.env, config.env_config)) is not None:
            return JitRunner(config, env, callbacks=callbacks)
    if config.num_env_runners:
        from steppe.runners.many import ManyRunners  # most runs sample in one process

        return ManyRunners(config)
    return LocalRunner(config, callbacks=callbacks)


def make_evaluator(
    config: AlgorithmConfig, policies: Mapping[str, Policy], callbacks: Sequence[Callbacks], runner: Any
) -> Any:
    """What evaluates beside a runner; what it does is told in :class:`Evaluator`."""
    if config.evaluation_num_env_runners:
        from steppe.runners.evaluators import ManyEvaluators  # most runs evaluate in this process

        return ManyEvaluators(config, runner.spaces)
    if "steppe.runners.jit" in sys.modules:
        from steppe.runners.jit import evaluator_beside

        if (evaluator := evaluator_beside(runner, config, policies)) is not None:
            return evaluator
    return Evaluator(config, policies, callbacks, runner)
