"""Acting with an actor network: one compiled function, without the critic and without JAX keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.distributions import Distribution
from steppe.models.encoders import normalize
from steppe.models.observations import Sight, normalized_leaves
from steppe.spaces import Spec, describe, is_wide, leaves, map_leaves, narrowed, take
from steppe.types import Decision, FloatArray, State, Tree, Weights

_LARGE = 1 << 16
"""Numbers from which slices of a vector take longer to copy than further arguments to hand over."""


class Layout(NamedTuple):
    """How a pytree of arrays lies in one flat float32 vector; hashable, so that jit can be keyed by it."""

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tree: Any) -> Layout:
        """Layout of ``tree``, whose leaves are all arrays."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple(np.shape(leaf) for leaf in leaves))

    @property
    def size(self) -> int:
        """Elements of the flat vector."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def ravel(self, tree: Any) -> FloatArray:
        """The flat vector ``(size,)`` of ``tree``, in numpy."""
        parts = [np.asarray(leaf, np.float32).reshape(-1) for leaf in self.treedef.flatten_up_to(tree)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def unravel(self, flat: Any) -> Any:
        """The pytree again; inside jit these are static slices."""
        leaves, start = [], 0
        for shape in self.shapes:
            end = start + int(np.prod(shape))
            leaves.append(flat[start:end].reshape(shape))
            start = end
        return jax.tree.unflatten(self.treedef, leaves)

    def flat(self, weights: Weights) -> FloatArray:
        """Published parameters and observation statistics as one vector in numpy."""
        return np.concatenate([weights.params, *map(np.ravel, weights.normalizer)], dtype=np.float32)

    def loaded(self, weights: Weights, *numbers: float) -> Any:
        """The same, and then some numbers, as compiled functions take it; :meth:`read` reads it there.

        Each further argument costs a microsecond a call, and so does each 10 kB of a slice: small ones are
        one vector, large ones a tree.
        """
        parts: list[Any] = [weights.params, *map(np.ravel, weights.normalizer), numbers]
        flat = np.concatenate(parts, dtype=np.float32)
        if len(flat) < _LARGE:
            return jnp.asarray(flat)
        return jax.tree.map(jnp.asarray, (self.unravel(flat), *map(np.float32, numbers)))

    def read(self, loaded: Any) -> tuple[Any, ...]:
        """The tree, and the numbers behind it, inside jit."""
        return loaded if isinstance(loaded, tuple) else (self.unravel(loaded), *loaded[self.size :])


@final
class ActorCriticPolicy:
    """Acts with the actor of an actor-critic; see :class:`steppe.types.Policy`.

    Args:
        sight: what it observes, and what acting sees of that.
        distribution: of its actions.
        layout: of ``(actor, normalizer)`` in the flat weights; the normalizer is empty when there is none.

    Attributes:
        sample: compiled, of loaded weights, observations and uniforms ``(n, noise_size)``; for use inside
            other compiled code, too.
        mode: the same of the likeliest actions, without uniforms.
        options: of the distribution.
    """

    def __init__(self, sight: Sight, distribution: Distribution, layout: Layout) -> None:
        self.observation, self.acting, self.action = sight.whole, sight.acting, distribution.spec
        self.noise_size, self.to_env = distribution.noise_size, distribution.to_env
        self.from_env = distribution.from_env
        self.sample, self.mode = _compiled(sight.actor, distribution, layout)
        self.options, self._layout, self.load = distribution.options, layout, layout.loaded
        self.draws = False
        self._wide, self._sight = is_wide(sight.acting), sight
        self._read: Callable[[Tree], Tree] | None = None
        if sight.masked or sight.critic_only:
            from steppe.models.sight import read

            self._read = partial(read, sight, distribution.actions)

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`.

        Raises:
            BadLeaf: the mask of a row allows nothing.
        """
        if self._read is not None:
            obs = self._read(obs)
        if self._wide:
            obs = narrowed(self.acting, obs)
        n = len(obs) if isinstance(obs, np.ndarray) else len(leaves(obs)[0])
        padded = 1 << (n - 1).bit_length()  # ragged batches, padded: else every size compiles anew
        if padded != n:
            index = np.minimum(np.arange(padded), n - 1)
            obs, noise = take(obs, index), noise if noise is None else noise[index]
        action, logp = self.mode(weights, obs) if noise is None else self.sample(weights, obs, noise)
        if isinstance(action, jax.Array):
            return Decision(np.asarray(action)[:n], np.asarray(logp)[:n])
        return Decision(map_leaves(lambda a: np.asarray(a)[:n], action), np.asarray(logp)[:n])

    def initial_state(self, n: int) -> Tree:
        """None: no memory."""
        return None

    def export(self, weights: Weights) -> State:
        """What a :class:`~steppe.policies.numpy_policy.NumpyPolicy` is made of."""
        actor = self._layout.unravel(self._layout.flat(weights))[0]
        return exported(self._sight, self.action, self.options, actor, weights, actor.describe())


def exported(
    sight: Sight, action: Spec, options: Any, network: Any, weights: Weights, description: dict[str, Any]
) -> State:
    """What acts elsewhere: a network's description, its arrays by readable names, and how it explores.

    Args:
        sight: what it observes.
        action: the action space.
        options: of the action distribution.
        network: a pytree of its arrays.
        weights: have the observation statistics.
        description: of its layers.
    """
    named, _ = jax.tree_util.tree_flatten_with_path(network)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="."): array for path, array in named}
    covered = normalized_leaves(sight.actor) if weights.normalizer else ()
    names = [f"normalizer.{path}.{name}" for path in covered for name in ("count", "mean", "m2")]
    arrays |= dict(zip(names, map(np.asarray, weights.normalizer), strict=True))
    about = {
        "kind": "actor",
        "observation": describe(sight.acting),
        "action": describe(action),
        "distribution": options,
        "normalizer": bool(covered),
        "critic_only": [*sight.critic_only],
    }
    return {"network": about | description, "arrays": arrays, "exploration": {"kind": "sampled"}}


@lru_cache(maxsize=64)
def _compiled(observation: Spec, distribution: Distribution, layout: Layout) -> tuple[Any, Any]:
    """The two acting functions of a structure, shared by all policies that have it."""

    def head(weights: Any, obs: Tree) -> jax.Array:
        ((actor, stats),) = layout.read(weights)
        if stats:
            obs = normalize(observation, stats, obs)
        params: jax.Array = jax.vmap(actor)(obs)
        return params

    def sample(weights: Any, obs: Tree, noise: jax.Array) -> tuple[Tree, jax.Array]:
        params = head(weights, obs)
        action = distribution.sample(params, noise)
        return action, distribution.logp(params, action)

    def mode(weights: Any, obs: Tree) -> tuple[Tree, jax.Array]:
        params = head(weights, obs)
        action = distribution.mode(params)
        return action, distribution.logp(params, action)

    return jax.jit(sample), jax.jit(mode)
