"""Mirrors ``gym.envs``."""

from steppe.compat.absent import of_module
from steppe.compat.gym.envs import registration
from steppe.compat.gym.envs.registration import make, register, registry, spec

__all__ = ["make", "register", "registration", "registry", "spec"]
__getattr__ = of_module(__name__)
