"""One tree of seeds: run -> runner -> env. The same seed gives the same run."""

from __future__ import annotations

import numpy as np

EVALUATION_RUNNER = 1 << 14
"""Runner index from which evaluation runners count, so that they never share a seed with training."""

SMALLEST_NOISE = np.float32(2.0**-25)
"""Least uniform that policies are given: float32 ones are multiples of 2**-24, so 0 stays out and 1 away."""

_ODD = 0x2C1B3C6D  # any odd factor is a bijection modulo a power of two


def env_seed(run_seed: int, runner: int, vector_index: int) -> int:
    """Seed of one env, below 2**31 (old envs and simulators take int32).

    Distinct (runner, vector_index) pairs get distinct seeds by construction, not by luck: the index is
    mapped by a bijection modulo 2**31 and shifted by the run's own offset.

    Raises:
        ValueError: more than 32,768 runners, or 65,536 envs in one.
    """
    if not (0 <= runner < 1 << 15 and 0 <= vector_index < 1 << 16):
        raise ValueError(f"runner {runner}, env {vector_index}: at most 32768 runners of 65536 envs")
    offset = int(np.random.SeedSequence(run_seed, spawn_key=(0,)).generate_state(1)[0])
    index = (runner << 16) | vector_index
    return (index * _ODD + offset) % (1 << 31)


def stream(run_seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A generator of its own for each purpose (``"noise"``, ``"learner"`` ...) and runner."""
    key = tuple(purpose.encode())
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(run_seed, spawn_key=(1, *key, index))))


def fresh_seed() -> int:
    """A seed for a run that was given none; it is written to the run's record."""
    return int(np.random.SeedSequence().generate_state(1)[0] & 0x7FFFFFFF)
