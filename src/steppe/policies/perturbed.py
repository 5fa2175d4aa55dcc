"""Acting with parameters that are moved anew for each trajectory: exploration in the space of parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.distributions import Distribution
from steppe.models.encoders import normalize
from steppe.models.observations import Sight
from steppe.models.sight import read
from steppe.policies.actor_critic import ActorCriticPolicy, Layout
from steppe.seeding import stream
from steppe.spaces import Spec, is_wide, leaves, map_leaves, narrowed, take
from steppe.types import Decision, FloatArray, IntArray, State, Tree, Weights

_SIZE = 1 << 22


@cache
def noise_table() -> FloatArray:
    """Normal numbers, the same in every run: a direction of ``p`` parameters is any ``p`` that lie together.

    So a direction travels as one whole number (Salimans et al., 2017, section 2.1).
    """
    return stream(0, "directions").standard_normal(_SIZE, np.float32)


def direction(table: jax.Array, perturbation: jax.Array, size: int) -> jax.Array:
    """``(size,)`` normal numbers; those of ``-k`` are the negative of those of ``k``, those of 0 are 0."""
    start = jnp.maximum(jnp.abs(perturbation) - 1, 0)
    return jnp.sign(perturbation) * jax.lax.dynamic_slice(table, (start,), (size,))


@final
class PerturbedPolicy:
    """Moves the parameters of a policy by a direction of its own for each trajectory, and then acts greedily.

    The state of a trajectory is its ``perturbation``: 0 before its first row, then a whole number that names
    a direction, negative where the parameters are moved backwards. First rows that come in one batch are
    paired, forwards and backwards along the same direction. What is recorded as the action is a dict of
    ``action``, the policy's own, and ``perturbation``. Without noise nothing is moved.

    See :class:`steppe.types.Policy`.

    Args:
        policy: whose parameters they are.
        sight: what it observes, and what acting sees of that.
        distribution: of its actions.
        layout: of ``(actor, normalizer)`` in the flat weights.
        size: how many of them are the actor's.
        deviation: how far parameters are moved.

    Attributes:
        table: the numbers that directions are parts of.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        sight: Sight,
        distribution: Distribution,
        layout: Layout,
        size: int,
        deviation: float,
    ) -> None:
        self.observation, self.acting, self.action = policy.observation, policy.acting, policy.action
        self.noise_size, self.draws = 1, False
        self.load: Callable[[Weights], Any] = lambda weights: jnp.asarray(layout.flat(weights))
        self._policy, to_env = policy, distribution.actions.to_env_direct
        self.to_env: Callable[[Tree], Tree] = lambda recorded: to_env(recorded["action"])
        self.from_env: Callable[[Tree], Tree] = partial(_unmoved, distribution.actions.from_env)
        self._act = _compiled(sight.actor, distribution, layout, size)
        self._deviation, self._directions = np.float32(deviation), _SIZE - size
        self.table = jnp.asarray(noise_table())
        self._wide = is_wide(sight.acting)
        self._read: Callable[[Tree], Tree] | None = None
        if sight.masked or sight.critic_only:
            self._read = partial(read, sight, distribution.actions)

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`.

        Raises:
            BadLeaf: the mask of a row allows nothing.
        """
        if noise is None:
            decision = self._policy.act(weights, obs, None, None)
            unmoved = {"action": decision.action, "perturbation": np.zeros_like(state)}
            return Decision(unmoved, decision.logp, state)
        if self._read is not None:
            obs = self._read(obs)
        if self._wide:
            obs = narrowed(self.acting, obs)
        state = self._drawn(state, noise[:, 0])
        n = len(state)
        index = np.minimum(np.arange(1 << (n - 1).bit_length()), n - 1)  # padded: else every size compiles
        given = (state[index], take(obs, index)) if len(index) > n else (state, obs)
        action, logp = self._act(weights, self.table, self._deviation, *given)
        chosen = {"action": map_leaves(lambda a: np.asarray(a)[:n], action), "perturbation": state}
        return Decision(chosen, np.asarray(logp)[:n], state)

    def _drawn(self, state: IntArray, noise: FloatArray) -> IntArray:
        """The perturbations of rows; fresh trajectories draw theirs in pairs, a last odd one alone."""
        fresh = np.flatnonzero(state == 0)
        if not len(fresh):
            return state
        first = fresh[np.arange(len(fresh)) // 2 * 2]  # of each pair
        start = 1 + (noise[first].astype(np.float64) * self._directions).astype(np.int32)
        drawn = state.copy()
        drawn[fresh] = np.where(np.arange(len(fresh)) % 2, -start, start)
        return drawn

    def initial_state(self, n: int) -> Tree:
        """Nothing is drawn yet."""
        return np.zeros(n, np.int32)

    def export(self, weights: Weights) -> State:
        """The policy, as nothing moves it."""
        return {**self._policy.export(weights), "exploration": {"kind": "perturbed"}}


def _unmoved(from_env: Callable[[Tree], Tree], action: Tree) -> Tree:
    """What others chose, as it is recorded: nothing was moved."""
    own = from_env(action)
    return {"action": own, "perturbation": np.zeros(len(leaves(own)[0]), np.int32)}


@lru_cache(maxsize=64)
def _compiled(observation: Spec, distribution: Distribution, layout: Layout, size: int) -> Any:
    """The acting function of a structure: each row has parameters of its own."""

    def act(
        flat: jax.Array, table: jax.Array, deviation: Any, perturbation: jax.Array, obs: Tree
    ) -> tuple[Tree, jax.Array]:
        _, stats = layout.unravel(flat)
        if stats:
            obs = normalize(observation, stats, obs)

        def one(perturbation: jax.Array, obs: Tree) -> jax.Array:
            moved = flat.at[:size].add(deviation * direction(table, perturbation, size))
            params: jax.Array = layout.unravel(moved)[0](obs)
            return params

        params = jax.vmap(one)(perturbation, obs)
        action = distribution.mode(params)
        return action, distribution.logp(params, action)

    return jax.jit(act)
