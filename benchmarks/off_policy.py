"""DQN and SAC as they learn from a replay, against Stable-Baselines3 and SBX with the same work a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import steppe
from benchmarks import peers
from benchmarks.report import Row, against

STEPS = 2_000
REPEATS = 3
SHARED: dict[str, Any] = {"min_sample_timesteps_per_iteration": STEPS, "seed": 0, "write_run": False}
FIRST = {"num_steps_sampled_before_learning_starts": 256}


def ours(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: env steps per second of one ``train()``; each step is worth one update."""

    def measure() -> float:
        start = time.perf_counter()
        result = algo.train()
        return int(result["timesteps_this_iter"]) / (time.perf_counter() - start)

    return measure


def dqn() -> Row:
    """One update of 64 rows over 3 steps for each env step, two layers of 64."""
    config = steppe.DQNConfig(
        env="CartPole-v1", fcnet_hiddens=[64, 64], n_step=3, dueling=False, double_q=False, **FIRST, **SHARED
    )
    same = {"n_steps": 3, "batch_size": 64, "buffer_size": 50_000, "learning_starts": 256}
    theirs = {
        f"{n} envs, {name}": measure
        for n in (1, 8)
        for name, measure in peers.by_threads(
            partial(peers.off_policy, "stable_baselines3", "DQN", "CartPole-v1", n, STEPS, **same)
        ).items()
    }
    with config.build() as algo:
        value, peer = against(ours(algo), theirs, REPEATS)
    name = "DQN against Stable-Baselines3, CartPole-v1, 1 update of 64 a step"
    return Row(name=name, unit="steps/s", value=value, peer=peer, bar=5.0, at_least=True)


def sac() -> Iterator[Row]:
    """One update of 256 rows for each env step, two layers of 256; a row a peer."""
    config = steppe.SACConfig(env="Pendulum-v1", **FIRST, **SHARED)
    same = {"batch_size": 256, "learning_starts": 256}
    for package, title, bar in (("stable_baselines3", "Stable-Baselines3", 2.0), ("sbx", "SBX", 1.2)):
        make = partial(peers.off_policy, package, "SAC", "Pendulum-v1", 1, STEPS // 4, **same)
        if package == "sbx":
            theirs = {f"{n} at once": make(each=n) for n in (1, 8)}
        else:
            theirs = peers.by_threads(make)
        with config.copy(min_sample_timesteps_per_iteration=STEPS // 4).build() as algo:
            value, peer = against(ours(algo), theirs, REPEATS)
        name = f"SAC against {title}, Pendulum-v1, 1 update of 256 a step"
        yield Row(name=name, unit="steps/s", value=value, peer=peer, bar=bar, at_least=True)


def rows() -> Iterator[Row]:
    """Yield a row as soon as it is measured."""
    yield dqn()
    yield from sac()
