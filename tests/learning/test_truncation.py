"""What a limit cuts is worth what would have come: exact values, and short episodes that teach long ones."""

import numpy as np
import pytest

import steppe
from steppe.types import DEFAULT_POLICY
from tests.learning.envs import Ring

GAMMA = 0.8
EXACT = {
    "gamma": GAMMA,
    "fcnet_hiddens": [],
    "fcnet_activation": "linear",
    "observation_filter": "NoFilter",
    "grad_clip": None,
    "write_run": False,
    "seed": 0,
}
WAYS = {
    "PPO": lambda: steppe.PPOConfig(
        **EXACT, lr=0.05, train_batch_size=256, minibatch_size=64, reward_scale="none"
    ),
    "DQN": lambda: steppe.DQNConfig(
        **EXACT, lr=[[0, 0.05], [4000, 0.001]], dueling=False, training_intensity=32
    ),
}


def exact_values(ends):
    """Of the five places: the solution of ``V = r + gamma P V``; the way from place 4 leads to 0 or ends."""
    way = np.roll(np.eye(5), 1, axis=1)
    if ends:
        way[4] = 0
    return np.linalg.solve(np.eye(5) - GAMMA * way, np.arange(5.0))


@pytest.mark.parametrize("ends", [False, True], ids=["cut", "ended"])
@pytest.mark.parametrize("way", WAYS)
def test_critics_find_the_exact_values_of_a_ring_that_a_limit_cuts(way, ends):
    config = WAYS[way]().copy(env=lambda: Ring(ends), max_episode_steps=7)
    expected, places = exact_values(ends), np.arange(5)
    with config.build() as algo:
        for _ in range(30):
            algo.train()
            values = algo._learner.learners[DEFAULT_POLICY].values(places)
            if np.abs(values - expected).max() < 0.005:
                break
    assert values == pytest.approx(expected, abs=1e-2)
    # Were a cut an end, the ring would be worth much less: the test can tell.
    assert np.abs(exact_values(True) - exact_values(False)).min() > 1.0


@pytest.mark.slow
def test_ppo_cut_short(learned):
    """Trained on 50 steps of CartPole at a time, the greedy policy balances for the whole 500."""
    whole = {"max_episode_steps": 500}
    config = steppe.PPOConfig(
        env="CartPole-v1", max_episode_steps=50, evaluation_interval=2, evaluation_config=whole
    )

    def greedy(result):
        return result["evaluation"]["episode_reward_mean"] if "evaluation" in result else None

    learned(config, 400, 200_000, score=greedy)
