"""What on-policy learning does with a policy that remembers: lanes are walked once, and cut to sequences.

A sequence is a run of ``length`` rows of one lane, in which a trajectory may end and the next one begin. It
is met with the state that the acting weights had there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.memory import MemoryActorCritic
from steppe.spaces import map_leaves, put, take
from steppe.types import Array, BoolArray, Rollout, Tree


def opening(fragments: Sequence[Rollout]) -> Tree:
    """The state that the first row of each lane is met with, of consecutive fragments that are joined."""
    lanes = max(one.filled.shape[1] for one in fragments)
    known = np.zeros(lanes, np.bool_)
    example = next(one.state0 for one in fragments if one.state0 is not None)
    states = map_leaves(lambda a: np.zeros((lanes, *a.shape[1:]), a.dtype), example)
    for one in fragments:
        new = np.flatnonzero(one.filled[:1].any(axis=0) & ~known[: one.filled.shape[1]])
        if len(new):
            put(states, new, take(one.state0, new))
        known[new] = True
    return states


def longer(tree: Tree, lanes: int) -> Tree:
    """A tree of ``(fewer, ...)`` with zeros for further lanes."""

    def one(a: Array) -> Array:
        out = np.zeros((lanes, *np.shape(a)[1:]), np.asarray(a).dtype)
        out[: len(a)] = a
        return out

    return map_leaves(one, tree)


def acted_sequences(acted: BoolArray, length: int) -> BoolArray:
    """Which sequences hold an acted row; ``(rows, lanes)`` to ``(lanes * rows / length,)``."""
    held: BoolArray = np.logical_or.reduce(acted.T.reshape(-1, length), axis=1)
    return held


def walked(
    model: MemoryActorCritic, obs: Tree, batch: Mapping[str, Any], continues: jax.Array, carry: Tree
) -> tuple[jax.Array, jax.Array, dict[str, Any], Tree]:
    """Every lane of a batch, once, by the weights that acted.

    Args:
        model: with these weights.
        obs: ``(rows, lanes, ...)``, on the networks' scale.
        batch: columns of ``(rows, lanes, ...)``, and ``state0`` of ``(lanes, ...)``.
        continues: ``(lanes,)``, lanes that go on from the last batch.
        carry: what the critic remembered there; nobody acts with a critic, so no state of the rows has it.

    Returns:
        Values ``(rows, lanes)``; distribution parameters ``(rows * lanes, P)``; of every row what came
        ``before`` it, whether it is ``fresh``, and the state it was ``met`` with; and the next carry.
    """
    final, state0 = batch["terminated"] | batch["truncated"], batch["state0"]
    fresh = jnp.concatenate([jnp.zeros_like(final[:1]), final[:-1]])
    before: dict[str, Any] = {}
    if "action" in state0:

        def shifted(first: jax.Array, a: jax.Array) -> jax.Array:
            a = jnp.concatenate([first[None], a[:-1]])
            return jnp.where(fresh.reshape(*fresh.shape, *(1,) * (a.ndim - 2)), jnp.zeros_like(a), a)

        before["action"] = jax.tree.map(shifted, state0["action"], batch["action"])
    if "reward" in state0:
        before["reward"] = batch["prev_reward"]
    steps = {"before": before, "fresh": fresh}
    memory = {"actor": state0["memory"]}
    if carry:
        memory["critic"] = jax.tree.map(
            lambda a: jnp.where(continues.reshape(-1, *(1,) * (a.ndim - 1)), a, jnp.zeros_like(a)), carry
        )
    by_lane = jax.tree.map(lambda a: a.swapaxes(0, 1), {"obs": obs, **steps})
    params, value, met = model.sequences({**by_lane, "memory": memory})
    last = jnp.maximum(batch["filled"].sum(axis=0) - 1, 0)
    closing = jax.tree.map(lambda a: a[jnp.arange(len(last)), last], met.get("critic", ()))
    return value.T, params.swapaxes(0, 1).reshape(-1, params.shape[-1]), {**steps, "met": met}, closing


def cut(rows: dict[str, Any], steps: dict[str, Any], acted: jax.Array, length: int) -> dict[str, Any]:
    """Rows as sequences.

    Args:
        rows: columns of ``(rows * lanes, ...)``.
        steps: what :func:`walked` said of every row.
        acted: ``(rows, lanes)``.
        length: of a sequence.

    Returns:
        Columns of ``(sequences, length, ...)``, with ``before``, ``fresh`` and ``acted``; and ``memory`` of
        ``(sequences, ...)``, that the first row of each is met with.
    """
    columns = jax.tree.map(lambda a: a.reshape(*acted.shape, *a.shape[1:]), rows)
    columns |= {"before": steps["before"], "fresh": steps["fresh"], "acted": acted}
    sequences = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, length, *a.shape[2:]), columns)
    met = jax.tree.map(lambda a: a[:, ::length].reshape(-1, *a.shape[2:]), steps["met"])
    return {**sequences, "memory": met}


def opened(chosen: dict[str, Any], weight: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    """A minibatch of sequences as rows, one sequence after the other.

    Args:
        chosen: columns of ``(s, length, ...)``, and ``memory`` of ``(s, ...)``.
        weight: ``(s,)``, whether a sequence counts.

    Returns:
        Columns of ``(s * length, ...)``, ``memory`` as it is; and ``(s * length,)``, whether a row counts.
    """
    columns = {name: column for name, column in chosen.items() if name != "memory"}
    rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), columns)
    counts = jnp.repeat(weight, chosen["fresh"].shape[1], total_repeat_length=len(rows["fresh"]))
    return {**rows, "memory": chosen["memory"]}, counts & rows["acted"]
