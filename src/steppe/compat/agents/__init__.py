"""Trainers by algorithm; short for ``steppe.compat.ray.rllib.agents``."""
