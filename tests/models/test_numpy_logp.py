"""Log-probabilities in numpy: by hand, as sums and integrals that must be 1, and as the learner says."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.models.actions import MASKED, Actions
from steppe.models.distributions import Distribution
from steppe.models.numpy_logp import logp_of
from steppe.spaces import spec_of
from steppe.types import Tree

LOG_STANDARD = -0.5 * math.log(2 * math.pi)


def logp(space, params, action, **options) -> list[float]:
    return logp_of(Actions(spec_of(space), **options), np.array(params, np.float32), action).tolist()


def test_choices_by_hand():
    """Weights 1, 2 and 5 of 8; then one choice of 1 and 3, and independently one of 1, 1 and 2."""
    params = np.log([[1.0, 2.0, 5.0]] * 3)
    found = logp(spaces.Discrete(3, start=7), params, np.array([0, 1, 2], np.int32))
    assert found == pytest.approx(np.log([1 / 8, 2 / 8, 5 / 8]), abs=1e-6)
    params = np.log([[1.0, 3.0, 1.0, 1.0, 2.0]])
    found = logp(spaces.MultiDiscrete([2, 3]), params, np.array([[1, 2]], np.int32))
    assert found == pytest.approx([math.log(3 / 4 * 2 / 4)], abs=1e-6)


def test_bits_by_hand():
    """Odds of 3 to 1 that the first is 1, and even odds: 3/4 * 1/2 and 1/4 * 1/2."""
    found = logp(spaces.MultiBinary(2), [[math.log(3), 0.0]] * 2, np.array([[1, 0], [0, 1]], np.int8))
    assert found == pytest.approx(np.log([3 / 8, 1 / 8]), abs=1e-6)


def test_numbers_by_hand():
    """One deviation of 2 from the mean: minus 1/2, and the logarithm of 2 for the wider scale."""
    space = spaces.Box(-1, 1, (2,), np.float32)
    found = logp(space, [[1.0, 0.0, math.log(2), 0.0]], np.array([[3.0, 0.0]], np.float32))
    assert found == pytest.approx([2 * LOG_STANDARD - 0.5 - math.log(2)], abs=1e-6)
    squashed = logp(space, [[0.0] * 4], np.array([[0.0, math.atanh(0.6)]], np.float32), squash=True)
    expected = 2 * LOG_STANDARD - 0.5 * math.atanh(0.6) ** 2 - math.log(1 - 0.36)
    assert squashed == pytest.approx([expected], abs=1e-5)
    far = logp(space, [[50.0, 50.0, 0.0, 0.0]], np.array([[50.0, 50.0]], np.float32), squash=True)
    assert far == pytest.approx([2 * (LOG_STANDARD - 2 * (math.log(2) - 50))], rel=1e-5)  # and no infinity


def test_leaves_add_up_and_each_row_is_its_own():
    space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (), np.float32)))
    params = [[0.0, 0.0, 1.0, 0.0], [0.0, math.log(3), 0.0, 0.0]]
    action: Tree = (np.array([0, 1], np.int32), np.array([1.0, 2.0], np.float32))
    expected = [math.log(1 / 2) + LOG_STANDARD, math.log(3 / 4) + LOG_STANDARD - 2.0]
    assert logp(space, params, action) == pytest.approx(expected, abs=1e-6)


def test_what_is_forbidden_has_no_chance():
    params = [[0.0, MASKED, 0.0]]
    assert logp(spaces.Discrete(3), params, np.array([2], np.int32)) == pytest.approx([math.log(1 / 2)])
    assert logp(spaces.Discrete(3), params, np.array([1], np.int32))[0] < -1e8


@settings(max_examples=30)
@given(
    nvec=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    autoregressive=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 99),
)
def test_chances_of_all_actions_sum_to_one(nvec, autoregressive, scale, seed):
    actions = Actions(spec_of(spaces.MultiDiscrete(nvec)), autoregressive=autoregressive)
    every = np.array([*itertools.product(*map(range, nvec))], np.int32)
    row = scale * np.random.default_rng(seed).normal(size=actions.param_size)
    params = np.broadcast_to(row.astype(np.float32), (len(every), len(row)))
    assert np.exp(logp_of(actions, params, every), dtype=np.float64).sum() == pytest.approx(1.0, abs=1e-4)


SPACES = {
    "numbers": (spaces.Box(np.float32([-1, 0]), np.float32([1, np.inf])), {"squash": True}),
    "all": (
        spaces.Dict(
            a=spaces.MultiDiscrete([[2, 3], [1, 4]]),
            b=spaces.Tuple((spaces.MultiBinary(3), spaces.Box(-2, 2, (2, 1), np.float64))),
            c=spaces.Discrete(5),
        ),
        {},
    ),
    "a chain": (
        spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-2, 2, (2,), np.float32))),
        {"autoregressive": True, "squash": True},
    ),
}
COMPILED: dict[str, tuple[Distribution, object, object]] = {}


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=25)
@given(scale=st.sampled_from([0.0, 0.3, 3.0, 30.0]), seed=st.integers(0, 999))
def test_any_parameters_give_what_the_learner_says(name, scale, seed):
    if name not in COMPILED:
        space, options = SPACES[name]
        distribution = Distribution(spec_of(space), **options)
        COMPILED[name] = distribution, jax.jit(distribution.sample), jax.jit(distribution.logp)
    distribution, sample, compiled = COMPILED[name]
    rng = np.random.default_rng(seed)
    params = (scale * rng.normal(size=(4, distribution.param_size))).astype(np.float32)
    if distribution.log_std_size:  # deviations up to e**3 and down to e**-3
        first = min(cut.start for _, cut, _ in distribution.actions.cuts if cut.stop > cut.start)
        params[:, first:] = params[:, first:].clip(-3, 3)
    noise = rng.uniform(0.001, 0.999, (4, distribution.noise_size)).astype(np.float32)
    action = jax.tree.map(np.asarray, sample(params, noise))
    found = logp_of(distribution.actions, params, action)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, compiled(params, action), rtol=2e-5, atol=1e-4)
