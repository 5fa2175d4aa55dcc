"""Cells: steps by hand, against loops over single numbers, and unrolled over trajectories in a lane."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.errors import ConfigError
from steppe.models.recurrent import make_cell, scanned


def unrolled(cell, x, state0, fresh):
    """One sequence."""
    one = jax.tree.map(lambda a: jnp.asarray(a)[None], (x, state0, fresh))
    return jax.tree.map(lambda a: a[0], cell.unrolled(*one))


KINDS = ("lstm", "gru")


def drawn(kind, inputs=3, size=4, seed=0, **more):
    """A cell whose every parameter is some number, biases too."""
    cell, rng = (
        make_cell(kind, inputs, np.random.default_rng(seed), size=size, **more),
        np.random.default_rng(9),
    )
    return jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32), cell)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive_lstm(cell, x, state):
    """Gate by gate, unit by unit."""
    n, out = cell.size, {"c": np.zeros(cell.size), "h": np.zeros(cell.size)}
    for unit in range(n):
        gate = [
            sum(x[i] * cell.inputs[i, g * n + unit] for i in range(len(x)))
            + sum(state["h"][j] * cell.weights[j, g * n + unit] for j in range(n))
            + cell.bias[g * n + unit]
            for g in range(4)
        ]
        out["c"][unit] = sigmoid(gate[1]) * state["c"][unit] + sigmoid(gate[0]) * np.tanh(gate[2])
        out["h"][unit] = sigmoid(gate[3]) * np.tanh(out["c"][unit])
    return out["h"], out


def naive_gru(cell, x, state):
    """Gate by gate, unit by unit."""
    n, out = cell.size, {"h": np.zeros(cell.size)}
    for unit in range(n):
        own = [
            sum(x[i] * cell.inputs[i, g * n + unit] for i in range(len(x))) + cell.bias[g * n + unit]
            for g in range(3)
        ]
        other = [sum(state["h"][j] * cell.weights[j, g * n + unit] for j in range(n)) for g in range(3)]
        reset, keep = sigmoid(own[0] + other[0]), sigmoid(own[1] + other[1])
        new = np.tanh(own[2] + reset * (other[2] + cell.inner[unit]))
        out["h"][unit] = (1 - keep) * new + keep * state["h"][unit]
    return out["h"], out


NAIVE = {"lstm": naive_lstm, "gru": naive_gru}


def same(left, right, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)


def test_an_lstm_step_by_hand():
    """One unit, input 2 and h 0.5: gates 1, 0, 2 and -1 before their functions."""
    cell = make_cell("lstm", 1, np.random.default_rng(0), size=1)
    where = lambda c: (c.inputs, c.weights, c.bias)  # noqa: E731
    numbers = ([[0.5, 0.0, 0.75, -1.0]], [[0.0, -2.0, 1.0, 1.0]], [0.0, 1.0, 0.0, 0.5])
    cell = eqx.tree_at(where, cell, tuple(map(jnp.asarray, numbers)))
    y, state = cell(jnp.asarray([2.0]), {"c": jnp.asarray([3.0]), "h": jnp.asarray([0.5])})
    c = 0.5 * 3 + 0.7310586 * 0.9640276
    assert float(state["c"][0]) == pytest.approx(c, abs=1e-5)
    assert float(y[0]) == float(state["h"][0]) == pytest.approx(0.2689414 * np.tanh(c), abs=1e-5)


def test_a_gru_step_by_hand():
    """One unit, input 1 and h 0.5: reset gate of 0, update gate of 1, candidate of 1 + 0.5 * (1 + 1)."""
    cell = make_cell("gru", 1, np.random.default_rng(0), size=1)
    where = lambda c: (c.inputs, c.weights, c.inner)  # noqa: E731
    cell = eqx.tree_at(
        where, cell, (jnp.asarray([[1.0, 0.0, 1.0]]), jnp.asarray([[-2.0, 2.0, 2.0]]), jnp.asarray([1.0]))
    )
    y, state = cell(jnp.asarray([1.0]), {"h": jnp.asarray([0.5])})
    expected = (1 - 0.7310586) * np.tanh(2.0) + 0.7310586 * 0.5
    assert float(y[0]) == float(state["h"][0]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_a_loop_over_single_numbers(kind):
    cell, rng = drawn(kind), np.random.default_rng(1)
    state = naive = cell.initial()
    for _ in range(5):
        x = rng.normal(0, 1, 3).astype(np.float32)
        y, state = cell(x, state)
        expected, naive = NAIVE[kind](cell, x, naive)
        same(y, expected)
        same(state, naive)


def test_a_new_lstm_keeps_what_it_holds():
    """The forget gate begins open."""
    np.testing.assert_array_equal(make_cell("lstm", 2, np.random.default_rng(0), size=2).bias[2:4], 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_state_is_zeros_of_one_row(kind):
    cell = make_cell(kind, 3, np.random.default_rng(0), size=5)
    assert cell.size == 5
    assert cell.describe() == {"kind": kind, "size": 5}
    for leaf in jax.tree.leaves(cell.initial()):
        assert isinstance(leaf, np.ndarray)
        assert not leaf.any()


def test_an_unknown_kind_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="lstm, gru"):
        make_cell("elephant", 3, np.random.default_rng(0))


CELLS = {kind: drawn(kind) for kind in KINDS}
UNROLLED = {kind: jax.jit(lambda x, s, f, c=cell: unrolled(c, x, s, f)) for kind, cell in CELLS.items()}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.booleans(), min_size=9, max_size=9), st.integers(0, 99))
def test_unrolled_equals_each_trajectory_by_itself(kind, fresh, seed):
    """The first goes on from the state that it was met with, each further one from zeros."""
    cell, rng = CELLS[kind], np.random.default_rng(seed)
    x = rng.normal(0, 1, (9, 3)).astype(np.float32)
    state = jax.tree.map(lambda a: rng.normal(0, 1, a.shape).astype(np.float32), cell.initial())
    y, before = UNROLLED[kind](x, state, np.array(fresh))
    for row in range(9):
        state = cell.initial() if fresh[row] else state
        same(jax.tree.map(lambda a, r=row: a[r], before), state)
        expected, state = NAIVE[kind](cell, x[row], state)
        same(y[row], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_crosses_into_the_trajectory_before(kind):
    cell = CELLS[kind]
    x, fresh = jnp.ones((4, 3)), jnp.array([False, False, True, False])

    def last(x):
        return unrolled(cell, x, cell.initial(), fresh)[0][-1].sum()

    moved = np.abs(np.asarray(jax.grad(last)(x))).sum(axis=1) > 0
    np.testing.assert_array_equal(moved, [False, False, True, True])


def test_the_gradient_of_an_lstm_is_that_of_its_steps():
    """Of several sequences at once, by every input that has one; that of the states is said to be none."""
    cell, rng = CELLS["lstm"], np.random.default_rng(4)
    x, weight = (rng.normal(0, 1, (5, 7, n)).astype(np.float32) for n in (3, 4))
    state0 = {name: rng.normal(0, 1, (5, 4)).astype(np.float32) for name in "ch"}
    fresh = rng.random((5, 7)) < 0.3

    def by_steps(cell, x, state0):
        return jax.vmap(lambda *one: scanned(cell, *one))(x, state0, fresh)

    def loss(unroll):
        return lambda *given: (unroll(*given)[0] * weight).sum()

    at_once = jax.jit(lambda cell, x, state0: cell.unrolled(x, state0, fresh))
    same(at_once(cell, x, state0), by_steps(cell, x, state0))
    expected, found = (jax.grad(loss(f), (0, 1, 2))(cell, x, state0) for f in (by_steps, at_once))
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(expected))
    same(found, expected)
    states = jax.grad(lambda x: sum(map(jnp.sum, jax.tree.leaves(at_once(cell, x, state0)[1]))))(x)
    assert not states.any()
