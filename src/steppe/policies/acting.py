"""Acting outside of sampling: for some observations, as an env gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steppe.errors import SpaceError
from steppe.seeding import SMALLEST_NOISE
from steppe.spaces import BadLeaf, DictSpec, Spec, TupleSpec, collect, rows
from steppe.types import Policy


def actions_for(
    id: str, policy: Policy, weights: Any, obs: Mapping[Any, Any], rng: np.random.Generator | None
) -> dict[Any, Any]:
    """An env action for each observation, by its key, in one batch.

    Args:
        id: of the policy, for messages.
        policy: acts.
        weights: as its ``load`` made them.
        obs: as envs give them.
        rng: draws actions; None takes the most likely ones, of policies that have any.

    Raises:
        SpaceError: an observation is not in the policy's space, or its mask allows nothing.
    """
    if not obs:
        return {}
    noise, given = None, list(obs.values())
    if policy.acting is not policy.observation:
        from steppe.models.sight import shown

        given = shown(given, _keys(policy.observation) - _keys(policy.acting))
    try:
        column = collect(policy.acting, given, None)
        if rng is not None:
            noise = np.maximum(rng.random((len(obs), policy.noise_size), np.float32), SMALLEST_NOISE)
        decision = policy.act(weights, column, policy.initial_state(len(obs)), noise)
    except BadLeaf as bad:
        raise SpaceError(f"policy {id!r} cannot act on this observation: {bad}") from None
    return dict(zip(obs, rows(policy.action, policy.to_env(decision.action)), strict=True))


def _keys(spec: Spec) -> set[str]:
    if isinstance(spec, TupleSpec):  # of a group: the parts of its members are alike
        return set().union(*map(_keys, spec.items))
    return {key for key, _ in spec.items} if isinstance(spec, DictSpec) else set()
