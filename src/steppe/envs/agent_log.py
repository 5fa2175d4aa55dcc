"""The actions of many agents, for playing their running episodes again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

from steppe import spaces
from steppe.envs.replay import from_leaves
from steppe.spaces import Spec
from steppe.types import IntArray, SpacePair, State, Tree

BySlot = dict[tuple[int, int], list[tuple[int, Any]]]
"""Slots with their actions, by env and env step."""

AGENT_LOG_LIMIT = 2_000_000
"""Actions that are remembered of envs of many agents."""

_LONG_LOG = 1 << 16  # actions of many agents; then those of episodes that are over are forgotten


class Answers(NamedTuple):
    """A column of actions for the agents in some slots, with the env, episode and env step of each."""

    space: int
    slots: IntArray
    envs: IntArray
    episodes: IntArray
    ts: IntArray
    column: Tree

    def by_slot(self, spec: Spec) -> dict[int, Any]:
        """Values as an env takes them."""
        # Numpy's integers are what Discrete.sample() gives, and what its contains() is fastest with.
        discrete = isinstance(spec, spaces.DiscreteSpec) and self.column.dtype == np.int64
        values = list(self.column) if discrete else spaces.rows(spec, self.column)
        return dict(zip(self.slots.tolist(), values, strict=True))


@final
class AgentLog:
    """The actions of the running episodes of ``n`` envs of many agents."""

    def __init__(self, n: int) -> None:
        self._sent: list[Answers] = []
        self._size, self._prune_at = 0, _LONG_LOG
        self._lost: IntArray = np.full(n, -1)

    def add(self, sent: Answers, numbers: IntArray) -> None:
        """Remember answers; ``numbers``: of the running episodes. The oldest are forgotten at a limit."""
        self._sent.append(sent)
        self._size += len(sent.slots)
        if self._size >= self._prune_at:
            self._keep([one for one in self._sent if (one.episodes == numbers[one.envs]).any()])
            while self._size > AGENT_LOG_LIMIT:
                for one in self._sent[: (len(self._sent) + 1) // 2]:
                    np.maximum.at(self._lost, one.envs, one.episodes)
                self._keep(self._sent[(len(self._sent) + 1) // 2 :])
            self._prune_at = max(_LONG_LOG, min(2 * self._size, AGENT_LOG_LIMIT + 1))

    def _keep(self, sent: list[Answers]) -> None:
        self._sent, self._size = sent, sum(len(one.slots) for one in sent)

    def knows(self, env: int, episode: int) -> bool:
        """Whether nothing of an episode was forgotten."""
        return bool(self._lost[env] < episode)

    def save(self, numbers: IntArray, since: IntArray) -> list[State]:
        """What running episodes were answered from env step ``since[env]`` on, a dict per space pair."""
        saved = []
        for space in sorted({one.space for one in self._sent}):
            sent = [one for one in self._sent if one.space == space]
            slots, envs, episodes, ts = (np.concatenate([one[at] for one in sent]) for at in range(1, 5))
            column = spaces.map_leaves(lambda *leaves: np.concatenate(leaves), *(one.column for one in sent))
            mine = np.flatnonzero((episodes == numbers[envs]) & (ts >= since[envs]))
            rows = {"slots": slots[mine], "envs": envs[mine], "ts": ts[mine]}
            saved.append({"space": space, **rows, "actions": spaces.leaves(spaces.take(column, mine))})
        return saved

    def load(self, saved: Sequence[State], pairs: Sequence[SpacePair], numbers: IntArray) -> BySlot:
        """Remember what :meth:`save` gave; returns it as values that envs take."""
        found: BySlot = {}
        for part in saved:
            spec = pairs[part["space"]].action
            slots, envs, ts = (np.array(part[name]) for name in ("slots", "envs", "ts"))
            column = from_leaves(spec, part["actions"])
            self.add(Answers(part["space"], slots, envs, numbers[envs], ts, column), numbers)
            whose = zip(envs.tolist(), ts.tolist(), slots.tolist(), spaces.rows(spec, column), strict=True)
            for env, t, slot, action in whose:
                found.setdefault((env, t), []).append((slot, action))
        return found
