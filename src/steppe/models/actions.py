"""Actions in numpy alone: the way between policy and env units, and choosing from given parameters.

What :mod:`steppe.models.distributions` does inside compiled functions rests on the same leaves, so where a
parameter lies and what a leaf looks like is said once, here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, final

import numpy as np

from steppe.errors import SpaceError
from steppe.spaces import (
    BoxSpec,
    DictSpec,
    DiscreteSpec,
    MultiBinarySpec,
    MultiDiscreteSpec,
    Spec,
    TupleSpec,
    summary,
)
from steppe.types import Array, FloatArray, Tree

if TYPE_CHECKING:
    from steppe.models.autoregressive import Chain, Part

MASKED = -1e9
"""Logit of a forbidden choice: far below any other, and finite, so that no gradient becomes NaN."""
LOG_STD_RANGE = (-20.0, 2.0)
"""Where log standard deviations are kept that a network gives off-policy learners (Haarnoja et al., 2018)."""
_UNBOUNDED = 1e9  # wider bounds, such as the limits of int32 or float32, say nothing about the action's scale
SQUASH_EDGE = 1.0 - 1e-6


class ActionLeaf(ABC):
    """One array of actions.

    Attributes:
        shape: of one action.
        heads: how many logits or means say it.
        scales: how many log standard deviations.
        noise: how many uniforms a draw needs.
        counts: of each of several choices how many there are; else empty.
        width: the largest of those, also of one choice; 0 where nothing is chosen from.
    """

    shape: tuple[int, ...]
    heads: int
    scales: int
    noise: int
    counts: tuple[int, ...] = ()
    width: int = 0

    def parts(self) -> Sequence[ActionLeaf]:
        """What of it can be chosen one after the other: choice by choice, anything else all at once."""
        return [Choices(np.asarray(n), np.asarray(0), np.dtype(np.int64)) for n in self.counts] or [self]

    def split(self, action: Any) -> list[Any]:
        """An action ``(..., *shape)`` by these parts; of numpy or of JAX, as with ``numbers``."""
        flat = self._flat(action) if self.counts else action
        return [flat[..., i] for i in range(self.noise)] if self.counts else [action]

    def numbers(self, action: Any) -> Any:
        """What others are told of an action of one part: ``(..., heads)`` float32; choices are one-hot."""
        told = action[..., None] == np.arange(self.width) if self.width else self._flat(action)
        return told.astype(np.float32)

    def _flat(self, action: Any) -> Any:
        return action.reshape(*action.shape[: action.ndim - len(self.shape)], self.noise)

    @abstractmethod
    def mode(self, head: FloatArray) -> Array:
        """The likeliest ``(n, *shape)`` from ``(n, heads)``."""

    @abstractmethod
    def sample(self, head: FloatArray, scale: FloatArray, noise: FloatArray) -> Array:
        """``(n, *shape)`` from parameters and uniforms in the open (0, 1), ``(n, noise)``."""

    @abstractmethod
    def to_env(self, action: Array) -> Array:
        """A fresh column of env actions."""

    @abstractmethod
    def from_env(self, action: Array) -> Array:
        """A fresh column in policy units."""


@final
class Choices(ActionLeaf):
    """Independent choices; those of unequal numbers are padded to the largest."""

    def __init__(self, nvec: Array, start: Array, dtype: np.dtype[Any]) -> None:
        counts = np.asarray(nvec, np.int64).ravel()
        self.shape, self.start, self.dtype = np.shape(nvec), np.asarray(start, np.int64), dtype
        self.heads, self.scales, self.noise = int(counts.sum()), 0, counts.size
        self.width, self.counts = int(counts.max(initial=1)), tuple(counts.tolist()) if self.shape else ()
        self.even = bool((counts == self.width).all())
        columns = np.arange(self.width)
        self.present = columns < counts[:, None]
        offsets = np.cumsum(counts) - counts
        self.index = np.where(self.present, offsets[:, None] + columns, 0)

    def mode(self, head: FloatArray) -> Array:
        """Of the largest logit."""
        return self._shaped(np.argmax(self.logits(head), -1))

    def sample(self, head: FloatArray, scale: FloatArray, noise: FloatArray) -> Array:
        """By the inverse of the cumulative distribution."""
        logits = self.logits(head)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        cdf = np.cumsum(p, -1)
        reached = (cdf >= noise[..., None] * cdf[..., -1:]) & (p > 0.0)
        return self._shaped(np.argmax(reached, -1))

    def to_env(self, action: Array) -> Array:
        """Counted from the space's start."""
        return (np.asarray(action, np.int64) + self.start).astype(self.dtype, copy=False)

    def from_env(self, action: Array) -> Array:
        """Counted from 0."""
        return np.asarray(action - self.start, np.int32)

    def logits(self, head: FloatArray) -> FloatArray:
        """``(n, choices, width)``; padding is masked."""
        if self.even:
            return head.reshape(-1, self.noise, self.width)
        return np.where(self.present, head[..., self.index], np.float32(MASKED))

    def _shaped(self, choices: Array) -> Array:
        return choices.reshape(-1, *self.shape).astype(np.int32)


@final
class Bits(ActionLeaf):
    """Independent bits; a logit is the log-odds of 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.heads = self.noise = prod(shape)
        self.scales = 0

    def mode(self, head: FloatArray) -> Array:
        """1 where that is likelier."""
        return (head > 0.0).reshape(-1, *self.shape).astype(np.int8)

    def sample(self, head: FloatArray, scale: FloatArray, noise: FloatArray) -> Array:
        """1 with the probability that the logit says."""
        return (noise * (1.0 + np.exp(-head)) < 1.0).reshape(-1, *self.shape).astype(np.int8)

    def to_env(self, action: Array) -> Array:
        """As they are."""
        return np.array(action, np.int8)

    def from_env(self, action: Array) -> Array:
        """As they are."""
        return np.array(action, np.int8)


@final
class Numbers(ActionLeaf):
    """Independent normals, one an element of a Box."""

    def __init__(self, spec: BoxSpec, squash: bool, normalize: bool, clip: bool) -> None:
        self.shape, self.dtype = spec.shape, np.dtype(spec.dtype)
        self.heads = self.scales = self.noise = prod(spec.shape)
        self.integer = self.dtype.kind in "iub"
        self.work = np.dtype(np.float64 if self.integer or self.dtype.itemsize > 4 else np.float32)
        low, high = (np.broadcast_to(bound, spec.shape).astype(np.float64) for bound in (spec.low, spec.high))
        bounded = (np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED)
        self.squashed = bounded if squash else np.zeros_like(bounded)
        self.squash = bool(self.squashed.any())
        scaled = bounded & (squash or normalize)
        span, middle = np.zeros(spec.shape), np.zeros(spec.shape)
        np.subtract(high, low, out=span, where=scaled)
        np.add(high, low, out=middle, where=scaled)
        self.half = np.where(scaled, span / 2, 1.0).astype(self.work)
        self.middle = (middle / 2).astype(self.work)
        self.clip = clip or squash or self.integer
        if self.integer and self.dtype.kind != "b":
            # As a float the limit of int64 rounds up, out of int64.
            high = np.minimum(high, np.nextafter(float(np.iinfo(self.dtype).max), 0.0))
        self.low, self.high = low.astype(self.work), high.astype(self.work)

    def mode(self, head: FloatArray) -> Array:
        """The mean."""
        return head.reshape(-1, *self.shape)

    def sample(self, head: FloatArray, scale: FloatArray, noise: FloatArray) -> Array:
        """The mean and so many standard deviations as the uniform says."""
        from statistics import NormalDist  # numpy has no inverse of the normal distribution

        normal = np.array([*map(NormalDist().inv_cdf, noise.ravel().tolist())], np.float32)
        return (head + np.exp(scale) * normal.reshape(noise.shape)).reshape(-1, *self.shape)

    def to_env(self, action: Array) -> Array:
        """Squashed, scaled, clipped and rounded as the space and the options ask."""
        x = np.asarray(action, self.work)
        if self.squash:
            x = np.where(self.squashed, np.tanh(x), x)
        x = x * self.half + self.middle
        if self.clip:
            x = np.minimum(np.maximum(x, self.low), self.high)
        if self.integer:
            x = np.rint(x)
        return x.astype(self.dtype, copy=False)

    def from_env(self, action: Array) -> Array:
        """The inverse, as far as there is one."""
        offset = np.asarray(action, self.work) - self.middle
        x = np.divide(offset, self.half, out=np.zeros_like(offset), where=self.half != 0.0)
        if self.squash:
            x = np.where(self.squashed, np.arctanh(np.clip(x, -SQUASH_EDGE, SQUASH_EDGE)), x)
        units: Array = x.astype(np.float32)
        return units


@final
class Actions:
    """The actions of one space: a product over the leaves of a Dict or Tuple.

    The parameter vector holds, leaf by leaf, logits and means, and after them, leaf by leaf, the log standard
    deviations; what a :class:`~steppe.models.autoregressive.Chain` adds stands before and behind these.

    Attributes:
        spec: the action space.
        leaves: its arrays, in the order of the spec.
        cuts: per leaf, where its head, its log standard deviations and its noise lie.
        param_size: length P of the parameter vector.
        log_std_size: how many of these are log standard deviations.
        noise_size: length K of the noise vector: one a choice, a bit, a Box element.
        chain: how parts that are chosen one after the other hang together; None where they are independent.
    """

    def __init__(
        self,
        spec: Spec,
        squash: bool = False,
        normalize: bool = True,
        clip: bool = True,
        autoregressive: bool = False,
    ) -> None:
        """Lay out an action space; see :class:`~steppe.models.distributions.Distribution`.

        Raises:
            SpaceError: a Sequence or OneOf (no fixed number of values can be drawn), or nothing to choose.
        """
        self.spec = spec
        self.leaves = tuple(
            _leaf(leaf, path, squash, normalize, clip) for leaf, path in _walk(spec, "action")
        )
        self.log_std_size = sum(leaf.scales for leaf in self.leaves)
        self.noise_size = sum(leaf.noise for leaf in self.leaves)
        heads = sum(leaf.heads for leaf in self.leaves)
        self.chain: Chain | None = None
        if autoregressive:
            from steppe.models.autoregressive import Chain  # as few actions are

            self.chain = Chain(self.leaves)
        contexts, weights = (self.chain.context_size, self.chain.weight_size) if self.chain else (0, 0)
        self.param_size = heads + contexts + self.log_std_size + weights
        if not self.param_size:
            raise SpaceError(
                f"{summary(spec)} leaves nothing to choose; an action space needs one element at least"
            )
        self.cuts = self._cut(heads + contexts)

    def choose(self, params: FloatArray, noise: FloatArray | None) -> Tree:
        """The likeliest action per row, or the one that the noise picks.

        Args:
            params: ``(n, P)``.
            noise: ``(n, K)`` in the open (0, 1), or None.

        Returns:
            Action tree of ``(n, *shape)`` in policy units.
        """
        if self.chain is not None:
            return self.tree(self.chain.walk(np, params, partial(_met, noise)))
        chosen = [
            leaf.mode(params[:, head])
            if noise is None
            else leaf.sample(params[:, head], params[:, scale], noise[:, part])
            for leaf, (head, scale, part) in zip(self.leaves, self.cuts, strict=True)
        ]
        return self.tree(chosen)

    def to_env(self, action: Tree) -> Tree:
        """A column in policy units as a fresh column inside the env's action space."""
        return self.tree([leaf.to_env(a) for leaf, a in zip(self.leaves, self.flat(action), strict=True)])

    @property
    def to_env_direct(self) -> Callable[[Tree], Tree]:
        """:meth:`to_env`, without the walk over the space where there is only one leaf."""
        return self.to_env if isinstance(self.spec, DictSpec | TupleSpec) else self.leaves[0].to_env

    def from_env(self, action: Tree) -> Tree:
        """A column of env actions in policy units; what clipping and rounding lost stays lost."""
        return self.tree([leaf.from_env(a) for leaf, a in zip(self.leaves, self.flat(action), strict=True)])

    def flat(self, action: Tree) -> list[Any]:
        """The arrays of an action tree, in the order of the leaves."""
        return list(_flatten(self.spec, action))

    def tree(self, arrays: Sequence[Any]) -> Tree:
        """The action tree of the leaves' arrays."""
        return _unflatten(self.spec, iter(arrays))

    def _cut(self, scale: int) -> tuple[tuple[slice, slice, slice], ...]:
        head, noise, cuts = 0, 0, []
        for leaf in self.leaves:
            ends = head + leaf.heads, scale + leaf.scales, noise + leaf.noise
            cuts.append((slice(head, ends[0]), slice(scale, ends[1]), slice(noise, ends[2])))
            head, scale, noise = ends
        return tuple(cuts)


def _met(noise: FloatArray | None, part: Part, head: FloatArray, scale: FloatArray) -> Array:
    """What is chosen of one part."""
    leaf: ActionLeaf = part.of
    return leaf.mode(head) if noise is None else leaf.sample(head, scale, noise[:, part.noise])


def _leaf(spec: Spec, path: str, squash: bool, normalize: bool, clip: bool) -> ActionLeaf:
    if isinstance(spec, DiscreteSpec):
        return Choices(np.asarray(spec.n), np.asarray(spec.start), np.dtype(np.int64))
    if isinstance(spec, MultiDiscreteSpec):
        return Choices(spec.nvec, spec.start, spec.dtype)
    if isinstance(spec, MultiBinarySpec):
        return Bits(spec.shape)
    if isinstance(spec, BoxSpec):
        return Numbers(spec, squash, normalize, clip)
    raise SpaceError(
        f"{path}: {summary(spec)} cannot be an action space: the policy would have to draw a varying number "
        "of values; use a Tuple or Dict of fixed parts, with a Discrete that says which of them count"
    )


def _walk(spec: Spec, path: str) -> Iterator[tuple[Spec, str]]:
    """Leaves in the order of the spec, each with its path."""
    if isinstance(spec, DictSpec):
        for key, item in spec.items:
            yield from _walk(item, f"{path}[{key!r}]")
    elif isinstance(spec, TupleSpec):
        for index, item in enumerate(spec.items):
            yield from _walk(item, f"{path}[{index}]")
    else:
        yield spec, path


def _flatten(spec: Spec, tree: Tree) -> Iterator[Any]:
    if isinstance(spec, DictSpec):
        for key, item in spec.items:
            yield from _flatten(item, tree[key])
    elif isinstance(spec, TupleSpec):
        for item, part in zip(spec.items, tree, strict=True):
            yield from _flatten(item, part)
    else:
        yield tree


def _unflatten(spec: Spec, arrays: Iterator[Any]) -> Tree:
    if isinstance(spec, DictSpec):
        return {key: _unflatten(item, arrays) for key, item in spec.items}
    if isinstance(spec, TupleSpec):
        return tuple(_unflatten(item, arrays) for item in spec.items)
    return next(arrays)
