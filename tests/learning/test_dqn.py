"""DQN learns what it is known to learn; the scores are those of ``docs/algorithms/dqn.md``."""

import pytest

import steppe

pytestmark = pytest.mark.slow


def test_dqn_cartpole(learned):
    learned(steppe.DQNConfig(env="CartPole-v1"), 450, 100_000)


def test_dqn_acrobot(learned):
    learned(steppe.DQNConfig(env="Acrobot-v1"), -90, 150_000)


def test_dqn_mountaincar(learned):
    """A hill that chance does not climb: what is tried has to be tried for long."""
    config = steppe.DQNConfig(env="MountainCar-v0", epsilon=[[0, 1.0], [50_000, 0.02]])
    learned(config, -120, 200_000, enough=2)
