"""Lanes keep rows where they belong: while they grow, when trajectories follow each other, over fragments."""

import gymnasium
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steppe import checkpoint
from steppe.sampling.lanes import Lanes
from steppe.spaces import spec_of
from steppe.types import Decision, TimeStep

SCALAR = spec_of(gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32))
ABOUT = {"runner": 0, "incarnation": 0, "sequence": 0, "agents": ("a",), "env_steps": 1}


def write(lanes, lane, number, *, final=False, env=0, episode=0):
    """One row per lane; its number is its observation, its reward, and its step."""
    lane, number = np.array(lane), np.array(number)
    no = np.zeros(len(lane), np.bool_)
    step = TimeStep(lane, number, number.astype(np.float32), number.astype(float), no | final, no)
    identity = np.array([[env, 0, episode, -1]] * len(lane), np.int32)
    row = lanes.place(lane)
    lanes.write(row, lane, identity, step)
    if final:
        lanes.end(row, lane, no | True, no)
        for one in lane.tolist():
            lanes.release(one)


def decide(lanes, lane, action, version=0):
    decision = Decision((np.array(action), {"x": np.array(action) / 2}), -np.array(action, np.float32))
    lanes.write_decision(np.array(lane), decision, version)


def close(lanes, live):
    return lanes.close(np.array(live, np.int64), **ABOUT)


def test_a_trajectory_continues_in_the_lane_that_became_free():
    lanes = Lanes("p", SCALAR, rows=8, lanes=2)
    assert (lanes.claim(), lanes.claim()) == (0, 1)
    write(lanes, [0, 1], [1, 2])
    decide(lanes, [0, 1], [3, 4], version=5)
    write(lanes, [1], [6], final=True)
    assert lanes.claim() == 1
    write(lanes, [0, 1], [7, 8], episode=1)
    rollout = close(lanes, [0, 1])
    assert rollout.obs.tolist() == [[1, 2], [7, 6], [0, 8]]
    assert rollout.t.tolist() == [[1, 2], [7, 6], [0, 8]]
    assert rollout.filled.tolist() == [[True, True], [True, True], [False, True]]
    assert rollout.terminated.tolist() == [[False, False], [False, True], [False, False]]
    assert rollout.action[0].tolist() == [[3, 4], [0, 0], [0, 0]]
    assert rollout.action[1]["x"].tolist() == [[1.5, 2], [0, 0], [0, 0]]
    assert rollout.logp.tolist() == [[-3, -4], [0, 0], [0, 0]]
    assert rollout.version.tolist() == [[5, 5], [0, 0], [0, 0]]
    assert rollout.episode.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert rollout.acted.tolist() == [[True, True], [False, False], [False, False]]
    assert rollout.lane_continues.tolist() == [True, True]


def test_the_closing_row_opens_the_next_fragment_with_its_action_if_it_has_one():
    lanes = Lanes("p", SCALAR, rows=4, lanes=2)
    lanes.claim(), lanes.claim()
    write(lanes, [0, 1], [1, 2])
    decide(lanes, [0, 1], [3, 4])
    write(lanes, [0], [5])
    first = close(lanes, [0, 1])
    decide(lanes, [0], [6], version=9)
    write(lanes, [0, 1], [7, 8])
    second = close(lanes, [0, 1])
    assert first.obs.tolist() == [[1, 2], [5, 0]]
    assert second.obs.tolist() == [[5, 2], [7, 8]]
    assert second.action[0].tolist() == [[6, 4], [0, 0]]
    assert second.version.tolist() == [[9, 0], [0, 0]]
    assert second.reward.tolist() == [[5, 2], [7, 8]]
    assert not np.shares_memory(first.obs, second.obs)


def test_an_ended_lane_is_empty_in_the_next_fragment():
    lanes = Lanes("p", SCALAR, rows=4, lanes=2)
    lanes.claim(), lanes.claim()
    write(lanes, [0, 1], [1, 2])
    write(lanes, [1], [3], final=True)
    assert close(lanes, [0]).lane_continues.tolist() == [True, False]
    assert lanes.is_empty(np.array([0, 1])).tolist() == [False, True]
    write(lanes, [0], [4])
    assert close(lanes, [0]).filled.tolist() == [[True, False], [True, False]]


def test_a_fragment_without_rows_or_actions():
    rollout = close(Lanes("p", SCALAR, rows=4, lanes=3), [])
    assert rollout.obs.shape == rollout.filled.shape == rollout.acted.shape == (0, 3)
    assert (rollout.action, rollout.state0) == (None, None)


def test_the_emptiest_free_lane_is_claimed():
    lanes = Lanes("p", SCALAR, rows=8, lanes=3)
    assert [lanes.claim() for _ in range(3)] == [0, 1, 2]
    write(lanes, [0, 1, 2], [1, 1, 1])
    write(lanes, [0, 2], [2, 2])
    write(lanes, [0, 1], [3, 3], final=True)
    write(lanes, [2], [4], final=True)
    assert [lanes.claim() for _ in range(3)] == [1, 0, 2]


def test_new_lanes_keep_rows_actions_and_states():
    lanes = Lanes("p", SCALAR, rows=2, lanes=1)
    lanes.claim()
    lanes.write_state0(np.array([0]), {"h": np.array([[1.0, 2.0]])})
    write(lanes, [0], [1])
    decide(lanes, [0], [3])
    assert [lanes.claim() for _ in range(3)] == [1, 2, 3]
    lanes.write_state0(np.array([2]), {"h": np.array([[5.0, 6.0]])})
    write(lanes, [0, 2], [2, 4])
    rollout = close(lanes, [0, 2])
    assert rollout.obs[:, [0, 2]].tolist() == [[1, 4], [2, 0]]
    assert rollout.action[0][:, 0].tolist() == [3, 0]
    assert rollout.state0["h"].tolist() == [[1, 2], [0, 0], [5, 6], [0, 0]]


def test_a_lost_trajectory_is_unfilled_back_to_its_first_row():
    lanes = Lanes("p", SCALAR, rows=8, lanes=2)
    lanes.claim(), lanes.claim()
    write(lanes, [0, 1], [1, 2])
    decide(lanes, [0, 1], [3, 4])
    write(lanes, [1], [5], final=True)
    lanes.claim()  # the same agent comes back within its episode
    for number in (6, 7):
        write(lanes, [1], [number])
        decide(lanes, [1], [number])
    lanes.discard(1)
    rollout = close(lanes, [0])
    assert rollout.obs.tolist() == [[1, 2], [0, 5]]
    lanes.discard(0)
    rollout = close(lanes, [])
    assert rollout.filled.shape == (0, 2)
    assert sorted([lanes.claim(), lanes.claim()]) == [0, 1]


def test_what_was_discarded_leaves_nothing_behind():
    lanes = Lanes("p", SCALAR, rows=8, lanes=2)
    lanes.claim(), lanes.claim()
    for number in (1, 2):
        write(lanes, [0, 1], [number, number])
        decide(lanes, [0, 1], [7, 8], version=9)
    lanes.discard(1)
    rollout = close(lanes, [0])
    for column in (rollout.obs, rollout.reward, rollout.logp, rollout.version, rollout.t, rollout.action[0]):
        assert not column[:, 1].any()
        assert column[:, 0].all()


@given(
    st.lists(st.tuples(st.lists(st.booleans(), min_size=5, max_size=5), st.booleans()), max_size=40),
    st.data(),
)
def test_rows_are_kept_whatever_grows(script, data):
    """Five agents at most, against one list of rows per lane."""
    lanes, number, of_agent, model = Lanes("p", SCALAR, 1, 1), 0, {}, {}
    restored = data.draw(st.booleans())
    for present, closing in script:
        for agent, here in enumerate(present):
            ends = agent in of_agent and here and data.draw(st.booleans())
            if not here:
                continue
            if agent not in of_agent:
                of_agent[agent] = lanes.claim()
            number += 1
            model.setdefault(of_agent[agent], []).append((number, ends))
            write(lanes, [of_agent[agent]], [number], final=ends)
            if ends:
                del of_agent[agent]
        if closing:
            rollout = close(lanes, sorted(of_agent.values()))
            for lane in range(rollout.filled.shape[1]):
                rows, filled = model.get(lane, []), rollout.filled[:, lane]
                assert rollout.obs[filled, lane].tolist() == [n for n, _ in rows]
                assert rollout.terminated[filled, lane].tolist() == [final for _, final in rows]
                assert filled[: len(rows)].all()
            model = {lane: model[lane][-1:] for lane in of_agent.values()}
            if restored:
                lanes = copy_of(lanes, sorted(of_agent.values()))


def copy_of(lanes, live):
    state = lanes.get_state(np.array(live, np.int64))
    again = Lanes("p", SCALAR, 1, 1)
    again.set_state(state)
    assert checkpoint.diff(again.get_state(np.array(live, np.int64)), state) == []
    return again
