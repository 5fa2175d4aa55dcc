"""A scripted AsyncEnv: tests say row by row what it yields and read back what it was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from steppe import spaces
from steppe.types import (
    SINGLE_AGENT,
    BoolArray,
    Decision,
    EpisodeEnd,
    IntArray,
    SlotInfo,
    SpacePair,
    State,
    TimeStep,
    Tree,
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
    belongs to a reset), unless ``steps`` gives the number for each poll.
    """

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

    @property
    def exhausted(self) -> bool:
        """Whether the whole script was played."""
        return self._at >= len(self._script)

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
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
        return [self._timestep(space, group) for space, group in groups.items()]

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        asked = [int(slot) for slot in slots]
        assert len(set(asked)) == len(asked), f"slots answered twice in one send: {asked}"
        assert set(asked) <= self._awaiting, f"{asked} answered, but only {self._awaiting} await an action"
        self._awaiting -= set(asked)
        copy = spaces.map_leaves(np.array, actions)
        self.sent.append((np.array(slots), copy))
        if isinstance(copy, np.ndarray):
            self.answers[-1].update(zip(asked, copy.tolist(), strict=True))

    def pending(self) -> Sequence[TimeStep]:
        rows = [self._live[slot] for slot in sorted(self._awaiting)]
        return [
            self._columns(space, [row for row in rows if row.space == space], everything_opens=True)
            for space in sorted({row.space for row in rows})
        ]

    def health(self) -> Mapping[str, int]:
        return self.counts

    def get_state(self) -> State:
        return {"at": self._at, "env_steps": self.env_steps}

    def set_state(self, state: State) -> list[str]:
        self._at, self.env_steps = 0, 0
        while self._at < state["at"]:
            self.poll()
        self.answers, self.env_steps = [{}], state["env_steps"]
        return []

    def close(self) -> None:
        self.closed += 1

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
