"""What large networks cost: convolutions against PyTorch, an iteration with memory against one without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

import steppe
from benchmarks import peers
from benchmarks.report import Row, against

ROWS, MINIBATCH, EPOCHS = 1024, 256, 1
REPEATS = 5


class Pictures(gymnasium.Env):
    """Four frames as Atari's, which cost nothing to make."""

    observation_space, action_space = spaces.Box(0, 255, (84, 84, 4), np.uint8), spaces.Discrete(6)

    def __init__(self, env_config: Any = None) -> None:
        self._obs = np.random.default_rng(0).integers(0, 256, (64, 84, 84, 4), np.uint8)
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._t = 0
        return self._obs[0], {}

    def step(self, action: Any) -> Any:
        self._t += 1
        return self._obs[self._t % 64], float(self._t % 3), self._t >= 100, False, {}


def update(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: minibatch steps per second of an update, from rows that are ready, as training runs it."""
    learner: Any = algo._learner.learners["default_policy"]

    def measure() -> float:
        prepared = None
        while prepared is None:
            for sample in algo.runner.sample():
                learner.add(sample.rollouts[0])
            prepared = learner.prepare(0)
        params, opt, *old = learner.state
        one = jax.block_until_ready(prepared)  # or the values of all rows would be timed with the steps
        start = time.perf_counter()
        made = learner._update(
            params, opt, [tuple(old)], [one.statistics], [one.rows], [one.order], [one.count], [one.hyper]
        )
        float(made[1][0]["total_loss"])
        return EPOCHS * ROWS // MINIBATCH / (time.perf_counter() - start)

    return measure


def convolutions() -> Row:
    """The network of Mnih et al. (2015), shared by policy and value, 256 rows a step."""
    config = steppe.PPOConfig(
        env=Pictures,
        num_envs_per_env_runner=8,
        train_batch_size=ROWS,
        minibatch_size=MINIBATCH,
        num_epochs=EPOCHS,
        vf_share_layers=True,
        fcnet_hiddens=[],
        seed=0,
        write_run=False,
    )
    with config.build() as algo:
        theirs = peers.by_threads(lambda: peers.sb3_updates(Pictures, 8, ROWS // 8, EPOCHS, MINIBATCH))
        value, peer = against(update(algo), theirs, REPEATS)
    name = "steps of 256 rows by convolutions, time against PyTorch's"
    return Row(name=name, unit="ms", value=1e3 / value, peer=1e3 / peer, bar=1.3, at_least=False)


def iteration(**changes: Any) -> tuple[steppe.Algorithm, Callable[[], float]]:
    """A run of PPO on CartPole, and a measure: seconds of one ``train()``."""
    config = steppe.PPOConfig(
        env="CartPole-v1", fcnet_hiddens=[64, 64], train_batch_size=2048, seed=0, write_run=False, **changes
    )
    algo = config.build()

    def measure() -> float:
        start = time.perf_counter()
        algo.train()
        return time.perf_counter() - start

    return algo, measure


def memory() -> Row:
    """An LSTM of 64 beside two layers of 64."""
    plain, without = iteration()
    lstm, remembering = iteration(memory="lstm", memory_size=64)
    with plain, lstm:
        taken = [(remembering(), without()) for _ in range(2 + REPEATS)][2:]
    value, peer = (statistics.median(seconds) for seconds in zip(*taken, strict=True))
    name = "an iteration of PPO with an LSTM, against one without"
    return Row(name=name, unit="s", value=value, peer=peer, bar=3.0, at_least=False)


def rows() -> Iterator[Row]:
    """Yield a row as soon as it is measured."""
    yield convolutions()
    yield memory()
