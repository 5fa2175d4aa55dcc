"""Prioritized replay: rows that were learned from least well are drawn more often."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from steppe.buffers.replay import Replay
from steppe.buffers.sequences import Sequences
from steppe.errors import CheckpointError, ConfigError
from steppe.types import Array, Rollout, State


@final
class Prioritized:
    """Draws rows, or sequences, in proportion to ``(|td_error| + eps) ** alpha``.

    This is the proportional variant of Schaul et al. 2016, "Prioritized Experience Replay". The priorities
    are the leaves of a binary tree in which each node is the sum of the two below it.

    Args:
        replay: from now on it is added to through this object alone.
        alpha: how much priorities matter; 0 draws evenly.
        eps: what keeps a row without error from never being drawn again.

    Raises:
        ConfigError: a negative ``alpha``, or an ``eps`` that is not positive.
    """

    def __init__(self, replay: Replay | Sequences, *, alpha: float, eps: float = 1e-6) -> None:
        if alpha < 0 or eps <= 0:
            raise ConfigError(
                f"prioritized replay: alpha={alpha} and eps={eps}, expected alpha >= 0 and eps > 0, "
                "such as alpha=0.6 and eps=1e-6"
            )
        self._replay, self._alpha, self._eps = replay, alpha, eps
        self._depth = max(replay.capacity - 1, 1).bit_length()
        self._first = (
            1 << self._depth
        )  # leaf of row 0; node i has the children 2 i and 2 i + 1, the root is 1
        self._tree = np.zeros(2 * self._first)
        self._largest = 1.0

    def __len__(self) -> int:
        """Rows that may be sampled."""
        return len(self._replay)

    def add(self, rollout: Rollout) -> int:
        """Store a fragment; rows that become sampleable have the largest priority there ever was.

        Returns:
            Rows that were not stored before.
        """
        stored = self._replay.add(rollout)
        self._set(self._replay.went, 0.0)
        self._set(self._replay.came, self._largest)
        return stored

    def sample(self, rng: np.random.Generator, batches: int, size: int, beta: float) -> dict[str, Any]:
        """Draw rows by priority: one from each of ``size`` equal parts of their sum.

        Args:
            rng: the learner's stream.
            batches: how many minibatches.
            size: of each of them.
            beta: how much of the bias ``weight`` takes back; 1 takes all.

        Returns:
            Columns of ``(batches, size, ...)`` as :meth:`Replay.sample` gives them; the largest ``weight`` of
            each minibatch is 1.

        Raises:
            ConfigError: no row may be sampled yet.
        """
        if not len(self):
            raise ConfigError("replay: no row may be sampled yet. Ask len() first, and collect more steps")
        share = (np.arange(size) + rng.random((batches, size))) / size
        index = self._find(share * self._tree[1])
        priority = self._tree[self._first + index]
        weight = (priority / priority.min(axis=1, keepdims=True)) ** -beta
        return {**self._replay.columns(index), "weight": weight.astype(np.float32)}

    def update(self, index: Array, td_error: Array) -> None:
        """Rows were learned from: their priorities follow their errors.

        Args:
            index: as sampled, of any shape; where a row comes twice its last error counts.
            td_error: of the same shape. Errors that are not finite change nothing, nor do those of rows that
                may no longer be sampled.
        """
        index, error = np.ravel(index), np.abs(np.ravel(td_error).astype(np.float64))
        known = np.isfinite(error) & (self._tree[self._first + index] > 0)
        if np.count_nonzero(known):
            priority = (error[known] + self._eps) ** self._alpha
            self._largest = max(self._largest, float(priority.max()))
            self._set(index[known], priority)

    def get_state(self) -> State:
        """Everything, as views of the rows that are held."""
        leaves = self._tree[self._first :]
        held = leaves[: np.flatnonzero(leaves)[-1] + 1] if len(self) else leaves[:0]
        return {"replay": self._replay.get_state(), "priority": held, "largest": self._largest}

    def check(self, state: State) -> None:
        """Judge that :meth:`set_state` may take ``state``.

        Raises:
            CheckpointError: it belongs to a replay of other sizes, or without priorities.
        """
        if "priority" not in state:
            raise CheckpointError(
                "the checkpoint's replay has no priorities: go on without prioritized_replay"
            )
        self._replay.check(state["replay"])

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`.

        Raises:
            CheckpointError: see :meth:`check`; nothing was changed.
        """
        self.check(state)
        self._replay.set_state(state["replay"])
        self._largest = float(state["largest"])
        self._tree[:] = 0.0
        self._set(np.arange(len(state["priority"])), state["priority"])

    def _set(self, index: Array, priority: Array | float) -> None:
        """Change leaves, and every sum above them."""
        node = self._first + index.astype(np.int64)
        self._tree[node] = priority
        for _ in range(self._depth):
            node = node >> 1
            self._tree[node] = self._tree[2 * node] + self._tree[2 * node + 1]

    def _find(self, mass: Array) -> Array:
        """For each ``mass`` the first row at which the running sum of priorities exceeds it."""
        node = np.ones(mass.shape, np.int64)
        for _ in range(self._depth):
            left = self._tree[2 * node]
            # Rounding may leave a mass of all there is: it still finds a row that has a priority.
            right = (mass >= left) & (self._tree[2 * node + 1] > 0)
            mass = np.where(right, mass - left, mass)
            node = 2 * node + right
        return (node - self._first).astype(np.int32)
