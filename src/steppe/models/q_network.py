"""Action values of one observation: plain, dueling, distributional, noisy, or all of that.

Dueling is Wang et al., 2016 (arXiv:1511.06581), distributions of returns Bellemare et al., 2017
(arXiv:1707.06887), noisy layers Fortunato et al., 2018 (arXiv:1706.10295).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import MASKED
from steppe.models.encoders import Encoder, make_encoder
from steppe.models.initial import HIDDEN_GAIN, orthogonal
from steppe.models.mlp import ACTIVATIONS
from steppe.models.observations import MASK, Embeddings
from steppe.spaces import Spec
from steppe.types import Tree

if TYPE_CHECKING:
    from steppe.models.embeddings import Scores


@final
class Dense(eqx.Module):
    """One layer; if it is noisy, its weights are drawn anew with each noise.

    Attributes:
        weight: ``(in, out)``.
        bias: ``(out,)``.
        scale: of the noise on ``weight``, same shape; None in a layer without noise.
        bias_scale: likewise on ``bias``.
    """

    weight: jax.Array
    bias: jax.Array
    scale: jax.Array | None
    bias_scale: jax.Array | None

    @property
    def noise_size(self) -> int:
        """Numbers of noise: one an input and one an output, whose products are the noise on the weights."""
        return 0 if self.scale is None else sum(self.weight.shape)

    def __call__(self, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        """``(in,)`` to ``(out,)``; ``noise`` holds scaled normals (see :func:`scaled_noise`) or is None."""
        y = x @ self.weight + self.bias
        if self.scale is None or self.bias_scale is None or noise is None:
            return y
        before, after = noise[: len(x)], noise[len(x) :]
        return y + ((x * before) @ self.scale + self.bias_scale) * after


@final
class QNetwork(eqx.Module):
    """Values of all actions for one observation.

    A dueling network's two streams part before the last hidden layer.

    Attributes:
        encoder: observation to vector.
        trunk: layers before the streams part.
        advantage: the stream to ``actions * atoms`` numbers; of a network that is not dueling, all the rest.
        value: the stream to ``atoms`` numbers, empty in a network that is not dueling.
        activation: between layers.
        actions: how many.
        support: ``(v_min, v_max, atoms)`` of the distribution of returns; None where only the mean is known.
        masked: observations have a mask of the actions, which is not encoded.
        scores: makes values of choices that the observation describes, else None; such a network is not
            dueling, as what all choices have in common is a number of its own anyway.
    """

    encoder: Encoder
    trunk: tuple[Dense, ...]
    advantage: tuple[Dense, ...]
    value: tuple[Dense, ...]
    activation: str = eqx.field(static=True)
    actions: int = eqx.field(static=True)
    support: tuple[float, float, int] | None = eqx.field(static=True)
    masked: bool = eqx.field(static=True)
    scores: Scores | None = None

    @property
    def noise_size(self) -> int:
        """Numbers of noise that one draw of all noisy layers takes."""
        return sum(layer.noise_size for layer in (*self.trunk, *self.advantage, *self.value))

    def __call__(self, obs: Tree, noise: jax.Array | None = None) -> jax.Array:
        """``(actions, atoms)``: logits over the support, or with one atom the values themselves.

        Args:
            obs: one observation.
            noise: ``(noise_size,)`` from :func:`scaled_noise`; None leaves the noise out.
        """
        return self.head(self.encoder(obs), obs, noise)

    def head(self, encoded: jax.Array, obs: Tree, noise: jax.Array | None) -> jax.Array:
        """The same of an observation that was encoded already."""
        rest, function = noise, ACTIVATIONS[self.activation]

        def through(layers: tuple[Dense, ...], x: jax.Array, last: bool) -> jax.Array:
            nonlocal rest
            for i, layer in enumerate(layers):
                own = None if rest is None else rest[: layer.noise_size]
                rest = None if rest is None else rest[layer.noise_size :]
                x = layer(x, own)
                x = x if last and i == len(layers) - 1 else function(x)
            return x

        x = through(self.trunk, encoded, False)
        out = through(self.advantage, x, True)
        if self.scores is not None:
            return self.scores(out.reshape(-1, 1 if self.support is None else self.support[2]), obs)
        out = out.reshape(self.actions, -1)
        return out - out.mean(0) + through(self.value, x, True) if self.value else out

    def expected(self, out: jax.Array) -> jax.Array:
        """Values ``(..., actions)`` of what a call gave, ``(..., actions, atoms)``."""
        if self.support is None:
            return out[..., 0]
        mean: jax.Array = (jax.nn.softmax(out) * np.linspace(*self.support, dtype=np.float32)).sum(-1)
        return mean

    def legal(self, values: jax.Array, obs: Tree) -> jax.Array:
        """Values ``(actions,)`` with those of illegal actions far below all others."""
        return jnp.where(obs[MASK] != 0, values, MASKED) if self.masked else values

    def describe(self) -> dict[str, Any]:
        """The network without noise as JSON values; :mod:`steppe.models.numpy_forward` reads it."""
        weights, _ = self.folded()
        sizes = [weights[0].shape[0], *(weight.shape[1] for weight in weights)]
        scores = {} if self.scores is None else {"scores": self.scores.describe()}
        return {
            **scores,
            "encoder": self.encoder.describe(),
            "mlp": {"sizes": sizes, "activation": self.activation},
            "free_log_std": False,
            "masked": self.masked,
            "greedy": True,
            "support": None if self.support is None else [*self.support],
        }

    def folded(self) -> tuple[list[Any], list[Any]]:
        """Weights and biases of a plain stack of layers that computes the same without noise.

        The streams lie side by side; taking off the mean advantage is a matter of the last weights.
        """
        shared = [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in self.trunk]
        one, other = (
            [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in stream]
            for stream in (self.advantage, self.value)
        )
        if not other:
            stack = [*shared, *one]
            return [weight for weight, _ in stack], [bias for _, bias in stack]

        def spread(advantage: Any, value: Any) -> Any:
            """To each action, what it has more than the mean."""
            by_action = advantage.reshape(*advantage.shape[:-1], self.actions, -1)
            centred = by_action - by_action.mean(-2, keepdims=True)
            flat = centred.reshape(advantage.shape), np.tile(value, self.actions)
            return flat

        (weight_a, bias_a), (weight_v, bias_v) = one[-1], other[-1]
        last = spread(weight_a, weight_v)
        weight = np.concatenate(last) if len(one) > 1 else sum(last)
        bias = sum(spread(bias_a, bias_v))
        hidden = [
            (np.concatenate([w, v], axis=1), np.concatenate([b, c]))
            for (w, b), (v, c) in zip(one[:-1], other[:-1], strict=True)
        ]
        stack = [*shared, *hidden, (weight, bias)]
        return [weight for weight, _ in stack], [bias for _, bias in stack]


def scaled_noise(normal: jax.Array) -> jax.Array:
    """Normals as noisy layers take them: sign(x) sqrt|x|, whose products have deviation near 1 (eq. 10)."""
    return jnp.sign(normal) * jnp.sqrt(jnp.abs(normal))


def make_q_network(
    spec: Spec,
    actions: int,
    rng: np.random.Generator,
    *,
    hiddens: Sequence[int] = (64, 64),
    activation: str = "relu",
    conv_filters: Sequence[Sequence[int]] | None = None,
    dueling: bool = True,
    support: tuple[float, float, int] | None = None,
    sigma0: float | None = None,
    masked: bool = False,
    encoder: Callable[..., Any] | None = None,
    embeddings: Embeddings | None = None,
) -> QNetwork:
    """Draw a network.

    Args:
        spec: what it sees of an observation.
        actions: how many.
        rng: source of the initial parameters.
        hiddens: widths of the hidden layers.
        activation: after each of them, see :class:`~steppe.models.mlp.MLP`.
        conv_filters: ``[channels, kernel, stride]`` a layer, for images; chosen by size if None.
        dueling: value and advantages have streams of their own.
        support: ``(v_min, v_max, atoms)`` of the distribution of returns, or None.
        sigma0: initial deviation of the noise on the layers of the streams, times the root of their inputs;
            None has no noise.
        masked: the observation has a mask of the actions beside that.
        encoder: makes one of the user's own.
        embeddings: where the observation describes the choices.
    """
    torso, scores = make_encoder(spec, rng, conv_filters=conv_filters, own=encoder), None
    atoms, outputs = 1 if support is None else support[2], actions
    if embeddings is not None:
        from steppe.models.embeddings import KEY, Scores  # most choices are numbered only

        scores, outputs, dueling = Scores(embeddings, rng), KEY + 1, False
    sizes = [torso.size, *hiddens]
    parting = max(len(sizes) - 2, 0)

    def layers(widths: Sequence[int], last: bool) -> tuple[Dense, ...]:
        pairs = list(pairwise(widths))
        return tuple(
            _dense(rng, a, b, 1.0 if last and i == len(pairs) - 1 else HIDDEN_GAIN, sigma0 if last else None)
            for i, (a, b) in enumerate(pairs)
        )

    trunk = layers(sizes[: parting + 1], False)
    advantage = layers([*sizes[parting:], outputs * atoms], True)
    value = layers([*sizes[parting:], atoms], True) if dueling else ()
    return QNetwork(torso, trunk, advantage, value, activation, actions, support, masked, scores)


def _dense(rng: np.random.Generator, before: int, after: int, gain: float, sigma0: float | None) -> Dense:
    weight, bias = jnp.asarray(orthogonal(rng, before, after, gain)), jnp.asarray(np.zeros(after, np.float32))
    if sigma0 is None:
        return Dense(weight, bias, None, None)
    deviation = np.float32(sigma0 / before**0.5)
    full = jnp.asarray(np.full((before, after), deviation))
    return Dense(weight, bias, full, jnp.asarray(np.full(after, deviation)))
