"""Actions chosen part by part, each knowing those before it; for arrays of numpy and of JAX alike.

The network gives each part its own numbers, as it does to independent parts, and a context; free parameters,
the same for every observation, say how the parts before move it:
``head + out . tanh(context + into . before)``, ``before`` being what was chosen so far, choices one-hot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
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
        scale: where its log standard deviations lie.
        noise: where its uniforms lie in the noise.
        inputs: how many numbers say what was chosen before; 0 for the first part, which has nothing of
            what follows.
        context: where its context lies in the parameters.
        into: where the weights from those numbers to the context lie, ``(CONTEXT, inputs)``.
        out: where those from the context to the head lie, ``(CONTEXT, heads)``.
    """

    of: Any
    place: int
    leaf: int
    head: slice
    scale: slice
    noise: slice
    inputs: int
    context: slice
    into: slice
    out: slice


@final
class Chain:
    """The parts in their order.

    The parameters are heads, contexts, log standard deviations, weights: all but the last come from the
    network (or the deviations are free, too).

    Args:
        leaves: of the actions.
        scales: how many log standard deviations there are.

    Attributes:
        parts: in the order in which they are chosen.
        context_size: how many parameters are contexts.
        weight_size: how many are weights.
    """

    def __init__(self, leaves: Sequence[Any], scales: int) -> None:
        self._leaves = leaves
        whole = [(i, part) for i, leaf in enumerate(leaves) for part in leaf.parts()]
        heads, noises, deviations, widths = (
            [0, *accumulate(getattr(part, name) for _, part in whole)]
            for name in ("heads", "noise", "scales", "heads")
        )
        self.context_size = CONTEXT * (len(whole) - 1)
        begin, weights = heads[-1] + self.context_size, heads[-1] + self.context_size + scales
        parts, first = [], weights
        for k, (leaf, part) in enumerate(whole):
            size = CONTEXT * widths[k], CONTEXT * part.heads
            between = weights + size[0] if k else weights
            after = between + size[1] if k else weights
            context = heads[-1] + CONTEXT * (k - 1) if k else heads[-1]
            parts.append(
                Part(
                    part,
                    k,
                    leaf,
                    slice(heads[k], heads[k + 1]),
                    slice(begin + deviations[k], begin + deviations[k + 1]),
                    slice(noises[k], noises[k + 1]),
                    widths[k],
                    slice(context, context + CONTEXT if k else context),
                    slice(weights, between),
                    slice(between, after),
                )
            )
            weights = after
        self.parts, self.weight_size = tuple(parts), weights - first

    def initial(self, rng: np.random.Generator) -> FloatArray:
        """Weights before training, ``(weight_size,)``: those to the heads are 0, so that nothing is moved."""
        drawn = []
        for part in self.parts[1:]:
            into = rng.standard_normal(CONTEXT * part.inputs, np.float32) / np.sqrt(part.inputs)
            drawn += [into, np.zeros(part.out.stop - part.out.start)]
        return np.concatenate([np.zeros(0), *drawn]).astype(np.float32)

    def walk(self, xp: Any, params: Any, meet: Callable[[Part, Any], Any]) -> list[Any]:
        """Meet the parts one after the other.

        Args:
            xp: numpy, or JAX's.
            params: ``(..., P)``.
            meet: function of a part and its head ``(..., heads)`` that gives what is chosen of it.

        Returns:
            The leaves of the action.
        """
        chosen: list[list[Any]] = [[] for _ in self._leaves]
        before: list[Any] = []
        for part in self.parts:
            head = params[..., part.head]
            if before:
                head = head + _moved(xp, part, params, xp.concatenate(before, -1))
            action = meet(part, head)
            chosen[part.leaf].append(action)
            before.append(part.of.numbers(action))
        return [
            parts[0]
            if parts[0].shape[params.ndim - 1 :] == leaf.shape
            else xp.stack(parts, -1).reshape(*params.shape[:-1], *leaf.shape)
            for leaf, parts in zip(self._leaves, chosen, strict=True)
        ]

    def split(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves of an action part by part, in the order of ``parts``."""
        return [part for of, leaf in zip(self._leaves, leaves, strict=True) for part in of.split(leaf)]


def _moved(xp: Any, part: Part, params: Any, before: Any) -> Any:
    """What the parts before add to a part's head, ``(..., heads)``."""
    lead = params.shape[:-1]
    into = params[..., part.into].reshape(*lead, CONTEXT, part.inputs)
    out = params[..., part.out].reshape(*lead, CONTEXT, -1)
    context = xp.tanh(params[..., part.context] + (into * before[..., None, :]).sum(-1))
    return (context[..., None] * out).sum(-2)
