"""A group as its members: what each sees, what the mixer sees, and states, against plain loops."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.models.members import members_of
from steppe.spaces import BadLeaf, collect, spec_of
from steppe.types import SpacePair

FULL = spaces.Dict(
    obs=spaces.Box(-1, 1, (2,), np.float32),
    state=spaces.Box(-1, 1, (3,), np.float32),
    action_mask=spaces.MultiBinary(2),
)


def group(member, size=3):
    pair = SpacePair(
        spec_of(spaces.Tuple([member] * size)), spec_of(spaces.Tuple([spaces.Discrete(2)] * size))
    )
    return members_of(pair, "QMIX")


def keys(spec):
    return [key for key, _ in spec.items]


@given(n=st.integers(1, 4), size=st.integers(1, 4), seed=st.integers(0, 9), steps=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_rows_hold_what_each_member_sees_at_each_place(n, size, seed, steps):
    """Of columns with one leading axis, and with two (steps above 0)."""
    members, space = group(FULL, size), spaces.Tuple([FULL] * size, seed=seed)
    lead = (n,) if not steps else (n, steps)
    values = [space.sample() for _ in range(int(np.prod(lead)))]
    column = collect(members.whole, values)
    shaped = tuple(
        {key: part.reshape(*lead, *part.shape[1:]) for key, part in member.items()} for member in column
    )
    rows = members.rows(shaped, np.stack, lead=len(lead))
    for place, index in enumerate(np.ndindex(lead)):
        for member in range(size):
            at = (*index, member)
            assert rows["agent"][at] == member
            np.testing.assert_array_equal(rows["obs"]["obs"][at], values[place][member]["obs"])
            np.testing.assert_array_equal(rows["action_mask"][at], values[place][member]["action_mask"])
        np.testing.assert_array_equal(members.state_of(shaped)[index], values[place][0]["state"])
    assert keys(members.row) == ["action_mask", "agent", "obs"]


def test_who_sees_what():
    members = group(FULL)
    assert [keys(item) for item in members.acting.items] == [["action_mask", "obs"]] * 3
    assert [keys(item) for item in members.covered.items] == [["obs", "state"]] * 3
    assert [keys(item) for item in members.covered_acting.items] == [["obs"]] * 3
    assert keys(members.seen) == ["agent", "obs"]
    assert members.state == spec_of(FULL["state"])


@pytest.mark.parametrize(
    "member",
    [
        spaces.Discrete(4),
        spaces.Dict(state=spaces.Discrete(4)),
        spaces.Dict(state=spaces.Discrete(2), x=FULL["obs"]),
    ],
    ids=["no dict", "a state alone", "no obs"],
)
def test_without_obs_beside_it_a_state_is_what_a_member_sees(member):
    members = group(member)
    assert not members.stateful
    assert members.acting == members.whole == members.state
    obs = ("a", "b", "c")
    assert members.state_of(obs) is obs
    assert members.read(obs) is obs


def test_a_mask_of_zeros_is_told_by_member_and_row():
    members = group(FULL)
    free, shut = np.ones((2, 2), np.int8), np.array([[1, 0], [0, 0]], np.int8)
    obs = tuple({"obs": np.zeros((2, 2)), "action_mask": mask} for mask in (free, shut, free))
    with pytest.raises(BadLeaf) as bad:
        members.read(obs)
    assert (bad.value.row, bad.value.leaf) == (1, 'obs[1]["action_mask"]')


@pytest.mark.parametrize("xp", [np, jnp])
def test_states_lie_one_below_the_other(xp):
    members = group(FULL, 2)
    memory = {"h": xp.asarray(np.arange(12.0).reshape(3, 2, 2))}
    state = {
        "memory": memory,
        "action": (xp.arange(3), xp.arange(3) + 10),
        "reward": xp.asarray([1.0, 2.0, 3.0]),
    }
    own = members.states(state, xp)
    np.testing.assert_array_equal(own["memory"]["h"], np.arange(12.0).reshape(6, 2))
    np.testing.assert_array_equal(own["action"], [0, 10, 1, 11, 2, 12])
    np.testing.assert_array_equal(own["reward"], [1, 1, 2, 2, 3, 3])
    assert members.states({"memory": memory}, xp).keys() == {"memory"}
