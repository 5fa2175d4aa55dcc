"""Schedules are constant outside of their points and linear between them."""

import numpy as np
import pytest

from steppe.learning.schedules import adapted_penalty, points


def value_at(schedule, env_steps):
    return float(np.interp(env_steps, *points(schedule)))


@pytest.mark.parametrize("schedule", [3, 3.0, [[50, 3.0]], [[0, 3.0], [10, 3.0]]])
def test_a_constant(schedule):
    for env_steps in (0, 49, 50, 10**12):
        assert value_at(schedule, env_steps) == 3.0


@pytest.mark.parametrize(
    ("env_steps", "value"),
    [(0, 1.0), (100, 1.0), (150, 0.75), (200, 0.5), (260, 0.2), (300, 0.0), (301, 0.0)],
)
def test_linear_between_points_and_constant_outside(env_steps, value):
    assert value_at([[100, 1.0], [200, 0.5], [300, 0.0]], env_steps) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("divergence", "penalty"), [(0.0, 0.1), (0.0049, 0.1), (0.005, 0.2), (0.02, 0.2), (0.0201, 0.3)]
)
def test_the_penalty_follows_the_divergence(divergence, penalty):
    assert adapted_penalty(0.2, divergence, target=0.01) == pytest.approx(penalty)
