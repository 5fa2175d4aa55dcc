"""Mirrors ``ray.rllib.env.vector_env``."""

from steppe import VectorEnv

__all__ = ["VectorEnv"]
