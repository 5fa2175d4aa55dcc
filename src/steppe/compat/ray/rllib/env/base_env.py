"""Mirrors ``ray.rllib.env.base_env``."""

from steppe.compat.views import BaseEnv

__all__ = ["BaseEnv"]
