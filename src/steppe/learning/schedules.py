"""Numbers that change with the env steps sampled so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schedule = float | Sequence[Sequence[float]]
"""A constant, or ``[[env_steps, value], ...]``: linear between the points, constant outside of them."""


def points(schedule: Schedule) -> tuple[list[float], list[float]]:
    """Env steps and values, for ``np.interp``."""
    if isinstance(schedule, int | float):
        return [0.0], [float(schedule)]
    steps, values = zip(*schedule, strict=True)
    return list(steps), list(values)


def epsilon_schedule(_: type, value: Any) -> Any:
    """RLlib's ``{"type": "EpsilonGreedy", ...}`` as a schedule; anything else as it is."""
    if not isinstance(value, Mapping) or value.get("type", "EpsilonGreedy") != "EpsilonGreedy":
        return value
    known = {"initial_epsilon": 1.0, "final_epsilon": 0.02, "epsilon_timesteps": 10_000, "type": ""}
    if not value.keys() <= known.keys():
        return value
    first, last, steps, _ = (value.get(name, default) for name, default in known.items())
    return [[0, first], [steps, last]]


def adapted_penalty(coefficient: float, divergence: float, target: float) -> float:
    """The KL penalty of the next update (section 4 of arXiv:1707.06347, with RLlib's bounds and factors).

    Half of it when the divergence stayed below half the target, 1.5 times it when it went beyond twice.
    """
    if divergence > 2.0 * target:
        return 1.5 * coefficient
    return 0.5 * coefficient if divergence < 0.5 * target else coefficient
