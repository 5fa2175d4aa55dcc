"""Mirrors ``ray.rllib.env.env_context``."""

from steppe.envs.context import EnvContext

__all__ = ["EnvContext"]
