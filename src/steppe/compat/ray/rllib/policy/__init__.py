"""Mirrors ``ray.rllib.policy``."""

from steppe.compat.absent import of_module
from steppe.compat.views import Policy

__all__ = ["Policy"]
__getattr__ = of_module(__name__)
