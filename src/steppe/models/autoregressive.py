"""Actions chosen part by part, each knowing those before it; for arrays of numpy and of JAX alike.

The network gives each part its own numbers, as it does to independent parts, and a context; free parameters,
the same for every observation, say how the parts before move it:
``head + tanh(context + sum of told @ into) @ out``, ``told`` being what was chosen of a part before, choices
one-hot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from steppe.types import FloatArray

CONTEXT = 32
"""Width of a part's context."""


class Part(NamedTuple):
    """One leaf of the actions, or one choice of a MultiDiscrete.

    Attributes:
        of: an :class:`~steppe.models.actions.ActionLeaf`.
        place: its index among the parts.
        leaf: that of the leaf that it belongs to.
        head: where its own numbers lie in the parameters.
        context: likewise its context; empty in the first part, which nothing moves.
        scale: likewise its log standard deviations.
        noise: where its uniforms lie in the noise.
        out: where the weights ``(CONTEXT, heads)`` from its context to its head lie among all weights; empty
            in the first part.
        into: likewise those ``(heads, CONTEXT)`` from what was chosen of it to the contexts of later parts;
            empty in the last part.
    """

    of: Any
    place: int
    leaf: int
    head: slice
    context: slice
    scale: slice
    noise: slice
    out: slice
    into: slice


@final
class Chain:
    """The parts in their order.

    The parameters are heads, contexts, log standard deviations, weights: all but the last come from the
    network (or the deviations are free, too).

    Args:
        leaves: of the actions.

    Attributes:
        parts: in the order in which they are chosen.
        context_size: how many parameters are contexts.
        weight_size: how many are weights.
    """

    def __init__(self, leaves: Sequence[Any]) -> None:
        self._leaves = leaves
        heads = sum(leaf.heads for leaf in leaves)
        whole = [(i, part) for i, leaf in enumerate(leaves) for part in leaf.parts()]
        self.context_size = CONTEXT * (len(whole) - 1)
        # Where the next part's share of each kind begins.
        head, context, scale, noise, weight = 0, heads, heads + self.context_size, 0, 0
        parts = []
        for place, (leaf, of) in enumerate(whole):
            ends = head + of.heads, context + CONTEXT * (place > 0), scale + of.scales, noise + of.noise
            middle = weight + CONTEXT * of.heads * (place > 0)
            own = slice(head, ends[0]), slice(context, ends[1]), slice(scale, ends[2]), slice(noise, ends[3])
            (head, context, scale, noise), last = ends, middle + CONTEXT * of.heads * (of is not whole[-1][1])
            parts.append(Part(of, place, leaf, *own, slice(weight, middle), slice(middle, last)))
            weight = last
        self.parts, self.weight_size, self._own = tuple(parts), weight, scale

    def initial(self, rng: np.random.Generator) -> FloatArray:
        """Weights before training, ``(weight_size,)``: those to the heads are 0, so that nothing is moved."""
        weights = np.zeros(self.weight_size, np.float32)
        for part in self.parts:
            weights[part.into] = rng.standard_normal(part.into.stop - part.into.start, np.float32)
        return weights

    def walk(self, xp: Any, params: Any, meet: Callable[[Part, Any, Any], Any]) -> list[Any]:
        """Meet the parts one after the other.

        Args:
            xp: numpy, or JAX's.
            params: ``(..., P)``; weights are those of the first row, as all rows have the same.
            meet: function of a part, its head ``(..., heads)`` and its log standard deviations that gives
                what is chosen of it.

        Returns:
            The leaves of the action.
        """
        chosen: list[list[Any]] = [[] for _ in self._leaves]
        # Parted once, and weights taken of one row: else each gradient would be as large as all parameters.
        own, weights = params[..., : self._own], params[(0,) * (params.ndim - 1)][self._own :]
        told: Any = 0.0
        for part in self.parts:
            head = own[..., part.head]
            if part.place:
                head = head + xp.tanh(own[..., part.context] + told) @ weights[part.out].reshape(CONTEXT, -1)
            action = meet(part, head, own[..., part.scale])
            chosen[part.leaf].append(action)
            if part is not self.parts[-1]:
                told = told + part.of.numbers(action) @ weights[part.into].reshape(-1, CONTEXT)
        return [
            parts[0]
            if parts[0].shape[params.ndim - 1 :] == leaf.shape
            else xp.stack(parts, -1).reshape(*params.shape[:-1], *leaf.shape)
            for leaf, parts in zip(self._leaves, chosen, strict=True)
        ]

    def split(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves of an action part by part, in the order of ``parts``."""
        return [part for of, leaf in zip(self._leaves, leaves, strict=True) for part in of.split(leaf)]
