"""Between what clients send and columns: many values at once, and the bad ones by name."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steppe.serving.messages import Refused
from steppe.spaces import (
    BadLeaf,
    BoxSpec,
    DictSpec,
    DiscreteSpec,
    MultiBinarySpec,
    MultiDiscreteSpec,
    OneOfSpec,
    SequenceSpec,
    Spec,
    TupleSpec,
    collect,
    outside,
    take,
)
from steppe.types import Tree

LARGEST_REWARD = float(np.finfo(np.float32).max)
"""Learners hold float32: what is larger would become infinite there."""
_ARRAY = {"dtype", "shape", "bytes"}
_AXES = 32
"""Of an array, at most."""
_FORM = '{"dtype": "float32", "shape": [2], "bytes": ...}'


def column_of(
    spec: Spec, values: Sequence[Any], roots: Sequence[str]
) -> tuple[Tree, Sequence[Refused | None]]:
    """The column of all values that fit, which is all of them nearly always.

    Args:
        spec: what they should be.
        values: as clients sent them.
        roots: what each is called in a message.

    Returns:
        A column with a row for each value; and nothing, or for each None or why it does not fit (its row is
        arbitrary).
    """
    try:
        return _column(spec, values, roots[0]), []
    except Refused as refused:
        if len(values) == 1:
            return None, [refused.bare()]
    good, why = -1, list[Refused | None]()
    for i, value in enumerate(values):
        try:
            _column(spec, [value], roots[i])
            why.append(None)
            good = i
        except Refused as refused:
            why.append(refused.bare())
    if good < 0:
        return None, why
    stand_in = values[good]
    kept = [value if reason is None else stand_in for value, reason in zip(values, why, strict=True)]
    return _column(spec, kept, roots[0]), why


def _column(spec: Spec, values: Sequence[Any], root: str) -> Tree:
    try:
        # What nearly all send is a list of numbers.
        if not isinstance(spec, BoxSpec) or set(map(type, values)) != {list} or any(map(_has_truth, values)):
            values = [_plain(spec, value, root) for value in values]
        column = collect(spec, values, None, root)
    except BadLeaf as bad:
        raise Refused("out_of_space", f"{bad.leaf}: expected {bad.expected}, got {bad.got}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Refused("out_of_space", f"{root}: cannot be read as its space says: {error}") from None
    for found in outside(spec, column, root):
        which = "at least" if found.value < found.bound else "at most"
        raise Refused("out_of_space", f"{found.leaf}: expected {which} {found.bound}, got {found.value}")
    return column


def _has_truth(value: Any) -> bool:
    """Whether there is a truth in it, which numpy would take for a number."""
    if type(value) is not list:
        return type(value) is bool
    kinds = set(map(type, value))
    return bool in kinds or (list in kinds and any(map(_has_truth, value)))


def _plain(spec: Spec, value: Any, path: str) -> Any:
    """``value`` with its ``{dtype, shape, bytes}`` as arrays."""
    match spec:
        case DiscreteSpec() | MultiDiscreteSpec() | BoxSpec() if spec.dtype.kind != "b" and _has_truth(value):
            raise Refused("out_of_space", f"{path}: expected numbers, got true or false")
        case BoxSpec() | DiscreteSpec() | MultiDiscreteSpec() | MultiBinarySpec():
            return _array(value, path) if type(value) is dict else value
        case DictSpec() if type(value) is dict:
            known = dict(spec.items)
            return {
                key: _plain(known[key], part, f'{path}["{key}"]') if key in known else part
                for key, part in value.items()
            }
        case TupleSpec() if type(value) is list and len(value) == len(spec.items):
            parts = zip(spec.items, value, strict=True)
            return tuple(_plain(part, item, f"{path}[{i}]") for i, (part, item) in enumerate(parts))
        case SequenceSpec() if type(value) is list and not spec.stack:
            return [_plain(spec.item, item, f"{path}[{i}]") for i, item in enumerate(value)]
        case OneOfSpec() if type(value) is list and len(value) == 2 and value[0] in range(len(spec.items)):
            return value[0], _plain(spec.items[value[0]], value[1], f"{path}[1]")
        case _:
            return value


def _array(value: dict[str, Any], path: str) -> Any:
    """The array that is meant by ``{dtype, shape, bytes}``."""
    if value.keys() != _ARRAY:
        raise Refused(
            "out_of_space", f"{path}: expected numbers, or {_FORM}; got an object of {sorted(value)}"
        )
    dtype, shape, content = value["dtype"], value["shape"], value["bytes"]
    try:
        kind = np.dtype(dtype).newbyteorder("<") if type(dtype) is str else None
        if kind is None or kind.kind not in "biuf":
            raise ValueError("dtype must be the name of a number, such as float32")
        # The product of many is a number that takes minutes to compute.
        if type(shape) is not list or len(shape) > _AXES or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape must be a list of at most {_AXES} whole numbers")
        if not isinstance(content, bytes):
            content = base64.b64decode(content, validate=True)
        if len(content) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"expected {math.prod(shape) * kind.itemsize} bytes, got {len(content)}")
        return np.frombuffer(content, kind).reshape(shape).astype(kind.newbyteorder("="))
    except (ValueError, TypeError, binascii.Error, SyntaxError) as error:
        raise Refused("out_of_space", f"{path}: expected {_FORM}: {error}") from None


def plain_rows(spec: Spec, column: Tree) -> list[Any]:
    """A JSON value for each row of a column of ``spec``."""
    match spec:
        case DictSpec():
            parts = [plain_rows(part, column[key]) for key, part in spec.items]
            return [dict(zip(column, row, strict=True)) for row in zip(*parts, strict=True)]
        case TupleSpec():
            return list(map(list, zip(*map(plain_rows, spec.items, column), strict=True)))
        case _:
            rows: list[Any] = column.tolist()
            return rows


def row_of(column: Tree, row: int) -> Tree:
    """One row, as a column of one; a view."""
    at = slice(row, row + 1)
    return column[at] if isinstance(column, np.ndarray) else take(column, at)


def sample_space(action: Spec) -> Spec:
    """What a policy's own samples look like: choices count from 0, numbers have no bounds."""
    match action:
        case DiscreteSpec():
            return DiscreteSpec(action.n)
        case MultiDiscreteSpec():
            return MultiDiscreteSpec(action.nvec)
        case BoxSpec():
            return BoxSpec(action.shape, np.dtype(np.float32), np.float32(-np.inf), np.float32(np.inf))  # type: ignore[arg-type]
        case DictSpec():
            return DictSpec(tuple((key, sample_space(part)) for key, part in action.items))
        case TupleSpec():
            return TupleSpec(tuple(map(sample_space, action.items)))
        case _:
            return action


def number(value: Any, path: str, code: str = "reward") -> float:
    """A finite number.

    Raises:
        Refused: it is none, or larger than float32 can hold.
    """
    if type(value) not in (int, float) or not -LARGEST_REWARD <= value <= LARGEST_REWARD:
        raise Refused(code, f"{path}: expected one finite number, got {shown(value)}")
    return float(value)


def shown(value: Any) -> str:
    """A value of a client's in a message: never long, and never deep, which would be an error of its own."""
    kinds: dict[type, str] = {list: "a list", dict: "an object"}
    return kinds.get(type(value)) or repr(value)[:80]
