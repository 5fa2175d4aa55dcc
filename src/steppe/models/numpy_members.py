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

    def initial_state(self, n: int) -> Tree:
        """What ``n`` fresh trajectories are met with; None without a memory."""
        own = self._member.initial_state(n * self._members.size)
        return None if own is None else self._joined(own, own, n)

    def params(self, column: Tree) -> FloatArray:
        """Values ``(n, members * actions)`` of a column, member by member.

        With a memory: of the first ones of their trajectories.
        """
        values: FloatArray = self._member.params(self._rows(column)).reshape(len(leaves(column)[0]), -1)
        return values

    def act(self, column: Tree, noise: FloatArray | None, state: Tree = None) -> tuple[Tree, Tree]:
        """A column of env actions, each member's best, whatever the noise; and the state.

        Raises:
            BadLeaf: a mask allows nothing.
        """
        self._members.read(column)
        n, own = len(leaves(column)[0]), None if state is None else self._members.states(state)
        choices, after = self._member.act(self._rows(column), None, own)
        action = self.actions.to_env(split(choices.reshape(n, -1)))
        return action, None if state is None else self._joined(after, state, n)

    def _rows(self, column: Tree) -> Tree:
        """Of all members, one below the other."""
        column = narrowed(self.observation, column)
        if self._statistics:
            column = normalized(self._members.covered_acting, self._statistics, column)
        return map_leaves(lambda a: a.reshape(-1, *a.shape[2:]), self._members.rows(column))

    def _joined(self, own: Tree, like: Tree, n: int) -> dict[str, Tree]:
        """A group's state of its members', the parts that ``like`` has."""
        found = {name: map_leaves(lambda a: a.reshape(n, -1, *a.shape[1:]), own[name]) for name in like}
        if "action" in found:
            found["action"] = split(found["action"])
        if "reward" in found:  # which the group earned, so each was told the same
            found["reward"] = found["reward"][:, 0]
        return found


def network_of(description: Mapping[str, Any], arrays: Arrays) -> Network | JointNetwork:
    """What acts in numpy: for one agent, or for a group."""
    return (JointNetwork if description["kind"] == "joint" else Network)(description, arrays)
