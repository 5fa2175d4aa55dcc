"""The emitter against the standard library's reader: what is written reads back equal."""

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.tracking.toml import dumps

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=8
)


def typed(value):
    """With types spelt out, for to Python True, 1 and 1.0 are equal."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    return [typed(v) for v in value] if isinstance(value, list) else (type(value), value)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_round_trip(table):
    assert typed(tomllib.loads(dumps(table))) == typed(table)


def test_text_as_it_is_written():
    table = {
        "b": {"c": {"d": 1}, "e": [1, "x"]},
        "lr": 1e-05,
        "gone": None,
        "none": {},
        "odd key.": 'a"b\\\n\x7fé',
        "mixed": [{"a": 1, "gone": None}, (True, 2.0)],
    }
    assert dumps(table) == (
        "lr = 1e-05\n"
        '"odd key." = "a\\"b\\\\\\n\\u007fé"\n'
        "mixed = [{a = 1}, [true, 2.0]]\n"
        "\n[b]\n"
        'e = [1, "x"]\n'
        "\n[b.c]\n"
        "d = 1\n"
        "\n[none]\n"
    )


def test_numbers_of_numpy_and_those_without_end():
    table = {
        "a": np.float32(0.5),
        "b": np.arange(3),
        "c": np.bool_(True),
        "d": math.inf,
        "e": -math.inf,
        "f": math.nan,
    }
    back = tomllib.loads(dumps(table))
    assert math.isnan(back.pop("f"))
    assert back == {"a": 0.5, "b": [0, 1, 2], "c": True, "d": math.inf, "e": -math.inf}


def test_half_a_character_is_replaced():
    assert tomllib.loads(dumps({"a": "x\ud800y"})) == {"a": "x?y"}


@pytest.mark.parametrize(
    ("table", "place"),
    [({"a": {"b": Path("x")}}, "a.b is of type .*Path"), ({"a": [1, [None]]}, "a.1.0 is of type NoneType")],
)
def test_what_toml_cannot_hold_is_named(table, place):
    with pytest.raises(TypeError, match=place):
        dumps(table)
