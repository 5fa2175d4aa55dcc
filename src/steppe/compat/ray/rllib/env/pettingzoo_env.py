"""Mirrors ``ray.rllib.env.pettingzoo_env``."""

from steppe import ParallelPettingZooEnv, PettingZooEnv

__all__ = ["ParallelPettingZooEnv", "PettingZooEnv"]
