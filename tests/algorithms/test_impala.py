"""IMPALA: V-trace on rows that older weights acted, by hand, by a naive reference, and on average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe import returns
from steppe.algorithms.impala import Hyper, vtrace_targets
from tests.algorithms.naive import TINY, column, first_step, network, one_update, vtrace_by_loop
from tests.envs_for_tests import Identity


def hyper(**changes):
    numbers = {"lr": 0.1, "vf_coeff": 0.5, "entropy_coeff": 0.0, "correction": 1.0, "clip_rho": 1.0}
    return Hyper(**{**numbers, "kl_stop": np.inf, "gamma": 1.0, **changes})


def one_step_episodes(*columns):
    """Columns of rows whose reward and end stand in the row below, as episodes of one step."""
    first, second = (jnp.asarray(column, jnp.float32) for column in columns)
    ends = jnp.array([[False], [True]]) & jnp.ones_like(first, jnp.bool_)
    return first, second, (ends, jnp.zeros_like(ends), jnp.ones_like(ends))


def test_targets_equal_hand_computed_numbers():
    reward = np.array([[0.0], [1.0], [3.0]], np.float32)
    value = np.array([[2.0], [1.0], [5.0]], np.float32)
    log_ratio = np.log(np.array([[2.0], [0.5], [1.0]], np.float32))
    ends = (np.array([[False], [False], [True]]), np.zeros((3, 1), np.bool_), np.ones((3, 1), np.bool_))
    advantage, target = vtrace_targets(reward, value, log_ratio, ends, hyper())
    # Errors 1 + 1 - 2 = 0 and 3 - 1 = 2, weighed by 1 (not 2) and 0.5; the trace of row 0 by 1.
    assert np.ravel(target) == pytest.approx([2 + 0 + 1, 1 + 1, 0])
    assert np.ravel(advantage) == pytest.approx([1 + 2 - 2, 0.5 * (3 - 1), 0])
    wide, _ = vtrace_targets(reward, value, log_ratio, ends, hyper(clip_rho=4.0))
    assert np.ravel(wide) == pytest.approx([2 * (1 + 2 - 2), 1, 0])
    plain, returned = vtrace_targets(reward, value, log_ratio, ends, hyper(correction=0.0))
    assert np.ravel(returned) == pytest.approx([4, 3, 0])
    assert np.ravel(plain) == pytest.approx([2, 2, 0])


@jax.jit
def three_ways(reward, value, ends, gamma):
    """Targets of rows that the newest weights acted, by V-trace, by GAE and as the n-step return."""
    vtraced = vtrace_targets(reward, value, jnp.zeros_like(value), ends, hyper(gamma=gamma))
    n_step = returns.n_step(reward, value, *ends, gamma=gamma, n=len(value))
    return vtraced, returns.gae(reward, value, *ends, gamma=gamma, lam=1.0), n_step


@given(st.integers(0, 1 << 30), st.floats(0, 1))
def test_on_policy_they_are_whole_returns(seed, gamma):
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, 9, 4)).astype(np.float32)
    ends = (rng.random((9, 4)) < 0.2, rng.random((9, 4)) < 0.2, rng.random((9, 4)) < 0.9)
    (advantage, target), by_gae, n_step = three_ways(reward, value, ends, gamma)
    for found, known in zip((advantage, target, target), (*by_gae, n_step), strict=True):
        assert np.asarray(found) == pytest.approx(np.asarray(known), abs=1e-5)


@pytest.mark.parametrize(("bound", "known"), [(1.0, 0.5 / 0.6), (2.0, 0.9)])
def test_what_a_stale_coin_paid_is_worth_what_it_would_pay_now(bound, known):
    """A fair coin was thrown; today's shows heads in 9 of 10. Heads pay 1.

    The value at which targets are right on average is that of the policy min(bound * old, new), normalised
    (section 4.1 of the paper): (0.1, 0.5) with a bound of 1, and (0.1, 0.9) where none is cut. Uncorrected
    it is 0.5.
    """
    heads = np.arange(1000) % 2
    value, reward, ends = one_step_episodes(np.full((2, 1000), known), np.stack([heads * 0, heads]))
    log_ratio = jnp.log(jnp.where(jnp.asarray(heads) == 1, 0.9, 0.1) / 0.5) * jnp.ones((2, 1))
    columns = (jnp.broadcast_to(reward, value.shape), value, log_ratio)
    _, target = vtrace_targets(*columns, ends, hyper(clip_rho=bound))
    assert float(target[0].mean()) == pytest.approx(known, abs=1e-5)
    _, uncorrected = vtrace_targets(*columns, ends, hyper(clip_rho=bound, correction=0.0))
    assert float(uncorrected[0].mean()) == pytest.approx(0.5)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_rows_that_other_weights_acted_are_corrected(shift):
    """The weights move between acting and learning, as they do where runners sample meanwhile."""
    config = steppe.IMPALAConfig(**TINY, lr=0.01, entropy_coeff=0.1, vf_loss_coeff=0.3)
    learner, before, batch, stats = one_update(config, shift)
    value, logp = network(learner, before, batch)
    log_ratio = logp - batch["logp"]
    advantage, target = vtrace_by_loop(batch, value, log_ratio, 0.9)

    def loss(places, logp, value, entropy):
        gain = (logp * column(advantage, places)).mean()
        return -gain + 0.3 * ((value - column(target, places)) ** 2).mean() - 0.1 * entropy.mean()

    after, norm = first_step(learner, before, batch, loss, lr=0.01, grad_clip=0.5)
    assert learner.get_weights() == pytest.approx(after, abs=5e-5)
    assert stats["grad_norm"] == pytest.approx(norm, rel=1e-3)
    stale = np.array([log_ratio[place] for place in advantage])
    assert bool(np.abs(stale).max() > 0.2) is (shift > 0)
    assert stats["kl"] == pytest.approx((np.exp(stale) - 1 - stale).mean(), rel=1e-3, abs=1e-6)
    uncorrected, *_ = one_update(config.copy(vtrace=False), shift)
    assert np.allclose(uncorrected.get_weights(), learner.get_weights(), atol=1e-5) is (shift == 0)


def test_identity_is_learned_in_several_passes():
    settings = {"num_envs_per_env_runner": 4, "fcnet_hiddens": [16], "write_run": False, "seed": 0}
    steps = {"train_batch_size": 128, "min_sample_timesteps_per_iteration": 512, "num_epochs": 2}
    config = steppe.IMPALAConfig(env=Identity, **settings, **steps, minibatch_size=32, lr=1e-2, gamma=0.0)
    with config.build() as algo:
        for _ in range(5):
            info = algo.train()["info"]["default_policy"]
        greedy = algo.evaluate(num_episodes=4)
    assert info["epochs"] == 2
    assert greedy["episode_reward_mean"] / 8 >= 0.9


def test_the_rllib_preset_and_names_of_rllib():
    config = steppe.IMPALAConfig.preset("rllib", vtrace_clip_rho_threshold=2.0, num_sgd_iter=3)
    assert (config.lr, config.clip_rho, config.num_epochs, config.grad_clip) == (5e-4, 2.0, 3, 40.0)
