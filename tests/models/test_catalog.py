"""The actor-critic: sizes, what acting needs, and shared layers run as one."""

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppe.errors import ConfigError
from steppe.models.catalog import make_actor_critic
from steppe.models.distributions import Distribution
from steppe.spaces import spec_of

spaces = gym.spaces
OBS = spec_of(spaces.Box(-1, 1, (3,)))
MIXED = Distribution(spec_of(spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(4)])))
X = jnp.asarray([0.5, -1.0, 2.0])


def model(distribution=MIXED, **options):
    return make_actor_critic(OBS, distribution, np.random.default_rng(0), **options)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("share_layers", [False, True])
@pytest.mark.parametrize("free_log_std", [False, True])
@pytest.mark.parametrize("hiddens", [(), (5,), (8, 6)])
def test_one_call_equals_its_two_halves(share_layers, free_log_std, hiddens):
    m = model(share_layers=share_layers, free_log_std=free_log_std, hiddens=hiddens, initial_log_std=-0.5)
    params, value = jax.jit(lambda m, x: m(x))(m, X)
    assert params.shape == (MIXED.param_size,)
    assert value.shape == ()
    np.testing.assert_allclose(params, m.actor(X), atol=1e-6)
    np.testing.assert_allclose(value, m.value(X), atol=1e-6)
    np.testing.assert_allclose(params[-2:], -0.5, atol=0.05 * (not free_log_std))


def test_parameters_are_where_they_should_be():
    separate, shared = model(hiddens=(5,)), model(hiddens=(5,), share_layers=True)
    actor = 3 * 5 + 5 + 5 * 6 + 6 + 2
    assert size(separate.actor) == size(shared.actor) == actor
    assert size(separate.critic) == 3 * 5 + 5 + 5 + 1
    assert size(shared.critic) == 5 + 1
    assert size(model(hiddens=(5,), free_log_std=False).actor) == 3 * 5 + 5 + 5 * 8 + 8


def test_shared_layers_learn_from_the_value_and_separate_ones_do_not():
    for share, expected in ((True, True), (False, False)):
        gradient = jax.grad(lambda m: m.value(X))(model(share_layers=share))
        assert bool(np.any(gradient.actor.mlp.weights[0])) is expected


def test_a_free_log_std_ignores_the_observation_and_has_a_gradient():
    m = model(initial_log_std=0.3)
    np.testing.assert_allclose(m.actor(10 * X)[-2:], 0.3, rtol=1e-6)
    gradient = jax.grad(lambda m: MIXED.entropy(m.actor(X)))(m)
    np.testing.assert_allclose(gradient.actor.log_std, [1, 1], rtol=1e-6)
    discrete = model(Distribution(spec_of(spaces.Discrete(4))))
    assert discrete.actor.log_std is None


def test_a_fresh_policy_hardly_prefers_any_action():
    params = jax.vmap(model().actor)(np.random.default_rng(0).normal(size=(50, 3)))
    assert np.abs(params).max() < 0.1
    assert np.abs(jax.vmap(model().value)(np.random.default_rng(0).normal(size=(50, 3)))).max() > 0.1


def test_the_same_generator_state_gives_the_same_model():
    assert eqx.tree_equal(model(), model())


def test_any_observation_space_and_vmap():
    spec = spec_of(spaces.Dict(image=spaces.Box(0, 255, (16, 16, 3), np.uint8), room=spaces.Discrete(3)))
    m = make_actor_critic(spec, MIXED, np.random.default_rng(0), conv_filters=[[4, 4, 4]], share_layers=True)
    obs = {"image": np.zeros((2, 16, 16, 3), np.uint8), "room": np.asarray([0, 2])}
    params, value = jax.jit(jax.vmap(m))(obs)
    assert params.shape == (2, MIXED.param_size)
    assert value.shape == (2,)
    assert not np.array_equal(params[0], params[1])


def test_unknown_activation_is_refused():
    with pytest.raises(ConfigError, match="choose one of"):
        model(activation="sine")
