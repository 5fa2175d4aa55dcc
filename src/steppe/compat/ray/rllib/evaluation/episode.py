"""Mirrors ``ray.rllib.evaluation.episode``."""

from steppe.compat.ray.rllib.evaluation import Episode, MultiAgentEpisode

__all__ = ["Episode", "MultiAgentEpisode"]
