"""The column formulas equal sums written out trajectory by trajectory, and hand-computed numbers.

Everything that must not matter (holes, values of terminated rows, rewards above which nothing was acted) is
NaN, so that a wrong mask shows.
"""

from functools import partial

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.returns import acted, gae, lambda_returns, n_step, vtrace

HOLE, PLAIN, TERMINATED, TRUNCATED, BOTH = range(5)
SHAPES = [(1, 1), (2, 3), (6, 2), (12, 3)]
N_STEP = 3


def pieces(kind):
    """Every run of rows whose actions lead from one to the next, as (lane, rows)."""
    for lane in range(kind.shape[1]):
        rows = []
        for t in range(kind.shape[0]):
            if kind[t, lane] != HOLE:
                rows.append(t)
            if rows and (kind[t, lane] != PLAIN or t == kind.shape[0] - 1):
                yield lane, rows
                rows = []


def reference(c):
    """Targets and advantages as sums over the steps that are left of each piece."""
    out = {name: np.zeros(c["kind"].shape) for name in ("adv", "target", "vs", "pg", "n_step")}
    for lane, rows in pieces(c["kind"]):
        steps = rows[:-1]
        v = {t: c["value"][t, lane] for t in rows}
        if c["kind"][rows[-1], lane] in (TERMINATED, BOTH):
            v[rows[-1]] = 0.0
        r = {t: c["reward"][t + 1, lane] for t in steps}
        g = {t: c["gamma"][t, lane] for t in steps}
        rho = {t: np.exp(c["log_rho"][t, lane]) for t in steps}
        delta = {t: r[t] + g[t] * v[t + 1] - v[t] for t in steps}
        for t in steps:
            later = range(t, rows[-1])
            weight = {k: np.prod([g[i] for i in range(t, k)]) for k in range(t, rows[-1] + 1)}
            out["adv"][t, lane] = sum(weight[k] * c["lam"] ** (k - t) * delta[k] for k in later)
            out["target"][t, lane] = out["adv"][t, lane] + v[t]
            end = min(t + N_STEP, rows[-1])
            out["n_step"][t, lane] = sum(weight[k] * r[k] for k in range(t, end)) + weight[end] * v[end]
            traces = {k: np.prod([c["lam"] * min(0.9, rho[i]) for i in range(t, k)]) for k in later}
            out["vs"][t, lane] = v[t] + sum(
                weight[k] * traces[k] * min(1.2, rho[k]) * delta[k] for k in later
            )
        for t in steps:
            excess = out["vs"][t + 1, lane] - v[t + 1] if t + 1 in steps else 0.0
            out["pg"][t, lane] = min(1.2, rho[t]) * (delta[t] + g[t] * c["lam"] * excess)
    return out


@jax.jit
def columns(c):
    """Ours, compiled once a shape."""
    ends = c["kind"] % 2 == 0, c["kind"] >= TRUNCATED
    flags = (ends[0] & (c["kind"] > 0), ends[1], c["kind"] != HOLE)
    options = {"gamma": c["gamma"], "lam": c["lam"]}
    adv, target = gae(c["reward"], c["value"], *flags, **options)
    vs, pg = vtrace(c["log_rho"], c["reward"], c["value"], *flags, **options, clip_rho=1.2, clip_c=0.9)
    return {
        "adv": adv,
        "target": target,
        "vs": vs,
        "pg": pg,
        "n_step": n_step(c["reward"], c["value"], *flags, gamma=c["gamma"], n=N_STEP),
        "lambda_returns": lambda_returns(c["reward"], c["value"], *flags, **options),
        "acted": acted(*flags),
    }


@st.composite
def cases(draw):
    shape = draw(st.sampled_from(SHAPES))
    kind = draw(
        hnp.arrays(np.int8, shape, elements=st.sampled_from([PLAIN] * 6 + [*range(5)]), fill=st.nothing())
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    acts = np.zeros(shape, bool)
    for lane, rows in pieces(kind):
        acts[rows[:-1], lane] = True
    led_to = np.vstack([np.zeros((1, shape[1]), bool), acts[:-1]])
    bootstraps = acts | (led_to & (kind != TERMINATED) & (kind != BOTH))
    c = {
        "kind": kind,
        "acted": acts,
        "reward": np.where(led_to, rng.normal(size=shape), np.nan),
        "value": np.where(bootstraps, rng.normal(size=shape), np.nan),
        "log_rho": np.where(acts, rng.normal(size=shape), np.nan),
        "gamma": rng.uniform(0.8, 1.0, shape),
        "lam": draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])),
    }
    return {k: x.astype(np.float32) if getattr(x, "dtype", None) == np.float64 else x for k, x in c.items()}


@settings(max_examples=400)
@given(cases())
def test_columns_equal_sums_over_each_trajectory(c):
    ours, theirs = columns(c), reference(c)
    np.testing.assert_array_equal(ours["acted"], c["acted"])
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(ours["lambda_returns"], ours["target"])


def column(*values):
    return np.asarray(values, np.float32)[:, None]


def flags(*values):
    return np.asarray(values, bool)[:, None]


NONE4 = flags(0, 0, 0, 0)
ALL4 = flags(1, 1, 1, 1)
REWARD = column(np.nan, 1.0, 2.0, 4.0)
VALUE = column(10.0, 20.0, 30.0, 40.0)


def test_gae_by_hand():
    # deltas: 1 + 10 - 10, 2 + 15 - 20, 4 + 20 - 30; each carries a quarter of the one below
    adv, target = gae(REWARD, VALUE, NONE4, NONE4, ALL4, gamma=0.5, lam=0.5)
    np.testing.assert_allclose(adv[:, 0], [1 - 4.5 / 4, -3 - 6 / 4, -6, 0])
    np.testing.assert_allclose(target[:, 0], [9.875, 15.5, 24, 0])


def test_termination_cuts_the_value_and_truncation_keeps_it():
    last = flags(0, 0, 0, 1)
    ended, _ = gae(REWARD, VALUE, last, NONE4, ALL4, gamma=0.5, lam=0.0)
    cut, _ = gae(REWARD, VALUE, NONE4, last, ALL4, gamma=0.5, lam=0.0)
    np.testing.assert_allclose(ended[:, 0], [1, -3, 4 - 30, 0])
    np.testing.assert_allclose(cut[:, 0], [1, -3, 4 + 20 - 30, 0])


def test_the_next_trajectory_of_a_lane_does_not_leak_into_the_one_before():
    # row 1 is final; the reward of row 2 (a first row) belongs to nobody
    adv, _ = gae(REWARD, VALUE, flags(0, 1, 0, 0), NONE4, ALL4, gamma=1.0, lam=1.0)
    np.testing.assert_allclose(adv[:, 0], [1 - 10, 0, 4 + 40 - 30, 0])


def test_n_step_by_hand():
    step = partial(n_step, REWARD, VALUE, NONE4, NONE4, ALL4, gamma=0.5)
    np.testing.assert_allclose(step(n=1)[:, 0], [11, 17, 24, 0])
    np.testing.assert_allclose(step(n=2)[:, 0], [1 + 1 + 7.5, 2 + 2 + 10, 24, 0])
    np.testing.assert_allclose(step(n=9)[:, 0], [1 + 1 + 1 + 5, 14, 24, 0])
    with pytest.raises(ValueError, match="n >= 1"):
        step(n=0)


def test_n_step_of_one_is_gae_without_lambda():
    _, target = gae(REWARD, VALUE, NONE4, NONE4, ALL4, gamma=0.9, lam=0.0)
    np.testing.assert_allclose(n_step(REWARD, VALUE, NONE4, NONE4, ALL4, gamma=0.9, n=1), target, rtol=1e-6)


def test_vtrace_on_policy_is_gae():
    zero = np.zeros_like(VALUE)
    vs, pg = vtrace(zero, REWARD, VALUE, NONE4, NONE4, ALL4, gamma=0.9, lam=0.7)
    adv, target = gae(REWARD, VALUE, NONE4, NONE4, ALL4, gamma=0.9, lam=0.7)
    np.testing.assert_allclose(vs, target, rtol=1e-6)
    np.testing.assert_allclose(pg, adv, rtol=1e-5, atol=1e-5)


def test_vtrace_by_hand():
    # ratios 4 and 0.5, clipped at 1: deltas 1 * 1 and 0.5 * -3, traces 1 and 0.5
    off = np.log(column(4.0, 0.5, 1.0, 1.0))
    filled = flags(1, 1, 1, 0)
    vs, pg = vtrace(off, REWARD, VALUE, NONE4, NONE4, filled, gamma=0.5)
    np.testing.assert_allclose(vs[:, 0], [10 + 1 + 0.5 * -1.5, 20 - 1.5, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(pg[:, 0], [1 + 0.5 * -1.5, -1.5, 0, 0], rtol=1e-6)


def test_a_discount_per_row_belongs_to_the_step_down_from_it():
    adv, _ = gae(REWARD, VALUE, NONE4, NONE4, ALL4, gamma=column(0.5, 0.1, 1.0, 9.0), lam=0.0)
    np.testing.assert_allclose(adv[:, 0], [1, 2 + 3 - 20, 4 + 40 - 30, 0], rtol=1e-6)
