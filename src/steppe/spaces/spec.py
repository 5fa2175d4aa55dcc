"""The spec tree: a small immutable description of a space, compared by value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np

from steppe.errors import SpaceError
from steppe.types import Array, IntArray, Tree

Limits: TypeAlias = tuple[Array, Array]
"""Lowest and highest value, each an array that broadcasts to the leaf's shape."""

_INT8, _INT64 = np.dtype(np.int8), np.dtype(np.int64)
_ZERO_ONE: Limits = (np.array(0, np.int8), np.array(1, np.int8))


def _set(spec: Any, **values: Any) -> None:
    """Give a frozen spec its fields in the form in which they are compared."""
    for name, value in values.items():
        object.__setattr__(spec, name, value)


def _alike(a: Any, b: Any, *arrays: str) -> bool:
    """Whether two leaves of one kind are equal, with these arrays of theirs."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in arrays]
    return (a.shape, a.dtype) == (b.shape, b.dtype) and all(np.array_equal(*pair) for pair in pairs)


def _some(kind: str, items: Iterable[Any]) -> tuple[Any, ...]:
    parts = tuple(items)
    if not parts:
        raise SpaceError(f"an empty {kind} holds no values: leave it out of its space")
    return parts


def _frozen(values: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A read-only array of ``shape``; equal values take no memory (a view of one element)."""
    array = np.broadcast_to(np.asarray(values), shape)
    if array.size and (array == array.flat[0]).all():
        array = np.asarray(array.flat[0])
    with np.errstate(over="ignore"):
        array = np.broadcast_to(array.astype(dtype), shape)
    array.flags.writeable = False
    return array


def _compact(array: Array) -> Array:
    """The 0-d array behind a view of one element: comparing with it is faster than with the view."""
    return array[(0,) * array.ndim].reshape(()) if array.size and not any(array.strides) else array


def _bound(values: Any, shape: tuple[int, ...], dtype: np.dtype[Any], infinite: int) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise TypeError(f"they must be numbers, got {array.dtype}")
    if array.dtype.kind == "f":
        if np.isnan(array).any():
            raise ValueError("they hold NaN; use -inf and inf for no bound")
        if dtype.kind != "f":
            array = np.where(np.isinf(array), infinite, array.astype(object))
            array = np.array(array, dtype=dtype)
    return _frozen(array, shape, dtype)


@final
@dataclass(frozen=True, slots=True, eq=False)
class BoxSpec:
    """An array of numbers.

    Attributes:
        shape: shape of one value.
        dtype: a float, integer or bool dtype.
        low: ``shape``, in ``dtype``, read-only.
        high: likewise.
        limits: ``(low, high)`` to compare with, or None when every finite value of the dtype lies inside.

    Raises:
        SpaceError: a dtype that is no number, bounds that are NaN, crossed, or do not fit the shape.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: Array
    high: Array
    limits: Limits | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        dtype = np.dtype(self.dtype).newbyteorder("=")
        if dtype.kind not in "iufb" or dtype.itemsize > 8:
            raise SpaceError(f"Box of dtype {dtype}: use a float, integer or bool dtype of at most 64 bits")
        if dtype.kind == "f":
            least, most = np.finfo(dtype).min, np.finfo(dtype).max
        else:
            least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        try:
            low, high = _bound(self.low, shape, dtype, least), _bound(self.high, shape, dtype, most)
        except (ValueError, OverflowError, TypeError) as error:
            raise SpaceError(f"bounds of Box{shape} {dtype} cannot be used: {error}") from None
        if (low > high).any():
            raise SpaceError(f"a lower bound of Box{shape} {dtype} lies above its upper bound")
        bounded = bool((low > least).any() or (high < most).any())
        limits = (_compact(low), _compact(high)) if bounded else None
        _set(self, shape=shape, dtype=dtype, low=low, high=high, limits=limits)

    def __eq__(self, other: object) -> bool:
        return _alike(self, other, "low", "high") if isinstance(other, BoxSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash((BoxSpec, self.shape, self.dtype))


@final
@dataclass(frozen=True, slots=True)
class DiscreteSpec:
    """One of ``n`` integers, counted from ``start``; its column is int64, whatever type the env uses.

    Raises:
        SpaceError: ``n`` is not positive.
    """

    n: int
    start: int = 0
    shape: tuple[()] = field(default=(), init=False, repr=False, compare=False)
    dtype: np.dtype[Any] = field(default=_INT64, init=False, repr=False, compare=False)
    limits: Limits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n, start = int(self.n), int(self.start)
        if n < 1:
            raise SpaceError(f"Discrete({n}) holds no value: n must be at least 1")
        _set(self, n=n, start=start, limits=(np.array(start, np.int64), np.array(start + n - 1, np.int64)))


@final
@dataclass(frozen=True, slots=True, eq=False)
class MultiDiscreteSpec:
    """An array of integers; each counts ``nvec`` values from ``start``.

    Attributes:
        nvec: int64 of any shape, read-only.
        start: int64 of the same shape, read-only.
        dtype: of the arrays that the space hands out.
        shape: of one value.
        limits: lowest and highest value of each element.

    Raises:
        SpaceError: an ``nvec`` below 1, a ``start`` of another shape, a dtype that is no integer.
    """

    nvec: IntArray
    start: IntArray = field(default_factory=lambda: np.zeros((), np.int64))
    dtype: np.dtype[Any] = _INT64
    shape: tuple[int, ...] = field(init=False, repr=False)
    limits: Limits = field(init=False, repr=False)

    def __post_init__(self) -> None:
        nvec, start = np.asarray(self.nvec), np.asarray(self.start)
        dtype = np.dtype(self.dtype).newbyteorder("=")
        if dtype.kind not in "iu":
            raise SpaceError(f"MultiDiscrete of dtype {dtype} is not supported: use an integer dtype")
        if nvec.dtype.kind not in "iu" or (nvec < 1).any():
            raise SpaceError(f"MultiDiscrete needs integers of at least 1, got nvec={nvec.tolist()}")
        if start.dtype.kind not in "iu" or start.shape not in ((), nvec.shape):
            raise SpaceError(f"MultiDiscrete start must be integers of the shape of nvec, {nvec.shape}")
        nvec, start = _frozen(nvec, nvec.shape, _INT64), _frozen(start, nvec.shape, _INT64)
        limits = (_compact(start), _compact(_frozen(start + nvec - 1, nvec.shape, _INT64)))
        _set(self, nvec=nvec, start=start, dtype=dtype, shape=nvec.shape, limits=limits)

    def __eq__(self, other: object) -> bool:
        return (
            _alike(self, other, "nvec", "start") if isinstance(other, MultiDiscreteSpec) else NotImplemented
        )

    def __hash__(self) -> int:
        return hash((MultiDiscreteSpec, self.nvec.shape, self.dtype))


@final
@dataclass(frozen=True, slots=True)
class MultiBinarySpec:
    """An array of zeros and ones, int8, of ``shape``."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default=_INT8, init=False, repr=False, compare=False)
    limits: Limits = field(default=_ZERO_ONE, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _set(self, shape=tuple(int(size) for size in self.shape))


@final
@dataclass(frozen=True, slots=True)
class DictSpec:
    """Named parts, sorted by key.

    Raises:
        SpaceError: no parts, or a key that is not a str (columns and files are keyed by text).
    """

    items: tuple[tuple[str, Spec], ...]

    def __post_init__(self) -> None:
        for key, _ in _some("Dict", self.items):
            if not isinstance(key, str):
                raise SpaceError(f"key {key!r} of a Dict is {type(key).__name__}: use text keys")
        _set(self, items=tuple(sorted(self.items, key=lambda item: item[0])))

    @property
    def parts(self) -> Iterable[tuple[Any, Spec]]:
        """Key and spec of each part; in a column of this space the part stands under its key."""
        return self.items

    def formed(self, values: Iterable[Any]) -> Tree:
        """What belongs to each part as one dict."""
        return {key: value for (key, _), value in zip(self.items, values, strict=True)}


@final
@dataclass(frozen=True, slots=True)
class TupleSpec:
    """Parts in a fixed order.

    Raises:
        SpaceError: no parts.
    """

    items: tuple[Spec, ...]

    def __post_init__(self) -> None:
        _set(self, items=_some("Tuple", self.items))

    @property
    def parts(self) -> Iterable[tuple[Any, Spec]]:
        """Place and spec of each part, as a Dict's."""
        return enumerate(self.items)

    def formed(self, values: Iterable[Any]) -> Tree:
        """What belongs to each part as one tuple."""
        return tuple(values)


@final
@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """Up to ``maximum`` values of ``item``; ``stack`` means that envs hand them out as one stacked value.

    Raises:
        SpaceError: ``maximum`` is not positive.
    """

    item: Spec
    maximum: int
    stack: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.maximum, int | np.integer) or self.maximum < 1:
            raise SpaceError(f"longest length of a Sequence must be a positive integer, got {self.maximum!r}")
        _set(self, maximum=int(self.maximum))


@final
@dataclass(frozen=True, slots=True)
class OneOfSpec:
    """A choice among parts: ``(choice, value)``.

    Raises:
        SpaceError: no parts.
    """

    items: tuple[Spec, ...]

    def __post_init__(self) -> None:
        _set(self, items=_some("OneOf", self.items))


LeafSpec: TypeAlias = BoxSpec | DiscreteSpec | MultiDiscreteSpec | MultiBinarySpec
"""A space whose column is one array; all four have ``shape``, ``dtype`` and ``limits``."""

Spec: TypeAlias = LeafSpec | DictSpec | TupleSpec | SequenceSpec | OneOfSpec
"""Describes a space; immutable, hashable, compared by value."""
