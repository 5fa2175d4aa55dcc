"""Plain values as TOML 1.0; the standard library reads it and does not write it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(table: Mapping[str, Any]) -> str:
    """TOML text that ``tomllib.loads`` turns into an equal dict.

    Holds text, bool, int, float, numpy scalars and arrays (as numbers and lists), lists, tuples (as lists)
    and dicts. TOML has no null: a key whose value is None is left out.

    Raises:
        TypeError: another kind of value, or None inside a list; the message names its place.
    """
    lines: list[str] = []
    _table(table, (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    if path:
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    entries = [(str(key), value) for key, value in table.items() if value is not None]
    # What stands below a [header] belongs to it, so plain values go before the tables.
    lines += [f"{_key(k)} = {_value(v, (*path, k))}" for k, v in entries if not isinstance(v, Mapping)]
    for key, value in entries:
        if isinstance(value, Mapping):
            _table(value, (*path, key), lines)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any, path: tuple[str, ...]) -> str:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(v, (*path, str(i))) for i, v in enumerate(value))}]"
    if isinstance(value, Mapping):
        inner = [f"{_key(str(k))} = {_value(v, (*path, str(k)))}" for k, v in value.items() if v is not None]
        return f"{{{', '.join(inner)}}}"
    raise TypeError(f"{'.'.join(path)} is of type {type(value).__name__}, which TOML cannot hold")


def _text(value: str) -> str:
    # JSON's escapes are TOML's but for DEL; half of a surrogate pair is no character in UTF-8.
    known = value.encode(errors="replace").decode()
    return json.dumps(known, ensure_ascii=False).replace("\x7f", "\\u007f")
