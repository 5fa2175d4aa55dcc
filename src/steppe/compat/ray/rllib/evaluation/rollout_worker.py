"""Mirrors ``ray.rllib.evaluation.rollout_worker``."""

from steppe.compat.views import RolloutWorker

__all__ = ["RolloutWorker"]
