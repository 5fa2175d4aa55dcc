"""Lanes: where the rows of one policy are kept until a fragment closes and becomes a Rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from steppe.errors import ConfigError
from steppe.spaces import Spec, is_wide, leaves, map_leaves, narrowed, put, take, tupled, zeros
from steppe.spaces.description import described, misfits
from steppe.types import Array, BoolArray, Decision, IntArray, Policy, Rollout, State, TimeStep, Tree

ENV, AGENT, EPISODE, T = range(4)  # columns of the identity of a row


class Lanes:
    """Columns of ``(rows * lanes, ...)`` for one policy, written by flat index ``row * lanes + lane``.

    A lane holds one live trajectory at a time, so one poll adds at most two rows to it (a final row and
    the first row of the next trajectory); rows grow when that happens more often than foreseen.

    Attributes:
        policy: id of the policy.
        lane_of: ``(slots,)`` lane of the trajectory in each slot, -1 where there is none.
    """

    def __init__(self, policy: str, obs_spec: Spec, rows: int, lanes: int) -> None:
        self.policy = policy
        self.lane_of = np.zeros(0, np.int64)
        self._spec, self._wide = obs_spec, is_wide(obs_spec)
        self._first_rows, self._rows, self._lanes = rows, rows, lanes
        self._top = 0  # no lane holds more rows than this
        self.action: Tree = None
        self._state0: Tree = None
        self._used = np.zeros(lanes, np.int64)
        self._free = np.arange(lanes)
        self._allocate()

    def _allocate(self) -> None:
        n = self._rows * self._lanes
        self.obs = zeros(self._spec, n)
        if self._wide:
            self.obs = narrowed(self._spec, self.obs)
        self.reward = np.zeros(n, np.float32)
        self.terminated, self.truncated = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self.identity = np.full((n, 4), -1, np.int32)
        self.logp = np.zeros(n, np.float32)
        self.version = np.zeros(n, np.int32)
        if self.action is not None:
            self.action = map_leaves(np.zeros_like, self.action)

    def _allocate_action(self, example: Tree) -> None:
        n = self._rows * self._lanes
        self.action = map_leaves(lambda a: np.zeros((n, *a.shape[1:]), a.dtype), example)

    def _columns(self) -> dict[str, Tree]:
        names = ("obs", "reward", "terminated", "truncated", "identity", "logp", "version", "action")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _resize(self, rows: int, lanes: int) -> None:
        """Move every written row into larger columns."""
        old, (old_rows, old_lanes) = self._columns(), (self._rows, self._lanes)
        index = np.arange(old_rows * old_lanes).reshape(old_rows, old_lanes)
        self._rows, self._lanes = rows, lanes
        self._allocate()
        if self.action is not None:
            self._allocate_action(self.action)
        target = (index // old_lanes * lanes + index % old_lanes).reshape(-1)
        for name, column in old.items():
            put(getattr(self, name), target, column)
        more = lanes - old_lanes
        if self._state0 is not None:
            self._state0 = map_leaves(
                lambda a: np.concatenate([a, np.zeros((more, *a.shape[1:]), a.dtype)]), self._state0
            )
        self._used = np.concatenate([self._used, np.zeros(more, np.int64)])
        self._free = np.append(self._free, np.arange(old_lanes, lanes))

    def grow_slots(self, more: int) -> None:
        """Make room for further slots."""
        self.lane_of = np.concatenate([self.lane_of, np.full(more, -1, np.int64)])

    def write(self, step: TimeStep, identity: Array, final: BoolArray | None) -> None:
        """Store the rows of one poll, final ones above their successors.

        Args:
            step: at most one row a slot.
            identity: ``(n, 4)`` env, agent and episode of each row; may be changed.
            final: which rows end their trajectories; None when none does.
        """
        self._top += 1 if final is None else 2
        if self._top > self._rows:
            self._make_room()
        lane = self.lane_of[step.slot]
        if final is None and not np.count_nonzero(lane < 0):
            row = self._used[lane]
            self._used[lane] = row + 1
        else:
            step, identity, row, lane = self._place(step, identity, lane, final)
        index = row * self._lanes + lane
        if isinstance(self.obs, np.ndarray):
            self.obs[index] = step.obs
        else:
            put(self.obs, index, step.obs)
        self.reward[index] = step.reward
        identity[:, T] = step.t
        self.identity[index] = identity
        if final is not None:
            self.terminated[index] = step.terminated
            self.truncated[index] = step.truncated

    def _place(
        self, step: TimeStep, identity: Array, lane: IntArray, final: BoolArray | None
    ) -> tuple[TimeStep, Array, IntArray, IntArray]:
        """Where rows go when some are final or new: final ones first, which frees their lanes for others."""
        final = np.zeros(len(lane), np.bool_) if final is None else final
        unknown = final & (lane < 0)
        if np.count_nonzero(unknown):  # one that never acted taught nothing: it is not stored
            keep = np.flatnonzero(~unknown)
            step, identity, final, lane = select(step, keep), identity[keep], final[keep], lane[keep]
        active, ending = np.flatnonzero(~final), lane[final]
        row = self._used[lane]
        self._used[ending] += 1
        self.lane_of[step.slot[final]] = -1
        free = np.append(self._free, ending)
        new = active[lane[active] < 0]
        while len(free) < len(new):
            self._resize(self._rows, 2 * self._lanes)
            free = np.append(free, self._free[-self._lanes // 2 :])
        free = free[np.lexsort((free, self._used[free]))]  # the emptiest first, so that lanes stay even
        lane[new], self._free = free[: len(new)], free[len(new) :]
        self.lane_of[step.slot[new]] = lane[new]
        row[active] = self._used[lane[active]]
        self._used[lane[active]] += 1
        return step, identity, row, lane

    def _make_room(self) -> None:
        """The bound says full: look at the truth, and grow only if it is."""
        self._top = int(self._used.max()) + 2
        if self._top > self._rows:
            self._resize(self._rows + max(self._rows // 2, 16), self._lanes)

    def write_decision(self, slots: IntArray, decision: Decision, version: int) -> None:
        """Store what was chosen for the newest row of each slot; ``version`` acted if nothing else says."""
        lane = self.lane_of[slots]
        index = (self._used[lane] - 1) * self._lanes + lane
        if self.action is None:
            self._allocate_action(decision.action)
        if isinstance(self.action, np.ndarray):
            self.action[index] = decision.action
        else:
            put(self.action, index, decision.action)
        self.logp[index] = decision.logp
        self.version[index] = version if decision.version is None else decision.version

    def discard(self, slot: int) -> None:
        """Unfill the trajectory of ``slot``, back to its first row in this fragment, and free its lane."""
        lane = int(self.lane_of[slot])
        if lane < 0:
            return
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
        self._free = np.append(self._free, lane)
        self.lane_of[slot] = -1

    def at_row0(self, slots: IntArray) -> IntArray:
        """Those of ``slots`` whose newest row is row 0 of its lane."""
        first: IntArray = slots[self._used[self.lane_of[slots]] == 1]
        return first

    def write_state0(self, slots: IntArray, state: Tree) -> None:
        """Keep the recurrent state that row 0 of each slot's lane is met with."""
        if self._state0 is None:
            self._state0 = map_leaves(lambda a: np.zeros((self._lanes, *a.shape[1:]), a.dtype), state)
        put(self._state0, self.lane_of[slots], state)

    def live_slots(self) -> IntArray:
        """Slots that have a lane, in the order of the lanes."""
        slots = np.flatnonzero(self.lane_of >= 0)
        return slots[np.argsort(self.lane_of[slots])]

    def close(self, **about: Any) -> Rollout:
        """Turn what was written into a Rollout and open the next fragment.

        The newest row of every live lane closes this fragment and is row 0 of the next one: rows that wait
        for an action bootstrap here and are acted on there; rows already acted on, whose outcome is still
        to come, take their action along.

        Args:
            about: the remaining fields of the Rollout.
        """
        used, lanes = int(self._used.max(initial=0)), self._lanes
        columns, live = self._columns(), np.sort(self.lane_of[self.lane_of >= 0])
        last = (self._used[live] - 1) * lanes + live
        shaped: dict[str, Any] = {
            name: map_leaves(lambda a: a.reshape(-1, lanes, *a.shape[1:])[:used], c)
            for name, c in columns.items()
        }
        identity = shaped.pop("identity")
        filled = identity[..., ENV] >= 0
        identity[~filled] = 0
        continues = np.zeros(lanes, np.bool_)
        continues[live] = True
        names = enumerate(("env", "agent", "episode", "t"))
        who: dict[str, Any] = {name: np.ascontiguousarray(identity[..., i]) for i, name in names}
        shaped.setdefault("action", None)
        about |= {"policy": self.policy, "filled": filled, "lane_continues": continues}
        if isinstance(self._state0, dict) and "reward" in self._state0:  # as seen: others may change rewards
            about["extra"] = {"prev_reward": shaped["reward"].copy()}
        rollout = Rollout(**shaped, **who, **about, state0=self._state0)
        self._rows = max(self._first_rows, self._rows)
        self._allocate()
        self._state0 = None
        for name, column in columns.items():
            put(getattr(self, name), live, take(column, last))
        self._used[:] = 0
        self._used[live] = 1
        self._top = 1
        return rollout

    def get_state(self) -> State:
        """The open rows, between two fragments: only row 0 of the live lanes is written then."""
        slots = self.live_slots()
        live = self.lane_of[slots]
        rows = {name: take(column, live) for name, column in self._columns().items()}
        about = {"lanes": self._lanes, "rows": self._rows, "free": self._free}
        return {**about, "slots": slots, "live": live, "columns": rows}

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`."""
        self._rows, self._lanes = int(state["rows"]), int(state["lanes"])
        self._used = np.zeros(self._lanes, np.int64)
        columns = {name: tupled(column) for name, column in state["columns"].items()}
        self.action = None
        self._allocate()
        if "action" in columns:
            self._allocate_action(columns["action"])
        live = np.asarray(state["live"], np.int64)
        for name, column in columns.items():
            put(getattr(self, name), live, column)
        self._used[live] = 1
        self.lane_of[:] = -1
        self.lane_of[np.asarray(state["slots"], np.int64)] = live
        self._state0 = None
        self._top, self._free = 1, np.asarray(state["free"], np.int64)


class Ready(NamedTuple):
    """Rows of one policy that await an action."""

    policy: int
    slots: IntArray
    obs: Tree
    t: IntArray

    def where(self, mask: BoolArray) -> Ready:
        """Those of them that ``mask`` picks."""
        index = np.flatnonzero(mask)
        return Ready(self.policy, self.slots[index], take(self.obs, index), self.t[index])


def in_order(ready: Sequence[Ready], identity: Array, edge: Array) -> list[Ready]:
    """One batch a policy, by env: the same after a restore, so that noise falls on the same rows.

    Args:
        ready: rows that await an action.
        identity: by slot.
        edge: ``(envs, 2)``, gets the episode and the step that each env waits at.
    """
    merged = []
    for policy in sorted({rows.policy for rows in ready}):
        parts = [rows for rows in ready if rows.policy == policy]
        slots = np.concatenate([rows.slots for rows in parts])
        obs = parts[0].obs
        if len(parts) > 1:
            obs = map_leaves(lambda *leaves: np.concatenate(leaves), *[rows.obs for rows in parts])
        envs, t = identity[slots, ENV], np.concatenate([rows.t for rows in parts])
        edge[envs, 0], edge[envs, 1] = identity[slots, EPISODE], t
        order = np.lexsort((slots, envs))
        t = t[order]
        merged.append(Ready(policy, slots[order], take(obs, order), t))
    return merged


def check_fits(policy: Policy, id: str, pair: tuple[Spec, Spec], who: str) -> None:
    """Agents of a space pair are mapped to a policy for the first time; ``who`` they are.

    Raises:
        ConfigError: the policy observes or chooses something else.
    """
    wrong, _ = misfits(described(policy.observation, policy.action), described(*pair))
    if wrong:  # other bounds of observations may be
        raise ConfigError(f"{who} is mapped to policy {id!r}, which takes {wrong}")


def in_own_units(policy: Policy, decision: Decision) -> Decision:
    """What was decided elsewhere, as ``policy`` would have drawn it."""
    if not np.isnan(decision.logp).all():
        return decision
    return decision._replace(action=policy.from_env(decision.action))


def state_after(policy: Policy, weights: Any, obs: Tree, state: Tree, decision: Decision) -> Tree:
    """What ``policy`` remembers after rows that were decided elsewhere: as if it had chosen that itself."""
    if decision.state is not None:
        return decision.state
    after = policy.act(weights, obs, state, None).state
    return {**after, "action": decision.action} if "action" in after else after


def select(step: TimeStep, index: IntArray) -> TimeStep:
    """Some rows of a poll; ``index`` rises."""
    decision, decided = step.decision, step.decided
    if decided is not None and decision is not None:
        row = (np.cumsum(decided) - 1)[index[decided[index]]]
        state = None if decision.state is None else take(decision.state, row)
        version = None if decision.version is None else decision.version[row]
        decision = Decision(take(decision.action, row), decision.logp[row], state, version)
    if len(index) and index[-1] == len(index) - 1:
        index = slice(0, len(index))  # type: ignore[assignment]  # the first rows: views will do
    return TimeStep(
        step.slot[index],
        step.t[index],
        step.obs[index] if isinstance(step.obs, np.ndarray) else take(step.obs, index),
        step.reward[index],
        step.terminated[index],
        step.truncated[index],
        step.opened,
        step.closed,
        step.info,
        step.space,
        None if decided is None else decided[index],
        decision,
    )
