"""What samples in each of several places, and those places, wherever they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Protocol, final

import numpy as np

from steppe.config import AlgorithmConfig
from steppe.errors import RunnerError
from steppe.runners.beats import Beat
from steppe.runners.local import LocalRunner
from steppe.runners.policies import acting_policies
from steppe.sampling.callbacks import get_callbacks_state, make_callbacks, set_callbacks_state
from steppe.sampling.metrics import Sample
from steppe.types import SpacePair, State, Weights


class LostError(RunnerError):
    """The process of a worker is no more, or does nothing any more."""


class Report(NamedTuple):
    """What a worker tells with its fragments.

    Attributes:
        samples: the fragments.
        executed: env steps that it has taken since it was made.
        health: see ``AsyncEnv.health``.
    """

    samples: Sequence[Sample]
    executed: int
    health: dict[str, int]


@final
class Worker:
    """One of several runners, with callbacks and policies of its own.

    Args:
        config: of the run.
        index: 1 to N. Its seeds are those of place ``index - 1``, so that a run with one worker samples what
            a run in one process does.
        incarnation: how many had this place before; each has seeds of its own.
    """

    def __init__(self, config: AlgorithmConfig, index: int, incarnation: int = 0) -> None:
        if incarnation:
            tree = np.random.SeedSequence([int(config.seed or 0), incarnation])
            config = config.copy(seed=int(tree.generate_state(1)[0]))
        self._config, self._callbacks = config, make_callbacks(config.callbacks_class)
        self.incarnation, self._delivered, self._at = incarnation, 0, 0
        self.runner = LocalRunner(
            config, worker_index=index, seed_runner=index - 1, callbacks=self._callbacks
        )

    def about(self) -> tuple[dict[str, SpacePair], int]:
        """The spaces of each policy, and how many envs there are."""
        return self.runner.spaces, self.runner.env.num_envs

    def start(self, spaces: Mapping[str, SpacePair], how: Mapping[str, Any]) -> None:
        """Make the policies for ``spaces``; the rest is as :meth:`LocalRunner.start` takes it."""
        # Acting functions are compiled where they act: only weights travel.
        self.runner.start(acting_policies(self._config, spaces), **how)

    def sample(self, weights: Mapping[str, Weights] | None) -> Report:
        """The next fragments, with new weights if there are any."""
        if weights is not None:
            self.runner.set_weights(weights)
        self._at = self.runner.env.env_steps
        samples = self.runner.sample()
        self._delivered, self._at = self.executed, self.runner.env.env_steps
        for sample in samples:
            for rollout in sample.rollouts:
                rollout.incarnation = self.incarnation
        return Report(samples, self._delivered, dict(self.runner.health()))

    @property
    def executed(self) -> int:
        """Env steps since it was made; another thread may ask."""
        return self._delivered + self.runner.env.env_steps - self._at

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function`` makes of each env."""
        return self.runner.foreach_env(function)

    def foreach_runner(self, function: Callable[[LocalRunner], Any]) -> list[Any]:
        """What ``function`` makes of the runner."""
        return self.runner.foreach_runner(function)

    def get_state(self) -> State:
        """Of the runner and of its callbacks."""
        own = {"callbacks": get_callbacks_state(self._callbacks), "incarnation": self.incarnation}
        return {**self.runner.get_state(), **own}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly."""
        state = deepcopy(state)  # what came from another process cannot be written to
        set_callbacks_state(self._callbacks, state["callbacks"])
        self.incarnation = int(state.get("incarnation", 0))
        notes = self.runner.set_state(state)
        self._delivered, self._at = self.executed, self.runner.env.env_steps
        return notes

    def close(self) -> None:
        """Close the envs."""
        self.runner.close()


class Hired(Protocol):
    """What is in each place: it is made of a config, its index from 1 on, and its incarnation."""

    @property
    def executed(self) -> int:
        """Env steps since it was made; another thread may ask."""

    def close(self) -> None:
        """Close its envs."""


Hire = Callable[[AlgorithmConfig, int, int], Hired]


class Crew(ABC):
    """What is in the places 0 to N - 1; it is called by the names of its methods.

    Attributes:
        size: how many places there are.
    """

    size: int

    @abstractmethod
    def shared(self, value: Any) -> Any:
        """What stands for ``value`` as an argument of :meth:`send`: it travels once, for all of them."""

    @abstractmethod
    def send(self, place: int, method: str, *arguments: Any) -> Any:
        """Let one of them do something, after what it was asked before; returns a ticket for the answer."""

    @abstractmethod
    def wait(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """Those of the tickets that have an answer, in their order; waits for one, but not for ever."""

    @abstractmethod
    def answer(self, ticket: Any) -> Any:
        """The answer; waits for it.

        Raises:
            LostError: there is none, and will be none.
            Exception: what the worker raised, as it was raised there.
        """

    @abstractmethod
    def progress(self) -> Mapping[int, Beat]:
        """By place what workers have told meanwhile."""

    @abstractmethod
    def stand_by(self, place: int) -> None:
        """The worker of a place may have to be renewed soon; may be called again and again."""

    @abstractmethod
    def renew(self, place: int, incarnation: int) -> None:
        """End the worker of a place, whatever it does, and make another; what it was asked is never answered.

        What the constructor of the new one raises is the answer to whatever it is asked.
        """

    @abstractmethod
    def close(self) -> None:
        """Close their envs, and end what was started for them; may be called twice."""


@final
class HereCrew(Crew):
    """Workers in this process, one after the other: for debuggers."""

    def __init__(self, config: AlgorithmConfig, hire: Hire, size: int) -> None:
        self._config, self._hire, self.size = config, hire, size
        self._workers: list[Hired] = []
        try:
            for index in range(1, self.size + 1):
                self._workers.append(hire(config, index, 0))
        except BaseException:
            self.close()
            raise

    def shared(self, value: Any) -> Any:
        """The value itself."""
        return value

    def send(self, place: int, method: str, *arguments: Any) -> Any:
        """Do it when the answer is asked for: what it raises is raised there."""
        return Here(place, method, arguments)

    def wait(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """The first of them, as if the others were slower."""
        return list(tickets[:1])

    def answer(self, ticket: Any) -> Any:
        """Do it now."""
        return getattr(self._workers[ticket.place], ticket.method)(*ticket.arguments)

    def progress(self) -> Mapping[int, Beat]:
        """Nothing: nobody works meanwhile."""
        return {}

    def stand_by(self, place: int) -> None:
        """Nothing takes long to begin."""

    def renew(self, place: int, incarnation: int) -> None:
        """Make another worker."""
        self._workers[place].close()
        self._workers[place] = self._hire(self._config, place + 1, incarnation)

    def close(self) -> None:
        """Close their envs."""
        while self._workers:
            self._workers.pop().close()


@final
class Here:
    """Something that a worker in this process is yet to do."""

    def __init__(self, place: int, method: str, arguments: tuple[Any, ...]) -> None:
        self.place, self.method, self.arguments = place, method, arguments


def crew_of(config: AlgorithmConfig, hire: Hire, setting: str) -> Crew:
    """Workers in processes of Ray, or here with ``local_mode``; ``setting`` says how many."""
    if config.local_mode:
        return HereCrew(config, hire, getattr(config, setting))
    from steppe.runners.ray import RayCrew

    return RayCrew(config, hire, setting)
