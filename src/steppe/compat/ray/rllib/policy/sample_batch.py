"""Mirrors ``ray.rllib.policy.sample_batch``."""

from steppe.compat.views import SampleBatch

__all__ = ["SampleBatch"]
