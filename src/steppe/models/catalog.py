"""The networks of an actor-critic, made from an observation space and an action distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import LOG_STD_RANGE, MASKED
from steppe.models.distributions import Distribution
from steppe.models.encoders import Encoder, make_encoder
from steppe.models.mlp import MLP
from steppe.models.observations import MASK
from steppe.spaces import Spec
from steppe.types import Tree

_POLICY_SCALE = 0.01
"""Gain of the policy's last layer: all actions start out about equally likely."""


@final
class Actor(eqx.Module):
    """All that acting needs: observation to distribution parameters, for one observation.

    Attributes:
        encoder: observation to vector.
        mlp: vector to distribution parameters, but for a free ``log_std``.
        log_std: ``(log_std_size,)``, the same for every observation, or None where the network says it.
        masked: observations have a mask of the actions, which is not encoded.
        bounded: how many of the last outputs are log standard deviations that are kept within bounds.
    """

    encoder: Encoder
    mlp: MLP
    log_std: jax.Array | None
    masked: bool = eqx.field(static=True, default=False)
    bounded: int = eqx.field(static=True, default=0)

    def features(self, obs: Tree) -> jax.Array:
        """``(f,)``: the input of the last layer."""
        return self.mlp.hidden(self.encoder(obs))

    def head(self, features: jax.Array, obs: Tree) -> jax.Array:
        """Features ``(f,)`` to distribution parameters ``(P,)``; illegal actions have no chance."""
        params = self.mlp.head(features)
        if self.masked:
            params = jnp.where(obs[MASK] != 0, params, MASKED)
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

    Raises:
        ConfigError: bad widths, unknown activation, or filters that do not fit the image.
    """
    encoder = make_encoder(obs_spec, rng, conv_filters=conv_filters)
    scales = distribution.log_std_size
    outputs = distribution.param_size - (scales if free_log_std else 0)
    mlp = MLP((encoder.size, *hiddens, outputs), activation, rng, _POLICY_SCALE)
    initial = np.full(scales, initial_log_std, np.float32)
    if free_log_std and scales:
        return Actor(encoder, mlp, jnp.asarray(initial), masked)
    bias = np.concatenate([np.zeros(outputs - scales, np.float32), initial])
    mlp = eqx.tree_at(lambda m: m.biases[-1], mlp, jnp.asarray(bias))
    return Actor(encoder, mlp, None, masked, scales if bounded else 0)


def make_actor_critic(
    obs_spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    *,
    critic_spec: Spec | None = None,
    masked: bool = False,
    hiddens: Sequence[int] = (64, 64),
    activation: str = "tanh",
    share_layers: bool = False,
    conv_filters: Sequence[Sequence[int]] | None = None,
    free_log_std: bool = True,
    initial_log_std: float = 0.0,
) -> ActorCritic:
    """Draw the networks of an actor-critic.

    Args:
        obs_spec: what the policy's network sees, of the observation or of a Dict that has more keys.
        distribution: of the actions.
        rng: source of the initial parameters.
        critic_spec: what the value's network sees; the same if None.
        masked: the observation has a mask of the actions beside that.
        hiddens: widths of the hidden layers, of actor and critic alike.
        activation: after each hidden layer, see :class:`~steppe.models.mlp.MLP`.
        share_layers: the critic is one layer on the actor's features.
        conv_filters: ``[channels, kernel, stride]`` a layer, for images; chosen by size if None.
        free_log_std: log standard deviations are parameters of their own, not outputs of the network.
        initial_log_std: their value before training.

    Raises:
        ConfigError: bad widths, unknown activation, or filters that do not fit the image.
    """
    actor = make_actor(
        obs_spec,
        distribution,
        rng,
        masked=masked,
        hiddens=hiddens,
        activation=activation,
        conv_filters=conv_filters,
        free_log_std=free_log_std,
        initial_log_std=initial_log_std,
    )
    if share_layers:
        width = hiddens[-1] if hiddens else actor.encoder.size
        return ActorCritic(actor, Critic(None, MLP((width, 1), activation, rng, 1.0)))
    own = make_encoder(obs_spec if critic_spec is None else critic_spec, rng, conv_filters=conv_filters)
    return ActorCritic(actor, Critic(own, MLP((own.size, *hiddens, 1), activation, rng, 1.0)))
