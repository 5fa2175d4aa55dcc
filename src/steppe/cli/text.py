"""What people type, as values: counts, durations, and the values of settings."""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from typing import Any, Literal, final

import click

from steppe.config import FieldSpec

_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*)(?:\.\d*)?(?:e[+-]?\d+)?)([kmb]?)", re.IGNORECASE)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.IGNORECASE)


def number(text: str) -> int | float | None:
    """``"200_000"``, ``"1e6"``, ``"2M"``, ``"-0.5"`` as a number, whole ones as int; None for other text."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    digits, suffix = match[1].replace("_", ""), match[2].lower()
    value = int(digits) if digits.lstrip("+-").isdigit() else float(digits)
    value *= _MULTIPLES[suffix]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def duration(text: str) -> float | None:
    """``"10m"``, ``"1h30m"``, ``"45"`` (seconds) as seconds; None for other text."""
    parts = _SPAN.findall(text.strip())
    if not parts or "".join(a + b for a, b in parts) != text.strip():
        return None
    return sum(float(amount) * _SECONDS[unit.lower()] for amount, unit in parts)


def literal(text: str) -> Any:
    """A JSON or TOML value (``5``, ``true``, ``[1, 2]``, ``null``, ``{a = 1}``), else the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        pass
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["value"]
    plain = isinstance(value, bool | int | float | str | list | dict)  # dates stay text
    return value if plain and len(table) == 1 else text


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def field_value(hint: Any, text: str) -> Any:
    """``text`` as a value for a field annotated ``hint``; the config checks whether it is legal."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if union else (hint,)
    if str in members or any(text in typing.get_args(m) for m in members if typing.get_origin(m) is Literal):
        return text
    numeric = int in members or float in members
    if numeric and (value := number(text)) is not None:
        return value
    is_list = any(typing.get_origin(m) is list for m in members)
    if is_list and not numeric and not text.startswith("[") and text.lower() != "none":
        return [literal(item.strip()) for item in text.split(",")]
    return literal(text)


@final
class FieldText(click.ParamType):
    """Text of a config field; the config says what is wrong with it."""

    name = "value"

    def __init__(self, spec: FieldSpec) -> None:
        self._spec = spec

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text as a value for the field."""
        return field_value(self._spec.hint, value) if isinstance(value, str) else value


@final
class Count(click.ParamType):
    """A whole number above 0, also as ``1e6``, ``200_000`` or ``2M``."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text as a count."""
        result = number(value) if isinstance(value, str) else value
        if not isinstance(result, int) or result < 1:
            self.fail(f"{value!r} is not a count such as 200_000, 1e6 or 2M", param, ctx)
        return result


@final
class Duration(click.ParamType):
    """Seconds, or a time such as ``45s``, ``10m`` or ``1h30m``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Text as seconds."""
        result = duration(value) if isinstance(value, str) else value
        if result is None:
            self.fail(f"{value!r} is not a time such as 45s, 10m or 1h30m", param, ctx)
        return float(result)


@final
class KeyValue(click.ParamType):
    """``key=value`` with a JSON or TOML value; other values are text."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Text as a pair."""
        if isinstance(value, tuple):
            return value[0], value[1]
        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r} is not key=value", param, ctx)
        return key.strip(), literal(text)
