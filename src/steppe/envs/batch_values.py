"""The forms in which values of n envs come and go: lists over them, arrays, dicts and tuples of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np

from steppe import spaces
from steppe.spaces import BadLeaf, DictSpec, OneOfSpec, SequenceSpec, Spec, TupleSpec
from steppe.spaces.columns import keyed, map_parts
from steppe.types import Array, BoolArray, IntArray, Tree

_FINAL_KEYS = ("final_obs", "final_info")


class BadResult(Exception):  # noqa: N818 - an answer for the adapter, which turns it into an EnvError
    """What a vector env returned has a wrong form; ``row`` is the env that did, as far as that is known."""

    def __init__(self, code: str, message: str, leaf: str, row: int = 0) -> None:
        super().__init__(message)
        self.code, self.leaf, self.row = code, leaf, row


def kind_of(value: Any) -> str:
    """A short text of what came."""
    return f"{len(value)} items" if isinstance(value, (tuple, list)) else type(value).__name__


def are_infos(value: Any, n: int) -> bool:
    """Whether these are n infos."""
    listed = isinstance(value, (list, tuple)) and len(value) == n
    return listed and all(isinstance(info, dict) for info in value)


def batched(spec: Spec, column: Tree) -> Any:
    """A column of actions as Gymnasium batches them; a fresh copy."""
    match spec:
        case DictSpec() | TupleSpec():
            return map_parts(batched, spec, column)
        case SequenceSpec() | OneOfSpec():
            return tuple(spaces.rows(spec, column))
        case _:
            return np.asarray(column).astype(spec.dtype, order="C", casting="same_kind")


def filler(spec: Spec, n: int) -> Tree:
    """A column of valid actions, for envs that do nothing with theirs."""
    return spaces.clip(spec, spaces.zeros(spec, n))


def numpy_of(given: Any, name: str, code: str = "E102", row: int = 0) -> Any:
    """An array of another library, such as JAX or torch, as numpy's own; anything else as it is.

    Raises:
        BadLeaf: numpy cannot read it, such as one on a GPU.
    """
    kind = type(given)
    if not _is_foreign(kind):
        return given
    try:
        return np.asarray(given) if hasattr(kind, "__array__") else np.from_dlpack(given)
    except Exception as error:  # of any kind: each library has its own
        expected = "an array that numpy can read (of a tensor: .detach().cpu().numpy())"
        raise BadLeaf(code, row, name, expected, f"a {kind.__name__}: {error}") from None


def readable(values: Sequence[Any], name: str, code: str = "E102") -> Sequence[Any]:
    """Those of the values that are arrays of another library as numpy's own.

    Raises:
        BadLeaf: numpy cannot read one.
    """
    if not any(map(_is_foreign, set(map(type, values)))):
        return values
    return [numpy_of(value, name, code, row) for row, value in enumerate(values)]


def _is_foreign(kind: type) -> bool:
    ours = issubclass(kind, np.ndarray | np.generic)
    return not ours and (hasattr(kind, "__array__") or hasattr(kind, "__dlpack__"))


def over_envs(name: str, given: Any, n: int) -> Any:
    """Rewards or flags, one for each of the n envs: an array, or a list or tuple.

    Raises:
        BadLeaf: numpy cannot read them.
        BadResult: they are not n.
    """
    values = numpy_of(given, name, "E301")
    counted = is_over_envs(values)
    if not counted or len(values) != n:
        got = f"{len(values)} of them" if counted else f"a {type(given).__name__}"
        raise BadResult("E301", f"{name}: got {got}; return one for each of the {n} envs", "step")
    return values if isinstance(values, np.ndarray) else readable(values, name, "E301")


def check_order(spec: Spec, given: Any, n: int, root: str = "obs") -> None:
    """Judge that a list or tuple is over the envs: where parts are as many as envs, its look may not tell.

    Raises:
        BadLeaf: it may be a tuple of batches.
    """
    if isinstance(spec, DictSpec) and isinstance(given, Mapping):
        for key, part in spec.items:
            check_order(part, given.get(key), n, keyed(root, key))
    elif isinstance(spec, TupleSpec | OneOfSpec) and isinstance(given, (list, tuple)):
        parts = len(spec.items) if isinstance(spec, TupleSpec) else 2
        if len(given) == parts and (n != parts or not all(_in_tuples(spec, one) for one in given)):
            expected = f"a list of {n} tuples, one for each env"
            got = f"{kind_of(given)} that may be batches of its {parts} parts; return list(zip(*batches))"
            raise BadLeaf("E105", 0, root, expected, got)


def _in_tuples(spec: Spec, value: Any) -> bool:
    """Whether there is a tuple wherever a space of parts hands out one."""
    match spec:
        case TupleSpec():
            parts = zip(spec.items, value, strict=False) if isinstance(value, tuple) else ()
            return isinstance(value, tuple) and all(_in_tuples(part, one) for part, one in parts)
        case DictSpec():
            whole = isinstance(value, Mapping)
            return not whole or all(_in_tuples(part, value.get(key)) for key, part in spec.items)
        case OneOfSpec():
            return isinstance(value, tuple)
        case _:
            return True


def column_of(spec: Spec, given: Any, n: int) -> Tree | None:
    """A fresh column out of batched values if nothing at all is to be said about them, else None."""
    match spec:
        case DictSpec() | TupleSpec():
            if isinstance(given, list) or not _has_parts(spec, given):  # a list is over the envs
                return None
            parts = [column_of(part, given[key], n) for key, part in spec.parts]
            return None if any(part is None for part in parts) else spec.formed(parts)
        case SequenceSpec() | OneOfSpec():
            return None
        case _:
            return _leaf_column(spec, given, n)


def _has_parts(spec: DictSpec | TupleSpec, given: Any) -> bool:
    """Whether a batch has the form of its space."""
    if isinstance(spec, DictSpec):
        return isinstance(given, Mapping) and given.keys() == {key for key, _ in spec.items}
    return isinstance(given, (tuple, list)) and len(given) == len(spec.items)


def _leaf_column(spec: spaces.spec.LeafSpec, given: Any, n: int) -> Array | None:
    try:
        given = numpy_of(given, "obs")
    except BadLeaf:  # said where its place in the tree is known
        return None
    if type(given) is not np.ndarray or given.shape != (n, *spec.shape):
        return None
    integer = isinstance(spec, spaces.DiscreteSpec) and given.dtype.kind in "iu"
    if given.dtype != spec.dtype and not integer:
        return None
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        return None
    if spec.limits is not None and ((given < spec.limits[0]) | (given > spec.limits[1])).any():
        return None
    return np.array(given, spec.dtype, order="C")


def values_of(spec: Spec, given: Any, n: int, *, listed: bool, root: str = "obs") -> list[Any]:
    """The n values of one batch, whatever they are.

    Raises:
        BadLeaf: they are not n, or not in the form of their space.
    """
    if listed and isinstance(given, (list, tuple)):
        return _counted(given, n, root)
    if not isinstance(spec, DictSpec | TupleSpec):
        return _counted(given, n, root)
    if not _has_parts(spec, given):
        expected, got = f"a tuple of {len(spec.items)} batches", kind_of(given)
        if isinstance(spec, DictSpec):
            expected = f"a dict of batches with keys {[key for key, _ in spec.items]}"
            got = f"keys {sorted(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise BadLeaf("E105", 0, root, expected, got)
    parts = (values_of(part, given[key], n, listed=listed, root=keyed(root, key)) for key, part in spec.parts)
    return list(map(spec.formed, zip(*parts, strict=True)))


def _counted(given: Any, n: int, root: str) -> list[Any]:
    values = numpy_of(given, root)
    counted = is_over_envs(values)
    if not counted or len(values) != n:
        got = f"{len(values)} of them" if counted else type(given).__name__
        raise BadLeaf("E103", 0, root, f"{n} values, one for each env", got)
    return list(values)


def is_over_envs(value: Any) -> bool:
    """Whether this has a length that can be the number of envs."""
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def final_values(infos: Any, envs: IntArray, spec: Spec, n: int) -> list[Any]:
    """Last observations of envs that were reset within their last step.

    Raises:
        BadLeaf: they are neither n nor in the form of their space.
        BadResult: they are not in the infos.
    """
    found = infos.get("final_obs") if isinstance(infos, Mapping) else None
    if found is None:
        message = 'an env that resets in the same step puts its last observation into infos["final_obs"]'
        raise BadResult("E301", message, "final_obs", int(envs[0]))
    per_env = isinstance(found, (list, np.ndarray)) and len(found) == n
    values = list(found) if per_env else values_of(spec, found, n, listed=False, root="final_obs")
    return [values[i] for i in envs.tolist()]


@final
class Infos(Mapping[int, dict[str, Any]]):
    """Infos by slot, taken out of a batch when somebody looks; empty ones are left out.

    Args:
        parts: of each, the infos over the n envs, and slots and envs of its rows.
        n: number of envs.
    """

    def __init__(self, parts: Sequence[tuple[Any, IntArray, IntArray]], n: int) -> None:
        self._parts, self._n = parts, n

    @cached_property
    def _all(self) -> dict[int, dict[str, Any]]:
        return {
            slot: info
            for infos, slots, envs in self._parts
            for slot, info in zip(slots.tolist(), split_infos(infos, envs, self._n), strict=True)
            if info
        }

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return self._all[slot]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return repr(self._all)


def split_infos(infos: Any, envs: IntArray, n: int) -> list[dict[str, Any]]:
    """An info for each of ``envs`` out of a list of them, or out of Gymnasium's arrays with their masks."""
    if not isinstance(infos, Mapping):
        return [dict(infos[i]) for i in envs.tolist()]
    found: list[dict[str, Any]] = [{} for _ in envs]
    for key, value in infos.items():
        mask = infos.get(f"_{key}")
        if key in _FINAL_KEYS or (isinstance(key, str) and key[:1] == "_" and key[1:] in infos):
            continue
        chosen: BoolArray = np.ones(len(envs), np.bool_) if mask is None else np.asarray(mask)[envs]
        rows = np.flatnonzero(chosen)
        if isinstance(value, Mapping):
            for row, part in zip(rows.tolist(), split_infos(value, envs[rows], n), strict=True):
                if part or mask is not None:
                    found[row][key] = part
        elif is_over_envs(value) and len(value) == n:
            for row in rows.tolist():
                found[row][key] = value[envs[row]]
        else:  # said of the whole batch
            for row in rows.tolist():
                found[row][key] = value
    return found


def has_infos(infos: Any) -> bool:
    """Whether there is anything in the infos of a batch."""
    return bool(infos) if isinstance(infos, Mapping) else any(infos)


def check_infos(infos: Any, n: int, *, listed: bool) -> None:
    """Judge that infos come as a list of n, or as one dict of arrays.

    Raises:
        BadResult: they do not.
    """
    if listed and not (isinstance(infos, (list, tuple)) and len(infos) == n):
        raise BadResult("E303", f"infos: got {kind_of(infos)}; return a list of {n} dicts", "info")
    if not listed and not isinstance(infos, Mapping):
        raise BadResult("E303", f"infos: got {kind_of(infos)}; return a dict, {{}} if it is empty", "info")


def check_kind(own: Array, given: Any) -> None:
    """As an assignment would cut fractions off without a word."""
    if not np.can_cast(given.dtype, own.dtype, "same_kind"):
        raise TypeError(f"an action column of {given.dtype}, the space is of {own.dtype}")
