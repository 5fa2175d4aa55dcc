"""DQN with a memory, R2D2, learns what no policy without one can; see ``docs/algorithms/dqn.md``."""

import pytest

import steppe
from tests.learning.envs import RepeatAfter

pytestmark = pytest.mark.slow


def test_r2d2_repeat(learned):
    """The bit shown two steps ago: 100 scored steps, of which chance makes 0."""
    own = {"memory": "lstm", "train_batch_size": 640, "training_intensity": 160}
    learned(steppe.DQNConfig(env=RepeatAfter, env_config={"delay": 2}, **own), 60, 300_000)
