"""TD3 learns to hold the pendulum up and to climb the hill, with each of three seeds.

The scores are those of ``docs/algorithms/td3.md``; ``make learn`` runs this.
"""

import pytest

import steppe
from tests.learning.test_sac import SWINGS

pytestmark = pytest.mark.slow


def test_td3_pendulum(learned):
    learned(steppe.TD3Config(env="Pendulum-v1"), -200, 12_000, episodes=10)


def test_td3_mountaincar(learned):
    learned(steppe.TD3Config(env="MountainCarContinuous-v0", **SWINGS), 90, 60_000, episodes=10)
