"""Fragments become one batch of static shape, and the order in which its rows are learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from steppe.errors import ConfigError
from steppe.spaces import map_leaves, tupled
from steppe.types import Array, BoolArray, IntArray, Rollout, State

COLUMNS = ("obs", "action", "logp", "reward", "terminated", "truncated", "filled")
"""What an on-policy update reads."""


class FragmentQueue:
    """Collects the fragments of one policy until a batch is full; used by every on-policy learner.

    Args:
        env_steps: size of a batch.
        length: of the sequences that a batch is cut to, where there is a memory, 1 where policies have
            another state: its rows are a multiple, and ``state0`` ``(lanes, ...)`` is among its columns.

    Attributes:
        answer: of an update that :meth:`take` gave nothing: None to wait on, {} where nobody had acted.
    """

    def __init__(self, env_steps: int, length: int = 0) -> None:
        self._goal, self._length = env_steps, length
        self._fragments: list[Rollout] = []
        self._steps = self._idle = 0  # since the last batch; idle: before anybody ever acted
        self.answer: dict[str, float] | None = None
        self._rows = self._lanes = 0  # capacities, which only grow: each growth compiles anew
        self._closing = np.zeros((0, 7), np.int64)

    def add(self, rollout: Rollout) -> None:
        """Take one fragment.

        Raises:
            ConfigError: how probable an action was is not known: it was chosen elsewhere.
        """
        unknown = np.isnan(rollout.logp)
        if np.count_nonzero(unknown):
            who, env, episode, t = (
                int(c[unknown][0]) for c in (rollout.agent, rollout.env, rollout.episode, rollout.t)
            )
            raise ConfigError(
                f"policy {rollout.policy!r}: the action of agent {rollout.agents[who]!r} (env {env}, episode "
                f"{episode}, step {t}) was chosen elsewhere, with a probability that is not known. PPO, like "
                "all that learn on-policy, needs its own actions: leave log_action, off_policy_actions out, "
                "map the agent to a policy that is not trained, or use DQNConfig, SACConfig or TD3Config"
            )
        if rollout.action is not None:
            self._fragments.append(rollout)
            self._steps += rollout.env_steps
        else:  # nobody has acted yet, and the next fragment has these rows too
            self._idle += rollout.env_steps

    def take(
        self, on_batch: Callable[[dict[str, Any]], None] | None = None
    ) -> tuple[dict[str, Any], BoolArray, BoolArray] | None:
        """The batch, its acted rows, and which of its lanes go on from the previous batch.

        None if it is not full yet, or if it is and nobody has acted.

        Args:
            on_batch: sees the columns first, and may change what they hold.

        Returns:
            Columns of ``(rows, lanes, ...)``, padded with unfilled rows to a capacity that grows in few
            steps; ``acted (rows, lanes)``; ``continues (lanes,)``.
        """
        self.answer = {} if max(self._steps, self._idle) >= self._goal else None
        if self.answer is None:
            return None
        self._steps = self._idle = 0
        if not self._fragments:
            return None
        fragments, self._fragments = self._fragments, []
        added: dict[str, Array] = {}
        for fragment in fragments:
            added |= fragment.extra
        if added:
            _even(fragments, added)
        by_runner = [
            [fragment for fragment in fragments if fragment.runner == runner]
            for runner in sorted({fragment.runner for fragment in fragments})
        ]
        parts = [stitch(own) for own in by_runner]
        rows = max(len(part["filled"]) for part in parts)
        lanes = sum(part["filled"].shape[1] for part in parts)
        if rows > self._rows:
            self._rows = _capacity(rows, by_runner[0])
            self._rows += -self._rows % (self._length or 1)
        self._lanes = max(self._lanes, lanes)
        pad = partial(_padded, self._rows, self._lanes)
        batch = {name: map_leaves(pad, *[part[name] for part in parts]) for name in parts[0]}
        final = batch["terminated"] | batch["truncated"]
        acted = np.zeros_like(batch["filled"])
        acted[:-1] = batch["filled"][:-1] & batch["filled"][1:] & ~final[:-1]
        if not np.count_nonzero(acted):  # what waits in these fragments goes on in the next ones
            self._fragments = fragments
            return None
        if on_batch is not None:
            on_batch(batch)
        goes_on = _goes_on(self._closing, np.concatenate([_who(own[0], opening=True) for own in by_runner]))
        self._closing = np.concatenate([_who(own[-1], opening=False) for own in by_runner])
        if self._length:
            from steppe.learning.sequences import longer, opening  # most policies remember nothing

            states = map_leaves(lambda *a: np.concatenate(a), *[opening(own) for own in by_runner])
            batch["state0"] = longer(states, self._lanes)
        continues = np.zeros(self._lanes, np.bool_)
        continues[: len(goes_on)] = goes_on
        return batch, acted, continues

    def get_state(self) -> State:
        """Fragments that wait, and the capacities."""
        kept = [{f.name: getattr(r, f.name) for f in fields(r)} for r in self._fragments]
        counters = {"rows": self._rows, "lanes": self._lanes, "steps": self._steps, "idle": self._idle}
        return {"fragments": kept, "closing": self._closing, **counters}

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`."""
        self._rows, self._lanes = int(state["rows"]), int(state["lanes"])
        self._steps, self._idle = int(state["steps"]), int(state["idle"])
        self._closing = np.asarray(state["closing"], np.int64)
        self._fragments = [
            Rollout(
                **{
                    **kept,
                    "obs": tupled(kept["obs"]),
                    "action": tupled(kept["action"]),
                    "state0": tupled(kept["state0"]),
                    "agents": tuple(kept["agents"]),
                }
            )
            for kept in state["fragments"]
        ]


def stitch(fragments: Sequence[Rollout]) -> dict[str, Any]:
    """Join consecutive fragments of one runner, lane by lane, without holes.

    Where a lane continues, its closing row is left out but for its reward, which may have been changed since
    it was sampled: the next fragment repeats it, with its action. Where it should have continued and did not
    (its episode or its runner was lost), the closing row is truncated.

    Returns:
        Columns of ``(rows, lanes, ...)``: those named in :data:`COLUMNS`, and what was added to them.
    """
    columns = [{**{name: getattr(one, name) for name in COLUMNS}, **one.extra} for one in fragments]
    if len(fragments) == 1:
        return columns[0]
    lanes = max(fragment.filled.shape[1] for fragment in fragments)
    used = np.zeros(lanes, np.int64)
    places, lost, rewards = [], [], []
    for index, fragment in enumerate(fragments):
        keep = fragment.filled.copy()
        length = keep.sum(axis=0)
        if index < len(fragments) - 1:
            goes_on = _goes_on(_who(fragment, opening=False), _who(fragments[index + 1], opening=True))
            closing = length[goes_on] - 1
            keep[closing, goes_on] = False
            lane = np.flatnonzero(goes_on)
            rewards.append((used[lane] + closing, lane, fragment.reward[closing, lane]))
            cut = np.flatnonzero(fragment.lane_continues & ~goes_on)
            lost.append((used[cut] + length[cut] - 1, cut))
        row, lane = np.nonzero(keep)
        places.append((row, lane, used[lane] + row))
        used[: keep.shape[1]] += keep.sum(axis=0)
    joined = {}
    for name in columns[0]:
        parts = [column[name] for column in columns]
        joined[name] = map_leaves(lambda *leaves: _join(leaves, places, int(used.max()), lanes), *parts)
    for row, lane, reward in rewards:
        joined["reward"][row, lane] = reward
    for row, lane in lost:
        joined["truncated"][row, lane] = True
    return joined


def _even(fragments: Sequence[Rollout], added: Mapping[str, Array]) -> None:
    """Those in which nobody acted have none of the columns that were ``added`` to others: zeros there."""
    for fragment in fragments:
        for name, like in added.items():
            if name not in fragment.extra:
                fragment.extra[name] = np.zeros((*fragment.filled.shape, *like.shape[2:]), like.dtype)


def _who(fragment: Rollout, *, opening: bool) -> IntArray:
    """Who is at row 0 of each lane, or due there in the next fragment; ``(lanes, 7)``, -1 where nobody is."""
    if opening:
        lane = np.flatnonzero(fragment.filled[:1].any(axis=0))
        row = np.zeros_like(lane)
    else:
        lane = np.flatnonzero(fragment.lane_continues)
        row = fragment.filled.sum(axis=0)[lane] - 1
    who = np.full((fragment.filled.shape[1], 7), -1, np.int64)
    who[lane, :3] = fragment.runner, fragment.incarnation, fragment.sequence + (not opening)
    for i, column in enumerate((fragment.env, fragment.agent, fragment.episode, fragment.t), start=3):
        who[lane, i] = column[row, lane]
    return who


def _goes_on(closing: IntArray, opening: IntArray) -> BoolArray:
    n = min(len(closing), len(opening))
    same = np.zeros(len(closing), np.bool_)
    same[:n] = (closing[:n] == opening[:n]).all(axis=1) & (closing[:n, 0] >= 0)
    return same


def _join(leaves: Sequence[Array], places: Sequence[Any], rows: int, lanes: int) -> Array:
    out = np.zeros((rows, lanes, *leaves[0].shape[2:]), leaves[0].dtype)
    for leaf, (row, lane, target) in zip(leaves, places, strict=True):
        out[target, lane] = leaf[row, lane]
    return out


def _padded(rows: int, lanes: int, *leaves: Array) -> Array:
    """Leaves ``(r, l, ...)`` side by side in one array ``(rows, lanes, ...)``."""
    out = np.zeros((rows, lanes, *leaves[0].shape[2:]), leaves[0].dtype)
    start = 0
    for leaf in leaves:
        out[: leaf.shape[0], start : start + leaf.shape[1]] = leaf
        start += leaf.shape[1]
    return out


def _capacity(rows: int, fragments: Sequence[Rollout]) -> int:
    """Rows to allocate: room for episodes that get shorter as a policy learns.

    Each episode adds a final row. In quarters of the number of polls, two ahead of the need, and at most
    twice the polls, which one-step episodes take. Agents that share an env make that number look smaller
    than it is: then in eighths of the rows.
    """
    polls = int(sum(f.env_steps // max(1, f.filled.shape[1]) for f in fragments)) + len(fragments)
    quarter, most = max(polls // 4, rows // 8, 1), 2 * polls + 1
    room: int = (rows // quarter + 2) * quarter
    return room if rows > most else min(room, most)


BLOCKS = 8
"""Of lanes, where several devices learn: they are dealt out to them, see :mod:`steppe.learning.devices`."""


def shuffled(
    rng: np.random.Generator, acted: BoolArray, epochs: int, size: int, capacity: int = 0
) -> tuple[Array, int]:
    """The order in which rows are learned from: acted rows only, drawn anew for each epoch.

    Args:
        rng: the learner's stream.
        acted: ``(rows, lanes)``.
        epochs: passes over the batch.
        size: of a minibatch.
        capacity: length of the last answer; where that is too short it grows by a quarter at least, because
            each growth compiles anew.

    Returns:
        ``(epochs, capacity)`` int32 flat row indices, and the number of acted rows. The capacity is a
        multiple of ``size``; beyond the acted rows the order is repeated from its start.
    """
    rows = np.flatnonzero(acted).astype(np.int32)
    needed = -(-max(len(rows), size) // size) * size
    if capacity < needed:
        capacity = -(-max(needed, capacity * 5 // 4) // size) * size
    order = np.empty((epochs, capacity), np.int32)
    for epoch in range(epochs):
        order[epoch] = np.resize(rng.permutation(rows), capacity)
    return order, len(rows)
