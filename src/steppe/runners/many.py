"""Several runners that sample side by side, seen as one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from time import monotonic
from typing import Any, NamedTuple, final

import numpy as np

from steppe.config import AlgorithmConfig
from steppe.errors import ConfigError
from steppe.runners.beats import often
from steppe.runners.local import LocalRunner
from steppe.runners.workers import LostError, Report, Worker, crew_of
from steppe.sampling.metrics import Sample, Standing
from steppe.sampling.sampler import CUT_SHORT
from steppe.types import Policy, SpacePair, State, Weights

logger = logging.getLogger("steppe")

_SLOW_S = 60.0
"""Without a limit of its own, so long a wait is said aloud."""
_RENEWED_S = 10.0
"""How long it may take a worker to make a remote env anew."""
_MOST_FRUITLESS = 3
"""Processes in a row, of one place, that may end before they have taken a step."""


class Envs(NamedTuple):
    """The envs of all workers: how many there are."""

    num_envs: int


@final
class _Place:
    """What is known of the worker of one place.

    Attributes:
        incarnation: how many had this place before.
        earlier: the same of the run that this one goes on from; none has the seeds of another.
        fruitless: those before it, in a row, that ended before they took a step.
        up: it can be asked to sample.
        told: it has, or was sent, the newest weights.
        asked: fragments that it was asked for, and that were not handed on yet.
        executed: env steps that it is known to have taken.
        reported: those of them that are in fragments that are here.
        since: when it last made progress, or was given something to do.
    """

    def __init__(self) -> None:
        self.incarnation = self.earlier = self.fruitless = self.asked = 0
        self._begin()

    def _begin(self) -> None:
        self.up = self.told = False
        self.executed = self.reported = 0
        self.since = monotonic()

    def renew(self, asked: int) -> None:
        """Another worker is made; of the last one so many fragments are here and were not handed on."""
        self.fruitless = 0 if self.executed else self.fruitless + 1
        self.incarnation, self.asked = max(self.incarnation, self.earlier) + 1, asked
        self._begin()

    def progressed(self, executed: int) -> None:
        """It has taken so many steps by now."""
        if executed > self.executed:
            self.executed, self.since = executed, monotonic()


@final
class ManyRunners:
    """The workers of a run.

    In turns, all of them sample one fragment with the newest weights, and what they sampled comes in their
    order, so that a run can be repeated. With ``sample_async``, whatever is ready comes, and each of them has
    something to do meanwhile: a slow one holds up nobody.

    A worker whose process ends, or makes no progress for ``env_step_timeout``, is replaced by another, which
    begins with new seeds and the newest weights; its unfinished fragment is lost.

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
        self._config, self._crew = config, crew_of(config, Worker, "num_env_runners")
        self._share = 1 if config.local_mode else config.num_env_runners  # of the wall clock's seconds
        self._asynchronous = config.sample_async
        self._depth = config.max_requests_in_flight_per_env_runner if config.sample_async else 1
        self._every_s = often(config.env_step_timeout)
        self._places = [_Place() for _ in range(self._crew.size)]
        self._flying: dict[Any, int] = {}  # what was asked for, in this order, and of whom
        self._coming: dict[Any, int] = {}  # workers that are being made
        self._arrived: list[tuple[int, Report]] = []
        self._failed: dict[int, Exception] = {}
        self._over: LostError | None = None
        self._health: dict[int, Mapping[str, int]] = {}
        self._discarded: Counter[str] = Counter()
        self._ages: list[tuple[float, float]] = []
        self._restarts, self._said_slow = 0, False
        try:
            about = list(self._ask("about").values())
        except BaseException:
            self._crew.close()
            raise
        self.spaces: dict[str, SpacePair] = about[0][0]
        self.env = Envs(sum(envs for _, envs in about))
        self._how: dict[str, Any] = {}
        self._policies: Mapping[str, Policy] = {}
        self._weights: dict[str, Weights] = {}
        self._shared: Any = None
        self._loaded: dict[str, Any] = {}

    def start(self, policies: Mapping[str, Policy], **how: Any) -> None:
        """Make the samplers; the arguments are those of :meth:`LocalRunner.start`."""
        self._policies, self._how = policies, how
        self._ask("start", self.spaces, how)
        for place in self._places:
            place.up = True

    def set_weights(self, weights: Mapping[str, Weights]) -> None:
        """Let all act with these from their next fragments on."""
        self._weights, self._loaded = dict(weights), {}
        self._shared = self._crew.shared(self._weights)
        for place in self._places:
            place.told = False

    def weights_of(self, policy: str) -> Any:
        """What ``policy`` acts with now, as its ``load`` makes it."""
        if policy not in self._loaded and policy in self._weights:
            self._loaded[policy] = self._policies[policy].load(self._weights[policy])
        return self._loaded.get(policy)

    def sample(self) -> list[Sample]:
        """The next fragments: one of each worker that can work or, asynchronously, those that are ready.

        Raises:
            RunnerError: processes end before they take a step, or are not to be replaced.
            Exception: whatever an env raised; only :meth:`set_state` repairs that.
        """
        while True:
            if self._over is not None:
                raise self._over
            if not self._failed:  # who failed would answer the same for ever
                self._request()
            if self._asynchronous or not self._flying:
                if self._failed:
                    raise self._failed.pop(min(self._failed))
                if self._arrived:
                    return self._taken()
            for ticket in self._crew.wait([*self._flying, *self._coming], self._every_s):
                self._receive(ticket)
            self._watch()

    def _request(self) -> None:
        """Everybody who can work has work."""
        for index, place in enumerate(self._places):
            while place.up and place.asked < self._depth:
                if not place.asked:
                    place.since = monotonic()
                news = None if place.told else self._shared
                self._flying[self._crew.send(index, "sample", news)] = index
                place.asked, place.told = place.asked + 1, True

    def _receive(self, ticket: Any) -> None:
        """Somebody has answered: with fragments or, if new, that it is there."""
        index = self._flying.get(ticket, self._coming.get(ticket, -1))
        if index < 0:
            return  # it was replaced a moment ago
        place = self._places[index]
        try:
            answer = self._crew.answer(ticket)
        except LostError as error:
            self._replace(index, error)
            return
        except Exception as error:
            place.asked -= self._flying.pop(ticket, None) is not None
            self._coming.pop(ticket, None)
            self._failed.setdefault(index, error)
            return
        place.since = monotonic()
        if self._coming.pop(ticket, None) is not None:
            place.up = True
            return
        self._arrived.append((index, answer))
        del self._flying[ticket]
        place.progressed(answer.executed)
        place.reported = answer.executed
        self._health[index] = answer.health

    def _hear(self) -> dict[int, float]:
        """Note how far everybody is; returns the memory of those who told it, in MB."""
        memory = {}
        for index, told in self._crew.progress().items():
            if told.incarnation == self._places[index].incarnation:
                self._places[index].progressed(told.executed)
                memory[index] = told.memory / 1e6
        return memory

    def _watch(self) -> None:
        """Replace who makes no progress, or has grown too large."""
        memory, most = self._hear(), self._config.max_memory_mb_per_env_runner
        for index, has in memory.items():
            if most is not None and has > most and self._places[index].up:
                text = f"it has {has:.0f} MB, and max_memory_mb_per_env_runner is {most:g}"
                self._replace(index, LostError(f"the process of a runner is too large: {text}"))
        limit, now = self._config.env_step_timeout, monotonic()
        if limit is not None and self._config.remote_worker_envs:
            limit += _RENEWED_S  # the runner itself ends the env that hangs
        for index in sorted(set(self._flying.values())):
            idle = now - self._places[index].since
            if limit is not None and idle > limit:
                text = f"its envs took no step for {idle:.1f} s, and env_step_timeout is {limit:g}"
                self._replace(index, LostError(f"the process of a runner hangs: {text}"))
            elif limit is not None and idle > limit / 2:
                self._crew.stand_by(index)
            elif limit is None and idle > _SLOW_S and not self._said_slow:
                self._said_slow = True
                logger.warning(
                    "runner %d: its envs have taken no step for %.0f s; with env_step_timeout it would be "
                    "replaced (said once)",
                    *(index + 1, idle),
                )

    def _replace(self, index: int, error: LostError) -> None:
        """The worker of a place is gone, with what it was about: make another."""
        place = self._places[index]
        self._flying = {ticket: one for ticket, one in self._flying.items() if one != index}
        self._coming = {ticket: one for ticket, one in self._coming.items() if one != index}
        self._health.pop(index, None)
        lost = place.executed - place.reported
        self._discarded["runner_lost"] += lost
        place.reported = place.executed
        first = not place.executed and (not place.incarnation or place.fruitless + 1 >= _MOST_FRUITLESS)
        if first or not self._config.restart_failed_env_runners:
            place.up, self._over = False, error
            error.add_note(
                f"steppe: runner {index + 1}, of which {place.incarnation + 1} processes were made by now; "
                f"this one is known to have taken {place.executed} env steps"
            )
            raise error
        logger.warning(
            "runner %d: %s; %d env steps are lost, and another process takes its place",
            *(index + 1, str(error).partition("\n")[0], lost),
        )
        place.renew(sum(one == index for one, _ in self._arrived))
        self._restarts += 1
        self._crew.renew(index, place.incarnation)
        self._coming[self._crew.send(index, "start", self.spaces, self._how)] = index

    def _taken(self) -> list[Sample]:
        """What has arrived, in the order of the workers."""
        samples: list[Sample] = []
        arrived, self._arrived = sorted(self._arrived, key=lambda one: one[0]), []
        for index, report in arrived:
            self._places[index].asked -= 1
            samples += report.samples
        for sample in samples:
            self._judge(sample)
            # What lies in Ray's memory cannot be written to, and stays there as long as it is held.
            sample.rollouts = deepcopy(sample.rollouts)
            sample.env_time /= self._share
            sample.inference_time /= self._share
        return samples

    def _judge(self, sample: Sample) -> None:
        """How old its rows are; those that are too old are left out."""
        if not self._asynchronous:
            return
        ages = [
            self._weights[rollout.policy].version - rollout.version[rollout.acted]
            for rollout in sample.rollouts
            if rollout.policy in self._weights
        ]
        age = np.concatenate(ages) if ages else np.zeros(0)
        most = self._config.max_staleness
        if most is not None and len(age) and age.max() > most:
            sample.rollouts, sample.discarded = [], {"stale": sample.env_steps}
        elif len(age):
            self._ages.append((float(age.mean()), float(age.max())))

    def standing(self) -> Standing:
        """How many work, and what became of env steps that are in no fragment; asked once an iteration."""
        self._hear()
        flying = sum(place.executed - place.reported for place in self._places)
        waiting = sum(sample.env_steps for _, report in self._arrived for sample in report.samples)
        ages, self._ages = self._ages or [(0.0, 0.0)], []
        discarded, self._discarded = self._discarded, Counter()
        restarts, self._restarts = self._restarts, 0
        age = float(np.mean([mean for mean, _ in ages])), max(most for _, most in ages)
        healthy = sum(place.up for place in self._places)
        return Standing(self.health(), healthy, restarts, +discarded, flying + waiting, age)

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd about the envs, over all of them, as of their newest fragments."""
        total: Counter[str] = Counter()
        for own in self._health.values():
            total.update(own)
        return total

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function``, which goes to where the envs are, makes of each env."""
        return [made for own in self._ask("foreach_env", function).values() for made in own]

    def foreach_runner(self, function: Callable[[LocalRunner], Any]) -> list[Any]:
        """What ``function`` makes of each runner, there."""
        return [made for own in self._ask("foreach_runner", function).values() for made in own]

    def _ask(self, method: str, *arguments: Any) -> dict[int, Any]:
        """What those who are there answer, by place; one that is gone is replaced.

        Raises:
            Exception: what the first of them raised, as it was raised there.
        """
        shared = [self._crew.shared(argument) for argument in arguments]
        asked = [i for i in range(self._crew.size) if i not in self._coming.values()]
        tickets = {i: self._crew.send(i, method, *shared) for i in asked}
        answers, failed = dict[int, Any](), list[Exception]()
        for i, ticket in tickets.items():
            try:
                answers[i] = self._crew.answer(ticket)
            except Exception as error:
                if isinstance(error, LostError) and self._places[i].up:
                    self._replace(i, error)
                else:
                    failed.append(error)
        if failed:
            raise failed[0]
        return answers

    def get_state(self) -> State:
        """Of each worker; None of one that is being made, or is found to be gone.

        What was sampled asynchronously, and not handed on yet, is not in it.
        """
        if self._asynchronous:
            while self._flying:
                for ticket in self._crew.wait([*self._flying], self._every_s):
                    self._receive(ticket)
                self._watch()
        elif self._flying or self._arrived:
            raise RuntimeError(CUT_SHORT)
        states = self._ask("get_state")
        return {"workers": [states.get(i) for i in range(self._crew.size)]}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly, and whose that is."""
        self._flying, self._arrived, self._failed = {}, [], {}  # what they do ends before they are asked
        notes = []
        if self._asynchronous:
            notes.append("runners that sample asynchronously: what was under way is sampled anew")
        for i, (place, own) in enumerate(zip(self._places, state["workers"], strict=True)):
            place.asked = 0
            if own is None:
                notes.append(f"runner {i + 1}: begins anew, it was being replaced")
                continue
            place.earlier = int(own.get("incarnation", 0))
            told = self._crew.answer(self._crew.send(i, "set_state", own))
            place.reported = place.executed
            notes += [f"runner {i + 1}: {note}" for note in told]
        return notes

    def close(self) -> None:
        """Close the envs, and end the processes."""
        self._crew.close()
