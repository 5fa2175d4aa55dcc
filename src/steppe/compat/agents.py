"""Trainers by algorithm; short for ``steppe.compat.ray.rllib.agents``."""

from steppe.compat.absent import mirror

__getattr__ = mirror(__name__)
