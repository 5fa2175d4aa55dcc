"""Columns of any space: describe it, collect values into arrays, check them, give them back row by row.

A :data:`Spec` is a small immutable tree that describes a space. A *column* is what the values of many
envs become: one array, or dicts and tuples of arrays with one leading axis.

===============  =====================================================================
space            column of ``n`` values
===============  =====================================================================
Box              ``(n, *shape)`` in its dtype
Discrete         ``(n,)`` int64, the raw values (``start`` included)
MultiDiscrete    ``(n, *nvec.shape)`` in its dtype (int64 unless the space says otherwise)
MultiBinary      ``(n, *shape)`` int8
Dict             dict of columns, keys sorted
Tuple            tuple of columns
Sequence         ``{"items": column of (n, maximum, ...), "length": (n,) int64}``, zero padded
OneOf            ``{"choice": (n,) int64, "values": tuple of columns}``, zeros where not chosen
===============  =====================================================================

Spaces are recognised by class name and attributes, so that neither Gymnasium nor gym is imported here.
"""

from steppe.spaces.collecting import BadLeaf, Conversions, collect, contains
from steppe.spaces.columns import (
    Outside,
    clip,
    is_wide,
    leaves,
    map_leaves,
    narrowed,
    outside,
    paths,
    put,
    rows,
    stack,
    take,
    tupled,
    zeros,
)
from steppe.spaces.comparison import described, misfits
from steppe.spaces.description import describe, from_description, summary
from steppe.spaces.recognition import spec_of
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

__all__ = [
    "BadLeaf",
    "BoxSpec",
    "Conversions",
    "DictSpec",
    "DiscreteSpec",
    "MultiBinarySpec",
    "MultiDiscreteSpec",
    "OneOfSpec",
    "Outside",
    "SequenceSpec",
    "Spec",
    "TupleSpec",
    "clip",
    "collect",
    "contains",
    "describe",
    "described",
    "from_description",
    "is_wide",
    "leaves",
    "map_leaves",
    "misfits",
    "narrowed",
    "outside",
    "paths",
    "put",
    "rows",
    "spec_of",
    "stack",
    "summary",
    "take",
    "tupled",
    "zeros",
]
