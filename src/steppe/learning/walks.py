"""Sequences as rows, for learners that ask an actor and critics of actions about observations.

A :class:`Walk` stands where a column of observations does: networks with a memory walk along the sequences
and answer for each of their rows, so that a loss is written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steppe.models.action_values import action_values
from steppe.models.q_memory import MemoryValue, features
from steppe.types import Tree

_MIX = 0.9  # eta of the R2D2 paper


class Walk(NamedTuple):
    """The rows of some sequences, one sequence after the other: ``n`` of them.

    Attributes:
        rows: as :meth:`steppe.buffers.sequences.Sequences.columns` gives them, ``(s, l, ...)``.
        end: ``(s, l)``, rows of the same sequence that stand in the place of each; None for themselves.
        burn_in: rows without a gradient.
    """

    rows: Mapping[str, Any]
    end: jax.Array | None
    burn_in: int

    def at(self, column: Any) -> jax.Array:
        """``(s, l, ...)`` as ``(n, ...)``."""
        if self.end is not None:
            column = jax.vmap(lambda one, end: one[end])(column, self.end)
        flat: jax.Array = column.reshape(-1, *column.shape[2:])
        return flat

    def features(self, torso: Any, memory: Tree) -> jax.Array:
        """``(n, size)`` of a torso that meets the first rows with ``memory`` ``(s, ...)``."""
        return self.at(features(torso, self.rows, memory, self.burn_in))


def acting_params(actor: Any, obs: Tree) -> jax.Array:
    """Distribution parameters ``(n, P)`` of observations, or of a :class:`Walk`."""
    params: jax.Array
    if isinstance(obs, Walk):
        y = obs.features(actor.torso, obs.rows["state"]["memory"])
        params = jax.vmap(actor.out.head)(y, jax.tree.map(obs.at, obs.rows["obs"]))
    else:
        params = jax.vmap(actor)(obs)
    return params


def judged(critics: Any, obs: Tree, action: jax.Array) -> jax.Array:
    """What all critics say, ``(count, n, outputs)``, of actions ``(n, inputs)``.

    Nobody acts with a critic, so that it meets a sequence with zeros, which its burn-in makes good.
    """
    if not isinstance(obs, Walk):
        return action_values(critics, obs, action)

    def one(critic: MemoryValue) -> jax.Array:
        s = len(obs.rows["fresh"])
        memory = jax.tree.map(lambda a: jnp.zeros((s, *a.shape), a.dtype), critic.torso.cell.initial())
        y = obs.features(critic.torso, memory)
        return jax.vmap(critic.mlp)(jnp.concatenate([y, action], axis=1))

    values: jax.Array = jax.vmap(one)(critics)
    return values


def opened(rows: dict[str, Any], burn_in: int) -> dict[str, Any]:
    """A batch of sequences as one of rows, whose ``obs`` and ``next_obs`` are walks.

    ``weight`` is 0 where a row is not learned from, and ``counts``, its part that says so, is 1 on average.
    """
    walk = Walk(rows, None, burn_in)
    learned = walk.at(rows["learned"])
    counts = learned * (learned.size / jnp.maximum(learned.sum(), 1))
    weight = counts * jnp.repeat(rows["weight"], rows["learned"].shape[1])
    columns = {name: jax.tree.map(walk.at, rows[name]) for name in ("action", "reward", "discount")}
    after = walk._replace(end=rows["end"])
    return {**rows, **columns, "obs": walk, "next_obs": after, "weight": weight, "counts": counts}


def by_sequence(error: jax.Array, learned: jax.Array) -> jax.Array:
    """How wrong sequences were ``(s,)``, of the errors of their rows ``(s, l)``: mostly the largest one.

    ``0.9 max + 0.1 mean`` of the absolute errors of rows that were learned from (Kapturowski et al., 2019).
    """
    size = jnp.where(learned, jnp.abs(error), 0.0)
    mean = size.sum(1) / jnp.maximum(learned.sum(1), 1)
    return _MIX * size.max(1) + (1.0 - _MIX) * mean
