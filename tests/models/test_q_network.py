"""Q networks: dueling, noise and support against what they are defined as; folding keeps the values."""

from __future__ import annotations

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from steppe.models.actions import MASKED
from steppe.models.q_network import make_q_network, scaled_noise
from steppe.spaces import spec_of

BOX = spec_of(spaces.Box(-9, 9, (3,), np.float32))
OBS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def made(**changes):
    network = make_q_network(BOX, 4, np.random.default_rng(1), **{"hiddens": (6, 5), **changes})
    rng = np.random.default_rng(2)  # biases too, which begin at 0
    return jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), network)


def test_a_plain_network_is_a_stack_of_layers():
    network = made(dueling=False, activation="tanh")
    (one,), (two, three) = network.trunk, network.advantage
    x = np.tanh(OBS @ one.weight + one.bias)
    x = np.tanh(x @ two.weight + two.bias)
    np.testing.assert_allclose(jax.vmap(network)(OBS)[..., 0], x @ three.weight + three.bias, rtol=1e-5)


def test_dueling_values_are_the_value_and_the_advantage_over_the_mean():
    network = made(activation="linear")
    x = OBS @ network.trunk[0].weight + network.trunk[0].bias

    def stream(layers):
        y = x
        for layer in layers:
            y = y @ layer.weight + layer.bias
        return y

    advantage, value = stream(network.advantage), stream(network.value)
    q = jax.vmap(network)(OBS)[..., 0]
    np.testing.assert_allclose(q, value + advantage - advantage.mean(1, keepdims=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q.mean(1), value[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hiddens", [(), (6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("support", [None, (-2.0, 2.0, 7)])
def test_a_folded_network_computes_the_same(hiddens, dueling, support):
    network = made(hiddens=hiddens, dueling=dueling, support=support, sigma0=0.5)
    weights, biases = network.folded()
    sizes = network.describe()["mlp"]["sizes"]
    assert [w.shape for w in weights] == list(pairwise(sizes))
    x = OBS
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = np.maximum(x @ weight + bias, 0.0)
    x = x @ weights[-1] + biases[-1]
    np.testing.assert_allclose(jax.vmap(network)(OBS).reshape(x.shape), x, rtol=1e-4, atol=1e-5)


def test_the_values_of_distributions_are_their_means():
    network = made(support=(-1.0, 3.0, 3))
    logits = np.log([[0.2, 0.3, 0.5], [1.0, 1e-9, 1e-9]]).astype(np.float32)
    np.testing.assert_allclose(network.expected(logits), [-0.2 + 0.3 + 1.5, -1.0], rtol=1e-5)


def test_noise_is_a_product_of_two_vectors_on_the_weights_of_the_streams():
    network = made(dueling=False, activation="linear", hiddens=(5,), sigma0=0.4)
    first, last = network.advantage
    assert network.noise_size == 3 + 5 + 5 + 4
    noise = np.random.default_rng(3).normal(size=network.noise_size).astype(np.float32)
    a, b, c, d = np.split(noise, [3, 8, 13])
    one = first.weight + first.scale * np.outer(a, b)
    two = last.weight + last.scale * np.outer(c, d)
    x = OBS @ one + first.bias + first.bias_scale * b
    wanted = x @ two + last.bias + last.bias_scale * d
    found = jax.vmap(network, (0, None))(OBS, noise)[..., 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    plain = jax.vmap(network)(OBS)[..., 0]
    np.testing.assert_allclose(jax.vmap(network, (0, None))(OBS, 0 * noise)[..., 0], plain, rtol=1e-5)


def test_noise_starts_as_large_as_sigma0_says_and_leaves_the_trunk_alone():
    network = make_q_network(BOX, 4, np.random.default_rng(1), hiddens=(6, 5), sigma0=0.5)
    assert network.trunk[0].scale is None
    for layer in (*network.advantage, *network.value):
        np.testing.assert_allclose(layer.scale, 0.5 / np.sqrt(layer.weight.shape[0]), rtol=1e-6)
        np.testing.assert_allclose(layer.bias_scale, layer.scale[0], rtol=1e-6)
    np.testing.assert_allclose(scaled_noise(jnp.array([-4.0, 0.0, 9.0])), [-2.0, 0.0, 3.0])


def test_illegal_actions_are_worth_less_than_any():
    pair = spaces.Dict({"action_mask": spaces.MultiBinary(4), "x": spaces.Box(-9, 9, (3,), np.float32)})
    seen = spec_of(spaces.Dict({"x": pair["x"]}))
    network = make_q_network(seen, 4, np.random.default_rng(0), masked=True)
    obs = {"action_mask": np.array([0, 1, 0, 1], np.int8), "x": OBS[0]}
    q = network.expected(network(obs))
    np.testing.assert_array_equal(network.legal(q, obs), [MASKED, q[1], MASKED, q[3]])


def test_gradients_reach_every_part():
    network = made(support=(-1.0, 1.0, 3), sigma0=0.5)
    noise = np.ones(network.noise_size, np.float32)
    gradient = eqx.filter_grad(lambda n: (n(OBS[0], noise) ** 2).sum())(network)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradient))
