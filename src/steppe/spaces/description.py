"""Specs from space objects, by class name and attributes; from and to JSON; as text; and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steppe.errors import SpaceError
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
from steppe.types import Array

# --- from space objects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads attributes of one space for messages that name where it stands in the tree."""

    space: Any
    name: str
    maximum: int | None

    def get(self, attribute: str) -> Any:
        try:
            return getattr(self.space, attribute)
        except AttributeError:
            kind = type(self.space).__name__
            raise SpaceError(f"{self.name}: {kind} space has no attribute {attribute!r}") from None

    def child(self, space: Any, suffix: str) -> Spec:
        return _read(space, self.name + suffix, self.maximum)

    def children(self) -> tuple[Spec, ...]:
        spaces = self.get("spaces")
        if not isinstance(spaces, Iterable):
            raise SpaceError(f"{self.name}: .spaces must be the spaces of its parts, got {spaces!r}")
        return tuple(self.child(space, f"[{i}]") for i, space in enumerate(spaces))


def _multi_discrete_of(read: _Reader) -> Spec:
    dtype = getattr(read.space, "dtype", None) or np.int64
    start = np.asarray(getattr(read.space, "start", 0))
    return MultiDiscreteSpec(read.get("nvec"), start, np.dtype(dtype))


def _multi_binary(read: _Reader) -> Spec:
    shape = getattr(read.space, "shape", None)
    return MultiBinarySpec(tuple(np.atleast_1d(read.get("n")).tolist()) if shape is None else shape)


def _dict(read: _Reader) -> Spec:
    spaces = read.get("spaces")
    try:
        parts = list(spaces.items())
    except AttributeError:
        raise SpaceError(f"{read.name}: .spaces of a Dict must be a dict") from None
    return DictSpec(tuple((key, read.child(space, f"[{key!r}]")) for key, space in parts))


def _sequence(read: _Reader) -> Spec:
    maximum = getattr(read.space, "max_length", None)
    maximum = read.maximum if maximum is None else maximum
    if maximum is None:
        raise SpaceError(
            f"{read.name}: a Sequence needs a longest length, since columns have a fixed size: set"
            " `space.max_length = 32` on it, or `max_sequence_length=32` in the config"
        )
    item = read.child(read.get("feature_space"), "[i]")
    return SequenceSpec(item, maximum, bool(getattr(read.space, "stack", False)))


def _repeated(read: _Reader) -> Spec:
    """RLlib's Sequence."""
    return SequenceSpec(read.child(read.get("child_space"), "[i]"), read.get("max_len"), False)


def _text(read: _Reader) -> Spec:
    raise SpaceError(
        f"{read.name}: Text spaces are not supported, since how text becomes numbers is the task's own"
        " choice: encode it in the env or a wrapper, for example as a MultiDiscrete of token numbers"
    )


def _graph(read: _Reader) -> Spec:
    raise SpaceError(
        f"{read.name}: Graph spaces are not supported, since no column of a fixed size holds them: give the"
        " nodes as a Sequence of Box with a longest length, and the edges as a second one or a dense Box"
    )


_READERS: dict[str, Callable[[_Reader], Spec]] = {
    "Box": lambda read: BoxSpec(*map(read.get, ("shape", "dtype", "low", "high"))),
    "Discrete": lambda read: DiscreteSpec(read.get("n"), getattr(read.space, "start", 0)),
    "MultiDiscrete": _multi_discrete_of,
    "MultiBinary": _multi_binary,
    "Dict": _dict,
    "Tuple": lambda read: TupleSpec(read.children()),
    "Repeated": _repeated,
    "Sequence": _sequence,
    "OneOf": lambda read: OneOfSpec(read.children()),
    "Text": _text,
    "Graph": _graph,
}
_NOT_SPACES = ("builtins", "collections.abc", "typing")


def _filled(spec: Spec, kind: str) -> Spec:
    """``spec``, once it is known to hold a number."""
    if isinstance(spec, LeafSpec) and 0 in spec.shape:
        raise SpaceError(f"{kind} of shape {spec.shape} holds no values: leave it out, or give it one")
    return spec


def _read(space: Any, name: str, maximum: int | None) -> Spec:
    if isinstance(space, Spec):
        return space
    if space is None:
        raise SpaceError(f"{name} space is None: set it on the env, or give it in the config")
    if isinstance(space, type):
        cls = space.__name__
        raise SpaceError(f"{name} space is the class {cls}: give an instance, {cls}(...)")
    for base in type(space).__mro__:
        reader = None if base.__module__ in _NOT_SPACES else _READERS.get(base.__name__)
        if reader is not None:
            try:
                return _filled(reader(_Reader(space, name, maximum)), base.__name__)
            except (TypeError, ValueError, OverflowError) as error:
                if isinstance(error, SpaceError) and str(error).startswith(name):
                    raise  # it already says where in the tree
                raise SpaceError(f"{name}: {error}") from None
    raise SpaceError(
        f"{name} space is {type(space).__name__}, which is not known: use one of"
        f" {', '.join(k for k in _READERS if k not in ('Repeated', 'Text', 'Graph'))}, or a subclass of one"
    )


def spec_of(space: Any, *, max_sequence_length: int | None = None, name: str = "observation") -> Spec:
    """Describe a Gymnasium or gym space; a spec is returned as it is.

    Args:
        space: recognised by the names of its classes and their attributes; subclasses count.
        max_sequence_length: longest Sequence, for those that have no ``max_length`` of their own.
        name: what messages call the space.

    Raises:
        SpaceError: the space is of an unknown class, cannot be a column (Text, Graph, a Sequence of no
            declared length), holds no values, or is no space at all; the message says what to do.
    """
    return _read(space, name, max_sequence_length)


# --- as JSON values ----------------------------------------------------------------------------------------


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


# --- compared -----------------------------------------------------------------------------------------------

_WIDE = ("int64", "uint64")


def described(observation: Spec, action: Spec) -> dict[str, Any]:
    """A pair of spaces as :func:`misfits` takes it."""
    return {"observation": describe(observation), "action": describe(action)}


def misfits(trained: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, str]:
    """What sets an env's spaces apart from those that a policy was made for.

    Actions must mean the same, bounds included. Observations need the same kinds, shapes and sizes. How many
    bits a number has does not count, except for a Box of 64-bit integers, which is read in another way.

    Args:
        trained: descriptions (:func:`describe`) under ``observation``, ``action``.
        given: those of the env, likewise.

    Returns:
        What forbids to act there, and what should only be known: bounds of observations that differ. Each is
        text such as "action space Discrete(3), here Discrete(5) (n 3, here 5)", or "".

    Raises:
        SpaceError, LookupError, TypeError, AttributeError: a description is damaged.
    """
    odd = {name: _odd(trained[name], given[name]) for name in ("observation", "action")}
    bounds = [text for path, text in odd["observation"].items() if path.endswith((".low", ".high"))]
    wrong = {"observation": [text for text in odd["observation"].values() if text not in bounds]}
    wrong["action"] = list(odd["action"].values())
    hard = [_words(name, trained, given, texts) for name, texts in wrong.items() if texts]
    soft = _words("observation", trained, given, bounds) if bounds and not wrong["observation"] else ""
    return " and ".join(hard), soft


def _words(name: str, trained: Mapping[str, Any], given: Mapping[str, Any], texts: list[str]) -> str:
    there, here = (summary(from_description(spaces[name])) for spaces in (trained, given))
    return f"{name} space {there}, here {here} ({'; '.join(texts[:3])})"


def _odd(trained: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """Where two descriptions differ, by path."""
    there, here = dict(_details(trained, "")), dict(_details(given, ""))
    return {
        path: f"{path.removeprefix('.')} {_short(there, path)}, here {_short(here, path)}"
        for path in {**there, **here}
        if path not in there or path not in here or there[path] != here[path]
    }


def _short(details: Mapping[str, Any], path: str) -> str:
    return f"{details[path]!s:.40}" if path in details else "nothing"


def _details(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Every detail of a description and its path, such as ``['a'].n``."""
    for key, value in node.items():
        if key == "items":
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            for name, part in parts:
                yield from _details(part, f"{path}[{name!r}]")
        elif key == "item":
            yield from _details(value, f"{path}[i]")
        elif key == "dtype":
            wide = node["kind"] == "Box" and value in _WIDE
            yield f"{path}.dtype", value if wide else value.rstrip("0123456789")
        else:
            yield f"{path}.{key}", value
