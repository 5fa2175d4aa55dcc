"""Fully connected networks for one observation, initialised with numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.models.initial import HIDDEN_GAIN, orthogonal

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "swish": jax.nn.silu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "linear": lambda x: x,
}


@final
class MLP(eqx.Module):
    """Dense layers, an activation after each but the last; biases start at zero.

    Attributes:
        weights: one ``(in, out)`` matrix a layer.
        biases: one ``(out,)`` vector a layer.
        activation: name of the activation between layers.
    """

    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str,
        rng: np.random.Generator,
        final_scale: float = HIDDEN_GAIN,
    ) -> None:
        """Draw a network.

        Args:
            sizes: width of the input, of each hidden layer and of the output: at least two numbers.
            activation: one of tanh, relu, swish (silu), elu, linear.
            rng: source of the initial weights.
            final_scale: gain of the last layer.

        Raises:
            ConfigError: unknown activation, fewer than two sizes, or a width below 1.
        """
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        if len(sizes) < 2 or min(sizes) < 1:
            raise ConfigError(
                f"layer sizes {list(sizes)}: at least an input and an output, each of width >= 1"
            )
        last = len(sizes) - 2
        self.activation = activation
        self.weights = tuple(
            jnp.asarray(orthogonal(rng, sizes[i], sizes[i + 1], final_scale if i == last else HIDDEN_GAIN))
            for i in range(len(sizes) - 1)
        )
        self.biases = tuple(jnp.asarray(np.zeros(size, np.float32)) for size in sizes[1:])

    def hidden(self, x: jax.Array) -> jax.Array:
        """The activated features ``(f,)`` before the last layer, of one input ``(in,)``."""
        function = ACTIVATIONS[self.activation]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = function(x @ weight + bias)
        return x

    def head(self, features: jax.Array) -> jax.Array:
        """The last layer: ``(f,)`` to ``(out,)``."""
        return features @ self.weights[-1] + self.biases[-1]

    def __call__(self, x: jax.Array) -> jax.Array:
        """One input ``(in,)`` to ``(out,)``."""
        return self.head(self.hidden(x))

    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values."""
        sizes = [np.shape(self.weights[0])[0], *(np.shape(bias)[0] for bias in self.biases)]
        return {"sizes": sizes, "activation": self.activation}
