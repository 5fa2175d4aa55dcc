"""Values of settings: brought to their annotated type, compared, shown, and written as plain data."""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class MismatchError(Exception):
    """A value is not of the annotated type."""


def coerced(hint: Any, value: Any) -> Any:
    """``value`` as ``hint`` stores it: arrays and tuples as lists, whole floats as ints."""
    if hint is Any:
        return value
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        value = tolist()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(args, value)
    if origin is Literal:
        return _literal(args, value)
    if origin is list and isinstance(value, list | tuple):
        return [coerced(args[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        return {coerced(args[0], key): coerced(args[1], item) for key, item in value.items()}
    return _scalar(hint, value)


def _union(members: tuple[Any, ...], value: Any) -> Any:
    for member in members:
        try:
            return coerced(member, value)
        except MismatchError:
            continue
    if types.NoneType in members and isinstance(value, str) and value.lower() == "none":
        return None  # how TOML and a command line write it
    raise MismatchError


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise MismatchError


def _scalar(hint: Any, value: Any) -> Any:
    if hint is types.NoneType and value is None:
        return None
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(hint, value)
    raise MismatchError


def _number(hint: type[int] | type[float], value: float) -> float:
    if hint is int:
        if not isinstance(value, int) and not value.is_integer():
            raise MismatchError
        return int(value)
    if math.isnan(value):
        raise MismatchError
    return float(value)


def words(hint: Any) -> str:
    """A type as a reader says it; None in a union is left out."""
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(arg) for arg in args if arg is not types.NoneType)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is list:
        return "a list of " + words(args[0]).removeprefix("a ").replace("number", "numbers")
    return names.get(hint, "a dict" if origin is dict else "anything")


def same(a: Any, b: Any) -> bool:
    """Equal values of one type, arrays inside them included."""
    if a is b:
        return True
    try:
        return (isinstance(a, type(b)) or isinstance(b, type(a))) and bool(a == b)
    except ValueError:  # arrays somewhere inside
        return bool(plain(a) == plain(b))


def is_plain(value: Any) -> bool:
    """Whether JSON holds the value, so that no code is needed to have it back."""
    if isinstance(value, Mapping):
        return has_text_keys(value) and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str) or hasattr(value, "tolist")


def has_text_keys(value: Any) -> bool:
    """Whether all keys of dicts in it are text, so that JSON and TOML give them back as they were."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(has_text_keys, value.values()))
    return not isinstance(value, list | tuple) or all(map(has_text_keys, value))


def named(value: Any) -> Any:
    """Code as its name; everything else as it is."""
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


def plain(value: Any) -> Any:
    """``value`` as JSON has it; code and foreign objects as their names."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        value = tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return getattr(value, "__name__", type(value).__name__)


def without_none(value: Any) -> Any:
    """Plain data without None: keys left out, list items written "none"."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return ["none" if item is None else without_none(item) for item in value]
    return value


def short(value: Any) -> str:
    """``repr`` of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
