"""How many env steps a second runners reach: a small queueing model of a run.

A runner makes a fragment of ``F`` env steps in ``Z = F (step + inference + loop)`` seconds of a core, and
sends it in ``send``. The driver asks for one in ``call``, which brings the newest weights along, takes it
over in ``receive``, and learns from it in ``F learn``; new weights cost it ``put``, once for all runners, and
each runner ``load``. ``N`` runners share ``C`` cores of one host with the driver, ``k`` of them a core where
they are more. If they do not fit there, the driver has one of ``H`` hosts for itself, and fragments of ``b``
bytes, and weights of ``w``, cross its network of ``B`` bytes a second. Without learning, weights are free.

**Synchronous.** All runners sample, then the driver works, in turns. One cycle of ``N F`` env steps takes::

    T =   k Z (1 + s m(N)) + latency + send                sampling
        + N (call + receive + b / B)                       transfer
        + N F learn + put + load + H w / B                 learning

where ``s`` is how much the times of fragments vary (deviation by median) and ``m(N)`` the expected maximum of
``N`` standard normal draws, for the driver waits for the slowest: ``Phi^-1((N - 3/8) / (N + 1/4))`` (Blom,
Statistical Estimates and Transformed Beta-Variables, 1958).

**Asynchronous.** Each runner is asked for ``d`` fragments ahead: a closed queueing network with ``N`` classes
of ``d`` customers. Each class has a station of its own, the runner, where a fragment takes
``k (Z + send + load)``, and a delay, ``latency``. All share the network, ``(b + w) / B``, the driver,
``call + receive + put``, and the thread that learns, ``F learn``. A customer that comes to a station of
demand ``D`` stays there ``D (1 + others there)``; that these are what is there on average, less its own
share, is the approximation of Bard and of Schweitzer (Approximate analysis of multiclass closed networks of
queues, 1979) to the mean value analysis of Reiser and Lavenberg (J. ACM 27, 1980). Both suppose exponential
service times; more even ones queue less, so that it errs on the slow side where two stations are about as
busy as each other. By the utilization law, one host does no more than its cores can:
``X (CPU seconds of a fragment) <= C``.

**In this process** one thing follows the other; asynchronously, learning goes on beside sampling.

Left out are what processes lose to each other in caches and memory, a driver whose interpreter the learning
thread uses, too, and updates on several cores. So measure beside what is predicted, where you can.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

Parts = dict[str, float]
_Found = tuple[float, Parts, dict[str, Parts]]
"""Env steps a second, how busy the parts are, and what some of them are made of."""


class Wire(NamedTuple):
    """What runners in processes of their own cost beside their work, in seconds.

    Attributes:
        latency: of a call that does nothing, there and back.
        call: of one such call to the driver, of many at once.
        send: of a fragment to its runner, after it was made.
        receive: of a fragment to the driver, once it is there.
        put: of new weights to the driver, once for all runners.
        load: of new weights to a runner.
        fragment_bytes: size of a fragment.
        weights_bytes: size of the weights.
    """

    latency: float
    call: float
    send: float
    receive: float
    put: float
    load: float
    fragment_bytes: int
    weights_bytes: int


class Costs(NamedTuple):
    """What sampling and learning cost one process, in seconds for each env step.

    Attributes:
        step: in the env.
        inference: acting.
        loop: the rest of sampling.
        learn: learning from it.
        fragment: env steps that a runner samples at a time.
        spread: standard deviation of the time of a fragment, by its median.
    """

    step: float
    inference: float
    loop: float
    learn: float
    fragment: float
    spread: float = 0.0


class Hosts(NamedTuple):
    """What there is to run on: hosts alike, as many as the runners need.

    Attributes:
        cores: of one host.
        runner_cpus: ``num_cpus_per_env_runner``.
        gigabits: a second, of the network between them.
    """

    cores: int
    runner_cpus: float = 1.0
    gigabits: float = 10.0

    @property
    def runners_per_host(self) -> int:
        """As Ray places them."""
        return max(1, int(self.cores / self.runner_cpus)) if self.runner_cpus else sys.maxsize

    def needed(self, runners: int) -> int:
        """Hosts for so many runners and the driver."""
        return 1 if runners <= self.runners_per_host else 1 + math.ceil(runners / self.runners_per_host)

    def crowding(self, runners: int) -> float:
        """Runners that share one core, at least 1."""
        return max(1.0, min(runners, self.runners_per_host) / self.cores)

    def over_network(self, runners: int, size: float) -> float:
        """Seconds that bytes need to or from the driver's host."""
        return 0.0 if self.needed(runners) == 1 else 8 * size / (self.gigabits * 1e9)


class Point(NamedTuple):
    """What the model says of one number of runners.

    Attributes:
        runners: 0 samples in the driver's process.
        hosts: that they and the driver need.
        steps_per_s: env steps a second.
        bottleneck: the busiest part.
        busy: of each part, its share of a cycle where one follows the other, else how much of the time it
            is busy.
    """

    runners: int
    hosts: int
    steps_per_s: float
    bottleneck: str
    busy: Parts


def predict(
    costs: Costs, wire: Wire | None, hosts: Hosts, runners: int, *, learns: bool, ahead: int = 0
) -> Point:
    """What a run with so many runners would reach.

    Args:
        costs: of sampling and learning.
        wire: of runners; None where there are none, and then ``runners`` is 0.
        hosts: where they run.
        runners: how many.
        learns: False for sampling alone.
        ahead: fragments that a runner is asked for at a time, asynchronously; 0 samples and learns in turns.
    """
    if not learns:
        costs = costs._replace(learn=0.0)
        wire = wire and wire._replace(put=0.0, load=0.0, weights_bytes=0)
    if not runners:
        steps, busy, within = _alone(costs, hosts, asynchronous=ahead > 0)
    elif wire is None:
        raise ValueError("runners need the costs of a wire")
    elif ahead:
        steps, busy, within = _asynchronous(costs, wire, hosts, runners, ahead)
    else:
        steps, busy, within = _synchronous(costs, wire, hosts, runners)
    bottleneck = max(busy, key=busy.__getitem__)
    if parts := within.get(bottleneck):
        bottleneck = max(parts, key=parts.__getitem__)
    return Point(runners, hosts.needed(runners), steps, bottleneck, busy)


def throughput(delay: float, own: float, shared: Sequence[float], classes: int, customers: int) -> float:
    """Of a closed network whose classes are alike, by approximate mean value analysis.

    Args:
        delay: seconds that a customer spends alone on each round.
        own: seconds of service that it needs of the station of its class.
        shared: seconds of service that it needs of each station that all classes share.
        classes: how many.
        customers: of each class.

    Returns:
        Rounds a second, over all customers.
    """
    demands = [own, *shared]
    others = [customers - 1.0, *[classes * customers - 1.0] * len(shared)]
    queues = [customers / len(demands)] * len(demands)  # of one class
    rounds = 0.0
    for _ in range(1000):  # a few dozen are enough
        stays = [d * (1 + n * q / customers) for d, n, q in zip(demands, others, queues, strict=True)]
        rounds = customers / (delay + sum(stays))
        queues = [rounds * stay for stay in stays]
    return classes * rounds


def slowest(n: int) -> float:
    """Expected maximum of ``n`` standard normal draws, by Blom's approximation; 0 for one."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def _work(costs: Costs) -> Parts:
    """Seconds of one fragment, by what they are spent on."""
    names = ("env steps", "inference", "sampling loop")
    return {name: costs.fragment * cost for name, cost in zip(names, costs, strict=False)}


def _alone(costs: Costs, hosts: Hosts, *, asynchronous: bool) -> _Found:
    work, learning = _work(costs), costs.fragment * costs.learn
    if not asynchronous:
        return _in_turns(costs.fragment, {**work, "learning": learning})
    sampling = sum(work.values())
    together = (sampling + learning) / hosts.cores
    cycle = max(sampling, learning, together)
    busy = {"sampling": sampling / cycle, "learning": learning / cycle, "cores": together / cycle}
    return costs.fragment / cycle, busy, {"sampling": work}


def _synchronous(costs: Costs, wire: Wire, hosts: Hosts, n: int) -> _Found:
    crowding, parts = hosts.crowding(n), _work(costs)
    sampling = crowding * sum(parts.values())
    parts["cores"] = sampling * (1 - 1 / crowding)
    parts["slowest runner"] = costs.spread * sampling * slowest(n)
    parts["transfer"] = wire.latency + wire.send + n * (wire.call + wire.receive)
    parts["network"] = hosts.over_network(n, n * wire.fragment_bytes + hosts.needed(n) * wire.weights_bytes)
    parts["learning"] = n * costs.fragment * costs.learn
    parts["broadcast"] = wire.put + wire.load
    return _in_turns(n * costs.fragment, parts)


def _in_turns(steps: float, parts: Parts) -> _Found:
    """Of what follows one another: env steps a second, and the share of each."""
    cycle = sum(parts.values())
    return steps / cycle, {name: seconds / cycle for name, seconds in parts.items()}, {}


def _asynchronous(costs: Costs, wire: Wire, hosts: Hosts, n: int, ahead: int) -> _Found:
    work, driver = _work(costs), {"transfer": wire.call + wire.receive, "broadcast": wire.put}
    stations = {
        "network": hosts.over_network(n, wire.fragment_bytes + wire.weights_bytes),
        "driver": sum(driver.values()),
        "learning": costs.fragment * costs.learn,
    }
    own = sum(work.values()) + wire.send + wire.load
    runner = hosts.crowding(n) * own
    used = (own + stations["driver"] + stations["learning"]) / hosts.cores if hosts.needed(n) == 1 else 0.0
    rounds = throughput(wire.latency, runner, list(stations.values()), n, ahead)
    rounds = min(rounds, 1 / used) if used else rounds
    busy = {name: rounds * seconds for name, seconds in stations.items()}
    busy |= {"sampling": rounds * runner / n, "cores": rounds * used}
    return rounds * costs.fragment, busy, {"sampling": work, "driver": driver}
