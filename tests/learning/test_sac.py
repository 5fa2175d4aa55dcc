"""SAC with its default settings learns what it is known to learn, with each of three seeds.

The scores are those of ``docs/algorithms/sac.md``; ``make learn`` runs this.
"""

import pytest

import steppe

SEEDS = (0, 1, 2)
# A hill that is climbed by swinging is found by noise that keeps its direction for a while.
SWINGS = {"exploration_noise": 0.5, "exploration_noise_correlation": 0.98}

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("seed", SEEDS)]


def best_within(config, bar, steps):
    """The best mean of 10 episodes within so many env steps, and when; stops at the first that is enough."""
    best, now = float("-inf"), 0
    with config.build() as algo:
        while best < bar and now < steps:
            result = algo.train()
            now = result["timesteps_total"]
            if result["episodes_total"] >= 10:
                best = max(best, result["episode_reward_mean"])
    return best, now


@pytest.mark.parametrize(
    ("env", "bar", "steps"), [("Pendulum-v1", -200, 12_000), ("MountainCarContinuous-v0", 90, 60_000)]
)
def test_score_within_steps(env, bar, steps, seed, measured):
    config = steppe.SACConfig(env=env, seed=seed, metrics_num_episodes_for_smoothing=10, write_run=False)
    best, now = best_within(config.copy(**(SWINGS if "Car" in env else {})), bar, steps)
    measured(score=best, steps=now)
    assert best >= bar
