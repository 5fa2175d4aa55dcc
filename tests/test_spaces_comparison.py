"""Which spaces a policy can act in besides those it was made for, by hand and for drawn spaces."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings

from steppe.spaces import describe, misfits, spec_of
from tests.test_spaces import random_spaces

BOX, TWO = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)


def pair(observation=BOX, action=TWO):
    return {"observation": describe(spec_of(observation)), "action": describe(spec_of(action))}


WRONG_ACTIONS = {
    "(n 2, here 3)": (TWO, spaces.Discrete(3)),
    "Discrete(2), here Discrete(2, start=1) (start 0, here 1)": (TWO, spaces.Discrete(2, start=1)),
    "(kind Discrete, here Box; n 2, here nothing; start 0, here nothing)": (TWO, BOX),
    "(high 1.0, here 2.0)": (spaces.Box(-1, 1, (1,)), spaces.Box(-1, 2, (1,))),
    "(low -1.0, here [-1.0, 0.0])": (
        spaces.Box(-1, 1, (2,)),
        spaces.Box(np.array([-1, 0], np.float32), np.ones(2, np.float32)),
    ),
    "(dtype float, here int)": (spaces.Box(0, 1, (1,)), spaces.Box(0, 1, (1,), np.int32)),
    "(['a'].n 2, here 4)": (spaces.Dict(a=TWO, b=BOX), spaces.Dict(a=spaces.Discrete(4), b=BOX)),
    "([1]['x'].nvec [2, 3], here [2, 4])": (
        spaces.Tuple((TWO, spaces.Dict(x=spaces.MultiDiscrete([2, 3])))),
        spaces.Tuple((TWO, spaces.Dict(x=spaces.MultiDiscrete([2, 4])))),
    ),
}


@pytest.mark.parametrize("said", WRONG_ACTIONS)
def test_actions_must_mean_the_same(said):
    trained, given_ = WRONG_ACTIONS[said]
    wrong, odd = misfits(pair(action=trained), pair(action=given_))
    assert wrong.startswith("action space ")
    assert wrong.endswith(said)
    assert odd == ""


WRONG_OBSERVATIONS = {
    "Box(2,) float32, here Box(3,) float32 (shape [2], here [3])": spaces.Box(-1, 1, (3,)),
    "Box(2,) float32, here Box(2,) uint8 (dtype float, here uint)": spaces.Box(0, 1, (2,), np.uint8),
    "Box(2,) float32, here Box(2,) int64 (dtype float, here int64)": spaces.Box(-1, 1, (2,), np.int64),
    "Box(2,) float32, here Discrete(2) (kind Box, here Discrete; shape [2], here nothing; dtype float": TWO,
    "Box(2,) float32, here Dict(a: Box(2,) float32) (kind Box, here Dict; ": spaces.Dict(a=BOX),
}


@pytest.mark.parametrize("said", WRONG_OBSERVATIONS)
def test_observations_must_be_of_one_kind_and_size(said):
    wrong, odd = misfits(pair(), pair(WRONG_OBSERVATIONS[said]))
    assert wrong.startswith(f"observation space {said}")
    assert odd == ""


def test_bounds_of_observations_are_only_said():
    wide = spaces.Box(-5, np.inf, (2,), np.float64)
    wrong, odd = misfits(pair(), pair(wide))
    assert wrong == ""
    expected = (
        "observation space Box(2,) float32, here Box(2,) float64 (low -1.0, here -5.0; high 1.0, here inf)"
    )
    assert odd == expected
    nested = spaces.Dict(low=BOX, b=TWO), spaces.Dict(low=wide, b=TWO)
    assert misfits(*map(pair, nested))[1].endswith(
        "(['low'].low -1.0, here -5.0; ['low'].high 1.0, here inf)"
    )


def test_what_forbids_is_said_alone_and_both_spaces_together():
    wrong, odd = misfits(pair(), pair(spaces.Box(-5, 5, (3,)), spaces.Discrete(3)))
    assert odd == ""
    assert wrong == (
        "observation space Box(2,) float32, here Box(3,) float32 (shape [2], here [3]) and "
        "action space Discrete(2), here Discrete(3) (n 2, here 3)"
    )


def test_integers_of_64_bits_are_told_from_narrower_ones_and_those_are_alike():
    kinds = [np.int8, np.int16, np.int32, np.int64]
    found = [[misfits(*(pair(spaces.Box(0, 9, (2,), k)) for k in (a, b)))[0] for b in kinds] for a in kinds]
    assert [["" if text == "" else "x" for text in row] for row in found] == [
        ["", "", "", "x"],
        ["", "", "", "x"],
        ["", "", "", "x"],
        ["x", "x", "x", ""],
    ]
    halves = (pair(spaces.Box(-1, 1, (2,), k)) for k in (np.float16, np.float64))
    assert misfits(*halves) == ("", "")


@given(random_spaces, random_spaces)
@settings(max_examples=60, deadline=None)
def test_a_pair_fits_itself_through_a_file_and_a_misfit_is_one_both_ways(one, other):
    there, here = (describe(spec_of(space, max_sequence_length=4)) for space in (one, other))
    pairs = [{"observation": node, "action": node} for node in (there, here)]
    assert misfits(pairs[0], json.loads(json.dumps(pairs[0]))) == ("", "")
    forth, back = misfits(*pairs), misfits(*reversed(pairs))
    assert [bool(text) for text in forth] == [bool(text) for text in back]
    if there == here:
        assert forth == ("", "")


@pytest.mark.parametrize("key", ["kind", "shape", "dtype", "low"])
def test_a_damaged_description_is_an_error_or_a_misfit(key):
    broken = pair()
    del broken["observation"][key]
    try:
        wrong, odd = misfits(pair(), broken)
    except (ValueError, LookupError, TypeError, AttributeError):
        return
    assert wrong or odd
