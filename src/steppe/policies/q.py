"""Acting by action values: the best action, or with probability epsilon any."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import Actions
from steppe.models.encoders import normalize
from steppe.models.observations import MASK, Sight
from steppe.models.q_network import QNetwork, scaled_noise
from steppe.policies.actor_critic import Layout, exported
from steppe.spaces import Spec, is_wide, leaves, narrowed, take
from steppe.types import Decision, FloatArray, State, Tree, Weights


@final
class QPolicy:
    """Acts with a :class:`~steppe.models.q_network.QNetwork`; see :class:`steppe.types.Policy`.

    The published scalar ``epsilon`` is the probability of a uniform choice. Noise is two uniforms, for
    whether and for which, and those of the noisy layers.

    Args:
        sight: what it observes; all of it is seen.
        action: the action space, a Discrete.
        network: its structure.
        layout: of ``(network, normalizer)`` in the flat weights; the normalizer is empty when there is none.

    Attributes:
        sample: compiled, of loaded weights, observations and uniforms ``(n, noise_size)``; for use inside
            other compiled code, too.
        mode: the same of the best actions, without uniforms.
        options: of the actions: none.
    """

    def __init__(self, sight: Sight, action: Spec, network: QNetwork, layout: Layout) -> None:
        actions = Actions(action)
        self.observation, self.acting, self.action = sight.whole, sight.acting, action
        self.noise_size, self.to_env, self.draws = 2 + network.noise_size, actions.to_env_direct, False
        self.from_env = actions.from_env
        self.sample, self.mode = _compiled(sight.actor, layout)
        self._layout, self._sight, self._wide = layout, sight, is_wide(sight.acting)
        self.options: dict[str, Any] = {}
        self._check: Any = None
        if sight.masked:
            from steppe.models.sight import check_mask

            self._check = partial(check_mask, actions=actions)

    def load(self, weights: Weights) -> Any:
        """See :meth:`~steppe.policies.actor_critic.Layout.loaded`; epsilon comes last."""
        return self._layout.loaded(weights, weights.scalars.get("epsilon", 0.0))

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`.

        Raises:
            BadLeaf: the mask of a row allows nothing.
        """
        if self._check is not None:
            self._check(obs[MASK])
        if self._wide:
            obs = narrowed(self.acting, obs)
        n = len(obs) if isinstance(obs, np.ndarray) else len(leaves(obs)[0])
        padded = 1 << (n - 1).bit_length()  # ragged batches, padded: else every size compiles anew
        if padded != n:
            index = np.minimum(np.arange(padded), n - 1)
            obs, noise = take(obs, index), noise if noise is None else noise[index]
        action, logp = self.mode(weights, obs) if noise is None else self.sample(weights, obs, noise)
        return Decision(np.asarray(action)[:n], np.asarray(logp)[:n])

    def initial_state(self, n: int) -> Tree:
        """None: no memory."""
        return None

    def export(self, weights: Weights) -> State:
        """What a :class:`~steppe.policies.numpy_policy.NumpyPolicy` is made of."""
        flat = self._layout.flat(weights)
        network = self._layout.unravel(flat)[0]
        stack = dict(zip(("weights", "biases"), network.folded(), strict=True))
        arrays = {"encoder": network.encoder, "mlp": stack, "scores": network.scores}
        kind = "noisy_layers" if network.noise_size else "epsilon_greedy"
        state = exported(self._sight, self.action, {}, arrays, weights, network.describe())
        return {**state, "exploration": {"kind": kind}}


@lru_cache(maxsize=64)
def _compiled(observation: Spec, layout: Layout) -> tuple[Any, Any]:
    """The two acting functions of a structure, shared by all policies that have it."""

    def values(weights: Any, obs: Tree, noise: jax.Array | None) -> jax.Array:
        (network, stats), *_ = layout.read(weights)
        if stats:
            obs = normalize(observation, stats, obs)

        def one(obs: Tree, noise: jax.Array | None) -> jax.Array:
            return network.legal(network.expected(network(obs, noise)), obs)  # type: ignore[no-any-return]

        return jax.vmap(one)(obs, noise)

    def sample(weights: Any, obs: Tree, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        inner = scaled_noise(jax.scipy.special.ndtri(noise[:, 2:])) if noise.shape[1] > 2 else None
        return epsilon_greedy(values(weights, obs, inner), layout.read(weights)[1], obs, noise)

    def mode(weights: Any, obs: Tree) -> tuple[jax.Array, jax.Array]:
        best = values(weights, obs, None).argmax(-1).astype(jnp.int32)
        return best, jnp.zeros(best.shape, jnp.float32)

    return jax.jit(sample), jax.jit(mode)


def epsilon_greedy(
    values: jax.Array, epsilon: jax.Array, obs: Tree, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best legal action, or with probability ``epsilon`` any legal one.

    Args:
        values: ``(n, A)``.
        epsilon: ``()``.
        obs: column of observations, for their mask.
        noise: ``(n, 2...)`` uniforms: whether to choose by chance, and which.

    Returns:
        Actions ``(n,)`` int32, and the logarithms of their probabilities ``(n,)``.
    """
    masked = isinstance(obs, dict) and MASK in obs
    legal = (obs[MASK] != 0).astype(jnp.float32) if masked else jnp.ones_like(values)
    reached = jnp.cumsum(legal, -1)
    any_one = jnp.argmax(reached > noise[:, 1:2] * reached[:, -1:], -1)
    best = values.argmax(-1)
    action = jnp.where(noise[:, 0] < epsilon, any_one, best)
    probability = epsilon / reached[:, -1] + (1.0 - epsilon) * (action == best)
    return action.astype(jnp.int32), jnp.log(probability)
