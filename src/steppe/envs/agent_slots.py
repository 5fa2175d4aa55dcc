"""Slots: small numbers for agents that come and go, and columns of what is known of each."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from steppe import spaces
from steppe.envs.guards import check_answers
from steppe.envs.replay import from_leaves, same_columns
from steppe.types import IntArray, SlotInfo, SpacePair, State, TimeStep, Tree

_COLUMNS = ("space", "env", "t", "awaits", "waiting", "reward", "earned")
_NOBODY = SlotInfo(-1, 0, 0, 0, 0)


@final
class Slots:
    """Who lives where. A newcomer gets the smallest free slot; one that is left is free after the poll.

    Attributes:
        who: by slot.
        space: ``(slots,)`` index of the space pair; like all that follow.
        env: vector index.
        t: env step of the newest row.
        awaits: whether the newest row awaits an action.
        waiting: what was earned since the newest row.
        reward: the reward of the newest row.
        earned: the sum of the episode.
        last: for each space pair a column of the newest observations.
    """

    def __init__(self) -> None:
        self.who: list[SlotInfo] = []
        self.space, self.env, self.t = (np.zeros(0, np.int64) for _ in range(3))
        self.awaits = np.zeros(0, np.bool_)
        self.waiting, self.reward, self.earned = (np.zeros(0) for _ in range(3))
        self.last: list[Tree] = []
        self._free: list[int] = []
        self._left: list[int] = []

    def take(self) -> int:
        """The smallest free slot."""
        if not self._free:
            self._grow(max(2 * len(self.who), 8))
        return heapq.heappop(self._free)

    def settle(self, info: SlotInfo, space: int, pairs: Sequence[SpacePair], waiting: float = 0.0) -> None:
        """Somebody lives in ``info.slot`` from now on, to whom a reward may be owed."""
        slot = info.slot
        if slot >= len(self.who):
            self._grow(2 * slot + 1)
        self.who[slot], self.space[slot], self.env[slot] = info, space, info.env
        self.waiting[slot], self.earned[slot] = waiting, waiting
        for pair in pairs[len(self.last) :]:
            self.last.append(spaces.zeros(pair.observation, len(self.who)))

    def leave(self, slot: int) -> None:
        """Nobody lives there from the next poll on."""
        self.awaits[slot] = False
        self._left.append(slot)

    def recycle(self) -> None:
        """A poll begins: what was left before is free."""
        for slot in self._left:
            heapq.heappush(self._free, slot)
        self._left.clear()

    def _grow(self, size: int) -> None:
        more = size - len(self.who)
        for slot in range(len(self.who), size):
            heapq.heappush(self._free, slot)
        self.who += [_NOBODY] * more

        def longer(column: Any) -> Any:
            return np.concatenate([column, np.zeros((more, *column.shape[1:]), column.dtype)])

        for name in _COLUMNS:
            setattr(self, name, longer(getattr(self, name)))
        self.last = [spaces.map_leaves(longer, column) for column in self.last]

    def earn(self, slots: Any, rewards: Any) -> None:
        """Rewards for those in ``slots``, one or an array of them."""
        self.waiting[slots] += rewards
        self.earned[slots] += rewards

    def check_awaited(self, slots: IntArray) -> None:
        """Raise ValueError if some of ``slots`` await no action, or are named twice."""
        known = (slots >= 0) & (slots < len(self.awaits))
        wrong = ~known | ~self.awaits[np.where(known, slots, 0)]
        if np.count_nonzero(wrong) or np.bincount(slots).max() > 1:
            check_answers(slots, wrong)

    def pending(self, turn: IntArray, live: Sequence[int]) -> list[TimeStep]:
        """The newest rows of those in ``turn`` that await an action; ``opened`` has all in ``live``."""
        found = []
        for index, column in enumerate(self.last):
            slots = turn[self.awaits[turn] & (self.space[turn] == index)]
            opened = [self.who[slot] for slot in live if self.space[slot] == index]
            if opened:
                obs, none = spaces.take(column, slots), np.zeros(len(slots), np.bool_)
                step = TimeStep(slots, self.t[slots], obs, self.reward[slots], none, none, opened)
                step.space = index
                found.append(step)
        return found

    def known(self, slots: Sequence[int]) -> State:
        """All that is known of those who live in ``slots``."""
        at = np.array(slots, np.int64)
        rows = {name: getattr(self, name)[at] for name in _COLUMNS}
        of = [at[self.space[at] == index] for index in range(len(self.last))]
        obs = [spaces.leaves(spaces.take(column, mine)) for column, mine in zip(self.last, of, strict=True)]
        return {"who": [[*self.who[slot]] for slot in slots], **rows, "obs": obs}

    def same(self, other: Slots, slots: Sequence[int]) -> bool:
        """Whether those who live in ``slots`` have the same rows there."""
        here, there = self.known(slots), other.known(slots)
        names = ("space", "t", "waiting", "reward", "earned")
        columns = [
            (*(known[name] for name in names), *(leaf for part in known["obs"] for leaf in part))
            for known in (here, there)
        ]
        return not slots or same_columns(*columns)

    def load(self, state: State, pairs: Sequence[SpacePair]) -> None:
        """Be as :meth:`known` said; all other slots are free."""
        infos = [SlotInfo(*values) for values in state["who"]]
        at: IntArray = np.array([info.slot for info in infos], np.int64)
        size = int(at.max(initial=-1)) + 1
        self._free, self._left, self.last = [], [], []
        self.who = []
        for name in _COLUMNS:
            setattr(self, name, getattr(self, name)[:0])
        self._grow(max(size, 8))
        self._free = sorted(set(self._free) - set(at.tolist()))
        for info, space in zip(infos, state["space"].tolist(), strict=True):
            self.settle(info, space, pairs)
        for name in _COLUMNS:
            getattr(self, name)[at] = state[name]
        for index, (pair, leaves) in enumerate(zip(pairs, state["obs"], strict=False)):
            spaces.put(self.last[index], at[state["space"] == index], from_leaves(pair.observation, leaves))
