"""Proves that values of every space enter columns and come back unchanged, and that bad ones are refused.

Every kind of space, nested at random, makes the round trips value -> column -> value and spec -> JSON ->
spec; every refusal and every safe conversion has its example with hand-written numbers.
"""

import collections
import json
import os
import pickle
import re
import subprocess
import sys
import types
from typing import Any

import gymnasium.spaces as gs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe import spaces
from steppe.errors import SpaceError
from steppe.spaces import BadLeaf, Outside

F32 = np.float32
INF = float("inf")


# Random spaces ------------------------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
starts = st.integers(-5, 5)


@st.composite
def boxes(draw):
    shape = draw(shapes)
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int8, np.uint8, np.bool_]))
    low, high = {"f": (-2.5, 7.25), "i": (-3, 9), "u": (2, 250), "b": (0, 1)}[np.dtype(dtype).kind]
    if np.dtype(dtype).kind == "f":
        low, high = draw(st.sampled_from([(low, high), (-INF, INF), (low, INF)]))
    return gs.Box(low, high, shape, dtype)


@st.composite
def multi_discretes(draw):
    nvec = np.array(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from([np.int64, np.int32]))
    return gs.MultiDiscrete(nvec, start=nvec - draw(st.integers(1, 6)), dtype=dtype)


flat_spaces = st.one_of(
    boxes(),
    st.builds(lambda n, start: gs.Discrete(n, start=start), st.integers(1, 7), starts),
    multi_discretes(),
    st.lists(st.integers(1, 3), min_size=1, max_size=2).map(gs.MultiBinary),
)


def sequence_of(space, stack):
    sequence = gs.Sequence(space, stack=stack)
    sequence.max_length = 64
    return sequence


def nested(parts):
    several = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        st.dictionaries(st.sampled_from(["z", "a", 'q"', "ü"]), parts, min_size=1, max_size=3).map(gs.Dict),
        several.map(gs.Tuple),
        several.map(gs.OneOf),
        st.builds(sequence_of, parts, st.just(False)),
    )


random_spaces = st.recursive(flat_spaces, nested, max_leaves=5)
seeds = st.integers(0, 2**20)


def drawn(space, seed, n):
    space.seed(seed)
    return [space.sample() for _ in range(n)]


def same(a: Any, b: Any) -> bool:
    """Equal in value and in dtype, at every depth."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return bool(a == b)


# Round trips --------------------------------------------------------------------------------------------


@given(random_spaces, seeds, st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_values_come_back_as_they_went_in(space, seed, n):
    spec = spaces.spec_of(space)
    values = drawn(space, seed, n)
    notes = []
    back = spaces.rows(spec, spaces.collect(spec, values, lambda *note: notes.append(note)))
    assert len(back) == n
    assert all(map(same, values, back))
    assert all(space.contains(value) for value in back)
    assert all(spaces.contains(spec, value) for value in values)
    assert notes == []


@given(random_spaces, seeds, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_columns_have_the_form_of_zeros(space, seed, n):
    spec = spaces.spec_of(space)
    column = spaces.collect(spec, drawn(space, seed, n))
    empty = spaces.zeros(spec, n)
    described = spaces.map_leaves(lambda leaf: (leaf.shape, leaf.dtype), column)
    assert described == spaces.map_leaves(lambda leaf: (leaf.shape, leaf.dtype), empty)
    assert len(spaces.leaves(column)) == len(spaces.paths(spec))
    assert not any(leaf.any() for leaf in spaces.leaves(empty))
    assert spaces.zeros(spec) is not None
    for leaf, wide in zip(spaces.leaves(empty), spaces.leaves(spaces.zeros(spec, 2, n)), strict=True):
        assert wide.shape == (2, *leaf.shape)


@given(random_spaces, seeds)
@settings(max_examples=100, deadline=None)
def test_take_and_put_are_inverse(space, seed):
    spec = spaces.spec_of(space)
    column = spaces.collect(spec, drawn(space, seed, 5))
    target = spaces.zeros(spec, 5)
    index = np.array([3, 0, 4])
    spaces.put(target, index, spaces.take(column, index))
    spaces.put(target, slice(1, 3), spaces.take(column, slice(1, 3)))
    assert same(target, column)


@given(random_spaces, seeds)
@settings(max_examples=100, deadline=None)
def test_samples_lie_inside_and_clipping_keeps_them(space, seed):
    spec = spaces.spec_of(space)
    column = spaces.collect(spec, drawn(space, seed, 3))
    assert spaces.outside(spec, column) == []
    assert same(spaces.clip(spec, column), column)


@given(random_spaces)
@settings(max_examples=200, deadline=None)
def test_description_round_trip(space):
    spec = spaces.spec_of(space)
    text = json.dumps(spaces.describe(spec), allow_nan=False)
    again = spaces.from_description(json.loads(text))
    assert again == spec
    assert hash(again) == hash(spec)
    assert spaces.summary(again) == spaces.summary(spec)


@given(random_spaces, random_spaces)
@settings(max_examples=100, deadline=None)
def test_specs_are_equal_when_their_descriptions_are(one, other):
    a, b = spaces.spec_of(one), spaces.spec_of(other)
    assert (a == b) == (spaces.describe(a) == spaces.describe(b))


@pytest.mark.parametrize(
    "item",
    [
        gs.Box(-1, 1, (2,)),
        gs.Discrete(3),
        gs.MultiBinary(2),
        gs.Dict(a=gs.Box(-1, 1, (2,)), b=gs.Discrete(3)),
        gs.Tuple([gs.Discrete(3), gs.Dict(a=gs.MultiDiscrete([2, 3]))]),
    ],
    ids=str,
)
def test_stacked_sequence_round_trip(item):
    space = sequence_of(item, stack=True)
    spec = spaces.spec_of(space)
    values = drawn(space, 3, 6)
    column = spaces.collect(spec, values)
    loose = spaces.collect(spaces.spec_of(sequence_of(item, stack=False)), [unstacked(v) for v in values])
    assert same(column, loose)
    assert all(map(same, values, spaces.rows(spec, column)))


def unstacked(value):
    if isinstance(value, dict):
        parts = [unstacked(part) for part in value.values()]
        return tuple(dict(zip(value, item, strict=True)) for item in zip(*parts, strict=True))
    if isinstance(value, tuple):
        return tuple(zip(*map(unstacked, value), strict=True))
    return tuple(value)


# Columns by hand ----------------------------------------------------------------------------------------


def test_dict_keys_are_sorted_everywhere():
    spec = spaces.spec_of(gs.Dict(b=gs.Discrete(2), a=gs.Tuple([gs.Discrete(3), gs.MultiBinary(2)])))
    column = spaces.collect(spec, [{"b": 1, "a": (2, np.array([0, 1], np.int8))}])
    assert list(column) == ["a", "b"]
    assert spaces.paths(spec) == ['obs["a"][0]', 'obs["a"][1]', 'obs["b"]']
    assert [leaf.tolist() for leaf in spaces.leaves(column)] == [[2], [[0, 1]], [1]]
    assert spaces.paths(spaces.spec_of(gs.Dict({'ü"': gs.Discrete(2)}))) == [r'obs["ü\""]']


def test_sequence_column_is_padded():
    space = gs.Sequence(gs.Box(-9, 9, (2,)))
    spec = spaces.spec_of(space, max_sequence_length=3)
    one, two = np.array([1, 2], F32), np.array([3, 4], F32)
    column = spaces.collect(spec, [(one, two), (), (two,)])
    assert column["length"].tolist() == [2, 0, 1]
    assert column["items"].tolist() == [[[1, 2], [3, 4], [0, 0]], [[0, 0]] * 3, [[3, 4], [0, 0], [0, 0]]]
    assert spaces.paths(spec) == ['obs["items"]', 'obs["length"]']


def test_one_of_column():
    spec = spaces.spec_of(gs.OneOf([gs.Discrete(3, start=4), gs.Box(-9, 9, (2,))]))
    column = spaces.collect(spec, [(1, np.array([5, 6], F32)), (0, 6), (np.int64(0), np.int64(4))])
    assert column["choice"].tolist() == [1, 0, 0]
    assert column["values"][0].tolist() == [0, 6, 4]
    assert column["values"][1].tolist() == [[5, 6], [0, 0], [0, 0]]
    assert spaces.paths(spec) == ['obs["choice"]', 'obs["values"][0]', 'obs["values"][1]']


def test_columns_never_alias_what_the_env_keeps():
    spec = spaces.spec_of(gs.Dict(a=gs.Box(-9, 9, (2,)), b=gs.MultiBinary(2)))
    kept = {"a": np.array([1, 2], F32), "b": np.array([0, 1], np.int8)}
    for n in (1, 2):
        column = spaces.collect(spec, [kept] * n)
        assert not any(np.shares_memory(column[key], kept[key]) for key in kept)
    single = spaces.collect(spaces.spec_of(gs.Box(-9, 9, ())), [np.array(1, F32)])
    assert single.flags.writeable


def test_rows_may_be_written_to():
    spec = spaces.spec_of(gs.Box(-9, 9, (2,)))
    column = np.array([[1, 2], [3, 4]], F32)
    first, second = spaces.rows(spec, column)
    first += 5
    assert column.tolist() == [[1, 2], [3, 4]]
    assert second.tolist() == [3, 4]


def test_rows_have_the_dtype_of_the_space():
    policy = np.array([[0.5, 1.5]])
    (row,) = spaces.rows(spaces.spec_of(gs.Box(-9, 9, (2,))), policy)
    assert row.dtype == F32
    (scalar,) = spaces.rows(spaces.spec_of(gs.Box(-9, 9, ())), np.array([0.5], F32))
    assert isinstance(scalar, np.ndarray)
    assert scalar.shape == ()
    actions = spaces.rows(spaces.spec_of(gs.Discrete(3)), np.array([1, 2], np.int32))
    assert actions == [1, 2]
    assert {type(action) for action in actions} == {int}


@pytest.mark.parametrize(
    ("space", "column"),
    [(gs.Discrete(3), np.array([1.0])), (gs.Box(0, 9, (1,), np.int64), np.array([[1.5]]))],
)
def test_rows_refuse_to_truncate(space, column):
    with pytest.raises(TypeError, match="same_kind"):
        spaces.rows(spaces.spec_of(space), column)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_shapes_without_size(shape):
    spec = spaces.BoxSpec(shape, F32, -1, 1)
    column = spaces.collect(spec, drawn(gs.Box(-1, 1, shape), 0, 3))
    assert column.shape == (3, *shape)
    assert spaces.collect(spec, []).shape == (0, *shape)
    assert spaces.outside(spec, column) == []
    assert spaces.from_description(spaces.describe(spec)) == spec
    assert spaces.rows(spec, spaces.zeros(spec, 0)) == []


EMPTY = {"Box": gs.Box(-1, 1, (2, 0)), "MultiDiscrete": gs.MultiDiscrete(np.zeros(0, np.int64))}


@pytest.mark.parametrize("kind", EMPTY)
def test_spaces_that_hold_no_values_are_refused_where_they_stand(kind):
    """Nothing can be learned from them; as a part they would be a column of nothing among columns."""
    space = EMPTY[kind]
    with pytest.raises(SpaceError, match=rf"^observation: {kind} of shape .* holds no values: leave it out"):
        spaces.spec_of(space)
    nested = gs.Dict(a=gs.Discrete(2), b=gs.Tuple((gs.Discrete(2), space)))
    with pytest.raises(SpaceError, match=rf"^action\['b'\]\[1\]: {kind} of shape"):
        spaces.spec_of(nested, name="action")
    items = gs.Sequence(space)
    items.max_length = 3
    with pytest.raises(SpaceError, match=r"^observation\[i\]: "):
        spaces.spec_of(items)


def test_an_empty_list_has_no_kind():
    column = spaces.collect(spaces.BoxSpec((0,), np.int8, 0, 1), [[], []])
    assert (column.shape, column.dtype) == ((2, 0), np.int8)


def test_an_array_of_rows_is_as_good_as_a_list():
    spec = spaces.spec_of(gs.Box(-9, 9, (2,)))
    batch = np.array([[1, 2], [3, 4]], F32)
    column = spaces.collect(spec, batch)
    assert column.tolist() == batch.tolist()
    assert not np.shares_memory(column, batch)


def test_values_in_fortran_order_keep_their_places():
    spec = spaces.spec_of(gs.Box(-9, 9, (2, 3)))
    value = np.asfortranarray(np.arange(6, dtype=F32).reshape(2, 3))
    column = spaces.collect(spec, [value, value + 1])
    assert column.tolist() == [[[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]]]
    assert column.flags.c_contiguous


def test_a_scalar_among_arrays_is_left_to_collect_which_names_it():
    spec = spaces.spec_of(gs.Box(-9, 9, (2,)))
    values = [np.zeros(2, F32), np.array(0, F32)]
    assert spaces.stack(spec, values) is None
    with pytest.raises(spaces.BadLeaf, match=r"E103.* of row 1"):
        spaces.collect(spec, values)


# Safe conversions ---------------------------------------------------------------------------------------

FLOATS = gs.Box(-9, 9, (2,))
BYTES = gs.Box(0, 255, (2,), np.uint8)


class Tensor:
    """Stands for an array of another library."""

    def __array__(self, dtype=None, copy=None):
        return np.array([1, 2], F32)

    def __repr__(self):
        return "Tensor"


@pytest.mark.parametrize(
    ("space", "value", "text"),
    [
        (FLOATS, np.array([1, 2], np.float64), "array of float64 converted to float32 of shape (2,)"),
        (FLOATS, np.array([1, 2], np.int16), "array of int16 converted"),
        (FLOATS, np.array([1, 2], ">f4"), "array of >f4 converted"),
        (FLOATS, [1, 2], "list converted to float32 of shape (2,)"),
        (FLOATS, (1.0, 2), "tuple converted"),
        (FLOATS, Tensor(), "Tensor converted"),
        (BYTES, np.array([1, 2], np.int64), "array of int64 converted to uint8"),
        (BYTES, [1, 2], "list converted"),
        (gs.MultiDiscrete([3, 3]), [1, 2], "list converted to integers (int64) of shape (2,)"),
        (gs.MultiDiscrete([3, 3]), np.array([1, 2], np.uint8), "array of uint8 converted"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_arrays_are_converted_and_noted(space, value, text):
    spec = spaces.spec_of(space)
    notes = []
    column = spaces.collect(spec, [value] * 3, lambda *note: notes.append(note), "obs")
    assert column.tolist() == [[1, 2]] * 3
    assert column.dtype == space.dtype
    assert [note[:3] for note in notes] == [("E106", "obs", row) for row in range(3)]
    assert all(text in note[3] for note in notes)


@pytest.mark.parametrize(
    ("space", "value", "text"),
    [
        (gs.Discrete(3), np.array(1), "array of int64 converted to an integer from 0 to 2"),
        (gs.Discrete(3), np.array(1, np.uint8), "array of uint8 converted"),
        (gs.Discrete(2), True, "bool converted"),
        (gs.Discrete(2), np.True_, "array of bool converted"),
        (gs.Box(-9, 9, ()), 1, "int converted to float32 of shape ()"),
        (gs.Box(-9, 9, ()), np.float64(1), "array of float64 converted"),
        (gs.Box(0, 1, (), np.bool_), 1, "int converted to bool"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_numbers_are_converted_and_noted(space, value, text):
    notes = []
    column = spaces.collect(spaces.spec_of(space), [value, value], lambda *note: notes.append(note))
    assert column.tolist() == [1, 1]
    assert [note[2] for note in notes] == [0, 1]
    assert text in notes[0][3]


@pytest.mark.parametrize("value", [1, np.int64(1), np.int8(1), np.uint64(1)])
def test_integers_of_any_width_are_natural_to_a_discrete(value):
    notes = []
    assert spaces.collect(spaces.spec_of(gs.Discrete(3)), [value], lambda *n: notes.append(n)).tolist() == [1]
    assert notes == []


def test_flags_enter_a_multi_binary():
    notes = []
    spec = spaces.spec_of(gs.MultiBinary(2))
    column = spaces.collect(spec, [[True, False], np.array([0, 1], np.int8)], lambda *n: notes.append(n))
    assert column.tolist() == [[1, 0], [0, 1]]
    assert [note[2] for note in notes] == [0]


def test_only_the_converted_rows_are_noted_with_their_paths():
    space = gs.Dict(cars=gs.Tuple([gs.Discrete(3), FLOATS]))
    good = {"cars": (1, np.zeros(2, F32))}
    notes = []
    values = [good, {"cars": [1, [0, 0]]}, good]
    spaces.collect(spaces.spec_of(space), values, lambda *note: notes.append(note))
    assert [note[:3] for note in notes] == [("E106", 'obs["cars"]', 1), ("E106", 'obs["cars"][1]', 1)]


def test_conversions_deep_inside_name_row_and_place():
    sequence = spaces.spec_of(gs.Sequence(FLOATS), max_sequence_length=4)
    choice = spaces.spec_of(gs.OneOf([gs.Discrete(2), FLOATS]))
    good, wide = np.zeros(2, F32), np.zeros(2)
    notes = []
    spaces.collect(sequence, [(good,), (good, good, wide)], lambda *note: notes.append(note))
    spaces.collect(choice, [(0, 1), (1, wide)], lambda *note: notes.append(note))
    assert [note[:3] for note in notes] == [("E106", "obs[2]", 1), ("E106", "obs[1]", 1)]


# Refusals -----------------------------------------------------------------------------------------------

GOOD = {str(FLOATS): np.zeros(2, F32), "Discrete(3)": 0}


def bad_leaf(space, value, before=(), **kwargs):
    with pytest.raises(BadLeaf) as caught:
        spaces.collect(spaces.spec_of(space, **kwargs), [*before, value])
    assert not spaces.contains(spaces.spec_of(space, **kwargs), value)
    return caught.value


class Stubborn:
    """Stands for a tensor that cannot leave its device."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("move it to host memory first")


@pytest.mark.parametrize(
    ("space", "value", "code", "got"),
    [
        (FLOATS, "ab", "E102", "'ab' (str)"),
        (FLOATS, ["1.0", "2.0"], "E102", "['1.0', '2.0'] (list)"),
        (FLOATS, np.array(["1.0", "2.0"]), "E102", "<U3, shape (2,)"),
        (FLOATS, None, "E102", "None (NoneType)"),
        (FLOATS, [1.0, None], "E102", "[1.0, None] (list)"),
        (FLOATS, np.array([1, object()], object), "E102", "object, shape (2,)"),
        (FLOATS, {"x": 1}, "E102", "{'x': 1} (dict)"),
        (FLOATS, np.array([1j, 2]), "E102", "complex128, shape (2,)"),
        (FLOATS, np.ma.masked_array([1.0, 2.0], [True, False]), "E102", "masked"),
        (FLOATS, Stubborn(), "E102", "move it to host memory first"),
        (FLOATS, np.zeros(1, F32), "E103", "[0.] (float32, shape (1,))"),
        (FLOATS, np.zeros((2, 1), F32), "E103", "shape (2, 1)"),
        (FLOATS, np.float32(1), "E103", "1. (float32, shape ())"),
        (FLOATS, 1.0, "E103", "1.0 (float)"),
        (FLOATS, [1.0, 2.0, 3.0], "E103", "[1.0, 2.0, 3.0] (list)"),
        (FLOATS, [[1.0], [2.0, 3.0]], "E103", "nested parts of unequal length"),
        (FLOATS, [], "E103", "[] (list)"),
        (FLOATS, np.array([0, np.nan], F32), "E104", "nan in [ 0., nan] (float32, shape (2,))"),
        (FLOATS, np.array([0, np.inf], F32), "E104", "inf in"),
        (FLOATS, [0.0, 1e300], "E104", "inf in [0.0, 1e+300] (list)"),
        (gs.Box(-INF, INF, (2,)), np.array([0, -np.inf], F32), "E104", "-inf in"),
        (BYTES, np.zeros(2), "E102", "float64"),
        (BYTES, [1, 300], "E101", "which uint8 cannot hold"),
        (BYTES, [1, -1], "E101", "which uint8 cannot hold"),
        (gs.Box(0, 1, (2,), np.bool_), [0, 2], "E101", "which bool cannot hold"),
        (gs.Box(-9, 9, (2,), np.int64), [2**70, 1], "E102", "1180591620717411303424"),
        (gs.Discrete(3), 1.0, "E102", "1.0 (float)"),
        (gs.Discrete(3), np.float32(1), "E102", "float32, shape ()"),
        (gs.Discrete(3), "1", "E102", "'1' (str)"),
        (gs.Discrete(3), None, "E102", "None"),
        (gs.Discrete(3), [1], "E103", "[1] (list)"),
        (gs.Discrete(3), np.array([1]), "E103", "shape (1,)"),
        (gs.Discrete(3), 3, "E101", "3 in 3 (int)"),
        (gs.Discrete(3), -1, "E101", "-1 in -1 (int)"),
        (gs.Discrete(3, start=5), 4, "E101", "4 in 4 (int)"),
        (gs.Discrete(3), 2**70, "E102", "1180591620717411303424 (int)"),
        (gs.Discrete(2, start=1), False, "E101", "0 in False (bool)"),
        (gs.MultiDiscrete([3, 3]), np.array([0.0, 1.0]), "E102", "float64"),
        (gs.MultiDiscrete([3, 3]), np.array([0, 3]), "E101", "3 in [0, 3] (int64, shape (2,))"),
        (gs.MultiDiscrete([3, 3]), np.array([0]), "E103", "shape (1,)"),
        (gs.MultiBinary(2), np.array([0, 2], np.int8), "E101", "2 in [0, 2]"),
        (gs.MultiBinary(2), np.array([0.0, 1.0]), "E102", "float64"),
        (gs.Tuple([gs.Discrete(3)]), (1, 2), "E105", "2 parts: (1, 2) (tuple)"),
        (gs.Tuple([gs.Discrete(3)]), "1", "E102", "'1' (str)"),
        (gs.Tuple([gs.Discrete(3)]), {0: 1}, "E102", "{0: 1} (dict)"),
        (gs.Dict(a=gs.Discrete(3)), {}, "E105", "missing 'a'"),
        (gs.Dict(a=gs.Discrete(3)), {"a": 1, "b": 2, 3: 4}, "E105", "unknown 'b', 3"),
        (gs.Dict(a=gs.Discrete(3)), {"b": 2}, "E105", "missing 'a' and unknown 'b'"),
        (gs.Dict(a=gs.Discrete(3)), [1], "E102", "[1] (list)"),
        (gs.OneOf([gs.Discrete(3)]), 0, "E102", "0 (int)"),
        (gs.OneOf([gs.Discrete(3)]), (0,), "E105", "1 parts: (0,) (tuple)"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_refused(space, value, code, got):
    bad = bad_leaf(space, value)
    assert (bad.code, bad.row) == (code, 0)
    assert bad.leaf.startswith("obs")
    assert got in bad.got
    assert str(bad).startswith(code)
    assert bad.expected in str(bad)


@pytest.mark.parametrize(
    "value",
    [np.zeros(1, F32), np.array(0, F32), np.array(["0", "0"]), ["0", "0"], 0.0, None, np.zeros((1, 2))],
)
def test_the_bad_row_is_found_among_good_ones(value):
    good = np.zeros(2, F32)
    for before in ([good], [good, [0, 0]], [good, np.zeros(2)]):
        bad = bad_leaf(FLOATS, value, before)
        assert bad.row == len(before)
        assert bad.expected == "float32 of shape (2,)"


def test_shapes_of_equal_size_are_not_mixed_up():
    space = gs.Box(-1, 1, (4, 3, 2))
    assert bad_leaf(space, np.zeros((4, 2, 3), F32)).code == "E103"
    assert bad_leaf(space, np.zeros((4, 2, 3), F32), [np.zeros((4, 3, 2), F32)]).row == 1
    with pytest.raises(BadLeaf, match="E103"):
        spaces.collect(spaces.spec_of(gs.Box(-1, 1, (4,))), [np.zeros(3, F32), np.zeros(5, F32)])
    with pytest.raises(BadLeaf, match="E103"):
        spaces.collect(spaces.spec_of(gs.Box(-1, 1, (4,))), [np.zeros(4, F32), np.zeros(5, F32)])
    with pytest.raises(BadLeaf, match=r"E103.* of row 1"):
        spaces.collect(spaces.spec_of(gs.Box(-1, 1, (4,))), [np.zeros(size, F32) for size in (4, 3, 5)])


@pytest.mark.parametrize(
    ("space", "value", "leaf"),
    [
        (FLOATS, np.array([0, np.nan], F32), "obs[1]"),
        (gs.Box(-1, 1, (2, 2)), np.array([[0, 0], [np.nan, 0]], F32), "obs[1, 0]"),
        (gs.Box(-1, 1, ()), np.array(np.nan, F32), "obs"),
        (gs.Dict(cars=gs.Tuple([FLOATS, FLOATS])), {"cars": (np.zeros(2, F32), None)}, 'obs["cars"][1]'),
        (gs.MultiDiscrete([[3, 3]]), np.array([[0, 3]]), "obs[0, 1]"),
        (gs.OneOf([gs.Discrete(3), FLOATS]), (2, 0), "obs[0]"),
        (gs.OneOf([gs.Discrete(3), FLOATS]), (1, np.array([np.inf, 0], F32)), "obs[1][0]"),
        (gs.OneOf([gs.Discrete(3), FLOATS]), (0, 3), "obs[1]"),
    ],
    ids=str,
)
def test_the_leaf_reads_like_python(space, value, leaf):
    assert bad_leaf(space, value).leaf == leaf


def test_bad_items_of_a_sequence_name_row_and_place():
    space = gs.Sequence(gs.Dict(v=FLOATS))
    item = {"v": np.zeros(2, F32)}
    bad = bad_leaf(space, (item, {"v": np.array([0, np.nan], F32)}), [(item,), ()], max_sequence_length=3)
    assert (bad.code, bad.row, bad.leaf) == ("E104", 2, 'obs[1]["v"][1]')
    long = bad_leaf(space, (item,) * 4, [(item,)], max_sequence_length=3)
    assert (long.code, long.row, long.expected) == ("E103", 1, "at most 3 items")
    assert bad_leaf(space, "abc", max_sequence_length=3).code == "E102"


@pytest.mark.parametrize(
    ("value", "code", "leaf"),
    [
        ({"a": np.zeros((2, 2), F32), "b": np.zeros(1, np.int64)}, "E103", "obs"),
        ({"a": np.zeros((2, 2), F32)}, "E105", "obs"),
        ({"a": np.zeros((2, 2), F32), "b": 1}, "E102", 'obs["b"]'),
        ((1, 2), "E102", "obs"),
        ({"a": np.zeros((2, 2), F32), "b": np.array([0, 9])}, "E101", 'obs[1]["b"]'),
    ],
)
def test_bad_stacked_sequences(value, code, leaf):
    space = sequence_of(gs.Dict(a=FLOATS, b=gs.Discrete(3)), stack=True)
    bad = bad_leaf(space, value)
    assert (bad.code, bad.leaf) == (code, leaf)


def test_the_passed_bound_is_expected():
    space = gs.Discrete(3, start=5)
    assert bad_leaf(space, 4).expected == "at least 5 (an integer from 5 to 7)"
    assert bad_leaf(space, 8).expected == "at most 7 (an integer from 5 to 7)"


def test_long_values_are_shortened_in_messages():
    bad = bad_leaf(FLOATS, np.zeros(5000, F32))
    assert len(bad.got) < 130
    assert bad.got.endswith("(float32, shape (5000,))")
    assert len(bad_leaf(FLOATS, "x" * 5000).got) < 130


# Bounds -------------------------------------------------------------------------------------------------


def test_outside_names_the_first_and_counts_rows():
    spec = spaces.spec_of(gs.Dict(a=gs.Box(-1, 2, (2,)), b=gs.Discrete(3)))
    a = np.array([[0, 0], [0, 3], [-5, 9]], F32)
    column = {"a": a, "b": np.zeros(3, np.int64)}
    assert spaces.outside(spec, column) == [Outside('obs["a"][1]', 1, 3.0, 2.0, 2)]
    assert spaces.clip(spec, column)["a"].tolist() == [[0, 0], [0, 2], [-1, 2]]
    assert a.tolist() == [[0, 0], [0, 3], [-5, 9]]
    assert not spaces.contains(spec, {"a": a[1], "b": 0})
    assert spaces.contains(spec, {"a": a[0], "b": 0})


def test_bounds_may_differ_by_element_and_be_missing():
    low, high = np.array([-1, -np.inf], F32), np.array([np.inf, 4], F32)
    spec = spaces.spec_of(gs.Box(low, high))
    column = np.array([[1e30, -1e30], [-2, 5]], F32)
    assert spaces.outside(spec, column) == [Outside("obs[0]", 1, -2.0, -1.0, 1)]
    assert spaces.clip(spec, column)[1].tolist() == [-1, 4]


@pytest.mark.parametrize(
    ("space", "column", "expected"),
    [
        (gs.Box(0, 9, (1,), np.uint8), np.array([[3], [10]], np.uint8), [Outside("obs[0]", 1, 10, 9, 1)]),
        (gs.Box(-3, 9, (), np.int64), np.array([-4, 3]), [Outside("obs", 0, -4, -3, 1)]),
        (gs.Box(-3, 9, (1,), np.float64), np.array([[9.5]]), [Outside("obs[0]", 0, 9.5, 9.0, 1)]),
        (gs.Box(0, 0, (1,), np.bool_), np.array([[True]]), [Outside("obs[0]", 0, True, False, 1)]),
        (gs.Box(0, 255, (1,), np.uint8), np.array([[255]], np.uint8), []),
        (gs.Box(-INF, INF, (1,)), np.array([[1e38]], F32), []),
    ],
)
def test_bounds_of_every_dtype(space, column, expected):
    spec = spaces.spec_of(space)
    assert spaces.outside(spec, column) == expected
    assert spaces.outside(spec, spaces.clip(spec, column)) == []


@pytest.mark.parametrize(
    ("space", "bounded"),
    [
        (gs.Box(-INF, INF, (2,)), False),
        (gs.Box(0, 255, (2,), np.uint8), False),
        (gs.Box(0, 254, (2,), np.uint8), True),
        (gs.Box(0, 1, (2,), np.bool_), False),
        (gs.Box(np.finfo(F32).min, np.finfo(F32).max, (2,)), False),
        (gs.Box(-INF, 1, (2,)), True),
    ],
)
def test_only_bounds_that_can_be_passed_are_compared(space, bounded):
    assert (spaces.spec_of(space).limits is not None) == bounded


def test_padding_and_unchosen_parts_are_not_outside():
    positive = gs.Box(1, 2, (1,))
    sequence = spaces.spec_of(gs.Sequence(positive), max_sequence_length=3)
    item, far = np.array([1.5], F32), np.array([7], F32)
    column = spaces.collect(sequence, [(item,), (item, far)])
    assert spaces.outside(sequence, column) == [Outside("obs[1][0]", 1, 7.0, 2.0, 1)]
    clipped = spaces.clip(sequence, column)
    assert clipped["items"][..., 0].tolist() == [[1.5, 0, 0], [1.5, 2, 0]]
    choice = spaces.spec_of(gs.OneOf([gs.Discrete(2), positive]))
    column = spaces.collect(choice, [(0, 1), (1, far)])
    assert spaces.outside(choice, column) == [Outside("obs[1][0]", 1, 7.0, 2.0, 1)]
    assert spaces.clip(choice, column)["values"][1].tolist() == [[0], [2]]
    both = spaces.spec_of(gs.Tuple([positive, positive]))
    column = spaces.collect(both, [(item, far)])
    assert [bad.leaf for bad in spaces.outside(both, column)] == ["obs[1][0]"]
    assert spaces.clip(both, column)[1].tolist() == [[2]]


# Recognition --------------------------------------------------------------------------------------------


def space_class(name: str, base: type = object) -> Any:
    """A class of another package, known by its name alone."""

    def initialize(self, **attributes):
        self.__dict__.update(attributes)

    return type(name, (base,), {"__init__": initialize, "__module__": "gym.spaces"})


gym = types.SimpleNamespace(
    **{
        name: space_class(name)
        for name in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple")
    }
)


def test_spaces_of_the_old_package_convert_too():
    low, high = np.full(2, -1, F32), np.full(2, 1, F32)
    old = gym.Dict(
        spaces={
            "a": gym.Box(shape=(2,), dtype=np.dtype(F32), low=low, high=high),
            "b": gym.Tuple(spaces=[gym.Discrete(n=3), gym.MultiBinary(n=4)]),
            "c": gym.MultiDiscrete(nvec=np.array([2, 3])),
            "d": space_class("Corridor", gym.Discrete)(n=5, start=2),
        }
    )
    new = gs.Dict(
        a=gs.Box(low, high),
        b=gs.Tuple([gs.Discrete(3), gs.MultiBinary(4)]),
        c=gs.MultiDiscrete([2, 3]),
        d=gs.Discrete(5, start=2),
    )
    assert spaces.spec_of(old) == spaces.spec_of(new)


def test_a_spec_is_returned_as_it_is():
    spec = spaces.spec_of(gs.Discrete(3))
    assert spaces.spec_of(spec) is spec


def test_the_length_of_a_sequence():
    space = gs.Sequence(gs.Discrete(3))
    assert spaces.spec_of(space, max_sequence_length=7).maximum == 7
    space.max_length = 5
    assert spaces.spec_of(space, max_sequence_length=7).maximum == 5
    outer = sequence_of(gs.Dict(a=gs.Sequence(gs.Discrete(3))), stack=False)
    assert spaces.spec_of(outer, max_sequence_length=7).item.items[0][1].maximum == 7


def crossed():
    box = gs.Box(0, 1, (2,))
    box.low, box.high = box.high, box.low
    return box


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gs.Text(5), "action: Text spaces are not supported.*encode it in the env"),
        (gs.Graph(gs.Discrete(2), None), "action: Graph spaces are not supported.*Sequence of Box"),
        (gs.Dict(a=gs.Tuple([gs.Text(5)])), r"action\['a'\]\[0\]: Text"),
        (gs.Sequence(gs.Discrete(3)), "action: a Sequence needs a longest length.*max_sequence_length"),
        (gs.Tuple([gs.Sequence(gs.Discrete(3))]), r"action\[0\]: a Sequence needs"),
        (None, "action space is None: set it on the env"),
        (gs.Discrete, r"action space is the class Discrete: give an instance, Discrete\(...\)"),
        (7, "action space is int, which is not known: use one of Box, Discrete"),
        (collections.UserList(), "action space is UserList, which is not known"),
        ([gs.Discrete(2)], "action space is list, which is not known"),
        (gym.Box(shape=(2,)), "action: Box space has no attribute 'dtype'"),
        (gym.Discrete(n=0), r"action: Discrete\(0\) holds no value"),
        (gym.Discrete(n="many"), "action: invalid literal"),
        (gym.Discrete(n=2**70), "action: .*int"),
        (gym.Tuple(spaces=3), "action: .spaces must be the spaces of its parts, got 3"),
        (gym.Tuple(spaces=()), "action: an empty Tuple holds no values"),
        (gym.Dict(spaces=3), "action: .spaces of a Dict must be a dict"),
        (gym.Dict(spaces={}), "action: an empty Dict holds no values"),
        (gs.Dict({1: gs.Discrete(2)}), "action: key 1 of a Dict is int: use text keys"),
        (crossed(), "action: a lower bound .* lies above its upper bound"),
        (gym.Box(shape=(2,), dtype="f4", low=np.nan, high=1), "action: bounds of .* hold NaN; use -inf"),
        (gym.Box(shape=(2,), dtype="f4", low="a", high=1), "action: bounds of .* must be numbers, got <U1"),
        (
            gym.Box(shape=(2,), dtype="f4", low=np.zeros(3), high=1),
            "action: bounds of Box.2,. float32 cannot",
        ),
        (gym.Box(shape=(2,), dtype="c8", low=0, high=1), "action: Box of dtype complex64: use a float"),
        (
            gym.MultiDiscrete(nvec=[2, 0]),
            r"action: MultiDiscrete needs integers of at least 1, got nvec=\[2, 0\]",
        ),
        (
            gym.MultiDiscrete(nvec=[2, 2], start=[1]),
            "action: MultiDiscrete start must be integers of the shape",
        ),
        (gym.MultiDiscrete(nvec=[2, 2], dtype="f4"), "action: MultiDiscrete of dtype float32"),
        (space_class("OneOf")(spaces=()), "action: an empty OneOf"),
        (
            space_class("Sequence")(feature_space=gs.Discrete(2), max_length=0),
            "action: longest length of a Seq",
        ),
    ],
    ids=lambda value: re.sub(" object at 0x[0-9a-f]*", "", str(value))[:40],
)
def test_spaces_that_cannot_be_handled_say_why(space, message):
    with pytest.raises(SpaceError, match=message):
        spaces.spec_of(space, name="action")


def test_integer_boxes_may_be_unbounded():
    spec = spaces.spec_of(gym.Box(shape=(2,), dtype="i4", low=-np.inf, high=np.array([np.inf, 7.0])))
    assert spec.low.tolist() == [-(2**31), -(2**31)]
    assert spec.high.tolist() == [2**31 - 1, 7]


def test_specs_cannot_be_changed():
    spec = spaces.spec_of(gs.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match="read-only"):
        spec.low[0] = 5
    with pytest.raises(AttributeError):
        spec.shape = (3,)
    assert spec != spaces.spec_of(gs.Box(-1, 2, (2,)))
    assert spec != spaces.spec_of(gs.Discrete(2))
    assert spaces.spec_of(gs.MultiDiscrete([2, 3])) != spaces.spec_of(gs.MultiDiscrete([3, 2]))
    assert spaces.spec_of(gs.MultiDiscrete([2, 3])) != spaces.spec_of(gs.MultiDiscrete([2, 3], start=[0, 1]))


def test_specs_travel_between_processes():
    spec = spaces.spec_of(
        gs.Dict(a=gs.Box(-1, 1, (2,)), b=gs.MultiDiscrete([2, 3]), c=gs.Discrete(2, start=3))
    )
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert spaces.outside(again.items[0][1], np.array([[0, 2]], F32)) == [Outside("obs[1]", 0, 2.0, 1.0, 1)]
    assert spaces.collect(again.items[2][1], [4]).tolist() == [4]


def test_a_spec_does_not_follow_later_changes_of_its_space():
    low = np.array([-1, -2], F32)
    spec = spaces.BoxSpec((2,), np.dtype(F32), low, np.ones(2, F32))
    low[0] = 0.5
    assert spec.low.tolist() == [-1, -2]


# Descriptions -------------------------------------------------------------------------------------------


def test_descriptions_are_compact():
    assert spaces.describe(spaces.spec_of(gs.Box(0, INF, (84, 84)))) == {
        "kind": "Box",
        "shape": [84, 84],
        "dtype": "float32",
        "low": 0.0,
        "high": "inf",
    }
    low = np.array([0, -np.inf], F32)
    assert spaces.describe(spaces.spec_of(gs.Box(low, low + 1)))["low"] == [0.0, "-inf"]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "no description of a space"),
        ({"kind": "Text"}, "got 'Text'"),
        ({"kind": []}, r"got \[\]"),
        ({"kind": "Discrete", "n": 3}, "description of a Discrete space lacks 'start'"),
        ({"kind": "Discrete", "n": "x", "start": 0}, "description of a Discrete space is damaged"),
        ({"kind": "Discrete", "n": 0, "start": 0}, "holds no value"),
        ({"kind": "Box", "shape": [2], "dtype": "f4", "low": [1, 2, 3], "high": 9}, "Box space is damaged"),
        ({"kind": "Box", "shape": [2], "dtype": "nope", "low": 1, "high": 9}, "Box space is damaged"),
        ({"kind": "Tuple", "items": [{"kind": "Discrete"}]}, "Discrete space lacks 'n'"),
        ({"kind": "Dict", "items": [1]}, "Dict space is damaged"),
    ],
)
def test_damaged_descriptions(description, message):
    with pytest.raises(SpaceError, match=message):
        spaces.from_description(description)


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (gs.Box(-1, 1, (4,)), "Box(4,) float32"),
        (gs.Box(-1, 1, ()), "Box() float32"),
        (gs.Discrete(2), "Discrete(2)"),
        (gs.Discrete(2, start=-1), "Discrete(2, start=-1)"),
        (gs.MultiDiscrete([2, 3]), "MultiDiscrete([2, 3])"),
        (gs.MultiDiscrete([2, 3], start=[1, 0]), "MultiDiscrete([2, 3], start=[1, 0])"),
        (gs.MultiBinary([2, 3]), "MultiBinary(2, 3)"),
        (gs.Dict(b=gs.Discrete(2), a=gs.Box(-1, 1, (4,))), "Dict(a: Box(4,) float32, b: Discrete(2))"),
        (gs.Tuple([gs.Discrete(2), gs.Discrete(3)]), "Tuple(Discrete(2), Discrete(3))"),
        (sequence_of(gs.Discrete(2), stack=False), "Sequence(Discrete(2), at most 64)"),
        (gs.OneOf([gs.Discrete(2), gs.Discrete(3)]), "OneOf(Discrete(2), Discrete(3))"),
    ],
    ids=str,
)
def test_summary(space, text):
    assert spaces.summary(spaces.spec_of(space)) == text


# Trees --------------------------------------------------------------------------------------------------


def test_map_leaves_matches_dicts_by_key():
    one = {"a": np.array([1, 2]), "b": (np.array([3]),)}
    other = {"b": (np.array([30]),), "a": np.array([10, 20])}
    summed = spaces.map_leaves(np.add, one, other)
    assert summed["a"].tolist() == [11, 22]
    assert summed["b"][0].tolist() == [33]
    assert list(summed) == ["a", "b"]


def test_take_one_row_of_a_single_array():
    column = np.arange(6).reshape(3, 2)
    assert spaces.take(column, 1).tolist() == [2, 3]
    spaces.put(column, 0, np.array([9, 9]))
    assert column[0].tolist() == [9, 9]


def test_tuples_come_back_out_of_lists():
    leaf = np.zeros(2)
    assert spaces.tupled({"a": [leaf, [leaf]], "b": leaf}) == {"a": (leaf, (leaf,)), "b": leaf}


def test_only_boxes_of_64_bit_integers_are_narrowed():
    big = np.array([[2**40 + 1], [-(2**33)]])
    box = spaces.BoxSpec((1,), np.dtype(np.int64), -(2**62), 2**62)
    small = spaces.BoxSpec((1,), np.dtype(np.int32), -5, 5)
    spec = spaces.DictSpec((("t", box), ("d", spaces.DiscreteSpec(3, 0)), ("s", small)))
    column = {"d": np.array([1, 2]), "s": np.array([[1], [2]], np.int32), "t": big}
    narrow = spaces.narrowed(spec, column)
    assert {name: leaf.dtype.name for name, leaf in narrow.items()} == {
        "d": "int64",
        "s": "int32",
        "t": "float32",
    }
    np.testing.assert_array_equal(narrow["t"], big.astype(np.float32))
    assert [spaces.is_wide(part) for part in (spec, box, small)] == [True, True, False]
    nested = spaces.TupleSpec((spaces.SequenceSpec(box, 2), spaces.OneOfSpec((small, box))))
    filled = spaces.narrowed(nested, spaces.zeros(nested, 2))
    assert filled[0]["items"].dtype == filled[1]["values"][1].dtype == np.float32
    assert filled[0]["length"].dtype == np.int64


def test_gymnasium_is_not_imported():
    code = "import sys, steppe.spaces; print(sorted({'gymnasium', 'gym', 'jax'} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert found.stdout.strip() == "[]"
