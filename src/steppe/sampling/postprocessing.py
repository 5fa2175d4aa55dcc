"""The setting ``postprocess_trajectory``: changes what one agent's rows teach, in view of those of others.

Runs in the learner's process when a fragment arrives, on numpy, with this iteration's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np

from steppe.errors import ConfigError
from steppe.learning.minibatches import COLUMNS
from steppe.sampling.episodes import Episode
from steppe.sampling.trajectories import Trajectory, batch_of, trajectories, write_back
from steppe.spaces import leaves, map_leaves, zeros
from steppe.types import AgentID, Array, FloatArray, Policy, Rollout, Tree

if TYPE_CHECKING:
    from steppe.learning.independent import PolicyLearner

_OF_MEMORIES = ("memory", "before", "fresh", "acted", "state0", "prev_reward")
_TAKEN = (*COLUMNS, "advantage", "target", "weight", "log_ratio", *_OF_MEMORIES)
"""Columns of learning that are not called as they are here."""


@final
class TrainedPolicy:
    """A policy as ``postprocess_trajectory`` sees it.

    Attributes:
        policy_id: its name.
        observation: spec of what its agents observe; ``action`` likewise.
    """

    def __init__(self, policy_id: str, policy: Policy, learner: PolicyLearner | None) -> None:
        self.policy_id, self._learner = policy_id, learner
        self.observation, self.action = policy.observation, policy.action

    def value(self, obs: Tree) -> FloatArray:
        """``(n,)``, what the critic makes of observations ``(n, ...)``, in the unit of the rewards.

        Raises:
            ConfigError: the policy is scripted, and has no critic; or these are no observations of it.
        """
        if self._learner is None:
            raise ConfigError(f"policy {self.policy_id!r} is scripted: it has no critic to ask")
        obs = map_leaves(np.asarray, obs)
        came, taken = (map_leaves(np.shape, column) for column in (obs, zeros(self.observation, 1)))
        if map_leaves(_row, obs) != map_leaves(_row, zeros(self.observation, 1)):
            raise ConfigError(
                f"policy.value of {self.policy_id!r} was given observations of shape {came}; of one row it "
                f"takes {taken}, as batch['obs'][-1:] has it, and of n rows the same with n for the first 1"
            )
        return self._learner.values(obs) if len(leaves(obs)[0]) else np.zeros(0, np.float32)


@final
class Postprocessing:
    """Calls the function of each policy that has one, for each run of rows of one agent and episode.

    Args:
        learners: by policy id; their ``postprocess`` is the function.
        policies: all of the run, scripted ones, too.
    """

    def __init__(self, learners: Mapping[str, PolicyLearner], policies: Mapping[str, Policy]) -> None:
        self._functions = {id: one.postprocess for id, one in learners.items() if one.postprocess is not None}
        self._views = {id: TrainedPolicy(id, policy, learners.get(id)) for id, policy in policies.items()}
        self._policies = policies
        self._added: dict[str, dict[str, Array]] = {}

    def __call__(self, rollouts: Sequence[Rollout]) -> None:
        """Change the rollouts of one fragment, of all policies.

        Raises:
            ConfigError: a function returned what cannot be learned from.
        """
        everybody: dict[tuple[int, int], dict[AgentID, _Rows]] = {}
        parts = [(rollout, part) for rollout in rollouts for part in trajectories(rollout)]
        for rollout, part in parts:
            present = everybody.setdefault((part.env, part.episode), {})
            present.setdefault(part.agent, _Rows(self._views[rollout.policy])).add(batch_of(rollout, part))
        for rollout, part in parts:
            if (function := self._functions.get(rollout.policy)) is not None:
                self._process(function, rollout, part, everybody[part.env, part.episode])

    def _process(
        self, function: Callable[..., Any], rollout: Rollout, part: Trajectory, rows: Mapping[AgentID, _Rows]
    ) -> None:
        """One call, and what came of it written into the rollout."""
        batch, episode = batch_of(rollout, part), Episode(rollout.runner, part.env, part.episode)
        given, others = {*batch}, _Others(rows, batch["t"])
        returned = function(self._views[rollout.policy], batch, others, episode)
        batch = batch if returned is None else returned
        if not isinstance(batch, dict):
            raise ConfigError(f"postprocess_trajectory returned {batch!r:.60}: return the batch, or None")
        write_back(rollout, part, batch, self._policies[rollout.policy])
        added = {name: _column(name, batch[name], len(part.rows)) for name in batch if name not in given}
        known = self._added.setdefault(rollout.policy, {name: added[name][:0] for name in added})
        now, before = (
            {name: f"{c.dtype}{list(c.shape[1:])}" for name, c in columns.items()}
            for columns in (added, known)
        )
        if now != before:
            raise ConfigError(
                f"postprocess_trajectory added columns with rows of {now} for agent {part.agent!r}, and "
                f"before {before}: add the same to every trajectory"
            )
        for name, column in added.items():
            if name not in rollout.extra:  # zeros where no row was acted
                rollout.extra[name] = np.zeros((*rollout.filled.shape, *column.shape[1:]), column.dtype)
            rollout.extra[name][part.rows, part.lane] = column


def _row(column: Array) -> tuple[int, ...] | None:
    """Shape of one row."""
    return column.shape[1:] if column.ndim else None


def _column(name: Any, given: Any, rows: int) -> Array:
    """A new column as learning takes it: float32, int32 or bool."""
    column = np.asarray(given)
    if not isinstance(name, str) or name in _TAKEN:
        raise ConfigError(
            f"postprocess_trajectory added a column {name!r}, which means something else in a batch; call it "
            "something else"
        )
    scalar = name in ("advantages", "value_targets")
    if column.shape[:1] != (rows,) or (scalar and column.ndim > 1) or column.dtype.kind not in "fiub":
        raise ConfigError(
            f"postprocess_trajectory added {name!r}, {column.dtype} of shape {column.shape}: a column holds "
            f"{'one number' if scalar else 'numbers'} for each of the {rows} rows"
        )
    if scalar:
        column = column.astype(np.float32)
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        raise ConfigError(f"postprocess_trajectory added {name!r} with NaN or infinity")
    return column.astype({"f": np.float32, "i": np.int32, "u": np.int32, "b": np.bool_}[column.dtype.kind])


@final
class _Rows:
    """All rows of one agent in one episode of a fragment."""

    def __init__(self, policy: TrainedPolicy) -> None:
        self.policy = policy
        self._batches: list[dict[str, Any]] = []

    def add(self, batch: dict[str, Any]) -> None:
        """One run of them; the agent may have left and come back."""
        self._batches.append(batch)

    def aligned(self, t: Array) -> dict[str, Any]:
        """Its rows at the env steps ``t``, zeros where it has none, and ``present``, which says where."""
        parts = sorted(self._batches, key=lambda batch: int(batch["t"][0]))
        whole = {
            name: map_leaves(lambda *arrays: np.concatenate(arrays), *[part[name] for part in parts])
            for name in parts[0]
        }
        index = np.minimum(np.searchsorted(whole["t"], t), len(whole["t"]) - 1)
        present = whole["t"][index] == t

        def placed(array: Array) -> Array:
            found = array[index]
            found[~present] = 0
            return found

        return {**{name: map_leaves(placed, column) for name, column in whole.items()}, "present": present}


@final
class _Others(Mapping[AgentID, tuple[TrainedPolicy, dict[str, Any]]]):
    """``{agent: (policy, batch)}`` of an episode, each aligned when it is asked for."""

    def __init__(self, rows: Mapping[AgentID, _Rows], t: Array) -> None:
        self._rows, self._t = rows, t
        self._found: dict[AgentID, tuple[TrainedPolicy, dict[str, Any]]] = {}

    def __getitem__(self, agent: AgentID) -> tuple[TrainedPolicy, dict[str, Any]]:
        if agent not in self._found:
            self._found[agent] = self._rows[agent].policy, self._rows[agent].aligned(self._t)
        return self._found[agent]

    def __iter__(self) -> Iterator[AgentID]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
