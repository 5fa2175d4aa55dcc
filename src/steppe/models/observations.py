"""What networks see in an observation, without JAX: which leaves are images, and which are normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from steppe.spaces import BoxSpec, DictSpec, OneOfSpec, SequenceSpec, Spec, TupleSpec
from steppe.spaces.columns import keyed
from steppe.types import Array, Tree

MASK = "action_mask"
"""The key of a Dict observation that says which actions are legal."""
MIN_SIDE = 16
"""The smallest image side for which there is a default stack of convolutions."""
EPSILON = 1e-8
"""Added to a variance that divides."""
CLIP = 10.0
"""Largest magnitude of a normalised number."""
_MAX_CHANNELS = 16
_WIDE_RANGE = 10
_LARGEST = 1e14  # sums of squares of larger numbers would leave float32


@final
class MixedFilters(tuple[Sequence[int], ...]):
    """``conv_filters`` of a CNN whose products are of bfloat16 numbers; empty: by the images' size."""


class Embeddings(NamedTuple):
    """Where an observation describes the choices: the key of a Box that has a row of numbers a choice."""

    key: str
    width: int


class Sight(NamedTuple):
    """Who sees which part of an observation; :func:`steppe.models.sight.sight_of` makes it of Dicts.

    Attributes:
        whole: what envs give.
        acting: what acting reads.
        actor: what the policy's network sees: that without a mask.
        critic: what the value's network sees, and what has statistics: the whole without a mask.
        masked: whether ``acting`` has a mask of the actions.
        critic_only: keys that acting does not read.
        embeddings: where the choices are described, which no encoder sees; None where they are not.
    """

    whole: Spec
    acting: Spec
    actor: Spec
    critic: Spec
    masked: bool = False
    critic_only: tuple[str, ...] = ()
    embeddings: Embeddings | None = None


def image_axis(spec: BoxSpec) -> int | None:
    """The channel axis (0 or 2) if a Box looks like an image, else None.

    An image has three axes and dtype uint8 or float. Its channels are the smaller of the first and the last
    axis (the last in a tie) and at most 16; both other sides are at least 16.
    """
    if len(spec.shape) != 3 or not (np.dtype(spec.dtype) == np.uint8 or np.dtype(spec.dtype).kind == "f"):
        return None
    axis = 0 if spec.shape[0] < spec.shape[2] else 2
    sides = spec.shape[1:] if axis == 0 else spec.shape[:2]
    return axis if 1 <= spec.shape[axis] <= _MAX_CHANNELS and min(sides) >= MIN_SIDE else None


def normalized_leaves(spec: Spec, root: str = "obs") -> dict[str, BoxSpec]:
    """The leaves that observation statistics cover, by path, in the order of the spec.

    They are float Boxes, and integer Boxes in which an element spans more than 10, unless they look like
    images. Inside a Sequence or OneOf a leaf counts too; items share one mean and variance an element.
    """
    if isinstance(spec, BoxSpec):
        kind = np.dtype(spec.dtype).kind
        span = np.subtract(spec.high, spec.low, dtype=np.float64) if kind in "iu" else np.zeros(0)
        covered = kind == "f" or bool((span > _WIDE_RANGE).any())
        return {root: spec} if covered and image_axis(spec) is None else {}
    found: dict[str, BoxSpec] = {}
    for part, path in _inner(spec, root):
        found |= normalized_leaves(part, path)
    return found


def has_image(spec: Spec) -> bool:
    """Whether a leaf of an observation looks like an image."""
    if isinstance(spec, BoxSpec):
        return image_axis(spec) is not None
    return any(has_image(part) for part, _ in _inner(spec, ""))


def norm_init(spec: Spec) -> tuple[Array, ...]:
    """Statistics of no rows: ``count ()``, ``mean (*shape)``, ``m2 (*shape)`` per covered leaf, float32.

    ``m2`` is the sum of squared distances from the mean.
    """
    stats: list[Array] = []
    for leaf in normalized_leaves(spec).values():
        stats += [
            np.zeros((), np.float32),
            np.zeros(leaf.shape, np.float32),
            np.zeros(leaf.shape, np.float32),
        ]
    return tuple(stats)


def visit(spec: Spec, obs: Tree, mask: Any, fn: Callable[[BoxSpec, Any, Any], Any]) -> Tree:
    """``obs`` with covered leaves replaced by ``fn(leaf, float32 values, which of them are real)``.

    Written with operators and methods alone, so that it takes arrays of numpy and of JAX alike.

    Args:
        spec: the observation space.
        obs: one observation, or a tree with any leading axes.
        mask: bool, rows that are real; its axes lead.
        fn: called once a covered leaf, in the order of :func:`normalized_leaves`.

    Keys of a Dict that the space lacks, such as a mask, stay as they are.
    """
    if isinstance(spec, BoxSpec):
        if not normalized_leaves(spec):
            return obs
        return fn(spec, obs.astype(np.float32).clip(-_LARGEST, _LARGEST), mask)
    if isinstance(spec, DictSpec):
        return {**obs, **{key: visit(item, obs[key], mask, fn) for key, item in spec.items}}
    if isinstance(spec, TupleSpec):
        return tuple(visit(item, part, mask, fn) for item, part in zip(spec.items, obs, strict=True))
    if isinstance(spec, SequenceSpec):
        present = mask[..., None] & (np.arange(spec.maximum) < obs["length"][..., None])
        return {**obs, "items": visit(spec.item, obs["items"], present, fn)}
    if isinstance(spec, OneOfSpec):
        values = [
            visit(item, part, mask & (obs["choice"] == i), fn)
            for i, (item, part) in enumerate(zip(spec.items, obs["values"], strict=True))
        ]
        return {**obs, "values": tuple(values)}
    return obs


def _inner(spec: Spec, root: str) -> list[tuple[Spec, str]]:
    """The parts of a space, each with its path."""
    if isinstance(spec, DictSpec):
        return [(item, keyed(root, key)) for key, item in spec.items]
    if isinstance(spec, SequenceSpec):
        return [(spec.item, keyed(root, "items"))]
    if isinstance(spec, TupleSpec):
        return [(item, f"{root}[{i}]") for i, item in enumerate(spec.items)]
    if isinstance(spec, OneOfSpec):
        return [(item, f"{keyed(root, 'values')}[{i}]") for i, item in enumerate(spec.items)]
    return []
