"""Learning on several devices: each holds some lanes of a batch, and only gradients and sums go between them.

The compiled programs are those of one device; what differs is where their arguments lie. Lanes are dealt out
to a fixed number of blocks, and each minibatch draws its rows from all of them, so that any number of devices
that divides the blocks learns the same: a device draws from its own blocks, and rows never move.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steppe.errors import ConfigError
from steppe.learning.minibatches import BLOCKS
from steppe.learning.on_policy import LearnerState, Static, Team, compiled_rows, compiled_update
from steppe.spaces import map_leaves
from steppe.types import Array, BoolArray


class Places(NamedTuple):
    """Where arrays lie: whole on every device, or split along their first or second axis."""

    whole: NamedSharding
    first: NamedSharding
    second: NamedSharding


@lru_cache
def places(num_learners: int) -> Places:
    """Those of so many devices, the first that JAX lists.

    Raises:
        ConfigError: there are not so many devices.
    """
    devices = jax.devices()
    most = max(n for n in range(1, BLOCKS + 1) if BLOCKS % n == 0 and n <= len(devices))
    if num_learners > len(devices):
        raise ConfigError(
            f"num_learners={num_learners}: JAX lists {len(devices)} device(s) ({devices[0].platform}); write "
            f"num_learners={most}. CPU cores count as devices where the environment variable "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={num_learners} is set before Python starts"
        )
    mesh = Mesh(np.array(devices[:num_learners]), ("lanes",))
    axes: tuple[tuple[str | None, ...], ...] = (), ("lanes",), (None, "lanes")
    return Places(*(NamedSharding(mesh, PartitionSpec(*spec)) for spec in axes))  # type: ignore[no-untyped-call]


def in_blocks(num_learners: int, static: Static, share: Any) -> tuple[Static, Any, Any, Any]:
    """What a learner on so many devices has in the place of ``static``, the programs and ``shuffled``.

    Raises:
        ConfigError: this policy cannot be learned on several devices, or these are not there.
    """
    for name, given in ("memory", static.length), ("share", share):
        if given:
            raise ConfigError(
                f"num_learners={num_learners}: policies with {name} learn on one device; write "
                f"num_learners=0, or leave {name} out"
            )
    at, size = places(num_learners), static.minibatch
    blocked = static._replace(blocks=BLOCKS, minibatch=max(size // BLOCKS, 1) if size else 0)

    def rows_of(static: Static) -> Callable[..., Any]:
        return lambda *given: _rows(at, compiled_rows(static), *given)

    def update_of(team: Team) -> Callable[..., Any]:
        return lambda *given: _update(at, compiled_update(team), *given)

    return blocked, rows_of, update_of, shuffled_by_block


def _rows(
    at: Places, program: Any, state: LearnerState, batch: Any, continues: BoolArray, hyper: Any
) -> tuple[Any, Any, Any]:
    """From a batch to rows, each device from its lanes to its rows; open returns are kept as lanes come."""
    *measured, carry = state.return_scale
    lanes = len(carry)
    state = jax.device_put(state._replace(return_scale=()), at.whole)
    carry, continues = jax.device_put((dealt(carry[None])[0], dealt(continues[None])[0]), at.first)
    state = state._replace(return_scale=(*jax.device_put(measured, at.whole), carry))
    opening = map_leaves(lambda a: dealt(a[None])[0], batch.get("state0", ()))
    columns = {name: map_leaves(dealt, column) for name, column in batch.items() if name != "state0"}
    batch = {**jax.device_put(columns, at.second), "state0": jax.device_put(opening, at.first)}
    rows, (normalizer, (*measured, carry), memory), explained = program(state, batch, continues, hyper)
    kept = np.asarray(carry).reshape(BLOCKS, -1).T.reshape(-1)[:lanes]
    return rows, (normalizer, (*measured, kept), memory), explained


def _update(
    at: Places, program: Any, params: Any, opt: Any, old: Any, new: Any, rows: Any, orders: Any, *numbers: Any
) -> Any:
    """All epochs over one batch; every device has all parameters and takes the same steps."""
    orders = jax.device_put(orders, at.second)
    params, opt, old, new, numbers = jax.device_put((params, opt, old, new, numbers), at.whole)
    return program(params, opt, old, new, rows, orders, *numbers)


def dealt(a: Array) -> Array:
    """Lanes ``(rows, lanes, ...)`` block by block, one to each block in turn, and zeros to fill the blocks.

    In turn, because lanes that are hardly filled stand side by side.
    """
    room = -a.shape[1] % BLOCKS
    a = np.pad(a, [(0, 0), (0, room), *[(0, 0)] * (a.ndim - 2)]) if room else a
    by_turn = a.reshape(len(a), -1, BLOCKS, *a.shape[2:]).swapaxes(1, 2)
    return np.ascontiguousarray(by_turn).reshape(a.shape)


def shuffled_by_block(
    rng: np.random.Generator, acted: BoolArray, epochs: int, size: int, capacity: int = 0
) -> tuple[Array, Array]:
    """The order in which rows are learned from, as :func:`~steppe.learning.minibatches.shuffled` gives it.

    Args:
        rng: the learner's stream.
        acted: ``(rows, lanes)``.
        epochs: passes over the batch.
        size: rows of a minibatch that come from one block.
        capacity: length of the last answer; where that is too short it grows by a quarter at least.

    Returns:
        ``(epochs, blocks, capacity)`` int32 places in a block, with room for a minibatch behind the last
        acted row; and ``(blocks,)``, the number of acted rows.
    """
    own = dealt(acted).reshape(len(acted), BLOCKS, -1).swapaxes(0, 1).reshape(BLOCKS, -1)
    count = own.sum(axis=1, dtype=np.int32)
    needed = int(count.max()) + size
    if capacity < needed:
        capacity = max(needed, capacity * 5 // 4)
    order = np.empty((epochs, BLOCKS, capacity), np.int32)
    for epoch in range(epochs):
        for block, held in enumerate(own):
            order[epoch, block] = np.resize(rng.permutation(np.flatnonzero(held)), capacity)
    return order, count


def drawn(rows: Any, order: jax.Array, count: jax.Array, i: Any, minibatches: Any, size: int) -> Any:
    """Minibatch ``i`` of an epoch: of each block the same share of its rows, each row in one minibatch.

    Args:
        rows: columns of ``(blocks * n, ...)``.
        order: ``(blocks, capacity)``, see :func:`shuffled_by_block`.
        count: ``(blocks,)``.
        i: which one.
        minibatches: of an epoch.
        size: most rows of one block.

    Returns:
        Columns of ``(blocks * size, ...)``, and ``weight``: 1 where a row counts.
    """
    share, more = count // minibatches, count % minibatches
    start, here = i * share + jnp.minimum(i, more), share + (i < more)

    def of_block(own: Any, order: jax.Array, start: jax.Array) -> Any:
        index = jax.lax.dynamic_slice(order, (start,), (size,))
        return jax.tree.map(lambda a: a[index], own)

    by_block = jax.tree.map(lambda a: a.reshape(BLOCKS, -1, *a.shape[1:]), rows)
    chosen = jax.vmap(of_block)(by_block, order, start)
    chosen["weight"] = (jnp.arange(size) < here[:, None]).astype(jnp.float32)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), chosen)
