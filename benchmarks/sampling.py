"""Sampling alone: how much of the bare env loop is left, and the ratio to Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import steppe
from benchmarks import peers
from benchmarks.report import Row, against

REPEATS = 21


def ours(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: env steps per second of one fragment, as the training loop asks for it."""

    def measure() -> float:
        start = time.perf_counter()
        rollouts = algo.runner.sample()
        return sum(rollout.env_steps for rollout in rollouts) / (time.perf_counter() - start)

    return measure


def compare(
    env_id: str, num_envs: int, polls: int, theirs: Mapping[str, Callable[[], float]]
) -> tuple[float, float]:
    """Our rate and the peer's, with the same envs and the same number of steps."""
    config = steppe.PPOConfig(
        env=env_id,
        num_envs_per_env_runner=num_envs,
        rollout_fragment_length=polls,
        train_batch_size=num_envs * polls,
        fcnet_hiddens=[64, 64],
        seed=0,
        write_run=False,
    )
    with config.build() as algo:
        return against(ours(algo), theirs, REPEATS)


def cost(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: seconds of the CPU per env step of one fragment, whatever else the machine does."""

    def measure() -> float:
        start = time.process_time()
        rollouts = algo.runner.sample()
        return (time.process_time() - start) / sum(rollout.env_steps for rollout in rollouts)

    return measure


def agents_of_one(env_id: str, num_envs: int, polls: int) -> tuple[float, float]:
    """Microseconds per env step of envs of many agents that have one agent each, and of the plain ones."""
    settings: dict[str, Any] = {
        "num_envs_per_env_runner": num_envs,
        "rollout_fragment_length": polls,
        "train_batch_size": num_envs * polls,
        "fcnet_hiddens": [64, 64],
        "seed": 0,
        "write_run": False,
    }
    many = steppe.PPOConfig(env=steppe.make_multi_agent(env_id), env_config={"num_agents": 1}, **settings)
    with many.build() as algo, steppe.PPOConfig(env=env_id, **settings).build() as plain:
        value, peer = against(cost(algo), {"plain": cost(plain)}, REPEATS)
    return 1e6 * value, 1e6 * peer


def rows() -> Iterator[Row]:
    """Yield a row as soon as it is measured."""
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        value, peer = compare(env_id, 64, 128, {"loop": peers.bare_loop(env_id, 64, 128)})
        name = f"sampling against the bare env loop, 64 {env_id}"
        yield Row(name=name, unit="steps/s", value=value, peer=peer, bar=0.75, at_least=True)
    value, peer = agents_of_one("CartPole-v1", 64, 128)
    name = "sampling 64 envs of one agent each, made with make_multi_agent, against 64 plain CartPole-v1"
    yield Row(name=name, unit="us/step", value=value, peer=peer, bar=1.3, at_least=False)
    theirs = peers.by_threads(partial(peers.sb3_sampling, "CartPole-v1", 8, 512))
    value, peer = compare("CartPole-v1", 8, 512, theirs)
    name = "sampling against Stable-Baselines3, 8 CartPole-v1"
    yield Row(name=name, unit="steps/s", value=value, peer=peer, bar=3.0, at_least=True)
