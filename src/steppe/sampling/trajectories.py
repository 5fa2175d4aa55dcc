"""The rows of one agent in one fragment as a dict of columns in time order, and back into the Rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from steppe.errors import ConfigError
from steppe.spaces import leaves, map_leaves, put, take
from steppe.types import IntArray, Rollout


class Trajectory(NamedTuple):
    """Acted rows of one agent and episode, in time order; all in one lane."""

    env: int
    episode: int
    agent: str
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


def write_back(rollout: Rollout, part: Trajectory, batch: Mapping[str, Any]) -> None:
    """Put changed columns where learning finds them: obs, actions, action_logp, rewards, and the ends.

    Raises:
        ConfigError: a column is missing or has another shape.
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
    for name, (target, where) in places.items():
        shapes = [leaf[where].shape for leaf in leaves(target)]
        given = None if name not in batch else map_leaves(np.asarray, batch[name])
        if given is None or [leaf.shape for leaf in leaves(given)] != shapes:
            came = "nothing" if given is None else [leaf.shape for leaf in leaves(given)]
            raise ConfigError(f"column {name!r} of a trajectory came back as {came}, not of shapes {shapes}")
        put(target, where, given)
