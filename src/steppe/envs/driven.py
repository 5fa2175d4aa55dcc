"""Episodes that are driven from outside: what happened in them as entries, and the rows that those become."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeAlias, final

import numpy as np

from steppe import spaces
from steppe.envs.guards import check_alive, check_answers
from steppe.envs.stories import Kind, Row, Story, joined, packed, restored, unpacked
from steppe.errors import CheckpointError, IdleError
from steppe.types import (
    AgentID,
    Decision,
    EpisodeEnd,
    IntArray,
    Policy,
    SlotInfo,
    SpacePair,
    State,
    TimeStep,
    Tree,
    Weights,
)

logger = logging.getLogger("steppe")

HELD_ROWS = 1000
"""So many of the newest decisions of an open episode can still be credited."""
SIDE_BY_SIDE = 64
"""Episodes that are played back at a time: each takes a lane of every fragment."""
_LOOK = 0.2  # seconds between two looks at the clock, so that waiting can be interrupted
_SAY = 10.0  # seconds after which a wait is said aloud, again and again


class Began(NamedTuple):
    """An episode begins; nothing of it becomes a row without ``training``."""

    episode: str
    training: bool = True


class Acted(NamedTuple):
    """One row of one agent: an observation, and what was chosen for it.

    ``obs``, ``action`` and ``state`` (the recurrent state afterwards, or None) are columns of one row. ``t``
    is the env step within the episode, the same for all that acted together. ``action`` is the policy's own
    sample or, where ``logp`` is NaN, as the env has it.
    """

    episode: str
    agent: AgentID
    policy: str
    t: int
    obs: Tree
    action: Tree
    logp: float
    version: int
    state: Tree = None


class Earned(NamedTuple):
    """A reward, owed to the agent's next row; with ``t``, to the one that follows its row of that step."""

    episode: str
    agent: AgentID
    reward: float
    t: int | None = None
    info: dict[str, Any] | None = None


class Left(NamedTuple):
    """An agent is done: terminated, with its last known observation."""

    episode: str
    agent: AgentID


class Ended(NamedTuple):
    """An episode is over; ``obs`` has the last observations, those of others are the last known ones."""

    episode: str
    truncated: bool
    obs: Mapping[AgentID, Tree]


class Dropped(NamedTuple):
    """An episode is forgotten: what was not handed over yet never will be."""

    episode: str


Entry: TypeAlias = Began | Acted | Earned | Left | Ended | Dropped


class Decider(Protocol):
    """An env that chooses by itself, with the policies of the run: its rows are decided.

    It is told of in ``registry.build(..., decides=)``, begun with once, and given all weights.

    Attributes:
        mapping: the run's ``PolicyMapping``, which tells the policy of a SlotInfo; another one is put here
            when a policy leaves.
    """

    mapping: Any

    def begin(
        self,
        policies: Mapping[str, Policy],
        mapping: Any,
        rng: np.random.Generator,
        *,
        whole: bool,
        evaluation: bool,
    ) -> None:
        """Be ready to act.

        Args:
            policies: by id.
            mapping: see there.
            rng: where noise comes from.
            whole: rows of an episode come when it is over.
            evaluation: nobody learns from them; what was begun with older weights does not count.
        """

    def set_weights(self, weights: Mapping[str, Weights], explore: bool) -> None:
        """Choose with these from now on."""


@final
class DrivenRows:
    """An AsyncEnv whose rows arrive *decided*: others act, and feed it with what happened.

    Rows of an open episode are held back while the decision before them can be credited, that is, while it
    is among the newest ``held_rows`` of its episode. Then they are played back in their order, a row per slot
    and poll, many episodes side by side. Entries are trusted; those of unknown episodes mean nothing.

    Args:
        pairs: of observation and action spaces.
        agents: index of the pair of everyone who is known beforehand; others have the first one.
        num_envs: how many numbers of envs entries come under.
        held_rows: see above.
        idle_timeout: seconds without an entry after which ``poll`` raises IdleError; None: never.
        waiting: what is said every ten seconds in which nothing comes.
        side_by_side: how many episodes are played back at a time.

    Attributes:
        whole: hold all rows of an episode until it is over, and begin with others when none is under way.
        in_order: play the episodes of an env back in the order in which they began; only with ``whole``.
        opened: is told of everyone who gets a slot, with the policy that acted, before the rows are out.
        numbers: how many episodes of each env began.
    """

    steps_together = False

    def __init__(
        self,
        pairs: Sequence[SpacePair],
        agents: Mapping[AgentID, int],
        num_envs: int = 1,
        *,
        held_rows: int = HELD_ROWS,
        idle_timeout: float | None = None,
        waiting: str = "waiting for an episode to end, or to become longer than what can be credited",
        side_by_side: int = SIDE_BY_SIDE,
    ) -> None:
        self.spaces, self.agents, self.num_envs = tuple(pairs), dict(agents), num_envs
        self.env_steps, self.whole, self.in_order = 0, False, False
        self._space_of = dict(agents)
        self.opened: Callable[[SlotInfo, str], None] | None = None
        self._held, self._idle_timeout, self._waiting = held_rows, idle_timeout, waiting
        self._side_by_side = side_by_side
        self._changed = threading.Condition()
        self._takes: dict[Any, Callable[[Story, Any], None]] = {
            Acted: self._acted,
            Earned: self._earned,
            Left: self._leaves,
            Ended: self._ended,
            Dropped: self._dropped,
        }
        self.numbers = [0] * num_envs
        self._open: dict[str, Story] = {}
        self._ready: dict[Story, None] = {}  # have rows to hand over, and wait for their turn
        self._playing: dict[Story, None] = {}
        self._who: dict[int, tuple[SlotInfo, int]] = {}
        self._free, self._left, self._size = list[int](), list[int](), 0
        self._heard, self._closed, self._finished = time.monotonic(), False, False
        self._failure: BaseException | None = None

    def feed(self, env: int, entries: Sequence[Entry]) -> None:
        """Take what happened in some episodes of env ``env``, in its order; any thread may call it."""
        with self._changed:
            for entry in entries:
                if isinstance(entry, Began):
                    if entry.training:
                        self._open[entry.episode] = Story(entry.episode, env, self.numbers[env])
                    self.numbers[env] += 1
                elif (story := self._open.get(entry.episode)) is not None:
                    self._takes[type(entry)](story, entry)
            self._heard = time.monotonic()
            self._changed.notify_all()

    def know(self, agent: AgentID, space: int, pairs: Sequence[SpacePair]) -> None:
        """An agent comes that has the pair ``pairs[space]``; earlier ones stay where they were."""
        self.spaces, self._space_of[agent] = tuple(pairs), space

    def finish(self) -> None:
        """Nobody feeds any more: ``poll`` raises IdleError when there is nothing left."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Let ``poll`` raise ``error``, now and from now on."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    @property
    def backlog(self) -> int:
        """Env steps of episodes that are over, or can be handed over, and were not yet."""
        with self._changed:
            return sum(len(story.groups) for story in (*self._ready, *self._playing))

    def forget(self, *, only_open: bool = False) -> None:
        """Drop whatever is not handed over yet: of all episodes, or of those that are open."""
        with self._changed:
            over = () if only_open else (*self._ready, *self._playing)
            for story in (*over, *self._open.values()):
                self._dropped(story, None)

    def _acted(self, story: Story, entry: Acted) -> None:
        space = self._space_of.get(entry.agent, 0)
        kind = (space, entry.policy, entry.logp != entry.logp, entry.state is None)
        row = Row(entry.agent, entry.t, kind, *entry[4:])
        story.add(row)
        story.newest[entry.agent], story.t = row, entry.t
        if self._to_play(story) and story not in self._playing:
            self._ready[story] = None

    def _earned(self, story: Story, entry: Earned) -> None:
        row = None if entry.t is None else story.behind(entry.agent, entry.t)
        reward, info = story.owed.get(entry.agent, (0.0, None)) if row is None else (row.reward, row.info)
        info = {**(info or {}), **entry.info} if entry.info else info
        if row is None:
            story.owed[entry.agent] = reward + entry.reward, info
        else:
            row.reward, row.info = reward + entry.reward, info

    def _leaves(self, story: Story, entry: Left) -> None:
        if entry.agent in story.newest:
            story.end(entry.agent, True, None)

    def _ended(self, story: Story, entry: Ended) -> None:
        for agent in list(story.newest):
            story.end(agent, not entry.truncated, entry.obs.get(agent))
        self._over(story)

    def _dropped(self, story: Story, entry: Dropped | None) -> None:
        story.groups.clear()
        last = [(agent, row) for agent, row in story.living.items()]
        rows = [Row(agent, story.shown + 1, row.kind, row.obs, end=False) for agent, row in last]
        if story.shown >= 0:
            story.groups.append((story.shown + bool(rows), rows))
        self._over(story)

    def _over(self, story: Story) -> None:
        self._open.pop(story.id, None)
        story.over = True
        if not story.groups:  # nobody ever acted, or nobody will know
            self._ready.pop(story, None)
            self._playing.pop(story, None)
        elif story not in self._playing:
            self._ready[story] = None

    def _to_play(self, story: Story) -> bool:
        """Whether the oldest rows of a story can be handed over."""
        if story.over or not story.groups:
            return bool(story.groups)
        return not self.whole and story.groups[0][0] <= story.t - self._held

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """The next rows of all episodes that have some; waits for them, [] after ``timeout`` seconds.

        Raises:
            IdleError: nobody fed anything for ``idle_timeout`` seconds, or ever will.
            BaseException: what :meth:`fail` was given.
        """
        began = said = time.monotonic()
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                check_alive(self._closed, None)
                self._choose()
                if self._playing:
                    return self._play()
                now = time.monotonic()
                if timeout is not None and now - began >= timeout:
                    return []
                idle = now - max(began, self._heard)
                if self._finished or (self._idle_timeout is not None and idle >= self._idle_timeout):
                    raise IdleError(f"nothing came for {idle:.1f} s")
                if now - max(said, self._heard) >= _SAY:
                    logger.warning(self._waiting)
                    said = now
                self._changed.wait(_LOOK if timeout is None else min(_LOOK, timeout))

    def _choose(self) -> None:
        """Let further stories be played."""
        if self.whole and self._playing:
            return
        waiting: Iterable[Story] = self._ready
        if self.in_order:
            first = {story.env: story.number for story in reversed(self._open.values())}
            waiting = [one for one in waiting if one.number < first.get(one.env, one.number + 1)]
            waiting = sorted(waiting, key=lambda one: one.number)
        for story in list(islice(waiting, self._side_by_side - len(self._playing))):
            del self._ready[story]
            self._playing[story] = None

    def _play(self) -> list[TimeStep]:
        """One group of rows of each story."""
        while self._left:
            heapq.heappush(self._free, self._left.pop())
        parts: dict[Kind, list[Row]] = {}
        opened: dict[Kind, list[SlotInfo]] = {}
        closed: list[EpisodeEnd] = []
        for story in list(self._playing):
            t, rows = story.groups.popleft()
            self.env_steps += t - max(story.shown, 0)
            story.shown = t
            for row in rows:
                if row.agent not in story.living:
                    opened.setdefault(row.kind, []).append(self._seat(story, row))
                else:
                    row.slot = story.living[row.agent].slot
                self._hand_over(story, row)
                parts.setdefault(row.kind, []).append(row)
            if not self._to_play(story):
                del self._playing[story]
                closed += [EpisodeEnd(story.env, story.number, t)] if story.over else []
        steps = [self._column(kind[0], rows, opened.get(kind, ())) for kind, rows in parts.items()]
        if not steps:  # all had left before their episode was dropped
            steps = [self._column(0, [], ())]
        steps[-1].closed = closed
        return steps

    def _seat(self, story: Story, row: Row) -> SlotInfo:
        """Somebody is handed over for the first time."""
        if not self._free:
            self._free.append(self._size)
            self._size += 1
        row.slot = heapq.heappop(self._free)
        info = SlotInfo(row.slot, story.env, row.agent, story.number, 0)
        self._who[row.slot] = info, row.kind[0]
        if self.opened is not None:
            self.opened(info, row.kind[1])
        return info

    def _hand_over(self, story: Story, row: Row) -> None:
        story.after.pop((row.agent, row.before), None)
        if row.end is None:
            story.living[row.agent] = row
        else:
            del self._who[row.slot]
            del story.living[row.agent]
            self._left.append(row.slot)

    def _column(self, space: int, rows: list[Row], opened: Sequence[SlotInfo]) -> TimeStep:
        acted = [row for row in rows if row.end is None]
        step = TimeStep(
            np.array([row.slot for row in rows], np.int64),
            np.array([row.t for row in rows], np.int64),
            joined([row.obs for row in rows]) if rows else spaces.zeros(self.spaces[space].observation, 0),
            np.array([row.reward for row in rows], np.float64),
            np.array([row.end is True for row in rows], np.bool_),
            np.array([row.end is False for row in rows], np.bool_),
            opened,
            info={row.slot: row.info for row in rows if row.info},
            space=space,
        )
        if acted:
            step.decided = ~(step.terminated | step.truncated)
            step.decision = Decision(
                joined([row.action for row in acted]),
                np.array([row.logp for row in acted], np.float32),
                None if acted[0].state is None else joined([row.state for row in acted]),
                np.array([row.version for row in acted], np.int64),
            )
        return step

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """No row awaits an action.

        Raises:
            ValueError: there are some all the same.
        """
        check_answers(slots, np.ones(len(slots), np.bool_))

    def pending(self) -> Sequence[TimeStep]:
        """No rows; ``opened`` has all who have a slot."""
        found: dict[int, list[SlotInfo]] = {}
        for _, (info, space) in sorted(self._who.items()):
            found.setdefault(space, []).append(info)
        return [self._column(space, [], infos) for space, infos in sorted(found.items())]

    def health(self) -> Mapping[str, int]:
        """Nothing: entries were judged before."""
        return {}

    def get_sub_environments(self) -> list[Any]:
        """There are none here."""
        return []

    def get_state(self) -> State:
        """All that was not handed over, but for infos."""
        with self._changed:
            stories = [*self._open.values(), *self._ready, *self._playing]
            unique = list(dict.fromkeys(stories))
            rows: dict[int, Row] = {}
            saved = []
            for story in unique:
                kept = [row for _, group in story.groups for row in group]
                rows |= {id(row): row for row in (*kept, *story.newest.values(), *story.living.values())}
            place = {key: at for at, key in enumerate(rows)}
            for story in unique:
                told = {name: getattr(story, name) for name in ("id", "env", "number", "t", "over", "shown")}
                told["groups"] = [[t, [place[id(row)] for row in group]] for t, group in story.groups]
                for name in ("newest", "living"):
                    told[name] = [[agent, place[id(row)]] for agent, row in getattr(story, name).items()]
                told["owed"] = [[agent, reward] for agent, (reward, _) in story.owed.items()]
                told["plays"] = story in self._playing
                saved.append(told)
            return {
                "env_steps": self.env_steps,
                "numbers": list(self.numbers),
                "stories": saved,
                "rows": list(packed(list(rows.values()))),
            }

    def set_state(self, state: State) -> list[str]:
        """Go on exactly from :meth:`get_state`; what came meanwhile is forgotten.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        if len(state["numbers"]) != self.num_envs:
            raise CheckpointError(f"the state is of {len(state['numbers'])} envs, here are {self.num_envs}")
        with self._changed:
            rows = unpacked(state["rows"])
            self.env_steps, self.numbers = int(state["env_steps"]), [int(n) for n in state["numbers"]]
            self._open, self._ready, self._playing, self._who = {}, {}, {}, {}
            for told in state["stories"]:
                story = restored(told, rows)
                if not story.over:
                    self._open[story.id] = story
                if told["plays"] or self._to_play(story):
                    (self._playing if told["plays"] else self._ready)[story] = None
                for agent, row in story.living.items():
                    info = SlotInfo(row.slot, story.env, agent, story.number, 0)
                    self._who[row.slot] = info, row.kind[0]
            self._size = max(self._who, default=-1) + 1
            self._free, self._left = [slot for slot in range(self._size) if slot not in self._who], []
            self._failure = None
        return []

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
