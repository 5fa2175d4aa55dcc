"""Mirrors ``ray.tune``."""

from typing import Any

from steppe.compat import tune
from steppe.compat.tune import ExperimentAnalysis, Trial, run
from steppe.compat.tune.registry import register_env

__all__ = ["ExperimentAnalysis", "Trial", "register_env", "run"]


def __getattr__(name: str) -> Any:
    """Whatever else ``steppe.compat.tune`` has, or says about it."""
    return getattr(tune, name)
