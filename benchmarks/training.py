"""Whole PPO iterations, sampling and learning, against Stable-Baselines3 with the same work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import steppe
from benchmarks import peers
from benchmarks.report import Row, against

ENVS, STEPS, EPOCHS, MINIBATCH = 64, 128, 10, 256
REPEATS = 9


def ours(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: env steps per second of one ``train()``."""

    def measure() -> float:
        start = time.perf_counter()
        result = algo.train()
        seconds = time.perf_counter() - start
        return int(result["timesteps_this_iter"]) / seconds

    return measure


def rows() -> Iterator[Row]:
    """Yield a row as soon as it is measured."""
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        config = steppe.PPOConfig(
            env=env_id,
            num_envs_per_env_runner=ENVS,
            rollout_fragment_length=STEPS,
            train_batch_size=ENVS * STEPS,
            num_epochs=EPOCHS,
            minibatch_size=MINIBATCH,
            fcnet_hiddens=[64, 64],  # Stable-Baselines3's default
            seed=0,
            write_run=False,
        )
        with config.build() as algo:
            theirs = peers.by_threads(partial(peers.sb3_training, env_id, ENVS, STEPS, EPOCHS, MINIBATCH))
            value, peer = against(ours(algo), theirs, REPEATS)
        name = f"PPO end to end against Stable-Baselines3, 64 {env_id}"
        yield Row(name=name, unit="steps/s", value=value, peer=peer, bar=4.0, at_least=True)
