"""The learner: owns a set of policies, takes every fragment, and learns when it has what it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from steppe.types import Array, FloatArray, Policy, Rollout, State, Weights

Stats = dict[str, float]


class Learner(ABC):
    """Turns rollouts into weights. Batching and replay are its own business."""

    @property
    @abstractmethod
    def policies(self) -> Mapping[str, Policy]:
        """What runners act with, by policy id."""

    @abstractmethod
    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Take the fragments of its policies."""

    @abstractmethod
    def update(self, env_steps: int) -> dict[str, Stats] | None:
        """Learn if there is enough experience.

        Args:
            env_steps: global env steps sampled so far, for schedules.

        Returns:
            Statistics by policy; None when nothing was learned, and then no new weights are published.
        """

    @abstractmethod
    def publish(self) -> dict[str, Weights]:
        """The newest weights by policy, as far as acting needs them."""

    @abstractmethod
    def get_weights(self) -> dict[str, FloatArray]:
        """All parameters by policy, flat."""

    @abstractmethod
    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Replace the parameters of some policies.

        Raises:
            ConfigError: an unknown policy, or a vector of another length; nothing was changed.
        """

    @abstractmethod
    def summary(self) -> str:
        """Networks and parameter counts in words."""

    @abstractmethod
    def get_state(self) -> State:
        """All that learning goes on from."""

    @abstractmethod
    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`.

        Raises:
            CheckpointError: the state belongs to another architecture; nothing was changed.
        """
