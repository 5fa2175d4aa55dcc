"""Pool: a set that is drawn from, against Python's own."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.buffers.pool import Pool


def places(*numbers):
    return np.array(numbers, np.int32)


def test_the_last_ones_move_into_the_holes():
    pool = Pool(9)
    pool.join(places(3, 5, 7, 8))
    pool.leave(places(3, 8))
    assert sorted(pool.members.tolist()) == [5, 7]
    assert pool.has(np.arange(9)).tolist() == [n in (5, 7) for n in range(9)]
    pool.replace(places(2, 0))
    assert pool.members.tolist() == [2, 0]
    assert not pool.has(places(5, 7)).any()


@given(st.lists(st.sets(st.integers(0, 15)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_it_is_a_set(changes):
    """Each change takes in those that are not there, and lets the others go."""
    pool, held = Pool(16), set()
    for change in changes:
        leaving, joining = sorted(change & held), sorted(change - held)
        pool.leave(places(*leaving))
        pool.join(places(*joining))
        held ^= change
        assert sorted(pool.members.tolist()) == sorted(held)
        assert len(pool) == len(held)
        assert set(np.flatnonzero(pool.has(np.arange(16))).tolist()) == held
