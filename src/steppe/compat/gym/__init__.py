"""Mirrors ``gym`` 0.21, over Gymnasium."""

from gymnasium import Space

from steppe.compat.absent import of_module
from steppe.compat.gym import envs, error, logger, spaces, utils, wrappers
from steppe.compat.gym.core import ActionWrapper, Env, ObservationWrapper, RewardWrapper, Wrapper
from steppe.compat.gym.envs.registration import make, register, spec

__all__ = ["ActionWrapper", "Env", "ObservationWrapper", "RewardWrapper", "Space", "Wrapper"]
__all__ += ["envs", "error", "logger", "make", "register", "spaces", "spec", "utils", "wrappers"]
__version__ = "0.21.0"
"""The newest one in which ``step``, ``reset`` and ``seed`` are as they are here."""
__getattr__ = of_module(__name__)
