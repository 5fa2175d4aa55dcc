"""The model of runs: against numbers worked out by hand, and against runs that are played event by event."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.scaling.model import Costs, Hosts, Wire, predict, slowest, throughput

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


def at(runners, costs=COSTS, wire=WIRE, hosts=ONE, *, learns=True, ahead=0):
    return predict(costs, wire, hosts, runners, learns=learns, ahead=ahead)


# -- by hand ----------------------------------------------------------------------------------------------


def test_one_process_does_one_thing_after_the_other():
    point = at(0, wire=None)
    assert point.steps_per_s == pytest.approx(1 / 0.0045)
    assert (point.bottleneck, point.hosts) == ("env steps", 1)
    shares = {"env steps": 4 / 9, "inference": 2 / 9, "sampling loop": 2 / 9, "learning": 1 / 9}
    assert point.busy == pytest.approx(shares)
    assert at(0, learns=False).steps_per_s == pytest.approx(250)


def test_one_process_that_samples_while_it_learns_waits_for_the_longer():
    assert at(0, ahead=1).steps_per_s == pytest.approx(250)
    slow = COSTS._replace(learn=0.01)
    point = at(0, slow, ahead=1)
    assert (point.steps_per_s, point.bottleneck) == (pytest.approx(100), "learning")
    alone = at(0, hosts=Hosts(cores=1), ahead=1)
    assert (alone.steps_per_s, alone.bottleneck) == (pytest.approx(1 / 0.0045), "cores")
    assert at(0, learns=False, ahead=1).steps_per_s == pytest.approx(250)


def test_a_cycle_of_runners_in_turns():
    # 0.4 sampled, 0.01 + 0.02 + 3 (0.001 + 0.004) transferred; 0.15 learned, 0.003 + 0.006 told
    sampled = 0.4 + 0.045
    assert at(3, learns=False).steps_per_s == pytest.approx(300 / sampled)
    point = at(3)
    assert point.steps_per_s == pytest.approx(300 / (sampled + 0.15 + 0.009))
    assert point.busy["broadcast"] == pytest.approx(0.009 / 0.604)
    assert sum(point.busy.values()) == pytest.approx(1)


def test_on_several_hosts_fragments_and_weights_cross_the_network():
    two = Hosts(cores=2, gigabits=10)  # 0.1 s a fragment, 0.01 s the weights for a host
    assert [two.needed(n) for n in (0, 1, 2, 3, 4, 5)] == [1, 1, 1, 3, 3, 4]
    point = at(3, hosts=two)
    assert point.hosts == 3
    assert point.steps_per_s == pytest.approx(300 / (0.604 + 3 * 0.1 + 3 * 0.01))
    assert at(2, hosts=two).steps_per_s == pytest.approx(at(2).steps_per_s)


def test_runners_that_share_a_core_are_slower():
    shared = Hosts(cores=2, runner_cpus=0.25)
    assert (shared.runners_per_host, shared.crowding(2), shared.crowding(8)) == (8, 1, 4)
    assert at(8, wire=FREE, hosts=shared, learns=False).steps_per_s == pytest.approx(2 * 250)
    assert at(8, wire=FREE, hosts=shared, learns=False).bottleneck == "cores"
    asynchronous = at(8, wire=FREE, hosts=shared, ahead=2)
    assert (asynchronous.steps_per_s, asynchronous.bottleneck) == (pytest.approx(2 / 0.0045), "cores")
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


def test_a_network_by_hand():
    assert throughput(3, 1, [2], 1, 1) == pytest.approx(1 / 6)  # nobody waits for anybody
    assert throughput(3, 1, [], 5, 1) == pytest.approx(5 / 4)
    assert throughput(0, 2, [], 4, 3) == pytest.approx(4 / 2)  # each has more to do than it can
    # Two customers and two stations alike: one is at each on average, half of which is another.
    assert throughput(0, 1, [1], 1, 2) == pytest.approx(2 / 3)
    # Two classes of one customer, which queue for what they share. With q of one class there, it stays
    # 1 + q, and q = (1 + q) / (1 + 1 + q): q = (5 ** 0.5 - 1) / 2.
    assert throughput(1, 0, [1], 2, 1) == pytest.approx(2 / (2 + (5**0.5 - 1) / 2))


def mva(delay, demands, customers):
    """Exact, of one class of customers: the recursion of Reiser and Lavenberg."""
    queues = [0.0] * len(demands)
    for n in range(1, customers + 1):
        stays = [demand * (1 + queue) for demand, queue in zip(demands, queues, strict=True)]
        rounds = n / (delay + sum(stays))
        queues = [rounds * stay for stay in stays]
    return rounds


@pytest.mark.parametrize("customers", [1, 4, 40, 400])
@pytest.mark.parametrize("shared", [[1.0], [1.0, 0.2], [0.9, 1.0, 0.5]])
def test_it_is_close_to_the_exact_analysis(shared, customers):
    found = throughput(50.0, 0.0, shared, customers, 1)
    assert found == pytest.approx(mva(50.0, shared, customers), rel=0.05)


def test_the_exact_analysis_is_erlangs():
    """Of machines that break after 5 s and are repaired one at a time in 1 s."""
    lengths = [math.factorial(4) / math.factorial(4 - k) * (1 / 5) ** k for k in range(5)]
    assert mva(5.0, [1.0], 4) == pytest.approx(1 - lengths[0] / sum(lengths))


# -- event by event ---------------------------------------------------------------------------------------


def played(costs, wire, n, cycles):
    """Env steps a second of runners and a driver that take turns, one event after the other."""
    clock, ready = 0.0, [0.0] * n
    for _ in range(cycles):
        asked = [began + wire.latency + wire.load for began in ready]
        done = [began + costs.fragment * (costs.step + costs.inference + costs.loop) for began in asked]
        clock = max(done) + wire.send
        for _ in range(n):
            clock += wire.call + wire.receive
        for _ in range(n):
            clock += costs.fragment * costs.learn
        clock += wire.put
        ready = [clock] * n
    return cycles * n * costs.fragment / clock


def went_round(rng, delay, own, shared, classes, customers, rounds, draw):
    """Rounds a second of a network of queues, in each of which who comes first is served first."""
    demands = [own, *shared]
    free = {}  # of a station, when it will be
    events = [(draw(rng, delay), i, 0) for i in range(classes * customers)]  # when, who, at which station
    heapq.heapify(events)
    done = now = 0
    while done < rounds:
        now, who, station = heapq.heappop(events)
        if station == len(demands):
            done += 1
            heapq.heappush(events, (now + draw(rng, delay), who, 0))
        else:
            at = (who % classes, station) if station == 0 else station
            free[at] = max(free.get(at, 0), now) + draw(rng, demands[station])
            heapq.heappush(events, (free[at], who, station + 1))
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


network = (seconds, seconds, st.lists(seconds, min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 3))


@settings(max_examples=15, deadline=None)
@given(*network, st.integers(0, 99))
def test_a_network_is_what_is_played(delay, own, shared, classes, customers, seed):
    rng = np.random.default_rng(seed)
    rate = went_round(rng, delay, own, shared, classes, customers, 4000, exponential)
    assert throughput(delay, own, shared, classes, customers) == pytest.approx(rate, rel=0.15)


@settings(max_examples=30, deadline=None)
@given(*network)
def test_even_times_are_between_the_analysis_and_the_bounds(delay, own, shared, classes, customers):
    """Where all times are the same, nobody queues needlessly: the asymptotic bounds are reached."""
    rate = went_round(None, delay, own, shared, classes, customers, 1000, constant)
    alone = classes * customers / (delay + own + sum(shared))
    bound = min(alone, classes / own, 1 / max(shared))
    found = throughput(delay, own, shared, classes, customers)
    assert found <= bound * (1 + 1e-9)
    assert found <= rate * 1.05
    assert rate <= bound * 1.05


# -- how it goes on ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[seconds] * 4),
    st.tuples(*[seconds] * 6),
    st.booleans(),
    st.integers(0, 2),
    st.lists(st.integers(3, 300), min_size=2, max_size=6, unique=True),
)
def test_more_runners_are_never_slower_and_never_better_than_linear(costs, wire, learns, ahead, counts):
    costs, wire = Costs(*costs, fragment=10), Wire(*wire, 1_000_000, 1000)
    hosts = Hosts(cores=2)  # all of these counts need several
    points = [at(n, costs, wire, hosts, learns=learns, ahead=ahead) for n in sorted(counts)]
    rates = [point.steps_per_s for point in points]
    assert all(after >= before * (1 - 1e-9) for before, after in pairwise(rates))
    assert all(point.steps_per_s <= point.runners / sum(costs[:3]) for point in points)
    assert all(0 <= share <= 1 + 1e-9 for point in points for share in point.busy.values())


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[seconds] * 4), st.integers(0, 30), st.integers(0, 2), st.integers(0, 3), st.floats(1.01, 10.0)
)
def test_nothing_gets_faster_by_what_costs_more(costs, n, ahead, which, times):
    costs = Costs(*costs, fragment=10)
    name = Costs._fields[which]
    dearer = costs._replace(**{name: times * getattr(costs, name)})
    assert (
        at(n, dearer, ahead=ahead).steps_per_s
        <= at(n, costs, ahead=ahead).steps_per_s * (1 + 1e-9)
    )  # fmt: skip


@pytest.mark.parametrize("ahead", [0, 1, 2])
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
def test_what_costs_most_is_the_bottleneck(bottleneck, changes, ahead):
    costs = COSTS._replace(**{key: value for key, value in changes.items() if key in Costs._fields})
    wire = WIRE._replace(**{key: value for key, value in changes.items() if key in Wire._fields})
    assert at(8, costs, wire, Hosts(cores=4), ahead=ahead).bottleneck == bottleneck


def test_further_bottlenecks():
    assert at(8, COSTS._replace(spread=3.0)).bottleneck == "slowest runner"
    assert at(4, hosts=Hosts(cores=4), wire=FREE, ahead=1).bottleneck == "cores"
    assert at(64, wire=FREE, ahead=1).bottleneck == "learning"
    assert at(64, wire=FREE, ahead=1).steps_per_s == pytest.approx(1 / 0.0005, rel=0.01)
    assert at(10_000, wire=FREE).steps_per_s == pytest.approx(1 / 0.0005, rel=0.01)


def test_runners_without_their_costs_are_refused():
    with pytest.raises(ValueError, match="costs of a wire"):
        at(1, wire=None)
