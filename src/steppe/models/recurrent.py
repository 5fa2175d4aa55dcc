"""Cells: what a network remembers from row to row of one trajectory.

A cell is written for one row, which the caller vmaps, and for runs of rows. A fresh trajectory is met with a
state of zeros, whatever the cell: whoever keeps states by slot or by lane resets them without knowing what is
held.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.models.initial import orthogonal
from steppe.types import Tree


class Cell(eqx.Module):
    """From an input and what is remembered to an output and what is remembered from then on."""

    size: eqx.AbstractVar[int]
    """Of its output."""

    @abstractmethod
    def initial(self) -> Tree:
        """The state that a fresh trajectory is met with: zeros, numpy arrays without a leading axis."""

    @abstractmethod
    def prepared(self, x: jax.Array) -> Tree:
        """What it makes of an input ``(f,)`` alone: done for all rows at once, outside of a scan."""

    @abstractmethod
    def step(self, prepared: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        """Output ``(size,)`` and the next state, of what :meth:`prepared` gave and a state."""

    @abstractmethod
    def unrolled(self, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
        """Over runs of consecutive rows, in which trajectories may follow each other.

        Args:
            x: ``(s, rows, f)`` inputs of ``s`` sequences.
            state0: ``(s, ...)``, that row 0 of each is met with.
            fresh: ``(s, rows)`` bool: first rows of trajectories, met with zeros instead of the state.

        Returns:
            ``(s, rows, size)`` outputs, and the state that each row was met with, ``(s, rows, ...)``.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values; :mod:`steppe.models.numpy_forward` reads it."""

    def __call__(self, x: jax.Array, state: Tree) -> tuple[jax.Array, Tree]:
        """One row: input ``(f,)`` and state to output ``(size,)`` and the next state."""
        return self.step(self.prepared(x), state)


@final
class LSTM(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) with a forget gate (Gers et al., 2000).

    Attributes:
        inputs: ``(in, 4 size)``, for input gate, forget gate, candidate and output gate, in this order.
        weights: ``(size, 4 size)``, the same of the output before.
        bias: ``(4 size,)``; the forget gate's begins at 1, so that a new cell remembers.
        size: of the output.
    """

    inputs: jax.Array
    weights: jax.Array
    bias: jax.Array
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, size: int, rng: np.random.Generator) -> None:
        self.inputs, self.weights = _blocks(rng, inputs, size, 4), _blocks(rng, size, size, 4)
        self.bias = jnp.asarray(np.repeat(np.array([0, 1, 0, 0], np.float32), size))
        self.size = size

    def initial(self) -> Tree:
        """Zeros."""
        return {"c": np.zeros(self.size, np.float32), "h": np.zeros(self.size, np.float32)}

    def prepared(self, x: jax.Array) -> Tree:
        """The input's part of every gate."""
        return x @ self.inputs + self.bias

    def step(self, prepared: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        """Forget, take in, show."""
        take, keep, new, show = jnp.split(prepared + state["h"] @ self.weights, 4)
        c = jax.nn.sigmoid(keep) * state["c"] + jax.nn.sigmoid(take) * jnp.tanh(new)
        h = jax.nn.sigmoid(show) * jnp.tanh(c)
        return h, {"c": c, "h": h}

    def unrolled(self, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
        """Row by row, all sequences side by side."""
        prepared = self.prepared(x).swapaxes(0, 1)
        kept = jnp.where(fresh.T, 0.0, 1.0)[..., None]
        found = _lstm(self.weights, prepared, kept, state0["c"], state0["h"])
        y, c, h = (a.swapaxes(0, 1) for a in found)
        return y, jax.lax.stop_gradient({"c": c, "h": h})

    def describe(self) -> dict[str, Any]:
        """Its kind and size."""
        return {"kind": "lstm", "size": self.size}


@final
class GRU(Cell):
    """Gated recurrent unit (Cho et al., 2014), the reset gate behind the product as cuDNN has it.

    Attributes:
        inputs: ``(in, 3 size)``, for reset gate, update gate and candidate, in this order.
        weights: ``(size, 3 size)``, the same of the output before.
        bias: ``(3 size,)`` of the inputs' products.
        inner: ``(size,)``, of the candidate's product with the output before: inside of the reset gate.
        size: of the output.
    """

    inputs: jax.Array
    weights: jax.Array
    bias: jax.Array
    inner: jax.Array
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, size: int, rng: np.random.Generator) -> None:
        self.inputs, self.weights = _blocks(rng, inputs, size, 3), _blocks(rng, size, size, 3)
        self.bias, self.inner = (jnp.asarray(np.zeros(n, np.float32)) for n in (3 * size, size))
        self.size = size

    def initial(self) -> Tree:
        """Zeros."""
        return {"h": np.zeros(self.size, np.float32)}

    def prepared(self, x: jax.Array) -> Tree:
        """The input's part of every gate."""
        return x @ self.inputs + self.bias

    def step(self, prepared: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        """Between what was and what is new."""
        reset_x, keep_x, new_x = jnp.split(prepared, 3)
        reset_h, keep_h, new_h = jnp.split(state["h"] @ self.weights, 3)
        keep = jax.nn.sigmoid(keep_x + keep_h)
        new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * (new_h + self.inner))
        h = (1.0 - keep) * new + keep * state["h"]
        return h, {"h": h}

    def unrolled(self, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
        """Row by row."""
        return jax.vmap(partial(scanned, self))(x, state0, fresh)

    def describe(self) -> dict[str, Any]:
        """Its kind and size."""
        return {"kind": "gru", "size": self.size}


def make_cell(
    kind: str, inputs: int, rng: np.random.Generator, *, size: int = 64, attention_memory: int = 32
) -> Cell:
    """Draw a cell.

    Args:
        kind: "lstm", "gru" or "attention".
        inputs: width of its input.
        rng: source of the initial parameters.
        size: of its output.
        attention_memory: how many earlier inputs an "attention" looks back on.

    Raises:
        ConfigError: no such kind.
    """
    if kind == "lstm":
        return LSTM(inputs, size, rng)
    if kind == "gru":
        return GRU(inputs, size, rng)
    if kind == "attention":
        from steppe.models.attention import Attention  # a cell itself

        return Attention(inputs, size, attention_memory, rng)
    raise ConfigError(f"memory={kind!r} is unknown; choose one of none, lstm, gru, attention")


def scanned(cell: Cell, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
    """A cell over one sequence, row by row but for what is made of the inputs alone.

    Args:
        cell: of any kind.
        x: ``(rows, f)`` inputs.
        state0: that row 0 is met with, without a leading axis.
        fresh: ``(rows,)`` bool: first rows of trajectories, which are met with zeros instead of the state.

    Returns:
        ``(rows, size)`` outputs, and the state that each row was met with, ``(rows, ...)``.
    """

    def step(state: Tree, row: tuple[Tree, jax.Array]) -> tuple[Tree, tuple[jax.Array, Tree]]:
        prepared, first = row
        before = jax.tree.map(lambda a: jnp.where(first, jnp.zeros_like(a), a), state)
        y, after = cell.step(prepared, before)
        return after, (y, before)

    _, (y, before) = jax.lax.scan(step, state0, (jax.vmap(cell.prepared)(x), fresh))
    return y, before


Met = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def _lstm(weights: jax.Array, prepared: jax.Array, kept: jax.Array, c0: jax.Array, h0: jax.Array) -> Met:
    """An LSTM over ``s`` sequences of ``l`` rows.

    Its gradient is written out: JAX's own would add up that of the weights row by row, where one product
    over all rows says the same. And row by row is done only what needs the row before: on CPU the number of
    operations counts, not their size. An update takes half of the time.

    Args:
        weights: ``(size, 4 size)``.
        prepared: ``(l, s, 4 size)``.
        kept: ``(l, s, 1)``, 0 where the row is met with zeros and 1 elsewhere.
        c0: ``(s, size)``, that row 0 is met with.
        h0: likewise.

    Returns:
        Outputs ``(l, s, size)``, and ``c`` and ``h`` that each row was met with: no gradient comes by these.
    """
    return _forth(weights, prepared, kept, c0, h0)[0]


def _forth(
    weights: jax.Array, prepared: jax.Array, kept: jax.Array, c0: jax.Array, h0: jax.Array
) -> tuple[Met, Any]:
    size = c0.shape[-1]
    # One tanh for all four gates: a sigmoid is one of half the input.
    slope = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), size)
    shift = 1.0 - slope

    def step(state: Any, row: Any) -> Any:
        (c, h), (made, keeps) = state, row
        gates = jnp.tanh((made + (keeps * h) @ weights) * slope) * slope + shift
        take, keep, new, show = jnp.split(gates, 4, axis=-1)
        after = keep * (keeps * c) + take * new
        return (after, show * jnp.tanh(after)), (gates, after)

    _, (gates, after) = jax.lax.scan(step, (c0, h0), (prepared, kept))
    shown = jnp.tanh(after)
    y = gates[..., -size:] * shown
    c, h = (kept * jnp.concatenate([first[None], rest[:-1]]) for first, rest in ((c0, after), (h0, y)))
    return (y, c, h), (weights, c, h, gates, shown, kept)


def _back(known: Any, wanted: Met) -> tuple[Any, ...]:
    weights, c, h, gates, shown, kept = known
    take, keep, new, show = jnp.split(gates, 4, axis=-1)
    # What a change of c, thrice, and of the output does to each gate's input.
    parts = new * take * (1 - take), c * keep * (1 - keep), take * (1 - new * new), shown * show * (1 - show)
    to_gates, to_c = jnp.concatenate(parts, axis=-1), show * (1.0 - shown * shown)

    def step(later: Any, row: Any) -> Any:
        (by_c, by_h), (by_y, to_gates, to_c, keep, keeps) = later, row
        by_h = by_h + by_y
        by_c = by_c + by_h * to_c
        by_gates = jnp.concatenate([by_c, by_c, by_c, by_h], axis=-1) * to_gates
        return (by_c * keep, keeps * (by_gates @ weights.T)), by_gates

    zero = jnp.zeros_like(c[0])
    rows = wanted[0], to_gates, to_c, kept * keep, kept
    (by_c0, by_h0), by_prepared = jax.lax.scan(step, (zero, zero), rows, reverse=True)
    size = c.shape[-1]
    by_weights = h.reshape(-1, size).T @ by_prepared.reshape(-1, 4 * size)
    return by_weights, by_prepared, jnp.zeros_like(kept), by_c0, by_h0


_lstm.defvjp(_forth, _back)


def _blocks(rng: np.random.Generator, rows: int, size: int, count: int) -> jax.Array:
    """Orthogonal matrices side by side, one a gate."""
    return jnp.asarray(np.concatenate([orthogonal(rng, rows, size, 1.0) for _ in range(count)], axis=1))
