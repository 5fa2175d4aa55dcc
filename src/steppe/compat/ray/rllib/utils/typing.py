"""Mirrors ``ray.rllib.utils.typing``: names for type hints, which nothing checks."""

from typing import Any

AgentID = EnvID = EpisodeID = PolicyID = Any
EnvConfigDict = EnvType = ModelConfigDict = PartialTrainerConfigDict = ResultDict = TrainerConfigDict = Any
TensorType = Any
