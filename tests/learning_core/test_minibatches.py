"""Fragments become batches without losing, doubling or inventing a transition, in few distinct shapes.

The fragments come from a sampler that plays random scripts (``tests/sampling/reference.py``).
"""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe import checkpoint
from steppe.errors import ConfigError
from steppe.learning.minibatches import COLUMNS, FragmentQueue, shuffled, stitch
from steppe.spaces import leaves
from steppe.types import Rollout
from tests.fakes import row_number
from tests.sampling.reference import expected, play, transitions
from tests.states import diff

scripts = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "envs": st.integers(1, 3),
        "agents": st.sampled_from(["a", "abc", "abcd"]),
        "polls": st.integers(10, 50),
        "length": st.integers(1, 8),
    }
)
POLICIES = st.sampled_from(["left", "other"])


def full(queue):
    """Whether the next call of ``take`` closes a batch."""
    return max(queue._steps, queue._idle) >= queue._goal


def read(batch):
    """``(number, action, reward, outcome, terminated, truncated)`` of every acted row."""
    number, filled = row_number(batch["obs"]), batch["filled"]
    final = batch["terminated"] | batch["truncated"]
    found = []
    for lane in range(filled.shape[1]):
        count = int(filled[:, lane].sum())
        assert filled[:count, lane].all(), "a hole"
        for row in range(count - 1):
            if not final[row, lane]:
                at, below = (row, lane), (row + 1, lane)
                assert batch["logp"][at] == -number[at]
                action = batch["action"][at].tolist()
                result = float(batch["reward"][below]), int(number[below])
                ends = bool(batch["terminated"][below]), bool(batch["truncated"][below])
                own = tuple(action) if isinstance(action, list) else action
                found.append((int(number[at]), own, *result, *ends))
    return found


def acting(run, policy):
    return [rollout for rollout in run.rollouts(policy) if rollout.action is not None]


@given(scripts, POLICIES)
def test_stitched_fragments_are_one_long_fragment(drawn, policy):
    run = play(**drawn)
    fragments = acting(run, policy)
    if not fragments:
        return
    batch = stitch(fragments)
    wanted = [t[:6] for fragment in expected(run.found, run.closing, policy) for t in fragment]
    assert sorted(read(batch)) == sorted(wanted)
    for name in COLUMNS:
        for leaf, first in zip(leaves(batch[name]), leaves(getattr(fragments[0], name)), strict=True):
            assert leaf.dtype == first.dtype
            assert not leaf[~batch["filled"]].any()


@given(scripts, POLICIES, st.data())
def test_nothing_is_invented_where_fragments_are_missing(drawn, policy, data):
    fragments = acting(play(**drawn), policy)
    keep = data.draw(st.lists(st.booleans(), min_size=len(fragments), max_size=len(fragments)))
    kept = [fragment for fragment, wanted in zip(fragments, keep, strict=True) if wanted]
    if not kept:
        return
    batch = stitch(kept)
    assert sorted(row[:5] for row in read(batch)) == sorted(t[:5] for f in kept for t in transitions(f))
    was = {t[:5]: t.truncated for f in kept for t in transitions(f)}
    changed = {row[3] for row in read(batch) if row[5] != was[row[:5]]}
    gaps = [f for f, after in itertools.pairwise(kept) if after.sequence != f.sequence + 1]
    assert changed <= {n for f in gaps for n in closing_numbers(f)}


def closing_numbers(rollout):
    lane = np.flatnonzero(rollout.lane_continues)
    return row_number(rollout.obs)[rollout.filled.sum(axis=0)[lane] - 1, lane].tolist()


def by_hand(number, *, t, sequence=0, episode=0, runner=0, incarnation=0, continues=True, action=True):
    """A rollout of scalar observations, ``(rows, lanes)``; 0 is unfilled."""
    obs = np.array(number, np.float32)
    zero, none = np.zeros(obs.shape, np.int32), np.zeros(obs.shape, np.bool_)
    return Rollout(
        obs=obs,
        action=zero.astype(np.int64) if action else None,
        logp=-obs,
        reward=obs,
        terminated=none,
        truncated=none,
        filled=obs > 0,
        version=zero,
        env=zero + np.arange(obs.shape[1], dtype=np.int32),
        agent=zero,
        episode=zero + episode,
        t=np.array(t, np.int32),
        policy="p",
        runner=runner,
        incarnation=incarnation,
        sequence=sequence,
        lane_continues=np.full(obs.shape[1], continues),
        agents=("a",),
        env_steps=2 * obs.shape[1],
        state0=(np.zeros(obs.shape[1]),),
    )


FIRST = by_hand([[1, 4], [2, 5], [3, 6]], t=[[0, 0], [1, 1], [2, 2]])


def test_two_fragments_by_hand():
    second = by_hand([[3, 6], [7, 8]], t=[[2, 2], [3, 3]], sequence=1)
    second.action[0] = 9
    batch = stitch([FIRST, second])
    assert batch["obs"].tolist() == [[1, 4], [2, 5], [3, 6], [7, 8]]
    assert batch["action"].tolist() == [[0, 0], [0, 0], [9, 9], [0, 0]]
    assert not batch["truncated"].any()


@pytest.mark.parametrize(
    "lost",
    [
        by_hand([[7, 6], [8, 9]], t=[[0, 2], [1, 3]], episode=[[1, 0], [1, 0]], sequence=1),
        by_hand([[0, 6], [0, 9]], t=[[0, 2], [0, 3]], sequence=1),
    ],
    ids=["a new episode", "nothing"],
)
def test_a_lost_trajectory_is_cut_at_its_closing_row(lost):
    batch = stitch([FIRST, lost])
    assert batch["obs"][:, 1].tolist()[:4] == [4, 5, 6, 9]
    assert batch["obs"][:3, 0].tolist() == [1, 2, 3]
    assert batch["truncated"][:, 0].tolist()[:3] == [False, False, True]
    assert not batch["truncated"][:, 1].any()
    assert [row[:4:3] for row in read(batch) if row[0] < 4] == [(1, 2), (2, 3)]


def test_a_restarted_runner_continues_nothing():
    again = by_hand([[3, 6], [7, 8]], t=[[2, 2], [3, 3]], sequence=1, incarnation=1)
    batch = stitch([FIRST, again])
    assert batch["obs"].tolist() == [[1, 4], [2, 5], [3, 6], [3, 6], [7, 8]]
    assert batch["truncated"].tolist() == [[False] * 2] * 2 + [[True] * 2] + [[False] * 2] * 2


def test_actions_of_unknown_probability_are_refused_by_name():
    fragment = replace(FIRST, logp=FIRST.logp.copy())
    fragment.logp[2, 1] = np.nan
    queue = FragmentQueue(1)
    with pytest.raises(
        ConfigError, match=r"policy 'p': .* agent 'a' \(env 1, episode 0, step 2\).*PPO.*or use DQNConfig"
    ):
        queue.add(fragment)
    assert not full(queue)


def take(queue):
    """A batch, after the checks that hold for every one."""
    taken = queue.take()
    if taken is None:
        return None
    batch, acted, continues = taken
    assert acted.any()
    shape = batch["filled"].shape
    assert acted.shape == shape
    assert continues.shape == shape[1:]
    for name in COLUMNS:
        for leaf in leaves(batch[name]):
            assert leaf.shape[:2] == shape
            assert not leaf[~batch["filled"]].any()
    assert acted.sum() == len(read(batch))
    assert not acted[-1].any()
    return batch, acted, continues


@given(scripts, POLICIES, st.integers(1, 3), st.integers(1, 60), st.booleans())
def test_a_queue_gives_every_transition_once_and_says_which_lanes_go_on(drawn, policy, runners, goal, saved):
    runs = [play(**{**drawn, "seed": drawn["seed"] + i}, runner=i) for i in range(runners)]
    queue, batches, last, shapes = FragmentQueue(goal), [], {}, [(0, 0)]
    waiting = idle = 0
    for turn in zip(*[run.rollouts(policy) for run in runs], strict=False):
        for rollout in turn:
            queue.add(rollout)
            waiting += rollout.env_steps * (rollout.action is not None)
            idle += rollout.env_steps * (rollout.action is None)
            assert full(queue) == (max(waiting, idle) >= goal)
        if saved:
            again = FragmentQueue(goal)
            again.set_state(queue.get_state())
            queue = again
        if full(queue):
            taken, waiting, idle = take(queue), 0, 0
            assert not full(queue)
            if taken is None:
                assert queue.answer == {}
                continue
            batch, _, continues = taken
            number = row_number(batch["obs"])
            goes_on = [number[0, lane] == last.get(lane, -1) for lane in range(len(continues))]
            assert continues.tolist() == goes_on
            row, lanes = np.maximum(batch["filled"].sum(axis=0) - 1, 0), np.arange(len(continues))
            final = (batch["terminated"] | batch["truncated"])[row, lanes]
            last = {
                lane: number[row[lane], lane]
                for lane in lanes
                if batch["filled"][0, lane] and not final[lane]
            }
            shapes.append(batch["filled"].shape)
            batches += read(batch)
    shapes_grow = all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(shapes))
    assert shapes_grow
    wanted = Counter()
    for run in runs:
        for fragment in expected(run.found, run.closing, policy):
            wanted.update(t[:6] for t in fragment)
    found = Counter(batches)
    assert not found - wanted
    if not waiting and all(len(run.closing) == len(runs[0].closing) for run in runs):
        assert found == wanted


def test_lanes_that_moved_do_not_go_on():
    queue = FragmentQueue(8)
    queue.add(FIRST)
    queue.add(by_hand([[11, 14], [12, 15], [13, 16]], t=[[0, 0], [1, 1], [2, 2]], runner=1))
    assert take(queue)[2].tolist() == [False] * 4
    wider = by_hand([[3, 6, 1], [7, 8, 2]], t=[[2, 2, 0], [3, 3, 1]], sequence=1)
    queue.add(wider)
    queue.add(by_hand([[13, 16], [17, 18]], t=[[2, 2], [3, 3]], sequence=1, runner=1))
    batch, _, continues = take(queue)
    assert batch["obs"][0].tolist() == [3, 6, 1, 13, 16]
    assert continues.tolist() == [True, True, False, False, False]
    third = by_hand([[7, 8, 2], [20, 21, 22]], t=[[3, 3, 1], [4, 4, 2]], sequence=2)
    queue.add(third)
    queue.add(by_hand([[17, 18], [19, 23]], t=[[3, 3], [4, 4]], sequence=2, runner=1))
    assert take(queue)[2].tolist() == [True] * 5


def test_a_fragment_in_which_nobody_has_acted_yet_is_not_counted():
    queue = FragmentQueue(4)
    idle = by_hand([[1, 4]], t=[[0, 0]], action=False)
    queue.add(replace(idle, env_steps=3))
    assert not full(queue)
    queue.add(replace(FIRST, sequence=1))
    assert full(queue)
    assert [row[:4:3] for row in read(take(queue)[0])] == [(1, 2), (2, 3), (4, 5), (5, 6)]


def test_where_nobody_acts_at_all_an_update_is_due_and_empty():
    queue = FragmentQueue(4)
    idle = by_hand([[1, 4]], t=[[0, 0]], action=False)
    for _ in range(2):
        queue.add(replace(idle, env_steps=3))
        assert (queue.take(), queue.answer) == (None, None)
        queue.add(replace(idle, env_steps=3))
        assert (queue.take(), queue.answer) == (None, {})


def test_a_queue_goes_on_from_a_checkpoint(tmp_path):
    queue = FragmentQueue(8)
    queue.add(FIRST)
    queue.add(by_hand([[3, 6], [7, 8]], t=[[2, 2], [3, 3]], sequence=1))
    take(queue)
    queue.add(by_hand([[7, 8], [9, 10]], t=[[3, 3], [4, 4]], sequence=2))
    checkpoint.save(tmp_path / "state", {"queue": queue.get_state()}, {"run_id": "test"})
    again = FragmentQueue(8)
    again.set_state(checkpoint.load(tmp_path / "state")[0]["queue"])
    assert diff(again.get_state(), queue.get_state()) == []
    for one in (queue, again):
        one.add(by_hand([[9, 10], [11, 12]], t=[[4, 4], [5, 5]], sequence=3))
        assert full(one)
    (batch, acted, continues), other = take(again), take(queue)
    assert diff({"x": [batch, acted, continues]}, {"x": list(other)}) == []
    assert continues.tolist() == [True, True]
    assert batch["obs"][:3].tolist() == [[7, 8], [9, 10], [11, 12]]


@pytest.mark.parametrize("lanes", [1, 4, 64])
@pytest.mark.parametrize("polls", [1, 8, 200])
def test_capacities_are_few_and_never_shrink(polls, lanes):
    """Episodes get shorter until each step is one, and longer again; up to 64 agents share an env."""
    queue, seen = FragmentQueue(polls), []
    for rows in [*range(polls + 1, 2 * polls + 2), polls + 1, 2]:
        fragment = by_hand(np.ones((rows, lanes)), t=np.ones((rows, lanes)))
        queue.add(replace(fragment, env_steps=polls))
        seen.append(len(take_shape(queue)))
        assert seen[-1] >= rows
    assert seen == sorted(seen)
    assert len(set(seen)) <= 6
    assert seen[-1] <= 2.6 * polls + 3


def take_shape(queue):
    return queue.take()[0]["filled"]


@given(st.integers(0, 12), st.integers(1, 4), st.integers(0, 40), st.integers(1, 3), st.integers(0, 99))
def test_each_epoch_is_a_permutation_repeated_to_the_capacity(rows, lanes, room, epochs, seed):
    acted = np.random.default_rng(seed).random((rows, lanes)) < 0.6
    wanted = np.flatnonzero(acted).tolist()
    order, count = shuffled(np.random.default_rng(seed), acted, epochs, 1, len(wanted) + room + 1)
    assert count == len(wanted)
    assert order.shape == (epochs, len(wanted) + room + 1)
    assert order.dtype == np.int32
    for epoch in order.tolist():
        assert sorted(epoch[:count]) == wanted
        assert all(index == epoch[i - count] for i, index in enumerate(epoch) if i >= count > 0)


def test_the_order_grows_in_few_steps_and_never_shrinks():
    rng, capacity, seen = np.random.default_rng(0), 0, []
    for rows in [*range(60, 401, 4), 60, 0]:
        order, count = shuffled(rng, np.ones((rows, 1), np.bool_), 1, 16, capacity)
        capacity = order.shape[1]
        assert capacity % 16 == 0
        assert capacity >= max(count, 16)
        seen.append(capacity)
    assert seen == sorted(seen)
    assert seen[:2] == [64, 64]
    assert len(set(seen)) <= 10
    assert capacity < 1.3 * 400


def test_epochs_differ_and_the_stream_decides():
    acted = np.ones((50, 2), np.bool_)
    order, _ = shuffled(np.random.default_rng(0), acted, 2, 10)
    same, _ = shuffled(np.random.default_rng(0), acted, 2, 10)
    assert order.tolist() == same.tolist()
    assert order[0].tolist() != order[1].tolist()
    assert order[0].tolist() != sorted(order[0].tolist())
