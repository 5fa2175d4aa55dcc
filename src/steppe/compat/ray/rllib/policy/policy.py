"""Mirrors ``ray.rllib.policy.policy``."""

from steppe.compat.views import Policy

__all__ = ["Policy"]
