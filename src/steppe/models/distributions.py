"""Action distributions over batches of parameter vectors, inside compiled functions.

A distribution is static: it holds no parameters, only the shape of the action space. Its parameters are the
last axis of an array ``(..., P)``, its noise that of an array ``(..., K)`` of uniforms in the open (0, 1).
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import MASKED, ActionLeaf, Actions, Bits, Choices, Numbers
from steppe.spaces import Spec, summary
from steppe.types import FloatArray, Tree

if TYPE_CHECKING:
    from steppe.models.chained import Chained
    from steppe.models.custom import OwnDistribution

_LOG_TWO_PI = float(np.log(2.0 * np.pi))
_LOG_TWO = float(np.log(2.0))


@final
class Distribution:
    """Distribution of the actions of one space.

    Discrete and MultiDiscrete leaves are categorical (one logit a choice), MultiBinary ones Bernoulli (one
    logit a bit), Boxes diagonal Gaussians. The leaves of a Dict or Tuple are independent of each other, or
    chosen one after the other. The parameter vector holds, leaf by leaf, logits and means, and after them,
    leaf by leaf, the log standard deviations, which can come from elsewhere than a network; for what a chain
    adds see :class:`~steppe.models.autoregressive.Chain`.

    Actions are in *policy units*: choices count from 0 (int32), bits are int8, Box elements are unbounded
    float32. ``to_env`` and ``from_env`` translate numpy columns.

    Two distributions are equal, and hash alike, if spec and options are: usable as a static argument of jit.

    Attributes:
        spec: the action space.
        param_size: length P of the parameter vector.
        log_std_size: how many of the parameters are log standard deviations.
        noise_size: length K of the noise vector: one a choice, a bit, a Box element.
        actions: the layout of the space, and what numpy does with it.
        to_env: see :meth:`steppe.models.actions.Actions.to_env`.
        from_env: see :meth:`steppe.models.actions.Actions.from_env`.
    """

    def __init__(
        self,
        spec: Spec,
        squash: bool = False,
        normalize: bool = True,
        clip: bool = True,
        autoregressive: bool = False,
        own: Callable[..., Any] | None = None,
    ) -> None:
        """Make the distribution of an action space.

        Args:
            spec: the action space.
            squash: Box elements with two finite bounds go through tanh; ``logp`` then is the density of
                the tanh of the action.
            normalize: without squash, [-1, 1] in policy units spans the bounds of the env.
            clip: without squash, env actions are clipped to the bounds. Integer Boxes always are.
            autoregressive: leaves, and the choices of a MultiDiscrete, are chosen one after the other.
            own: makes one of the user's own; see :class:`~steppe.models.custom.OwnDistribution`.

        Raises:
            ConfigError: what ``own`` makes does not do.
            SpaceError: a Sequence or OneOf (no fixed number of values can be drawn), or nothing to choose.
        """
        self.spec = spec
        self._key = (spec, squash, normalize, clip, autoregressive, own)
        self.actions = Actions(spec, squash, normalize, clip, autoregressive)
        self.log_std_size, self.noise_size = self.actions.log_std_size, self.actions.noise_size
        self.param_size = self.actions.param_size
        self.to_env, self.from_env = self.actions.to_env_direct, self.actions.from_env
        self._leaves = tuple(map(_leaf, self.actions.leaves))
        self._law: Chained | OwnDistribution | None = None  # where leaves are not independent
        if own is not None:
            from steppe.models.custom import OwnDistribution  # most runs have no code of this kind

            self._law = mine = OwnDistribution(own, spec)
            self.param_size, self.noise_size, self.log_std_size = mine.param_size, mine.noise_size, 0
            self.to_env, self.from_env = mine.to_env, mine.from_env
        elif autoregressive:
            from steppe.models.chained import Chained  # as few actions are

            self._law = Chained(self.actions, _leaf)

    @property
    def options(self) -> dict[str, Any]:
        """The options, by name; code of the user's as its name."""
        own = self._key[-1]
        if own is not None:
            return {"own": getattr(own, "__name__", type(own).__name__)}
        return dict(zip(("squash", "normalize", "clip", "autoregressive"), self._key[1:], strict=False))

    def __eq__(self, other: object) -> bool:
        """Same space and options."""
        return isinstance(other, Distribution) and self._key == other._key

    def __hash__(self) -> int:
        """Hash of space and options."""
        return hash(self._key)

    def __repr__(self) -> str:
        """The space and the options."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"Distribution({summary(self.spec)}, {options})"

    def weights(self, rng: np.random.Generator) -> FloatArray:
        """The last of the parameters, which no network gives, before training."""
        chain = self.actions.chain
        return np.zeros(0, np.float32) if chain is None else chain.initial(rng)

    def sample(self, params: jax.Array, noise: jax.Array) -> Tree:
        """An action per row, a pure function of the noise.

        Args:
            params: ``(..., P)``.
            noise: ``(..., K)`` in the open (0, 1).

        Returns:
            Action tree of ``(..., *shape)`` in policy units.
        """
        if self._law is not None:
            return self._law.sample(params, noise)
        return self.actions.tree(
            [leaf.sample(head, scale, noise[..., cut]) for leaf, head, scale, cut in self._parts(params)]
        )

    def mode(self, params: jax.Array) -> Tree:
        """The likeliest action per row (of a squashed Gaussian: the tanh of the mean).

        Of a chain, the likeliest of each part after those before it.
        """
        if self._law is not None:
            return self._law.mode(params)
        return self.actions.tree([leaf.mode(head) for leaf, head, _, _ in self._parts(params)])

    def logp(self, params: jax.Array, action: Tree) -> jax.Array:
        """Log-probability ``(...)`` of an action tree in policy units."""
        if self._law is not None:
            return self._law.logp(params, action)
        return _total(
            leaf.logp(head, scale, jnp.asarray(a))
            for (leaf, head, scale, _), a in zip(self._parts(params), self.actions.flat(action), strict=True)
        )

    def entropy(self, params: jax.Array, action: Tree = None) -> jax.Array:
        """Entropy ``(...)`` in nats; of a squashed Gaussian that of the Gaussian before the squash.

        Of a chain it is the sum of the parts' entropies, each after what was chosen before it: as the action
        was drawn from the same distribution, its mean is right.

        Args:
            params: ``(..., P)``.
            action: as it was chosen; only a chain needs it.
        """
        if self._law is not None:
            return self._law.entropy(params, action)
        return _total(leaf.entropy(head, scale) for leaf, head, scale, _ in self._parts(params))

    def kl(self, params_p: jax.Array, params_q: jax.Array) -> jax.Array:
        """Kullback-Leibler divergence ``(...)`` of q from p, in nats, of independent leaves."""
        assert self._law is None
        pairs = zip(self._parts(params_p), self._parts(params_q), strict=True)
        return _total(leaf.kl((hp, sp), (hq, sq)) for (leaf, hp, sp, _), (_, hq, sq, _) in pairs)

    def _parts(self, params: jax.Array) -> list[tuple[_Leaf, jax.Array, jax.Array, slice]]:
        return [
            (leaf, params[..., head], params[..., scale], noise)
            for leaf, (head, scale, noise) in zip(self._leaves, self.actions.cuts, strict=True)
        ]


def legal(params: jax.Array, mask: jax.Array) -> jax.Array:
    """Parameters ``(..., P)`` in which the choices that a mask ``(..., choices)`` forbids have no chance.

    The first of the parameters are those of the choices.
    """
    n = mask.shape[-1]
    heads = jnp.where(mask != 0, params[..., :n], MASKED)
    return heads if params.shape[-1] == n else jnp.concatenate([heads, params[..., n:]], -1)


class _Leaf(ABC):
    """The maths of one :class:`~steppe.models.actions.ActionLeaf`."""

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


@final
class _Categorical(_Leaf):
    """Independent choices; those of unequal numbers are padded to the largest."""

    def __init__(self, of: Choices) -> None:
        self.of = of

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
        flat = action.reshape(*_lead(action, self.of.shape), self.of.noise, 1)
        # A masked sum, not a gather: the gradient of a gather is a slow scatter on CPU.
        return jnp.where(flat == np.arange(self.of.width), logp, 0.0).sum((-2, -1))

    def entropy(self, head: jax.Array, scale: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(self._logits(head))
        return -(jnp.exp(logp) * logp).sum((-2, -1))

    def kl(self, p: tuple[jax.Array, jax.Array], q: tuple[jax.Array, jax.Array]) -> jax.Array:
        logp, logq = (jax.nn.log_softmax(self._logits(head)) for head, _ in (p, q))
        return (jnp.exp(logp) * (logp - logq)).sum((-2, -1))

    def _logits(self, head: jax.Array) -> jax.Array:
        """``(..., choices, width)``; padding is masked."""
        if self.of.even:
            return head.reshape(*head.shape[:-1], self.of.noise, self.of.width)
        return jnp.where(self.of.present, head[..., self.of.index], MASKED)

    def _shaped(self, choices: jax.Array) -> jax.Array:
        return choices.reshape(*choices.shape[:-1], *self.of.shape).astype(jnp.int32)


@final
class _Bernoulli(_Leaf):
    """Independent bits; a logit is the log-odds of 1."""

    def __init__(self, of: Bits) -> None:
        self.of = of

    def sample(self, head: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
        return self._shaped(noise < jax.nn.sigmoid(head))

    def mode(self, head: jax.Array) -> jax.Array:
        return self._shaped(head > 0.0)

    def logp(self, head: jax.Array, scale: jax.Array, action: jax.Array) -> jax.Array:
        bits = action.reshape(*_lead(action, self.of.shape), self.of.heads)
        return -jax.nn.softplus(jnp.where(bits != 0, -head, head)).sum(-1)

    def entropy(self, head: jax.Array, scale: jax.Array) -> jax.Array:
        return (jax.nn.softplus(head) - head * jax.nn.sigmoid(head)).sum(-1)

    def kl(self, p: tuple[jax.Array, jax.Array], q: tuple[jax.Array, jax.Array]) -> jax.Array:
        (lp, _), (lq, _) = p, q
        return (jax.nn.sigmoid(lp) * (lp - lq) - jax.nn.softplus(lp) + jax.nn.softplus(lq)).sum(-1)

    def _shaped(self, bits: jax.Array) -> jax.Array:
        return bits.reshape(*bits.shape[:-1], *self.of.shape).astype(jnp.int8)


@final
class _Gaussian(_Leaf):
    """Independent normals, one an element; ``scale`` is the log standard deviation."""

    def __init__(self, of: Numbers) -> None:
        self.of = of

    def sample(self, head: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
        return self._shaped(head + jnp.exp(scale) * jax.scipy.special.ndtri(noise))

    def mode(self, head: jax.Array) -> jax.Array:
        return self._shaped(head)

    def logp(self, head: jax.Array, scale: jax.Array, action: jax.Array) -> jax.Array:
        x = action.reshape(*_lead(action, self.of.shape), self.of.heads)
        z = (x - head) * jnp.exp(-scale)
        logp = -0.5 * (z * z + _LOG_TWO_PI) - scale
        if self.of.squash:
            # log(1 - tanh(x)^2) without the cancellation where tanh is near 1
            correction = 2.0 * (_LOG_TWO - x - jax.nn.softplus(-2.0 * x))
            logp -= jnp.where(self.of.squashed.ravel(), correction, 0.0)
        return logp.sum(-1)

    def entropy(self, head: jax.Array, scale: jax.Array) -> jax.Array:
        return (scale + 0.5 * (1.0 + _LOG_TWO_PI)).sum(-1)

    def kl(self, p: tuple[jax.Array, jax.Array], q: tuple[jax.Array, jax.Array]) -> jax.Array:
        (mean_p, log_p), (mean_q, log_q) = p, q
        ratio, shift = jnp.exp(log_p - log_q), (mean_p - mean_q) * jnp.exp(-log_q)
        return (log_q - log_p + 0.5 * (ratio * ratio + shift * shift - 1.0)).sum(-1)

    def _shaped(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], *self.of.shape)


def _leaf(of: ActionLeaf) -> _Leaf:
    if isinstance(of, Choices):
        return _Categorical(of)
    if isinstance(of, Bits):
        return _Bernoulli(of)
    assert isinstance(of, Numbers)
    return _Gaussian(of)


def _total(parts: Iterable[jax.Array]) -> jax.Array:
    """The parts of independent leaves add up."""
    return functools.reduce(operator.add, parts)


def _lead(action: jax.Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    return action.shape[: action.ndim - len(shape)]
