"""A group of agents as its members: who sees what, and their rows for the one network that all share.

A group observes a Tuple and chooses a Tuple of Discretes, a part each. What a member observes may be a Dict:
its ``"action_mask"`` says what is legal; its ``"state"``, if there is ``"obs"``, too, is for the mixer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from steppe.errors import ConfigError
from steppe.models.actions import Actions
from steppe.models.observations import MASK
from steppe.models.sight import check_mask, sight_of, without
from steppe.spaces import (
    BadLeaf,
    DictSpec,
    DiscreteSpec,
    Spec,
    TupleSpec,
    described,
    leaves,
    map_leaves,
    misfits,
    summary,
)
from steppe.spaces.columns import keyed
from steppe.types import Array, SpacePair, Tree

STATE = "state"
"""The key of a member's observation that holds the global state, where there is the key "obs", too."""


class Members(NamedTuple):
    """The form of a group; hashable.

    Attributes:
        size: how many members.
        whole: what the group observes, a Tuple.
        acting: that without the global state.
        covered: what statistics are of: the whole without masks.
        covered_acting: likewise, of what acting reads.
        row: what the network gets of one member: "agent", which of them it is, "obs", and a mask if any.
        seen: what of that it encodes: all but the mask.
        state: what the mixer sees: the first member's global state, or else what all members see.
        choices: the action space of one of them, counted from 0.
        masked: whether there is a mask.
        stateful: whether there is a global state.
    """

    size: int
    whole: Spec
    acting: Spec
    covered: Spec
    covered_acting: Spec
    row: Spec
    seen: Spec
    state: Spec
    choices: DiscreteSpec
    masked: bool
    stateful: bool

    def state_of(self, obs: Tree) -> Tree:
        """That part of a column of observations."""
        return obs[0][STATE] if self.stateful else obs

    def read(self, obs: Tree) -> Tree:
        """What acting reads of a column; the global state may be absent already.

        Raises:
            BadLeaf: E107, a mask allows nothing.
        """
        if self.masked:
            for place, part in enumerate(obs):
                try:
                    check_mask(part[MASK], Actions(self.choices))
                except BadLeaf as bad:
                    leaf = keyed(f"obs[{place}]", MASK)
                    raise BadLeaf(bad.code, bad.row, leaf, bad.expected, bad.got) from None
        if not self.stateful:
            return obs
        return tuple({key: value for key, value in part.items() if key != STATE} for part in obs)

    def states(self, state: Tree, xp: Any = np) -> dict[str, Tree]:
        """What each member is met with, one below the other ``(n * members, ...)``, of a group's state.

        Args:
            state: ``memory`` of ``(n, members, ...)``, and as they are asked for ``action``, the group's, and
                ``reward`` ``(n,)``.
            xp: numpy, or JAX's.
        """
        own: dict[str, Tree] = {"memory": map_leaves(lambda a: a.reshape(-1, *a.shape[2:]), state["memory"])}
        if "action" in state:
            own["action"] = xp.stack(state["action"], axis=1).reshape(-1)
        if "reward" in state:
            own["reward"] = xp.repeat(state["reward"], self.size)
        return own

    def rows(self, obs: Tree, stack: Callable[..., Any] = np.stack, lead: int = 1) -> Tree:
        """Rows for the network: a tree of ``(*lead, members, ...)``.

        Args:
            obs: what acting reads of a column, or all of it.
            stack: of numpy or JAX.
            lead: leading axes of the column.
        """
        hidden = [MASK] * self.masked + [STATE] * self.stateful
        own = [{k: v for k, v in part.items() if k not in hidden} if hidden else part for part in obs]
        joined = map_leaves(lambda *same: stack(same, axis=lead), *own)
        shape = leaves(joined)[0].shape[: lead + 1]
        rows = {"agent": np.broadcast_to(np.arange(self.size, dtype=np.int32), shape), "obs": joined}
        if self.masked:
            rows[MASK] = stack([part[MASK] for part in obs], axis=lead)
        return rows


def members_of(pair: SpacePair, algorithm: str) -> Members:
    """How a group observes and chooses.

    Raises:
        ConfigError: it is no group, its members choose otherwise than from as many actions each, they observe
            something else each, or a mask does not fit the actions.
    """
    observation, action = pair
    if not isinstance(action, TupleSpec) or not isinstance(observation, TupleSpec):
        raise ConfigError(
            f"{algorithm} learns what a group of agents does together, and here one agent observes "
            f"{summary(observation)} and chooses {summary(action)}: group agents by "
            'env.with_agent_groups({"team": [...]}), or use PPOConfig, whose agents learn each for itself'
        )
    first = action.items[0]
    count = first.n if isinstance(first, DiscreteSpec) else 0
    for place, one in enumerate(action.items):
        if not isinstance(one, DiscreteSpec) or one.n != count:
            _refuse(algorithm, "chooses one of as many actions, a Discrete", place, one, first)
    for place, seen in enumerate(observation.items):  # bounds may differ
        if misfits(described(observation.items[0], first), described(seen, first))[0]:
            _refuse(algorithm, "observes the same space", place, seen, observation.items[0])
    size, choices, member = len(action.items), DiscreteSpec(count), observation.items[0]
    parts = dict(member.items) if isinstance(member, DictSpec) else {}
    masked = sight_of(SpacePair(member, choices), (), False).masked
    stateful = {"obs", STATE} <= parts.keys()
    mask, global_ = [MASK] if masked else [], [STATE] if stateful else []

    def each(hidden: Sequence[str]) -> Spec:
        return TupleSpec(tuple(without(part, hidden) for part in observation.items))

    own = {"agent": DiscreteSpec(size), "obs": without(member, mask + global_)}
    return Members(
        size=size,
        whole=observation,
        acting=each(global_),
        covered=each(mask),
        covered_acting=each(mask + global_),
        row=DictSpec((*((key, parts[key]) for key in mask), *own.items())),
        seen=DictSpec(tuple(own.items())),
        state=parts[STATE] if stateful else each(mask),
        choices=choices,
        masked=masked,
        stateful=stateful,
    )


def _refuse(algorithm: str, rule: str, place: int, one: Spec, first: Spec) -> None:
    raise ConfigError(
        f"{algorithm}: the members of a group share one network, so each {rule}; member {place} has "
        f"{summary(one)}, member 0 has {summary(first)}. Fill the smaller space up in the env "
        '("action_mask" forbids what an agent cannot do), or use PPOConfig, which takes any group'
    )


def split(action: Array) -> Tree:
    """``(n, members)`` choices as a column of the group's action."""
    return tuple(action[:, place] for place in range(action.shape[1]))
