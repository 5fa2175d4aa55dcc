"""APPO: the surrogate around the policy before the update, on hand-computed numbers and stale rows."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms.appo import Hyper, appo_loss
from steppe.models.distributions import Distribution
from steppe.spaces import spec_of
from tests.algorithms.naive import TINY, column, first_step, network, one_update, vtrace_by_loop
from tests.envs_for_tests import Identity

TWO = Distribution(spec_of(spaces.Discrete(2)))


class TwoLogits(eqx.Module):
    """A model whose outputs are its inputs: two logits and a value."""

    def __call__(self, obs):
        return obs[:2], obs[2]


def hyper(**changes):
    numbers = {"lr": 0.1, "clip": 0.2, "vf_coeff": 0.5, "entropy_coeff": 0.1, "kl_coeff": 0.0}
    numbers |= {"correction": 1.0, "clip_rho": 1.0, "kl_stop": np.inf, "gamma": 0.9, "lam": 1.0}
    return Hyper(**{**numbers, **changes})


def rows():
    """Odds 1:1 that were 1:1; odds 3:1 that were 1:1 and, when acted, 1:4; a row that does not count."""
    return {
        "obs": jnp.array([[0.0, 0.0, 1.0], [np.log(3.0), 0.0, 2.0], [5.0, 0.0, 9.0]]),
        "action": jnp.array([0, 0, 1]),
        "logp": jnp.log(jnp.array([0.5, 0.2, 0.5])),
        "log_ratio": jnp.log(jnp.array([1.0, 2.5, 1.0])),
        "advantage": jnp.array([2.0, 1.0, jnp.nan]),
        "target": jnp.array([0.0, 5.0, 0.0]),
        "weight": jnp.array([1.0, 1.0, 0.0]),
    }


def test_the_loss_equals_hand_computed_numbers():
    loss, parts = appo_loss(TwoLogits(), TWO, rows(), hyper())
    entropy = (np.log(2.0) - (0.75 * np.log(0.75) + 0.25 * np.log(0.25))) / 2
    # Ratios to the policy before the update: 1 and 0.75 / 0.5 = 1.5, the second clipped to 1.2.
    assert parts["policy_loss"] == pytest.approx(-(2.0 + 1.2) / 2)
    assert parts["vf_loss"] == pytest.approx((1.0 + 9.0) / 2)
    assert parts["kl"] == pytest.approx((0.5 - np.log(1.5)) / 2, rel=1e-4)
    assert parts["clip_fraction"] == pytest.approx(0.5)
    assert parts["staleness"] == pytest.approx((1.5 - np.log(2.5)) / 2, rel=1e-4)
    assert loss == pytest.approx(-1.6 + 0.5 * 5.0 - 0.1 * entropy, rel=1e-5)
    penalised, _ = appo_loss(TwoLogits(), TWO, rows(), hyper(kl_coeff=2.0))
    assert penalised - loss == pytest.approx(2.0 * (0.5 - np.log(1.5)) / 2, rel=1e-3)


def test_a_clipped_gain_has_no_gradient_and_a_clipped_loss_has():
    def loss(obs, advantage):
        batch = {**rows(), "obs": obs, "advantage": jnp.array([2.0, advantage, 0.0])}
        return appo_loss(TwoLogits(), TWO, batch, hyper(entropy_coeff=0.0))[0]

    assert not np.asarray(jax.grad(loss)(rows()["obs"], 1.0))[1, :2].any()
    assert np.asarray(jax.grad(loss)(rows()["obs"], -1.0))[1, :2].all()


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_first_step_is_that_of_vtrace_whoever_acted(shift):
    """Before any step the ratio is 1: its gradient is that of the log-probability."""
    config = steppe.APPOConfig(**TINY, lr=0.01, minibatch_size=None, num_epochs=1, lambda_=0.8)
    learner, before, batch, stats = one_update(config, shift)
    value, logp = network(learner, before, batch)
    corrected, target = vtrace_by_loop(batch, value, logp - batch["logp"], 0.9, lam=0.8)

    def loss(places, logp, value, entropy):
        advantage = column(corrected, places)
        gain = (logp * (advantage - advantage.mean()) / advantage.std()).mean()
        return -gain + 0.5 * ((value - column(target, places)) ** 2).mean()

    after, norm = first_step(learner, before, batch, loss, lr=0.01, grad_clip=0.5)
    assert learner.get_weights() == pytest.approx(after, abs=5e-5)
    assert stats["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert stats["kl"] == pytest.approx(0.0, abs=1e-5)
    assert stats["clip_fraction"] == 0
    assert (stats["staleness"] > 0.01) is (shift > 0)


def test_the_penalty_is_used_and_adapted_only_if_it_is_asked_for():
    settings = {**TINY, "kl_target": 10.0}
    *_, stats = one_update(steppe.APPOConfig(**settings, use_kl_loss=True, kl_coeff=0.2))
    assert stats["cur_kl_coeff"] == pytest.approx(0.1)
    *_, stats = one_update(steppe.APPOConfig(**settings))
    assert stats["cur_kl_coeff"] == 0


def test_identity_is_learned():
    settings = {"num_envs_per_env_runner": 4, "fcnet_hiddens": [16], "write_run": False, "seed": 0}
    steps = {"train_batch_size": 128, "min_sample_timesteps_per_iteration": 512, "minibatch_size": 32}
    with steppe.APPOConfig(env=Identity, **settings, **steps, lr=1e-2, gamma=0.0).build() as algo:
        for _ in range(5):
            algo.train()
        greedy = algo.evaluate(num_episodes=4)
    assert greedy["episode_reward_mean"] / 8 >= 0.9


def test_the_rllib_preset_and_names_of_rllib():
    config = steppe.APPOConfig.preset("rllib", vtrace_clip_rho_threshold=2.0, sgd_minibatch_size=100)
    assert (config.clip_param, config.clip_rho, config.minibatch_size) == (0.4, 2.0, 100)
