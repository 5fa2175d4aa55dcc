"""Numbers that change with the env steps sampled so far."""

from __future__ import annotations

from collections.abc import Sequence

Schedule = float | Sequence[Sequence[float]]
"""A constant, or ``[[env_steps, value], ...]``: linear between the points, constant outside of them."""


def points(schedule: Schedule) -> tuple[list[float], list[float]]:
    """Env steps and values, for ``np.interp``."""
    if isinstance(schedule, int | float):
        return [0.0], [float(schedule)]
    steps, values = zip(*schedule, strict=True)
    return list(steps), list(values)


def adapted_penalty(coefficient: float, divergence: float, target: float) -> float:
    """The KL penalty of the next update (section 4 of arXiv:1707.06347, with RLlib's bounds and factors).

    Half of it when the divergence stayed below half the target, 1.5 times it when it went beyond twice.
    """
    if divergence > 2.0 * target:
        return 1.5 * coefficient
    return 0.5 * coefficient if divergence < 0.5 * target else coefficient
