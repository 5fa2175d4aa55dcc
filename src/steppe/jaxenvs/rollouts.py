"""Many copies of an env and the policy that acts in them, stepped in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steppe.jaxenvs.actions import to_env
from steppe.jaxenvs.protocol import JaxEnv, Step
from steppe.models.actions import Actions
from steppe.seeding import SMALLEST_NOISE
from steppe.types import Tree


class Plan(NamedTuple):
    """What a compiled rollout is made for.

    Attributes:
        env: whose functions are called.
        envs: how many copies of it there are.
        steps: env steps of a fragment, over all of them.
        limit: an episode of so many steps is truncated; None where the env alone says when one ends.
        dtypes: of observations, a tree.
        state: shapes and dtypes of the env's state.
        act: function of weights, observations and uniforms: actions and their log-probabilities.
        noise: uniforms that a row needs.
        actions: the layout of the actions.
    """

    env: JaxEnv
    envs: int
    steps: int
    limit: int | None
    dtypes: Tree
    state: Any
    act: Callable[..., tuple[Tree, jax.Array]]
    noise: int
    actions: Actions


class Row(NamedTuple):
    """The newest row of each copy, ``(envs, ...)``: what a Rollout has, and the return so far."""

    obs: Tree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    t: jax.Array
    episode: jax.Array
    earned: jax.Array


class Carry(NamedTuple):
    """Where all copies are: what a rollout goes on from."""

    key: jax.Array
    state: Any
    row: Row


class Columns(NamedTuple):
    """What a rollout wrote: rows ``(rows, envs, ...)``, and what was chosen at them."""

    row: Row
    action: Tree
    logp: jax.Array


def begin(plan: Plan, params: Any, key: jax.Array) -> Carry:
    """All copies at the first row of their first episodes."""
    key, reset = jax.random.split(jax.random.wrap_key_data(key))
    zero = jnp.zeros(plan.envs)
    flags = jnp.zeros(plan.envs, bool), jnp.zeros(plan.envs, bool)
    counts = jnp.zeros(plan.envs, jnp.int32), jnp.full(plan.envs, -1, jnp.int32)
    before = Row(None, zero, *flags, *counts, zero)
    state, row = _first(plan, params, reset, before)
    return Carry(jax.random.key_data(key), state, row)


def rollout(plan: Plan, params: Any, weights: Any, carry: Carry) -> tuple[Carry, jax.Array, Columns]:
    """Step until all copies together have taken a fragment's steps.

    Where an episode ended with the fragment before, the first row is that of the next one.

    Returns:
        Where the copies are; the index of the closing row; columns with room for episodes of one step each.
    """
    room = 2 * -(-plan.steps // plan.envs) + 1
    key, reset = jax.random.split(jax.random.wrap_key_data(carry.key))
    carry = _renewed(plan, params, reset, Carry(key, carry.state, carry.row))
    chosen = jax.eval_shape(partial(_chosen, plan), weights, carry)
    columns = jax.tree.map(lambda a: jnp.zeros((room, *a.shape), a.dtype), Columns(carry.row, *chosen))

    def goes_on(loop: Any) -> Any:
        return loop[1] < plan.steps

    def one(loop: Any) -> Any:
        i, steps, carry, columns = loop
        action, logp = _chosen(plan, weights, carry)
        written = Columns(carry.row, action, logp)
        columns = jax.tree.map(lambda column, values: column.at[i].set(values), columns, written)
        awaited = ~(carry.row.terminated | carry.row.truncated)
        carry = _stepped(plan, params, carry, action)
        return i + 1, steps + awaited.sum(), carry, columns

    i, _, carry, columns = jax.lax.while_loop(goes_on, one, (jnp.int32(0), jnp.int32(0), carry, columns))
    row = jax.tree.map(lambda column, values: column.at[i].set(values), columns.row, carry.row)
    return carry._replace(key=jax.random.key_data(carry.key)), i, columns._replace(row=row)


def _keys(carry: Carry) -> jax.Array:
    """For what comes, for noise, for steps and for resets."""
    return jax.random.split(carry.key, 4)


def _chosen(plan: Plan, weights: Any, carry: Carry) -> tuple[Tree, jax.Array]:
    """What the policy chooses at the newest rows; zeros at final ones."""
    noise = jax.random.uniform(_keys(carry)[1], (plan.envs, plan.noise))
    action, logp = plan.act(weights, carry.row.obs, jnp.maximum(noise, SMALLEST_NOISE))
    final = carry.row.terminated | carry.row.truncated
    chosen: tuple[Tree, jax.Array] = jax.tree.map(lambda a: _where(~final, a, 0), (action, logp))
    return chosen


def _stepped(plan: Plan, params: Any, carry: Carry, action: Tree) -> Carry:
    """The next rows: of a step, or where the newest row is final, of a reset."""
    key, _, step, reset = _keys(carry)
    keys = jax.random.split(step, plan.envs)
    moved = jax.vmap(plan.env.step_env, (0, 0, 0, None))(
        keys, carry.state, to_env(plan.actions, action), params
    )
    obs, state, reward, terminated, truncated, _ = Step(*moved)
    t, episode = carry.row.t + 1, carry.row.episode
    reward, terminated, truncated = reward.astype(jnp.float32), terminated != 0, truncated != 0
    if plan.limit is not None:
        truncated = truncated | ((t >= plan.limit) & ~terminated)
    row = Row(_typed(plan.dtypes, obs), reward, terminated, truncated, t, episode, carry.row.earned + reward)
    return _renewed(plan, params, reset, Carry(key, _like(plan, state), row), carry.row)


def _renewed(plan: Plan, params: Any, reset: jax.Array, carry: Carry, before: Row | None = None) -> Carry:
    """Where the row ``before`` was final, the first row of the next episode instead of the carry's."""
    before = carry.row if before is None else before
    final = before.terminated | before.truncated
    moved = (carry.state, carry.row)

    def begun() -> Any:
        return jax.tree.map(partial(_where, final), _first(plan, params, reset, before), moved)

    # All copies are reset together, if one is: most steps go without.
    state, row = jax.lax.cond(final.any(), begun, lambda: moved)
    return Carry(carry.key, state, row)


def _first(plan: Plan, params: Any, reset: jax.Array, before: Row) -> tuple[Any, Row]:
    """States and first rows of the episodes behind those of the rows ``before``."""
    obs, state = jax.vmap(plan.env.reset_env, (0, None))(jax.random.split(reset, plan.envs), params)
    zero, no = jnp.zeros_like(before.reward), jnp.zeros_like(before.terminated)
    row = Row(_typed(plan.dtypes, obs), zero, no, no, jnp.zeros_like(before.t), before.episode + 1, zero)
    return _like(plan, state), row


def _where(mask: jax.Array, a: Any, b: Any) -> jax.Array:
    """``a`` in the rows that ``mask (n,)`` picks, else ``b``."""
    return jnp.where(mask.reshape(-1, *[1] * (jnp.ndim(a) - 1)), a, b)


def _typed(dtypes: Tree, obs: Tree) -> Tree:
    return jax.tree.map(lambda dtype, a: jnp.asarray(a, dtype), dtypes, obs)


def _like(plan: Plan, state: Any) -> Any:
    return jax.tree.map(lambda a, like: jnp.asarray(a, like.dtype), state, plan.state)
