"""Runners in processes of Ray: what they sample, what they cost, and what becomes of them."""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import steppe
from benchmarks.report import Row, against
from benchmarks.sampling import ours
from steppe.processes import enter, imported_ray, leave

ROOT = Path(__file__).resolve().parent.parent
RLLIB = ROOT / ".venv-rllib" / "bin" / "python"
FRAGMENT = 200
"""Steps of each env: an episode of Pendulum, and what RLlib collected at once for long."""
REPEATS = 9
NETS: dict[str, Any] = {
    "fcnet_hiddens": [64, 64],
    "num_cpus_per_env_runner": 0.5,
    "seed": 0,
    "write_run": False,
}
PENDULUM: dict[str, Any] = {
    "env": "Pendulum-v1",
    "num_envs_per_env_runner": 64,
    "rollout_fragment_length": FRAGMENT,
    **NETS,
}


def rows() -> Iterator[Row]:
    """All of them, in one Ray, which is started as a run would."""
    ray = imported_ray("this benchmark", "there is nothing to measure")
    enter(ray, None)
    try:
        time.sleep(10)  # it starts some processes ahead
        yield from sampling()
        yield overhead()
        yield from whole_training()
        yield from losses()
        yield from memory()
    finally:
        leave(ray)


def sampling() -> Iterator[Row]:
    """Two runners of 64 Pendulums each, beside one in this process, and beside two of RLlib."""
    batch = 2 * 64 * FRAGMENT
    two = steppe.PPOConfig(num_env_runners=2, train_batch_size=batch, **PENDULUM)
    one = steppe.PPOConfig(train_batch_size=batch // 2, **PENDULUM)
    with two.build() as many, one.build() as alone:
        many.runner.sample()
        value, peer = against(ours(many), {"one": ours(alone)}, REPEATS)
        yield Row(
            name="2 runners x 64 Pendulum beside one in process: sampling",
            unit="steps/s",
            value=value,
            peer=peer,
            bar=1.7,
            at_least=True,
        )
        if RLLIB.exists():
            settings = {"env": "Pendulum-v1", "runners": 2, "envs": 64, "fragment": FRAGMENT}
            with Answering([str(RLLIB), "benchmarks/rllib_peer.py", json.dumps(settings)]) as rllib:
                value, peer = against(ours(many), {"rllib": rllib}, REPEATS)
            yield Row(
                name="2 runners x 64 Pendulum beside RLlib: sampling",
                unit="steps/s",
                value=value,
                peer=peer,
                bar=3.0,
                at_least=True,
            )


class Answering:
    """A peer in a process of its own, which gives one figure for each line that it reads."""

    def __init__(self, command: list[str]) -> None:
        pipe: Any = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def __call__(self) -> float:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("rate "):
                return float(line.split()[1])
        raise RuntimeError(f"the peer ended with status {process.wait()}")

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def overhead() -> Row:
    """What an iteration takes beyond learning, and beyond the sampling of the slower runner."""
    config = steppe.PPOConfig(env="CartPole-v1", num_env_runners=2, train_batch_size=4000, **NETS)
    shares = []
    with config.build() as algo:
        for _ in range(5):
            algo.train()
        algo.foreach_runner(clocked)
        for _ in range(40):
            time_ = algo.train()["time"]
            sampling = max(algo.foreach_runner(lambda runner: runner.seconds))
            shares.append(1 - (sampling + time_["learning"]) / time_["iteration_s"])
    name = "PPO, CartPole, iterations of 4,000 steps, 2 runners: beyond sampling and learning"
    return Row(name=name, unit="%", value=100 * statistics.median(shares), bar=8.0, at_least=False)


def clocked(runner: Any) -> None:
    """Let a runner keep the seconds of its newest call of sample()."""
    sample = runner.sample

    def timed_sample() -> Any:
        start = time.perf_counter()
        sampled = sample()
        runner.seconds = time.perf_counter() - start
        return sampled

    runner.sample = timed_sample


def whole_training() -> Iterator[Row]:
    """APPO on CartPole: how fast, and how well within a minute; the worst of three seeds."""
    runs = [appo(seed) for seed in (0, 1, 2)]
    rate = min(run[0] for run in runs)
    name = "APPO, CartPole, 2 runners, whole training"
    yield Row(name=f"{name}, worst seed", unit="steps/s", value=rate, bar=40_000, at_least=True)
    best = min(run[1] for run in runs)
    yield Row(name=f"{name}: best mean of 60 s, worst seed", unit="", value=best, bar=450, at_least=True)


def appo(seed: int) -> tuple[float, float]:
    """Env steps per second after the first iteration, and the best mean, of a minute from build() on."""
    config = steppe.APPOConfig(
        env="CartPole-v1",
        num_env_runners=2,
        num_envs_per_env_runner=64,
        sample_async=True,
        **APPO,
        **NETS | {"seed": seed},
    )
    start = time.perf_counter()
    best, seconds, steps = 0.0, 0.0, 0
    with config.build() as algo:
        algo.train()
        while time.perf_counter() - start < 60:
            began = time.perf_counter()
            result = algo.train()
            seconds += time.perf_counter() - began
            steps += result["timesteps_this_iter"]
            best = max(best, float(np.nan_to_num(result["episode_reward_mean"])))
    return steps / seconds, best


APPO: dict[str, Any] = {
    "train_batch_size": 4096,
    "rollout_fragment_length": 32,
    "minibatch_size": 1024,
    "num_epochs": 1,
    "min_sample_timesteps_per_iteration": 40_000,
}


class Frail(gymnasium.Env[Any, Any]):
    """Steps in no time; one env of the second runner hangs while a file is there."""

    observation_space, action_space = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)

    def __init__(self, env_config: Any) -> None:
        self._hangs = Path(env_config["file"])
        self._mine = env_config.worker_index == 2 and env_config.vector_index == 0
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        self._t += 1
        if self._mine and self._t % 20 == 0 and self._hangs.exists():
            self._hangs.unlink()
            time.sleep(1000)
        return np.zeros(4, np.float32), 1.0, self._t == 200, False, {}


TIMEOUT_S = 2.0


def losses() -> Iterator[Row]:
    """A runner that is killed, and one that hangs: until all can sample again, and iterations thereafter."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hangs"
        config = steppe.PPOConfig(
            env=Frail,
            env_config={"file": str(file)},
            num_env_runners=2,
            train_batch_size=1000,
            env_step_timeout=TIMEOUT_S,
            **NETS,
        )
        with config.build() as algo:
            for _ in range(5):
                algo.train()
            before = statistics.median(timed(algo.train) for _ in range(20))

            def kill() -> None:
                pids = algo.foreach_runner(lambda runner: os.getpid())
                os.kill(pids[1], signal.SIGKILL)

            killed = [until_healthy(algo, kill) for _ in range(10)]
            hung = [until_healthy(algo, file.touch) for _ in range(10)]
            after = statistics.median(timed(algo.train) for _ in range(20))
    p95 = float(np.percentile(killed, 95))
    yield Row(name="a killed runner: healthy again, p95 of 10", unit="s", value=p95, bar=3.0, at_least=False)
    p95 = float(np.percentile(hung, 95))
    name = f"a hung runner, env_step_timeout={TIMEOUT_S:g}: healthy again, p95 of 10"
    yield Row(name=name, unit="s", value=p95, bar=TIMEOUT_S + 2, at_least=False)
    name = "iterations after 20 losses beside those before"
    yield Row(name=name, unit="s", value=after, peer=before, bar=1.2, at_least=False)


def until_healthy(algo: steppe.Algorithm, befall: Callable[[], object]) -> float:
    """Seconds from a loss until all runners have sampled again."""
    befall()
    start, lost = time.perf_counter(), False
    while time.perf_counter() - start < 60:
        result = algo.train()
        lost = lost or result["num_worker_restarts"] > 0
        if lost and result["num_healthy_workers"] == 2:
            return time.perf_counter() - start
    return float("inf")


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Wide(gymnasium.Env[Any, Any]):
    """Observations of 5,000 floats."""

    observation_space, action_space = spaces.Box(-1, 1, (5000,), np.float32), spaces.Discrete(2)

    def __init__(self, env_config: Any = None) -> None:
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self._t += 1
        return self._seen(), 1.0, self._t == 50, False, {}

    def _seen(self) -> Any:
        return self.np_random.random(5000, np.float32)


def memory() -> Iterator[Row]:
    """100 iterations of 4 runners with 5 such envs each: what they add."""
    config = steppe.PPOConfig(
        env=Wide,
        num_env_runners=4,
        num_envs_per_env_runner=5,
        train_batch_size=400,
        minibatch_size=200,
        num_epochs=1,
        observation_filter="NoFilter",
        **NETS | {"fcnet_hiddens": [16]},
    )
    driver, runners = list[float](), list[list[float]]()
    with config.build() as algo:
        for iteration in range(130):
            algo.train()
            if iteration >= 30:  # until then room is made
                gc.collect()
                driver.append(resident_mb())
                runners.append(algo.foreach_runner(lambda runner: resident_mb()))
    own = slope(driver)
    theirs = max(slope(list(one)) for one in zip(*runners, strict=True))
    name = "100 iterations of 4 runners x 5 envs of 5,000 floats: memory of 10, slope"
    yield Row(name=f"{name}, driver", unit="MB", value=own, bar=0.5, at_least=False)
    yield Row(name=f"{name}, worst runner", unit="MB", value=theirs, bar=0.5, at_least=False)


def resident_mb() -> float:
    """Memory of this process alone: what it has touched of Ray's store, which all share, is not its own."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(values: list[float]) -> float:
    """What ten iterations add, by least squares."""
    return 10 * float(np.polyfit(np.arange(len(values)), values, 1)[0])


if __name__ == "__main__":
    from benchmarks.report import line

    for row in rows():
        print(line(row), flush=True)
    sys.exit(0)
