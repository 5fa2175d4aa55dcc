"""Dense networks: orthogonal initial weights of the asked gain, and the arithmetic of layers by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppe.errors import ConfigError
from steppe.models.initial import orthogonal
from steppe.models.mlp import MLP


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (8, 3), (3, 8), (1, 4)])
def test_the_shorter_side_is_orthonormal_times_the_gain(rows, columns):
    m = orthogonal(np.random.default_rng(0), rows, columns, 3.0)
    assert m.shape == (rows, columns)
    assert m.dtype == np.float32
    product = m @ m.T if rows < columns else m.T @ m
    np.testing.assert_allclose(product, 9 * np.eye(min(rows, columns)), atol=1e-4)


def test_orthogonal_draws_have_no_preferred_sign():
    corner = [orthogonal(np.random.default_rng(i), 2, 2)[0, 0] for i in range(400)]
    assert abs(np.mean(corner)) < 4 * np.std(corner) / 20


def by_hand(activation):
    """X = (1, -2) through weights that keep it, and a last layer that weighs it 1 and 10, plus 5."""
    mlp = MLP((2, 2, 1), activation, np.random.default_rng(0))
    where = lambda m: (*m.weights, m.biases[1])  # noqa: E731
    mlp = eqx.tree_at(where, mlp, (jnp.eye(2), jnp.asarray([[1.0], [10.0]]), jnp.asarray([5.0])))
    return float(mlp(jnp.asarray([1.0, -2.0]))[0])


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("linear", 1 - 20 + 5),
        ("relu", 1 + 5),
        ("tanh", 0.7615942 - 9.640276 + 5),
        ("swish", 0.7310586 - 2.3840584 + 5),
        ("silu", 0.7310586 - 2.3840584 + 5),
        ("elu", 1 - 8.646647 + 5),
    ],
)
def test_activations_by_hand(activation, expected):
    assert by_hand(activation) == pytest.approx(expected, abs=1e-5)


def test_final_scale_sets_the_last_layer_only():
    mlp = MLP((8, 8, 8), "tanh", np.random.default_rng(0), final_scale=0.01)
    scales = [np.linalg.norm(w, 2) for w in mlp.weights]
    np.testing.assert_allclose(scales, [2**0.5, 0.01], rtol=1e-4)
    assert not any(np.any(b) for b in mlp.biases)


def test_the_same_generator_gives_the_same_network():
    a, b = (MLP((3, 4, 2), "tanh", np.random.default_rng(7)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_no_hidden_layers_is_a_linear_map():
    mlp = MLP((3, 2), "tanh", np.random.default_rng(0))
    x = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(mlp(x), x @ mlp.weights[0], rtol=1e-6)
    np.testing.assert_array_equal(mlp.hidden(x), x)


def test_refusals():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"'gelu' is unknown; choose one of tanh, relu"):
        MLP((2, 2), "gelu", rng)
    for sizes in ((2,), (2, 0, 1)):
        with pytest.raises(ConfigError, match="layer sizes"):
            MLP(sizes, "tanh", rng)
