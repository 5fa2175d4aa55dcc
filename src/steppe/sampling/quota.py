"""Whole episodes: which of them are awaited, while others wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import numpy as np

from steppe.sampling.lanes import Ready
from steppe.types import EpisodeEnd, SlotInfo


@final
class Quota:
    """Lets episodes that are awaited go on, and others wait for their first action.

    Args:
        new: by env, how many episodes it is yet to begin.
        awaited: (env, episode) of those that were begun before.
        together: the envs cannot be held back one by one.

    Attributes:
        waiting: rows that are not to be answered yet.
    """

    def __init__(self, new: Sequence[int], awaited: set[tuple[int, int]], *, together: bool) -> None:
        self._new, self._awaited, self._together = list(new), set(awaited), together
        self._granted: set[tuple[int, int]] = set()
        self.waiting: list[Ready] = []

    def __contains__(self, episode: tuple[int, int]) -> bool:
        return episode in self._awaited

    def admit(self, begun: Iterable[tuple[int, int]]) -> None:
        """Await new episodes that go on without an answer, as long as some are yet to begin."""
        for episode in begun:
            if episode not in self._awaited and self._new[episode[0]] > 0:
                self._new[episode[0]] -= 1
                self._awaited.add(episode)

    def split(self, ready: Sequence[Ready], live: Mapping[int, SlotInfo]) -> list[Ready]:
        """Those of the rows that are to be answered; the others wait."""
        running = list[Ready]()
        for rows in ready:
            who = zip(rows.slots.tolist(), rows.t.tolist(), strict=True)
            mask = np.array([self._goes_on(live[slot], t) for slot, t in who])
            running += [rows.where(mask)] if mask.any() else []
            self.waiting += [rows.where(~mask)] if not mask.all() else []
        return running

    def _goes_on(self, info: SlotInfo, t: int) -> bool:
        episode = info.env, info.episode
        if t == 0 and episode not in self._awaited and self._new[info.env] > 0:
            self._new[info.env] -= 1
            self._awaited.add(episode)
            self._granted.add(episode)
        return episode in self._awaited or (t > 0 and not self._together)

    def owed(self, live: Mapping[int, SlotInfo], begun: Iterable[tuple[int, int]]) -> bool:
        """Whether an env that waits for no answer has an episode to end, or yet to begin."""
        held = {live[slot].env for rows in self.waiting for slot in rows.slots.tolist()}
        under_way = {env for env, _ in begun}
        return any(n > 0 or (env in under_way and env not in held) for env, n in enumerate(self._new))

    def give_back(self, lost: Iterable[EpisodeEnd]) -> None:
        """One more is to be played for each new episode that was lost; each counts once."""
        for env, episode in {(end.env, end.episode) for end in lost} & self._granted:
            self._granted.remove((env, episode))
            self._new[env] += 1
