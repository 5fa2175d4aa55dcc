"""The plain policy gradient loss on hand-computed numbers, and steps over batches of any size as one."""

from __future__ import annotations

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from steppe.learning.policy_gradient import PARTS, averaged, policy_gradient_loss
from steppe.models.distributions import Distribution
from steppe.spaces import spec_of

TWO = Distribution(spec_of(spaces.Discrete(2)))
HYPER = SimpleNamespace(vf_coeff=0.5, entropy_coeff=0.1)


class TwoLogits(eqx.Module):
    """A model whose outputs are its inputs: two logits and a value."""

    def __call__(self, obs):
        return obs[:2], obs[2]


def rows():
    """Equal odds; odds 3:1, acted when they were equal; and a row that does not count."""
    return {
        "obs": jnp.array([[0.0, 0.0, 1.0], [np.log(3.0), 0.0, 2.0], [5.0, 0.0, 9.0]]),
        "action": jnp.array([0, 0, 1]),
        "logp": jnp.log(jnp.array([0.5, 0.5, 0.5])),
        "advantage": jnp.array([2.0, -1.0, 7.0]),
        "target": jnp.array([0.0, 5.0, 0.0]),
        "weight": jnp.array([1.0, 1.0, 0.0]),
    }


def test_the_loss_equals_hand_computed_numbers():
    loss, parts = policy_gradient_loss(TwoLogits(), TWO, rows(), HYPER)
    policy = -(2.0 * np.log(0.5) - 1.0 * np.log(0.75)) / 2
    entropy = (np.log(2.0) - (0.75 * np.log(0.75) + 0.25 * np.log(0.25))) / 2
    assert parts["policy_loss"] == pytest.approx(policy, rel=1e-5)
    assert parts["vf_loss"] == pytest.approx((1.0 + 9.0) / 2)
    assert parts["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert parts["kl"] == pytest.approx((0.5 - np.log(1.5)) / 2, rel=1e-4)
    assert loss == pytest.approx(policy + 0.5 * 5.0 - 0.1 * entropy, rel=1e-5)
    assert tuple(parts) == PARTS


def test_its_gradient_raises_the_log_probability_of_what_did_better_than_expected():
    def loss(obs):
        return policy_gradient_loss(TwoLogits(), TWO, {**rows(), "obs": obs}, HYPER)[1]["policy_loss"]

    gradient = jax.grad(loss)(rows()["obs"])
    # d log p(0) / d logit 0 is 1 - p(0): half the advantage 2, a quarter of the advantage -1; two rows.
    assert np.asarray(gradient[:2, 0]) == pytest.approx([-2.0 * 0.5 / 2, 1.0 * 0.25 / 2])
    assert not np.asarray(gradient[2]).any()


def test_rows_without_weight_give_no_gradient_even_where_they_are_not_finite():
    batch = {**rows(), "advantage": jnp.array([2.0, -1.0, jnp.inf])}

    def loss(obs):
        return policy_gradient_loss(TwoLogits(), TWO, {**batch, "obs": obs}, HYPER)[0]

    assert np.isfinite(jax.grad(loss)(batch["obs"])[:2]).all()
    assert np.isfinite(loss(batch["obs"]))


@given(
    arrays.arrays(np.float32, 7, elements=st.floats(-100, 100, width=32)),
    arrays.arrays(np.bool_, 7),
)
def test_a_mean_is_over_the_rows_that_count(column, counts):
    expected = column[counts].mean() if counts.any() else 0.0
    hidden = np.where(counts, column, np.nan)
    found = averaged({"x": jnp.asarray(hidden)}, jnp.asarray(counts, jnp.float32))["x"]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
