"""Frames: observations seen together with those before them, without JAX and without parameters.

Rows, replays and states hold single observations; here they become what networks see. All is written with
operators and methods alone, so that it takes arrays of numpy and of JAX alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from steppe.errors import ConfigError
from steppe.models.observations import MASK, image_axis
from steppe.spaces import BoxSpec, DictSpec, Spec, TupleSpec, map_leaves, narrowed, summary, zeros
from steppe.types import SpacePair, Tree


class Frames(NamedTuple):
    """Which leaves of an observation are seen with their past; hashable.

    These are its Boxes, also in Dicts and Tuples. Images are put together along their channels, the oldest
    first, and an image without channels gets some; any other Box becomes a vector.

    Attributes:
        spec: of a single observation.
        depth: how many are seen together, the newest included.
        keep: keys of a Dict observation that are seen as they are now, such as a mask.
    """

    spec: Spec
    depth: int
    keep: tuple[str, ...] = (MASK,)

    def boxes(self, column: Tree) -> tuple[Any, ...]:
        """The arrays of a column, with any leading axes, that are stacked."""
        return tuple(array for _, array in _boxes(self.spec, column, self.keep))

    def seen(self, column: Tree, stacks: tuple[Any, ...]) -> Tree:
        """The column with stacks ``(..., depth, *shape)`` in place of its :meth:`boxes`."""
        rest = iter(stacks)
        return _replaced(self.spec, column, lambda leaf: _joined(leaf, next(rest)), self.keep)

    def joined(self, column: Tree, lead: int) -> Tree:
        """The same of a column whose arrays all have the frames behind their ``lead`` leading axes."""
        newest = (*(slice(None),) * lead, -1)
        return self.seen(map_leaves(lambda a: a[newest], column), self.boxes(column))

    def initial(self, n: int) -> dict[str, Any]:
        """What ``n`` fresh trajectories are met with: no frames yet.

        ``frames`` holds the observations before this one as :meth:`boxes` has them, ``(n, depth - 1, ...)``
        each, and ``seen`` ``(n,)`` is 0 on the first row of a trajectory, whose observation stands for those
        that never were.
        """
        past = narrowed(self.spec, zeros(self.spec, n, self.depth - 1))
        return {"frames": self.boxes(past), "seen": np.zeros(n, np.int8)}

    def step(self, column: Tree, state: Mapping[str, Any]) -> tuple[Tree, dict[str, Any]]:
        """What networks see of rows ``(n, ...)`` in numpy, and the state that the next ones are met with."""
        known, stacks = state["seen"] > 0, []
        for before, now in zip(state["frames"], self.boxes(column), strict=True):
            past = np.where(known.reshape(-1, *[1] * now.ndim), before, now[:, None]).astype(now.dtype)
            stacks.append(np.concatenate([past, now[:, None]], axis=1))
        after = {"frames": tuple(stack[:, 1:] for stack in stacks), "seen": np.ones_like(state["seen"])}
        return self.seen(column, tuple(stacks)), after


def framed(pair: SpacePair, count: int, *keep: str) -> tuple[Frames | None, SpacePair]:
    """How observations are stacked, None if they are not, and the spaces that networks then see.

    Args:
        pair: of single observations.
        count: observations that are seen together; 1 leaves them alone.
        keep: keys of a Dict observation that are not stacked, besides a mask.

    Raises:
        ConfigError: nothing there can be stacked, or images would get too many channels.
    """
    if count == 1:
        return None, pair
    frames = Frames(pair.observation, count, (MASK, *keep))
    return frames, pair._replace(observation=stacked_spec(frames))


def stacked_spec(frames: Frames) -> Spec:
    """The space of what networks see.

    Raises:
        ConfigError: see :func:`framed`.
    """
    if not any(True for _ in _boxes(frames.spec, None, frames.keep)):
        raise ConfigError(
            f"framestack={frames.depth} stacks Boxes, and there is none in {summary(frames.spec)}; leave it "
            'out, or let the policy remember: memory="lstm"'
        )

    def stacked(leaf: BoxSpec) -> BoxSpec:
        low, high = (
            _joined(leaf, np.broadcast_to(bound, (frames.depth, *leaf.shape)))
            for bound in (leaf.low, leaf.high)
        )
        whole = BoxSpec(low.shape, leaf.dtype, low, high)
        if _channels(leaf) is not None and image_axis(whole) is None:
            raise ConfigError(
                f"framestack={frames.depth} makes images {whole.shape} of {leaf.shape}, more channels than "
                "an image has here (16): stack fewer, or let the env give grey images"
            )
        return whole

    spec: Spec = _replaced(frames.spec, None, stacked, frames.keep)
    return spec


def _channels(leaf: BoxSpec) -> int | None:
    """The axis of an image's channels: 0 or 2, also where it has none yet; None of what is no image."""
    if len(leaf.shape) == 2:
        leaf = BoxSpec((*leaf.shape, 1), leaf.dtype, leaf.low[..., None], leaf.high[..., None])
    return image_axis(leaf)


def _joined(leaf: BoxSpec, stack: Any) -> Any:
    """``(..., depth, *shape)`` as one array, without the axis of its own."""
    lead, axis = stack.ndim - len(leaf.shape) - 1, _channels(leaf)
    first, count = stack.shape[:lead], stack.shape[lead]
    if axis is None:
        return stack.reshape(*first, count * prod(leaf.shape))
    if axis == 0:
        return stack.reshape(*first, count * leaf.shape[0], *leaf.shape[1:])
    height, width, *channels = leaf.shape
    stack = stack.reshape(*first, count, height, width, prod(channels))
    beside = stack.transpose(*range(lead), lead + 1, lead + 2, lead, lead + 3)
    return beside.reshape(*first, height, width, count * prod(channels))


def _boxes(spec: Spec, column: Tree, keep: tuple[str, ...] = ()) -> Iterator[tuple[BoxSpec, Any]]:
    """The Boxes that are stacked and their arrays, which are None where the column is."""
    if isinstance(spec, BoxSpec):
        yield spec, column
    elif isinstance(spec, DictSpec | TupleSpec):
        for key, part in spec.parts:
            if key not in keep:
                yield from _boxes(part, None if column is None else column[key])


def _replaced(spec: Spec, column: Tree, fn: Callable[[BoxSpec], Any], keep: tuple[str, ...] = ()) -> Tree:
    """The column, or without one the spec, with ``fn(leaf)`` in place of the Boxes that are stacked."""
    if isinstance(spec, BoxSpec):
        return fn(spec)
    if not isinstance(spec, DictSpec | TupleSpec):
        return spec if column is None else column
    values = {
        key: (part if column is None else column[key])
        if key in keep
        else _replaced(part, None if column is None else column[key], fn)
        for key, part in spec.parts
    }
    if column is None:
        return (
            DictSpec(tuple(values.items())) if isinstance(spec, DictSpec) else TupleSpec((*values.values(),))
        )
    return {**column, **values} if isinstance(spec, DictSpec) else tuple(values.values())
