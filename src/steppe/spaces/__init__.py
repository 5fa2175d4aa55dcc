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

from steppe.spaces.collecting import BadLeaf as BadLeaf
from steppe.spaces.collecting import Conversions as Conversions
from steppe.spaces.collecting import collect as collect
from steppe.spaces.collecting import contains as contains
from steppe.spaces.columns import Outside as Outside
from steppe.spaces.columns import clip as clip
from steppe.spaces.columns import is_wide as is_wide
from steppe.spaces.columns import leaves as leaves
from steppe.spaces.columns import map_leaves as map_leaves
from steppe.spaces.columns import narrowed as narrowed
from steppe.spaces.columns import outside as outside
from steppe.spaces.columns import paths as paths
from steppe.spaces.columns import put as put
from steppe.spaces.columns import rows as rows
from steppe.spaces.columns import stack as stack
from steppe.spaces.columns import take as take
from steppe.spaces.columns import tupled as tupled
from steppe.spaces.columns import zeros as zeros
from steppe.spaces.description import describe as describe
from steppe.spaces.description import described as described
from steppe.spaces.description import from_description as from_description
from steppe.spaces.description import misfits as misfits
from steppe.spaces.description import spec_of as spec_of
from steppe.spaces.description import summary as summary
from steppe.spaces.spec import BoxSpec as BoxSpec
from steppe.spaces.spec import DictSpec as DictSpec
from steppe.spaces.spec import DiscreteSpec as DiscreteSpec
from steppe.spaces.spec import MultiBinarySpec as MultiBinarySpec
from steppe.spaces.spec import MultiDiscreteSpec as MultiDiscreteSpec
from steppe.spaces.spec import OneOfSpec as OneOfSpec
from steppe.spaces.spec import SequenceSpec as SequenceSpec
from steppe.spaces.spec import Spec as Spec
from steppe.spaces.spec import TupleSpec as TupleSpec
