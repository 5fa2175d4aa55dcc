"""Updates that go on while the envs are stepped: worth it where a step waits for something outside."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from steppe.errors import ConfigError
from steppe.learning.independent import IndependentLearner
from steppe.learning.learner import Stats
from steppe.types import Rollout, Weights


@final
class Ahead:
    """Stands between the loop and the learner, which works in a thread while the next fragment is sampled.

    Each fragment is so acted with weights that do not know the fragment before it. Nothing is under way
    between iterations, and what comes of it does not depend on which of the two is faster.

    Raises:
        ConfigError: a policy's algorithm learns only from rows that its newest weights acted.
    """

    def __init__(self, learner: IndependentLearner) -> None:
        self._learner, self._weights = learner, learner.publish()
        self._check()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="steppe-learner")
        self._call: Future[dict[str, Stats] | None] | None = None
        self._told: dict[str, Stats] | None = None

    def _check(self) -> None:
        for id in self._learner.trained:
            learner = self._learner.learners[id]
            if not learner.takes_older_rows:
                raise ConfigError(
                    f"sample_async=True: policy {id!r} learns only from rows that its newest weights acted. "
                    "Leave it out, or use DQN, SAC, TD3, IMPALA or APPO"
                )
            if learner.postprocess:
                raise ConfigError(
                    f"sample_async=True: postprocess_trajectory of policy {id!r} would ask a critic that is "
                    "learning; leave one of them out"
                )

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Take fragments, after the updates that are under way."""
        self._wait()
        self._learner.add(rollouts)

    def update(self, env_steps: int, iteration: int) -> dict[str, Stats] | None:
        """Go on with learning; what came of the updates before."""
        told = self.settle()
        self._check()  # a policy may have joined
        self._call = self._pool.submit(self._learner.update, env_steps, iteration)
        return told

    def publish(self) -> dict[str, Weights]:
        """The weights before the updates that are under way."""
        return self._weights

    def settle(self) -> dict[str, Stats] | None:
        """Wait for what is under way, and tell what came of it; an error of it is raised here."""
        self._wait()
        told, self._told = self._told, None
        return told

    def _wait(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            self._told = call.result()
            self._weights = self._learner.publish()
