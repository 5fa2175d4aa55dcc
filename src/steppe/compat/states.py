"""Recurrent states as RLlib has them: a list of arrays, beside which come the action and reward before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steppe.errors import ConfigError
from steppe.spaces import collect, leaves, map_leaves, take
from steppe.types import Policy, Tree

_BESIDE = ("action", "reward")


def is_recurrent(policy: Policy) -> bool:
    """Whether it acts by what it observed before."""
    state = policy.initial_state(1)
    return isinstance(state, dict) and bool(state.keys() & {"memory", "frames"})  # noise has a state, too


def initial_state(policy: Policy) -> list[Any]:
    """A fresh trajectory's; empty without a memory."""
    return listed(take(policy.initial_state(1), 0)) if is_recurrent(policy) else []


def listed(state: Tree) -> list[Any]:
    """A policy's state, of one trajectory or of several, as RLlib has it."""
    return leaves({name: part for name, part in state.items() if name not in _BESIDE})


def joined(policy: Policy, state: Sequence[Any] | None, prev_action: Any, prev_reward: Any) -> Tree:
    """The state that a policy of steppe's is given; ``state`` as it is, of one without a memory.

    Args:
        policy: acts.
        state: as :func:`initial_state` or the action before gave it.
        prev_action: as the env takes it; zeros if None.
        prev_reward: 0 if None.

    Raises:
        ConfigError: the policy remembers, and there are more or fewer arrays.
    """
    if not is_recurrent(policy):
        return state or None
    fresh = take(policy.initial_state(1), 0)
    own = {name: part for name, part in fresh.items() if name not in _BESIDE}
    given, wanted = list(state if state is not None else ()), len(leaves(own))
    if len(given) != wanted:
        raise ConfigError(
            f"this policy has a memory: state is a list of {wanted} arrays, and {len(given)} came; begin "
            "with policy.get_initial_state(), and then give back what compute_single_action returned"
        )
    rest = iter(given)
    full = map_leaves(lambda a: np.asarray(next(rest), a.dtype), own)
    if "action" in fresh:
        full["action"] = fresh["action"]
        if prev_action is not None:
            full["action"] = take(policy.from_env(collect(policy.action, [prev_action], None)), 0)
    return (
        {**full, "reward": 0.0 if prev_reward is None else float(prev_reward)} if "reward" in fresh else full
    )
