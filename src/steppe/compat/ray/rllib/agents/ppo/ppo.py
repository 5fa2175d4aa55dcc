"""Mirrors ``ray.rllib.agents.ppo.ppo``."""

from steppe.compat.agents.ppo import DEFAULT_CONFIG, PPOAgent, PPOTrainer

__all__ = ["DEFAULT_CONFIG", "PPOAgent", "PPOTrainer"]
