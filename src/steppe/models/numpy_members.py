"""The policy of a group, in numpy alone: each member's best action, by the one network that all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from steppe.models.actions import Actions
from steppe.models.members import members_of, split
from steppe.models.numpy_forward import Arrays, Network, normalized, statistics
from steppe.models.sight import shown
from steppe.spaces import Spec, collect, from_description, leaves, map_leaves, narrowed
from steppe.types import FloatArray, SpacePair, Tree


@final
class JointNetwork:
    """Observations of a group to its env actions; see :class:`~steppe.models.numpy_forward.Network`.

    Attributes:
        observation: spec of what it observes.
        actions: of its action space.

    Args:
        description: as the policy's ``export`` gave it: JSON values.
        arrays: by name, float32; likewise.
    """

    def __init__(self, description: Mapping[str, Any], arrays: Arrays) -> None:
        self.observation: Spec = from_description(description["observation"])
        self.actions = Actions(from_description(description["action"]))
        self._members = members_of(SpacePair(self.observation, self.actions.spec), "a policy of a group")
        self._hidden = description["critic_only"]
        covered = self._members.covered_acting
        self._statistics = statistics(covered, arrays) if description["normalizer"] else []
        self._member = Network(description["member"], arrays)

    def column(self, observations: Sequence[Any]) -> Tree:
        """Observations as a column; the global state may be there or not.

        Raises:
            BadLeaf: one does not fit the space.
        """
        return collect(self.observation, shown(observations, self._hidden) if self._hidden else observations)

    def params(self, column: Tree) -> FloatArray:
        """Values ``(n, members * actions)`` of a column, member by member."""
        column = narrowed(self.observation, column)
        if self._statistics:
            column = normalized(self._members.covered_acting, self._statistics, column)
        rows = map_leaves(lambda a: a.reshape(-1, *a.shape[2:]), self._members.rows(column))
        values: FloatArray = self._member.params(rows).reshape(len(leaves(column)[0]), -1)
        return values

    def act(self, column: Tree, noise: FloatArray | None) -> Tree:
        """A column of env actions, each member's best; whatever the noise.

        Raises:
            BadLeaf: a mask allows nothing.
        """
        self._members.read(column)
        values = self.params(column)
        values = values.reshape(len(values), self._members.size, -1)
        return self.actions.to_env(split(values.argmax(-1)))


def network_of(description: Mapping[str, Any], arrays: Arrays) -> Network | JointNetwork:
    """What acts in numpy: for one agent, or for a group."""
    return (JointNetwork if description["kind"] == "joint" else Network)(description, arrays)
