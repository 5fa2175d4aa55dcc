"""TD3 with its default settings learns to hold the pendulum up, with each of three seeds.

The scores are those of ``docs/algorithms/td3.md``; ``make learn`` runs this.
"""

import pytest

import steppe
from tests.learning.test_sac import SEEDS, best_within

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("seed", SEEDS)]


def test_the_pendulum_is_held_up_within_12_000_steps(seed, measured):
    config = steppe.TD3Config(
        env="Pendulum-v1", seed=seed, metrics_num_episodes_for_smoothing=10, write_run=False
    )
    best, now = best_within(config, -200, 12_000)
    measured(score=best, steps=now)
    assert best >= -200
