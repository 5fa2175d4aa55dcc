"""Mirrors ``gym.utils``."""

from steppe.compat.gym.utils import seeding

__all__ = ["seeding"]
