"""Mirrors ``ray.rllib.agents.trainer``."""

from collections.abc import Mapping
from typing import Any

from steppe.compat.defaults import common_config, merged
from steppe.compat.trainer import Trainer

COMMON_CONFIG = common_config()
"""RLlib's settings of every algorithm, with its own defaults."""

__all__ = ["COMMON_CONFIG", "Trainer", "with_common_config"]


def with_common_config(extra_config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of every algorithm, changed and added to."""
    return merged(common_config(), extra_config)
