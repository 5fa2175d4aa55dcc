"""Replay: what is sampled is what happened, of every row that may be sampled, while the ring turns."""

import numpy as np
import pytest

from steppe.buffers.replay import Replay
from steppe.errors import ConfigError
from tests.learning_core.test_minibatches import by_hand

FIRST = by_hand([[1, 4], [2, 5], [3, 6]], t=[[0, 0], [1, 1], [2, 2]])
SECOND = by_hand([[3, 6], [7, 8]], t=[[2, 2], [3, 3]], sequence=1)


def everything(replay):
    """The columns of all rows that may be sampled, by the number of their observation."""
    index = np.sort(replay._ready[: len(replay)])
    columns = replay.columns(index)
    return {int(number): {k: v[i] for k, v in columns.items()} for i, number in enumerate(columns["obs"])}


def outcomes(replay):
    return {
        number: (float(row["reward"]), float(row["discount"]), int(row["next_obs"]))
        for number, row in everything(replay).items()
    }


def test_two_steps_by_hand():
    """The reward of a row is the number of its observation; the discount is a half."""
    replay = Replay(100, n_step=2, gamma=0.5)
    assert replay.add(FIRST) == 6
    assert outcomes(replay) == {1: (2 + 3 / 2, 0.25, 3), 4: (5 + 6 / 2, 0.25, 6)}
    assert replay.add(SECOND) == 2
    assert outcomes(replay) == {
        1: (3.5, 0.25, 3),
        4: (8.0, 0.25, 6),
        2: (3 + 7 / 2, 0.25, 7),
        5: (6 + 8 / 2, 0.25, 8),
    }


def test_what_is_lost_is_truncated_and_bootstrapped_from():
    replay = Replay(100, n_step=2, gamma=0.5)
    replay.add(FIRST)
    replay.add(SECOND)
    replay.add(by_hand([[7, 0], [9, 0]], t=[[3, 0], [4, 0]], sequence=2))
    found = outcomes(replay)
    assert found[6] == (8.0, 0.5, 8)
    assert found[3] == (7 + 9 / 2, 0.25, 9)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "wrong", [{"capacity": 0}, {"capacity": 9, "n_step": 0}, {"capacity": 9, "framestack": 0}]
)
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"=0, but it counts rows: give 1 or more"):
        Replay(**wrong)


def test_nothing_is_sampled_from_an_empty_replay():
    with pytest.raises(ConfigError, match="no row may be sampled yet"):
        Replay(9).sample(np.random.default_rng(0), 1, 1)
