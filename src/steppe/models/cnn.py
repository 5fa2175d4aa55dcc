"""Convolutions for one image as matrix products: many times faster on CPU inside compiled loops.

A strided convolution first folds each stride x stride block of pixels into channels; what remains has stride
1 and a kernel of a few cells, whose shifted views are put side by side and multiplied with the weights once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.models.initial import HIDDEN_GAIN, orthogonal
from steppe.models.observations import MixedFilters

_barrier: Callable[[jax.Array], jax.Array] = jax.lax.optimization_barrier
_Filters = Sequence[Sequence[int]]
_STACKS: tuple[tuple[int, _Filters], ...] = (
    (160, ((32, 8, 4), (64, 4, 2), (64, 3, 2), (64, 3, 2))),  # keeps the dense layer small
    (64, ((32, 8, 4), (64, 4, 2), (64, 3, 1))),  # Mnih et al., 2015
    (32, ((32, 4, 2), (64, 4, 2), (64, 3, 2))),
    (16, ((32, 4, 2), (64, 3, 2))),
)
DENSE = 512
"""Width of the dense layer after the convolutions."""


def default_filters(height: int, width: int) -> _Filters:
    """``(channels, kernel, stride)`` a layer for an image whose smaller side is at least 16."""
    return next(stack for side, stack in _STACKS if min(height, width) >= side)


def convolve(image: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Cross-correlation without padding.

    Args:
        image: ``(h, w, c)``.
        kernel: ``(k, k, c, out)``.
        stride: step of the kernel, in both directions.

    Returns:
        ``((h - k) // stride + 1, (w - k) // stride + 1, out)``.
    """
    height, width, channels = image.shape
    size, _, _, out = kernel.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    cells = -(-size // stride)  # the kernel's side in blocks; a partial block meets zero weights
    image = _fold(_fit(image, (rows + cells - 1) * stride, (columns + cells - 1) * stride), stride)
    padding = cells * stride - size
    kernel = jnp.pad(kernel, ((0, padding), (0, padding), (0, 0), (0, 0)))
    kernel = kernel.reshape(cells, stride, cells, stride, channels, out).transpose(0, 2, 1, 3, 4, 5)
    patches = jnp.concatenate(
        [image[i : i + rows, j : j + columns] for i in range(cells) for j in range(cells)], axis=-1
    )
    if patches.dtype != kernel.dtype:  # bytes are moved as such and converted once: the barrier sees to it
        patches = _barrier(patches).astype(kernel.dtype)
    found: jax.Array = _product(patches, kernel.reshape(-1, out))
    return found


@jax.custom_jvp
def _product(patches: jax.Array, kernel: jax.Array) -> jax.Array:
    """``(h, w, k)`` times ``(k, out)``."""
    return patches @ kernel


@_product.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    # The kernel's part with the kernel first: its gradient is of many rows and few outputs, and in this order
    # (the barrier keeps it) the CPU takes a third of the time.
    (patches, kernel), (change, slope) = primals, tangents
    turned = jax.lax.dot_general(_barrier(slope.T), patches, (((1,), (2,)), ((), ())))
    return patches @ kernel, change @ kernel + jnp.moveaxis(turned, 0, -1)


def _fit(image: jax.Array, height: int, width: int) -> jax.Array:
    """Crop what no kernel sees, pad what only zero weights see."""
    image = image[:height, :width]
    return jnp.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)))


def _fold(image: jax.Array, block: int) -> jax.Array:
    """Space to depth: ``(h, w, c)`` to ``(h / block, w / block, block * block * c)``."""
    height, width, channels = image.shape
    image = image.reshape(height // block, block, width // block, block, channels)
    return image.transpose(0, 2, 1, 3, 4).reshape(height // block, width // block, -1)


@final
class CNN(eqx.Module):
    """Convolutions and one dense layer, all rectified; for one image ``(h, w, c)`` of about unit scale.

    Attributes:
        kernels: ``(k, k, in, out)`` a layer.
        biases: ``(out,)`` a layer.
        dense: ``(pixels, DENSE)``.
        dense_bias: ``(DENSE,)``.
        strides: one a layer.
        mixed: products, and what goes from layer to layer, are bfloat16; GPUs sum them up in float32.
    """

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    dense: jax.Array
    dense_bias: jax.Array
    strides: tuple[int, ...] = eqx.field(static=True)
    mixed: bool = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, int, int], rng: np.random.Generator, filters: _Filters | None = None
    ) -> None:
        """Draw a network.

        Args:
            shape: ``(height, width, channels)`` of the images.
            rng: source of the initial weights.
            filters: ``[channels, kernel, stride]`` a layer; by image size if None, or none are in them.

        Raises:
            ConfigError: filters of a wrong form, or a kernel larger than what is left of the image.
        """
        height, width, channels = shape
        kernels, biases, strides = [], [], []
        for layer in filters or default_filters(height, width):
            if len(layer) != 3 or min(layer) < 1:
                raise ConfigError(f"conv_filters: {list(layer)} is not [channels, kernel, stride], all >= 1")
            out, size, stride = layer
            if size > min(height, width):
                raise ConfigError(
                    f"conv_filters: kernel {size} of {list(layer)} is larger than the {height} x {width} "
                    f"left of the {shape[0]} x {shape[1]} image; use fewer layers, smaller kernels or strides"
                )
            weight = orthogonal(rng, size * size * channels, out, HIDDEN_GAIN)
            kernels.append(jnp.asarray(weight.reshape(size, size, channels, out)))
            biases.append(jnp.asarray(np.zeros(out, np.float32)))
            strides.append(stride)
            height, width, channels = (height - size) // stride + 1, (width - size) // stride + 1, out
        self.kernels, self.biases, self.strides = tuple(kernels), tuple(biases), tuple(strides)
        self.mixed = isinstance(filters, MixedFilters)
        self.dense = jnp.asarray(orthogonal(rng, height * width * channels, DENSE, HIDDEN_GAIN))
        self.dense_bias = jnp.asarray(np.zeros(DENSE, np.float32))

    def __call__(self, image: jax.Array, scale: float = 1.0) -> jax.Array:
        """One image ``(h, w, c)``, of any type, whose pixels count ``scale`` times, to ``(DENSE,)``."""
        kind = jnp.bfloat16 if self.mixed else jnp.float32
        for weight, shift, stride in zip(self.kernels, self.biases, self.strides, strict=True):
            kernel, bias = weight.astype(kind), shift.astype(kind)  # bytes of pixels are whole in bfloat16
            image, scale = jax.nn.relu(convolve(image, kernel, stride) * scale + bias), 1.0
        features = image.reshape(-1) @ self.dense.astype(kind) + self.dense_bias.astype(kind)
        return jax.nn.relu(features).astype(jnp.float32)
