"""Fresh processes: start-up, the tutorial, CartPole to its score, peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Row

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
REPEATS = 5


def run(command: list[str], cache: str) -> tuple[float, str]:
    """Wall seconds and output of a process with its own compilation cache."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, done.stdout


def child(name: str, seed: int, cache: str | None = None) -> tuple[float, dict[str, Any]]:
    """Run a function of ``benchmarks.child``; with an empty cache unless one is given."""
    with tempfile.TemporaryDirectory() as empty:
        seconds, output = run([sys.executable, "-m", "benchmarks.child", name, str(seed)], cache or empty)
    return seconds, json.loads(output.splitlines()[-1])


def ceiling(name: str, unit: str, value: float, bar: float) -> Row:
    return Row(name=name, unit=unit, value=value, bar=bar, at_least=False)


def start_up() -> Iterator[Row]:
    """Help, import, and the first train(), cold and warm."""
    steppe = str(Path(sysconfig.get_path("scripts")) / "steppe")
    commands = {"steppe --help": [steppe, "--help"], "import steppe": [sys.executable, "-c", "import steppe"]}
    with tempfile.TemporaryDirectory() as cache:
        for name, command in commands.items():
            run(command, cache)
            seconds = statistics.median(run(command, cache)[0] for _ in range(REPEATS))
            yield ceiling(name, "s", seconds, 0.3)
    cold, warm = [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(child("first_train", 0, cache)[0])
            warm.append(child("first_train", 0, cache)[0])
    name = "first train() on CartPole from process start"
    yield ceiling(f"{name}, cold", "s", statistics.median(cold), 6.0)
    yield ceiling(f"{name}, warm", "s", statistics.median(warm), 3.5)


def tutorial() -> Iterator[Row]:
    """Hot and cold, three seeds, the worst of each figure."""
    runs = [child("tutorial", seed)[1] for seed in SEEDS]
    fifth = max(r["ends"][4] for r in runs)
    yield ceiling("tutorial: build() to the fifth iteration, cold, worst seed", "s", fifth, 4.0)
    later = max(
        statistics.median(b - a for a, b in zip(r["ends"], r["ends"][1:], strict=False)) for r in runs
    )
    yield ceiling("tutorial: an iteration after the first, worst seed", "s", later, 0.15)
    for iteration, bar in ((5, 7.8), (10, 8.3)):
        mean = min(r["means"][iteration - 1] for r in runs)
        name = f"tutorial: mean reward at iteration {iteration}, worst seed"
        yield Row(name=name, unit="", value=mean, bar=bar, at_least=True)


def cartpole() -> Iterator[Row]:
    """CartPole to 475, three seeds, the worst of each figure."""
    runs = [child("cartpole", seed)[1] for seed in SEEDS]
    score = min(r["mean"] for r in runs)
    yield Row(name="CartPole: mean of 50 episodes, worst seed", unit="", value=score, bar=475, at_least=True)
    steps = max(r["steps"] for r in runs)
    yield ceiling("CartPole: env steps to 475, worst seed", "steps", steps, 60_000)
    seconds = max(r["seconds"] for r in runs)
    yield ceiling("CartPole: build() to 475, cold, worst seed", "s", seconds, 8.0)
    peak = max(r["peak_mb"] for r in runs)
    yield ceiling("CartPole: peak memory of 60,000 steps, cold, worst seed", "MB", peak, 450)


def frames() -> Iterator[Row]:
    """A million frames in memory.

    Raises:
        MemoryError: this machine has not enough of it free.
    """
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        [free] = [
            line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")
        ]
        if int(free) < 9e6:
            raise MemoryError(f"a million frames take 7.8 GB, and {int(free) / 1e6:.1f} GB are free")
    _, found = child("frames", 0)
    name = "a replay of 1M frames, 84x84"
    yield ceiling(name, "GB", found["peak_mb"] / 1e3, 7.8)
    rate = found["rate"]
    yield Row(name=f"{name}: samples of 256 stacks of 4", unit="/s", value=rate, bar=500, at_least=True)
