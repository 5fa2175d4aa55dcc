"""QMIX and VDN on the game of QMIX's paper; the scores are those of ``docs/algorithms/qmix.md``."""

import pytest

import steppe
from examples import mappo
from examples.two_step_game import config

pytestmark = pytest.mark.slow


def greedily(result):
    return result["evaluation"]["episode_reward_mean"]


def team(algo, **settings):
    return config(algo, evaluation_interval=1, evaluation_duration=1, **settings)


def one_team(env_config):
    return mappo.Cover(env_config).with_agent_groups({"team": mappo.ROBOTS})


def test_qmix_cover(learned):
    """Robots who do not see each other cover three goals; how long they still have only the mixer knows."""
    often = {"epsilon": [[0, 1.0], [30_000, 0.05]], "training_intensity": 16, "policies": {"team"}}
    learned(steppe.QMIXConfig(env=one_team, replay_buffer_capacity=50_000, **often), 9.0, 120_000)


def test_mappo_cover(learned):
    """The same robots, each by itself, with a critic that sees them all."""
    learned(mappo.config(), 9.0, 200_000)


def test_qmix_twostep(learned):
    """Trust pays 8, and is kept: whoever explores evenly has to see it in the mixed value."""
    runs = learned(team(steppe.QMIXConfig), 7.9, 40_000, score=greedily, to_the_end=True)
    assert [run["scores"][-1] for run in runs] == [8.0] * 3


def test_qmix_twostep_gru(learned):
    """The same by members that remember."""
    small = {"memory": "gru", "memory_size": 16, "max_seq_len": 2, "fcnet_hiddens": [32]}
    runs = learned(team(steppe.QMIXConfig, **small), 7.9, 40_000, score=greedily, to_the_end=True)
    assert [run["scores"][-1] for run in runs] == [8.0] * 3


def test_vdn_twostep(learned):
    """A sum of values cannot hold the 8 without the 0 beside it; it takes the sure 7."""
    runs = learned(team(steppe.VDNConfig), 6.9, 20_000, score=greedily, to_the_end=True)
    assert [run["scores"][-1] for run in runs] == [7.0] * 3
