"""Values of actions, by several networks side by side: one parameter tree with a leading axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import Actions, Numbers
from steppe.models.encoders import Encoder, make_encoder
from steppe.models.mlp import MLP
from steppe.spaces import Spec
from steppe.types import Tree


@final
class ActionValue(eqx.Module):
    """Values of one observation: of the action that comes along or, where none does, of every choice."""

    encoder: Encoder
    mlp: MLP

    def __call__(self, obs: Tree, action: jax.Array) -> jax.Array:
        """``(outputs,)`` of one observation and one action ``(inputs,)``, which may have no elements."""
        return self.mlp(jnp.concatenate([self.encoder(obs), action]))


def make_action_values(
    obs_spec: Spec,
    inputs: int,
    outputs: int,
    rng: np.random.Generator,
    *,
    count: int = 2,
    hiddens: Sequence[int] = (256, 256),
    activation: str = "relu",
    conv_filters: Sequence[Sequence[int]] | None = None,
    encoder: Callable[..., Any] | None = None,
) -> ActionValue:
    """Draw some networks of the same form.

    Args:
        obs_spec: what they see.
        inputs: elements of an action that comes along.
        outputs: values that each gives: 1, or one a choice.
        rng: source of the initial parameters.
        count: how many networks.
        hiddens: widths of the hidden layers.
        activation: after each hidden layer.
        conv_filters: ``[channels, kernel, stride]`` a layer, for images; chosen by size if None.
        encoder: makes one of the user's own.

    Returns:
        One tree, each of whose arrays has a leading axis ``(count,)``; see :func:`action_values`.

    Raises:
        ConfigError: bad widths, unknown activation, or filters that do not fit the image.
    """

    def one() -> ActionValue:
        torso = make_encoder(obs_spec, rng, conv_filters=conv_filters, own=encoder)
        return ActionValue(torso, MLP((torso.size + inputs, *hiddens, outputs), activation, rng, 1.0))

    networks = [one() for _ in range(count)]
    # Not by a map over all: functions that a user's module holds may be others in each.
    arrays = zip(*map(jax.tree.leaves, networks), strict=True)
    stacked: ActionValue = jax.tree.unflatten(jax.tree.structure(networks[0]), map(np.stack, arrays))
    return stacked


def action_values(networks: ActionValue, obs: Tree, action: jax.Array) -> jax.Array:
    """What all networks say: ``(count, n, outputs)`` of ``n`` observations and actions ``(n, inputs)``."""
    values: jax.Array = jax.vmap(lambda one: jax.vmap(one)(obs, action))(networks)
    return values


def action_inputs(actions: Actions, action: Tree) -> jax.Array:
    """A column of actions in policy units as the networks take it: ``(n, inputs)``, squashed where envs are.

    Choices are no inputs: the networks have an output for each.
    """
    parts = []
    for leaf, x in zip(actions.leaves, actions.flat(action), strict=True):
        if isinstance(leaf, Numbers):
            flat = x.reshape(len(x), leaf.heads)
            parts.append(jnp.where(leaf.squashed.ravel(), jnp.tanh(flat), flat))
        else:
            parts.append(jnp.zeros((len(x), 0)))
    return jnp.concatenate(parts, axis=1)
