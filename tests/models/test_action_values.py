"""Values of actions: several networks in one tree, and what of an action reaches them."""

from __future__ import annotations

import jax
import numpy as np
from gymnasium import spaces

from steppe.models.action_values import action_inputs, action_values, make_action_values
from steppe.models.actions import Actions
from steppe.spaces import spec_of

OBS = spec_of(spaces.Box(-1, 1, (3,), np.float32))


def networks(**changes):
    return make_action_values(OBS, 2, 1, np.random.default_rng(0), **{"hiddens": [8], **changes})


def test_each_network_says_what_it_says_alone():
    stack, rng = networks(count=3), np.random.default_rng(1)
    obs, action = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    together = action_values(stack, obs, action)
    assert together.shape == (3, 5, 1)
    for k in range(3):
        alone = jax.tree.map(lambda a, k=k: a[k], stack)
        np.testing.assert_allclose(together[k, 4], alone(obs[4], action[4]), rtol=1e-5)
        x = np.maximum(np.concatenate([obs, action], 1) @ alone.mlp.weights[0], 0.0)  # relu, biases are 0
        np.testing.assert_allclose(together[k], x @ alone.mlp.weights[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(together[0], together[1])


def test_where_no_action_comes_along_there_is_a_value_for_each_choice():
    stack = make_action_values(OBS, 0, 4, np.random.default_rng(0), count=1, hiddens=[])
    assert action_values(stack, np.zeros((6, 3), np.float32), np.zeros((6, 0))).shape == (1, 6, 4)


def test_actions_reach_the_networks_squashed_where_the_env_has_bounds():
    space = spaces.Dict(
        {
            "a": spaces.Box(np.float32([-2, -np.inf]), np.float32([4, np.inf])),
            "b": spaces.Discrete(3),
            "c": spaces.Box(-1, 1, (1, 2), np.float32),
        }
    )
    actions = Actions(spec_of(space), squash=True)
    action = {"a": np.array([[0.5, 3.0]]), "b": np.array([2]), "c": np.array([[[-1.0, 20.0]]])}
    expected = [[np.tanh(0.5), 3.0, np.tanh(-1.0), 1.0]]
    np.testing.assert_allclose(action_inputs(actions, action), expected, rtol=1e-6)
