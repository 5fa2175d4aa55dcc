"""Cells: what a network remembers from row to row of one trajectory.

A cell is written for one row and vmapped by the caller. A fresh trajectory is met with a state of zeros,
whatever the cell: whoever keeps states by slot or by lane resets them without knowing what they hold.
"""

from __future__ import annotations

from abc import abstractmethod
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
        """See :func:`unrolled`."""

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
        """Row by row."""
        return _scanned(self, x, state0, fresh)

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
        return _scanned(self, x, state0, fresh)

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


def unrolled(cell: Cell, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
    """A cell over consecutive rows of one lane, in which trajectories may follow each other.

    Args:
        cell: of any kind.
        x: ``(rows, f)`` inputs.
        state0: that row 0 is met with, without a leading axis.
        fresh: ``(rows,)`` bool: first rows of trajectories, which are met with zeros instead of the state.

    Returns:
        ``(rows, size)`` outputs, and the state that each row was met with, ``(rows, ...)``.
    """
    return cell.unrolled(x, state0, fresh)


def _scanned(cell: Cell, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
    """Row by row, but for what is made of the inputs alone."""

    def step(state: Tree, row: tuple[Tree, jax.Array]) -> tuple[Tree, tuple[jax.Array, Tree]]:
        prepared, first = row
        before = jax.tree.map(lambda a: jnp.where(first, jnp.zeros_like(a), a), state)
        y, after = cell.step(prepared, before)
        return after, (y, before)

    _, (y, before) = jax.lax.scan(step, state0, (jax.vmap(cell.prepared)(x), fresh))
    return y, before


def _blocks(rng: np.random.Generator, rows: int, size: int, count: int) -> jax.Array:
    """Orthogonal matrices side by side, one a gate."""
    return jnp.asarray(np.concatenate([orthogonal(rng, rows, size, 1.0) for _ in range(count)], axis=1))
