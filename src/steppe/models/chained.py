"""The maths of actions that are chosen part by part; see :mod:`steppe.models.autoregressive`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, final

import jax
import jax.numpy as jnp

from steppe.models.autoregressive import Part
from steppe.types import Tree

if TYPE_CHECKING:
    from steppe.models.actions import Actions


@final
class Chained:
    """Part after part, each knowing those before it; methods as those of a Distribution.

    Args:
        actions: of the space.
        leaf_of: gives what a :class:`~steppe.models.distributions.Distribution` reckons a leaf by.
    """

    def __init__(self, actions: Actions, leaf_of: Callable[[Any], Any]) -> None:
        assert actions.chain is not None
        self._actions, self._chain = actions, actions.chain
        self._leaves = [leaf_of(part.of) for part in self._chain.parts]

    def sample(self, params: jax.Array, noise: jax.Array) -> Tree:
        """What the noise picks."""

        def meet(part: Part, head: jax.Array, scale: jax.Array) -> Any:
            return self._leaves[part.place].sample(head, scale, noise[..., part.noise])

        return self._actions.tree(self._chain.walk(jnp, params, meet))

    def mode(self, params: jax.Array) -> Tree:
        """The likeliest of each part after those before it."""

        def meet(part: Part, head: jax.Array, scale: jax.Array) -> Any:
            return self._leaves[part.place].mode(head)

        return self._actions.tree(self._chain.walk(jnp, params, meet))

    def logp(self, params: jax.Array, action: Tree) -> jax.Array:
        """``(...)``."""
        return _total(
            leaf.logp(head, scale, taken) for leaf, head, scale, taken in self._taken(params, action)
        )

    def entropy(self, params: jax.Array, action: Tree) -> jax.Array:
        """``(...)``, of each part after what was chosen before it."""
        return _total(leaf.entropy(head, scale) for leaf, head, scale, _ in self._taken(params, action))

    def _taken(self, params: jax.Array, action: Tree) -> Iterator[tuple[Any, jax.Array, jax.Array, Any]]:
        """Each part with its parameters after what was chosen before, and what was chosen of it."""
        chosen = iter(self._chain.split([jnp.asarray(a) for a in self._actions.flat(action)]))
        met: list[tuple[Any, jax.Array, jax.Array, Any]] = []

        def meet(part: Part, head: jax.Array, scale: jax.Array) -> Any:
            taken = next(chosen)
            met.append((self._leaves[part.place], head, scale, taken))
            return taken

        self._chain.walk(jnp, params, meet)
        return iter(met)


def _total(parts: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, parts)
