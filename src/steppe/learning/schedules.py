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
