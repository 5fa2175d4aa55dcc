"""Columns: allocate, walk, index, check against bounds, and give back row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steppe.spaces.spec import (
    BoxSpec,
    DictSpec,
    DiscreteSpec,
    MultiBinarySpec,
    MultiDiscreteSpec,
    OneOfSpec,
    SequenceSpec,
    Spec,
    TupleSpec,
)
from steppe.types import Array, IntArray, Tree


@dataclass(frozen=True, slots=True)
class Outside:
    """The first finite value of a leaf that lies outside its Box.

    Attributes:
        leaf: path down to the element, such as ``obs["cars"][3]``.
        row: its row in the column.
        value: what came.
        bound: the bound that it passed.
        count: how many rows have such a value in this leaf (items, below a Sequence).
    """

    leaf: str
    row: int
    value: float
    bound: float
    count: int


def leaves(tree: Tree) -> list[Array]:
    """The arrays of a tree, in its order."""
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]


def map_leaves(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``fn`` to each array of ``tree`` and those at its place in ``rest``; the form stays."""
    if isinstance(tree, dict):
        return {key: map_leaves(fn, part, *(other[key] for other in rest)) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_leaves(fn, *parts) for parts in zip(tree, *rest, strict=True))
    return fn(tree, *rest)


def take(column: Tree, index: Any) -> Tree:
    """``column[index]``, leaf by leaf; any numpy index (a slice or an int gives views)."""
    if isinstance(column, dict):
        return {key: take(part, index) for key, part in column.items()}
    if isinstance(column, tuple):
        return tuple(take(part, index) for part in column)
    return column[index]


def put(target: Tree, index: Any, source: Tree) -> None:
    """``target[index] = source``, leaf by leaf; any numpy index."""
    if isinstance(target, dict):
        for key, part in target.items():
            put(part, index, source[key])
    elif isinstance(target, tuple):
        for part, values in zip(target, source, strict=True):
            put(part, index, values)
    else:
        target[index] = source


def tupled(tree: Any) -> Tree:
    """A column out of a file again: there, tuples are lists."""
    if isinstance(tree, dict):
        return {key: tupled(part) for key, part in tree.items()}
    return tuple(tupled(part) for part in tree) if isinstance(tree, list | tuple) else tree


def zeros(spec: Spec, *lead: int) -> Tree:
    """Allocate a column of zeros with any leading shape, such as ``(rows, lanes)``."""
    match spec:
        case BoxSpec() | DiscreteSpec() | MultiDiscreteSpec() | MultiBinarySpec():
            return np.zeros(lead + spec.shape, spec.dtype)
        case DictSpec():
            return {key: zeros(part, *lead) for key, part in spec.items}
        case TupleSpec():
            return tuple(zeros(part, *lead) for part in spec.items)
        case SequenceSpec():
            return {"items": zeros(spec.item, *lead, spec.maximum), "length": np.zeros(lead, np.int64)}
        case OneOfSpec():
            values = tuple(zeros(part, *lead) for part in spec.items)
            return {"choice": np.zeros(lead, np.int64), "values": values}


def is_wide(spec: Spec) -> bool:
    """Whether some Box in it holds 64-bit integers, which 32-bit arithmetic would wrap around."""
    match spec:
        case BoxSpec():
            return np.dtype(spec.dtype).kind in "iu" and np.dtype(spec.dtype).itemsize == 8
        case DictSpec():
            return any(is_wide(part) for _, part in spec.items)
        case TupleSpec() | OneOfSpec():
            return any(map(is_wide, spec.items))
        case SequenceSpec():
            return is_wide(spec.item)
        case _:
            return False


def narrowed(spec: Spec, column: Tree) -> Tree:
    """A column for 32-bit arithmetic: 64-bit integers of Boxes as float32, everything else as it is."""
    match spec:
        case BoxSpec():
            return column.astype(np.float32) if is_wide(spec) else column
        case DictSpec():
            return {key: narrowed(part, column[key]) for key, part in spec.items}
        case TupleSpec():
            return tuple(narrowed(part, values) for part, values in zip(spec.items, column, strict=True))
        case SequenceSpec():
            return {**column, "items": narrowed(spec.item, column["items"])}
        case OneOfSpec():
            return {**column, "values": narrowed(TupleSpec(spec.items), column["values"])}
        case _:
            return column


def keyed(root: str, key: str) -> str:
    """Path of a dict's part, as Python writes it."""
    return f"{root}[{json.dumps(key, ensure_ascii=False)}]"


def paths(spec: Spec, root: str = "obs") -> list[str]:
    """Names of a column's leaves, in the order of :func:`leaves`; each reads like Python."""
    match spec:
        case DictSpec():
            return [path for key, part in spec.items for path in paths(part, keyed(root, key))]
        case TupleSpec():
            return [path for i, part in enumerate(spec.items) for path in paths(part, f"{root}[{i}]")]
        case SequenceSpec():
            return [*paths(spec.item, keyed(root, "items")), keyed(root, "length")]
        case OneOfSpec():
            values = TupleSpec(spec.items)
            return [keyed(root, "choice"), *paths(values, keyed(root, "values"))]
        case _:
            return [root]


def filled_items(column: Tree) -> tuple[IntArray, IntArray]:
    """Row and place of every item that a Sequence column holds, row by row."""
    length = column["length"]
    row = np.repeat(np.arange(len(length)), length)
    place = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    return row, place


def element(leaf: str, index: tuple[int, ...]) -> str:
    """Path of one element of a leaf, as Python writes it."""
    return f"{leaf}[{', '.join(map(str, index))}]" if index else leaf


def first_outside(limits: tuple[Array, Array], column: Array, leaf: str) -> Outside | None:
    """The first element of ``(n, ...)`` that lies outside ``limits``; NaN counts as inside."""
    low, high = limits
    below, above = column < low, column > high
    if not (np.count_nonzero(below) or np.count_nonzero(above)):
        return None
    wrong = below | above
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    bound = np.broadcast_to(low if below[at] else high, column.shape[1:])[at[1:]]
    count = int(wrong.reshape(len(wrong), -1).any(axis=1).sum())
    return Outside(element(leaf, at[1:]), at[0], column[at].item(), bound.item(), count)


_ARRAYS = {np.ndarray}
_INTEGERS = {int, np.int64, np.int32}


def stack(spec: Spec, values: Sequence[Any]) -> Array | None:
    """The column when nothing at all is to be said about the values of a Box or Discrete; else None.

    That is: each is what the space itself would hand out, finite, and inside its bounds. The column shares
    no memory with the values. Whatever else comes is for :func:`~steppe.spaces.collect`.
    """
    if isinstance(spec, BoxSpec) and spec.shape:
        # Equal first axes here and equal other axes by concatenate: so all have the shape of the first.
        if set(map(type, values)) != _ARRAYS or values[0].shape != spec.shape:
            return None
        if set(map(len, values)) != {spec.shape[0]}:
            return None
        try:
            column = np.concatenate(values, dtype=spec.dtype, casting="no").reshape(len(values), *spec.shape)
        except (TypeError, ValueError):
            return None
        fine = np.isfinite(column)
    elif isinstance(spec, DiscreteSpec) and set(map(type, values)) <= _INTEGERS:
        try:
            column = np.array(values, np.int64)
        except OverflowError:
            return None
        fine = np.ones(len(values), np.bool_)
    else:
        return None
    if spec.limits is not None:
        fine &= column >= spec.limits[0]
        fine &= column <= spec.limits[1]
    return column if np.count_nonzero(fine) == fine.size else None  # count_nonzero: a third of all()'s price


def outside(spec: Spec, column: Tree, root: str = "obs") -> list[Outside]:
    """For each Box leaf with a finite value outside its bounds: the first one, and how many rows have one.

    Padding of a Sequence and parts of a OneOf that were not chosen are not looked at. The values are expected
    to be finite, as :func:`~steppe.spaces.collect` leaves them.
    """
    match spec:
        case BoxSpec():
            found = None if spec.limits is None else first_outside(spec.limits, column, root)
            return [] if found is None else [found]
        case DictSpec():
            return [bad for key, part in spec.items for bad in outside(part, column[key], keyed(root, key))]
        case TupleSpec():
            parts = enumerate(zip(spec.items, column, strict=True))
            return [bad for i, (part, values) in parts for bad in outside(part, values, f"{root}[{i}]")]
        case SequenceSpec():
            return _outside_items(spec, column, root)
        case OneOfSpec():
            return [
                replace(bad, row=int(row[bad.row]))
                for part, row, values in _chosen(spec, column)
                for bad in outside(part, values, f"{root}[1]")
            ]
        case _:
            return []


def _outside_items(spec: SequenceSpec, column: Tree, root: str) -> list[Outside]:
    row, place = filled_items(column)
    return [
        replace(bad, leaf=f"{root}[{place[bad.row]}]{bad.leaf}", row=int(row[bad.row]))
        for bad in outside(spec.item, take(column["items"], (row, place)), "")
    ]


def _chosen(spec: OneOfSpec, column: Tree) -> Iterator[tuple[Spec, IntArray, Tree]]:
    for i, part in enumerate(spec.items):
        row = np.flatnonzero(column["choice"] == i)
        yield part, row, take(column["values"][i], row)


def clip(spec: Spec, column: Tree) -> Tree:
    """A column whose Box values lie inside their bounds; leaves that need no clipping are not copied."""
    match spec:
        case BoxSpec():
            return column if spec.limits is None else np.clip(column, *spec.limits)
        case DictSpec():
            return {key: clip(part, column[key]) for key, part in spec.items}
        case TupleSpec():
            return tuple(clip(part, values) for part, values in zip(spec.items, column, strict=True))
        case SequenceSpec():
            at = filled_items(column)
            items = map_leaves(np.zeros_like, column["items"])
            put(items, at, clip(spec.item, take(column["items"], at)))
            return {"items": items, "length": column["length"]}
        case OneOfSpec():
            values = map_leaves(np.zeros_like, column["values"])
            for target, (part, row, chosen) in zip(values, _chosen(spec, column), strict=True):
                put(target, row, clip(part, chosen))
            return {"choice": column["choice"], "values": values}
        case _:
            return column


def _row_arrays(column: Array, dtype: np.dtype[Any]) -> list[Any]:
    fresh = np.array(column, order="C").astype(dtype, casting="same_kind", copy=False)
    return list(fresh) if fresh.ndim > 1 else [fresh[i, ...] for i in range(len(fresh))]


def rows(spec: Spec, column: Tree) -> list[Any]:
    """Values as an env takes them, one per row: fresh copies that may be written to.

    Discrete gives Python ints; Box, MultiDiscrete and MultiBinary arrays of the space's dtype; Dict dicts;
    Tuple tuples; Sequence tuples of items (a stacked one: one stacked value); OneOf ``(choice, value)``.

    Raises:
        TypeError: a leaf is of another kind than its space, such as floats for a Discrete.
    """
    match spec:
        case DiscreteSpec():
            numbers: list[Any] = np.asarray(column).astype(np.int64, casting="same_kind", copy=False).tolist()
            return numbers
        case BoxSpec() | MultiDiscreteSpec() | MultiBinarySpec():
            return _row_arrays(column, spec.dtype)
        case DictSpec():
            keys = [key for key, _ in spec.items]
            parts = zip(*(rows(part, column[key]) for key, part in spec.items), strict=True)
            return [dict(zip(keys, values, strict=True)) for values in parts]
        case TupleSpec():
            pairs = zip(spec.items, column, strict=True)
            return list(zip(*(rows(part, values) for part, values in pairs), strict=True))
        case SequenceSpec():
            return _sequence_rows(spec, column)
        case OneOfSpec():
            values: list[Any] = [None] * len(column["choice"])
            for i, (part, row, chosen) in enumerate(_chosen(spec, column)):
                for at, value in zip(row.tolist(), rows(part, chosen), strict=True):
                    values[at] = (i, value)
            return values


def _sequence_rows(spec: SequenceSpec, column: Tree) -> list[Any]:
    ends = np.cumsum(column["length"])
    spans = list(zip((ends - column["length"]).tolist(), ends.tolist(), strict=True))
    flat = take(column["items"], filled_items(column))
    if spec.stack:
        return [stacked_rows(spec.item, take(flat, slice(*span))) for span in spans]
    items = rows(spec.item, flat)
    return [tuple(items[start:end]) for start, end in spans]


def stacked_rows(spec: Spec, column: Tree) -> Any:
    """The whole column as one stacked value, as a stacking Sequence hands it out."""
    match spec:
        case DictSpec():
            return {key: stacked_rows(part, column[key]) for key, part in spec.items}
        case TupleSpec():
            return tuple(stacked_rows(part, values) for part, values in zip(spec.items, column, strict=True))
        case SequenceSpec() | OneOfSpec():
            return tuple(rows(spec, column))
        case _:
            return np.array(column)
