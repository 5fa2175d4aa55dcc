"""The loss of those actor-critics that take a plain policy gradient step: its advantages tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from steppe.models.catalog import ActorCritic
from steppe.models.distributions import Distribution

PARTS = ("policy_loss", "vf_loss", "entropy", "kl", "total_loss")
"""Names of the parts of :func:`policy_gradient_loss`."""


def averaged(parts: Mapping[str, jax.Array], weight: jax.Array) -> dict[str, jax.Array]:
    """Means of columns ``(n,)`` over the rows with weight 1; the others may hold what is not finite."""
    total = jnp.maximum(weight.sum(), 1.0)
    return {name: jnp.where(weight > 0, column, 0.0).sum() / total for name, column in parts.items()}


def outputs(model: Any, rows: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Distribution parameters ``(n, P)`` and values ``(n,)`` that a model, with or without a memory, makes.

    Args:
        model: for one observation, or one with a memory, which knows how its rows follow each other.
        rows: ``(n, ...)`` each; of a model with a memory more than obs.
    """
    if "memory" in rows:
        params, value = model.outputs(rows)
    else:
        params, value = jax.vmap(model)(rows["obs"])
    return params, value


def policy_gradient_loss(
    model: ActorCritic, distribution: Distribution, rows: Mapping[str, Any], hyper: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Minus log-probability times advantage, with value loss and entropy bonus (Mnih et al., 2016).

    Args:
        model: see :func:`outputs`.
        distribution: of the actions.
        rows: obs, action, logp, advantage, target, and weight (1 where a row counts); ``(n, ...)`` each.
        hyper: has ``vf_coeff`` and ``entropy_coeff``.

    Returns:
        The loss, and its parts averaged over the rows that count.
    """
    params, value = outputs(model, rows)
    logp = distribution.logp(params, rows["action"])
    log_ratio = logp - rows["logp"]
    columns = {
        "policy_loss": -logp * rows["advantage"],
        "vf_loss": (value - rows["target"]) ** 2,
        "entropy": distribution.entropy(params, rows["action"]),
        "kl": jnp.exp(log_ratio) - 1.0 - log_ratio,  # Schulman's estimator: unbiased, never negative
    }
    parts = averaged(columns, rows["weight"])
    loss = parts["policy_loss"] + hyper.vf_coeff * parts["vf_loss"] - hyper.entropy_coeff * parts["entropy"]
    return loss, {**parts, "total_loss": loss}
