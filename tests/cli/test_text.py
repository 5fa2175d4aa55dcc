"""What people type becomes the value that they mean, and nothing else."""

from typing import Any, Literal

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.cli.text import count, duration, field_value, key_value, literal, number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200_000", 200_000),
        ("1e6", 1_000_000),
        ("2M", 2_000_000),
        ("1.5k", 1500),
        ("3b", 3 * 10**9),
        ("9223372036854775807", 9223372036854775807),
        ("-0.5", -0.5),
        ("3e-4", 3e-4),
        ("1.25", 1.25),
    ],
)
def test_numbers(text, value):
    assert number(text) == value
    assert type(number(text)) is type(value)


@pytest.mark.parametrize("text", ["", "M", "1 2", "abc", "1e", "--1", "0x10", "1,5", "None", "inf"])
def test_other_text_is_no_number(text):
    assert number(text) is None


@given(st.integers(1, 10**15))
def test_any_count_comes_back(n):
    assert count(str(n)) == n
    assert count(f"{n:_}") == n


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "many", "1e-3"])
def test_counts_are_whole_and_above_0(text):
    with pytest.raises(click.BadParameter, match="is not a count"):
        count(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10x", "10m!", "1h 30m", "-5s"])
def test_other_text_is_no_duration(text):
    with pytest.raises(click.BadParameter, match="is not a time"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1_000", 1000),
        ("true", True),
        ("null", None),
        ("[1, 2.5]", [1, 2.5]),
        ('{"a": 1}', {"a": 1}),
        ("{a = 1}", {"a": 1}),
        ("'quoted'", "quoted"),
        ("plain", "plain"),
        ("maps/big.txt", "maps/big.txt"),
        ("2020-01-01", "2020-01-01"),
        ("1\nother = 2", "1\nother = 2"),
        ("", ""),
    ],
)
def test_literals(text, value):
    assert literal(text) == value


def test_key_value():
    assert key_value("length=5") == ("length", 5)
    assert key_value("rule=a=b") == ("rule", "a=b")
    for text in ("length", "=5"):
        with pytest.raises(click.BadParameter, match="is not key=value"):
            key_value(text)


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "2M", 2_000_000),
        (float, "3e-4", 3e-4),
        (float | None, "none", "none"),
        (int | Literal["auto"], "auto", "auto"),
        (int | Literal["auto"], "128", 128),
        (str | None, "7", "7"),
        (Literal["running", "none"], "none", "none"),
        (list[int], "64", [64]),
        (list[int], "64,32", [64, 32]),
        (list[int], "[64, 32]", [64, 32]),
        (list[list[int]] | None, "[[16, 8, 4]]", [[16, 8, 4]]),
        (list[list[int]] | None, "none", "none"),
        (float | list[list[float]], "[[0, 1e-3], [1e6, 0]]", [[0, 1e-3], [1e6, 0]]),
        (float | list[list[float]], "fast", "fast"),
        (Any, "[1]", [1]),
        (bool, "False", False),
        (bool, "true", True),
        (bool, "no", "no"),
        (str | None, "True", "True"),
    ],
)
def test_values_of_fields(hint, text, value):
    assert field_value(hint, text) == value
