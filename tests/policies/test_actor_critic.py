"""Acting: flat weights and back, ragged batches, noise as data, and agreement with the learner's networks."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from steppe.errors import CheckpointError
from steppe.learning.networks import ActorCriticNetworks, arrays_of, refilled
from steppe.models.distributions import Distribution
from steppe.models.encoders import norm_merge, normalize
from steppe.models.observations import norm_init
from steppe.policies.actor_critic import Layout
from steppe.spaces import spec_of
from steppe.types import SpacePair, Weights

OBS = spec_of(spaces.Box(-10, 10, (3,), np.float32))
DISCRETE = spec_of(spaces.Discrete(4, start=3))
MIXED = spec_of(spaces.Dict({"a": spaces.Box(-2, 2, (2,), np.float32), "b": spaces.Discrete(3)}))


def networks(action=DISCRETE, *, normalize=True):
    return ActorCriticNetworks(
        SpacePair(OBS, action),
        Distribution(action),
        np.random.default_rng(0),
        normalize=normalize,
        hiddens=[8],
        activation="tanh",
        share_layers=False,
        conv_filters=None,
        free_log_std=True,
    )


def loaded(nets, params=None, normalizer=None):
    params = nets.params if params is None else params
    normalizer = nets.normalizer if normalizer is None else normalizer
    return nets.policy.load(Weights(1, params[: nets.actor_size], normalizer))


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)).astype(np.float32), rng.uniform(0.01, 0.99, (n, 4)).astype(np.float32)


def test_a_layout_goes_there_and_back_and_is_a_key():
    tree = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": (np.float32(7), np.zeros((0, 2), np.float32)),
    }
    layout = Layout.of(tree)
    flat = layout.ravel(tree)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert layout.size == 7
    back = jax.jit(layout.unravel)(flat)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, tree))
    assert hash(layout) == hash(Layout.of(jax.tree.map(np.ones_like, tree)))
    assert layout != Layout.of({"a": tree["a"], "b": (np.zeros(2), np.zeros((0, 2)))})
    assert Layout.of({}).ravel({}).shape == (0,)


def test_the_actors_parameters_come_first():
    nets = networks()
    moved = nets.params.copy()
    moved[nets.actor_size :] += 1.0
    obs, noise = rows(5)
    one, other = (nets.policy.act(loaded(nets, p), obs, None, noise[:, :1]) for p in (nets.params, moved))
    assert np.array_equal(one.logp, other.logp)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("action", [DISCRETE, MIXED], ids=["Discrete", "Dict"])
def test_a_ragged_batch_acts_as_its_rows_do_alone(n, action):
    nets = networks(action)
    weights, (obs, noise) = loaded(nets), rows(n)
    noise = noise[:, : nets.policy.noise_size]
    together = nets.policy.act(weights, obs, None, noise)
    assert together.logp.shape == (n,)
    for i in range(n):
        alone = nets.policy.act(weights, obs[i : i + 1], None, noise[i : i + 1])
        pairs = zip(jax.tree.leaves(together.action), jax.tree.leaves(alone.action), strict=True)
        assert all(np.allclose(a[i], b[0], atol=1e-6) for a, b in pairs)
        assert together.logp[i] == pytest.approx(alone.logp[0], abs=1e-6)


def test_logp_and_mode_agree_with_the_networks_of_the_learner():
    nets = networks()
    stats = norm_merge(OBS, norm_init(OBS), rows(50, seed=1)[0] * 4 + 2, np.ones(50, bool))
    stats = tuple(np.asarray(a) for a in stats)
    big = nets.params * 30  # far from uniform, so that the most likely action is clear
    obs, noise = rows(16)
    weights = loaded(nets, big, stats)
    drawn = nets.policy.act(weights, obs, None, noise[:, :1])
    model = nets.layout.unravel(jnp.asarray(big))
    params = jax.vmap(model.actor)(normalize(OBS, stats, obs))
    expected = np.asarray(jax.nn.log_softmax(params))
    assert np.allclose(drawn.logp, expected[np.arange(16), drawn.action], atol=1e-5)
    greedy = nets.policy.act(weights, obs, None, None)
    assert np.array_equal(greedy.action, expected.argmax(1))
    assert np.array_equal(nets.policy.to_env(greedy.action), greedy.action + 3)


def test_without_a_normalizer_there_are_no_statistics():
    nets = networks(normalize=False)
    assert nets.normalizer == ()
    obs, noise = rows(4)
    assert np.isfinite(nets.policy.act(loaded(nets), obs, None, noise[:, :1]).logp).all()


def test_actions_fit_the_env_and_nothing_is_remembered():
    nets = networks(MIXED)
    obs, noise = rows(6)
    decision = nets.policy.act(loaded(nets), obs, None, noise[:, :3])
    env = nets.policy.to_env(decision.action)
    assert env["a"].dtype == np.float32
    assert (np.abs(env["a"]) <= 2).all()
    assert nets.policy.initial_state(3) is decision.state is None
    assert isinstance(gymnasium.spaces.Discrete(3).contains(int(env["b"][0])), bool)


def test_a_state_of_another_architecture_is_refused():
    nets = networks()
    state = (nets.params, nets.normalizer)
    filled = refilled(state, arrays_of(state))
    assert jax.tree.all(jax.tree.map(np.array_equal, filled, state))
    with pytest.raises(CheckpointError, match="do not fit this network"):
        refilled(state, [nets.params[1:], *nets.normalizer])
    with pytest.raises(CheckpointError, match="do not fit this network"):
        refilled(state, [nets.params])
    refilled(state, [nets.params, *nets.normalizer[:-1], np.zeros(9)], ragged=1)
