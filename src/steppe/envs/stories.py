"""What is known of episodes that others drive, until it is handed over; and how that is saved."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from steppe import spaces
from steppe.types import AgentID, State, Tree

Kind: TypeAlias = tuple[int, str, bool, bool]
"""What the rows of one TimeStep share: space pair, policy, whether others chose, whether without a state."""


@dataclass(slots=True)
class Row:
    """A row of one agent; ``end`` is True where it terminates, False where it truncates, else None."""

    agent: AgentID
    t: int
    kind: Kind
    obs: Tree
    action: Tree = None
    logp: float = 0.0
    version: int = 0
    state: Tree = None
    end: bool | None = None
    before: int = -1
    reward: float = 0.0
    info: dict[str, Any] | None = None
    slot: int = -1


_NUMBERS = ("t", "logp", "version", "before", "reward", "slot")


@dataclass(slots=True, eq=False)
class Story:
    """What is known of an episode, and not yet handed over.

    Attributes:
        id: as entries name it.
        env: vector index.
        number: counts the episodes of this env.
        t: env step of the newest act.
        over: nothing more can come.
        shown: env step of what was handed over last, -1 before.
        groups: rows that wait, all of one env step together.
        newest: the newest row of everyone who has not left.
        living: the row that was handed over last of everyone who has a slot.
        after: rows that wait, by agent and the step of its row before.
        owed: rewards and infos for an agent's next row.
    """

    id: str
    env: int
    number: int
    t: int = -1
    over: bool = False
    shown: int = -1
    groups: deque[tuple[int, list[Row]]] = field(default_factory=deque)
    newest: dict[AgentID, Row] = field(default_factory=dict)
    living: dict[AgentID, Row] = field(default_factory=dict)
    after: dict[tuple[AgentID, int], Row] = field(default_factory=dict)
    owed: dict[AgentID, tuple[float, dict[str, Any] | None]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """A row of somebody, who gets what is owed."""
        before = self.newest.get(row.agent)
        if before is not None:
            row.before = before.t
            self.after[row.agent, before.t] = row
        row.reward, row.info = self.owed.pop(row.agent, (0.0, None))
        if self.groups and self.groups[-1][0] == row.t:
            self.groups[-1][1].append(row)
        else:
            self.groups.append((row.t, [row]))

    def behind(self, agent: AgentID, t: int) -> Row | None:
        """The row that waits behind somebody's newest one of step ``t`` or before; None: it is to come."""
        newest = self.newest.get(agent)
        if newest is not None and newest.t <= t:
            return None
        earlier = (
            (t,) if (agent, t) in self.after else (b for who, b in self.after if who == agent and b <= t)
        )
        return self.after.get((agent, max(earlier, default=t)))

    def end(self, agent: AgentID, terminated: bool, obs: Tree) -> None:
        """The final row of somebody who has one before, one step after the newest act."""
        last = self.newest[agent]
        self.add(Row(agent, self.t + 1, last.kind, last.obs if obs is None else obs, end=terminated))
        del self.newest[agent]


@dataclass(slots=True)
class Open:
    """An open episode of an external env: what is asked of whoever tells something of it.

    Attributes:
        id: as the user names it.
        number: counts the episodes of its env.
        training: whether it becomes rows.
        turns: who acted in the newest steps.
        t: the newest step.
        policies: who acts for each agent that came.
        spaces: index of their space pairs.
        states: what policies remember.
        earned: rewards since an agent's newest row.
        left: agents that are done.
    """

    id: str
    number: int
    training: bool
    turns: deque[frozenset[AgentID]]
    t: int = -1
    policies: dict[AgentID, str] = field(default_factory=dict)
    spaces: dict[AgentID, int] = field(default_factory=dict)
    states: dict[AgentID, Tree] = field(default_factory=dict)
    earned: dict[AgentID, float] = field(default_factory=dict)
    left: set[AgentID] = field(default_factory=set)


def joined(trees: Sequence[Tree]) -> Tree:
    """Columns as one."""
    if len(trees) == 1:
        return trees[0]
    return spaces.map_leaves(lambda *leaves: np.concatenate(leaves), *trees)


def packed(rows: Sequence[Row]) -> Iterator[State]:
    """Rows that are alike, as columns."""
    alike: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault((row.kind, row.end), []).append(place)
    for (kind, end), places in alike.items():
        mine = [rows[place] for place in places]
        part: State = {name: np.array([getattr(row, name) for row in mine]) for name in _NUMBERS}
        part |= {"kind": list(kind), "end": end, "places": places, "agents": [row.agent for row in mine]}
        part["obs"] = joined([row.obs for row in mine])
        part["action"] = None if end is not None else joined([row.action for row in mine])
        part["state"] = None if end is not None or kind[3] else joined([row.state for row in mine])
        yield part


def unpacked(parts: Sequence[State]) -> dict[int, Row]:
    """What :func:`packed` gave, by place."""
    rows: dict[int, Row] = {}
    for part in parts:
        kind: Any = tuple(part["kind"])
        trees = {name: spaces.tupled(part[name]) for name in ("obs", "action", "state")}
        for at, (place, agent) in enumerate(zip(part["places"], part["agents"], strict=True)):
            own: dict[str, Any] = {
                name: None if tree is None else spaces.take(tree, slice(at, at + 1))
                for name, tree in trees.items()
            }
            numbers: dict[str, Any] = {name: part[name][at].item() for name in _NUMBERS}
            rows[place] = Row(agent, kind=kind, end=part["end"], **own, **numbers)
    return rows


def restored(told: State, rows: Mapping[int, Row]) -> Story:
    """The story that was ``told``, with its rows by place."""
    story = Story(*(told[name] for name in ("id", "env", "number", "t", "over", "shown")))
    story.groups.extend((t, [rows[place] for place in places]) for t, places in told["groups"])
    story.newest = {agent: rows[place] for agent, place in told["newest"]}
    story.living = {agent: rows[place] for agent, place in told["living"]}
    story.after = {(row.agent, row.before): row for _, group in story.groups for row in group}
    story.owed = {agent: (reward, None) for agent, reward in told["owed"]}
    return story
