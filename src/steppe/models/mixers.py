"""The value of a team from the values of its members, such that what is best for each is best for all."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.initial import orthogonal


class Mixer(eqx.Module):
    """Never falls when the value of a member rises, so that members may choose each for itself."""

    @abstractmethod
    def __call__(self, values: jax.Array, state: jax.Array) -> jax.Array:
        """``()`` value of the team from its members' ``(m,)`` and the vector of the global state ``(s,)``."""


@final
class Total(Mixer):
    """The sum (VDN: Sunehag et al., 2017, arXiv:1706.05296); it has no parameters and reads no state."""

    def __call__(self, values: jax.Array, state: jax.Array) -> jax.Array:
        """``()``."""
        return values.sum()


@final
class Linear(eqx.Module):
    """One layer: ``weight (in, out)``, ``bias (out,)``."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(in,)`` to ``(out,)``."""
        return x @ self.weight + self.bias


@final
class Monotonic(Mixer):
    """Two layers whose weights are made of the state and are no less than 0 (QMIX, arXiv:1803.11485).

    Attributes:
        first: state to the weights ``members * width`` of the first layer.
        first_bias: state to its bias ``width``.
        second: state to the weights ``width`` of the second.
        hidden: state to the features ``width`` of its bias.
        second_bias: these to the bias.
    """

    first: Linear
    first_bias: Linear
    second: Linear
    hidden: Linear
    second_bias: Linear

    def __call__(self, values: jax.Array, state: jax.Array) -> jax.Array:
        """``()``."""
        weights = jnp.abs(self.first(state)).reshape(len(values), -1)
        mixed = jax.nn.elu(values @ weights + self.first_bias(state))
        bias = self.second_bias(jax.nn.relu(self.hidden(state)))
        return mixed @ jnp.abs(self.second(state)) + bias[0]


def make_monotonic(members: int, state: int, width: int, rng: np.random.Generator) -> Monotonic:
    """Draw QMIX's mixer.

    Args:
        members: how many there are in a team.
        state: length of the state's vector.
        width: of the mixing layer.
        rng: source of the initial parameters.
    """

    def layer(before: int, after: int) -> Linear:
        bias = jnp.asarray(np.zeros(after, np.float32))
        return Linear(jnp.asarray(orthogonal(rng, before, after)), bias)

    first, first_bias, second = layer(state, members * width), layer(state, width), layer(state, width)
    return Monotonic(first, first_bias, second, layer(state, width), layer(width, 1))
