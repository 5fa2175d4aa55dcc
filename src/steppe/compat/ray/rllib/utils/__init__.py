"""Mirrors ``ray.rllib.utils``."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from steppe.compat.absent import of_module

__all__ = ["merge_dicts"]
__getattr__ = of_module(__name__)


def merge_dicts(d1: Mapping[str, Any], d2: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``d1`` with what ``d2`` says; dicts inside both are merged, too."""
    result = deepcopy(dict(d1))
    for key, value in d2.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge_dicts(result[key], value) if both else value
    return result
