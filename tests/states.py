"""States compared: by a hash over every bit of them, and place by place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from steppe.checkpoint import _bytes, _dtype_name, _encode_scalar, _key
from steppe.types import State


def state_hash(state: State) -> str:
    """The sha256 of a state: equal if and only if the values are, bit by bit, with their types and shapes.

    The order of keys and the difference between lists and tuples, and between numpy scalars and arrays of
    shape ``()``, do not count; so a state and its copy out of a checkpoint have the same hash.

    Raises:
        CheckpointError: the state holds something that cannot be stored.
    """
    digest = hashlib.sha256()
    for part in _canonical(state, "state"):
        digest.update(part)
    return digest.hexdigest()


def diff(a: State, b: State) -> list[str]:
    """Where two states differ: one line ``path: what is in a, what is in b`` for each place.

    Empty if and only if their :func:`state_hash` is equal.
    """
    return list(_differences(a, b, ""))


def _canonical(value: Any, path: str) -> Iterator[bytes | memoryview]:
    """Parts that together name ``value`` and nothing else: each begins with its kind and size."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        yield f"a{_dtype_name(array.dtype, path)}{array.shape}".encode()
        yield _bytes(array).data
    elif isinstance(value, Mapping):
        yield f"m{len(value)}:".encode()
        for key in sorted(value, key=lambda k: _key(k, path)):
            yield from _canonical(str(key), path)
            yield from _canonical(value[key], f"{path}/{key}")
    elif isinstance(value, list | tuple):
        yield f"l{len(value)}:".encode()
        for i, item in enumerate(value):
            yield from _canonical(item, f"{path}/{i}")
    else:
        text = json.dumps(_encode_scalar(value, path))
        yield f"s{len(text)}:{text}".encode()


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            yield from _differences(
                a.get(key, _NOTHING), b.get(key, _NOTHING), f"{path}/{key}" if path else key
            )
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{path}/{i}")
    elif a is _NOTHING or b is _NOTHING or not _same(a, b, path):
        yield f"{path or '(all)'}: {_brief(a)}, {_brief(b)}"


def _same(a: Any, b: Any, path: str) -> bool:
    return b"".join(_canonical(a, path)) == b"".join(_canonical(b, path))


_NOTHING = object()


def _brief(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    if isinstance(value, np.ndarray) and value.size > 1:
        return f"{value.dtype} {value.shape}"
    if isinstance(value, Mapping):
        return f"a dict of {len(value)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
