"""Learners from a replay that remember do what none without a memory can; see ``docs/algorithms/dqn.md``."""

import pytest

import steppe
from tests.learning.envs import RepeatAfter

pytestmark = pytest.mark.slow

TWO_STEPS_AGO = {"env": RepeatAfter, "env_config": {"delay": 2}}
"""The bit shown two steps ago is to be said: 100 scored steps, of which chance makes 0."""
OWN = {"memory": "lstm", "train_batch_size": 640, "training_intensity": 160}


def test_r2d2_repeat(learned):
    learned(steppe.DQNConfig(**TWO_STEPS_AGO, **OWN), 60, 300_000)


def test_sac_lstm_repeat(learned):
    """Of two choices there is little to gain from chance: the temperature is low."""
    own = {"fcnet_hiddens": [64], "initial_alpha": 0.1, "target_entropy": 0.1}
    envs = {"num_envs_per_env_runner": 8, "rollout_fragment_length": 4}
    learned(steppe.SACConfig(**TWO_STEPS_AGO, **OWN, **own, **envs), 60, 100_000)
