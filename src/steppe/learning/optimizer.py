"""Adam behind a bound on the gradient's norm, and states as trees while updates run.

Between updates all parameters lie in one flat vector, and so do the moments of their gradients. The loop of
updates goes over their parts instead: joined anew at each step, large networks took a quarter longer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steppe.policies.actor_critic import Layout
from steppe.types import FloatArray


def clipped_adam(grad_clip: float | None, epsilon: float = 1e-5) -> optax.GradientTransformation:
    """Gradients clipped by their global norm, then Adam (Kingma & Ba, 2015).

    The result is to be multiplied by the negative learning rate, which may change from step to step.
    """
    clip = optax.identity() if grad_clip is None else optax.clip_by_global_norm(grad_clip)
    return optax.chain(clip, optax.scale_by_adam(eps=epsilon))


def clipped_adam_init(params: FloatArray) -> Any:
    """Its state before the first step, in numpy: op by op in JAX this would compile."""
    zero = np.zeros_like(params)
    return (optax.EmptyState(), optax.ScaleByAdamState(count=np.zeros((), np.int32), mu=zero, nu=zero))


def clipped_adam_form(layout: Layout) -> Any:
    """The form of its state, see :func:`opened`, of parameters that lie as ``layout`` says."""
    return (optax.EmptyState(), optax.ScaleByAdamState(count=None, mu=layout, nu=layout))


def opened(form: Any, state: Any) -> Any:
    """A state whose vectors are trees: ``form`` has a layout in the place of each, None where all stays."""
    return jax.tree.map(
        lambda own, part: part if own is None else own.unravel(part), form, state, is_leaf=_last
    )


def closed(form: Any, state: Any) -> Any:
    """The opposite of :func:`opened`."""
    return jax.tree.map(lambda own, part: part if own is None else joined(part), form, state, is_leaf=_last)


def _last(form: Any) -> bool:
    return form is None or isinstance(form, Layout)


def joined(tree: Any) -> jax.Array:
    """The arrays of a tree as one vector."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def global_norm(gradient: Any) -> jax.Array:
    """The norm of all arrays of a tree together."""
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient)))


def descended(params: Any, change: Any, rate: Any) -> Any:
    """Parameters, a learning rate down from where they were."""
    return jax.tree.map(lambda old, step: old - rate * step, params, change)
