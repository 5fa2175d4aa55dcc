"""Envs in processes of their own, asynchronous: how near to what waiting alone would allow."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

import steppe
from benchmarks.report import Row

ENVS, STEP_S, SLOWER, POLLS, REPEATS = 16, 0.01, 10, 100, 5


class Waiting(gymnasium.Env):
    """Waits in each step, as for a device; env 0 for as many times as long as its config says."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, env_config: Any) -> None:
        self._wait = STEP_S * (env_config["slower"] if env_config.vector_index == 0 else 1)
        self._obs, self._t = np.zeros(4, np.float32), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return self._obs, {}

    def step(self, action: Any) -> Any:
        time.sleep(self._wait)
        self._t += 1
        return self._obs, 1.0, False, self._t >= 200, {}


def rates(slower: int) -> tuple[float, float]:
    """Env steps a second of env 0, and of the others, while a policy of 64-64 acts."""
    import ray

    for pickler in (cloudpickle, ray.cloudpickle):  # the env's process need not find this file
        pickler.register_pickle_by_value(sys.modules[__name__])
    config = steppe.PPOConfig(
        env=Waiting,
        env_config={"slower": slower},
        num_envs_per_env_runner=ENVS,
        rollout_fragment_length=POLLS,
        train_batch_size=ENVS * POLLS,
        remote_worker_envs=True,
        remote_env_batch_wait_ms=0,
        fcnet_hiddens=[64, 64],
        seed=0,
        write_run=False,
    )
    with config.build() as algo:

        def measure() -> tuple[float, float]:
            start = time.perf_counter()
            (sample,) = algo.runner.sample()
            seconds = time.perf_counter() - start
            own = sum(int((part.acted & (part.env == 0)).sum()) for part in sample.rollouts)
            return own / seconds, (sample.env_steps - own) / seconds

        measure()  # compiles
        measured = [measure() for _ in range(REPEATS)]
    first, others = zip(*measured, strict=True)
    return statistics.median(first), statistics.median(others)


def rows() -> Iterator[Row]:
    """Yield a row as soon as it is measured."""
    first, others = rates(1)
    name = f"{ENVS} remote envs that wait {1000 * STEP_S:g} ms a step, against nothing but waiting"
    yield Row(name=name, unit="steps/s", value=first + others, peer=ENVS / STEP_S, bar=0.85, at_least=True)
    name = f"the other {ENVS - 1} where one waits {SLOWER} times as long, against where none does"
    yield Row(name=name, unit="steps/s", value=rates(SLOWER)[1], peer=others, bar=0.9, at_least=True)
