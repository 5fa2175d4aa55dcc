"""Mirrors ``ray.rllib.evaluation.worker_set``."""

from steppe.compat.views import WorkerSet

__all__ = ["WorkerSet"]
