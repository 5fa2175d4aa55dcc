"""Policies that have parts of their networks in common: one parameter tree, stepped by summed gradients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, final

import jax
import numpy as np

from steppe.errors import ConfigError
from steppe.learning.independent import PolicyLearner
from steppe.learning.learner import Stats
from steppe.learning.on_policy import LearnerState, OnPolicyLearner, Prepared, Team, compiled_update
from steppe.models.catalog import ActorCritic
from steppe.policies.actor_critic import Layout
from steppe.types import Array, IntArray

logger = logging.getLogger("steppe")

_ALONE = "policy %s shares %s with no other policy; the other names of shared parts are %s"


def parts_of(model: ActorCritic) -> dict[str, Any]:
    """The parts that can be shared, by the names that the setting ``share`` gives them."""
    pi, vf = model.actor.mlp, model.critic.mlp
    return {
        "encoder": (model.actor.encoder, pi.weights[:-1], pi.biases[:-1]),
        "pi": (pi.weights[-1], pi.biases[-1], model.actor.log_std),
        "critic_encoder": (model.critic.encoder, vf.weights[:-1], vf.biases[:-1]),
        "vf": (vf.weights[-1], vf.biases[-1]),
    }


class _Plan(NamedTuple):
    """How some policies learn together.

    Attributes:
        team: what the compiled update is keyed by.
        where: for each of them, where its flat parameters are in the flat vector of all.
    """

    team: Team
    where: list[IntArray]

    def packed(self, vectors: Sequence[Array]) -> Array:
        """One flat vector out of theirs."""
        out = np.zeros(max(int(index.max()) for index in self.where) + 1, np.float32)
        for index, vector in zip(self.where, vectors, strict=True):
            out[index] = vector
        return out


@final
class Sharing:
    """Makes the updates of those policies that share something, and keeps what they share equal.

    Args:
        learners: by policy id; those that share nothing are left alone.

    Attributes:
        teams: ids of policies that share something, directly or through others.

    Raises:
        ConfigError: a policy has no such part, parts of one name have other shapes, or policies that share
            learn at another pace.
    """

    def __init__(self, learners: Mapping[str, PolicyLearner]) -> None:
        self._learners: dict[str, OnPolicyLearner] = {}
        for id, learner in learners.items():
            if learner.share and not isinstance(learner, OnPolicyLearner):
                raise ConfigError(f"policy {id!r}: what it learns by cannot share parts of its networks")
            if isinstance(learner, OnPolicyLearner) and learner.share:
                self._learners[id] = learner
        self._leaves = {id: _leaves_by_name(id, learner) for id, learner in self._learners.items()}
        for a, b in combinations(self._learners, 2):
            self._check(a, b)
        self.teams = _connected(self._leaves)
        for team in self.teams:
            self.spread(team[0])
        names = [name for own in self._leaves.values() for name in own]
        for id, own in self._leaves.items():
            if alone := [name for name in own if names.count(name) == 1]:
                logger.warning(_ALONE, id, alone, sorted({*names} - {*alone}))

    def _check(self, a: str, b: str) -> None:
        for name in self._leaves[a].keys() & self._leaves[b].keys():
            shapes = [
                [self._learners[id].static.layout.shapes[i] for i in self._leaves[id][name]] for id in (a, b)
            ]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"policies {a!r} and {b!r} share {name!r}, whose arrays have shapes {shapes[0]} in one, "
                    f"{shapes[1]} in the other; give them the same fcnet_hiddens and observations"
                )
            for setting, one in self._learners[a].pace.items():
                other = self._learners[b].pace[setting]
                if one != other:
                    raise ConfigError(
                        f"policies {a!r} and {b!r} share {name!r}, which is stepped once for both: their "
                        f"{setting} must be equal, not {one} and {other}"
                    )

    def update(self, trained: Sequence[str], env_steps: int) -> dict[str, Stats | None]:
        """Update those of the policies that are ``trained`` and have a batch, each team in common steps."""
        updates: dict[str, Stats | None] = {}
        for team in self.teams:
            ready: dict[str, Prepared] = {}
            for id in [id for id in team if id in trained]:
                one = self._learners[id].prepare(env_steps)
                if one is None:
                    updates[id] = self._learners[id].answer
                else:
                    ready[id] = one
            if ready:
                updates |= self._learn(ready)
                for id in ready:
                    self.spread(id)
        return updates

    def _learn(self, ready: Mapping[str, Prepared]) -> dict[str, Stats]:
        plan, batches = self._plan(tuple(ready)), list(ready.values())
        learners = [self._learners[id] for id in ready]
        params, mu, nu = (plan.packed(part) for part in zip(*map(_flat, learners), strict=True))
        empty, adam = learners[0].state.opt
        count = max(int(learner.state.opt[1].count) for learner in learners)
        given = (
            [tuple(learner.state[2:]) for learner in learners],
            [one.statistics for one in batches],
            [one.rows for one in batches],
            [
                _extended(one.order, learner.static.minibatch)
                for one, learner in zip(batches, learners, strict=True)
            ],
            [one.count for one in batches],
            [one.hyper for one in batches],
        )
        opt = (empty, adam._replace(count=np.int32(count), mu=mu, nu=nu))
        (params, (_, adam), statistics), parts = compiled_update(plan.team)(params, opt, *given)
        flat = [np.asarray(array) for array in (params, adam.mu, adam.nu)]
        stats = {}
        for k, (id, learner) in enumerate(zip(ready, learners, strict=True)):
            own, mu, nu = (array[plan.where[k]] for array in flat)
            state = LearnerState(own, (empty, adam._replace(mu=mu, nu=nu)), *statistics[k])
            stats[id] = learner.learned(state, parts[k], batches[k])
        return stats

    def _plan(self, ids: tuple[str, ...]) -> _Plan:
        """Which arrays of these policies are one."""
        shapes: list[tuple[int, ...]] = []
        known: dict[Any, int] = {}
        places: list[tuple[int, ...]] = []
        for id in ids:
            shared = {
                leaf: (name, i) for name, part in self._leaves[id].items() for i, leaf in enumerate(part)
            }
            own = self._learners[id].static.layout.shapes
            for leaf, shape in enumerate(own):
                if known.setdefault(shared.get(leaf, (id, None, leaf)), len(shapes)) == len(shapes):
                    shapes.append(shape)
            places.append(tuple(known[shared.get(leaf, (id, None, leaf))] for leaf in range(len(own))))
        layout = Layout(jax.tree.structure([0] * len(shapes)), tuple(shapes))
        team = Team(tuple(self._learners[id].static for id in ids), layout, tuple(places))
        return _Plan(team, [_positions(layout, place) for place in places])

    def spread(self, source: str) -> None:
        """Give what ``source`` shares to all that share it: parameters and the optimizer's moments."""
        given = self._leaves.get(source, {})
        for id in self._leaves.keys() - {source}:
            names = sorted(given.keys() & self._leaves[id].keys())
            if names:
                here, there = (self._learners[one].static.layout for one in (id, source))
                to = _positions(here, [leaf for name in names for leaf in self._leaves[id][name]])
                come = _positions(there, [leaf for name in names for leaf in given[name]])
                learner, arrays = self._learners[id], []
                for own, new in zip(_flat(learner), _flat(self._learners[source]), strict=True):
                    arrays.append(own.copy())
                    arrays[-1][to] = new[come]
                empty, adam = learner.state.opt
                opt = (empty, adam._replace(mu=arrays[1], nu=arrays[2]))
                learner.state = learner.state._replace(params=arrays[0], opt=opt)


def _extended(order: Array, size: int) -> Array:
    """Room behind the last row: the minibatches of a team may begin anywhere."""
    return np.concatenate([order, order[:, :size]], axis=1)


def _flat(learner: OnPolicyLearner) -> tuple[Array, Array, Array]:
    """Parameters, and Adam's first and second moments of them."""
    params, (_, adam), *_ = learner.state
    return np.asarray(params), np.asarray(adam.mu), np.asarray(adam.nu)


def _positions(layout: Layout, leaves: Sequence[int]) -> IntArray:
    """Where some arrays are in the flat vector of a layout."""
    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in layout.shapes)])
    return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in leaves])


def _leaves_by_name(id: str, learner: OnPolicyLearner) -> dict[str, list[int]]:
    """Which arrays of a policy are shared, by the name that they are shared under.

    Raises:
        ConfigError: a part has no arrays, or two parts have one name.
    """
    layout = learner.static.layout
    model = jax.tree.unflatten(layout.treedef, range(len(layout.shapes)))
    if not isinstance(model, ActorCritic):
        raise ConfigError(
            f"policy {id!r}: share={learner.share}: networks with a memory, and those of your own, have no "
            "parts that can be shared; leave it out"
        )
    parts = parts_of(model)
    found: dict[str, list[int]] = {}
    for part, name in learner.share.items():
        leaves = jax.tree.leaves(parts[part])
        if not leaves or name in found:
            why = f"another part is shared as {name!r}" if leaves else "its networks have no such part"
            raise ConfigError(f"policy {id!r}: share={learner.share}: {part!r}: {why}")
        found[name] = leaves
    return found


def _connected(names: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Ids that share a name, or share one with somebody who does."""
    teams: list[list[str]] = []
    for id, own in names.items():
        near = [team for team in teams if any(own.keys() & names[other].keys() for other in team)]
        teams = [team for team in teams if team not in near] + [[*(one for team in near for one in team), id]]
    return teams
