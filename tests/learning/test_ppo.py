"""PPO with its default settings learns what it is known to learn, with each of three seeds.

Nothing is tuned to an env. The scores are those of ``docs/algorithms/ppo.md``; ``make learn`` runs this.
"""

from itertools import islice
from pathlib import Path

import pytest

import steppe

EXAMPLE = (
    Path(__file__).resolve().parents[2]
    / "examples"
    / "hot_and_cold"
    / "gym_example"
    / "envs"
    / "example_env.py"
)
SEEDS = (0, 1, 2)

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("seed", SEEDS)]


def results(env, seed):
    config = steppe.PPOConfig(env=env, seed=seed, metrics_num_episodes_for_smoothing=50, write_run=False)
    with config.build() as algo:
        while True:
            yield algo.train()


def best_within(env, seed, bar, steps):
    """The best mean of 50 episodes before ``steps`` env steps; stops at the first that reaches ``bar``."""
    best = float("-inf")
    for result in results(env, seed):
        if result["timesteps_total"] > steps:
            return best
        if result["episodes_total"] >= 50:
            best = max(best, result["episode_reward_mean"])
        if best >= bar:
            return best


def test_hot_and_cold_within_five_and_ten_iterations(seed, measured):
    runs = islice(results(f"{EXAMPLE}:Example_v0", seed), 10)
    means = [result["episode_reward_mean"] for result in runs]
    measured(score=means[9])
    assert means[4] >= 7.8
    assert means[9] >= 8.3


@pytest.mark.parametrize(
    ("env", "bar", "steps"),
    [
        ("CartPole-v1", 475, 100_000),
        ("Acrobot-v1", -85, 300_000),
        ("Pendulum-v1", -250, 200_000),
        ("LunarLander-v3", 200, 1_000_000),
    ],
)
def test_score_within_steps(env, bar, steps, seed, measured):
    best = best_within(env, seed, bar, steps)
    measured(score=best)
    assert best >= bar
