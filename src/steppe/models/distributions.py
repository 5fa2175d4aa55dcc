"""Action distributions over batches of parameter vectors, and the way between policy and env units.

A distribution is static: it holds no parameters, only the shape of the action space. Its parameters are the
last axis of an array ``(..., P)``, its noise that of an array ``(..., K)`` of uniforms in the open (0, 1).
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, final

import jax
import jax.numpy as jnp
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
from steppe.types import Array, Tree

MASKED = -1e9
"""Logit of a forbidden choice: far below any other, and finite, so that no gradient becomes NaN."""
_UNBOUNDED = 1e9  # wider bounds, such as the limits of int32 or float32, say nothing about the action's scale
_LOG_TWO_PI = float(np.log(2.0 * np.pi))
_LOG_TWO = float(np.log(2.0))
_SQUASH_EDGE = 1.0 - 1e-6


@final
class Distribution:
    """Distribution of the actions of one space: a product over the leaves of a Dict or Tuple.

    Discrete and MultiDiscrete leaves are categorical (one logit a choice), MultiBinary ones Bernoulli (one
    logit a bit), Boxes diagonal Gaussians. The parameter vector holds, leaf by leaf, logits and means, and
    after them, leaf by leaf, the log standard deviations; so the last ``log_std_size`` parameters can come
    from elsewhere than a network.

    Actions are in *policy units*: choices count from 0 (int32), bits are int8, Box elements are unbounded
    float32. ``to_env`` and ``from_env`` translate numpy columns.

    Two distributions are equal, and hash alike, if spec and options are: usable as a static argument of jit.

    Attributes:
        spec: the action space.
        param_size: length P of the parameter vector.
        log_std_size: how many of the last parameters are log standard deviations.
        noise_size: length K of the noise vector: one a choice, a bit, a Box element.
    """

    __slots__ = ("_key", "_leaves", "_slices", "log_std_size", "noise_size", "param_size", "spec")

    def __init__(self, spec: Spec, squash: bool = False, normalize: bool = True, clip: bool = True) -> None:
        """Make the distribution of an action space.

        Args:
            spec: the action space.
            squash: Box elements with two finite bounds go through tanh; ``logp`` then is the density of
                the tanh of the action.
            normalize: without squash, [-1, 1] in policy units spans the bounds of the env.
            clip: without squash, env actions are clipped to the bounds. Integer Boxes always are.

        Raises:
            SpaceError: a Sequence or OneOf (no fixed number of values can be drawn), or nothing to choose.
        """
        self.spec = spec
        self._key = (spec, squash, normalize, clip)
        self._leaves = tuple(
            _leaf(leaf, path, squash, normalize, clip) for leaf, path in _walk(spec, "action")
        )
        self.log_std_size = sum(leaf.scales for leaf in self._leaves)
        self.noise_size = sum(leaf.noise for leaf in self._leaves)
        self.param_size = sum(leaf.heads for leaf in self._leaves) + self.log_std_size
        if not self.param_size:
            raise SpaceError(
                f"{summary(spec)} leaves nothing to choose; an action space needs one element at least"
            )
        self._slices = self._cut()

    def __eq__(self, other: object) -> bool:
        """Same space and options."""
        return isinstance(other, Distribution) and self._key == other._key

    def __hash__(self) -> int:
        """Hash of space and options."""
        return hash(self._key)

    def __repr__(self) -> str:
        """The space and the options."""
        _, squash, normalize, clip = self._key
        return f"Distribution({summary(self.spec)}, squash={squash}, normalize={normalize}, clip={clip})"

    def sample(self, params: jax.Array, noise: jax.Array) -> Tree:
        """An action per row, a pure function of the noise.

        Args:
            params: ``(..., P)``.
            noise: ``(..., K)`` in the open (0, 1).

        Returns:
            Action tree of ``(..., *shape)`` in policy units.
        """
        return self._tree(
            [leaf.sample(head, scale, noise[..., cut]) for leaf, head, scale, cut in self._parts(params)]
        )

    def mode(self, params: jax.Array) -> Tree:
        """The likeliest action per row (of a squashed Gaussian: the tanh of the mean)."""
        return self._tree([leaf.mode(head) for leaf, head, _, _ in self._parts(params)])

    def logp(self, params: jax.Array, action: Tree) -> jax.Array:
        """Log-probability ``(...)`` of an action tree in policy units."""
        return _total(
            leaf.logp(head, scale, jnp.asarray(a))
            for (leaf, head, scale, _), a in zip(self._parts(params), self._flat(action), strict=True)
        )

    def entropy(self, params: jax.Array) -> jax.Array:
        """Entropy ``(...)`` in nats; of a squashed Gaussian that of the Gaussian before the squash."""
        return _total(leaf.entropy(head, scale) for leaf, head, scale, _ in self._parts(params))

    def kl(self, params_p: jax.Array, params_q: jax.Array) -> jax.Array:
        """Kullback-Leibler divergence ``(...)`` of q from p, in nats; no squash changes it."""
        pairs = zip(self._parts(params_p), self._parts(params_q), strict=True)
        return _total(leaf.kl((hp, sp), (hq, sq)) for (leaf, hp, sp, _), (_, hq, sq, _) in pairs)

    def to_env(self, action: Tree) -> Tree:
        """A numpy column in policy units as a fresh column inside the env's action space."""
        return self._tree([leaf.to_env(a) for leaf, a in zip(self._leaves, self._flat(action), strict=True)])

    @property
    def to_env_direct(self) -> Callable[[Tree], Tree]:
        """:meth:`to_env`, without the walk over the space where there is only one leaf."""
        return self.to_env if isinstance(self.spec, DictSpec | TupleSpec) else self._leaves[0].to_env

    def from_env(self, action: Tree) -> Tree:
        """A numpy column of env actions in policy units; what clipping and rounding lost stays lost."""
        return self._tree(
            [leaf.from_env(a) for leaf, a in zip(self._leaves, self._flat(action), strict=True)]
        )

    def _cut(self) -> tuple[tuple[slice, slice, slice], ...]:
        """Per leaf: where its head, its log standard deviations and its noise lie."""
        head, scale, noise, cuts = 0, self.param_size - self.log_std_size, 0, []
        for leaf in self._leaves:
            ends = head + leaf.heads, scale + leaf.scales, noise + leaf.noise
            cuts.append((slice(head, ends[0]), slice(scale, ends[1]), slice(noise, ends[2])))
            head, scale, noise = ends
        return tuple(cuts)

    def _parts(self, params: jax.Array) -> list[tuple[_Leaf, jax.Array, jax.Array, slice]]:
        return [
            (leaf, params[..., head], params[..., scale], noise)
            for leaf, (head, scale, noise) in zip(self._leaves, self._slices, strict=True)
        ]

    def _flat(self, action: Tree) -> list[Any]:
        return list(_flatten(self.spec, action))

    def _tree(self, arrays: list[Any]) -> Tree:
        return _unflatten(self.spec, iter(arrays))


class _Leaf(ABC):
    """One array of actions: ``heads`` logits or means, ``scales`` log standard deviations."""

    heads: int
    scales: int
    noise: int

    @abstractmethod
    def sample(self, head: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
        """``(..., *shape)`` from parameters and uniforms."""

    @abstractmethod
    def mode(self, head: jax.Array) -> jax.Array:
        """The likeliest ``(..., *shape)``."""

    @abstractmethod
    def logp(self, head: jax.Array, scale: jax.Array, action: jax.Array) -> jax.Array:
        """``(...)``."""

    @abstractmethod
    def entropy(self, head: jax.Array, scale: jax.Array) -> jax.Array:
        """``(...)``."""

    @abstractmethod
    def kl(self, p: tuple[jax.Array, jax.Array], q: tuple[jax.Array, jax.Array]) -> jax.Array:
        """``(...)`` of two pairs of head and scale."""

    @abstractmethod
    def to_env(self, action: Array) -> Array:
        """A fresh numpy column of env actions."""

    @abstractmethod
    def from_env(self, action: Array) -> Array:
        """A fresh numpy column in policy units."""


@final
class _Categorical(_Leaf):
    """Independent choices; those of unequal numbers are padded to the largest."""

    def __init__(self, nvec: Array, start: Array, dtype: np.dtype[Any]) -> None:
        counts = np.asarray(nvec, np.int64).ravel()
        self.shape, self.start, self.dtype = np.shape(nvec), np.asarray(start, np.int64), dtype
        self.heads, self.scales, self.noise = int(counts.sum()), 0, counts.size
        self.width = int(counts.max(initial=1))
        self.even = bool((counts == self.width).all())
        columns = np.arange(self.width)
        self.present = columns < counts[:, None]
        offsets = np.cumsum(counts) - counts
        self.index = np.where(self.present, offsets[:, None] + columns, 0)

    def sample(self, head: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
        p = jax.nn.softmax(self._logits(head))
        cdf = jnp.cumsum(p, -1)
        # The sum may end off 1, and being taken in blocks wobble where p is 0: only p > 0 is picked.
        reached = (cdf >= noise[..., None] * cdf[..., -1:]) & (p > 0.0)
        return self._shaped(jnp.argmax(jnp.where(reached, 2.0, p), -1))

    def mode(self, head: jax.Array) -> jax.Array:
        return self._shaped(jnp.argmax(self._logits(head), -1))

    def logp(self, head: jax.Array, scale: jax.Array, action: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(self._logits(head))
        flat = action.reshape(*_lead(action, self.shape), self.noise, 1)
        # A masked sum, not a gather: the gradient of a gather is a slow scatter on CPU.
        return jnp.where(flat == np.arange(self.width), logp, 0.0).sum((-2, -1))

    def entropy(self, head: jax.Array, scale: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(self._logits(head))
        return -(jnp.exp(logp) * logp).sum((-2, -1))

    def kl(self, p: tuple[jax.Array, jax.Array], q: tuple[jax.Array, jax.Array]) -> jax.Array:
        logp, logq = (jax.nn.log_softmax(self._logits(head)) for head, _ in (p, q))
        return (jnp.exp(logp) * (logp - logq)).sum((-2, -1))

    def to_env(self, action: Array) -> Array:
        return (np.asarray(action, np.int64) + self.start).astype(self.dtype, copy=False)

    def from_env(self, action: Array) -> Array:
        return np.asarray(action - self.start, np.int32)

    def _logits(self, head: jax.Array) -> jax.Array:
        """``(..., choices, width)``; padding is masked."""
        if self.even:
            return head.reshape(*head.shape[:-1], self.noise, self.width)
        return jnp.where(self.present, head[..., self.index], MASKED)

    def _shaped(self, choices: jax.Array) -> jax.Array:
        return choices.reshape(*choices.shape[:-1], *self.shape).astype(jnp.int32)


@final
class _Bernoulli(_Leaf):
    """Independent bits; a logit is the log-odds of 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.heads = self.noise = prod(shape)
        self.scales = 0

    def sample(self, head: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
        return self._shaped(noise < jax.nn.sigmoid(head))

    def mode(self, head: jax.Array) -> jax.Array:
        return self._shaped(head > 0.0)

    def logp(self, head: jax.Array, scale: jax.Array, action: jax.Array) -> jax.Array:
        bits = action.reshape(*_lead(action, self.shape), self.heads)
        return -jax.nn.softplus(jnp.where(bits != 0, -head, head)).sum(-1)

    def entropy(self, head: jax.Array, scale: jax.Array) -> jax.Array:
        return (jax.nn.softplus(head) - head * jax.nn.sigmoid(head)).sum(-1)

    def kl(self, p: tuple[jax.Array, jax.Array], q: tuple[jax.Array, jax.Array]) -> jax.Array:
        (lp, _), (lq, _) = p, q
        return (jax.nn.sigmoid(lp) * (lp - lq) - jax.nn.softplus(lp) + jax.nn.softplus(lq)).sum(-1)

    def to_env(self, action: Array) -> Array:
        return np.array(action, np.int8)

    def from_env(self, action: Array) -> Array:
        return np.array(action, np.int8)

    def _shaped(self, bits: jax.Array) -> jax.Array:
        return bits.reshape(*bits.shape[:-1], *self.shape).astype(jnp.int8)


@final
class _Gaussian(_Leaf):
    """Independent normals, one an element; ``scale`` is the log standard deviation."""

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

    def sample(self, head: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
        return self._shaped(head + jnp.exp(scale) * jax.scipy.special.ndtri(noise))

    def mode(self, head: jax.Array) -> jax.Array:
        return self._shaped(head)

    def logp(self, head: jax.Array, scale: jax.Array, action: jax.Array) -> jax.Array:
        x = action.reshape(*_lead(action, self.shape), self.heads)
        z = (x - head) * jnp.exp(-scale)
        logp = -0.5 * (z * z + _LOG_TWO_PI) - scale
        if self.squash:
            # log(1 - tanh(x)^2) without the cancellation where tanh is near 1
            correction = 2.0 * (_LOG_TWO - x - jax.nn.softplus(-2.0 * x))
            logp -= jnp.where(self.squashed.ravel(), correction, 0.0)
        return logp.sum(-1)

    def entropy(self, head: jax.Array, scale: jax.Array) -> jax.Array:
        return (scale + 0.5 * (1.0 + _LOG_TWO_PI)).sum(-1)

    def kl(self, p: tuple[jax.Array, jax.Array], q: tuple[jax.Array, jax.Array]) -> jax.Array:
        (mean_p, log_p), (mean_q, log_q) = p, q
        ratio, shift = jnp.exp(log_p - log_q), (mean_p - mean_q) * jnp.exp(-log_q)
        return (log_q - log_p + 0.5 * (ratio * ratio + shift * shift - 1.0)).sum(-1)

    def to_env(self, action: Array) -> Array:
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
        offset = np.asarray(action, self.work) - self.middle
        x = np.divide(offset, self.half, out=np.zeros_like(offset), where=self.half != 0.0)
        if self.squash:
            x = np.where(self.squashed, np.arctanh(np.clip(x, -_SQUASH_EDGE, _SQUASH_EDGE)), x)
        units: Array = x.astype(np.float32)
        return units

    def _shaped(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], *self.shape)


def _leaf(spec: Spec, path: str, squash: bool, normalize: bool, clip: bool) -> _Leaf:
    if isinstance(spec, DiscreteSpec):
        return _Categorical(np.asarray(spec.n), np.asarray(spec.start), np.dtype(np.int64))
    if isinstance(spec, MultiDiscreteSpec):
        return _Categorical(spec.nvec, spec.start, spec.dtype)
    if isinstance(spec, MultiBinarySpec):
        return _Bernoulli(spec.shape)
    if isinstance(spec, BoxSpec):
        return _Gaussian(spec, squash, normalize, clip)
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


def _total(parts: Iterable[jax.Array]) -> jax.Array:
    """The parts of independent leaves add up."""
    return functools.reduce(operator.add, parts)


def _lead(action: jax.Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    return action.shape[: action.ndim - len(shape)]
