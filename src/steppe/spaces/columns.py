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
    LeafSpec,
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


def map_parts(fn: Callable[[Any, Any], Any], spec: DictSpec | TupleSpec, column: Tree) -> Tree:
    """Apply ``fn`` to each part of a Dict or Tuple and its column; the form stays."""
    return spec.formed(fn(part, column[key]) for key, part in spec.parts)


def laid_out(spec: Spec) -> LeafSpec | DictSpec | TupleSpec:
    """The spec itself, or for a Sequence or OneOf a Dict of what its columns consist of."""
    match spec:
        case SequenceSpec():
            return DictSpec((("items", spec.item), ("length", DiscreteSpec(spec.maximum + 1))))
        case OneOfSpec():
            return DictSpec((("choice", DiscreteSpec(len(spec.items))), ("values", TupleSpec(spec.items))))
        case _:
            return spec


def zeros(spec: Spec, *lead: int) -> Tree:
    """Allocate a column of zeros with any leading shape, such as ``(rows, lanes)``."""
    if isinstance(spec, SequenceSpec):
        return {"items": zeros(spec.item, *lead, spec.maximum), "length": np.zeros(lead, np.int64)}
    whole = laid_out(spec) if isinstance(spec, OneOfSpec) else spec
    if isinstance(whole, DictSpec | TupleSpec):
        return whole.formed(zeros(part, *lead) for _, part in whole.parts)
    return np.zeros(lead + whole.shape, whole.dtype)


def is_wide(spec: Spec) -> bool:
    """Whether some Box in it holds 64-bit integers, which 32-bit arithmetic would wrap around."""
    whole = laid_out(spec)
    if isinstance(whole, DictSpec | TupleSpec):
        return any(is_wide(part) for _, part in whole.parts)
    return isinstance(whole, BoxSpec) and whole.dtype.kind in "iu" and whole.dtype.itemsize == 8


def narrowed(spec: Spec, column: Tree) -> Tree:
    """A column for 32-bit arithmetic: 64-bit integers of Boxes as float32, everything else as it is."""
    whole = laid_out(spec)
    if isinstance(whole, DictSpec | TupleSpec):
        return map_parts(narrowed, whole, column)
    return column.astype(np.float32) if is_wide(whole) else column


def keyed(root: str, key: str | int) -> str:
    """Path of a part of a dict or tuple, as Python writes it."""
    return f"{root}[{json.dumps(key, ensure_ascii=False)}]"


def paths(spec: Spec, root: str = "obs") -> list[str]:
    """Names of a column's leaves, in the order of :func:`leaves`; each reads like Python."""
    whole = laid_out(spec)
    if isinstance(whole, DictSpec | TupleSpec):
        return [path for key, part in whole.parts for path in paths(part, keyed(root, key))]
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


_OF_ARRAYS = (BoxSpec, MultiDiscreteSpec, MultiBinarySpec)
_ARRAYS = {np.ndarray}
_INTEGERS = {int, np.int64, np.int32}


def stack(spec: Spec, values: Sequence[Any], *, judged: bool = True) -> Array | None:
    """The column when nothing at all is to be said about the values of a leaf; else None.

    That is: each is what the space itself would hand out, finite, and inside its bounds. The column shares
    no memory with the values. Whatever else comes is for :func:`~steppe.spaces.collect`, which judges by
    itself whether they are finite and inside.
    """
    if isinstance(spec, _OF_ARRAYS) and spec.shape:
        # Equal first axes here and equal other axes by concatenate: so all have the shape of the first.
        if set(map(type, values)) != _ARRAYS or values[0].shape != spec.shape:
            return None
        try:
            if set(map(len, values)) != {spec.shape[0]}:
                return None
            column = np.concatenate(values, dtype=spec.dtype, casting="no").reshape(len(values), *spec.shape)
        except (TypeError, ValueError):
            return None
        if not judged:
            return column
        fine = np.isfinite(column)
    elif isinstance(spec, DiscreteSpec) and set(map(type, values)) <= _INTEGERS:
        try:
            column = np.array(values, np.int64)
        except OverflowError:
            return None
        if not judged:
            return column
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
        case DictSpec() | TupleSpec():
            return [bad for key, part in spec.parts for bad in outside(part, column[key], keyed(root, key))]
        case SequenceSpec():
            row, place = filled_items(column)
            return [
                replace(bad, leaf=f"{root}[{place[bad.row]}]{bad.leaf}", row=int(row[bad.row]))
                for bad in outside(spec.item, take(column["items"], (row, place)), "")
            ]
        case OneOfSpec():
            return [
                replace(bad, row=int(row[bad.row]))
                for part, row, values in _chosen(spec, column)
                for bad in outside(part, values, f"{root}[1]")
            ]
        case _:
            return []


def _chosen(spec: OneOfSpec, column: Tree) -> Iterator[tuple[Spec, IntArray, Tree]]:
    for i, part in enumerate(spec.items):
        row = np.flatnonzero(column["choice"] == i)
        yield part, row, take(column["values"][i], row)


def clip(spec: Spec, column: Tree) -> Tree:
    """A column whose values lie inside their bounds; leaves that have none are not copied."""
    match spec:
        case DictSpec() | TupleSpec():
            return map_parts(clip, spec, column)
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
            within = column if spec.limits is None else np.clip(column, *spec.limits)
            return within.astype(spec.dtype, copy=False)


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
        case DictSpec() | TupleSpec():
            parts = (rows(part, column[key]) for key, part in spec.parts)
            return list(map(spec.formed, zip(*parts, strict=True)))
        case SequenceSpec():
            return _sequence_rows(spec, column)
        case OneOfSpec():
            values: list[Any] = [None] * len(column["choice"])
            for i, (part, row, chosen) in enumerate(_chosen(spec, column)):
                for at, value in zip(row.tolist(), rows(part, chosen), strict=True):
                    values[at] = (i, value)
            return values
        case _:
            fresh = np.array(column, order="C").astype(spec.dtype, casting="same_kind", copy=False)
            return list(fresh) if fresh.ndim > 1 else [fresh[i, ...] for i in range(len(fresh))]


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
        case DictSpec() | TupleSpec():
            return map_parts(stacked_rows, spec, column)
        case SequenceSpec() | OneOfSpec():
            return tuple(rows(spec, column))
        case _:
            return np.array(column)
