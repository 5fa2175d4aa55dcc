"""The model of runs: against numbers worked out by hand, and against runs that are played event by event."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.scaling.model import Costs, Hosts, Wire, mva, predict, slowest

COSTS = Costs(step=0.002, inference=0.001, loop=0.001, learn=0.0005, fragment=100)
"""A fragment takes 0.4 s to sample, and 0.05 s to learn from."""
WIRE = Wire(
    latency=0.01,
    call=0.001,
    send=0.02,
    receive=0.004,
    put=0.003,
    load=0.006,
    fragment_bytes=125_000_000,
    weights_bytes=12_500_000,
)
FREE = Wire(0, 0, 0, 0, 0, 0, 0, 0)
ONE = Hosts(cores=64)
"""A host on which all runners of these tests have cores."""


def at(runners, costs=COSTS, wire=WIRE, hosts=ONE, *, learns=True, asynchronous=False):
    return predict(costs, wire, hosts, runners, learns=learns, asynchronous=asynchronous)


# -- by hand ----------------------------------------------------------------------------------------------


def test_one_process_does_one_thing_after_the_other():
    point = at(0, wire=None)
    assert point.steps_per_s == pytest.approx(1 / 0.0045)
    assert (point.bottleneck, point.hosts) == ("env steps", 1)
    shares = {"env steps": 4 / 9, "inference": 2 / 9, "sampling loop": 2 / 9, "learning": 1 / 9}
    assert point.busy == pytest.approx(shares)
    assert at(0, learns=False).steps_per_s == pytest.approx(250)


def test_one_process_that_samples_while_it_learns_waits_for_the_longer():
    assert at(0, asynchronous=True).steps_per_s == pytest.approx(250)
    slow = COSTS._replace(learn=0.01)
    point = at(0, slow, asynchronous=True)
    assert (point.steps_per_s, point.bottleneck) == (pytest.approx(100), "learning")
    alone = at(0, hosts=Hosts(cores=1), asynchronous=True)
    assert (alone.steps_per_s, alone.bottleneck) == (pytest.approx(1 / 0.0045), "cores")
    assert at(0, learns=False, asynchronous=True).steps_per_s == pytest.approx(250)


def test_a_cycle_of_runners_in_turns():
    # 0.4 sampled, 0.01 + 0.02 + 3 (0.001 + 0.004) transferred; 0.15 learned, 0.003 + 3 * 0.001 + 0.006 told
    sampled = 0.4 + 0.045
    assert at(3, learns=False).steps_per_s == pytest.approx(300 / sampled)
    point = at(3)
    assert point.steps_per_s == pytest.approx(300 / (sampled + 0.15 + 0.012))
    assert point.busy["broadcast"] == pytest.approx(0.012 / 0.607)
    assert sum(point.busy.values()) == pytest.approx(1)


def test_on_several_hosts_fragments_and_weights_cross_the_network():
    two = Hosts(cores=2, gigabits=10)  # 0.1 s a fragment, 0.01 s the weights for a host
    assert [two.needed(n) for n in (0, 1, 2, 3, 4, 5)] == [1, 1, 1, 3, 3, 4]
    point = at(3, hosts=two)
    assert point.hosts == 3
    assert point.steps_per_s == pytest.approx(300 / (0.607 + 3 * 0.1 + 3 * 0.01))
    assert at(2, hosts=two).steps_per_s == pytest.approx(at(2).steps_per_s)


def test_runners_that_share_a_core_are_slower():
    shared = Hosts(cores=2, runner_cpus=0.25)
    assert (shared.runners_per_host, shared.crowding(2), shared.crowding(8)) == (8, 1, 4)
    assert at(8, wire=FREE, hosts=shared, learns=False).steps_per_s == pytest.approx(2 * 250)
    assert at(8, wire=FREE, hosts=shared, learns=False).bottleneck == "cores"
    assert at(4, wire=FREE, hosts=shared, asynchronous=True).steps_per_s <= 2 / 0.0045
    assert Hosts(cores=2, runner_cpus=0).needed(1000) == 1


@pytest.mark.parametrize(
    ("n", "mean"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))]
)
def test_the_slowest_of_normal_times(n, mean):
    assert slowest(n) == pytest.approx(mean, abs=0.03)
    varied = COSTS._replace(spread=0.5)
    cycle = n * 100 / at(n, varied, FREE, learns=False).steps_per_s
    assert cycle == pytest.approx(0.4 * (1 + 0.5 * mean), rel=0.02)


def test_the_slowest_of_many_normal_times():
    drawn = np.random.default_rng(0).standard_normal((2000, 256)).max(1).mean()
    assert slowest(256) == pytest.approx(drawn, rel=0.02)


def test_mean_value_analysis_by_hand():
    assert mva(3, [1, 2], 1) == pytest.approx(1 / 6)
    # Alone, a customer is with the stations 1/6 and 2/6 of the time; a second one waits for it.
    assert mva(3, [1, 2], 2) == pytest.approx(2 / (3 + 1 * (1 + 1 / 6) + 2 * (1 + 2 / 6)))
    assert mva(4, [], 5) == pytest.approx(5 / 4)


@pytest.mark.parametrize("n", [1, 4, 40])
def test_mean_value_analysis_of_one_station_is_the_machine_repair_model(n):
    """Its closed form: the station is idle with Erlang's probability."""
    delay, service = 5.0, 1.0
    weights = [math.factorial(n) / math.factorial(n - k) * (service / delay) ** k for k in range(n + 1)]
    assert mva(delay, [service], n) == pytest.approx((1 - weights[0] / sum(weights)) / service)


# -- event by event ---------------------------------------------------------------------------------------


def played(costs, wire, n, cycles):
    """Env steps a second of runners and a driver that take turns, one event after the other."""
    clock, ready = 0.0, [0.0] * n
    for _ in range(cycles):
        arrived = [began + costs.fragment * costs.sampling + wire.send + wire.latency for began in ready]
        clock = max(arrived)
        for _ in range(n):
            clock += wire.call + wire.receive
        for _ in range(n):
            clock += costs.fragment * costs.learn
        clock += wire.put
        for _ in range(n):
            clock += wire.call
        ready = [clock + wire.load] * n
    return cycles * n * costs.fragment / ready[0]


def went_round(rng, delay, demands, customers, rounds, draw):
    """Rounds a second of a closed network of queues; ``draw`` makes a time of its mean."""
    free = [0.0] * len(demands)
    events = [(draw(rng, delay), i, 0) for i in range(customers)]  # when, who, at which station
    heapq.heapify(events)
    done = now = 0
    while done < rounds:
        now, who, station = heapq.heappop(events)
        if station == len(demands):
            done += 1
            heapq.heappush(events, (now + draw(rng, delay), who, 0))
        else:
            free[station] = max(free[station], now) + draw(rng, demands[station])
            heapq.heappush(events, (free[station], who, station + 1))
    return done / now


def exponential(rng, mean):
    return rng.exponential(mean)


def constant(rng, mean):
    return mean


seconds = st.floats(1e-4, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[seconds] * 4), st.tuples(*[seconds] * 6), st.integers(1, 20))
def test_in_turns_it_is_what_is_played(costs, wire, n):
    costs, wire = Costs(*costs, fragment=10), Wire(*wire, 0, 0)
    assert at(n, costs, wire).steps_per_s == pytest.approx(played(costs, wire, n, 5), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(seconds, st.lists(seconds, min_size=1, max_size=3), st.integers(1, 12), st.integers(0, 99))
def test_mean_value_analysis_is_what_is_played(delay, demands, customers, seed):
    rng = np.random.default_rng(seed)
    rate = went_round(rng, delay, demands, customers, 4000, exponential)
    assert mva(delay, demands, customers) == pytest.approx(rate, rel=0.12)


@settings(max_examples=20, deadline=None)
@given(seconds, st.lists(seconds, min_size=1, max_size=3), st.integers(1, 12))
def test_even_times_are_between_the_analysis_and_the_bounds(delay, demands, customers):
    """Where all times are the same, nobody queues needlessly: the asymptotic bounds are reached."""
    rate = went_round(None, delay, demands, customers, 1000, constant)
    bound = min(customers / (delay + sum(demands)), 1 / max(demands))
    assert mva(delay, demands, customers) <= bound * (1 + 1e-9)
    assert mva(delay, demands, customers) <= rate * 1.03
    assert rate <= bound * 1.03


# -- how it goes on ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[seconds] * 4),
    st.tuples(*[seconds] * 6),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(3, 300), min_size=2, max_size=6, unique=True),
)
def test_more_runners_are_never_slower_and_never_better_than_linear(
    costs, wire, learns, asynchronous, counts
):
    costs, wire = Costs(*costs, fragment=10), Wire(*wire, 1_000_000, 1000)
    hosts = Hosts(cores=2)  # all of these counts need several
    points = [at(n, costs, wire, hosts, learns=learns, asynchronous=asynchronous) for n in sorted(counts)]
    rates = [point.steps_per_s for point in points]
    assert all(after >= before * (1 - 1e-9) for before, after in pairwise(rates))
    assert all(point.steps_per_s <= point.runners / costs.sampling for point in points)
    assert all(0 <= share <= 1 + 1e-9 for point in points for share in point.busy.values())


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[seconds] * 4), st.integers(0, 30), st.booleans(), st.integers(0, 3), st.floats(1.01, 10.0))
def test_nothing_gets_faster_by_what_costs_more(costs, n, asynchronous, which, times):
    costs = Costs(*costs, fragment=10)
    name = Costs._fields[which]
    dearer = costs._replace(**{name: times * getattr(costs, name)})
    assert (
        at(n, dearer, asynchronous=asynchronous).steps_per_s
        <= at(n, costs, asynchronous=asynchronous).steps_per_s * (1 + 1e-9)
    )  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("bottleneck", "changes"),
    [
        ("env steps", {"step": 10.0}),
        ("inference", {"inference": 10.0}),
        ("sampling loop", {"loop": 10.0}),
        ("learning", {"learn": 10.0}),
        ("transfer", {"receive": 100.0}),
        ("broadcast", {"put": 1000.0}),
        ("network", {"fragment_bytes": 10**13}),
    ],
)
def test_what_costs_most_is_the_bottleneck(bottleneck, changes, asynchronous):
    costs = COSTS._replace(**{key: value for key, value in changes.items() if key in Costs._fields})
    wire = WIRE._replace(**{key: value for key, value in changes.items() if key in Wire._fields})
    assert at(8, costs, wire, Hosts(cores=4), asynchronous=asynchronous).bottleneck == bottleneck


def test_further_bottlenecks():
    assert at(8, COSTS._replace(spread=3.0)).bottleneck == "slowest runner"
    assert at(4, hosts=Hosts(cores=4), wire=FREE, asynchronous=True).bottleneck == "cores"
    assert at(64, wire=FREE, asynchronous=True).bottleneck == "learning"
    assert at(64, wire=FREE, asynchronous=True).steps_per_s == pytest.approx(1 / 0.0005, rel=0.01)
    assert at(10_000, wire=FREE).steps_per_s == pytest.approx(1 / 0.0005, rel=0.01)


def test_runners_without_their_costs_are_refused():
    with pytest.raises(ValueError, match="costs of a wire"):
        at(1, wire=None)
