"""Mirrors ``gym.wrappers``, as far as they concern what steppe does not do by itself."""

from steppe.compat.absent import of_module
from steppe.compat.gym.core import OldInterface as TimeLimit

__all__ = ["TimeLimit"]
__getattr__ = of_module(__name__)
