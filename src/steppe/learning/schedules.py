"""Numbers that change with the env steps sampled so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Schedule = float | Sequence[Sequence[float]]
"""A constant, or ``[[env_steps, value], ...]``: linear between the points, constant outside of them."""


def value_at(schedule: Schedule, env_steps: int) -> float:
    """The value of ``schedule`` at a global env step."""
    if isinstance(schedule, int | float):
        return float(schedule)
    steps, values = zip(*schedule, strict=True)
    return float(np.interp(env_steps, steps, values))


def adapted_penalty(coefficient: float, divergence: float, target: float) -> float:
    """The KL penalty of the next update (section 4 of arXiv:1707.06347, with RLlib's bounds and factors).

    Half of it when the divergence stayed below half the target, 1.5 times it when it went beyond twice.
    """
    if divergence > 2.0 * target:
        return 1.5 * coefficient
    return 0.5 * coefficient if divergence < 0.5 * target else coefficient
