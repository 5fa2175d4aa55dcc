"""A memory that looks back: gated self-attention over the newest inputs, one layer of a GTrXL."""

from __future__ import annotations

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.initial import orthogonal
from steppe.models.recurrent import Cell
from steppe.types import Tree

GATE_BIAS = 2.0
"""Gates begin nearly closed: the layer begins as what it is given (Parisotto et al., 2020, section 3.2)."""
NORM_EPSILON = 1e-5


@final
class Gate(eqx.Module):
    """How much of ``y`` comes to ``x``: a GRU's gates in place of a residual connection.

    Attributes:
        new: ``(size, 3 size)``, of ``y``, for reset gate, update gate and candidate.
        old: ``(size, 2 size)``, of ``x``, for the two gates.
        candidate: ``(size, size)``, of what the reset gate leaves of ``x``.
    """

    new: jax.Array
    old: jax.Array
    candidate: jax.Array

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.new, self.old, self.candidate = (_matrix(rng, size, size, count) for count in (3, 2, 1))

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """``(size,)`` of ``(size,)`` each."""
        reset_y, update_y, new_y = jnp.split(y @ self.new, 3)
        reset_x, update_x = jnp.split(x @ self.old, 2)
        update = jax.nn.sigmoid(update_y + update_x - GATE_BIAS)
        new = jnp.tanh(new_y + (jax.nn.sigmoid(reset_y + reset_x) * x) @ self.candidate)
        return (1.0 - update) * x + update * new


@final
class Attention(Cell):
    """Looks back on the last inputs, which the state holds as they were embedded, and on the present one.

    One layer of the gated transformer (Parisotto et al., 2020): normalised first, gated, with a learned
    embedding of how long ago an input was (Dai et al., 2019). No gradient crosses the edge of a sequence.

    Attributes:
        embedding: ``(in, size)``.
        query: ``(size, size)``, the heads side by side; ``key`` and ``value`` likewise.
        start: ``(heads, width)``, added to each query.
        age: ``(heads, memory + 1, width)``, added to the keys, the present input's last.
        output: ``(size, size)``, of all heads.
        dense: two matrices ``(size, size)``, the layers behind the attention.
        gates: behind the attention, and behind these layers.
        size: of the output.
        memory: how many inputs are looked back on.
    """

    embedding: jax.Array
    query: jax.Array
    key: jax.Array
    value: jax.Array
    start: jax.Array
    age: jax.Array
    output: jax.Array
    dense: tuple[jax.Array, jax.Array]
    gates: tuple[Gate, Gate]
    size: int = eqx.field(static=True)
    memory: int = eqx.field(static=True)

    def __init__(self, inputs: int, size: int, memory: int, rng: np.random.Generator) -> None:
        self.embedding = _matrix(rng, inputs, size)
        self.query, self.key, self.value, self.output = (_matrix(rng, size, size) for _ in range(4))
        heads = next(n for n in (4, 2, 1) if size % n == 0)
        width = size // heads
        self.start = jnp.asarray(rng.standard_normal((heads, width), np.float32))
        self.age = jnp.asarray(rng.standard_normal((heads, memory + 1, width), np.float32))
        self.dense = (_matrix(rng, size, size), _matrix(rng, size, size))
        self.gates = (Gate(size, rng), Gate(size, rng))
        self.size, self.memory = size, memory

    def initial(self) -> Tree:
        """Zeros: no input was seen."""
        inputs = np.zeros((self.memory, self.size), np.float32)
        return {"inputs": inputs, "seen": np.zeros((), np.float32)}

    def prepared(self, x: jax.Array) -> Tree:
        """The input, embedded and normalised, and what it looks for: by content, and by age.

        A query goes through the matrix of the keys to the inputs, instead of these to it: a row then costs no
        product with a matrix for each input that is looked back on.
        """
        heads, _, width = self.age.shape
        embedded = x @ self.embedding
        seen = _normed(embedded)
        query = ((seen @ self.query).reshape(heads, width) + self.start) / width**0.5
        look = jnp.einsum("hw,shw->hs", query, self.key.reshape(-1, heads, width))
        return {"x": embedded, "seen": seen, "look": look, "age": jnp.einsum("hw,hmw->hm", query, self.age)}

    def step(self, prepared: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        """Look back, and go one on."""
        row, fresh = jax.tree.map(lambda a: a[None], prepared), jnp.zeros(1, jnp.bool_)
        y, _, after = self._block(state, row, fresh)
        return y[0], after

    def unrolled(self, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
        """Sequence by sequence."""
        return jax.vmap(self._sequence)(x, state0, fresh)

    def _sequence(self, x: jax.Array, state0: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree]:
        """Blocks of rows, each of which looks back on its own and on those of the state, at once."""
        rows = len(fresh)
        block = next(n for n in range(min(rows, max(self.memory, 16)), 0, -1) if rows % n == 0)

        def step(state: Tree, part: tuple[Tree, jax.Array]) -> tuple[Tree, tuple[jax.Array, Tree]]:
            y, before, after = self._block(state, *part)
            return after, (y, before)

        parts = jax.tree.map(
            lambda a: a.reshape(rows // block, block, *a.shape[1:]), (jax.vmap(self.prepared)(x), fresh)
        )
        _, found = jax.lax.scan(step, state0, parts)
        y, before = jax.tree.map(lambda a: a.reshape(rows, *a.shape[2:]), found)
        return y, before

    def _block(self, state: Tree, rows: Tree, fresh: jax.Array) -> tuple[jax.Array, Tree, Tree]:
        """Outputs ``(k, size)``, the states that ``k`` rows are met with, and the one behind them."""
        k, m, (heads, _, width) = len(fresh), self.memory, self.age.shape
        place = jnp.arange(k)
        began = jax.lax.cummax(jnp.where(fresh, place, -1))
        seen = jnp.minimum(jnp.where(began < 0, state["seen"] + place, place - began), float(m))
        inputs = jnp.concatenate([state["inputs"], rows["seen"]])
        # Row i looks on places i ... i + m, of which the last min(seen, m) + 1 are of its trajectory.
        ago = jnp.arange(m + k) - place[:, None]
        there = (ago >= m - seen[:, None]) & (ago <= m)
        scores = jnp.einsum("khs,js->hkj", rows["look"], inputs) + _shifted(rows["age"].swapaxes(0, 1))
        found = jnp.einsum("hkj,js->khs", jax.nn.softmax(jnp.where(there, scores, -jnp.inf)), inputs)
        values = jnp.einsum("khs,shw->khw", found, self.value.reshape(-1, heads, width)).reshape(k, -1)
        x = jax.vmap(self.gates[0])(rows["x"], jax.nn.relu(values @ self.output))
        y = jax.nn.relu(_normed(x) @ self.dense[0]) @ self.dense[1]
        met = jnp.append(seen, jnp.minimum(seen[-1] + 1.0, float(m)))
        windows = inputs[jnp.arange(k + 1)[:, None] + jnp.arange(m)]
        windows = jnp.where((jnp.arange(m) >= m - met[:, None])[..., None], windows, 0.0)
        states = {"inputs": windows, "seen": met}
        before, after = (jax.tree.map(lambda a, c=cut: a[c], states) for cut in (slice(k), k))
        return jax.vmap(self.gates[1])(x, jax.nn.relu(y)), before, after

    def describe(self) -> dict[str, Any]:
        """Its kind and sizes."""
        return {"kind": "attention", "size": self.size, "memory": self.memory}


def _shifted(x: jax.Array) -> jax.Array:
    """``(h, k, n)`` to ``(h, k, n + k - 1)``: row ``i`` moved ``i`` places to the right, zeros around it."""
    heads, k, n = x.shape
    wide = jnp.pad(x, ((0, 0), (0, 0), (0, k))).reshape(heads, -1)
    return wide[:, : k * (n + k - 1)].reshape(heads, k, n + k - 1)


def _normed(x: jax.Array) -> jax.Array:
    """Mean 0 and deviation 1 over the last axis (Ba et al., 2016)."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + NORM_EPSILON)


def _matrix(rng: np.random.Generator, rows: int, columns: int, count: int = 1) -> jax.Array:
    """Orthogonal matrices side by side."""
    return jnp.asarray(np.concatenate([orthogonal(rng, rows, columns) for _ in range(count)], axis=1))
