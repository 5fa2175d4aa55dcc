"""Acting by the action values of a network that remembers."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import Actions
from steppe.models.before import repeated
from steppe.models.encoders import normalize
from steppe.models.observations import MASK, Sight
from steppe.models.q_memory import MemoryQ
from steppe.models.q_network import scaled_noise
from steppe.policies.actor_critic import Layout, exported
from steppe.policies.q import epsilon_greedy
from steppe.policies.recurrent import remembered
from steppe.spaces import Spec, narrowed
from steppe.types import Decision, FloatArray, State, Tree, Weights


@final
class RecurrentQPolicy:
    """Acts with a :class:`~steppe.models.q_memory.MemoryQ` as :class:`~steppe.policies.q.QPolicy` does.

    Its state is a dict: ``memory``, of the cell; where they are asked for ``action``, that was chosen before,
    and ``reward``, which came with the row and which whoever acts writes into it. A fresh one is zeros.

    Args:
        sight: what it observes; all of it is seen.
        action: the action space, a Discrete.
        network: its structure.
        layout: of ``(network, normalizer)`` in the flat weights; the normalizer is empty when there is none.
    """

    def __init__(self, sight: Sight, action: Spec, network: MemoryQ, layout: Layout) -> None:
        actions = Actions(action)
        self.observation, self.acting, self.action = sight.whole, sight.acting, action
        self.noise_size, self.to_env, self.draws = 2 + network.out.noise_size, actions.to_env_direct, False
        self.from_env = actions.from_env
        self._sample, self._mode = _compiled(sight.actor, layout)
        self._layout, self._sight = layout, sight
        self._check: Any = None
        if sight.masked:
            from steppe.models.sight import check_mask

            self._check = partial(check_mask, actions=actions)
        torso, told = network.torso, {"action": np.zeros((), np.int32), "reward": np.zeros((), np.float32)}
        asked = {"action": torso.action is not None, "reward": torso.reward}
        self._initial = {
            "memory": torso.cell.initial(),
            **{name: zero for name, zero in told.items() if asked[name]},
        }

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
        obs = narrowed(self.acting, obs)
        return remembered(self._sample, self._mode, self._initial, weights, obs, state, noise)

    def initial_state(self, n: int) -> Tree:
        """Zeros."""
        return repeated(self._initial, n)

    def export(self, weights: Weights) -> State:
        """What a :class:`~steppe.policies.numpy_policy.NumpyPolicy` is made of."""
        flat = self._layout.flat(weights)
        network: MemoryQ = self._layout.unravel(flat)[0]
        stack = dict(zip(("weights", "biases"), network.out.folded(), strict=True))
        head = {"encoder": network.out.encoder, "mlp": stack, "scores": network.out.scores}
        arrays = {"torso": network.torso, "out": head}
        kind = "noisy_layers" if network.out.noise_size else "epsilon_greedy"
        state = exported(self._sight, self.action, {}, arrays, weights, network.describe())
        return {**state, "exploration": {"kind": kind}}


@lru_cache(maxsize=64)
def _compiled(observation: Spec, layout: Layout) -> tuple[Any, Any]:
    """The two acting functions of a structure, shared by all policies that have it."""

    def values(weights: Any, obs: Tree, state: Tree, noise: jax.Array | None) -> tuple[jax.Array, Tree]:
        (network, stats), *_ = layout.read(weights)
        if stats:
            obs = normalize(observation, stats, obs)

        def one(obs: Tree, state: Tree, noise: jax.Array | None) -> tuple[jax.Array, Tree]:
            out, memory = network(obs, state, noise)
            return network.out.legal(network.out.expected(out), obs), memory

        found: tuple[jax.Array, Tree] = jax.vmap(one)(obs, state, noise)
        return found

    def sample(weights: Any, obs: Tree, state: Tree, noise: jax.Array) -> tuple[Any, Any, Tree]:
        inner = scaled_noise(jax.scipy.special.ndtri(noise[:, 2:])) if noise.shape[1] > 2 else None
        found, memory = values(weights, obs, state, inner)
        return *epsilon_greedy(found, layout.read(weights)[1], obs, noise), memory

    def mode(weights: Any, obs: Tree, state: Tree) -> tuple[Any, Any, Tree]:
        found, memory = values(weights, obs, state, None)
        best = found.argmax(-1).astype(jnp.int32)
        return best, jnp.zeros(best.shape, jnp.float32), memory

    return jax.jit(sample), jax.jit(mode)
