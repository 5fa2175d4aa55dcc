"""Envs written in JAX: sampling in compiled programs, and whole PPO iterations against rejax."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import steppe
from benchmarks.processes import child
from benchmarks.report import Row, against
from steppe.jaxenvs import CartPole, Pendulum

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 9
# The settings that rejax has by itself, and no running statistics, which it has not.
ENVS, STEPS, EPOCHS, MINIBATCHES, ITERATIONS = 64, 64, 8, 16, 25


def sampling(envs: int, polls: int) -> float:
    """Actions a second of Pendulum, from the call to columns in numpy; the policy is one of 64-64.

    The critic is not among it: it judges a whole batch when the learner has it.
    """
    config = steppe.PPOConfig(
        env=Pendulum,
        num_envs_per_env_runner=envs,
        rollout_fragment_length=polls,
        train_batch_size=envs * polls,
        fcnet_hiddens=[64, 64],
        seed=0,
        write_run=False,
    )
    with config.build() as algo:

        def measure() -> float:
            start = time.perf_counter()
            (sample,) = algo.runner.sample()
            return sample.env_steps / (time.perf_counter() - start)

        measure()  # compiles
        return statistics.median([measure() for _ in range(3 * REPEATS)])


def ours(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: env steps a second of ``ITERATIONS`` iterations."""

    def measure() -> float:
        start = time.perf_counter()
        steps = sum(algo.train()["timesteps_this_iter"] for _ in range(ITERATIONS))
        return int(steps) / (time.perf_counter() - start)

    return measure


def rejax(told: list[float]) -> tuple[subprocess.Popen[str], Callable[[], float]]:
    """Rejax in a process of its own, which waits, and a measure: it trains for as many steps from scratch.

    Args:
        told: gets the seconds that it compiled.
    """
    python = ROOT / ".venv-rejax" / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(".venv-rejax is missing: make .venv-rejax/.steppe-setup")
    settings = {
        "env": "CartPole-v1",
        "num_envs": ENVS,
        "num_steps": STEPS,
        "num_epochs": EPOCHS,
        "num_minibatches": MINIBATCHES,
        "total_timesteps": ITERATIONS * ENVS * STEPS,
    }
    command = [str(python), str(ROOT / "benchmarks" / "rejax_peer.py"), json.dumps(settings)]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **piped)
    assert process.stdin is not None
    assert process.stdout is not None
    send, lines = process.stdin, process.stdout
    told.append(float(lines.readline()))

    def measure() -> float:
        send.write("\n")
        return float(lines.readline())

    return process, measure


def cartpole() -> steppe.PPOConfig:
    """What both sides train."""
    return steppe.PPOConfig(
        env=CartPole,
        num_envs_per_env_runner=ENVS,
        rollout_fragment_length=STEPS,
        train_batch_size=ENVS * STEPS,
        minibatch_size=ENVS * STEPS // MINIBATCHES,
        num_epochs=EPOCHS,
        fcnet_hiddens=[64, 64],
        fcnet_activation="swish",
        observation_filter="NoFilter",
        reward_scale="none",
        entropy_coeff=0.01,
        seed=0,
        write_run=False,
    )


def training() -> Iterator[Row]:
    """PPO on CartPole, both sides after they have compiled; and how long that took, with nothing kept."""
    compiling: list[float] = []
    process, theirs = rejax(compiling)
    try:
        with cartpole().build() as algo:
            value, peer = against(ours(algo), {"rejax": theirs}, REPEATS)
    finally:
        process.kill()
        process.wait()
    name = f"PPO end to end against rejax, {ENVS} CartPole in JAX"
    yield Row(name=name, unit="steps/s", value=value, peer=peer, bar=1.2, at_least=True)
    seconds = child("jax_cartpole", 0)[1]["seconds"]
    name = "the same: build() to the end of the first iteration, against what rejax compiles"
    yield Row(name=name, unit="s", value=seconds, peer=compiling[0], bar=1.5, at_least=False)


def rows() -> Iterator[Row]:
    """Yield a row as soon as it is measured."""
    for envs, polls, bar in ((64, 512, 1.5e6), (4096, 128, 4e6)):
        name = f"sampling {envs} Pendulum in JAX, 64-64"
        yield Row(name=name, unit="actions/s", value=sampling(envs, polls), bar=bar, at_least=True)
    yield from training()
