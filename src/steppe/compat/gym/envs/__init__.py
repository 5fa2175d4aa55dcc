"""Mirrors ``gym.envs``."""

from steppe.compat.gym.envs import registration

__all__ = ["registration"]
