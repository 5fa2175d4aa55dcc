"""A scripted AsyncEnv: tests say row by row what it yields and read back what it was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np

from steppe import spaces
from steppe.types import (
    SINGLE_AGENT,
    BoolArray,
    Decision,
    EpisodeEnd,
    FloatArray,
    IntArray,
    SlotInfo,
    SpacePair,
    State,
    TimeStep,
    Tree,
    Weights,
)


@dataclass
class Row:
    """One row of the script; ``decision`` marks it as decided elsewhere.

    The first row of a slot opens it; a terminated or truncated one closes it. ``ends_episode`` (default:
    every final row) reports the env's episode as over.
    """

    slot: int
    t: int = 0
    obs: Any = 0.0
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    env: int = 0
    agent: str = SINGLE_AGENT
    episode: int = 0
    seed: int = 0
    space: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    decision: Decision | None = None
    ends_episode: bool = True

    @property
    def final(self) -> bool:
        return self.terminated or self.truncated


def default_spaces() -> tuple[SpacePair, ...]:
    """One pair: ``Box(-inf, inf, ())`` float32 observations, ``Discrete(4)`` actions."""
    box = gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32)
    return (SpacePair(spaces.spec_of(box), spaces.spec_of(gymnasium.spaces.Discrete(4))),)


class ScriptedEnv:
    """Plays a script: one list of rows a poll, whatever was sent; then nothing.

    It refuses what no sampler may do: answering a slot that awaits no action, or one twice. ``sent`` holds
    ``(slots, actions)`` of every send, ``answers`` the same as ``{slot: action}`` per poll for Discrete
    actions. ``env_steps`` counts, per poll, the distinct envs that have a row with ``t > 0`` (a row at t = 0
    belongs to a reset), unless ``steps`` gives the number for each poll. Columns turn to garbage as early as
    the contract allows: the rows of answered slots at once, all others at the next poll.
    """

    steps_together = False
    agents: ClassVar = {SINGLE_AGENT: 0}

    def __init__(
        self,
        script: Sequence[Sequence[Row]],
        *,
        pairs: tuple[SpacePair, ...] | None = None,
        num_envs: int = 1,
        steps: Sequence[int] | None = None,
    ) -> None:
        self.spaces = pairs if pairs is not None else default_spaces()
        self.num_envs, self.env_steps = num_envs, 0
        self.sent: list[tuple[IntArray, Tree]] = []
        self.answers: list[dict[int, Any]] = []
        self.closed = 0
        self.counts: dict[str, int] = {}
        self._script, self._steps = script, steps
        self._at = 0
        self._live: dict[int, Row] = {}
        self._awaiting: set[int] = set()
        self._lent: list[TimeStep] = []

    @property
    def awaiting(self) -> set[int]:
        """The slots that were not answered yet."""
        return set(self._awaiting)

    @property
    def exhausted(self) -> bool:
        """Whether the whole script was played."""
        return self._at >= len(self._script)

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        self._spoil()
        if self.exhausted:
            return []
        rows = self._script[self._at]
        stepped = len({row.env for row in rows if row.t > 0})
        self.env_steps += stepped if self._steps is None else self._steps[self._at]
        self._at += 1
        self.answers.append({})
        groups: dict[int, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.space, []).append(row)
        self._lent = [self._timestep(space, group) for space, group in groups.items()]
        return list(self._lent)

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        asked = [int(slot) for slot in slots]
        assert len(set(asked)) == len(asked), f"slots answered twice in one send: {asked}"
        assert set(asked) <= self._awaiting, f"{asked} answered, but only {self._awaiting} await an action"
        self._awaiting -= set(asked)
        copy = spaces.map_leaves(np.array, actions)
        self._spoil(asked)
        self.sent.append((np.array(slots), copy))
        if isinstance(copy, np.ndarray):
            self.answers[-1].update(zip(asked, copy.tolist(), strict=True))

    def pending(self) -> Sequence[TimeStep]:
        rows = [self._live[slot] for slot in sorted(self._awaiting)]
        self._lent = [
            self._columns(space, [row for row in rows if row.space == space], everything_opens=True)
            for space in sorted({row.space for row in rows})
        ]
        return list(self._lent)

    def health(self) -> Mapping[str, int]:
        return self.counts

    def get_sub_environments(self) -> list[Any]:
        return []

    def get_state(self) -> State:
        return {"at": self._at, "env_steps": self.env_steps, "awaiting": sorted(self._awaiting)}

    def set_state(self, state: State) -> list[str]:
        self._at, self.env_steps, self._live = 0, 0, {}
        while self._at < state["at"]:
            self.poll()
        self.answers, self.env_steps, self._awaiting = [{}], state["env_steps"], set(state["awaiting"])
        return []

    def close(self) -> None:
        self.closed += 1

    def _spoil(self, slots: Sequence[int] | None = None) -> None:
        for step in self._lent:
            index = np.flatnonzero(np.isin(step.slot, step.slot if slots is None else slots))
            for leaf in [*spaces.leaves(step.obs), step.reward, step.t]:
                leaf[index] = 77
            if slots is None:
                step.slot[:] = 0
                step.terminated[:] = step.truncated[:] = True

    def _timestep(self, space: int, rows: list[Row]) -> TimeStep:
        step = self._columns(space, rows, everything_opens=False)
        for row in rows:
            if row.final:
                self._live.pop(row.slot, None)
                self._awaiting.discard(row.slot)
            else:
                self._live[row.slot] = row
                if row.decision is None:
                    self._awaiting.add(row.slot)
        return step

    def _columns(self, space: int, rows: list[Row], *, everything_opens: bool) -> TimeStep:
        def flags(values: list[bool]) -> BoolArray:
            return np.array(values, dtype=np.bool_)

        decisions = [row.decision for row in rows if row.decision is not None]
        decided = [row.decision is not None for row in rows]
        return TimeStep(
            slot=np.array([row.slot for row in rows], dtype=np.int64),
            t=np.array([row.t for row in rows], dtype=np.int64),
            obs=spaces.collect(self.spaces[space].observation, [row.obs for row in rows], lambda *_: None),
            reward=np.array([row.reward for row in rows], dtype=np.float64),
            terminated=flags([row.terminated for row in rows]),
            truncated=flags([row.truncated for row in rows]),
            opened=[
                SlotInfo(row.slot, row.env, row.agent, row.episode, row.seed)
                for row in rows
                if everything_opens or row.slot not in self._live
            ],
            closed=[
                EpisodeEnd(row.env, row.episode, row.t) for row in rows if row.final and row.ends_episode
            ],
            info={row.slot: row.info for row in rows if row.info},
            space=space,
            decided=flags(decided) if any(decided) else None,
            decision=_joined(decisions),
        )


class LockStepEnv:
    """Plays one script per env; an env goes on once all its awaited slots were answered.

    ``tracks[i]`` lists what env ``i`` yields, poll by poll. ``played`` is what came out, as one script.
    """

    steps_together = False
    agents: ClassVar = {SINGLE_AGENT: 0}

    def __init__(
        self, tracks: Sequence[Sequence[Sequence[Row]]], *, pairs: tuple[SpacePair, ...] | None = None
    ) -> None:
        self.played: list[list[Row]] = []
        self._tracks, self._at = tracks, [0] * len(tracks)
        self._script = ScriptedEnv(self.played, pairs=pairs, num_envs=len(tracks))
        self._env_of: dict[int, int] = {}
        self._turns: list[list[int]] = []
        self.spaces, self.num_envs = self._script.spaces, len(tracks)

    @property
    def env_steps(self) -> int:
        return self._script.env_steps

    @property
    def answers(self) -> list[dict[int, Any]]:
        return self._script.answers

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        busy = {self._env_of[slot] for slot in self._script.awaiting}
        turn = [i for i, track in enumerate(self._tracks) if i not in busy and self._at[i] < len(track)]
        assert turn, "polled although nothing can come any more"
        self._play(turn)
        return self._script.poll()

    def _play(self, turn: list[int]) -> None:
        rows = [row for env in turn for row in self._tracks[env][self._at[env]]]
        for env in turn:
            self._at[env] += 1
        self._turns.append(turn)
        self._env_of.update({row.slot: row.env for row in rows})
        self.played.append(rows)

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        self._script.send_actions(slots, actions)

    def pending(self) -> Sequence[TimeStep]:
        return self._script.pending()

    def health(self) -> Mapping[str, int]:
        return {}

    def get_sub_environments(self) -> list[Any]:
        return []

    def get_state(self) -> State:
        return {"turns": [list(turn) for turn in self._turns], "script": self._script.get_state()}

    def set_state(self, state: State) -> list[str]:
        self.played.clear()
        self._turns, self._at = [], [0] * len(self._tracks)
        for turn in state["turns"]:
            self._play(turn)
        return self._script.set_state(state["script"])

    def close(self) -> None:
        self._script.close()


@dataclass
class CountingPolicy:
    """Chooses from its noise, and counts: the recurrent state of a trajectory is 1 plus its rows so far.

    Its own samples are Discrete ``0 .. 3``, to the env ``1 .. 4``; or a Box of two numbers, twice as large to
    the env. ``logp`` is minus the row's number, which is how tests tell rows apart (:func:`row_number`).
    ``calls`` holds, for every row acted on, ``(number, version, count, noise)``.
    """

    pair: SpacePair
    recurrent: bool = False
    noise_size: int = 2
    draws: bool = False
    calls: list[tuple[int, int, int, tuple[float, ...] | None]] = field(default_factory=list)

    @property
    def observation(self) -> spaces.Spec:
        return self.pair.observation

    @property
    def action(self) -> spaces.Spec:
        return self.pair.action

    def load(self, weights: Weights) -> int:
        return weights.version

    def act(self, weights: int, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        numbers = row_number(obs)
        n = len(numbers)
        assert n > 0, "asked about no rows"
        counts = np.zeros(n, np.int64) if state is None else state["count"]
        drawn = [None] * n if noise is None else [tuple(row) for row in noise.tolist()]
        self.calls += zip(numbers.tolist(), [weights] * n, counts.tolist(), drawn, strict=True)
        draws = np.zeros((n, 2), np.float32) if noise is None else noise[:, :2]
        action = draws if isinstance(self.action, spaces.BoxSpec) else (draws[:, 0] * 4).astype(np.int64)
        return Decision(
            action, -numbers.astype(np.float32), {"count": counts + 1} if self.recurrent else None
        )

    def to_env(self, action: Tree) -> Tree:
        return action * 2 if isinstance(self.action, spaces.BoxSpec) else action + 1

    def initial_state(self, n: int) -> Tree:
        return {"count": np.ones(n, np.int64)} if self.recurrent else None


def row_number(obs: Tree) -> IntArray:
    """The number of each row: the observation, or its leaf ``"n"``."""
    column: IntArray = np.asarray(obs["n"] if isinstance(obs, dict) else obs).astype(np.int64)
    return column


def _joined(decisions: list[Decision]) -> Decision | None:
    """Single-row decisions as one."""
    if not decisions:
        return None

    def join(*leaves: Any) -> Any:
        return np.concatenate(leaves)

    first, *rest = decisions
    state = None
    if first.state is not None:
        state = spaces.map_leaves(join, first.state, *[d.state for d in rest])
    return Decision(
        spaces.map_leaves(join, first.action, *[d.action for d in rest]),
        np.concatenate([d.logp for d in decisions]),
        state,
    )
