"""PPO, as RLlib 1.x programs import it: ``ppo.PPOTrainer(config=..., env=...)``."""

from __future__ import annotations

from steppe.compat.trainer import trainer_class

PPOTrainer = trainer_class("PPO")
PPOAgent = PPOTrainer
"""The trainer's name before it was called so."""
DEFAULT_CONFIG = PPOTrainer.default_config
"""RLlib's settings with its own defaults; a program may copy it, or change it for all later trainers."""

__all__ = ["DEFAULT_CONFIG", "PPOAgent", "PPOTrainer"]
