"""Mirrors ``ray.rllib.agents.callbacks``."""

from steppe.compat.callbacks import DefaultCallbacks

__all__ = ["DefaultCallbacks"]
