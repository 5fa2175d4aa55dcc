"""SAC with its default settings learns what it is known to learn, with each of three seeds.

The scores are those of ``docs/algorithms/sac.md``; ``make learn`` runs this.
"""

import pytest

import steppe

pytestmark = pytest.mark.slow

# A hill that is climbed by swinging is found by noise that keeps its direction for a while.
SWINGS = {"exploration_noise": 0.5, "exploration_noise_correlation": 0.98}


def test_sac_pendulum(learned):
    learned(steppe.SACConfig(env="Pendulum-v1"), -200, 12_000, episodes=10)


def test_sac_mountaincar(learned):
    learned(steppe.SACConfig(env="MountainCarContinuous-v0", **SWINGS), 90, 60_000, episodes=10)
