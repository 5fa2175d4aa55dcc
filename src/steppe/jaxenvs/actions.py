"""From policy units to env actions, inside compiled code."""

from __future__ import annotations

from functools import singledispatch

import jax
import jax.numpy as jnp

from steppe.models.actions import ActionLeaf, Actions, Bits, Choices, Numbers
from steppe.types import Tree


def to_env(actions: Actions, action: Tree) -> Tree:
    """What :meth:`~steppe.models.actions.Actions.to_env` says, in 32 bits."""
    flat = zip(actions.leaves, actions.flat(action), strict=True)
    return actions.tree([_env_action(leaf, part) for leaf, part in flat])


@singledispatch
def _env_action(leaf: ActionLeaf, action: jax.Array) -> jax.Array:
    raise NotImplementedError(type(leaf))


@_env_action.register
def _(leaf: Choices, action: jax.Array) -> jax.Array:
    return action + jnp.asarray(leaf.start, jnp.int32)


@_env_action.register
def _(leaf: Bits, action: jax.Array) -> jax.Array:
    return action


@_env_action.register
def _(leaf: Numbers, action: jax.Array) -> jax.Array:
    x = action
    if leaf.squash:
        x = jnp.where(leaf.squashed, jnp.tanh(x), x)
    x = x * leaf.half.astype("float32") + leaf.middle.astype("float32")
    if leaf.clip:
        x = jnp.clip(x, leaf.low.astype("float32"), leaf.high.astype("float32"))
    if leaf.integer:
        x = jnp.rint(x)
    return x.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
