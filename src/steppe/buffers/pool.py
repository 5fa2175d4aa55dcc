"""The rows of a ring that may be drawn, in any order: joined, left and drawn from at one price each."""

from __future__ import annotations

from typing import final

import numpy as np

from steppe.types import Array, BoolArray


@final
class Pool:
    """A set of places below ``capacity``, whose members lie side by side.

    Attributes:
        members: ``(len,)``, a view; valid until the next change.
    """

    def __init__(self, capacity: int) -> None:
        self._members = np.zeros(capacity, np.int32)
        self._place = np.full(capacity, -1, np.int32)  # of each in there
        self.members: Array = self._members[:0]

    def __len__(self) -> int:
        """How many."""
        return len(self.members)

    def has(self, places: Array) -> BoolArray:
        """Which of some are members."""
        known: BoolArray = self._place[places] >= 0
        return known

    def join(self, places: Array) -> None:
        """Take in some, each once, that are no members."""
        count = len(self)
        self.members = self._members[: count + len(places)]
        self.members[count:] = places
        self._place[places] = np.arange(count, count + len(places))

    def leave(self, places: Array) -> None:
        """Let some members go, each named once; the last ones move to where they were."""
        holes, count = self._place[places], len(self) - len(places)
        self._place[places] = -1
        tail, holes = self.members[count:], holes[holes < count]
        moving = tail[self._place[tail] >= 0]
        self.members[holes], self._place[moving] = moving, holes
        self.members = self._members[:count]

    def replace(self, places: Array) -> None:
        """Be these from now on, in this order."""
        self._place[:] = -1
        self.members = self._members[:0]
        self.join(places)
