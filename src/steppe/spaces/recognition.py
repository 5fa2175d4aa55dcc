"""From a space object to its spec, by class name and attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


def _multi_discrete(read: _Reader) -> Spec:
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
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Dict": _dict,
    "Tuple": lambda read: TupleSpec(read.children()),
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
        f" {', '.join(k for k in _READERS if k not in ('Text', 'Graph'))}, or a subclass of one"
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
