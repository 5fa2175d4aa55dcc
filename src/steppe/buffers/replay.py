"""Replay: a flat ring of rows in which each observation is stored once, drawn from evenly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np

from steppe.buffers.pool import Pool
from steppe.errors import CheckpointError, ConfigError
from steppe.spaces import map_leaves, put, take, tupled
from steppe.types import Array, BoolArray, IntArray, Rollout, State, Tree

NONE, CUT = -1, -2  # instead of the row before: a trajectory's first row has none; it is not stored


class Due(NamedTuple):
    """Who begins the lanes of a runner's next fragment; -1 where nobody is due."""

    fragment: tuple[int, int]
    """Its incarnation and sequence."""
    who: Array
    """``(lanes, 4)``."""
    number: IntArray
    """``(lanes,)`` of the stored row."""


@final
class Replay:
    """The last rows of one policy, from any number of runners, linked as they followed each other.

    A row may be sampled once it was acted on and its outcome is complete: ``n_step`` rows further on, or at
    the end of its trajectory if that comes before. A row that the next fragment repeats, because a lane
    continues with it, is stored once. Where a lane should have continued and did not (its episode or its
    runner was lost) its last row is truncated. Rows are numbered in the order of time, so the ring forgets
    the oldest ones first, and a row outlives all that came before it.

    Args:
        capacity: rows that are held, final ones included.
        n_step: rewards that are summed, at most.
        gamma: discount of a row.
        framestack: observations that are sampled together: a row's own, last, and those of the rows before
            it; a trajectory's first one stands for those that never were. With 1 there is no such axis.

    Attributes:
        capacity: as given.
        came: rows that the last :meth:`add` made sampleable.
        went: rows that it made no longer so; a row that was replaced can be in both.
        at: ``(rows, lanes)``, where it stored the fragment; -1 where nothing is stored.

    Raises:
        ConfigError: a number that is below 1.
    """

    def __init__(self, capacity: int, *, n_step: int = 1, gamma: float = 0.99, framestack: int = 1) -> None:
        self._about = {"capacity": capacity, "n_step": n_step, "framestack": framestack}
        for name, value in self._about.items():
            if value < 1:
                raise ConfigError(f"replay: {name}={value}, but it counts rows: give 1 or more")
        self.capacity, self._n_step, self._gamma, self._framestack = capacity, n_step, gamma, framestack
        self._obs: Tree = None
        self._action: Tree = None
        self._reward = np.zeros(capacity, np.float32)
        self._terminated, self._truncated = np.zeros((2, capacity), np.bool_)
        self._next, self._previous = np.full((2, capacity), NONE, np.int32)
        self._stored = 0  # rows ever; the next one goes to that place, modulo capacity
        self._ready = Pool(capacity)
        self._due: dict[int, Due] = {}  # by runner
        self.came: Array = self._ready.members
        self.went: Array = self._ready.members
        self.at: Array = np.zeros((0, 0), np.int64)

    def __len__(self) -> int:
        """Rows that may be sampled."""
        return len(self._ready)

    def add(self, rollout: Rollout) -> int:
        """Store a fragment; takes time by its rows, whatever the capacity.

        Returns:
            Rows that were not stored before.
        """
        number, lost, unknown = self._continued(rollout)
        new = rollout.filled.copy()
        new[:1, number >= 0] = False
        row, lane = np.nonzero(new)
        numbers = np.full(new.shape, -1, np.int64)
        numbers[:1] = number
        numbers[row, lane] = self._stored + np.arange(len(row))
        self._forget(len(row))
        self.at = at = self._at(numbers)
        self._write(rollout, at, row, lane)
        ends = self._link(rollout, at, unknown)
        cut = self._close(rollout, numbers, at)
        lost = self._at(lost)
        lost = lost[lost >= 0]
        self._truncated[lost] = True
        self._complete(np.unique(np.concatenate([ends, cut, lost])))
        return len(row)

    def sample(self, rng: np.random.Generator, batches: int, size: int) -> dict[str, Any]:
        """Draw rows, each as probable as any other, with replacement.

        Returns:
            Columns of ``(batches, size, ...)``: those of :meth:`columns`, and ``weight``, ones.

        Raises:
            ConfigError: no row may be sampled yet.
        """
        if not len(self):
            raise ConfigError("replay: no row may be sampled yet. Ask len() first, and collect more steps")
        index = self._ready.members[rng.integers(len(self), size=(batches, size))]
        return {**self.columns(index), "weight": np.ones(index.shape, np.float32)}

    def columns(self, index: Array) -> dict[str, Any]:
        """Sampleable rows and their outcomes.

        Args:
            index: of rows, of any shape.

        Returns:
            Columns of that shape: ``obs`` and ``action`` of the row, ``reward`` (the discounted sum of up to
            ``n_step``) and ``discount`` float32, ``next_obs`` of the row that the discount is for, and
            ``index``. The discount is 0 where that row was terminated.
        """
        end = self._next[index]
        reward, discount = self._reward[end].astype(np.float64), np.full(index.shape, self._gamma)
        for _ in range(self._n_step - 1):
            going = ~(self._terminated[end] | self._truncated[end])
            end = np.where(going, self._next[end], end)
            reward += np.where(going, discount * self._reward[end], 0.0)
            discount[going] *= self._gamma
        both = take(self._obs, self._stack(np.stack([index, end])))  # one large allocation, not two
        return {
            "obs": take(both, 0),
            "action": take(self._action, index),
            "reward": reward.astype(np.float32),
            "discount": (discount * ~self._terminated[end]).astype(np.float32),
            "next_obs": take(both, 1),
            "index": index,
        }

    def runs(self, index: Array, rows: int) -> dict[str, Any]:
        """Rows of one trajectory, as they followed each other.

        Args:
            index: sampleable rows, of any shape, that runs begin with.
            rows: length of a run; one that ends before repeats its last row.

        Returns:
            Columns of ``(*index.shape, rows)``: ``obs`` and ``action``, the ``reward`` that led to the row,
            ``terminated``, ``truncated``, and ``filled``, False where a last row is repeated.
        """
        at, filled = np.empty((*index.shape, rows), np.int32), np.ones((*index.shape, rows), np.bool_)
        for t in range(rows):
            at[..., t], after = index, self._next[index]
            filled[..., t + 1 :] &= (after >= 0)[..., None]
            index = np.where(after >= 0, after, index)
        names = ("reward", "terminated", "truncated")
        flags = {name: getattr(self, f"_{name}")[at] for name in names}
        return {"obs": take(self._obs, self._stack(at)), "action": take(self._action, at), **flags} | {
            "filled": filled
        }

    def first(self, index: Array) -> BoolArray:
        """Which rows begin their trajectories."""
        begins: BoolArray = self._previous[index] == NONE
        return begins

    def beyond(self, index: Array, rows: int) -> BoolArray:
        """Whether a row that far behind sampleable ones was acted on, in the same trajectory."""
        for _ in range(rows):
            index = np.where(self._next[index] >= 0, self._next[index], index)
        acted: BoolArray = ~(self._terminated[index] | self._truncated[index]) & (self._next[index] >= 0)
        return acted

    def get_state(self) -> State:
        """Everything, as views of the rows that are held: store it before the next :meth:`add`."""
        held = slice(min(self._stored, self.capacity))
        columns = {name: take(column, held) for name, column in self._columns().items()}
        due = [{"runner": runner, **due._asdict()} for runner, due in self._due.items()]
        about = {**self._about, "columns": columns, "stored": self._stored}
        return {**about, "ready": self._ready.members, "due": due}

    def check(self, state: State) -> None:
        """Judge that :meth:`set_state` may take ``state``.

        Raises:
            CheckpointError: it belongs to a replay of other sizes, or of another kind.
        """
        if "anchors" in state:
            raise CheckpointError("the checkpoint's replay has sequences: go on with the memory that it had")
        if "priority" in state:
            raise CheckpointError(
                "the checkpoint's replay has priorities: go on with prioritized_replay=True"
            )
        for name, value in self._about.items():
            if state[name] != value:
                raise CheckpointError(
                    f"the checkpoint's replay has {name}={state[name]}, this one {name}={value}: "
                    "go on with the value that the run began with"
                )

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`.

        Raises:
            CheckpointError: see :meth:`check`; nothing was changed.
        """
        self.check(state)
        self._stored = int(state["stored"])
        columns = {name: tupled(column) for name, column in state["columns"].items()}
        self._obs = self._room(np.empty, columns["obs"]) if "obs" in columns else None
        self._action = self._room(np.zeros, columns["action"]) if "action" in columns else None
        held = slice(min(self._stored, self.capacity))
        for name, column in self._columns().items():
            put(column, held, columns[name])
        self._ready.replace(state["ready"])
        self._due = {
            due["runner"]: Due(tuple(due["fragment"]), due["who"], due["number"]) for due in state["due"]
        }

    def _columns(self) -> dict[str, Tree]:
        names = ("obs", "action", "reward", "terminated", "truncated", "next", "previous")
        columns = {name: getattr(self, f"_{name}") for name in names}
        return {name: column for name, column in columns.items() if column is not None}

    def _at(self, numbers: IntArray) -> IntArray:
        """Places of numbered rows; -1 for those that were forgotten, and for -1."""
        held = numbers >= max(self._stored - self.capacity, 0)
        return np.where(held, numbers % self.capacity, -1)

    def _continued(self, rollout: Rollout) -> tuple[IntArray, IntArray, BoolArray]:
        """Which of the rows that were due are there.

        Returns:
            ``(lanes,)`` number of the stored row that row 0 of a lane is, -1 where there is none; the numbers
            of rows that were due and are not there; ``(lanes,)`` lanes whose row 0 has a past that is not
            stored.
        """
        filled = np.asarray(rollout.filled[:1].any(axis=0))
        begun = np.asarray((rollout.t[:1] > 0).any(axis=0))
        number, oldest = np.full(len(filled), -1, np.int64), max(self._stored - self.capacity, 0)
        if rollout.runner not in self._due:
            return number, number[:0], filled & begun & (rollout.sequence > 0)
        due = self._due.pop(rollout.runner)
        if due.fragment != (rollout.incarnation, rollout.sequence):
            return number, due.number, filled & begun & (rollout.sequence > 0)
        lane = np.flatnonzero(filled[: len(due.number)])
        lane = lane[(_who(rollout, np.zeros_like(lane), lane) == due.who[lane]).all(axis=1)]
        number[lane] = due.number[lane]
        lost = np.delete(due.number, lane)
        forgotten = (number >= 0) & (number < oldest)  # it has been silent for so long: stored anew
        number[forgotten] = -1
        return number, lost, forgotten & begun

    def _forget(self, rows: int) -> None:
        """Make room for ``rows`` more, whose numbers begin at ``_stored``."""
        before = self._stored
        first = max(before - self.capacity, 0)
        self._stored += rows
        old = np.arange(first, min(before, max(self._stored - self.capacity, first))) % self.capacity
        after = self._next[old]
        after = after[after >= 0]
        self._previous[after] = CUT
        parts: list[Array] = [old]
        for _ in range(self._framestack - 1):  # what comes after has lost a part of its stack
            parts.append(after)
            after = self._next[after]
            after = after[after >= 0]
        rows_gone = np.concatenate(parts)
        self.went = np.unique(rows_gone[self._ready.has(rows_gone)])
        self._ready.leave(self.went)

    def _write(self, rollout: Rollout, at: IntArray, row: IntArray, lane: IntArray) -> None:
        """Store the new rows, and the actions of all."""
        kept = at[row, lane] >= 0
        row, lane = row[kept], lane[kept]
        new = at[row, lane]
        obs = take(rollout.obs, (row, lane))
        if self._obs is None:
            self._obs = self._room(np.empty, obs)
        put(self._obs, new, obs)
        self._reward[new] = rollout.reward[row, lane]
        self._terminated[new] = rollout.terminated[row, lane]
        self._truncated[new] = rollout.truncated[row, lane]
        self._next[new] = self._previous[new] = NONE
        if rollout.action is not None:
            kept = at >= 0
            action = take(rollout.action, kept)
            if self._action is None:
                self._action = self._room(np.zeros, action)
            put(self._action, at[kept], action)

    def _room(self, make: Callable[..., Array], rows: Tree) -> Tree:
        """A ring of rows like these. Memory is taken when it is written; by np.empty in huge pages."""
        return map_leaves(lambda a: make((self.capacity, *a.shape[1:]), a.dtype), rows)

    def _link(self, rollout: Rollout, at: IntArray, unknown: BoolArray) -> Array:
        """Rows learn who came before and who comes next; returns those that are an outcome."""
        first = at[:1, unknown]
        self._previous[first[first >= 0]] = CUT
        acted = rollout.acted[:-1]
        above, below = at[:-1][acted], at[1:][acted]
        above, below = above[below >= 0], below[below >= 0]
        self._previous[below] = np.where(above >= 0, above, CUT)
        self._next[above[above >= 0]] = below[above >= 0]
        return np.asarray(below)

    def _close(self, rollout: Rollout, numbers: IntArray, at: IntArray) -> Array:
        """Note who is due in the next fragment; returns the last rows of lanes that just stop, truncated."""
        lane = np.flatnonzero(rollout.filled[:1].any(axis=0))
        row = rollout.filled.sum(axis=0)[lane] - 1
        goes_on = rollout.lane_continues[lane]
        due = Due(
            (rollout.incarnation, rollout.sequence + 1),
            np.full((rollout.filled.shape[1], 4), -1, np.int32),
            np.full(rollout.filled.shape[1], -1, np.int64),
        )
        due.who[lane[goes_on]] = _who(rollout, row[goes_on], lane[goes_on])
        due.number[lane[goes_on]] = numbers[row[goes_on], lane[goes_on]]
        self._due[rollout.runner] = due
        stops = at[row[~goes_on], lane[~goes_on]]
        stops = stops[(stops >= 0) & ~self._terminated[stops] & ~self._truncated[stops]]
        self._truncated[stops] = True
        return np.asarray(stops)

    def _complete(self, ends: Array) -> None:
        """Make sampleable the rows whose outcome is complete, now that ``ends`` are stored."""
        parts: list[Array] = []
        row, last = ends, self._terminated[ends] | self._truncated[ends]
        for steps in range(1, self._n_step + 1):
            row = self._previous[row]
            row, last = row[row >= 0], last[row >= 0]
            parts.append(row if steps == self._n_step else row[last])
        rows = np.concatenate(parts)
        rows = rows[~self._ready.has(rows)]
        whole, past = np.ones(len(rows), np.bool_), rows
        for _ in range(self._framestack - 1):
            before = self._previous[past]
            whole &= before != CUT
            past = np.where(before >= 0, before, past)
        self.came = rows[whole]
        self._ready.join(self.came)

    def _stack(self, index: Array) -> Array:
        """The rows whose observations are sampled together: ``index``, or one axis more."""
        if self._framestack == 1:
            return index
        stack = np.empty((*index.shape, self._framestack), np.int32)
        for place in range(self._framestack - 1, -1, -1):
            stack[..., place] = index
            before = self._previous[index]
            index = np.where(before >= 0, before, index)
        return stack


def _who(rollout: Rollout, row: IntArray, lane: IntArray) -> Array:
    """Whose rows they are, and when: ``(n, 4)``."""
    columns = rollout.env, rollout.agent, rollout.episode, rollout.t
    return np.stack([column[row, lane] for column in columns], axis=1)
