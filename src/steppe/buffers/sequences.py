"""Sequences of a replay's rows, for learners whose networks remember."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from steppe.buffers.pool import Pool
from steppe.buffers.replay import Replay
from steppe.errors import CheckpointError, ConfigError
from steppe.spaces import leaves, map_leaves, put, take, tupled
from steppe.types import Array, BoolArray, Rollout, State, Tree


@final
class Sequences:
    """Draws runs of consecutive rows, each with the recurrent state that its first row was met with.

    A sequence begins at an *anchor*: row 0 of a lane of a fragment, whose state is ``Rollout.state0``, or the
    first row of a trajectory, whose state is zeros. So short fragments give many anchors, which overlap. It
    has ``burn_in`` rows that only bring the state up to the weights of today (Kapturowski et al., 2019), then
    ``length`` rows that are learned from, then ``n_step`` that their targets look at. Where it begins with a
    trajectory its state is known, and the first rows are learned from, too. It may be drawn once all its rows
    are there, or its trajectory has ended, if some row of it is learned from.

    A sequence's index is the place of its anchor; :class:`~steppe.buffers.prioritized.Prioritized` draws
    sequences as it draws rows.

    Args:
        capacity: rows that are held, final ones included; states take memory for anchors alone.
        length: rows of a sequence that are learned from.
        burn_in: rows before them.
        n_step: rewards that are summed, at most.
        gamma: discount of a row.
        framestack: as of :class:`~steppe.buffers.replay.Replay`.

    Attributes:
        capacity: as given.
        rows: of a sequence, all in all.
        came: anchors that the last :meth:`add` made drawable.
        went: those that it made no longer so.

    Raises:
        ConfigError: a number that is below 1, or a burn-in below 0.
    """

    def __init__(
        self,
        capacity: int,
        *,
        length: int,
        burn_in: int = 0,
        n_step: int = 1,
        gamma: float = 0.99,
        framestack: int = 1,
    ) -> None:
        self._about = {"max_seq_len": length, "burn_in": burn_in, "n_step": n_step}
        if min(length, n_step, burn_in + 1) < 1:
            raise ConfigError(f"sequences: {self._about}, but these count rows: give 1 or more, burn_in 0")
        self.capacity, self.rows = capacity, burn_in + length + n_step
        self._burn_in, self._n_step, self._gamma = burn_in, n_step, gamma
        # One whose outcome is so many rows away may be sampled there as soon as a sequence may be here.
        self._replay = Replay(capacity, n_step=self.rows - 1, framestack=framestack)
        self._anchor = np.zeros(capacity, np.bool_)
        self._states: Tree = None
        self._ready = Pool(capacity)
        self.came: Array = self._ready.members
        self.went: Array = self._ready.members

    def __len__(self) -> int:
        """Sequences that may be drawn."""
        return len(self._ready)

    def add(self, rollout: Rollout) -> int:
        """Store a fragment with its states.

        Returns:
            Rows that were not stored before.

        Raises:
            ConfigError: the policy that acted has no state.
        """
        if len(rollout.filled) and not isinstance(rollout.state0, dict):
            raise ConfigError("sequences: these rows come without recurrent states; use Replay for them")
        stored, at = self._replay.add(rollout), self._replay.at
        gone = self._replay.went
        self.went = gone[self._ready.has(gone)]
        self._ready.leave(self.went)
        opening = at[:1].max(axis=0, initial=-1)
        lane = np.flatnonzero(opening >= 0)
        opening = opening[lane]
        if len(at):
            # The rows hold what is stacked; of the rest memory is taken when it is written.
            state0 = {name: part for name, part in rollout.state0.items() if name not in ("frames", "seen")}
            self._states = self._room(state0) if self._states is None else self._states
            put(self._states, opening, take(state0, lane))
        below = at[1:][at[1:] >= 0]
        begun = below[self._replay.first(below)]
        for leaf in [] if self._states is None else leaves(self._states):
            leaf[begun] = 0
        self._anchor[below] = False
        self._anchor[opening] = self._anchor[begun] = True
        came = self._replay.came
        came = came[self._anchor[came]]
        self.came = came[self._replay.first(came) | self._replay.beyond(came, self._burn_in)]
        self._ready.join(self.came)
        return stored

    def _room(self, states: Tree) -> Tree:
        return map_leaves(lambda a: np.zeros((self.capacity, *a.shape[1:]), a.dtype), states)

    def sample(self, rng: np.random.Generator, batches: int, size: int) -> dict[str, Any]:
        """Draw sequences, each as probable as any other, with replacement.

        Returns:
            Columns of ``(batches, size, ...)``: those of :meth:`columns`, and ``weight``, ones.

        Raises:
            ConfigError: none may be drawn yet.
        """
        if not len(self):
            raise ConfigError("sequences: none may be drawn yet. Ask len() first, and collect more steps")
        index = self._ready.members[rng.integers(len(self), size=(batches, size))]
        return {**self.columns(index), "weight": np.ones(index.shape, np.float32)}

    def columns(self, index: Array) -> dict[str, Any]:
        """Drawable sequences.

        Args:
            index: of sequences, of any shape ``(...)``.

        Returns:
            Columns of ``(..., rows, ...)``: ``obs`` and ``action``; ``earned``, the reward that led to a row;
            ``reward``, the discounted sum of up to ``n_step`` that follow, and the ``discount`` of the row
            ``end``, counted in its sequence, that stands for the rest: 0 where that was terminated;
            ``filled``, rows that there are (others repeat the last one); ``learned``, those that are learned
            from; ``fresh``, first rows of trajectories. And of ``(...)``: ``state``, that row 0 was met with,
            and ``index``.
        """
        run = self._replay.runs(index, self.rows)
        filled, final = run["filled"], run.pop("truncated") | run["terminated"]
        place = np.arange(self.rows)
        fresh = self._replay.first(index)[..., None] & (place == 0)
        learned = filled & ~final & (place < self.rows - self._n_step)
        learned &= (place >= self._burn_in) | fresh[..., :1]
        reward, discount, end = self._outcomes(run["reward"], run.pop("terminated"), final, filled)
        return {
            "obs": run["obs"],
            "action": run["action"],
            "earned": run["reward"],
            "reward": reward,
            "discount": discount,
            "end": end,
            "filled": filled,
            "learned": learned,
            "fresh": fresh,
            "state": take(self._states, index),
            "index": index,
        }

    def _outcomes(
        self, earned: Array, terminated: BoolArray, final: BoolArray, filled: BoolArray
    ) -> tuple[Array, Array, Array]:
        """Of each row: up to ``n_step`` rewards, and the discount and place of the row after them."""
        end = np.broadcast_to(np.arange(self.rows, dtype=np.int32), earned.shape)
        reward, discount = np.zeros(earned.shape), np.ones(earned.shape)
        for _ in range(self._n_step):
            below = np.minimum(end + 1, self.rows - 1)
            going = (
                ~np.take_along_axis(final, end, -1) & np.take_along_axis(filled, below, -1) & (below > end)
            )
            reward += np.where(going, discount * np.take_along_axis(earned, below, -1), 0.0)
            discount[going] *= self._gamma
            end = np.where(going, below, end)
        discount *= ~np.take_along_axis(terminated, end, -1)
        return reward.astype(np.float32), discount.astype(np.float32), end

    def get_state(self) -> State:
        """Everything, as views of what is held: store it before the next :meth:`add`."""
        anchors = np.flatnonzero(self._anchor)
        states = None if self._states is None else take(self._states, anchors)
        about = {**self._about, "replay": self._replay.get_state(), "ready": self._ready.members}
        return {**about, "anchors": anchors, "states": states}

    def check(self, state: State) -> None:
        """Judge that :meth:`set_state` may take ``state``.

        Raises:
            CheckpointError: it belongs to sequences of other sizes, or to a replay of another kind.
        """
        if "anchors" not in state:
            raise CheckpointError(
                "the checkpoint's replay has no sequences: go on with the memory that it had"
            )
        for name, value in self._about.items():
            if state[name] != value:
                raise CheckpointError(
                    f"the checkpoint's sequences have {name}={state[name]}, these {name}={value}: "
                    "go on with the value that the run began with"
                )
        self._replay.check(state["replay"])

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`.

        Raises:
            CheckpointError: see :meth:`check`; nothing was changed.
        """
        self.check(state)
        self._replay.set_state(state["replay"])
        self._anchor[:], self._states = False, None
        self._anchor[state["anchors"]] = True
        if state["states"] is not None:
            held = tupled(state["states"])
            self._states = self._room(held)
            put(self._states, state["anchors"], held)
        self._ready.replace(state["ready"])
