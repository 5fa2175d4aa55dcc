"""The numpy networks against the compiled ones they mirror: any space, any activation, one row or many.

Networks are drawn, shaken and exported; nothing is trained here. What noise picks is compared too.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.learning.networks import ActorCriticNetworks
from steppe.models.actions import Actions
from steppe.models.distributions import Distribution
from steppe.models.encoders import norm_merge, normalize
from steppe.models.numpy_forward import Network
from steppe.policies.actor_critic import Layout
from steppe.spaces import collect, leaves, narrowed, rows, spec_of, take
from steppe.types import SpacePair, Weights
from tests.models.test_encoders import LEAVES, nest, shorten
from tests.test_every_space import ACTIONS, OBSERVATIONS

BOX2 = spaces.Box(-1, 1, (2,), np.float32)
DISCRETE = spec_of(spaces.Discrete(3))
MORE = {
    "image, channels last": spaces.Box(0, 255, (20, 18, 3), np.uint8),
    "image, channels first": spaces.Box(0.0, 1.0, (1, 16, 17), np.float32),
    "image in a Dict": spaces.Dict(eye=spaces.Box(0, 255, (16, 16, 1), np.uint8), speed=BOX2),
    "a table of choices": spaces.Discrete(2000, start=-5000),
    "tables and one-hots": spaces.MultiDiscrete([3, 1500, 2, 1100], start=[0, 7, -1, 0]),
    "OneOf with a table": spaces.OneOf((spaces.Discrete(2000, start=9000), BOX2)),
    "Sequence with a table": spaces.Sequence(spaces.Dict(a=spaces.Discrete(1500, start=-9000), b=BOX2)),
    "one bit": spaces.MultiBinary(1),
}


def draw(space, n, seed=0):
    space.seed(seed)
    return [shorten(space, space.sample(), 3) for _ in range(n)]


def exported(observation, action=DISCRETE, *, options=None, seed=0, rows=None, **model):
    """A policy with shaken parameters: the exported network, and the learner's parameters of a column."""
    rng = np.random.default_rng(seed)
    settings_ = {"normalize": True, "hiddens": [7, 5], "activation": "tanh", "free_log_std": True} | model
    distribution = Distribution(action, **(options or {}))
    nets = ActorCriticNetworks(SpacePair(observation, action), distribution, rng, **settings_)
    params = nets.params[: nets.actor_size] + 0.05 * rng.normal(size=nets.actor_size).astype(np.float32)
    stats = nets.normalizer
    if stats and rows is not None:
        seen = norm_merge(observation, stats, rows, np.ones(len(leaves(rows)[0]), bool))
        stats = tuple(np.asarray(a) for a in seen)
    state = nets.policy.export(Weights(3, params, stats))
    actor = Layout.of(nets._model.actor).unravel(jnp.asarray(params))

    @jax.jit
    def compiled(obs):
        return jax.vmap(actor)(normalize(observation, stats, obs) if stats else obs)

    # Through JSON, as a checkpoint does it: nothing else may be needed.
    return Network(json.loads(json.dumps(state["network"])), state["arrays"]), compiled, state


def assert_same(observation, values, **options):
    column = collect(observation, values, None)
    network, compiled, _ = exported(observation, rows=narrowed(observation, column), **options)
    expected = np.asarray(compiled(narrowed(observation, column)))
    found = network.params(column)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network.params(take(column, slice(1, 2))), expected[1:2], rtol=1e-5, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3, "rows that all look alike prove nothing"


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("name", [*OBSERVATIONS, *MORE])
def test_parameters_equal_the_learners(name, normalized):
    space = (OBSERVATIONS | MORE)[name]
    assert_same(spec_of(space, max_sequence_length=4), draw(space, 6), normalize=normalized)


@settings(max_examples=15)
@given(space=st.recursive(LEAVES, nest, max_leaves=3), seed=st.integers(0, 99))
def test_any_nesting_equals_the_learners(space, seed):
    spec = spec_of(space, max_sequence_length=4)
    column = collect(spec, draw(space, 3, seed), None)
    network, compiled, _ = exported(spec, rows=narrowed(spec, column), seed=seed, conv_filters=[[2, 8, 8]])
    np.testing.assert_allclose(network.params(column), compiled(narrowed(spec, column)), rtol=1e-5, atol=1e-5)


def test_a_large_image_goes_through_the_usual_stack():
    space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    assert_same(spec_of(space), draw(space, 2))


@pytest.mark.parametrize("activation", ["tanh", "relu", "swish", "silu", "elu", "linear"])
def test_activations_equal_the_learners(activation):
    values = [np.array([x, -x], np.float32) for x in (0.0, 0.3, -2.0, 40.0, -300.0)]
    spec = spec_of(spaces.Box(-1e3, 1e3, (2,), np.float32))
    assert_same(spec, values, activation=activation, normalize=False)


@pytest.mark.parametrize("hiddens", [[], [3]])
@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("free_log_std", [True, False])
def test_other_layers_equal_the_learners(hiddens, share_layers, free_log_std):
    action = spec_of(spaces.Tuple((spaces.Discrete(2), BOX2)))
    model = {"hiddens": hiddens, "share_layers": share_layers, "free_log_std": free_log_std}
    assert_same(spec_of(BOX2), draw(BOX2, 4), action=action, **model)


def test_numbers_that_leave_32_bits_are_taken_as_the_learner_takes_them():
    whole = spaces.Box(0, 2**40, (2,), np.int64)
    assert_same(spec_of(whole), [np.array([2**31 + 7, 5]), np.array([2**33 + 1, 2**20])])
    real = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    column = collect(spec_of(real), [np.array([1e300, -1.0]), np.array([3.0, -1e200])], None)
    network, _, state = exported(spec_of(real))
    assert np.isfinite(network.params(column)).all()  # and no warning
    state["arrays"]["normalizer.obs.count"] += 5
    assert np.isfinite(Network(state["network"], state["arrays"]).params(column)).all()


def test_rows_by_hand():
    """A hidden unit with weight 1, and a normalizer of mean 2 and variance 4: tanh((x - 2) / 2), times 3."""
    _, _, state = exported(spec_of(spaces.Box(-9, 9, (1,), np.float32)), spec_of(spaces.Discrete(2)))
    one = np.ones((), np.float32)
    arrays = {
        "mlp.weights.0": one.reshape(1, 1),
        "mlp.biases.0": 0 * one.reshape(1),
        "mlp.weights.1": np.array([[3.0, 0.0]], np.float32),
        "mlp.biases.1": np.array([0.0, 0.5], np.float32),
        "normalizer.obs.count": 10 * one,
        "normalizer.obs.mean": 2 * one.reshape(1),
        "normalizer.obs.m2": 40 * one.reshape(1),
    }
    description = {**state["network"], "mlp": {"sizes": [1, 1, 2], "activation": "tanh"}}
    network = Network(description, arrays)
    column = np.array([[2.0], [4.0], [1e9]], np.float32)
    # 0.7615942 is tanh 1; the last row is clipped to 10
    expected = [[0, 0.5], [3 * 0.7615942, 0.5], [3.0, 0.5]]
    np.testing.assert_allclose(network.params(column), expected, atol=1e-6)
    assert network.act(column, None)[0].tolist() == [1, 0, 0]
    arrays["normalizer.obs.count"] = one  # one row is no statistic: only clipped
    np.testing.assert_allclose(Network(description, arrays).params(column)[0, 0], 3 * np.tanh(2), atol=1e-6)


def test_names_say_where_an_array_belongs():
    space = spaces.Dict(eye=spaces.Box(0, 255, (16, 16, 1), np.uint8), speed=BOX2)
    _, _, state = exported(spec_of(space), spec_of(BOX2))
    names = state["arrays"]
    assert {"encoder.parts.0.cnn.kernels.0", "encoder.parts.0.cnn.dense", "log_std"} <= names.keys()
    assert {f'normalizer.obs["speed"].{part}' for part in ("count", "mean", "m2")} <= names.keys()
    assert names["mlp.weights.0"].shape == (512 + 2, 7)
    assert state["network"]["encoder"]["keys"] == ["eye", "speed"]
    assert state["network"]["mlp"]["sizes"] == [514, 7, 5, 2]


# ---------------------------------------------------------------- actions


@pytest.mark.parametrize("options", [{}, {"squash": True}, {"normalize": False, "clip": False}], ids=str)
@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=3),
        spaces.MultiDiscrete([[2, 3], [4, 2]]),
        spaces.MultiBinary((2, 2)),
        BOX2,
        *ACTIONS.values(),
    ],
    ids=str,
)
def test_the_same_noise_picks_the_same_action(space, options):
    spec, rng = spec_of(space), np.random.default_rng(0)
    distribution, actions = Distribution(spec, **options), Actions(spec, **options)
    params = rng.normal(size=(200, actions.param_size)).astype(np.float32)
    noise = rng.uniform(1e-4, 1 - 1e-4, (200, actions.noise_size)).astype(np.float32)
    sampled, likeliest = jax.jit(distribution.sample)(params, noise), jax.jit(distribution.mode)(params)
    for compiled, found in (
        (sampled, actions.choose(params, noise)),
        (likeliest, actions.choose(params, None)),
    ):
        assert jax.tree.structure(compiled) == jax.tree.structure(found)
        for one, other in zip(leaves(jax.tree.map(np.asarray, compiled)), leaves(found), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_choices_by_hand():
    actions = Actions(spec_of(spaces.MultiDiscrete([3, 2])))
    params = np.log(np.array([[0.5, 0.3, 0.2, 0.25, 0.75]], np.float32))
    assert actions.choose(params, None).tolist() == [[0, 1]]
    for first, second, expected in (
        (0.49, 0.24, [0, 0]),
        (0.51, 0.26, [1, 1]),
        (0.79, 0.99, [1, 1]),
        (0.81, 0.01, [2, 0]),
    ):
        assert actions.choose(params, np.array([[first, second]], np.float32)).tolist() == [expected]


def test_the_smallest_and_largest_noise_pick_what_is_possible():
    actions = Actions(spec_of(spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(1), BOX2))))
    params = np.array([[-200, 0, -200, 0, 1, -1, 0, 0]], np.float32)
    for noise in (2.0**-25, 1 - 2.0**-24):
        choice, bit, box = actions.choose(params, np.full((1, 4), noise, np.float32))
        assert choice.tolist() == [1]  # the others have no probability left in float32
        assert bit.tolist() == [[int(noise < 0.5)]]
        assert np.abs(box - [1, -1]).max() < 6  # about five standard deviations


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": "dreamer"}, LookupError),
        ({"encoder": {"kind": "transformer"}}, LookupError),
        ({"mlp": {"sizes": [2, 7, 5, 3], "activation": "mish"}}, LookupError),
        ({"mlp": {"sizes": [2, 7, 5, 3, 3], "activation": "tanh"}}, LookupError),
        ({"mlp": {"sizes": [2, 7, 5], "activation": "tanh"}}, ValueError),
        ({"action": {"kind": "Discrete", "n": 4, "start": 0}}, ValueError),
        ({"action": {"kind": "Text"}}, ValueError),
        ({"observation": {"kind": "MultiBinary", "shape": [3]}}, ValueError),
        ({"free_log_std": True}, LookupError),
        ({"distribution": {"beta": True}}, TypeError),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused_before_it_acts(change, error):
    _, _, state = exported(spec_of(BOX2), normalize=False)
    Network(state["network"], state["arrays"])
    with pytest.raises(error):
        Network({**state["network"], **change}, state["arrays"])


def test_gymnasium_spaces_contain_what_is_chosen():
    for space in (*ACTIONS.values(), spaces.Discrete(3, start=-1)):
        actions = Actions(spec_of(space))
        params = np.random.default_rng(0).normal(size=(5, actions.param_size)).astype(np.float32) * 9
        column = actions.to_env(actions.choose(params, None))
        assert all(space.contains(value) for value in rows(spec_of(space), column))
