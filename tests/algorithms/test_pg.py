"""PG: returns with and without a critic, on hand-computed numbers and against a naive reference."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms.pg import Hyper, return_targets
from tests.algorithms.naive import TINY, column, first_step, network, one_update, vtrace_by_loop
from tests.envs_for_tests import Identity


def lane(*values, dtype=np.float32):
    return np.array([values], dtype).T


def hyper(**changes):
    numbers = {"lr": 0.1, "vf_coeff": 0.5, "entropy_coeff": 0.0, "kl_stop": np.inf, "gamma": 0.5, "lam": 1.0}
    return Hyper(critic=changes.pop("critic", 1.0), **{**numbers, **changes})


ENDS = (lane(0, 0, 0, 1, dtype=np.bool_), np.zeros((4, 1), np.bool_), np.ones((4, 1), np.bool_))
REWARD, VALUE = lane(9, 1, 2, 4), lane(1, 2, 3, 7)


def test_without_a_critic_an_advantage_is_the_discounted_return():
    advantage, target = return_targets(REWARD, VALUE, jnp.zeros((4, 1)), ENDS, hyper(critic=0.0))
    assert np.ravel(advantage).tolist() == np.ravel(target).tolist() == [1 + 1 + 1, 2 + 2, 4, 0]


def test_with_a_critic_it_is_what_the_return_adds_to_the_value():
    advantage, target = return_targets(REWARD, VALUE, jnp.zeros((4, 1)), ENDS, hyper())
    assert np.ravel(target).tolist() == [3, 4, 4, 0]
    assert np.ravel(advantage).tolist() == [2, 2, 1, 0]


def test_a_cut_is_worth_what_the_critic_says_and_nothing_without_one():
    cut = (np.zeros((4, 1), np.bool_), *ENDS[1:])
    assert np.ravel(return_targets(REWARD, VALUE, jnp.zeros(1), cut, hyper())[1])[2] == 4 + 0.5 * 7
    assert np.ravel(return_targets(REWARD, VALUE, jnp.zeros(1), cut, hyper(critic=0.0))[1])[2] == 4


@pytest.mark.parametrize("use_critic", [True, False])
def test_an_update_is_one_step_on_standardised_returns(use_critic):
    learner, before, batch, stats = one_update(steppe.PGConfig(**TINY, lr=0.01, use_critic=use_critic))
    value, logp = network(learner, before, batch)
    value = value if use_critic else np.zeros_like(value)
    returns, target = vtrace_by_loop(batch, value, np.zeros_like(logp), 0.9)

    def loss(places, logp, value, entropy):
        advantage = column(returns, places)
        gain = (logp * (advantage - advantage.mean()) / advantage.std()).mean()
        return -gain + (0.5 * ((value - column(target, places)) ** 2).mean() if use_critic else 0.0)

    after, norm = first_step(learner, before, batch, loss, lr=0.01, grad_clip=0.5)
    assert learner.get_weights() == pytest.approx(after, abs=2e-5)
    assert stats["grad_norm"] == pytest.approx(norm, rel=1e-3)
    critic = slice(learner.networks.actor_size, None)
    assert np.array_equal(learner.get_weights()[critic], before[critic]) is not use_critic


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (1,), np.float32)], ids=str)
def test_identity_is_learned_from_whole_episodes_without_a_critic(space):
    settings = {"num_envs_per_env_runner": 4, "fcnet_hiddens": [16], "write_run": False, "seed": 0}
    config = steppe.PGConfig(env=lambda: Identity(space), **settings, train_batch_size=256, gamma=0.0)
    with config.copy(use_critic=False, batch_mode="complete_episodes", lr=2e-2).build() as algo:
        for _ in range(40):
            algo.train()
        greedy = algo.evaluate(num_episodes=4)
    assert greedy["episode_reward_mean"] / 8 >= (0.9 if isinstance(space, spaces.Discrete) else -0.25)


def test_the_rllib_preset_trains():
    config = steppe.PGConfig.preset("rllib", env="CartPole-v1", seed=0, write_run=False, fcnet_hiddens=[8])
    assert (config.lr, config.train_batch_size, config.use_critic) == (4e-4, 200, False)
    with config.build() as algo:
        assert np.isfinite(algo.train()["info"]["default_policy"]["total_loss"])
