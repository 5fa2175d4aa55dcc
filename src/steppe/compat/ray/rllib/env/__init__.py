"""Mirrors ``ray.rllib.env``: steppe's own env classes, as far as they are written, and what callbacks get."""

from steppe import EnvContext, ParallelPettingZooEnv, PettingZooEnv, VectorEnv
from steppe.compat.absent import of_module
from steppe.compat.views import BaseEnv

__all__ = ["BaseEnv", "EnvContext", "ParallelPettingZooEnv", "PettingZooEnv", "VectorEnv"]
__getattr__ = of_module(__name__)
