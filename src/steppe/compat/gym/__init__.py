"""Mirrors ``gym`` before 0.26, over Gymnasium."""

from gymnasium import Space

from steppe.compat.gym import envs, spaces, utils
from steppe.compat.gym.core import ActionWrapper, Env, ObservationWrapper, RewardWrapper, Wrapper
from steppe.compat.gym.envs.registration import make, register

__all__ = ["ActionWrapper", "Env", "ObservationWrapper", "RewardWrapper", "Space", "Wrapper"]
__all__ += ["envs", "make", "register", "spaces", "utils"]
