"""Any observation space to one vector, inside jit, with no code of the user's.

Encoders take one observation (a column without its leading axis) and are vmapped by the caller. The second
half normalises observations with running statistics, which are data of the learner, not parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.mlp import MLP
from steppe.models.observations import CLIP, EPSILON, image_axis, visit
from steppe.spaces import (
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
from steppe.types import Array, Tree

if TYPE_CHECKING:
    from steppe.models.cnn import CNN

_ONE_HOT_LIMIT = 1024
_EMBEDDING = 64


class Encoder(eqx.Module):
    """Turns one observation of a space into a vector ``(size,)`` float32."""

    size: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, obs: Tree) -> jax.Array:
        """One observation to ``(size,)``."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values; :mod:`steppe.models.numpy_forward` reads it."""


def make_encoder(
    spec: Spec,
    rng: np.random.Generator,
    *,
    conv_filters: Sequence[Sequence[int]] | None = None,
    sequence_hidden: int = 64,
    own: Callable[..., Any] | None = None,
) -> Encoder:
    """Draw the encoder of an observation space.

    Boxes are flattened, those that look like images (:func:`~steppe.models.observations.image_axis`) go
    through a CNN. Choices become one-hot vectors, and where there are more than 1,024 of them rows of a
    learned table. A Sequence is the mean and the maximum of what a small network makes of its items.

    Args:
        spec: the observation space.
        rng: source of the initial parameters.
        conv_filters: ``[channels, kernel, stride]`` a layer for images; chosen by their size if None.
        sequence_hidden: width of a Sequence's network, half the size of what it yields.
        own: makes the user's own encoder, instead; see :func:`steppe.models.custom.made`.

    Raises:
        ConfigError: filters that do not fit the image, or an encoder that does not do.
    """
    if own is not None:
        from steppe.models.custom import OwnEncoder  # most runs have no code of this kind

        encoder: Any = OwnEncoder(own, spec, rng)
        return encoder  # type: ignore[no-any-return]  # it does what one does
    return _built_in(spec, rng, conv_filters, sequence_hidden)


def _built_in(
    spec: Spec, rng: np.random.Generator, conv_filters: Sequence[Sequence[int]] | None, sequence_hidden: int
) -> Encoder:
    def make(part: Spec) -> Encoder:
        return _built_in(part, rng, conv_filters, sequence_hidden)

    if isinstance(spec, BoxSpec):
        axis = image_axis(spec)
        return _Flat(prod(spec.shape)) if axis is None else _Image(spec, axis, rng, conv_filters)
    if isinstance(spec, MultiBinarySpec):
        return _Flat(prod(spec.shape))
    if isinstance(spec, DiscreteSpec):
        return _Choices(np.asarray([spec.n]), np.asarray([spec.start]), rng)
    if isinstance(spec, MultiDiscreteSpec):
        return _Choices(np.asarray(spec.nvec), np.asarray(spec.start), rng)
    if isinstance(spec, DictSpec):
        return _Parts(tuple(key for key, _ in spec.items), tuple(make(item) for _, item in spec.items))
    if isinstance(spec, TupleSpec):
        return _Parts(None, tuple(make(item) for item in spec.items))
    if isinstance(spec, SequenceSpec):
        return _Items(spec.maximum, make(spec.item), sequence_hidden, rng)
    if isinstance(spec, OneOfSpec):
        return _Alternatives(tuple(make(item) for item in spec.items))


@final
class _Flat(Encoder):
    """Numbers as they are."""

    size: int = eqx.field(static=True)

    def __call__(self, obs: Tree) -> jax.Array:
        return jnp.asarray(obs).astype(jnp.float32).reshape(self.size)

    def describe(self) -> dict[str, Any]:
        return {"kind": "flat"}


@final
class _Image(Encoder):
    """A CNN on pixels divided by their largest bound."""

    cnn: CNN
    axis: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(
        self, spec: BoxSpec, axis: int, rng: np.random.Generator, filters: Sequence[Sequence[int]] | None
    ) -> None:
        from steppe.models.cnn import CNN, DENSE  # many runs have no images

        channels = spec.shape[axis]
        height, width = spec.shape[1:] if axis == 0 else spec.shape[:2]
        self.cnn = CNN((height, width, channels), rng, filters)
        largest = float(np.maximum(np.abs(spec.low), np.abs(spec.high)).max())
        self.axis, self.scale, self.size = axis, 1.0 / largest if 0.0 < largest <= 65535.0 else 1.0, DENSE

    def __call__(self, obs: Tree) -> jax.Array:
        pixels = jnp.asarray(obs)
        return self.cnn(pixels if self.axis == 2 else pixels.transpose(1, 2, 0), self.scale)

    def describe(self) -> dict[str, Any]:
        return {"kind": "image", "axis": self.axis, "scale": self.scale, "strides": [*self.cnn.strides]}


@final
class _Choices(Encoder):
    """One-hot vectors side by side, then the table rows of choices among very many."""

    tables: tuple[jax.Array, ...]
    counts: tuple[int, ...] = eqx.field(static=True)
    starts: tuple[int, ...] = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, counts: Array, starts: Array, rng: np.random.Generator) -> None:
        self.counts = tuple(counts.ravel().tolist())
        self.starts = tuple(np.broadcast_to(starts, counts.shape).ravel().tolist())
        large = [n for n in self.counts if n > _ONE_HOT_LIMIT]
        self.tables = tuple(
            jnp.asarray(rng.standard_normal((n, _EMBEDDING), dtype=np.float32)) for n in large
        )
        self.size = sum(self.counts) - sum(large) + _EMBEDDING * len(large)

    def __call__(self, obs: Tree) -> jax.Array:
        choices = jnp.asarray(obs).reshape(-1) - np.asarray(self.starts)
        counts = np.asarray(self.counts)
        small, large = np.nonzero(counts <= _ONE_HOT_LIMIT)[0], np.nonzero(counts > _ONE_HOT_LIMIT)[0]
        column = np.concatenate([np.arange(n) for n in counts[small]] or [np.zeros(0, np.int64)])
        one_hot = choices[np.repeat(small, counts[small])] == column
        rows = [table[choices[i]] for table, i in zip(self.tables, large, strict=True)]
        return jnp.concatenate([one_hot.astype(jnp.float32), *rows])

    def describe(self) -> dict[str, Any]:
        large = [i for i, n in enumerate(self.counts) if n > _ONE_HOT_LIMIT]
        return {"kind": "choices", "counts": [*self.counts], "starts": [*self.starts], "large": large}


@final
class _Parts(Encoder):
    """The parts of a Dict (by ``keys``) or Tuple side by side."""

    keys: tuple[str, ...] | None = eqx.field(static=True)
    parts: tuple[Encoder, ...]
    size: int = eqx.field(static=True)

    def __init__(self, keys: tuple[str, ...] | None, parts: tuple[Encoder, ...]) -> None:
        self.keys, self.parts, self.size = keys, parts, sum(part.size for part in parts)

    def __call__(self, obs: Tree) -> jax.Array:
        values = obs if self.keys is None else [obs[key] for key in self.keys]
        encoded = [part(value) for part, value in zip(self.parts, values, strict=True)]
        return jnp.concatenate(encoded) if encoded else jnp.zeros(0)

    def describe(self) -> dict[str, Any]:
        keys = None if self.keys is None else [*self.keys]
        return {"kind": "parts", "keys": keys, "parts": [part.describe() for part in self.parts]}


@final
class _Items(Encoder):
    """Mean and maximum over the items of a Sequence; an empty one gives zeros."""

    item: Encoder
    mlp: MLP
    maximum: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, maximum: int, item: Encoder, hidden: int, rng: np.random.Generator) -> None:
        self.item, self.maximum, self.size = item, maximum, 2 * hidden
        self.mlp = MLP((item.size, hidden, hidden), "relu", rng)

    def __call__(self, obs: Tree) -> jax.Array:
        length = obs["length"]
        present = (np.arange(self.maximum) < length)[:, None]
        # Rectified features are at least 0, so that zeros in place of absent items change no maximum.
        features = jnp.where(
            present, jax.nn.relu(jax.vmap(lambda x: self.mlp(self.item(x)))(obs["items"])), 0.0
        )
        mean = features.sum(0) / jnp.maximum(length, 1)
        return jnp.concatenate([mean, features.max(0, initial=0.0)])

    def describe(self) -> dict[str, Any]:
        item = self.item.describe()
        return {"kind": "items", "maximum": self.maximum, "item": item, "mlp": self.mlp.describe()}


@final
class _Alternatives(Encoder):
    """Which part of a OneOf was chosen, one-hot, then all parts, zero where not chosen."""

    parts: tuple[Encoder, ...]
    size: int = eqx.field(static=True)

    def __init__(self, parts: tuple[Encoder, ...]) -> None:
        self.parts, self.size = parts, len(parts) + sum(part.size for part in parts)

    def __call__(self, obs: Tree) -> jax.Array:
        chosen = jnp.asarray(obs["choice"]) == np.arange(len(self.parts))
        encoded = [
            jnp.where(chosen[i], part(value), 0.0)
            for i, (part, value) in enumerate(zip(self.parts, obs["values"], strict=True))
        ]
        return jnp.concatenate([chosen.astype(jnp.float32), *encoded])

    def describe(self) -> dict[str, Any]:
        return {"kind": "alternatives", "parts": [part.describe() for part in self.parts]}


def normalize(spec: Spec, stats: Sequence[Any], obs: Tree, clip: float = CLIP) -> Tree:
    """Shift and scale the covered leaves to mean 0 and variance 1.

    Args:
        spec: the observation space.
        stats: as :func:`~steppe.models.observations.norm_init` and :func:`norm_merge` make them.
        obs: one observation, or a tree with any leading axes.
        clip: largest magnitude that is let through.

    Returns:
        The tree, covered leaves float32 (only clipped while their count is below 2), others untouched.
    """
    triples = iter(zip(stats[::3], stats[1::3], stats[2::3], strict=True))

    def scaled(leaf: BoxSpec, x: jax.Array, mask: jax.Array) -> jax.Array:
        count, mean, m2 = next(triples)
        unit = (x - mean) * jax.lax.rsqrt(m2 / jnp.maximum(count, 1.0) + EPSILON)
        return jnp.clip(jnp.where(count < 2.0, x, unit), -clip, clip)

    return visit(spec, obs, jnp.ones((), bool), scaled)


def norm_merge(spec: Spec, stats: Sequence[Any], obs: Tree, mask: jax.Array) -> tuple[jax.Array, ...]:
    """Merge rows into statistics (Chan et al., 1983).

    Args:
        spec: the observation space.
        stats: statistics so far.
        obs: a tree with the leading axes of ``mask``, at least one.
        mask: bool, rows that count; absent items of a Sequence and parts of a OneOf never do.

    Returns:
        New statistics of the same layout; rows in any order and split give the same up to rounding.
    """
    triples = iter(zip(stats[::3], stats[1::3], stats[2::3], strict=True))
    merged: list[jax.Array] = []

    def merge(leaf: BoxSpec, x: jax.Array, present: jax.Array) -> jax.Array:
        merged.extend(_chan(next(triples), x, present))
        return x

    visit(spec, obs, jnp.asarray(mask), merge)
    return tuple(merged)


def _chan(old: tuple[Any, Any, Any], x: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
    count, mean, m2 = old
    axes = tuple(range(mask.ndim))
    mask = jnp.broadcast_to(mask, x.shape[: mask.ndim])
    wide = mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
    added = mask.sum(dtype=jnp.float32)
    rows = jnp.maximum(added, 1.0)
    batch = jnp.where(wide, x, 0.0).sum(axes) / rows
    batch_m2 = jnp.where(wide, (x - batch) ** 2, 0.0).sum(axes)
    total = count + added
    share = added / jnp.maximum(total, 1.0)
    shift = batch - mean
    return total, mean + shift * share, m2 + batch_m2 + shift * shift * count * share
