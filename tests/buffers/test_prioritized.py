"""Prioritized replay: rows come by their priorities, whatever is overwritten; weights take the bias back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe import checkpoint
from steppe.buffers.prioritized import Prioritized
from steppe.buffers.replay import Replay
from steppe.errors import CheckpointError, ConfigError
from tests.learning_core.test_minibatches import POLICIES, by_hand, scripts
from tests.sampling.reference import play
from tests.states import diff, state_hash


def filled(rows, capacity, *, alpha=1.0, eps=1e-6):
    """One lane of ``rows + 1`` rows, of which the last has no outcome yet."""
    replay = Prioritized(Replay(capacity), alpha=alpha, eps=eps)
    numbers = 1 + np.arange(rows + 1)[:, None]
    replay.add(by_hand(numbers, t=numbers - 1))
    return replay


def leaves(replay):
    return replay._tree[replay._first :]


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=70).filter(any),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_the_tree_finds_what_a_running_sum_finds(priorities, changes, seed):
    rng, priority = np.random.default_rng(seed), np.array(priorities)
    replay = Prioritized(Replay(len(priority)), alpha=1.0)
    replay._set(np.arange(len(priority)), priority)
    for _ in range(2):
        tree = replay._tree
        for node in range(1, replay._first):
            assert tree[node] == tree[2 * node] + tree[2 * node + 1]
        assert tree[1] == pytest.approx(priority.sum())
        running = np.cumsum(priority)
        mass = rng.random((4, 50)) * tree[1] * (1 - 1e-9)
        clear = np.abs(mass[..., None] - running).min(axis=-1) > 1e-9 * tree[1]
        assert (replay._find(mass) == np.searchsorted(running, mass, side="right"))[clear].all()
        edge = replay._find(np.append(running, [0.0, 2 * tree[1]]))
        assert (priority[edge] > 0).all()
        index = rng.integers(len(priority), size=changes)  # some of them twice
        value = rng.random(changes) * 10 + 1e-3
        replay._set(index, value)
        priority[index] = value


def test_weights_by_hand():
    """Priorities 1, 2 and 5: the weights are as 1 to 1/2 to 1/5, and the largest is 1."""
    replay = filled(3, 4, eps=1e-12)
    replay.update(np.array([0, 1, 2]), np.array([1.0, -2.0, 5.0]))
    columns = replay.sample(np.random.default_rng(0), 1, 8, beta=1.0)
    assert columns["index"].tolist() == [[0, 1, 1, 2, 2, 2, 2, 2]]  # one of each eighth of the sum
    assert columns["weight"][0] == pytest.approx([1, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert columns["weight"].dtype == np.float32
    assert columns["obs"].tolist() == [[1, 2, 2, 3, 3, 3, 3, 3]]
    half = replay.sample(np.random.default_rng(0), 1, 8, beta=0.5)
    assert half["weight"][0] == pytest.approx(columns["weight"][0] ** 0.5)


def test_alpha_is_an_exponent_and_0_draws_evenly():
    replay = filled(2, 8, alpha=0.5, eps=1e-12)
    replay.update(np.array([0, 1]), np.array([4.0, 9.0]))
    assert leaves(replay)[:3] == pytest.approx([2, 3, 0])
    even = filled(2, 8, alpha=0.0)
    even.update(np.array([0, 1]), np.array([4.0, 9.0]))
    assert leaves(even)[:3].tolist() == [1, 1, 0]


def test_rows_are_drawn_in_proportion_to_their_priorities():
    replay = filled(40, 64, alpha=0.6)
    error = np.random.default_rng(5).exponential(size=40)
    replay.update(np.arange(40), error)
    index = replay.sample(np.random.default_rng(6), 20_000, 4, beta=0.4)["index"]
    count = np.bincount(index.ravel(), minlength=40)
    wanted = error**0.6 / (error**0.6).sum() * index.size
    assert wanted.min() > 40
    assert ((count - wanted) ** 2 / wanted).sum() < 63  # 99 % of chi-square with 39 degrees


def test_new_rows_have_the_largest_priority_so_far_and_overwritten_ones_none():
    replay = filled(3, 4, eps=1e-12)
    assert leaves(replay).tolist() == [1, 1, 1, 0]
    replay.update(np.array([0, 2]), np.array([7.0, 0.25]))
    replay.update(np.array([0]), np.array([3.0]))
    assert leaves(replay) == pytest.approx([3, 1, 0.25, 0])
    replay.add(by_hand([[4], [5]], t=[[3], [4]], sequence=1))
    assert leaves(replay) == pytest.approx([0, 1, 0.25, 7])
    replay.update(
        np.array([0]), np.array([9.0])
    )  # overwritten since it was sampled, by a row without outcome
    assert leaves(replay)[0] == 0


def test_errors_that_are_not_finite_change_nothing():
    replay = filled(3, 4, eps=1e-12)
    replay.update(np.array([[0, 1, 2]]), np.array([[np.nan, 2.0, np.inf]], np.float32))
    assert leaves(replay) == pytest.approx([1, 2, 1, 0])


def test_a_row_without_error_is_still_drawn():
    replay = filled(1, 2)
    replay.update(np.array([0]), np.array([0.0]))
    assert replay.sample(np.random.default_rng(0), 1, 2, 1.0)["weight"].tolist() == [[1, 1]]


@settings(max_examples=25)
@given(scripts, POLICIES, st.sampled_from([2, 7, 20, 10_000]), st.integers(1, 3), st.integers(0, 9))
def test_what_has_a_priority_is_what_may_be_sampled(drawn, policy, capacity, n_step, seed):
    inner, rng = Replay(capacity, n_step=n_step, framestack=2), np.random.default_rng(seed)
    replay = Prioritized(inner, alpha=0.6)
    for rollout in play(**drawn).rollouts(policy):
        replay.add(rollout)
        assert np.flatnonzero(leaves(replay)).tolist() == sorted(inner._ready.members.tolist())
        if len(replay):
            columns = replay.sample(rng, 2, 5, beta=0.7)
            assert (columns["weight"].max(axis=1) == 1).all()
            replay.update(columns["index"], rng.normal(size=(2, 5)))


def test_it_goes_on_from_a_checkpoint(tmp_path):
    replay, again = filled(6, 8), Prioritized(Replay(8), alpha=1.0)
    replay.update(np.arange(6), np.arange(6) / 7)
    checkpoint.save(tmp_path / "c", {"replay": replay.get_state()}, {"run_id": "test"})
    again.set_state(checkpoint.load(tmp_path / "c")[0]["replay"])
    assert state_hash(again.get_state()) == state_hash(replay.get_state())
    more = by_hand(7 + np.arange(4)[:, None], t=6 + np.arange(4)[:, None], sequence=1)
    for one in (replay, again):
        assert one.add(replace(more)) == 3
        one.update(np.arange(6), np.ones(6))
    assert diff(*(one.sample(np.random.default_rng(1), 3, 4, 0.5) for one in (replay, again))) == []
    assert diff(again.get_state(), replay.get_state()) == []
    empty = Prioritized(Replay(8), alpha=1.0).get_state()
    again.set_state(empty)
    assert len(again) == 0
    assert diff(again.get_state(), empty) == []


def test_a_state_of_the_other_kind_is_refused():
    replay, even = filled(3, 8), Replay(8)
    with pytest.raises(CheckpointError, match="has priorities: go on with prioritized_replay=True"):
        even.set_state(replay.get_state())
    with pytest.raises(CheckpointError, match="has no priorities: go on without prioritized_replay"):
        replay.set_state(even.get_state())
    assert len(replay) == 3


def test_wrong_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"alpha=-1 and eps=1e-06, expected alpha >= 0 and eps > 0"):
        Prioritized(Replay(4), alpha=-1)
    with pytest.raises(ConfigError, match="no row may be sampled yet"):
        Prioritized(Replay(4), alpha=1.0).sample(np.random.default_rng(0), 1, 1, 0.4)
