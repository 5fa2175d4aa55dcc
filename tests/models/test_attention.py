"""Attention: against a loop that looks at one input after the other, and never across trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.models.attention import GATE_BIAS, NORM_EPSILON, Gate
from steppe.models.recurrent import make_cell


def unrolled(cell, x, state0, fresh):
    """One sequence."""
    one = jax.tree.map(lambda a: jnp.asarray(a)[None], (x, state0, fresh))
    return jax.tree.map(lambda a: a[0], cell.unrolled(*one))


MEMORY, SIZE = 3, 4
CELL = jax.tree.map(
    lambda a: a + jnp.asarray(np.random.default_rng(5).normal(0, 0.3, a.shape), jnp.float32),
    make_cell("attention", 2, np.random.default_rng(0), size=SIZE, attention_memory=MEMORY),
)
UNROLLED = jax.jit(lambda x, s, f: unrolled(CELL, x, s, f))
STEP = jax.jit(lambda x, s: CELL(x, s))
NUMPY = jax.tree.map(np.asarray, CELL)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x):
    return (x - np.mean(x)) / np.sqrt(np.var(x) + NORM_EPSILON)


def gated(gate, x, y):
    n = len(x)
    by = [y @ gate.new[:, i * n : (i + 1) * n] for i in range(3)]
    reset, update = (sigmoid(by[i] + x @ gate.old[:, i * n : (i + 1) * n] - i * GATE_BIAS) for i in range(2))
    return (1 - update) * x + update * np.tanh(by[2] + (reset * x) @ gate.candidate)


def looked_back(inputs):
    """The output for the newest of a trajectory's inputs ``(n, f)``: full attention on the last few."""
    embedded = [x @ NUMPY.embedding for x in inputs[-(MEMORY + 1) :]]
    seen = [normed(e) for e in embedded]
    heads, _, width = NUMPY.age.shape
    found = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        query = seen[-1] @ NUMPY.query[:, part] + NUMPY.start[h]
        scores = [
            query @ (s @ NUMPY.key[:, part] + NUMPY.age[h, MEMORY - (len(seen) - 1 - i)]) / np.sqrt(width)
            for i, s in enumerate(seen)
        ]
        weights = np.exp(scores) / np.sum(np.exp(scores))
        found.append(sum(w * (s @ NUMPY.value[:, part]) for w, s in zip(weights, seen, strict=True)))
    x = gated(NUMPY.gates[0], embedded[-1], np.maximum(np.concatenate(found) @ NUMPY.output, 0))
    y = np.maximum(normed(x) @ NUMPY.dense[0], 0) @ NUMPY.dense[1]
    return gated(NUMPY.gates[1], x, np.maximum(y, 0))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([7, 34]), st.integers(0, 4), st.integers(0, 999))
def test_unrolled_equals_full_attention_on_each_trajectory(rows, earlier, seed):
    """Also over the edge of a fragment: ``earlier`` rows went through the cell one by one before."""
    rng = np.random.default_rng(seed)
    x, fresh = rng.normal(0, 1, (rows, 2)).astype(np.float32), rng.random(rows) < 0.2
    state, inputs = CELL.initial(), []
    for row in rng.normal(0, 1, (earlier, 2)).astype(np.float32):
        _, state = STEP(row, state)
        inputs.append(row)
    y, before = UNROLLED(x, state, fresh)
    for row in range(rows):
        if fresh[row]:
            state, inputs = CELL.initial(), []
        jax.tree.map(lambda a, b, row=row: np.testing.assert_allclose(a[row], b, atol=1e-5), before, state)
        inputs.append(x[row])
        stepped, state = STEP(x[row], state)
        np.testing.assert_allclose(y[row], looked_back(inputs), atol=1e-5)
        np.testing.assert_allclose(stepped, looked_back(inputs), atol=1e-5)


def test_the_state_is_the_last_inputs_and_how_many_there_are():
    state = CELL.initial()
    assert [np.shape(leaf) for leaf in jax.tree.leaves(state)] == [(MEMORY, SIZE), ()]
    for row in range(5):
        _, state = STEP(np.float32([row, 1]), state)
    assert float(state["seen"]) == MEMORY
    expected = [normed(np.float32([row, 1]) @ NUMPY.embedding) for row in (2, 3, 4)]
    np.testing.assert_allclose(state["inputs"], expected, atol=1e-5)


def test_a_row_depends_on_the_last_inputs_of_its_trajectory_alone():
    """By the derivatives, 10 rows that are two trajectories, the second from row 5 on."""
    fresh, rng = np.arange(10) == 5, np.random.default_rng(0)
    cell = make_cell("attention", 2, rng, size=16, attention_memory=MEMORY)
    x = rng.normal(0, 1, (10, 2)).astype(np.float32)
    slopes = jax.jit(jax.jacrev(lambda x: unrolled(cell, x, cell.initial(), fresh)[0].sum(axis=1)))(x)
    row, source = np.indices((10, 10))
    near = (source <= row) & (source >= row - MEMORY) & ((source < 5) == (row < 5))
    np.testing.assert_array_equal(np.abs(slopes).sum(axis=2) > 0, near)


def test_a_new_gate_is_nearly_closed():
    x = jnp.linspace(-1, 1, 4)
    changed = Gate(4, np.random.default_rng(0))(x, jnp.zeros(4)) - x
    assert 0 < float(jnp.abs(changed).max()) < 0.5


@pytest.mark.parametrize(("size", "heads"), [(64, 4), (6, 2), (5, 1)])
def test_heads_divide_the_size(size, heads):
    cell = make_cell("attention", 3, np.random.default_rng(0), size=size, attention_memory=2)
    assert cell.age.shape == (heads, 3, size // heads)
    assert cell.describe() == {"kind": "attention", "size": size, "memory": 2}
