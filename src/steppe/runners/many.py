"""Several runners that sample side by side, seen as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, final

from steppe.config import AlgorithmConfig
from steppe.errors import ConfigError
from steppe.runners.local import LocalRunner
from steppe.runners.policies import made_policies
from steppe.sampling.callbacks import get_callbacks_state, make_callbacks, set_callbacks_state
from steppe.sampling.metrics import Sample
from steppe.sampling.sampler import CUT_SHORT
from steppe.types import Policy, SpacePair, State, Weights


@final
class Worker:
    """One of several runners, with callbacks and policies of its own.

    Args:
        config: of the run.
        index: 1 to N. Its seeds are those of place ``index - 1``, so that a run with one worker samples what
            a run in one process does.
    """

    def __init__(self, config: AlgorithmConfig, index: int) -> None:
        self._config, self._callbacks = config, make_callbacks(config.callbacks_class)
        self.runner = LocalRunner(
            config, worker_index=index, seed_runner=index - 1, callbacks=self._callbacks
        )

    def about(self) -> tuple[dict[str, SpacePair], int]:
        """The spaces of each policy, and how many envs there are."""
        return self.runner.spaces, self.runner.env.num_envs

    def start(self, spaces: Mapping[str, SpacePair], how: Mapping[str, Any]) -> None:
        """Make the policies for ``spaces``; the rest is as :meth:`LocalRunner.start` takes it."""
        # Acting functions are compiled where they act: only weights travel.
        learners, scripted = made_policies(self._config, spaces)
        policies = {id: learners[id].policy if id in learners else scripted[id] for id in spaces}
        self.runner.start(policies, **how)

    def set_weights(self, weights: Mapping[str, Weights]) -> None:
        """Act with these from now on."""
        self.runner.set_weights(weights)

    def sample(self) -> Sequence[Sample]:
        """The next fragments."""
        return self.runner.sample()

    def health(self) -> dict[str, int]:
        """Counts of what was odd about the envs."""
        return dict(self.runner.health())

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function`` makes of each env."""
        return self.runner.foreach_env(function)

    def foreach_runner(self, function: Callable[[LocalRunner], Any]) -> list[Any]:
        """What ``function`` makes of the runner."""
        return self.runner.foreach_runner(function)

    def get_state(self) -> State:
        """Of the runner and of its callbacks."""
        return {**self.runner.get_state(), "callbacks": get_callbacks_state(self._callbacks)}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly."""
        state = deepcopy(state)  # what came from another process cannot be written to
        set_callbacks_state(self._callbacks, state["callbacks"])
        return self.runner.set_state(state)

    def close(self) -> None:
        """Close the envs."""
        self.runner.close()


class Crew(ABC):
    """Some workers, wherever they are; they are called by the names of :class:`Worker`'s methods."""

    @abstractmethod
    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What each of them answers, in their order.

        Raises:
            Exception: what the first of them raised, as it was raised there.
        """

    @abstractmethod
    def ask_each(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """The same, with one argument for each."""

    @abstractmethod
    def tell(self, method: str, *arguments: Any) -> None:
        """Let each of them do something; what goes wrong is raised by the next question at the latest."""

    @abstractmethod
    def close(self) -> None:
        """Close their envs, and end what was started for them; may be called twice."""


@final
class HereCrew(Crew):
    """Workers in this process, one after the other: for debuggers."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self._workers: list[Worker] = []
        try:
            for index in range(1, config.num_env_runners + 1):
                self._workers.append(Worker(config, index))
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What each of them answers, in their order."""
        return [getattr(worker, method)(*arguments) for worker in self._workers]

    def ask_each(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """The same, with one argument for each."""
        pairs = zip(self._workers, arguments, strict=True)
        return [getattr(worker, method)(argument) for worker, argument in pairs]

    def tell(self, method: str, *arguments: Any) -> None:
        """Let each of them do something."""
        self.ask(method, *arguments)

    def close(self) -> None:
        """Close their envs."""
        while self._workers:
            self._workers.pop().close()


class Envs(NamedTuple):
    """The envs of all workers: how many there are."""

    num_envs: int


@final
class ManyRunners:
    """The workers of a run; what they sample comes in their order, so that a run can be repeated.

    Args:
        config: of the run; its ``num_env_runners`` is above 0.

    Attributes:
        spaces: of each policy, by id, as the first worker's envs say them.
        env: what is known here of their envs.

    Raises:
        ConfigError: Ray is not installed or has too little to give, or a setting needs the envs here.
    """

    def __init__(self, config: AlgorithmConfig) -> None:
        if config.evaluation_envs == "shared":
            raise ConfigError(
                "evaluation_envs='shared': the training envs are with the runners, and evaluation is in this "
                f"process; use 'separate', or {config.spelling('num_env_runners')}=0"
            )
        self._crew = _crew(config)
        self._share = 1 if config.local_mode else config.num_env_runners  # of the wall clock's seconds
        self._cut_short = False
        try:
            about = self._crew.ask("about")
        except BaseException:
            self._crew.close()
            raise
        self.spaces: dict[str, SpacePair] = about[0][0]
        self.env = Envs(sum(envs for _, envs in about))
        self._policies: Mapping[str, Policy] = {}
        self._weights: dict[str, Weights] = {}
        self._loaded: dict[str, Any] = {}

    def start(self, policies: Mapping[str, Policy], **how: Any) -> None:
        """Make the samplers; the arguments are those of :meth:`LocalRunner.start`."""
        self._policies = policies
        self._crew.ask("start", self.spaces, how)

    def set_weights(self, weights: Mapping[str, Weights]) -> None:
        """Let all act with these from now on."""
        self._weights, self._loaded = dict(weights), {}
        self._crew.tell("set_weights", self._weights)

    def weights_of(self, policy: str) -> Any:
        """What ``policy`` acts with now, as its ``load`` makes it."""
        if policy not in self._loaded and policy in self._weights:
            self._loaded[policy] = self._policies[policy].load(self._weights[policy])
        return self._loaded.get(policy)

    def sample(self) -> list[Sample]:
        """The next fragments, one of each worker.

        Raises:
            RuntimeError: an earlier call did not come to its end; only :meth:`set_state` repairs that.
        """
        self._check_whole()
        self._cut_short = True  # until all of them are here
        samples: list[Sample] = [sample for own in self._crew.ask("sample") for sample in own]
        self._cut_short = False
        for sample in samples:
            # What lies in Ray's memory cannot be written to, and stays there as long as it is held.
            sample.rollouts = deepcopy(sample.rollouts)
            sample.env_time /= self._share
            sample.inference_time /= self._share
        return samples

    def _check_whole(self) -> None:
        if self._cut_short:
            raise RuntimeError(CUT_SHORT)

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd about the envs, over all of them."""
        total: Counter[str] = Counter()
        for own in self._crew.ask("health"):
            total.update(own)
        return total

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function``, which goes to where the envs are, makes of each env."""
        return [made for own in self._crew.ask("foreach_env", function) for made in own]

    def foreach_runner(self, function: Callable[[LocalRunner], Any]) -> list[Any]:
        """What ``function`` makes of each runner, there."""
        return [made for own in self._crew.ask("foreach_runner", function) for made in own]

    def get_state(self) -> State:
        """Of each worker."""
        self._check_whole()
        return {"workers": self._crew.ask("get_state")}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly, and whose that is."""
        told = self._crew.ask_each("set_state", state["workers"])
        self._cut_short = False
        return [f"runner {i}: {note}" for i, notes in enumerate(told, start=1) for note in notes]

    def close(self) -> None:
        """Close the envs, and end the processes."""
        self._crew.close()


def _crew(config: AlgorithmConfig) -> Crew:
    if config.local_mode:
        return HereCrew(config)
    from steppe.runners.ray import RayCrew

    return RayCrew(config)
