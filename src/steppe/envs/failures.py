"""The books of envs that may fail, and are then made anew: seeds, counts, and when it is enough."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import final

import numpy as np

from steppe import spaces
from steppe.errors import EnvError
from steppe.types import EpisodeEnd, SpacePair, State, TimeStep

logger = logging.getLogger("steppe")

_MOST_ALIKE = 3
"""Failures of one kind, in a row without a step between, that show that it will never go well."""
_MOST_FRUITLESS = 10
"""The same, of whatever kinds."""
_SEEDS = 1 << 16
"""Of one runner."""


@dataclass(slots=True)
class Past:
    """What is known of one env, whose adapters come and go.

    Attributes:
        episode: number of the running one.
        begun: env steps of its adapter when that began.
        steps: env steps of its adapter.
        restarts: how often it was made anew.
        what: how it failed last.
        alike: failures of that kind, in a row without a step between.
        fruitless: of any kind.
    """

    episode: int = 0
    begun: int = 0
    steps: int = 0
    restarts: int = 0
    what: str = ""
    alike: int = 0
    fruitless: int = 0


@final
class Failures:
    """The books of ``n`` envs, of which one that fails is made anew, with a seed that was never used.

    Args:
        seed: by number; the first n are for the envs as they are built first.
        num_envs: n.
        most_restarts: of one env; None: any number.

    Attributes:
        past: by env.
        counts: of failures, by what was raised: ``{"E503 OSError": 2}``.
    """

    def __init__(self, seed: Callable[[int], int], num_envs: int, most_restarts: int | None) -> None:
        self._seed, self._num_envs, self._most = seed, num_envs, most_restarts
        self.forget()

    def forget(self) -> None:
        """Nothing has happened."""
        self.past, self._renewed = [Past() for _ in range(self._num_envs)], 0
        self.counts: Counter[str] = Counter()

    def count(self, i: int, env_steps: int) -> int:
        """Take over the steps of an adapter; returns those since the last time."""
        past = self.past[i]
        taken, past.steps = env_steps - past.steps, env_steps
        return taken

    def told(self, i: int, taken: int, steps: Sequence[TimeStep], before: int) -> None:
        """Env ``i`` has stepped so often, and told this; its adapter counts episodes after ``before``."""
        past = self.past[i]
        if taken:
            past.alike = past.fruitless = 0
        for step in steps:
            for end in step.closed:
                past.episode, past.begun = end.episode + 1 + before, past.steps

    def lost(self, i: int) -> EpisodeEnd:
        """The running episode of env ``i``, which will not come to its end."""
        past = self.past[i]
        return EpisodeEnd(i, past.episode, past.steps - past.begun)

    def renew(self, i: int, error: Exception) -> int:
        """Begin another episode, with a new adapter; returns its seed.

        Raises:
            Exception: the error, if the env is not to be made anew; a note says why.
        """
        past = self.past[i]
        self._judge(past, error)
        seed = self._seed(self._num_envs + self._renewed)
        self._renewed += 1
        past.restarts += 1
        self._say(past, error, seed)
        self.begin_anew(i)
        return seed

    def begin_anew(self, i: int) -> int:
        """Env ``i`` has a new adapter; returns its episodes before."""
        past = self.past[i]
        past.episode, past.begun, past.steps = past.episode + 1, 0, 0
        return past.episode

    def _judge(self, past: Past, error: Exception) -> None:
        """Raise an error after which no env is made anew, with a note that says why."""
        what = _kind(error)
        past.alike = past.alike + 1 if what == past.what else 1
        past.what, past.fruitless = what, past.fruitless + 1
        if past.alike >= _MOST_ALIKE or past.fruitless >= _MOST_FRUITLESS:
            times, same = (
                (past.alike, " in the same way") if past.alike >= _MOST_ALIKE else (past.fruitless, "")
            )
            why = f"it failed {times} times{same} without a step between"
        elif self._most is not None and past.restarts >= self._most:
            why = f"max_env_restarts is {self._most}, and it was restarted {past.restarts} times"
        elif self._num_envs + self._renewed >= _SEEDS:
            why = f"the runner has used all of its {_SEEDS} seeds"
        else:
            return
        error.add_note(f"steppe: on_env_error='restart', but the env is not restarted again: {why}")
        raise error

    def _say(self, past: Past, error: Exception, seed: int) -> None:
        """Say and count that an env failed."""
        text = str(error) if isinstance(error, EnvError) else f"{type(error).__name__}: {error}"
        notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("steppe: ")]
        logger.warning(
            "E503 an env failed, and another takes its place, with seed %d (restart %d): %s",
            *(seed, past.restarts, "\n  ".join([text, *notes])),
        )
        logger.debug("E503 where it failed", exc_info=error)
        self.counts[f"E503 {type(error).__name__}"] += 1

    def state(self) -> State:
        """What a run needs to make the same envs anew, with the same seeds."""
        past = [asdict(past) for past in self.past]
        return {"past": past, "renewed": self._renewed, "failed": dict(self.counts)}

    def adopt(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self.past = [Past(**past) for past in state["past"]]
        self._renewed, self.counts = int(state["renewed"]), Counter(state["failed"])


def _kind(error: Exception) -> str:
    """What makes two failures the same: type, message, and place in the code."""
    text = f"{error.code} {error.text}" if isinstance(error, EnvError) else str(error)
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    return " ".join([type(error).__name__, text, *(f"{frame.name}:{frame.lineno}" for frame in frames)])


def with_lost(
    steps: list[TimeStep], lost: Sequence[EpisodeEnd], pairs: tuple[SpacePair, ...]
) -> list[TimeStep]:
    """A poll in which some episodes are lost, also if nothing else is told."""
    if lost:
        steps = steps or [_nobody(pairs)]
        steps[0].lost = lost
    return steps


def _nobody(pairs: tuple[SpacePair, ...]) -> TimeStep:
    """No rows."""
    none = np.zeros(0, np.bool_)
    obs = spaces.zeros(pairs[0].observation, 0) if pairs else None
    return TimeStep(np.zeros(0, np.int64), np.zeros(0, np.int64), obs, np.zeros(0), none, none)
