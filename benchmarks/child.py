"""What is measured in a process of its own: ``python -m benchmarks.child NAME [SEED]`` prints JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import steppe


def tutorial(seed: int) -> dict[str, Any]:
    """Ten iterations of hot and cold; the clock starts at build()."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "hot_and_cold"))
    from gym_example.envs import Example_v0

    steppe.register_env("example-v0", lambda config: Example_v0())
    start = time.perf_counter()
    ends, means = [], []
    config = steppe.PPOConfig(env="example-v0", train_batch_size=4000, seed=seed, write_run=False)
    with config.build() as algo:
        for _ in range(10):
            means.append(algo.train()["episode_reward_mean"])
            ends.append(time.perf_counter() - start)
    return {"ends": ends, "means": means}


def cartpole(seed: int) -> dict[str, Any]:
    """CartPole to a mean of 475 over the last 50 episodes, from build(); gives up at 200,000 steps.

    Peak memory is that of at least 60,000 steps, however early the score is reached.
    """
    start = time.perf_counter()
    config = steppe.PPOConfig(
        env="CartPole-v1", metrics_num_episodes_for_smoothing=50, seed=seed, write_run=False
    )
    with config.build() as algo:
        while True:
            result = algo.train()
            steps, mean = result["timesteps_total"], result["episode_reward_mean"]
            if (mean >= 475 and result["episodes_total"] >= 50) or steps >= 200_000:
                break
        seconds = time.perf_counter() - start
        while result["timesteps_total"] < 60_000:
            result = algo.train()
    return {"mean": mean, "steps": steps, "seconds": seconds, "peak_mb": _peak_mb()}


def first_train(seed: int) -> dict[str, Any]:
    """The first train() on CartPole; the parent holds the clock, from process start."""
    with steppe.PPOConfig(env="CartPole-v1", seed=seed, write_run=False).build() as algo:
        algo.train()
    return {"peak_mb": _peak_mb()}


def jax_cartpole(seed: int) -> dict[str, Any]:
    """The first train() on CartPole in JAX, from build()."""
    from benchmarks.jaxenvs import cartpole

    start = time.perf_counter()
    with cartpole().build() as algo:
        algo.train()
    return {"seconds": time.perf_counter() - start}


def frames(seed: int) -> dict[str, Any]:
    """A replay of a million frames, 84x84, that is full; samples of 256 stacks of 4."""
    import numpy as np

    from benchmarks.replay import LANES, cost, fragment
    from steppe.buffers.replay import Replay

    rng = np.random.default_rng(seed)
    obs = rng.integers(0, 256, (126, LANES, 84, 84), np.uint8)
    replay = Replay(1_000_000, framestack=4)
    for sequence in range(1_000_000 // (125 * LANES)):
        replay.add(fragment(obs, sequence))
    return {"rate": 1 / cost(lambda: replay.sample(rng, 1, 256)), "rows": len(replay), "peak_mb": _peak_mb()}


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux lets ru_maxrss begin with the peak of the process that started this one
        [peak] = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peak) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    run = {f.__name__: f for f in (tutorial, cartpole, first_train, jax_cartpole, frames)}[sys.argv[1]]
    print(json.dumps(run(int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
