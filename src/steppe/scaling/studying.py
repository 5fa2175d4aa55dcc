"""A study of one run: measured, predicted, compared, and kept as a record."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from steppe.config import AlgorithmConfig
from steppe.envs.registry import env_name
from steppe.errors import ConfigError
from steppe.processes import enter, imported_ray, leave
from steppe.scaling.measure import Measured, measure, measure_wire, run, with_runners
from steppe.scaling.model import Hosts, Point, predict
from steppe.tracking.record import versions

KINDS = ("sampling", "training")
COMPARED = (0, 1, 2)
"""Runners of the real runs that are measured beside what is predicted of them."""
PUBLISHED = {
    "Pendulum-v0": {"steps_per_s": {1: 15_000, 128: 1_500_000}, "where": "on CPU"},
    "PongNoFrameskip-v4": {"steps_per_s": {1: 2_400, 128: 200_000}, "where": "on GPU"},
}
"""Of RLlib's documentation, "RLlib Environments", on policy evaluation from 1 to 128 CPUs: one machine for 1
to 16 workers and a cluster of four for 32 to 128, with 64 envs each."""


def study(
    config: AlgorithmConfig,
    seconds: float = 10.0,
    largest: int = 1024,
    gigabits: float = 10.0,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure what a run costs here, and predict how fast it would be with more runners.

    Args:
        config: of the run; how many runners it has makes no difference.
        seconds: about how long each measure takes.
        largest: number of runners to predict for.
        gigabits: a second, of the network between hosts: assumed, for there is only this one.
        say: is told what is done now.

    Returns:
        JSON values: ``costs``, ``wire`` (None without Ray), ``runs`` with what was measured and predicted,
        ``points`` by number of runners, and what they were made with.

    Raises:
        ConfigError: the config cannot be built, or its Ray cannot be entered.
    """
    hosts = Hosts(cores=_cores(), runner_cpus=config.num_cpus_per_env_runner, gigabits=gigabits)
    say("a run in this process")
    found = measure(config, seconds)
    ray, notes = _ray(found)
    ours = ray is not None and enter(ray, config.ray_address)
    try:
        wire = None
        if ray is not None:
            say("what fragments and weights cost on their way")
            wire = measure_wire(ray, found, seconds)
        ahead = config.max_requests_in_flight_per_env_runner if config.sample_async else 0
        foresee = partial(predict, found.costs, wire, hosts, ahead=ahead)
        here = [n for n in COMPARED if hosts.needed(n) == 1 and (wire is not None or not n)]
        runs = []
        for n in here:
            say(f"a run with {n or 'no'} runner{'s' if n > 1 else ''}")
            rates = run(with_runners(config, n, found), seconds)
            runs += [_compared(n, kind, rates[kind], foresee(n, learns=kind == "training")) for kind in KINDS]
    finally:
        if ours:
            leave(ray)
    several = [2**i for i in range(largest.bit_length()) if 2**i < largest] + [largest]
    counts = [0, *several] if wire is not None else [0]
    points = {kind: [foresee(n, learns=kind == "training")._asdict() for n in counts] for kind in KINDS}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": versions(),
        "env": env_name(config.env),
        "algo": config.algo_name,
        "num_envs_per_env_runner": config.num_envs_per_env_runner,
        "rollout_fragment_length": found.fragment_length,
        "asynchronous": config.sample_async,
        "hosts": hosts._asdict(),
        "costs": found.costs._asdict(),
        "wire": None if wire is None else wire._asdict(),
        "notes": notes,
        "runs": runs,
        "points": points,
        "published": PUBLISHED,
    }


def _ray(found: Measured) -> tuple[Any, list[str]]:
    """Ray, or None and a note where runners cannot be predicted."""
    only_here = "this process alone is predicted"
    if not found.in_steps:
        return None, [f"envs in JAX are stepped inside of jit, which runners do not do: {only_here}"]
    try:
        return imported_ray("what runners cost", only_here), []
    except ConfigError as error:
        return None, [str(error)]


def _compared(runners: int, kind: str, measured: float, point: Point) -> dict[str, Any]:
    rates = {"measured": measured, "predicted": point.steps_per_s}
    return {"runners": runners, "kind": kind, **rates, "error": point.steps_per_s / measured - 1}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> dict[str, Any]:
    """The class of the machine: model and cores, nothing that names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"cpu": next(names, platform.machine()), "cores": _cores(), "system": platform.system()}
