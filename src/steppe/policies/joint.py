"""Acting for a group: each member by the values of its own actions, all by one network."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.actions import Actions
from steppe.models.before import repeated
from steppe.models.encoders import normalize
from steppe.models.members import STATE, Members, split
from steppe.models.observations import normalized_leaves
from steppe.models.q_memory import MemoryQ
from steppe.models.q_network import QNetwork
from steppe.policies.actor_critic import Layout
from steppe.policies.q import epsilon_greedy
from steppe.spaces import Spec, describe, is_wide, leaves, map_leaves, narrowed, take
from steppe.types import Array, Decision, FloatArray, State, Tree, Weights


@final
class JointPolicy:
    """Chooses a Tuple of actions, one a member; see :class:`steppe.types.Policy`.

    The published scalar ``epsilon`` is the probability with which each member, by itself, chooses uniformly.
    Noise is two uniforms a member, for whether and for which.

    Args:
        members: the form of the group.
        action: its action space.
        network: the structure of what all members act with.
        normalized: whether there are observation statistics.
    """

    def __init__(
        self, members: Members, action: Spec, network: QNetwork | MemoryQ, *, normalized: bool
    ) -> None:
        self.observation, self.acting, self.action = members.whole, members.acting, action
        self.noise_size, self.draws = 2 * members.size, False
        self.to_env: Callable[[Tree], Tree] = Actions(action).to_env
        self.from_env: Callable[[Tree], Tree] = Actions(action).from_env
        self._members, self._wide = members, is_wide(members.acting)
        self._layout, self._normalized = Layout.of(network), normalized
        self._sample, self._mode = _compiled(members, self._layout, normalized)
        self._initial: Tree = None
        if isinstance(network, MemoryQ):
            self._initial = _fresh(members, network)

    def load(self, weights: Weights) -> Any:
        """The parameters with epsilon last, flat, and statistics of what acting reads."""
        epsilon = np.array([weights.scalars.get("epsilon", 0.0)], np.float32)
        return jnp.asarray(np.concatenate([weights.params, epsilon])), self._statistics(weights)

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`.

        Raises:
            BadLeaf: the mask of a member allows nothing.
        """
        obs = self._members.read(obs)
        if self._wide:
            obs = narrowed(self.acting, obs)
        n = len(leaves(obs)[0])
        padded = 1 << (n - 1).bit_length()  # ragged batches, padded: else every size compiles anew
        if padded != n:
            index = np.minimum(np.arange(padded), n - 1)
            obs, noise = take(obs, index), noise if noise is None else noise[index]
            state = None if state is None else take(state, index)
        given = (*weights, obs, state)
        made = self._mode(*given) if noise is None else self._sample(*given, noise)
        action, logp, memory = jax.tree.map(lambda a: np.asarray(a)[:n], made)
        if self._initial is None:
            return Decision(split(action), logp)
        after = {"memory": memory, "action": split(action), "reward": np.zeros(n, np.float32)}
        return Decision(split(action), logp, {name: after[name] for name in self._initial})

    def initial_state(self, n: int) -> Tree:
        """None; of members that remember zeros, as :meth:`steppe.models.members.Members.states` has them."""
        if self._initial is None:
            return None
        return repeated(self._initial, n)

    def export(self, weights: Weights) -> State:
        """What a :class:`~steppe.models.numpy_members.JointNetwork` is made of: ``network``, ``arrays``."""
        network = self._layout.unravel(weights.params)
        head = network.out if isinstance(network, MemoryQ) else network
        stack = dict(zip(("weights", "biases"), head.folded(), strict=True))
        parts: Tree = {"encoder": head.encoder, "mlp": stack}
        if isinstance(network, MemoryQ):
            parts = {"torso": network.torso, "out": parts}
        named, _ = jax.tree_util.tree_flatten_with_path(parts)
        arrays = {jax.tree_util.keystr(path, simple=True, separator="."): array for path, array in named}
        covered = normalized_leaves(self._members.covered_acting) if self._normalized else ()
        names = [f"normalizer.{path}.{name}" for path in covered for name in ("count", "mean", "m2")]
        arrays |= dict(zip(names, self._statistics(weights), strict=True))
        member = {
            "kind": "actor",
            "observation": describe(self._members.row),
            "action": describe(self._members.choices),
            "distribution": {},
            "normalizer": False,
            **network.describe(),
        }
        about = {
            "kind": "joint",
            "observation": describe(self.acting),
            "action": describe(self.action),
            "normalizer": bool(covered),
            "critic_only": [STATE] if self._members.stateful else [],
            "member": member,
        }
        return {"network": about, "arrays": arrays, "exploration": {"kind": "epsilon_greedy"}}

    def _statistics(self, weights: Weights) -> tuple[Array, ...]:
        if not self._normalized:
            return ()
        acting = normalized_leaves(self._members.covered_acting)
        places = [i for i, path in enumerate(normalized_leaves(self._members.covered)) if path in acting]
        return tuple(np.asarray(weights.normalizer[3 * i + j], np.float32) for i in places for j in range(3))


def _fresh(members: Members, network: MemoryQ) -> dict[str, Tree]:
    """What a group is met with whose trajectory begins."""
    torso, none = network.torso, np.zeros((), np.int32)
    cells = map_leaves(lambda a: np.zeros((members.size, *a.shape), a.dtype), torso.cell.initial())
    told = {"action": (none,) * members.size, "reward": np.zeros((), np.float32)}
    asked = {"action": torso.action is not None, "reward": torso.reward}
    return {"memory": cells, **{name: zero for name, zero in told.items() if asked[name]}}


@lru_cache(maxsize=64)
def _compiled(members: Members, layout: Layout, normalized: bool) -> tuple[Any, Any]:
    """The two acting functions of a structure, shared by all policies that have it."""

    def values(flat: jax.Array, stats: Any, obs: Tree, state: Tree) -> tuple[jax.Array, Tree, Tree]:
        """Of all members, one below the other ``(n * members, ...)``; their rows; what they remember then."""
        if normalized:
            obs = normalize(members.covered_acting, stats, obs)
        rows: Tree = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), members.rows(obs, jnp.stack))
        network = layout.unravel(flat)
        if state is None:
            return network.legal(jax.vmap(network)(rows)[..., 0], rows), rows, None
        out, memory = jax.vmap(network)(rows, members.states(state, jnp))
        memory = jax.tree.map(lambda a: a.reshape(-1, members.size, *a.shape[1:]), memory)
        return network.out.legal(out[..., 0], rows), rows, memory

    def sample(flat: jax.Array, stats: Any, obs: Tree, state: Tree, noise: jax.Array) -> Tree:
        found, rows, memory = values(flat, stats, obs, state)
        action, logp = epsilon_greedy(found, flat[-1], rows, noise.reshape(-1, 2))
        return action.reshape(-1, members.size), logp.reshape(-1, members.size).sum(1), memory

    def mode(flat: jax.Array, stats: Any, obs: Tree, state: Tree) -> Tree:
        found, _, memory = values(flat, stats, obs, state)
        best = found.argmax(-1).astype(jnp.int32).reshape(-1, members.size)
        return best, jnp.zeros(len(best), jnp.float32), memory

    return jax.jit(sample), jax.jit(mode)
