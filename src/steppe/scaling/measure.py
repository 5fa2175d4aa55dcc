"""What a run costs on this machine, and how fast it is: measured by short runs of it."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from statistics import fmean, median, quantiles
from typing import Any, NamedTuple, final

from steppe.config import AlgorithmConfig
from steppe.runners.local import LocalRunner
from steppe.sampling.metrics import Sample
from steppe.scaling.model import Costs, Wire

_MANY = 64
"""Calls at once, to see what one costs where nobody waits for it."""
_BARE: dict[str, Any] = {"write_run": False, "evaluation_interval": 0, "local_mode": False}
"""What nobody would time."""
_ROOM = 2**27
"""Bytes that may lie in Ray's memory at a time."""


class Measured(NamedTuple):
    """What a run in this process costs.

    Attributes:
        costs: of its env steps.
        samples: one fragment.
        weights: as many numbers as the policies have parameters.
        fragment_length: env steps of a fragment, per env.
        in_steps: whether a runner in another process would step its envs as this one did; envs in JAX are
            stepped inside of jit here.
    """

    costs: Costs
    samples: Sequence[Sample]
    weights: dict[str, Any]
    fragment_length: int
    in_steps: bool


def measure(config: AlgorithmConfig, seconds: float) -> Measured:
    """The costs of a step, an inference and an update, of a run in this process.

    Args:
        config: of the run; its runners are left out.
        seconds: about how long to train, and to sample.
    """
    with config.copy(num_env_runners=0, sample_async=False, **_BARE).build() as algo:
        algo.train()  # compiles
        learned: list[float] = []
        for _ in _during(seconds):
            result = algo.train()
            learned.append(result["time"]["learning"] / result["timesteps_this_iter"])
        taken: list[tuple[float, Sequence[Sample]]] = []
        for _ in _during(seconds):
            began = time.perf_counter()
            samples = algo.runner.sample()
            taken.append((time.perf_counter() - began, samples))
        costs = _costs(taken, median(learned))
        length = round(costs.fragment / algo.runner.env.num_envs)
        return Measured(costs, samples, algo.get_weights(), length, isinstance(algo.runner, LocalRunner))


def _costs(taken: Sequence[tuple[float, Sequence[Sample]]], learn: float) -> Costs:
    """Medians over fragments, so that a moment of another program does not count."""
    each = [seconds / _steps(samples) for seconds, samples in taken]
    step = median(sum(one.env_time for one in samples) / _steps(samples) for _, samples in taken)
    act = median(sum(one.inference_time for one in samples) / _steps(samples) for _, samples in taken)
    loop = max(0.0, median(each) - step - act)
    fragment = fmean(_steps(samples) for _, samples in taken)
    low, _, high = quantiles(each, n=4)
    spread = (high - low) / 1.349 / median(each)  # as wide as the middle half of a normal distribution
    return Costs(step, act, loop, learn, fragment, spread)


def _steps(samples: Sequence[Sample]) -> float:
    return float(sum(sample.env_steps for sample in samples))


def _during(seconds: float, most: int = sys.maxsize) -> Iterator[int]:
    """Counts for so long: to 3 at the least, and to ``most`` at most."""
    until = time.perf_counter() + seconds
    for n in range(most):
        if n >= 3 and time.perf_counter() >= until:
            return
        yield n


def _rate(work: Callable[[], float], seconds: float, most: int = sys.maxsize) -> float:
    """The median rate of ``work``, which returns how much it did."""
    rates: list[float] = []
    for _ in _during(seconds, most):
        began = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - began))
    return median(rates)


@final
class _Answering:
    """What a runner's process does beside its work: it takes weights, and gives fragments."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def call(self, what: str, *_: Any) -> Any:
        """A fragment, or nothing; what came along is there by now."""
        return self._samples if what == "sample" else None


def measure_wire(ray: Any, found: Measured, seconds: float) -> Wire:
    """What fragments and weights cost on their way between two processes.

    Args:
        ray: that runs.
        found: a fragment and weights of their sizes.
        seconds: about how long this may take.
    """
    size = len(pickle.dumps(found.samples))
    actor = ray.remote(_Answering).options(num_cpus=0).remote(found.samples)
    ask, each = actor.call.remote, seconds / 6
    try:
        ray.get(ask("nothing"))  # the process is there from here on

        def wait(what: str, *given: Any) -> Any:
            ref = ask(what, *given)
            ray.wait([ref])
            return ref

        latency = _seconds(lambda: wait("nothing"), each)
        sent = _seconds(lambda: wait("sample"), each)
        held = [wait("sample") for _ in range(max(3, min(_MANY, _ROOM // size)))]  # each is fetched once
        # Copied, as the driver does: Ray's memory cannot be written to.
        received = _seconds(lambda: deepcopy(ray.get(held.pop())), each, most=len(held))
        put = _seconds(lambda: ray.put(found.weights), each)
        loaded = _seconds(lambda: wait("load", ray.put(found.weights)), each)
        call = _seconds(lambda: ray.get([ask("nothing") for _ in range(_MANY)]), each) / _MANY
    finally:
        ray.kill(actor)
    send, load = max(0.0, sent - latency), max(0.0, loaded - latency - put)
    return Wire(latency, call, send, received, put, load, size, len(pickle.dumps(found.weights)))


def _seconds(work: Callable[[], Any], seconds: float, most: int = sys.maxsize) -> float:
    """The median time of ``work``, which may be done so often at ``most``."""
    return 1.0 / _rate(lambda: (work(), 1.0)[1], seconds, most)


def with_runners(config: AlgorithmConfig, runners: int, found: Measured) -> AlgorithmConfig:
    """The config of a run with so many runners, each of which brings the same fragment.

    Where "auto" splits the batch over the runners, the batch grows with them instead.
    """
    changes: dict[str, Any] = {"num_env_runners": runners, **_BARE}
    if config.rollout_fragment_length == "auto":
        changes["rollout_fragment_length"] = found.fragment_length
        changes["train_batch_size"] = round(found.costs.fragment) * max(1, runners)
    return config.copy(**changes)


def run(config: AlgorithmConfig, seconds: float) -> dict[str, float]:
    """Env steps a second of a real run: of its training, and of sampling alone."""
    with config.build() as algo:
        algo.train()  # compiles
        training = _rate(lambda: float(algo.train()["timesteps_this_iter"]), seconds)
        return {"sampling": _rate(lambda: _steps(algo.runner.sample()), seconds), "training": training}
