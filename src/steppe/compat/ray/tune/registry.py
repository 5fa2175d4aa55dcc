"""Mirrors ``ray.tune.registry``."""

from steppe.compat.tune.registry import register_env

__all__ = ["register_env"]
