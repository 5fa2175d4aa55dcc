"""The network of a learner of action values, with a memory or without, and what it says of what it drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.before import Memory
from steppe.models.observations import Sight
from steppe.models.q_network import QNetwork, make_q_network
from steppe.policies.q import QPolicy
from steppe.spaces import DiscreteSpec
from steppe.types import Tree


def make_q(
    sight: Sight, actions: DiscreteSpec, rng: np.random.Generator, memory: Sequence[Any] | None, **layers: Any
) -> tuple[Any, Any]:
    """Draw a network; returns it and the class of policies that act with it.

    Args:
        sight: what it sees.
        actions: the action space.
        rng: source of the initial parameters.
        memory: what :class:`~steppe.models.before.Memory` is made of; None for none.
        layers: further arguments of :func:`~steppe.models.q_network.make_q_network`.
    """
    layers |= {"masked": sight.masked, "embeddings": sight.embeddings}
    if memory is None:
        return make_q_network(sight.actor, int(actions.n), rng, **layers), QPolicy
    from steppe.models.q_memory import make_memory_q  # most policies remember nothing
    from steppe.policies.recurrent_q import RecurrentQPolicy

    return make_memory_q(sight.actor, actions, rng, Memory(*memory), **layers), RecurrentQPolicy


class Looked(NamedTuple):
    """What a network and its target say of ``n`` rows that are learned from.

    Attributes:
        head: makes values of their outputs.
        rows: action, reward, discount and weight, ``(n,)`` each; and ``learned``, which of them count.
        out: ``(n, actions, atoms)`` of the network.
        after: observations that their outcomes are looked for in, as far as a mask is there.
        judged: ``(n, actions, atoms)``, by which the best action there is found.
        then: likewise, what the target makes of it.
    """

    head: QNetwork
    rows: dict[str, Any]
    out: jax.Array
    after: Tree
    judged: jax.Array
    then: jax.Array


def looked(network: Any, target: Any, rows: Mapping[str, Any], double: bool, noise: Any) -> Looked:
    """Rows as they are, each with its outcome.

    Args:
        network: what learns.
        target: its slowly following copy.
        rows: see :class:`~steppe.learning.off_policy.Method`.
        double: whether the network finds the best action.
        noise: of the noisy layers: of the network, of the target, and of the network as it chooses.
    """
    out = jax.vmap(network, (0, None))(rows["obs"], noise[0])
    then = jax.vmap(target, (0, None))(rows["next_obs"], noise[1])
    judged = jax.vmap(network, (0, None))(rows["next_obs"], noise[2]) if double else then
    counts = jnp.ones(out.shape[:1], bool)
    return Looked(network, {**rows, "learned": counts}, out, rows["next_obs"], judged, then)


def looked_along(
    network: Any, target: Any, rows: Mapping[str, Any], double: bool, noise: Any, burn_in: int
) -> Looked:
    """The same of sequences, whose outcomes are rows of their own; network and target each remember.

    Args:
        network: see :func:`looked`.
        target: likewise.
        rows: as :meth:`steppe.buffers.sequences.Sequences.columns` gives them, ``(s, l, ...)``.
        double: likewise; it chooses by the noise that it learns with.
        noise: likewise.
        burn_in: rows without a gradient.
    """
    out = network.sequences(rows, burn_in, noise[0])
    then = target.sequences(rows, burn_in, noise[1])

    def at_end(a: jax.Array) -> jax.Array:
        return _flat(jax.vmap(lambda one, end: one[end])(jax.lax.stop_gradient(a), rows["end"]))

    then, learned = at_end(then), rows["learned"]
    # As a mean over all rows it is the mean over those that count.
    weight = rows["weight"][:, None] * learned * (learned.size / jnp.maximum(learned.sum(), 1))
    columns = {name: rows[name] for name in ("action", "reward", "discount", "learned")}
    opened = jax.tree.map(_flat, {**columns, "weight": weight})
    after = jax.tree.map(at_end, rows["obs"])
    return Looked(network.out, opened, _flat(out), after, at_end(out) if double else then, then)


_SLOPE = 1e-3  # of the scale far from 0, so that it has an inverse that is not steep


def shrunk(x: jax.Array) -> jax.Array:
    """Returns on a scale of about their roots: ``sign(x) (sqrt(|x| + 1) - 1) + 0.001 x``.

    Source: Pohlen et al., 2018, arXiv:1805.11593, which R2D2 follows.
    """
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1.0) - 1.0) + _SLOPE * x


def stretched(x: jax.Array) -> jax.Array:
    """The inverse of :func:`shrunk`."""
    root = (jnp.sqrt(1.0 + 4.0 * _SLOPE * (jnp.abs(x) + 1.0 + _SLOPE)) - 1.0) / (2.0 * _SLOPE)
    return jnp.sign(x) * (root**2 - 1.0)


def _flat(a: jax.Array) -> jax.Array:
    return a.reshape(-1, *a.shape[2:])
