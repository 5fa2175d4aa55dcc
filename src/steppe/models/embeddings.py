"""Choices that the observation describes: each is judged by its description, not by its number."""

from __future__ import annotations

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.mlp import MLP
from steppe.models.observations import Embeddings
from steppe.types import Tree

KEY = 64
"""Width of what a choice's description becomes."""


@final
class Scores(eqx.Module):
    """A choice's score: the product of a key, made of its description, and a query, made of the state.

    The last number of a query is what all choices have in common, so that a query is ``KEY + 1`` long.

    Attributes:
        mlp: description to key.
        place: the key of a Dict observation that holds the descriptions, a row a choice.
    """

    mlp: MLP
    place: str = eqx.field(static=True)

    def __init__(self, embeddings: Embeddings, rng: np.random.Generator) -> None:
        self.place = embeddings.key
        self.mlp = MLP((embeddings.width, KEY, KEY), "tanh", rng, 1.0)

    def __call__(self, query: jax.Array, obs: Tree) -> jax.Array:
        """``(choices, ...)`` of queries ``(KEY + 1, ...)`` and one observation."""
        keys = jax.vmap(self.mlp)(jnp.asarray(obs[self.place]).astype(jnp.float32))
        return jnp.tensordot(keys, query[:-1], 1) + query[-1]

    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values."""
        return {"place": self.place, "mlp": self.mlp.describe()}
