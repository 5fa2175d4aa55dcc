"""Lanes: where the rows of one policy are kept until a fragment closes and becomes a Rollout."""

from __future__ import annotations

from typing import Any

import numpy as np

from steppe.spaces import Spec, leaves, map_leaves, put, take, tupled, zeros
from steppe.types import Array, BoolArray, Decision, IntArray, Rollout, State, TimeStep, Tree

ENV, AGENT, EPISODE, T = range(4)  # columns of the identity of a row


class Lanes:
    """Columns of ``(rows * lanes, ...)`` for one policy, written by flat index ``row * lanes + lane``.

    A lane holds one live trajectory at a time, so one poll adds at most two rows to it (a final row and
    the first row of the next trajectory); rows grow when that happens more often than foreseen.
    """

    def __init__(self, policy: str, obs_spec: Spec, rows: int, lanes: int) -> None:
        self.policy = policy
        self._spec = obs_spec
        self._first_rows, self._rows, self._lanes = rows, rows, lanes
        self._top = 0  # no lane holds more rows than this
        self.action: Tree = None
        self._state0: Tree = None
        self._used = np.zeros(lanes, np.int64)
        self._free = list(range(lanes))
        self._allocate()

    def _allocate(self) -> None:
        n = self._rows * self._lanes
        self.obs = zeros(self._spec, n)
        self.reward = np.zeros(n, np.float32)
        self.terminated, self.truncated = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self.identity = np.full((n, 4), -1, np.int32)
        self.logp = np.zeros(n, np.float32)
        self.version = np.zeros(n, np.int32)
        if self.action is not None:
            self.action = map_leaves(lambda a: np.zeros((n, *a.shape[1:]), a.dtype), self.action)

    def _columns(self) -> dict[str, Tree]:
        names = ("obs", "reward", "terminated", "truncated", "identity", "logp", "version", "action")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _resize(self, rows: int, lanes: int) -> None:
        """Move every written row into larger columns."""
        old, (old_rows, old_lanes) = self._columns(), (self._rows, self._lanes)
        index = np.arange(old_rows * old_lanes).reshape(old_rows, old_lanes)
        self._rows, self._lanes = rows, lanes
        self._allocate()
        target = (index // old_lanes * lanes + index % old_lanes).reshape(-1)
        for name, column in old.items():
            put(getattr(self, name), target, column)
        more = lanes - old_lanes
        if self._state0 is not None:
            self._state0 = map_leaves(
                lambda a: np.concatenate([a, np.zeros((more, *a.shape[1:]), a.dtype)]), self._state0
            )
        self._used = np.concatenate([self._used, np.zeros(more, np.int64)])
        self._free.extend(range(old_lanes, lanes))

    def claim(self) -> int:
        """A free lane for a new trajectory, the emptiest so that lanes stay even."""
        if not self._free:
            self._resize(self._rows, 2 * self._lanes)
        used = self._used
        lane = min(self._free, key=lambda free: (int(used[free]), free))
        self._free.remove(lane)
        return lane

    def release(self, lane: int) -> None:
        """The trajectory in ``lane`` is over; the next one continues there."""
        self._free.append(lane)

    def place(self, lane: IntArray) -> IntArray:
        """The next row of each of some distinct lanes; it is taken from then on."""
        self._top += 1
        if self._top > self._rows:  # the bound says full: look at the truth, and grow only if it is
            self._top = int(self._used.max()) + 1
            if self._top > self._rows:
                self._resize(self._rows + max(self._rows // 2, 16), self._lanes)
        row: IntArray = self._used[lane]
        self._used[lane] = row + 1
        return row

    def write(self, row: IntArray, lane: IntArray, identity: Array, step: TimeStep) -> None:
        """Store the rows of ``step`` in their places; ``identity`` is ``(n, 4)`` and may be changed."""
        index = row * self._lanes + lane
        put(self.obs, index, step.obs)
        self.reward[index] = step.reward
        identity[:, T] = step.t
        self.identity[index] = identity

    def end(self, row: IntArray, lane: IntArray, terminated: BoolArray, truncated: BoolArray) -> None:
        """Mark rows as final: nothing follows them in their trajectories."""
        index = row * self._lanes + lane
        self.terminated[index] = terminated
        self.truncated[index] = truncated

    def write_decision(self, lane: IntArray, decision: Decision, version: int) -> None:
        """Store what was chosen for the newest row of each lane."""
        index = self._newest(lane)
        if self.action is None:
            n = self._rows * self._lanes
            self.action = map_leaves(lambda a: np.zeros((n, *a.shape[1:]), a.dtype), decision.action)
        put(self.action, index, decision.action)
        self.logp[index] = decision.logp
        self.version[index] = version

    def _newest(self, lane: IntArray) -> IntArray:
        index: IntArray = (self._used[lane] - 1) * self._lanes + lane
        return index

    def discard(self, lane: int) -> None:
        """Unfill the newest trajectory of ``lane``, back to its first row in this fragment, and free it."""
        final = (self.terminated | self.truncated)[lane :: self._lanes]
        identity = self.identity[lane :: self._lanes]
        row = int(self._used[lane])
        newest = identity[row - 1, :T].copy()
        while row and not final[row - 1] and (identity[row - 1, :T] == newest).all():
            row -= 1
            for leaf in leaves(self._columns()):
                leaf[row * self._lanes + lane] = 0
            identity[row] = -1
        self._used[lane] = row
        self.release(lane)

    def is_empty(self, lane: IntArray) -> BoolArray:
        """Which lanes have no row yet: the recurrent state of the next one is to be kept."""
        empty: BoolArray = self._used[lane] == 0
        return empty

    def write_state0(self, lane: IntArray, state: Tree) -> None:
        """Keep the recurrent state that row 0 of each lane is met with."""
        if self._state0 is None:
            self._state0 = map_leaves(lambda a: np.zeros((self._lanes, *a.shape[1:]), a.dtype), state)
        put(self._state0, lane, state)

    def close(self, live: IntArray, **about: Any) -> Rollout:
        """Turn what was written into a Rollout and open the next fragment.

        The newest row of every live lane closes this fragment and is row 0 of the next one: rows that wait
        for an action bootstrap here and are acted on there; rows already acted on, whose outcome is still
        to come, take their action along.

        Args:
            live: ``(k,)`` lanes whose trajectories go on.
            about: the remaining fields of the Rollout.
        """
        used, lanes = int(self._used.max(initial=0)), self._lanes
        columns, last = self._columns(), self._newest(live)
        shaped = {
            name: map_leaves(lambda a: a.reshape(-1, lanes, *a.shape[1:])[:used], c)
            for name, c in columns.items()
        }
        identity = shaped.pop("identity")
        filled = identity[..., ENV] >= 0
        identity[~filled] = 0
        continues = np.zeros(lanes, np.bool_)
        continues[live] = True
        rollout = Rollout(
            **shaped,
            **({} if "action" in shaped else {"action": None}),
            filled=filled,
            **{
                n: np.ascontiguousarray(identity[..., i])
                for i, n in enumerate(("env", "agent", "episode", "t"))
            },
            policy=self.policy,
            lane_continues=continues,
            state0=self._state0,
            **about,
        )
        self._rows = max(self._first_rows, self._rows)
        self._allocate()
        self._state0 = None
        for name, column in columns.items():
            put(getattr(self, name), live, take(column, last))
        self._used[:] = 0
        self._used[live] = 1
        self._top = 1
        return rollout

    def get_state(self, live: IntArray) -> State:
        """The open rows, between two fragments: only row 0 of the live lanes is written then."""
        rows = {name: take(column, live) for name, column in self._columns().items()}
        return {
            "lanes": self._lanes,
            "rows": self._rows,
            "live": live,
            "columns": rows,
            "free": list(self._free),
        }

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`."""
        self._rows, self._lanes = int(state["rows"]), int(state["lanes"])
        self._used = np.zeros(self._lanes, np.int64)
        columns = {name: tupled(column) for name, column in state["columns"].items()}
        self.action = columns.get("action")
        self._allocate()
        live = np.asarray(state["live"], np.int64)
        for name, column in columns.items():
            put(getattr(self, name), live, column)
        self._used[live] = 1
        self._state0 = None
        self._top, self._free = 1, [int(lane) for lane in state["free"]]
