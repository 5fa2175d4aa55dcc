"""Mirrors ``ray.rllib.evaluation``."""

from steppe.compat.absent import of_module
from steppe.compat.views import Episode, RolloutWorker, SampleBatch

MultiAgentEpisode = Episode
"""Its name before 1.9."""

__all__ = ["Episode", "MultiAgentEpisode", "RolloutWorker", "SampleBatch"]
__getattr__ = of_module(__name__)
