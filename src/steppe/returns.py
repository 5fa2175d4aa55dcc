"""Advantages and returns over rollout columns of shape (rows, lanes): pure functions, no classes.

Row ``t`` holds an observation, and the reward that led *to* it. An action of row ``t`` has its outcome in
row ``t + 1`` of the same lane, so every recursion reads one row down. In all docstrings ``r`` is the reward,
``g`` the discount from ``t`` to ``t + 1``, and ``V'[t]`` is ``V[t]`` but 0 where row ``t`` is terminated.
Rows that were not acted (final rows, closing rows, holes) get 0; their values may be anything but are used
where the row above was acted: a truncated or closing row bootstraps.

``gamma`` is one number, or an array that broadcasts to (rows, lanes) whose row ``t`` discounts the step from
``t`` to ``t + 1`` (``gamma ** dt`` when time passes unevenly).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def acted(terminated: ArrayLike, truncated: ArrayLike, filled: ArrayLike) -> jax.Array:
    """Rows whose action has its outcome in the row below.

    ``acted[t] = filled[t] & filled[t+1] & ~(terminated[t] | truncated[t])``, False in the last row.

    Args:
        terminated: (rows, lanes) bool, on the last row of a trajectory that the env's rules ended.
        truncated: (rows, lanes) bool, on the last row of a trajectory that a limit ended.
        filled: (rows, lanes) bool, False where the lane holds nothing.

    Returns:
        (rows, lanes) bool.
    """
    present = jnp.asarray(filled)
    return present & _below(present) & ~(jnp.asarray(terminated) | jnp.asarray(truncated))


def gae(
    reward: ArrayLike,
    value: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    filled: ArrayLike,
    *,
    gamma: ArrayLike,
    lam: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al., 2016).

    ``adv[t] = r[t+1] + g V'[t+1] - V[t] + g lam adv[t+1]`` on acted rows, else 0.
    ``lam = 0`` is the one-step temporal difference, ``lam = 1`` the bootstrapped return less ``V``.

    Args:
        reward: (rows, lanes), what was earned since the row above.
        value: (rows, lanes), the critic's value of each row.
        terminated: (rows, lanes) bool.
        truncated: (rows, lanes) bool.
        filled: (rows, lanes) bool.
        gamma: discount, see the module.
        lam: the mixing weight in [0, 1].

    Returns:
        ``(advantage, target)``, both (rows, lanes); the target is ``advantage + value``.
    """
    mask = acted(terminated, truncated, filled)
    v = jnp.asarray(value)
    error = _below(reward) + gamma * _bootstrap(v, terminated) - v
    advantage = _accumulate(jnp.where(mask, error, 0.0), jnp.where(mask, gamma * jnp.asarray(lam), 0.0))
    return advantage, jnp.where(mask, advantage + v, 0.0)


def lambda_returns(
    reward: ArrayLike,
    value: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    filled: ArrayLike,
    *,
    gamma: ArrayLike,
    lam: ArrayLike,
) -> jax.Array:
    """The TD(lambda) target (Sutton & Barto, 2018, chapter 12).

    ``G[t] = r[t+1] + g ((1 - lam) V'[t+1] + lam G[t+1])`` on acted rows, where ``G[t+1]`` stands for
    ``V'[t+1]`` if row ``t + 1`` was not acted. Arguments as in :func:`gae`, of which this is the target.

    Returns:
        (rows, lanes), 0 on rows that were not acted.
    """
    return gae(reward, value, terminated, truncated, filled, gamma=gamma, lam=lam)[1]


def vtrace(
    log_rho: ArrayLike,
    reward: ArrayLike,
    value: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    filled: ArrayLike,
    *,
    gamma: ArrayLike,
    lam: ArrayLike = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """V-trace targets and policy-gradient advantages (Espeholt et al., 2018).

    With ``rho = min(clip_rho, exp(log_rho))``, ``c = lam min(clip_c, exp(log_rho))`` and
    ``d[t] = rho[t] (r[t+1] + g V'[t+1] - V[t])``, on acted rows:
    ``x[t] = d[t] + g c[t] x[t+1]``, ``vs[t] = V[t] + x[t]`` and
    ``pg[t] = rho[t] (r[t+1] + g (V'[t+1] + lam x[t+1]) - V[t])``.
    On-policy (``log_rho = 0``) ``pg`` and ``vs`` are the advantage and target of :func:`gae`.

    Args:
        log_rho: (rows, lanes), log-probability of the action now less when it was chosen.
        reward: (rows, lanes), what was earned since the row above.
        value: (rows, lanes), the critic's value of each row.
        terminated: (rows, lanes) bool.
        truncated: (rows, lanes) bool.
        filled: (rows, lanes) bool.
        gamma: discount, see the module.
        lam: the mixing weight in [0, 1]; 1 in the paper.
        clip_rho: largest importance weight of an error, which sets the policy that is evaluated.
        clip_c: largest importance weight of a trace, which sets the speed.

    Returns:
        ``(vs, pg_advantage)``, both (rows, lanes).
    """
    mask = acted(terminated, truncated, filled)
    v = jnp.asarray(value)
    ratio = jnp.exp(jnp.where(mask, log_rho, 0.0))
    rho, trace = jnp.minimum(clip_rho, ratio), jnp.asarray(lam) * jnp.minimum(clip_c, ratio)
    error = jnp.where(mask, _below(reward) + gamma * _bootstrap(v, terminated) - v, 0.0)
    excess = _accumulate(rho * error, jnp.where(mask, gamma * trace, 0.0))
    advantage = rho * (error + jnp.where(mask, gamma * jnp.asarray(lam) * _below(excess), 0.0))
    return jnp.where(mask, v + excess, 0.0), advantage


def n_step(
    reward: ArrayLike,
    bootstrap: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    filled: ArrayLike,
    *,
    gamma: ArrayLike,
    n: int,
) -> jax.Array:
    """The n-step return, shorter where the trajectory or the fragment ends earlier.

    ``G1[t] = r[t+1] + g V'[t+1]`` and ``Gk[t] = r[t+1] + g G(k-1)[t+1]`` on acted rows, where
    ``G(k-1)[t+1]`` stands for ``V'[t+1]`` if row ``t + 1`` was not acted.

    Args:
        reward: (rows, lanes), what was earned since the row above.
        bootstrap: (rows, lanes), value of each row, such as the largest Q of a target network.
        terminated: (rows, lanes) bool.
        truncated: (rows, lanes) bool.
        filled: (rows, lanes) bool.
        gamma: discount, see the module.
        n: number of rewards, at least 1; static.

    Returns:
        (rows, lanes), 0 on rows that were not acted.

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n_step needs n >= 1, not {n}")
    mask = acted(terminated, truncated, filled)
    r, v = _below(reward), _bootstrap(jnp.asarray(bootstrap), terminated)
    goes_on = _below(mask)

    def lengthen(_: int, shorter: jax.Array) -> jax.Array:
        return jnp.where(mask, r + gamma * jnp.where(goes_on, _below(shorter), v), 0.0)

    target: jax.Array = jax.lax.fori_loop(1, n, lengthen, jnp.where(mask, r + gamma * v, 0.0))
    return target


def _below(column: ArrayLike) -> jax.Array:
    """The column one row down; the last row gets 0 (False)."""
    array = jnp.asarray(column)
    return jnp.concatenate([array[1:], jnp.zeros_like(array[:1])])


def _bootstrap(value: jax.Array, terminated: ArrayLike) -> jax.Array:
    """``V'[t+1]``: the value of the row below, 0 where that row is terminated."""
    return _below(jnp.where(jnp.asarray(terminated), 0.0, value))


def _accumulate(term: jax.Array, decay: jax.Array) -> jax.Array:
    """``x[t] = term[t] + decay[t] x[t+1]``, from the last row up."""

    def step(below: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = row[0] + row[1] * below
        return x, x

    _, result = jax.lax.scan(step, jnp.zeros_like(term[0]), (term, decay), reverse=True)
    return result
