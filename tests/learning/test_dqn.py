"""DQN with its default settings learns what it is known to learn, with each of three seeds.

The scores are those of ``docs/algorithms/dqn.md``; ``make learn`` runs this.
"""

import pytest

import steppe

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("seed", [0, 1, 2])]


def best_within(config, bar, steps):
    """The best mean of 50 episodes before ``steps`` env steps; stops at the first that reaches ``bar``."""
    best = float("-inf")
    with config.copy(metrics_num_episodes_for_smoothing=50, write_run=False).build() as algo:
        while True:
            result = algo.train()
            if result["timesteps_total"] > steps:
                return best, None
            if result["episodes_total"] >= 50:
                best = max(best, result["episode_reward_mean"])
            if best >= bar:
                return best, result["timesteps_total"]


def test_cartpole_is_balanced_within_100_000_steps(seed, measured):
    best, steps = best_within(steppe.DQNConfig(env="CartPole-v1", seed=seed), 450, 100_000)
    measured(score=best, steps=steps)
    assert best >= 450
