"""A naive replay: a list of all rows ever, each of which knows the one before and the one after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from steppe.spaces import leaves, map_leaves
from steppe.types import Rollout
from tests.fakes import row_number


class Drawn(NamedTuple):
    """A row that may be sampled, with its outcome; observations are named by their numbers."""

    stack: tuple[int, ...]
    action: Any
    reward: float
    discount: float
    next_stack: tuple[int, ...]


@dataclass
class Kept:
    number: int
    action: Any
    reward: float
    terminated: bool
    truncated: bool
    before: int | None = None
    after: int | None = None
    past_unknown: bool = False

    @property
    def final(self) -> bool:
        return self.terminated or self.truncated


class NaiveReplay:
    """What :class:`steppe.buffers.replay.Replay` has to do, row by row."""

    def __init__(self, capacity: int, n_step: int, gamma: float, framestack: int) -> None:
        self.capacity, self.n_step, self.gamma, self.framestack = capacity, n_step, gamma, framestack
        self.rows: list[Kept] = []
        self.due: dict[int, tuple[Any, dict[int, tuple[Any, int]]]] = {}

    def alive(self, index: int | None) -> bool:
        return index is not None and index >= len(self.rows) - self.capacity

    def add(self, rollout: Rollout) -> int:
        """Store a fragment, one row at a time and those of one time together."""
        fragment, due = self.due.pop(rollout.runner, (None, {}))
        seen = fragment == (rollout.incarnation, rollout.sequence)
        due, held, stored, newest = dict(due), [self.alive(i) for i in range(len(self.rows))], 0, {}
        for row, lane in np.argwhere(rollout.filled):
            if row == 0 and seen and lane in due and due[lane][0] == who(rollout, 0, lane):
                index = due.pop(lane)[1]
                if held[index]:
                    self.rows[index].action = action_of(rollout, 0, lane)
                    newest[lane] = index
                    continue
                unknown = rollout.t[0, lane] > 0
            else:
                unknown = row == 0 and not seen and rollout.t[0, lane] > 0 and rollout.sequence > 0
            self.rows.append(self.kept(rollout, row, lane, bool(unknown)))
            stored += 1
            before, newest[lane] = newest.get(lane), len(self.rows) - 1
            if before is not None and not self.rows[before].final:
                self.rows[before].after, self.rows[-1].before = newest[lane], before
        for _, index in due.values():
            self.rows[index].truncated = True
        continues = {lane: index for lane, index in newest.items() if rollout.lane_continues[lane]}
        for lane, index in newest.items():
            self.rows[index].truncated |= lane not in continues and not self.rows[index].terminated
        due = {lane: (who(rollout, -1, lane), index) for lane, index in continues.items()}
        self.due[rollout.runner] = (rollout.incarnation, rollout.sequence + 1), due
        return stored

    def kept(self, rollout: Rollout, row: int, lane: int, unknown: bool) -> Kept:
        at = row, lane
        number, reward = int(row_number(rollout.obs)[at]), float(rollout.reward[at])
        flags = bool(rollout.terminated[at]), bool(rollout.truncated[at])
        return Kept(number, action_of(rollout, *at), reward, *flags, past_unknown=unknown)

    def stack(self, index: int) -> tuple[int, ...] | None:
        """The numbers of the observations, or None if one of them is not there."""
        found = [index]
        for _ in range(self.framestack - 1):
            row = self.rows[found[0]]
            if row.past_unknown or (row.before is not None and not self.alive(row.before)):
                return None
            found.insert(0, found[0] if row.before is None else row.before)
        return tuple(self.rows[i].number for i in found)

    def drawn(self, index: int) -> Drawn | None:
        """The row and its outcome, or None if it may not be sampled."""
        row, stack, reward, discount = self.rows[index], self.stack(index), 0.0, 1.0
        end = index
        for _ in range(self.n_step):
            after = self.rows[end].after
            if after is None:
                return None
            end = after
            reward += discount * self.rows[end].reward
            discount *= self.gamma
            if self.rows[end].final:
                break
        if stack is None:
            return None
        next_stack = self.stack(end)
        assert next_stack is not None
        discount *= not self.rows[end].terminated
        return Drawn(stack, row.action, reward, discount, next_stack)

    def everything(self) -> list[Drawn]:
        """All that may be sampled."""
        alive = range(max(0, len(self.rows) - self.capacity), len(self.rows))
        return sorted(drawn for index in alive if (drawn := self.drawn(index)))


def read(columns: dict[str, Any]) -> list[Drawn]:
    """Sampled columns of ``(n, ...)``, row by row."""
    rows = []
    for i, (reward, discount) in enumerate(zip(columns["reward"], columns["discount"], strict=True)):
        stacks = []
        for name in ("obs", "next_obs"):
            number = np.atleast_1d(row_number(columns[name])[i])
            if isinstance(columns[name], dict):  # all leaves are of the same rows
                x = columns[name]["x"][i].reshape(-1, 2)
                assert x.tolist() == [[n, -n] for n in number.tolist()]
            stacks.append(tuple(number.tolist()))
        action = plain(map_leaves(lambda a, i=i: a[i], columns["action"]))
        rows.append(Drawn(stacks[0], action, float(reward), float(discount), stacks[1]))
    return sorted(rows)


def who(rollout: Rollout, row: int, lane: int) -> tuple[int, ...]:
    row = int(np.flatnonzero(rollout.filled[:, lane])[row])
    return tuple(int(c[row, lane]) for c in (rollout.env, rollout.agent, rollout.episode, rollout.t))


def action_of(rollout: Rollout, row: int, lane: int) -> Any:
    return None if rollout.action is None else plain(map_leaves(lambda a: a[row, lane], rollout.action))


def plain(action: Any) -> Any:
    values = [np.asarray(leaf).tolist() for leaf in leaves(action)]
    return tuple(values[0]) if isinstance(values[0], list) else values[0]
