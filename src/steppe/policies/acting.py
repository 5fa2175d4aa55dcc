"""Acting outside of sampling: for some observations, as an env gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steppe.errors import ConfigError, SpaceError
from steppe.seeding import SMALLEST_NOISE
from steppe.spaces import BadLeaf, DictSpec, Spec, TupleSpec, collect, map_leaves, put, rows, take
from steppe.types import Policy, Tree


def actions_for(
    id: str,
    policy: Policy,
    weights: Any,
    obs: Mapping[Any, Any],
    rng: np.random.Generator | None,
    states: Mapping[Any, Tree] | None = None,
) -> Any:
    """An env action for each observation, by its key, in one batch.

    Args:
        id: of the policy, for messages.
        policy: acts.
        weights: as its ``load`` made them.
        obs: as envs give them.
        rng: draws actions; None takes the most likely ones, of policies that have any.
        states: by the same keys, as they came back for the observation before; of those that are missing,
            None or empty, the observation is the first of its trajectory.

    Returns:
        Actions by key; with ``states`` also the next ones, ``(actions, states)``.

    Raises:
        SpaceError: an observation is not in the policy's space, or its mask allows nothing.
        ConfigError: a state is not one of the policy's.
    """
    if not obs:
        return {} if states is None else ({}, {})
    noise, given = None, list(obs.values())
    known = None if states is None else [states.get(key) for key in obs]
    state = continued(id, policy.initial_state(len(obs)), known)
    if policy.acting is not policy.observation:
        from steppe.models.sight import shown

        given = shown(given, _keys(policy.observation) - _keys(policy.acting))
    try:
        column = collect(policy.acting, given, None)
        if rng is not None:
            noise = np.maximum(rng.random((len(obs), policy.noise_size), np.float32), SMALLEST_NOISE)
        decision = policy.act(weights, column, state, noise)
    except BadLeaf as bad:
        raise SpaceError(f"policy {id!r} cannot act on this observation: {bad}") from None
    actions = dict(zip(obs, rows(policy.action, policy.to_env(decision.action)), strict=True))
    if known is None:
        return actions
    after = known if state is None else [take(decision.state, i) for i in range(len(obs))]
    return actions, dict(zip(obs, after, strict=True))


def continued(id: str, fresh: Tree, states: Sequence[Tree] | None) -> Tree:
    """The states ``(n, ...)`` that a policy meets rows with.

    Args:
        id: of the policy, for messages.
        fresh: of ``n`` trajectories that begin, or None; is written to.
        states: of each, without a leading axis; None or empty where it begins.

    Raises:
        ConfigError: one is not a state of this policy, or it remembers and none is given at all.
    """
    if states is None:
        if isinstance(fresh, dict) and fresh.keys() & {"memory", "frames"}:
            raise ConfigError(
                f"policy {id!r} acts by what it observed before: give state={{}} with the first observation "
                "of a trajectory, and then the state that comes back with each action"
            )
        return fresh
    for i, state in enumerate([] if fresh is None else states):
        if state is None or (isinstance(state, dict | list | tuple) and not state):
            continue
        try:
            put(fresh, i, state)
        except (LookupError, TypeError, ValueError) as error:
            wanted, came = (map_leaves(np.shape, tree) for tree in (take(fresh, i), state))
            raise ConfigError(
                f"policy {id!r}: a state of shapes {came} is none of its own, which have {wanted}; give "
                " back what came with the action before, or {} where a trajectory begins"
            ) from error
    return fresh


def _keys(spec: Spec) -> set[str]:
    if isinstance(spec, TupleSpec):  # of a group: the parts of its members are alike
        return set().union(*map(_keys, spec.items))
    return {key for key, _ in spec.items} if isinstance(spec, DictSpec) else set()
