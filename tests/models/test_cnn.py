"""Convolutions as matrix products equal XLA's own, in value and gradient, for any kernel and stride."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppe.errors import ConfigError
from steppe.models.cnn import CNN, DENSE, convolve, default_filters


def xla_convolve(image, kernel, stride):
    return jax.lax.conv_general_dilated(
        image[None], kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


@pytest.mark.parametrize(
    ("height", "width", "channels", "kernel", "stride"),
    [
        (84, 84, 4, 8, 4),
        (20, 21, 3, 4, 2),
        (9, 9, 2, 3, 1),
        (10, 13, 2, 3, 2),  # the last kernel ends before the image does
        (11, 11, 1, 5, 3),
        (7, 9, 2, 2, 4),  # pixels between kernels that none sees
        (6, 6, 2, 6, 6),
        (5, 5, 1, 1, 1),
    ],
)
def test_convolve_equals_xla(height, width, channels, kernel, stride):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(height, width, channels)).astype(np.float32)
    weight = (rng.normal(size=(kernel, kernel, channels, 3)) / kernel).astype(np.float32)
    ours = jax.jit(convolve, static_argnums=2)(image, weight, stride)
    np.testing.assert_allclose(ours, xla_convolve(image, weight, stride), atol=1e-5)


def test_gradients_equal_xla_under_vmap():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(3, 10, 12, 2)).astype(np.float32)
    weight = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)

    def loss(function):
        return lambda x, w: jnp.sin(jax.vmap(lambda one: function(one, w, 2))(x)).sum()

    ours = jax.jit(jax.grad(loss(convolve), argnums=(0, 1)))(images, weight)
    theirs = jax.jit(jax.grad(loss(xla_convolve), argnums=(0, 1)))(images, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("side", [16, 17, 31, 32, 63, 64, 84, 159, 160, 210])
def test_default_stacks_fit_their_images(side):
    height, width = side, side
    stack = default_filters(side, side + 40)
    for _, kernel, stride in stack:
        assert kernel <= height
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    assert 1 <= height * width * stack[-1][0] <= 16_384


def test_network_shapes_and_layers():
    cnn = CNN((16, 20, 3), np.random.default_rng(0))
    assert [k.shape for k in cnn.kernels] == [(4, 4, 3, 32), (3, 3, 32, 64)]
    assert cnn.dense.shape == (3 * 4 * 64, DENSE)
    image = np.random.default_rng(1).random((16, 20, 3), dtype=np.float32)
    x = jnp.maximum(xla_convolve(image, cnn.kernels[0], 2), 0)
    x = jnp.maximum(xla_convolve(x, cnn.kernels[1], 2), 0)
    np.testing.assert_allclose(cnn(image), jnp.maximum(x.reshape(-1) @ cnn.dense, 0), atol=1e-5)


def test_nature_network_for_the_usual_size():
    cnn = CNN((84, 84, 4), np.random.default_rng(0))
    assert [k.shape for k in cnn.kernels] == [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64)]
    assert cnn.strides == (4, 2, 1)
    assert cnn.dense.shape == (7 * 7 * 64, DENSE)


def test_own_filters_and_their_refusals():
    rng = np.random.default_rng(0)
    assert CNN((16, 16, 1), rng, [[8, 4, 4]]).dense.shape == (4 * 4 * 8, DENSE)
    with pytest.raises(
        ConfigError, match=r"kernel 9 of \[8, 9, 1\] is larger than the 4 x 4 left of the 16 x 16"
    ):
        CNN((16, 16, 1), rng, [[8, 4, 4], [8, 9, 1]])
    for bad in ([[8, 4]], [[8, 0, 1]]):
        with pytest.raises(ConfigError, match=r"\[channels, kernel, stride\]"):
            CNN((16, 16, 1), rng, bad)
