"""How likely actions are, in numpy alone: what :mod:`steppe.models.distributions` says in compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np

from steppe.models.actions import ActionLeaf, Actions, Bits, Choices, Numbers
from steppe.types import Array, FloatArray, Tree

_LOG_TWO_PI = float(np.log(2.0 * np.pi))
_LOG_TWO = float(np.log(2.0))


def logp_of(actions: Actions, params: FloatArray, action: Tree) -> FloatArray:
    """Log-probability ``(n,)`` of an action tree in policy units; of a squashed number, that of its tanh.

    Args:
        actions: of the space.
        params: ``(n, P)``.
        action: tree of ``(n, *shape)``.
    """
    given = [np.asarray(a) for a in actions.flat(action)]
    if actions.chain is None:
        found = [
            _leaf_logp(leaf, params[:, head], params[:, scale], a)
            for leaf, (head, scale, _), a in zip(actions.leaves, actions.cuts, given, strict=True)
        ]
    else:
        found, parts = [], iter(actions.chain.split(given))

        def meet(part: Any, head: FloatArray, scale: FloatArray) -> Array:
            taken: Array = next(parts)
            found.append(_leaf_logp(part.of, head, scale, taken))
            return taken

        actions.chain.walk(np, params, meet)
    return found[0] if len(found) == 1 else np.sum(found, axis=0, dtype=np.float32)


def _leaf_logp(leaf: ActionLeaf, head: FloatArray, scale: FloatArray, action: Array) -> FloatArray:
    flat = action.reshape(len(head), -1)
    if isinstance(leaf, Choices):
        return _of_choices(leaf, head, flat)
    if isinstance(leaf, Bits):
        bits: FloatArray = -np.logaddexp(np.float32(0.0), np.where(flat != 0, -head, head)).sum(-1)
        return bits
    assert isinstance(leaf, Numbers)
    return _of_numbers(leaf, head, scale, flat)


def _of_choices(leaf: Choices, head: FloatArray, flat: Array) -> FloatArray:
    logits = leaf.logits(head).reshape(-1, leaf.width)
    logits = logits - logits.max(-1, keepdims=True)
    found: FloatArray = logits[np.arange(len(logits)), flat.ravel()] - np.log(np.exp(logits).sum(-1))
    return found if leaf.noise == 1 else found.reshape(len(head), -1).sum(-1)


def _of_numbers(leaf: Numbers, head: FloatArray, scale: FloatArray, flat: FloatArray) -> FloatArray:
    z = (flat - head) * np.exp(-scale)
    found = -0.5 * (z * z + _LOG_TWO_PI) - scale
    if leaf.squash:
        # log(1 - tanh(x)^2) without the cancellation where tanh is near 1
        correction = 2.0 * (_LOG_TWO - flat - np.logaddexp(np.float32(0.0), -2.0 * flat))
        found = found - np.where(leaf.squashed.ravel(), correction, np.float32(0.0))
    total: FloatArray = found.sum(-1)
    return total
