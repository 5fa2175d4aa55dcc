"""The rows of one agent in one fragment as a dict of columns in time order, and back into the Rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from steppe.errors import ConfigError
from steppe.spaces import BadLeaf, collect, leaves, map_leaves, put, rows, take
from steppe.types import AgentID, IntArray, Policy, Rollout, Tree


class Trajectory(NamedTuple):
    """Acted rows of one agent and episode, in time order; all in one lane."""

    env: int
    episode: int
    agent: AgentID
    rows: IntArray
    lane: int


def trajectories(rollout: Rollout) -> list[Trajectory]:
    """Every run of acted rows of one agent and episode, in the order of lanes."""
    found = []
    acted = rollout.acted if rollout.action is not None else np.zeros_like(rollout.filled)
    who = np.stack([rollout.env, rollout.episode, rollout.agent], axis=-1)
    for lane in range(acted.shape[1]):
        rows = np.flatnonzero(acted[:, lane])
        # A final row lies between an agent that leaves an episode and the same one that comes back to it.
        apart = (np.diff(who[rows, lane], axis=0) != 0).any(axis=-1) | (np.diff(rows) > 1)
        changes = np.flatnonzero(apart) + 1
        for part in np.split(rows, changes) if len(rows) else []:
            env, episode, agent = who[part[0], lane].tolist()
            found.append(Trajectory(env, episode, rollout.agents[agent], part, lane))
    return found


def batch_of(rollout: Rollout, part: Trajectory) -> dict[str, Any]:
    """Columns ``(n, ...)`` of one trajectory, copied; each row holds an action and its outcome.

    Returns:
        obs, actions (the policy's own samples), action_logp, rewards, terminateds, truncateds, dones
        (either of the two), new_obs, t, eps_id, agent_index.
    """
    here, after = (part.rows, part.lane), (part.rows + 1, part.lane)
    terminated, truncated = rollout.terminated[after], rollout.truncated[after]
    return {
        "obs": take(rollout.obs, here),
        "actions": take(rollout.action, here),
        "action_logp": rollout.logp[here],
        "rewards": rollout.reward[after],
        "terminateds": terminated,
        "truncateds": truncated,
        "dones": terminated | truncated,
        "new_obs": take(rollout.obs, after),
        "t": rollout.t[here],
        "eps_id": rollout.episode[here],
        "agent_index": rollout.agent[here],
    }


def write_back(rollout: Rollout, part: Trajectory, batch: Mapping[str, Any], policy: Policy) -> None:
    """Put changed columns where learning finds them: obs, actions, action_logp, rewards, and the ends.

    Of new_obs the last one: the others are the obs of the next row.

    An end may turn from terminated to truncated or back; it cannot come or go, or rows would be joined that
    did not follow each other.

    Raises:
        ConfigError: a column is missing, has another shape or kind, or holds what cannot be learned from.
    """
    here, after = (part.rows, part.lane), (part.rows + 1, part.lane)
    places = {
        "obs": (rollout.obs, here),
        "actions": (rollout.action, here),
        "action_logp": (rollout.logp, here),
        "rewards": (rollout.reward, after),
        "terminateds": (rollout.terminated, after),
        "truncateds": (rollout.truncated, after),
    }
    columns = {name: _judged(name, batch.get(name), *place) for name, place in places.items()}
    ends, given = rollout.terminated[after] | rollout.truncated[after], columns["terminateds"]
    if ((given | columns["truncateds"]) != ends).any():
        raise ConfigError(
            "terminateds and truncateds of a trajectory: an end cannot come or go, only change kind"
        )
    _judge_actions(policy, columns["actions"], take(rollout.action, here))
    for name, (target, where) in places.items():
        put(target, where, columns[name])
    if "new_obs" in batch:  # but for the last one these are the rows of obs
        last, where = map_leaves(lambda a: np.asarray(a)[-1:], batch["new_obs"]), (after[0][-1:], part.lane)
        put(rollout.obs, where, _judged("new_obs", last, rollout.obs, where))


def _judged(name: str, given: Any, target: Tree, where: Any) -> Tree:
    """A column of the shape and kind of what is at ``where``, or the error that names it."""
    expected = [leaf[where] for leaf in leaves(target)]
    column = None if given is None else map_leaves(np.asarray, given)
    found = [] if column is None else leaves(column)
    if [leaf.shape for leaf in found] != [leaf.shape for leaf in expected]:
        came = [leaf.shape for leaf in found] or "nothing"
        shapes = [leaf.shape for leaf in expected]
        raise ConfigError(f"column {name!r} of a trajectory came back as {came}, not of shapes {shapes}")
    for leaf, old in zip(found, expected, strict=True):
        if not np.can_cast(leaf.dtype, old.dtype, "same_kind"):
            raise ConfigError(f"column {name!r} of a trajectory came back as {leaf.dtype}, not {old.dtype}")
        # How probable an action was that was chosen elsewhere is not known: that NaN was there before.
        if leaf.dtype.kind == "f" and not (np.isfinite(leaf) | ~np.isfinite(old)).all():
            raise ConfigError(f"column {name!r} of a trajectory came back with NaN or infinity")
    return column


def _judge_actions(policy: Policy, given: Tree, old: Tree) -> None:
    """Actions that a hook chose have to be actions."""
    if all(np.array_equal(a, b) for a, b in zip(leaves(given), leaves(old), strict=True)):
        return
    try:
        collect(policy.action, rows(policy.action, policy.to_env(given)), None, "actions")
    except BadLeaf as bad:
        text = f"{bad.leaf}: expected {bad.expected}, got {bad.got}"
        raise ConfigError(f"column 'actions' of a trajectory came back with no action, {text}") from None
