"""A trained policy out of a checkpoint, in numpy alone: neither JAX nor Gymnasium is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from steppe import checkpoint
from steppe.errors import CheckpointError, ConfigError, SpaceError
from steppe.seeding import SMALLEST_NOISE
from steppe.spaces import BadLeaf, describe, rows, take
from steppe.tracking.record import CHECKPOINTS, RECORD, checkpoint_of, linked
from steppe.types import DEFAULT_POLICY, Array, FloatArray, State, Tree

POLICIES = "policies"
"""Owner of what policies need to act, in every checkpoint of an algorithm."""


@final
class LoadedPolicy:
    """Acts as the policy of a checkpoint does, up to rounding. Made by :func:`load_policy`.

    Attributes:
        policy_id: its name in the checkpoint.
        observation_space: what it observes, as JSON values.
        action_space: what it chooses from, likewise.
        description: the whole network, likewise: spaces, encoder, layers, distribution, normalizer.
        arrays: the network's float32 arrays by name, such as ``mlp.weights.0`` ``(in, out)``; read-only.

    Args:
        policy_id: its name.
        description: the network.
        arrays: its arrays.

    Raises:
        LookupError, ValueError, TypeError: as :class:`~steppe.models.numpy_forward.Network` does.
    """

    def __init__(self, policy_id: str, description: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        from steppe.models.numpy_members import network_of  # training acts by other means

        self.policy_id, self.description, self.arrays = policy_id, dict(description), dict(arrays)
        for array in self.arrays.values():
            array.flags.writeable = False
        self._network = network_of(description, self.arrays)
        self.observation_space = describe(self._network.observation)
        self.action_space = describe(self._network.actions.spec)
        self._rng = np.random.default_rng()

    def __repr__(self) -> str:
        """Its name and its spaces' kinds."""
        kinds = self.observation_space["kind"], self.action_space["kind"]
        return f"LoadedPolicy({self.policy_id!r}, {kinds[0]} to {kinds[1]})"

    def seed(self, seed: int) -> None:
        """Let the draws of ``explore=True`` begin anew, from this seed."""
        self._rng = np.random.default_rng(seed)

    def act(
        self,
        obs: Any,
        state: Tree = None,
        explore: bool = False,
        *,
        rng: np.random.Generator | None = None,
    ) -> Any:
        """The action for one observation, as the env takes it.

        Args:
            obs: one observation, as the env returns it.
            state: of a policy with a memory: what came back for the observation before, and ``{}`` for the
                first one of a trajectory; others hand it back as it is. Where the memory is told rewards, set
                its ``"reward"`` to the one that came with ``obs``.
            explore: draw the action instead of taking the likeliest.
            rng: to draw from, instead of the policy's own generator.

        Returns:
            The action; ``(action, state)`` when ``state`` is given.

        Raises:
            SpaceError: the observation does not fit its space, or its mask allows nothing.
            ConfigError: the state is none of this policy.
        """
        if state is None:
            return self.act_batch([obs], explore, rng=rng)[0]
        actions, states = self.act_batch([obs], explore, rng=rng, states=[state])
        return actions[0], states[0]

    def act_batch(
        self,
        observations: Sequence[Any],
        explore: bool = False,
        *,
        rng: np.random.Generator | None = None,
        states: Sequence[Tree] | None = None,
    ) -> Any:
        """An action for each of several observations, in one pass; see :meth:`act`.

        Returns:
            A list of actions; ``(actions, states)`` when ``states``, a list of one each, is given.
        """
        if not len(observations):
            return [] if states is None else ([], [])
        from steppe.policies.acting import continued

        state = continued(self.policy_id, self._network.initial_state(len(observations)), states)

        def act(column: Tree) -> Tree:
            noise = None
            if explore:
                size = (len(observations), self._network.actions.noise_size)
                noise = np.maximum((rng or self._rng).random(size, np.float32), SMALLEST_NOISE)
            return self._network.act(column, noise, state)

        column, after = self._asked(observations, act)
        actions = rows(self._network.actions.spec, column)
        if states is None:
            return actions
        return actions, states if state is None else [take(after, i) for i in range(len(observations))]

    def outputs(self, obs: Any) -> FloatArray:
        """The distribution parameters ``(P,)`` of one observation, to check a port of the network against.

        Leaf by leaf of the action space logits and means, in policy units; after them, leaf by leaf, the log
        standard deviations.

        Raises:
            SpaceError: the observation does not fit its space.
        """
        params: FloatArray = self._asked([obs], self._network.params)[0]
        return params

    def _asked(self, observations: Sequence[Any], question: Callable[[Tree], Tree]) -> Tree:
        try:
            return question(self._network.column(observations))
        except BadLeaf as bad:
            raise SpaceError(f"policy {self.policy_id!r} cannot act on this observation: {bad}") from None


def load_policy(path: str | os.PathLike[str], policy_id: str = DEFAULT_POLICY) -> LoadedPolicy:
    """The policy of a checkpoint, ready to act, with numpy alone.

    Args:
        path: a checkpoint's folder, or a run's (then its latest checkpoint; ``<run>/best`` is the best one);
            see :func:`checkpoint_at`.
        policy_id: which policy, where there are several.

    Raises:
        CheckpointError: damaged, no checkpoint of steppe, or written before policies were kept by themselves.
        ConfigError: the checkpoint holds no policy of that name.
    """
    folder = checkpoint_at(path)
    policies = read_checkpoint(folder, [POLICIES])[0][POLICIES]
    if policy_id not in policies:
        raise ConfigError(f"{folder} holds no policy {policy_id!r}; there are {', '.join(policies)}")
    try:
        return LoadedPolicy(policy_id, policies[policy_id]["network"], policies[policy_id]["arrays"])
    except ConfigError as error:  # code of the user's own, which no file holds
        raise ConfigError(f"policy {policy_id!r} of {folder}: {error}") from None
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"policy {policy_id!r} of {folder} cannot be rebuilt: {error!r}. "
            "Load it with the version of steppe that wrote it"
        ) from error


def read_checkpoint(
    path: str | os.PathLike[str], owners: Sequence[str] | None = None
) -> tuple[dict[str, State], dict[str, Any]]:
    """A checkpoint; if it is damaged, the error offers the newest one beside it that is not."""
    try:
        return checkpoint.load(path, owners)
    except CheckpointError as error:
        other = checkpoint.newest_intact(Path(path).resolve().parent)
        if other is not None and other != Path(path).resolve():  # which may lack what was asked for
            raise CheckpointError(f"{error}; the newest intact checkpoint beside it is {other}") from None
        raise


def checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """The folder of the checkpoint that a path means.

    Args:
        path: a checkpoint's folder; a run's, or the ``checkpoints`` in it, for its latest one; ``best`` or
            ``latest`` in a run's folder, also where these are text files instead of links.

    Raises:
        CheckpointError: the run has no checkpoint yet, or what leads to it is damaged.
        ConfigError: no path.
    """
    given = checkpoint.as_path(path)
    run = given.parent if given.name == CHECKPOINTS else given
    try:
        if not (run / RECORD).is_file():
            return linked(given)
        latest = checkpoint_of(run)
    except ConfigError as error:
        inside = checkpoint.newest_intact((run if run.is_dir() else run.parent) / CHECKPOINTS)
        hint = "" if inside is None else f"; the newest intact checkpoint of the run is {inside}"
        raise CheckpointError(f"{error}{hint}") from error
    if latest is None:
        raise CheckpointError(f"{path}: this run has no checkpoint yet; train on, or set checkpoint_freq")
    return latest
