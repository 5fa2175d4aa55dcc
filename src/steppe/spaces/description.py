"""Specs as JSON values and as short text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from steppe.errors import SpaceError
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
from steppe.types import Array


def _json_number(value: float) -> float | str:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _json_array(array: Array) -> Any:
    """One number when all are equal, else the nested list; infinities as text."""
    if array.size and (array == array.flat[0]).all():
        return _json_number(array.flat[0].item())
    numbers = np.array([_json_number(value) for value in array.ravel().tolist()], object)
    return numbers.reshape(array.shape).tolist()


def describe(spec: Spec) -> dict[str, Any]:
    """The spec as JSON values (infinities as ``"inf"``); :func:`from_description` is its inverse."""
    match spec:
        case BoxSpec():
            low, high = _json_array(spec.low), _json_array(spec.high)
            return {"kind": "Box", "shape": [*spec.shape], "dtype": spec.dtype.name, "low": low, "high": high}
        case DiscreteSpec():
            return {"kind": "Discrete", "n": spec.n, "start": spec.start}
        case MultiDiscreteSpec():
            return {
                "kind": "MultiDiscrete",
                "shape": [*spec.shape],
                "dtype": spec.dtype.name,
                "nvec": _json_array(spec.nvec),
                "start": _json_array(spec.start),
            }
        case MultiBinarySpec():
            return {"kind": "MultiBinary", "shape": [*spec.shape]}
        case DictSpec():
            return {"kind": "Dict", "items": {key: describe(part) for key, part in spec.items}}
        case TupleSpec():
            return {"kind": "Tuple", "items": [describe(part) for part in spec.items]}
        case SequenceSpec():
            item = describe(spec.item)
            return {"kind": "Sequence", "item": item, "maximum": spec.maximum, "stack": spec.stack}
        case OneOfSpec():
            return {"kind": "OneOf", "items": [describe(part) for part in spec.items]}


def _array(value: Any, shape: list[int], dtype: str) -> Array:
    """Undo ``_json_array``: numpy reads "inf" itself, and integers stay exact."""
    number = np.dtype(dtype)
    flat = [value] if not isinstance(value, list) else np.array(value, object).ravel().tolist()
    array = np.array([float(v) if number.kind == "f" else int(v) for v in flat], number)
    return np.broadcast_to(array[0], shape) if not isinstance(value, list) else array.reshape(shape)


def _box(d: dict[str, Any]) -> Spec:
    low, high = (_array(d[key], d["shape"], d["dtype"]) for key in ("low", "high"))
    return BoxSpec(tuple(d["shape"]), np.dtype(d["dtype"]), low, high)


def _multi_discrete(d: dict[str, Any]) -> Spec:
    nvec, start = (_array(d[key], d["shape"], "int64") for key in ("nvec", "start"))
    return MultiDiscreteSpec(nvec, start, np.dtype(d["dtype"]))


def _items(d: dict[str, Any]) -> tuple[Spec, ...]:
    return tuple(from_description(item) for item in d["items"])


_BUILDERS: dict[str, Callable[[dict[str, Any]], Spec]] = {
    "Box": _box,
    "Discrete": lambda d: DiscreteSpec(d["n"], d["start"]),
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": lambda d: MultiBinarySpec(tuple(d["shape"])),
    "Dict": lambda d: DictSpec(tuple((key, from_description(item)) for key, item in d["items"].items())),
    "Tuple": lambda d: TupleSpec(_items(d)),
    "Sequence": lambda d: SequenceSpec(from_description(d["item"]), d["maximum"], d["stack"]),
    "OneOf": lambda d: OneOfSpec(_items(d)),
}


def from_description(description: dict[str, Any]) -> Spec:
    """Rebuild a spec from what :func:`describe` returned.

    Raises:
        SpaceError: the description is damaged, or of a newer kind.
    """
    kind = description.get("kind") if isinstance(description, dict) else None
    if not isinstance(kind, str) or kind not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise SpaceError(
            f"no description of a space: expected a dict whose kind is one of {known}, got {kind!r}"
        )
    try:
        return _BUILDERS[kind](description)
    except SpaceError:
        raise
    except KeyError as error:
        raise SpaceError(f"description of a {kind} space lacks {error}") from None
    except (TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        raise SpaceError(f"description of a {kind} space is damaged: {error}") from None


def summary(spec: Spec) -> str:
    """Short text for people, such as ``Dict(a: Box(4,) float32, b: Discrete(2))``."""
    match spec:
        case BoxSpec():
            return f"Box{spec.shape} {spec.dtype}"
        case DiscreteSpec():
            return f"Discrete({spec.n}, start={spec.start})" if spec.start else f"Discrete({spec.n})"
        case MultiDiscreteSpec():
            start = f", start={spec.start.tolist()}" if spec.start.any() else ""
            return f"MultiDiscrete({spec.nvec.tolist()}{start})"
        case MultiBinarySpec():
            return f"MultiBinary{spec.shape}"
        case DictSpec():
            return f"Dict({', '.join(f'{key}: {summary(part)}' for key, part in spec.items)})"
        case TupleSpec():
            return f"Tuple({', '.join(map(summary, spec.items))})"
        case SequenceSpec():
            return f"Sequence({summary(spec.item)}, at most {spec.maximum})"
        case OneOfSpec():
            return f"OneOf({', '.join(map(summary, spec.items))})"
