"""Mirrors ``gym.utils``."""

from gymnasium.utils import EzPickle, colorize

from steppe.compat.absent import of_module
from steppe.compat.gym.utils import seeding

__all__ = ["EzPickle", "colorize", "seeding"]
__getattr__ = of_module(__name__)
