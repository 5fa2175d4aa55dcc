"""RLlib's ``exploration_config`` as the settings that stand for it here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from steppe.errors import ConfigError


def epsilon_schedule(_: type, value: Any) -> Any:
    """RLlib's ``{"type": "EpsilonGreedy", ...}`` as a schedule; anything else as it is."""
    if not isinstance(value, Mapping) or value.get("type", "EpsilonGreedy") != "EpsilonGreedy":
        return value
    known = {"initial_epsilon": 1.0, "final_epsilon": 0.02, "epsilon_timesteps": 10_000, "type": ""}
    if not value.keys() <= known.keys():
        return value
    first, last, steps, _ = (value.get(name, default) for name, default in known.items())
    return [[0, first], [steps, last]]


def noise_deviation(cls: type, value: Any) -> Any:
    """RLlib's ``{"type": "GaussianNoise", ...}`` as the deviation of the noise; anything else as it is.

    Raises:
        ConfigError: another kind of noise, or one that changes with time.
    """
    if not isinstance(value, Mapping):
        return value
    kind, scale = value.get("type", "GaussianNoise"), value.get("initial_scale", 1.0)
    if kind == "StochasticSampling":
        return 0.0
    if kind == "OrnsteinUhlenbeckNoise":
        theta, sigma = value.get("ou_theta", 0.15), value.get("ou_sigma", 0.2)
        deviation = 2.0 * value.get("ou_base_scale", 0.1) * sigma / math.sqrt(1.0 - (1.0 - theta) ** 2)
        why = f"write exploration_noise={deviation:.3g} and exploration_noise_correlation={1.0 - theta:.3g}"
    elif kind != "GaussianNoise":
        why = "there is GaussianNoise: write exploration_noise, its deviation"
    elif scale != value.get("final_scale", 1.0):
        why = "the noise does not change with time: write exploration_noise, one number"
    elif value.get("random_timesteps", 10_000) != 10_000:
        why = "actions are uniform until num_steps_sampled_before_learning_starts: leave random_timesteps out"
    else:
        return value.get("stddev", 0.1) * scale
    raise ConfigError(f"{cls.__name__}: exploration_config of type {kind!r}: {why}")
