"""RLlib 1.x's settings with its own defaults, and what a program changed in them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from steppe.compat.absent import table
from steppe.compat.callbacks import DefaultCallbacks
from steppe.config.values import same

GROUPS = (
    *("model", "multiagent", "evaluation_config", "exploration_config", "env_config", "tf_session_args"),
    *("Q_model", "policy_model", "optimization"),
)
"""Settings that hold settings: a program gives those that it changes."""
_NOTHING = object()
_FILE = "rllib_defaults.json"


def default_config(algo: str) -> dict[str, Any]:
    """The settings of an algorithm under the names of RLlib 1.x, with its own default values; a fresh copy.

    Raises:
        KeyError: the algorithm has no such table yet.
    """
    return merged(common_config(), deepcopy(table(_FILE)[algo]))


def common_config() -> dict[str, Any]:
    """The settings that every algorithm has; a fresh copy."""
    tables = deepcopy(table(_FILE))
    return {**tables["common"], "model": tables["model"], "callbacks": DefaultCallbacks}


def known_algorithms() -> list[str]:
    """Names of the algorithms that have a table."""
    return sorted(table(_FILE).keys() - {"common", "model"})


def merged(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with what is ``given``; of a group only the keys that are named."""
    result = dict(config)
    for key, value in given.items():
        inside = result.get(key)
        result[key] = value
        if key in GROUPS and isinstance(inside, Mapping) and isinstance(value, Mapping):
            # Another kind of exploration has arguments of its own.
            result[key] = dict(value) if "type" in value else {**inside, **value}
    return result


def with_common_config(extra_config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of every algorithm, changed and added to."""
    return merged(common_config(), extra_config)


def merge_dicts(d1: Mapping[str, Any], d2: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``d1`` with what ``d2`` says; dicts inside both are merged, too."""
    result = deepcopy(dict(d1))
    for key, value in d2.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge_dicts(result[key], value) if both else value
    return result


def changed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of ``config`` that are not RLlib's default, of a group those inside it."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        default = defaults.get(key, _NOTHING)
        if key in GROUPS and isinstance(value, Mapping) and isinstance(default, Mapping):
            value = {k: v for k, v in value.items() if not _equal(v, default.get(k, _NOTHING))}
            default = {}
        if not _equal(value, default):
            result[key] = value
    return result


def _equal(a: Any, b: Any) -> bool:
    return same(a, b) or ({type(a), type(b)} == {int, float} and bool(a == b))


COMMON_CONFIG = common_config()
"""RLlib's settings of every algorithm, with its own defaults."""
