"""Copies of dicts and lists share nothing that can change, and frozen ones do not change."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.containers import copied, frozen
from steppe.errors import ConfigError

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(SCALARS, inner, max_size=3)
    ),
    max_leaves=10,
)


def parts(value):
    """Every dict and list in a value, itself included."""
    if isinstance(value, dict | list):
        yield value
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from parts(item)


@given(NESTED)
def test_a_copy_is_equal_and_shares_no_dict_or_list(value):
    for source in (value, frozen(value)):
        own = copied(source)
        assert own == value
        assert {type(part) for part in parts(own)} <= {dict, list}
        assert not {id(part) for part in parts(own)} & {id(part) for part in parts(source)}


@given(NESTED)
def test_a_frozen_value_is_equal_and_nothing_in_it_changes(value):
    fixed = frozen(value)
    assert fixed == value
    for part in parts(fixed):
        for change in (part.clear, lambda part=part: part.__setitem__(0, 1), lambda part=part: part.pop()):
            with pytest.raises(ConfigError, match="no longer changes"):
                change()
    for thawed in (copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed))):
        assert thawed == value
        assert {type(part) for part in parts(thawed)} <= {dict, list}


def test_other_objects_are_shared():
    class Table(dict):
        pass

    array, table, names = np.zeros(3), Table(a=[1]), {"x"}
    own = copied({"array": array, "table": table, "names": names})
    assert own["array"] is array
    assert own["table"] is table
    assert own["names"] == names
    assert own["names"] is not names
