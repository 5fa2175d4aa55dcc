"""What one poll of multi-agent envs gathers, env by env, and the columns that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from steppe.envs.agent_steps import ByAgent
from steppe.types import EpisodeEnd, IntArray, SlotInfo, TimeStep

UNSEEN: Any = object()
"""In the place of an observation: the last known one is meant."""


class Final(NamedTuple):
    """The last row of an agent."""

    slot: int
    t: int
    obs: Any
    terminated: bool


@dataclass(slots=True)
class Rows:
    """The rows of one poll.

    Attributes:
        slots: who has a row and acts next, env by env; ``obs`` their observations, ``rewards`` what they
            earned, 0 where it is booked already.
        finals: the last rows.
        opened: who came.
        closed: which episodes are over.
        info: by slot.
        actions: what led to the ends of episodes, by env and episode; for messages.
    """

    slots: list[int] = field(default_factory=list)
    obs: list[Any] = field(default_factory=list)
    rewards: list[Any] = field(default_factory=list)
    finals: list[Final] = field(default_factory=list)
    opened: list[SlotInfo] = field(default_factory=list)
    closed: list[EpisodeEnd] = field(default_factory=list)
    info: dict[int, dict[str, Any]] = field(default_factory=dict)
    actions: dict[tuple[int, int], ByAgent] = field(default_factory=dict)

    def whole(self) -> TimeStep:
        """All rows, final ones last, without times and rewards; ``obs`` is the list of their observations."""
        finals = self.finals
        slots = np.array([*self.slots, *(final.slot for final in finals)], np.int64)
        terminated, truncated = np.zeros(len(slots), np.bool_), np.zeros(len(slots), np.bool_)
        active = len(slots) - len(finals)
        terminated[active:] = [final.terminated for final in finals]
        truncated[active:] = ~terminated[active:]
        obs = self.obs + [final.obs for final in finals]
        return TimeStep(
            slots, slots, obs, np.zeros(0), terminated, truncated, self.opened, self.closed, self.info
        )


def by_space(whole: TimeStep, space: IntArray) -> list[TimeStep]:
    """The rows of each space pair; what is closed stands in the last TimeStep."""
    present: list[int] = np.unique(space).tolist() or [0]
    parts = []
    for index in present:
        rows = np.flatnonzero(space == index)
        mine = set(whole.slot[rows].tolist())
        part = TimeStep(
            whole.slot[rows],
            whole.t[rows],
            [whole.obs[row] for row in rows.tolist()],
            whole.reward[rows],
            whole.terminated[rows],
            whole.truncated[rows],
            [info for info in whole.opened if info.slot in mine],
            whole.closed if index == present[-1] else (),
            {slot: info for slot, info in whole.info.items() if slot in mine},
            index,
        )
        parts.append(part)
    return parts
