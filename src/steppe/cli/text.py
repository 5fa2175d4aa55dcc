"""What people type, as values: counts, durations, and the values of settings."""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from typing import Any, Literal

import click

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
    if bool in members and text.lower() in ("true", "false"):  # Python writes it with a capital
        return text.lower() == "true"
    if str in members or any(text in typing.get_args(m) for m in members if typing.get_origin(m) is Literal):
        return text
    numeric = int in members or float in members
    if numeric and (value := number(text)) is not None:
        return value
    is_list = any(typing.get_origin(m) is list for m in members)
    if is_list and not numeric and not text.startswith("[") and text.lower() != "none":
        return [literal(item.strip()) for item in text.split(",")]
    return literal(text)


def count(text: str) -> int:
    """A whole number above 0, also as ``1e6``, ``200_000`` or ``2M``."""
    value = number(text)
    if not isinstance(value, int) or value < 1:
        raise click.BadParameter(f"{text!r} is not a count such as 200_000, 1e6 or 2M")
    return value


def duration(text: str) -> float:
    """Seconds of ``45s``, ``10m``, ``1h30m`` or plain ``90``."""
    parts = _SPAN.findall(text.strip())
    if not parts or "".join(amount + unit for amount, unit in parts) != text.strip():
        raise click.BadParameter(f"{text!r} is not a time such as 45s, 10m or 1h30m")
    return sum(float(amount) * _SECONDS[unit.lower()] for amount, unit in parts)


def key_value(text: str) -> tuple[str, Any]:
    """``key=value`` with a JSON or TOML value; other values are text."""
    key, value = key_and_text(text)
    return key, literal(value)


def key_and_text(text: str) -> tuple[str, str]:
    """``key=value`` whose value is yet to be read."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise click.BadParameter(f"{text!r} is not key=value")
    return key.strip(), value
