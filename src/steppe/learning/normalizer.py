"""Running statistics that put observations and rewards on a scale that networks learn on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.encoders import norm_merge, normalize
from steppe.spaces import Spec
from steppe.types import Tree


def normalized(spec: Spec, stats: Any, obs: Tree, acted: jax.Array) -> tuple[Tree, Any, jax.Array]:
    """A batch's observations, scaled by the statistics that its rows were acted with.

    Merging the batch first would move its rows off the policy that chose the actions. Only the first batch
    is merged first: there are no statistics yet, and the policy is uniform by construction.

    Args:
        spec: the observation space.
        stats: running statistics; empty to leave observations alone.
        obs: tree of ``(rows, lanes, ...)``.
        acted: ``(rows, lanes)``, the rows that count.

    Returns:
        The scaled observations, the statistics with this batch merged, and whether it is the first one.
    """
    if not stats:
        return obs, stats, jnp.bool_(False)
    merged = norm_merge(spec, stats, obs, acted)
    first = jnp.stack(stats[::3]).max() == 0  # of all leaves: an optional one may stay unseen for long
    used = jax.tree.map(partial(jnp.where, first), merged, stats)
    return normalize(spec, used, obs), merged, first


def moments(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of ``x`` where ``mask``, over all axes."""
    n = jnp.maximum(mask.sum(), 1)
    mean = jnp.where(mask, x, 0.0).sum() / n
    return mean, jnp.where(mask, (x - mean) ** 2, 0.0).sum() / n


def return_scale_init() -> tuple[Any, ...]:
    """No returns seen: count, mean and sum of squared deviations, and the open return of no lane."""
    return (*(np.zeros((), np.float32) for _ in range(3)), np.zeros(0, np.float32))


def scaled_rewards(
    stats: Any, batch: Mapping[str, Any], acted: jax.Array, continues: jax.Array, gamma: Any
) -> tuple[jax.Array, Any]:
    """Rewards divided by the running deviation of the discounted return so far (Engstrom et al., 2020).

    Args:
        stats: count, mean, sum of squared deviations, and ``(lanes,)`` the return of each open trajectory.
        batch: reward, terminated, truncated; ``(rows, lanes)``.
        acted: ``(rows, lanes)``.
        continues: ``(lanes,)``, lanes that go on from the last batch.
        gamma: discount.

    Returns:
        ``(rows, lanes)`` rewards, and the new statistics.
    """
    count, mean, m2, carry = stats
    outcome = jnp.concatenate([jnp.zeros_like(acted[:1]), acted[:-1]])

    def step(total: jax.Array, row: Any) -> tuple[jax.Array, jax.Array]:
        reward, counts, ends = row
        total = jnp.where(counts, gamma * total + reward, total)
        return jnp.where(ends, 0.0, total), total

    final = batch["terminated"] | batch["truncated"]
    carry, returns = jax.lax.scan(step, jnp.where(continues, carry, 0.0), (batch["reward"], outcome, final))
    n = outcome.sum().astype(jnp.float32)
    own, variance = moments(returns, outcome)
    total, delta = count + n, own - mean
    mean = mean + delta * n / jnp.maximum(total, 1.0)
    m2 = m2 + n * variance + delta**2 * count * n / jnp.maximum(total, 1.0)
    stats = total, mean, m2, carry
    return batch["reward"] / deviation(stats), stats


def deviation(stats: Any) -> jax.Array:
    """``()``, what :func:`scaled_rewards` divides by; 1 before any return was seen.

    At least 1 % of the mean: returns that hardly differ are no reason to blow their rewards up.
    """
    count, mean, m2, _ = stats
    return jnp.where(count > 0, jnp.sqrt(m2 / jnp.maximum(count, 1.0) + 1e-4 * mean**2 + 1e-8), 1.0)
