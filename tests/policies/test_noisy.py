"""Noise on top of a policy's actions: white, correlated, or nothing but chance."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from steppe.learning.networks import ActorCriticNetworks
from steppe.models.distributions import Distribution
from steppe.policies.noisy import NoisyPolicy
from steppe.spaces import spec_of
from steppe.types import SpacePair, Weights

OBS = spec_of(spaces.Box(-1, 1, (3,), np.float32))
BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32))
TREE = spaces.Tuple((spaces.Box(-3, 3, (1, 2), np.float32), spaces.Box(0, 1, (1,), np.float32)))
UPPER = 0.8413447  # of the normal distribution at 1


def made(space=BOX, **changes):
    """A policy that does nothing by itself: all parameters are 0."""
    distribution = Distribution(spec_of(space), squash=True)
    pair = SpacePair(OBS, distribution.spec)
    nets = ActorCriticNetworks(pair, distribution, np.random.default_rng(0), normalize=False, hiddens=[4])
    settings = {"deviation": 0.5, "correlation": 0.0, "draws": False} | changes
    policy = NoisyPolicy(nets.policy, distribution.actions, **settings)
    return policy, Weights(1, np.zeros(nets.actor_size, np.float32))


def act(policy, weights, noise, state=None, n=1):
    noise = None if noise is None else np.broadcast_to(np.float32(noise), (n, policy.noise_size))
    return policy.act(policy.load(weights), np.zeros((n, 3), np.float32), state, noise)


def test_noise_is_added_in_units_of_the_bounds():
    policy, weights = made()
    decision = act(policy, weights, [UPPER, 1 - UPPER])
    np.testing.assert_allclose(np.tanh(decision.action), [[0.5, -0.5]], rtol=1e-5)
    np.testing.assert_allclose(policy.to_env(decision.action), [[0.5, 2.5]], rtol=1e-5)
    assert policy.initial_state(2) is decision.state is None


def test_without_noise_the_policy_acts_as_it_is():
    policy, weights = made(correlation=0.9)
    decision = act(policy, weights, None, state={"noise": np.ones((1, 2), np.float32)})
    assert np.array_equal(policy.to_env(decision.action), [[0.0, 5.0]])
    assert np.array_equal(decision.state["noise"], [[1.0, 1.0]])


def test_noise_beyond_the_bounds_ends_at_them_and_stays_finite():
    policy, weights = made(deviation=50.0)
    decision = act(policy, weights, [UPPER, 1 - UPPER])
    assert np.isfinite(decision.action).all()
    np.testing.assert_allclose(policy.to_env(decision.action), [[1.0, 0.0]], atol=1e-5)


def test_by_chance_actions_are_uniform_over_the_bounds():
    policy, weights = made(TREE)
    decision = act(policy, weights._replace(scalars={"random": 1.0}), [0.25, 0.5, 0.9])
    pair, one = policy.to_env(decision.action)
    assert pair.shape == (1, 1, 2)
    np.testing.assert_allclose(pair, [[[-1.5, 0.0]]], atol=1e-5)
    np.testing.assert_allclose(one, [[0.9]], atol=1e-5)


def test_correlated_noise_is_a_process_of_the_same_deviation():
    policy, weights = made(correlation=0.6)
    first = act(policy, weights, [UPPER, UPPER], policy.initial_state(1))
    np.testing.assert_allclose(first.state["noise"], [[0.4, 0.4]], rtol=1e-5)  # sqrt(1 - 0.36) * 0.5
    second = act(policy, weights, [UPPER, 0.5], first.state)
    np.testing.assert_allclose(second.state["noise"], [[0.6 * 0.4 + 0.4, 0.6 * 0.4]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.tanh(second.action), second.state["noise"], rtol=1e-4)
    rng, state, seen = np.random.default_rng(0), policy.initial_state(64), []
    for _ in range(200):
        state = act(policy, weights, rng.uniform(1e-6, 1 - 1e-6, (64, 2)), state, 64).state
        seen.append(state["noise"])
    late = np.array(seen[20:])
    assert late.std() == pytest.approx(0.5, abs=0.02)
    assert (late[1:] * late[:-1]).mean() / late.var() == pytest.approx(0.6, abs=0.03)


def test_the_policy_may_draw_too():
    policy, weights = made(draws=True)
    assert policy.noise_size == 4
    still = act(policy, weights, [0.5, 0.5, UPPER, 0.5])
    np.testing.assert_allclose(still.action, [[1.0, 0.0]], atol=1e-4)  # its own deviation is exp(0)
