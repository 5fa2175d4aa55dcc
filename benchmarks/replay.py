"""Replay alone: what drawing stacked frames and adding rows cost, and how much memory frames take."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.report import Row
from steppe.buffers.prioritized import Prioritized
from steppe.buffers.replay import Replay
from steppe.types import Rollout

FRAMES, LANES = 100_000, 8


def fragment(obs: np.ndarray, sequence: int) -> Rollout:
    """One of a row of fragments, each of which begins with the last rows of the one before."""
    shape = rows, lanes = obs.shape[:2]
    zero, no = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    return Rollout(
        obs=obs,
        action=zero.astype(np.int64),
        logp=zero.astype(np.float32),
        reward=zero.astype(np.float32),
        terminated=no,
        truncated=no,
        filled=~no,
        version=zero,
        env=zero + np.arange(lanes, dtype=np.int32),
        agent=zero,
        episode=zero,
        t=zero + sequence * (rows - 1) + np.arange(rows, dtype=np.int32)[:, None],
        policy="p",
        runner=0,
        incarnation=0,
        sequence=sequence,
        lane_continues=np.ones(lanes, np.bool_),
        agents=("a",),
        env_steps=(rows - 1) * lanes,
    )


def cost(call: Callable[[], object], calls: int = 50, repeats: int = 7) -> float:
    """Seconds of the CPU per call, whatever else the machine does; the median over repeats."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            call()
        taken.append((time.process_time() - start) / calls)
    return statistics.median(taken)


def peak() -> int:
    """Bytes of memory that this process had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rows() -> Iterator[Row]:
    """Frames as Atari's, then the observations of CartPole."""
    rng, before = np.random.default_rng(0), peak()
    frames = np.ones((126, LANES, 84, 84), np.uint8)
    replay = Replay(FRAMES, framestack=4)
    for sequence in range(FRAMES // (125 * LANES)):
        replay.add(fragment(frames, sequence))
    rate = 1 / cost(lambda: replay.sample(rng, 1, 256))
    yield Row(name="256 stacks of 4 frames, 84x84, drawn", unit="/s", value=rate, bar=500, at_least=True)
    size = (peak() - before) / FRAMES * 1e6 / 1e9
    yield Row(name="1M frames, 84x84, from 100,000 of them", unit="GB", value=size, bar=7.8, at_least=False)
    small = np.ones((5, LANES, 4), np.float32)
    prioritized = Prioritized(Replay(50_000, n_step=3), alpha=0.6)
    for name, kept in (("replay", Replay(50_000, n_step=3)), ("prioritized replay", prioritized)):
        parts = (fragment(small, sequence) for sequence in range(10_000))
        per_row = 1e6 * cost(lambda kept=kept, parts=parts: kept.add(next(parts)), 500) / (4 * LANES)
        yield Row(
            name=f"{name}: a row added, 4 x 8, n_step=3", unit="us", value=per_row, bar=15, at_least=False
        )
