"""Mirrors ``ray.rllib.agents.ppo``."""

from steppe.compat.absent import of_module
from steppe.compat.agents.ppo import DEFAULT_CONFIG, PPOAgent, PPOTrainer

__all__ = ["DEFAULT_CONFIG", "PPOAgent", "PPOTrainer"]
__getattr__ = of_module(__name__)
