"""What a memory is, and what it is told of the row before, alike in numpy and in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from steppe.models.actions import Actions
from steppe.spaces import map_leaves
from steppe.types import Tree


class Memory(NamedTuple):
    """What networks remember: the settings memory, memory_size, attention_memory, prev_action, prev_reward.

    And ``length``, max_seq_len: of the sequences that are learned from.
    """

    kind: str
    size: int = 64
    attention_memory: int = 32
    prev_action: bool = False
    prev_reward: bool = False
    length: int = 20


def repeated(initial: Tree, n: int) -> Tree:
    """The state of ``n`` fresh trajectories, which is zeros, of that of one."""
    return map_leaves(lambda a: np.zeros((n, *a.shape), a.dtype), initial)


def told(xp: Any, actions: Actions | None, reward: bool, before: Mapping[str, Any]) -> list[Any]:
    """Parts of a cell's input, each ``(..., width)``.

    Choices are one-hot, bits as they are, numbers squashed: in policy units they know no bounds. A reward is
    shrunk to ``sign(r) log(1 + |r|)``, whatever its scale.

    Args:
        xp: numpy, or JAX's.
        actions: of the action space; None where the action is not asked for.
        reward: whether that is.
        before: ``action``, a tree of ``(..., *shape)`` in policy units, and ``reward`` ``(...)``.
    """
    parts = []
    if actions is not None:
        for leaf, own in zip(actions.leaves, actions.flat(before["action"]), strict=True):
            numbers = [part.numbers(a) for part, a in zip(leaf.parts(), leaf.split(own), strict=True)]
            parts += [xp.tanh(a) for a in numbers] if leaf.scales else numbers
    if reward:
        r = before["reward"]
        parts.append((xp.sign(r) * xp.log1p(xp.abs(r)))[..., None])
    return parts


def told_size(actions: Actions | None, reward: bool) -> int:
    """Width of all parts together."""
    return (0 if actions is None else sum(leaf.heads for leaf in actions.leaves)) + reward
