"""Adapters of one env each, side by side: what makes one :class:`~steppe.types.AsyncEnv` of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np

from steppe import spaces
from steppe.envs.guards import check_answers
from steppe.errors import ConfigError, EnvError
from steppe.types import ALONE, AgentID, IntArray, SpacePair, TimeStep, Tree

_PLACE = re.compile(r"(?<=, env )0, episode (\d+)(?=, step )")
_OWN = ("code", "text", "__notes__")
_COLUMNS = ("slot", "t", "obs", "reward", "terminated", "truncated")


@final
class SideBySide:
    """The books of ``n`` adapters, each of one env, which it calls 0 itself.

    Slot ``s`` of env ``i`` is ``s * n + i`` here. A TimeStep holds the rows that await an action, in env
    order, then the final rows, likewise.

    Args:
        num_envs: n.

    Attributes:
        spaces: all space pairs so far.
        agents: known so far, with the index of their pair.
        awaits: by env, the slots that await an action.
        before: by env, its episodes before those that its adapter counts, which may be a successor.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.spaces = tuple[SpacePair, ...]()
        self.agents: Mapping[AgentID, int] = {}
        self._own: list[list[int]] = [[]] * num_envs  # by env, its pairs as they are numbered here
        self.before = [0] * num_envs
        self.forget()

    def forget(self) -> None:
        """Nobody awaits an action."""
        self.awaits: list[set[int]] = [set() for _ in range(self.num_envs)]

    def learn(self, i: int, own_spaces: tuple[SpacePair, ...], own_agents: Mapping[AgentID, int]) -> None:
        """Keep what the adapter of env ``i`` says of itself."""
        self.spaces += tuple(pair for pair in dict.fromkeys(own_spaces) if pair not in self.spaces)
        agents = {agent: self.spaces.index(own_spaces[at]) for agent, at in own_agents.items()}
        self.agents = {**agents, **self.agents}
        self._own[i] = [self.spaces.index(pair) for pair in own_spaces]

    def check_spaces(self, name: str) -> None:
        """Raise ConfigError if the spaces of envs of one agent, called ``name``, differ."""
        if len(self.spaces) > 1 and self.agents == ALONE:
            raise ConfigError(f"{name}: the spaces of its envs differ; the envs of one run must share them")

    def received(self, steps: Mapping[int, Sequence[TimeStep]]) -> list[TimeStep]:
        """What the adapters of some envs polled, as one poll; their rows await an action."""
        whole = self.merged(steps)
        for step in whole:
            self._expect(step.slot[~(step.terminated | step.truncated)])
        return whole

    def restored(self, i: int, pending: Sequence[TimeStep]) -> None:
        """Whose rows these are awaits an action, and nobody else of env ``i``."""
        self.awaits[i] = set()
        for step in pending:
            self._expect(step.slot * self.num_envs + i)

    def _expect(self, slots: IntArray) -> None:
        for slot in slots.tolist():
            self.awaits[slot % self.num_envs].add(slot)

    def merged(self, steps: Mapping[int, Sequence[TimeStep]]) -> list[TimeStep]:
        """One TimeStep per space pair, in slots of this side."""
        by_space: dict[int, list[TimeStep]] = {}
        for i, own in steps.items():
            for step in own:
                by_space.setdefault(self._own[i][step.space], []).append(self._here(i, step))
        return [_joined(parts, space) for space, parts in sorted(by_space.items())]

    def _here(self, i: int, step: TimeStep) -> TimeStep:
        """Rows of env ``i``."""
        n, before = self.num_envs, self.before[i]
        return replace(
            step,
            slot=step.slot * n + i,
            opened=[
                one._replace(slot=one.slot * n + i, env=i, episode=one.episode + before)
                for one in step.opened
            ],
            closed=[one._replace(env=i, episode=one.episode + before) for one in step.closed],
            info={slot * n + i: info for slot, info in step.info.items()},
        )

    def answered(self, slots: IntArray, actions: Tree) -> list[tuple[int, IntArray, Tree]]:
        """A column of actions as envs, their own slots, and copies of their actions.

        Raises:
            ValueError: a slot awaits no action, or the column has another length.
        """
        for leaf in spaces.leaves(actions):
            if leaf.shape[:1] != slots.shape:
                raise ValueError(f"{slots.shape[0]} slots, but an action column of shape {leaf.shape}")
        n, envs = self.num_envs, slots % self.num_envs
        given = zip(envs.tolist(), slots.tolist(), strict=True)
        check_answers(slots, np.array([slot not in self.awaits[i] for i, slot in given], np.bool_))
        parts = []
        for i in np.unique(envs).tolist():
            rows = np.flatnonzero(envs == i)
            self.awaits[i] -= set(slots[rows].tolist())
            parts.append((i, slots[rows] // n, spaces.take(actions, rows)))
        return parts

    def pending(self, steps: Mapping[int, Sequence[TimeStep]]) -> list[TimeStep]:
        """Of the rows that adapters hold, those that await an action."""
        kept = []
        for step in self.merged(steps):
            waits = [slot in self.awaits[slot % self.num_envs] for slot in step.slot.tolist()]
            kept.append(_taken(step, np.flatnonzero(waits)))
        return kept

    def blame(self, i: int, error: BaseException) -> None:
        """Let what the adapter of env ``i`` raised name the env and its episode as they are called here."""
        notes, before = list(getattr(error, "__notes__", ())), self.before[i]
        if isinstance(error, EnvError):
            about = {name: value for name, value in vars(error).items() if name not in _OWN}
            about |= {"env": i, "episode": error.episode + before}
            same = EnvError(error.code, error.text, **about)
            vars(error).update(vars(same))
            error.args = same.args
        error.__notes__ = [
            _PLACE.sub(lambda found: f"{i}, episode {int(found[1]) + before}", note) for note in notes
        ]


def _joined(parts: Sequence[TimeStep], space: int) -> TimeStep:
    """Rows of several envs: those that await an action, then the final ones."""
    columns = {name: [getattr(part, name) for part in parts] for name in _COLUMNS}
    whole = replace(
        parts[0],
        opened=[one for part in parts for one in part.opened],
        closed=[one for part in parts for one in part.closed],
        info={slot: info for part in parts for slot, info in part.info.items()},
        space=space,
        **{name: spaces.map_leaves(_end_to_end, *each) for name, each in columns.items()},
    )
    final = whole.terminated | whole.truncated
    return _taken(whole, np.argsort(final, kind="stable")) if final.any() else whole


def _taken(step: TimeStep, rows: IntArray) -> TimeStep:
    return replace(step, **{name: spaces.take(getattr(step, name), rows) for name in _COLUMNS})


def _end_to_end(*parts: Any) -> Any:
    return np.concatenate(parts)
