"""From the values of n envs to one fresh column: exact ones fast, safe conversions noted, others refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from steppe.errors import CODES, SteppeError
from steppe.spaces.columns import element, filled_items, first_outside, keyed, outside, put, stack, zeros
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
from steppe.types import Array, Tree

Conversions: TypeAlias = Callable[[str, str, int, str], None]
"""Called as ``notes(code, leaf, row, text)`` for each value that was converted on its way into a column."""
Notes: TypeAlias = Conversions | None

_CONVERTED = "E106"
_INTEGERS = {int, *(np.dtype(code).type for code in "bhilqBHILQ")}
_PLAIN = _INTEGERS | {np.ndarray, list, tuple, float, bool, np.bool_, np.float16, np.float32, np.float64}


class BadLeaf(SteppeError):  # noqa: N818 - it names the culprit; adapters turn it into an EnvError
    """A value that cannot enter its column.

    Attributes:
        code: a key of :data:`steppe.errors.CODES`.
        row: which of the values.
        leaf: path of the part, such as ``obs["cars"][3]``.
        expected: what the space says.
        got: what came: short text, type, dtype and shape.
    """

    def __init__(self, code: str, row: int, leaf: str, expected: str, got: str) -> None:
        self.code, self.row, self.leaf, self.expected, self.got = code, int(row), leaf, expected, got
        super().__init__(f"{code} {CODES[code]}: {leaf} of row {self.row}: expected {expected}, got {got}")


def _shown(value: Any) -> str:
    """Short text of a value, with its type, dtype and shape."""
    if isinstance(value, np.ndarray | np.generic):
        text = np.array2string(np.asarray(value), threshold=8, edgeitems=3, separator=", ")
        kind = f"{value.dtype}, shape {value.shape}"
    else:
        text, kind = repr(value), type(value).__name__
    text = " ".join(text.split())
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({kind})"


def _expected(spec: LeafSpec) -> str:
    match spec:
        case DiscreteSpec():
            return f"an integer from {spec.start} to {spec.start + spec.n - 1}"
        case MultiBinarySpec():
            return f"zeros and ones of shape {spec.shape}"
        case MultiDiscreteSpec():
            return f"integers ({spec.dtype}) of shape {spec.shape}"
        case BoxSpec():
            return f"{spec.dtype} of shape {spec.shape}"


def _kind_fits(array: Array, dtype: np.dtype[Any]) -> bool:
    # An empty list has no kind: numpy calls it float.
    return array.dtype.kind in ("fiub" if dtype.kind == "f" or not array.size else "iub")


def _range_fits(array: Array, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "f" or not array.size or array.dtype == dtype:
        return True
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return int(array.min()) >= least and int(array.max()) <= most


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # too large for the dtype becomes inf, which is refused as such
        return array.astype(dtype, order="C")


def _converted(spec: LeafSpec, values: Sequence[Any], root: str) -> Array:
    """The column of values that convert safely: all at once, or one by one where one of them does not."""
    if set(map(type, values)) <= _PLAIN:
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            stacked = np.array(values)
            fits = _kind_fits(stacked, spec.dtype) and _range_fits(stacked, spec.dtype)
            if fits and stacked.shape == (len(values), *spec.shape):
                return _cast(stacked, spec.dtype)
    return np.array([_convert(spec, value, row, root) for row, value in enumerate(values)])


def _convert(spec: LeafSpec, value: Any, row: int, root: str) -> Array:
    """One value as an array of the leaf's shape and dtype, or the reason why not."""

    def bad(code: str, why: str = "") -> BadLeaf:
        return BadLeaf(code, row, root, _expected(spec), _shown(value) + why)

    if isinstance(value, np.ma.MaskedArray):
        raise bad("E102", ", masked")
    try:
        array = np.asarray(value)
    except ValueError:
        raise bad("E103", ", nested parts of unequal length") from None
    except (TypeError, RuntimeError, OverflowError) as error:
        raise bad("E102", f": {error}") from None
    if not _kind_fits(array, spec.dtype):
        raise bad("E102")
    if array.shape != spec.shape:
        raise bad("E103")
    if not _range_fits(array, spec.dtype):
        raise bad("E101", f", which {spec.dtype} cannot hold")
    return _cast(array, spec.dtype)


def _tell(spec: LeafSpec, values: Sequence[Any], notes: Conversions, root: str) -> None:
    """Note each value that is not what the space itself would hand out."""
    natural = _INTEGERS if isinstance(spec, DiscreteSpec) else ()
    texts: dict[Any, str] = {}  # a text costs more than the conversion
    for row, value in enumerate(values):
        numpy = isinstance(value, np.ndarray | np.generic)
        kind = value.dtype if numpy else type(value)
        if type(value) in natural or (kind == spec.dtype and numpy and not natural):
            continue
        if kind not in texts:
            name = f"array of {kind}" if numpy else type(value).__name__
            texts[kind] = f"{name} converted to {_expected(spec)}"
        notes(_CONVERTED, root, row, texts[kind])


def _gather(spec: LeafSpec, values: Sequence[Any], notes: Notes, root: str) -> Array:
    """The column of an array leaf."""
    column = stack(spec, values, judged=False)
    if column is not None:
        column = np.ascontiguousarray(column)
    else:
        column = _converted(spec, values, root)
        if notes is not None:
            _tell(spec, values, notes, root)
    if not isinstance(spec, BoxSpec):
        _refuse_outside(spec, column, values, root)
    elif spec.dtype.kind == "f" and not np.isfinite(column).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(column))[0])
        got = f"{column[at]} in {_shown(values[at[0]])}"
        raise BadLeaf("E104", at[0], element(root, at[1:]), f"finite numbers, {_expected(spec)}", got)
    return column


def _refuse_outside(spec: LeafSpec, column: Array, values: Sequence[Any], root: str) -> None:
    found = None if spec.limits is None else first_outside(spec.limits, column, root)
    if found is not None:
        bound = f"at least {found.bound}" if found.value < found.bound else f"at most {found.bound}"
        got = f"{found.value} in {_shown(values[found.row])}"
        raise BadLeaf("E101", found.row, found.leaf, f"{bound} ({_expected(spec)})", got)


def collect(spec: Spec, values: Sequence[Any], notes: Notes = None, root: str = "obs") -> Tree:
    """Gather the values of n envs into a fresh column that shares no memory with them.

    Safe conversions are made and noted: float64 to float32, Python numbers and nested lists to arrays,
    integers that fit, flags, 0-d arrays for a Discrete. Integers of any width are natural to a Discrete.
    Finite values outside a Box are let through (see :func:`~steppe.spaces.outside`).

    Args:
        spec: what the values should be.
        values: n values as envs return them.
        notes: called as ``notes(code, leaf, row, text)`` for each value that was converted.
        root: what paths start with.

    Raises:
        BadLeaf: a value of a wrong kind (E102), shape (E103), with NaN or infinity (E104), with missing or
            unknown parts (E105), or outside a space of integers (E101).
    """
    if not len(values):
        return zeros(spec, 0)
    match spec:
        case BoxSpec() | DiscreteSpec() | MultiDiscreteSpec() | MultiBinarySpec():
            return _gather(spec, values, notes, root)
        case DictSpec() | TupleSpec():
            return _collect_parts(spec, values, notes, root)
        case SequenceSpec():
            return _collect_sequence(spec, values, notes, root)
        case OneOfSpec():
            return _collect_one_of(spec, values, notes, root)


def _check_size(size: int, value: Sequence[Any], row: int, root: str, what: str = "tuple") -> None:
    if len(value) != size:
        raise BadLeaf("E105", row, root, f"a {what} of {size} parts", f"{len(value)} parts: {_shown(value)}")


def _as_tuple(value: Any, row: int, notes: Notes, root: str) -> Sequence[Any]:
    """A tuple as it is, a list or array with a note; anything else is refused."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim):
        if notes is not None:
            notes(_CONVERTED, root, row, f"{type(value).__name__} converted to a tuple")
        return tuple(value)
    raise BadLeaf("E102", row, root, "a tuple", _shown(value))


def _collect_parts(spec: DictSpec | TupleSpec, values: Sequence[Any], notes: Notes, root: str) -> Tree:
    keys = {key for key, _ in spec.items} if isinstance(spec, DictSpec) else None
    values = [
        value if type(value) is dict and value.keys() == keys else _whole(spec, value, row, notes, root)
        for row, value in enumerate(values)
    ]
    columns = []
    for key, part in spec.parts:
        columns.append(collect(part, [value[key] for value in values], notes, keyed(root, key)))
    return spec.formed(columns)


def _whole(spec: DictSpec | TupleSpec, value: Any, row: int, notes: Notes, root: str) -> Any:
    """A value of a Dict or Tuple that has all its parts."""
    if isinstance(spec, TupleSpec):
        value = _as_tuple(value, row, notes, root)
        _check_size(len(spec.items), value, row, root)
        return value
    keys = {key for key, _ in spec.items}
    if not isinstance(value, Mapping):
        raise BadLeaf("E102", row, root, f"a dict with keys {sorted(keys)}", _shown(value))
    if value.keys() != keys:
        missing, unknown = sorted(keys - value.keys()), sorted(map(repr, value.keys() - keys))
        got = [f"missing {', '.join(map(repr, missing))}"] * bool(missing)
        got += [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise BadLeaf("E105", row, root, f"keys {sorted(keys)}", " and ".join(got))
    return value


def _collect_at(
    spec: Spec, values: Sequence[Any], where: Callable[[int], tuple[int, str]], notes: Notes
) -> Tree:
    """Collect values that stand deeper in some of the rows: ``where`` gives the row and path of each."""

    def tell(code: str, leaf: str, at: int, text: str) -> None:
        if notes is not None:
            row, root = where(at)
            notes(code, root + leaf, row, text)

    try:
        return collect(spec, values, None if notes is None else tell, "")
    except BadLeaf as bad:
        row, root = where(bad.row)
        raise BadLeaf(bad.code, row, root + bad.leaf, bad.expected, bad.got) from None


def _collect_sequence(spec: SequenceSpec, values: Sequence[Any], notes: Notes, root: str) -> Tree:
    lists = [
        _unstack(spec.item, value, row, root) if spec.stack else _as_tuple(value, row, notes, root)
        for row, value in enumerate(values)
    ]
    for row, value in enumerate(lists):
        if len(value) > spec.maximum:
            got = f"{len(value)} items: {_shown(values[row])}"
            raise BadLeaf("E103", row, root, f"at most {spec.maximum} items", got)
    column = zeros(spec, len(values))
    column["length"][:] = list(map(len, lists))
    row_of, place_of = filled_items(column)
    flat = [item for value in lists for item in value]
    items = _collect_at(spec.item, flat, lambda i: (int(row_of[i]), f"{root}[{place_of[i]}]"), notes)
    put(column["items"], (row_of, place_of), items)
    return column


def _unstack(spec: Spec, value: Any, row: int, root: str) -> list[Any]:
    """The items of a stacked value."""
    if not isinstance(spec, DictSpec | TupleSpec):
        return list(_as_tuple(value, row, None, root))
    value = _whole(spec, value, row, None, root)
    parts = [_unstack(part, value[key], row, keyed(root, key)) for key, part in spec.parts]
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise BadLeaf("E103", row, root, "stacked parts of one length", f"lengths {lengths}")
    return list(map(spec.formed, zip(*parts, strict=True)))


def _collect_one_of(spec: OneOfSpec, values: Sequence[Any], notes: Notes, root: str) -> Tree:
    pairs = [_as_tuple(value, row, notes, root) for row, value in enumerate(values)]
    for row, pair in enumerate(pairs):
        _check_size(2, pair, row, root, "(choice, value) pair")
    column = zeros(spec, len(values))
    choice = collect(DiscreteSpec(len(spec.items)), [pair[0] for pair in pairs], notes, f"{root}[0]")
    column["choice"] = choice
    for i, part in enumerate(spec.items):
        row_of = np.flatnonzero(choice == i).tolist()
        place = [(row, f"{root}[1]") for row in row_of]
        chosen = _collect_at(part, [pairs[row][1] for row in row_of], place.__getitem__, notes)
        put(column["values"][i], row_of, chosen)
    return column


def contains(spec: Spec, value: Any) -> bool:
    """Whether one env value can enter a column (conversions allowed) and lies inside all bounds."""
    try:
        column = collect(spec, [value])
    except BadLeaf:
        return False
    return not outside(spec, column)
