"""Policies that learn each by itself, by the same or by different algorithms."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import numpy as np

from steppe.errors import CheckpointError, ConfigError
from steppe.learning.learner import Learner, Stats
from steppe.types import Array, FloatArray, Policy, Rollout, State, Tree, Weights

if TYPE_CHECKING:
    from steppe.learning.sharing import Sharing
    from steppe.learning.undone import Undone

logger = logging.getLogger("steppe")

_NOT_FINITE = (
    "policy %s: an update gave numbers that are not finite and was undone (%d so far); "
    "look for huge rewards or observations, or lower lr"
)


class PolicyLearner(ABC):
    """Learns one policy from its own rows: what an algorithm's file implements."""

    policy: Policy
    """What runners act with."""
    on_batch: Callable[[dict[str, Any]], None] | None = None
    """Sees each batch before it is learned from, and may change its columns."""
    share: Mapping[str, str] = MappingProxyType({})
    """Parts of its networks by the name that they are shared under."""
    takes_older_rows: bool = False
    """Whether it learns rightly from rows that older weights acted."""
    postprocess: Callable[..., Any] | None = None
    """The setting ``postprocess_trajectory``."""

    @abstractmethod
    def add(self, rollout: Rollout) -> None:
        """Take a fragment."""

    @abstractmethod
    def update(self, env_steps: int) -> Stats | None:
        """Learn if there is enough experience; ``env_steps`` sampled so far drive schedules."""

    @abstractmethod
    def values(self, obs: Tree) -> FloatArray:
        """``(n,)`` values of observations ``(n, ...)`` by its critic, in the unit of the rewards."""

    @abstractmethod
    def publish(self) -> Weights:
        """The newest weights, as far as acting needs them."""

    @abstractmethod
    def get_weights(self) -> FloatArray:
        """All parameters, flat."""

    @abstractmethod
    def set_weights(self, weights: Array) -> None:
        """Replace all parameters."""

    @abstractmethod
    def summary(self) -> str:
        """Network and parameter count in words."""

    @abstractmethod
    def get_state(self) -> State:
        """All that learning goes on from."""

    @abstractmethod
    def checked(self, state: State) -> Any:
        """What :meth:`set_state` needs of ``state``.

        Raises:
            CheckpointError: it belongs to another architecture.
        """

    @abstractmethod
    def set_state(self, state: State, checked: Any) -> None:
        """Go on from ``state``; cannot fail after :meth:`checked` passed."""


@final
class IndependentLearner(Learner):
    """A set of policies, each of which learns by itself but for what it shares by its settings.

    Args:
        learners: by policy id.
        trained: those that learn; all if None.

    Attributes:
        learners: by policy id, those that do not learn, too.
        trained: ids of the policies that learn; the others keep their parameters.
        on_batch: the hook ``on_learn_on_batch``, if it is set.
        stuck: why going on makes no sense, once the updates of a policy are undone again and again.
    """

    def __init__(self, learners: Mapping[str, PolicyLearner], trained: Sequence[str] | None = None) -> None:
        self.learners = dict(learners)
        self.trained = list(learners) if trained is None else list(trained)
        self._counts = dict.fromkeys(learners, (0.0, 0.0))  # of a policy's updates, and of those undone
        self._undone: dict[str, Undone] = {}
        self.stuck = ""
        self.on_batch: Callable[..., None] | None = None
        self._find_sharing()

    def _find_sharing(self) -> None:
        self._sharing: Sharing | None = None
        if any(learner.share for learner in self.learners.values()):
            from steppe.learning.sharing import Sharing  # most policies share nothing

            self._sharing = Sharing(self.learners)

    @property
    def policies(self) -> Mapping[str, Policy]:
        """What runners act with."""
        return {id: learner.policy for id, learner in self.learners.items()}

    def add_policy(self, id: str, learner: PolicyLearner, *, trained: bool, like: str | None) -> None:
        """Take a further policy; ``like`` is the id of one whose parameters and statistics it begins with."""
        if like is not None:
            state = deepcopy(self.learners[like].get_state())
            learner.set_state(state, learner.checked(state))
        self.learners[id] = learner
        self._counts.pop(id, None)
        if trained:
            self.trained.append(id)
        self._find_sharing()

    def remove_policy(self, id: str, trained: Sequence[str]) -> None:
        """Let a policy go; ``trained`` learn from now on."""
        self.learners.pop(id, None)  # scripted ones are not among them
        self._undone.pop(id, None)
        self.trained = list(trained)
        self._find_sharing()

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Hand each fragment to the learner of its policy."""
        for rollout in rollouts:
            if rollout.policy in self.trained:  # others may be there for those to see
                if rollout.policy in self._undone:
                    self._undone[rollout.policy].saw(rollout)
                self.learners[rollout.policy].add(rollout)

    def update(self, env_steps: int, iteration: int = 0) -> dict[str, Stats] | None:
        """Update every policy that has what it needs; ``iteration`` is for reports."""
        told: dict[str, Stats] = {}
        self.stuck = ""
        if self.on_batch is not None:
            for id, learner in self.learners.items():
                told[id] = {}
                learner.on_batch = partial(_tell, self.on_batch, learner.policy, told[id])
        updates = {} if self._sharing is None else self._sharing.update(self.trained, env_steps)
        updates |= {id: self.learners[id].update(env_steps) for id in self.trained if id not in updates}
        stats = {id: learned | told.get(id, {}) for id, learned in updates.items() if learned is not None}
        for id, learned in stats.items():
            if "updates_skipped" not in learned:
                continue
            skipped = learned["updates_skipped"]
            before = self._counts.get(id, (0.0, skipped))  # of a policy that was restored it is not known
            made = learned.get("updates", before[0] + 1.0)  # said where a call may make many
            self._counts[id] = made, skipped
            if skipped > before[1]:
                self._tell_undone(id, skipped, made - before[0], skipped - before[1], env_steps, iteration)
            else:
                self._undone.pop(id, None)
        return stats or None

    def _tell_undone(
        self, id: str, total: float, made: float, undone: float, env_steps: int, iteration: int
    ) -> None:
        """Of ``made`` updates of a policy ``undone`` were undone, ``total`` so far."""
        from steppe.learning.undone import MOST, Undone  # seldom needed

        logger.warning(_NOT_FINITE, id, total)
        if undone < made:
            self._undone.pop(id, None)
            return
        watched = self._undone.setdefault(id, Undone(iteration, env_steps))
        watched.count += int(undone)
        if watched.count >= MOST:
            self.stuck = watched.report(id)

    def publish(self) -> dict[str, Weights]:
        """The newest weights."""
        return {id: learner.publish() for id, learner in self.learners.items()}

    def get_weights(self) -> dict[str, FloatArray]:
        """All parameters, flat."""
        return {id: learner.get_weights() for id, learner in self.learners.items()}

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Replace parameters; all of the given ones or none."""
        for id, values in weights.items():
            if id not in self.learners:
                raise ConfigError(f"no policy {id!r} to set weights of; there are {sorted(self.learners)}")
            size = len(self.learners[id].get_weights())
            if np.shape(values) != (size,):
                raise ConfigError(f"weights of {id!r} have shape {np.shape(values)}, not ({size},)")
        for id, values in weights.items():
            self.learners[id].set_weights(values)
            if self._sharing is not None:
                self._sharing.spread(id)

    def summary(self) -> str:
        """Networks and parameter counts."""
        return "\n".join(f"{id}: {learner.summary()}" for id, learner in self.learners.items())

    def get_state(self) -> State:
        """Per policy."""
        return {id: learner.get_state() for id, learner in self.learners.items()}

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`; all policies or none."""
        if set(state) != set(self.learners):
            raise CheckpointError(
                f"the checkpoint holds policies {sorted(state)}, not {sorted(self.learners)}"
            )
        checked = {id: learner.checked(state[id]) for id, learner in self.learners.items()}
        self._counts, self._undone, self.stuck = {}, {}, ""
        for id, learner in self.learners.items():
            learner.set_state(state[id], checked[id])


def _tell(hook: Callable[..., None], policy: Policy, result: Stats, batch: dict[str, Any]) -> None:
    hook(policy=policy, train_batch=batch, result=result)
    for name, value in result.items():
        if np.ndim(value) or not isinstance(value, int | float | np.number | np.ndarray):
            raise ConfigError(f"on_learn_on_batch made result[{name!r}] {value!r:.60}: it must be one number")
        result[name] = float(value)
