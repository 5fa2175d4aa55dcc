"""Mirrors ``gym.spaces``: Gymnasium's."""

from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.spaces.utils import flatdim, flatten, flatten_space, unflatten

from steppe.compat.absent import of_module

__all__ = ["Box", "Dict", "Discrete", "MultiBinary", "MultiDiscrete", "Space", "Tuple"]
__all__ += ["flatdim", "flatten", "flatten_space", "unflatten"]
__getattr__ = of_module(__name__)
