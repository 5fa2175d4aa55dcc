"""One agent's rows as columns: cut where episodes, agents and stays end, and written back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from steppe.errors import ConfigError
from steppe.sampling.trajectories import batch_of, trajectories, write_back
from steppe.spaces import DiscreteSpec
from steppe.types import Rollout


def rollout(lanes, **changes):
    """A Rollout from lanes of rows ``(env, agent, episode, t, reward, final)``; obs is 10 t, action t."""
    rows = max(map(len, lanes))
    columns = np.full((rows, len(lanes), 6), -1.0)
    for lane, given in enumerate(lanes):
        columns[: len(given), lane] = np.array(given, np.float64)
    env, agent, episode, t, reward, final = np.moveaxis(columns, -1, 0)
    filled = env >= 0
    whole = [np.where(filled, column, 0).astype(np.int32) for column in (env, agent, episode, t)]
    given = dict(
        obs=(10.0 * t)[..., None].astype(np.float32),
        action=t.astype(np.int32),
        logp=-t.astype(np.float32),
        reward=reward.astype(np.float32),
        terminated=filled & (final == 1),
        truncated=filled & (final == 2),
        filled=filled,
        version=np.zeros((rows, len(lanes)), np.int32),
        env=whole[0],
        agent=whole[1],
        episode=whole[2],
        t=whole[3],
        policy="p",
        runner=0,
        incarnation=0,
        sequence=0,
        lane_continues=np.zeros(len(lanes), np.bool_),
        agents=("red", "blue"),
        env_steps=rows,
    )
    return Rollout(**{**given, **changes})


POLICY = SimpleNamespace(action=DiscreteSpec(6, 0), to_env=lambda column: column)

LANES = [
    # red's episode 0 ends with 3 rows; its episode 1 is cut off after two.
    [(0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 1, 0), (0, 0, 0, 2, 2, 1), (0, 0, 1, 0, 0, 0), (0, 0, 1, 1, 5, 0)],
    # blue leaves episode 0 of env 1, comes back to it, and is still there.
    [(1, 1, 0, 0, 0, 0), (1, 1, 0, 1, 3, 2), (1, 1, 0, 4, 0, 0), (1, 1, 0, 5, 4, 0)],
    # A row that waits for its first action taught nothing yet.
    [(2, 0, 0, 0, 0, 0)],
]


def test_rows_are_cut_by_episode_and_by_stay():
    parts = trajectories(rollout(LANES))
    found = [(part.env, part.agent, part.episode, part.rows.tolist(), part.lane) for part in parts]
    assert found == [
        (0, "red", 0, [0, 1], 0),
        (0, "red", 1, [3], 0),
        (1, "blue", 0, [0], 1),
        (1, "blue", 0, [2], 1),
    ]


def test_a_row_holds_an_action_and_its_outcome():
    whole = rollout(LANES)
    batch = batch_of(whole, trajectories(whole)[0])
    expected = {
        "obs": [[0.0], [10.0]],
        "actions": [0, 1],
        "action_logp": [0.0, -1.0],
        "rewards": [1.0, 2.0],
        "terminateds": [False, True],
        "truncateds": [False, False],
        "dones": [False, True],
        "new_obs": [[10.0], [20.0]],
        "t": [0, 1],
        "eps_id": [0, 0],
        "agent_index": [0, 0],
    }
    assert {name: column.tolist() for name, column in batch.items()} == expected


def test_what_is_written_back_is_where_learning_looks():
    whole = rollout(LANES)
    part = trajectories(whole)[0]
    batch = batch_of(whole, part)
    before = whole.reward.copy()
    batch["rewards"] = [7.0, 8.0]
    batch["obs"] += 1.0
    batch["action_logp"][:] = -9.0
    write_back(whole, part, batch, POLICY)
    before[1:3, 0] = 7.0, 8.0
    np.testing.assert_array_equal(whole.reward, before)
    assert whole.obs[:4, 0, 0].tolist() == [1.0, 11.0, 20.0, 0.0]
    assert whole.logp[:3, 0].tolist() == [-9.0, -9.0, -2.0]


@pytest.mark.parametrize(
    ("name", "value"), [("rewards", [1.0]), ("obs", np.zeros((2, 3))), ("actions", None)]
)
def test_a_column_of_another_shape_is_named(name, value):
    whole = rollout(LANES)
    part = trajectories(whole)[0]
    batch = batch_of(whole, part)
    if value is None:
        del batch[name]
    else:
        batch[name] = value
    with pytest.raises(ConfigError, match=rf"column '{name}' of a trajectory came back as"):
        write_back(whole, part, batch, POLICY)


def test_nobody_has_acted_yet():
    assert trajectories(rollout(LANES, action=None)) == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("terminateds", [False, False], "an end cannot come or go"),
        ("terminateds", [True, True], "an end cannot come or go"),
        ("truncateds", [True, False], "an end cannot come or go"),
        ("rewards", [np.nan, 0.0], "'rewards' of a trajectory came back with NaN"),
        ("actions", [0.5, 1.0], "'actions' of a trajectory came back as float64, not int32"),
        ("actions", [0, 77], r"no action, actions: expected .*0 to 5.*77"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(name, value, text):
    whole = rollout(LANES)
    part = trajectories(whole)[0]
    before = whole.reward.copy()
    with pytest.raises(ConfigError, match=text):
        write_back(
            whole, part, {**batch_of(whole, part), "rewards": [3.0, 4.0], name: np.array(value)}, POLICY
        )
    np.testing.assert_array_equal(whole.reward, before)  # all of it or nothing


def test_an_end_may_change_its_kind():
    whole = rollout(LANES)
    part = trajectories(whole)[0]
    ends = {"terminateds": np.array([False, False]), "truncateds": np.array([False, True])}
    write_back(whole, part, {**batch_of(whole, part), **ends}, POLICY)
    assert (whole.terminated[2, 0], whole.truncated[2, 0]) == (False, True)
