"""The networks of an actor-critic, made from an observation space and an action distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import LOG_STD_RANGE
from steppe.models.distributions import Distribution, legal
from steppe.models.encoders import Encoder, make_encoder
from steppe.models.mlp import MLP
from steppe.models.observations import MASK, Embeddings
from steppe.spaces import Spec
from steppe.types import Tree

if TYPE_CHECKING:
    from steppe.models.embeddings import Scores

_POLICY_SCALE = 0.01
"""Gain of the policy's last layer: all actions start out about equally likely."""


@final
class Actor(eqx.Module):
    """All that acting needs: observation to distribution parameters, for one observation.

    Attributes:
        encoder: observation to vector.
        mlp: vector to distribution parameters, but for those that are free.
        log_std: the free ones, the same for every observation: log standard deviations, where the network
            does not say them, and the weights of actions that know of each other; None where there are none.
        masked: observations have a mask of the actions, which is not encoded.
        bounded: how many of the last outputs are log standard deviations that are kept within bounds.
        scores: makes parameters of choices that the observation describes, else None.
    """

    encoder: Encoder
    mlp: MLP
    log_std: jax.Array | None
    masked: bool = eqx.field(static=True, default=False)
    bounded: int = eqx.field(static=True, default=0)
    scores: Scores | None = None

    def features(self, obs: Tree) -> jax.Array:
        """``(f,)``: the input of the last layer."""
        return self.mlp.hidden(self.encoder(obs))

    def head(self, features: jax.Array, obs: Tree) -> jax.Array:
        """Features ``(f,)`` to distribution parameters ``(P,)``; illegal actions have no chance."""
        params = self.mlp.head(features)
        if self.scores is not None:
            params = self.scores(params, obs)
        if self.masked:
            params = legal(params, obs[MASK])
        if self.bounded:
            scales = jnp.clip(params[-self.bounded :], *LOG_STD_RANGE)
            return jnp.concatenate([params[: -self.bounded], scales])
        return params if self.log_std is None else jnp.concatenate([params, self.log_std])

    def __call__(self, obs: Tree) -> jax.Array:
        """Distribution parameters ``(P,)`` of one observation."""
        return self.head(self.features(obs), obs)

    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values; :mod:`steppe.models.numpy_forward` reads it."""
        free = self.log_std is not None
        parts = {"encoder": self.encoder.describe(), "mlp": self.mlp.describe()}
        if self.scores is not None:
            parts["scores"] = self.scores.describe()
        return {**parts, "free_log_std": free, "masked": self.masked, "bounded_log_std": self.bounded}


@final
class Critic(eqx.Module):
    """Value of one observation, or of the actor's features when ``encoder`` is None."""

    encoder: Encoder | None
    mlp: MLP

    def __call__(self, inputs: Tree) -> jax.Array:
        """``()`` value of an observation, or of the features ``(f,)`` of a shared actor."""
        return self.mlp(inputs if self.encoder is None else self.encoder(inputs))[0]


@final
class ActorCritic(eqx.Module):
    """Policy and value of one observation; ``actor`` alone is what acting needs."""

    actor: Actor
    critic: Critic

    def value(self, obs: Tree) -> jax.Array:
        """``()`` value of one observation."""
        return self.critic(self.actor.features(obs) if self.critic.encoder is None else obs)

    def __call__(self, obs: Tree) -> tuple[jax.Array, jax.Array]:
        """``(params (P,), value ())`` of one observation; shared layers run once."""
        features = self.actor.features(obs)
        return self.actor.head(features, obs), self.critic(features if self.critic.encoder is None else obs)


def make_actor(
    obs_spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    *,
    masked: bool = False,
    bounded: bool = False,
    hiddens: Sequence[int] = (64, 64),
    activation: str = "tanh",
    conv_filters: Sequence[Sequence[int]] | None = None,
    free_log_std: bool = True,
    initial_log_std: float = 0.0,
    encoder: Callable[..., Any] | None = None,
    embeddings: Embeddings | None = None,
) -> Actor:
    """Draw the network that acts; arguments as of :func:`make_actor_critic`.

    Args:
        obs_spec: what it sees.
        distribution: of the actions.
        rng: source of the initial parameters.
        masked: the observation has a mask of the actions beside that.
        bounded: log standard deviations, which then are outputs of the network, are kept within bounds.
        hiddens: widths of the hidden layers.
        activation: after each hidden layer.
        conv_filters: for images.
        free_log_std: log standard deviations are parameters of their own.
        initial_log_std: their value before training.
        encoder: makes one of the user's own.
        embeddings: where the observation describes the choices.

    Raises:
        ConfigError: bad widths, unknown activation, or filters that do not fit the image.
    """
    torso = make_encoder(obs_spec, rng, conv_filters=conv_filters, own=encoder)
    scales, scores = distribution.log_std_size, None
    free = distribution.weights(rng)
    outputs = distribution.param_size - len(free) - (scales if free_log_std else 0)
    if embeddings is not None:
        from steppe.models.embeddings import KEY, Scores  # most choices are numbered only

        scores, outputs = Scores(embeddings, rng), KEY + 1
    mlp = MLP((torso.size, *hiddens, outputs), activation, rng, _POLICY_SCALE)
    initial = np.full(scales, initial_log_std, np.float32)
    if free_log_std:
        free = np.concatenate([initial, free])
    else:
        bias = np.concatenate([np.zeros(outputs - scales, np.float32), initial])
        mlp = eqx.tree_at(lambda m: m.biases[-1], mlp, jnp.asarray(bias))
    log_std = jnp.asarray(free) if free.size else None
    return Actor(torso, mlp, log_std, masked, scales if bounded else 0, scores)


def make_actor_critic(
    obs_spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    *,
    critic_spec: Spec | None = None,
    hiddens: Sequence[int] = (64, 64),
    activation: str = "tanh",
    share_layers: bool = False,
    conv_filters: Sequence[Sequence[int]] | None = None,
    encoder: Callable[..., Any] | None = None,
    **head: Any,
) -> ActorCritic:
    """Draw the networks of an actor-critic.

    Args:
        obs_spec: what the policy's network sees, of the observation or of a Dict that has more keys.
        distribution: of the actions.
        rng: source of the initial parameters.
        critic_spec: what the value's network sees; the same if None.
        hiddens: widths of the hidden layers, of actor and critic alike.
        activation: after each hidden layer, see :class:`~steppe.models.mlp.MLP`.
        share_layers: the critic is one layer on the actor's features.
        conv_filters: ``[channels, kernel, stride]`` a layer, for images; chosen by size if None.
        encoder: makes one of the user's own; actor and critic have each theirs.
        head: further arguments of :func:`make_actor`.

    Raises:
        ConfigError: bad widths, unknown activation, or filters that do not fit the image.
    """
    layers: dict[str, Any] = {"hiddens": hiddens, "activation": activation, "conv_filters": conv_filters}
    actor = make_actor(obs_spec, distribution, rng, encoder=encoder, **layers, **head)
    if share_layers:
        width = hiddens[-1] if hiddens else actor.encoder.size
        return ActorCritic(actor, Critic(None, MLP((width, 1), activation, rng, 1.0)))
    seen = obs_spec if critic_spec is None else critic_spec
    own = make_encoder(seen, rng, conv_filters=conv_filters, own=encoder)
    return ActorCritic(actor, Critic(own, MLP((own.size, *hiddens, 1), activation, rng, 1.0)))
