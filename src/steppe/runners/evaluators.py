"""Evaluation by several runners, each of which plays a share of the episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, final

from steppe.config import AlgorithmConfig
from steppe.errors import ConfigError
from steppe.runners.evaluation import Evaluator, evaluation_metrics
from steppe.runners.policies import acting_policies
from steppe.runners.workers import LostError, crew_of
from steppe.sampling.metrics import Sample
from steppe.types import SpacePair, State, Weights

_SETTING = "evaluation_num_env_runners"


@final
class EvaluationWorker:
    """Plays a share of each evaluation.

    Args:
        config: of the run.
        index: 1 to N; the first plays with the seeds of the evaluation in one process.
        incarnation: how many had this place before; it plays what they would have played.
    """

    def __init__(self, config: AlgorithmConfig, index: int, incarnation: int) -> None:
        share = shared_out(config.evaluation_duration, getattr(config, _SETTING))[index - 1]
        self._config, self._index = config.copy(evaluation_duration=max(share, 1)), index
        self._evaluator: Evaluator | None = None

    def start(self, spaces: Mapping[str, SpacePair]) -> None:
        """Make the policies for ``spaces``, and the envs."""
        self._evaluator = Evaluator(
            self._config, acting_policies(self._config, spaces), (), index=self._index
        )

    def evaluate(
        self, weights: Mapping[str, Weights], episodes: int | None, explore: bool | None
    ) -> tuple[Sample, dict[str, int]]:
        """Its share of an evaluation, see :meth:`Evaluator.evaluate`, and what was odd about its envs."""
        assert self._evaluator is not None
        return self._evaluator.evaluate(weights, episodes, explore), dict(self._evaluator.runner.health())

    @property
    def executed(self) -> int:
        """Env steps since it was made; another thread may ask."""
        return 0 if self._evaluator is None else self._evaluator.runner.env.env_steps

    def get_state(self) -> State:
        """Of its evaluator."""
        assert self._evaluator is not None
        return self._evaluator.get_state()

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly."""
        assert self._evaluator is not None
        return self._evaluator.set_state(state)

    def close(self) -> None:
        """Close the envs."""
        if self._evaluator is not None:
            self._evaluator.close()


@final
class ManyEvaluators:
    """Evaluation runners, seen as one :class:`Evaluator`; none plays otherwise for what others do.

    A process that dies is replaced, once in an evaluation, and its share is played anew.

    Args:
        config: of the run.
        spaces: of its policies.

    Raises:
        ConfigError: Ray is not installed or has too little to give.
    """

    def __init__(self, config: AlgorithmConfig, spaces: Mapping[str, SpacePair]) -> None:
        self.runner = NoPolicies()
        self._spaces, self._health = dict(spaces), Counter[str]()
        self._timed = config.evaluation_duration_unit == "timesteps"
        self._duration = config.evaluation_duration
        self._crew = crew_of(config, EvaluationWorker, _SETTING)
        try:
            self._ask("start", lambda place: (self._spaces,))
        except BaseException:
            self.close()
            raise

    def _ask(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        places = range(self._crew.size)
        tickets = [self._crew.send(place, method, *arguments(place)) for place in places]
        answers, failed = list[Any](), list[Exception]()
        for place in places:
            try:
                answers.append(self._answer(place, tickets[place], method, arguments))
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]
        return answers

    def _answer(self, place: int, ticket: Any, method: str, arguments: Callable[[int], Any]) -> Any:
        try:
            return self._crew.answer(ticket)
        except LostError:
            self._crew.renew(place, 1)
            self._crew.answer(self._crew.send(place, "start", self._spaces))
            return self._crew.answer(self._crew.send(place, method, *arguments(place)))

    def evaluate(self, weights: Mapping[str, Weights], episodes: int | None, explore: bool | None) -> Sample:
        """Play one evaluation, see :meth:`Evaluator.evaluate`."""
        shared = self._crew.shared(dict(weights))
        counts: list[int | None] = [None] * self._crew.size
        if episodes is not None or not self._timed:
            counts = [*shared_out(self._duration if episodes is None else episodes, self._crew.size)]
        told = self._ask("evaluate", lambda place: (shared, counts[place], explore))
        self._health = Counter[str]()
        for _, health in told:
            self._health.update(health)
        samples = [sample for sample, _ in told]
        return Sample(
            [],
            [episode for sample in samples for episode in sample.episodes],
            sum(sample.env_steps for sample in samples),
            sum(sample.agent_steps for sample in samples),
            sum(sample.reward for sample in samples),
        )

    def metrics(self, sample: Sample) -> dict[str, Any]:
        """The episode keys of a result, over the evaluation that was played."""
        return evaluation_metrics(sample, self._health)

    def get_state(self) -> State:
        """Of each runner."""
        return {"runners": self._ask("get_state", lambda place: ())}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly."""
        states = state.get("runners", [])
        if len(states) != self._crew.size:
            return ["evaluation envs: begin anew, as other runners evaluated before"]
        return [note for notes in self._ask("set_state", lambda place: (states[place],)) for note in notes]

    def close(self) -> None:
        """Close the envs, and end the processes."""
        self._crew.close()


@final
class NoPolicies:
    """Where policies would join and leave: there the next evaluation begins with new processes."""

    def add_policy(self, *args: Any, **how: Any) -> None:
        """Refuse."""
        raise ConfigError("runners that evaluate keep the policies that they were started with")

    remove_policy = add_policy


def shared_out(count: int, runners: int) -> list[int]:
    """``count`` in as many even parts."""
    return [count // runners + (i < count % runners) for i in range(runners)]
