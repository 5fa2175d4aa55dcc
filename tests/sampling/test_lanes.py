"""Lanes keep rows where they belong: while they grow, when trajectories follow each other, over fragments."""

import gymnasium
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steppe.sampling.lanes import Lanes
from steppe.spaces import spec_of
from steppe.types import Decision, TimeStep
from tests.states import diff

SCALAR = spec_of(gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32))
ABOUT = {"runner": 0, "incarnation": 0, "sequence": 0, "agents": ("a",), "env_steps": 1}


def make(rows, lanes):
    made = Lanes("p", SCALAR, rows, lanes)
    made.grow_slots(16)
    return made


def write(lanes, rows, ends=(), episode=0):
    """The rows of one poll, ``{slot: number}``; a number is its row's observation, reward and step."""
    slot, number = np.array(list(rows)), np.array(list(rows.values()))
    final = np.isin(slot, ends)
    step = TimeStep(slot, number, number.astype(np.float32), number.astype(float), final, ~final & False)
    identity = np.array([[0, 0, episode, -1]] * len(slot), np.int32)
    lanes.write(step, identity, final if final.any() else None)


def decide(lanes, actions, version=0):
    """Answer slots, ``{slot: action}``."""
    action = np.array(list(actions.values()))
    decision = Decision((action, {"x": action / 2}), -action.astype(np.float32))
    lanes.write_decision(np.array(list(actions)), decision, version)


def close(lanes):
    return lanes.close(**ABOUT)


def test_a_trajectory_continues_in_the_lane_that_became_free():
    lanes = make(rows=8, lanes=2)
    write(lanes, {4: 1, 7: 2})
    decide(lanes, {4: 3, 7: 4}, version=5)
    write(lanes, {5: 8, 4: 7, 7: 6}, ends=[7], episode=1)  # the successor comes first
    rollout = close(lanes)
    assert rollout.obs.tolist() == [[1, 2], [7, 6], [0, 8]]
    assert rollout.t.tolist() == [[1, 2], [7, 6], [0, 8]]
    assert rollout.filled.tolist() == [[True, True], [True, True], [False, True]]
    assert rollout.terminated.tolist() == [[False, False], [False, True], [False, False]]
    assert rollout.action[0].tolist() == [[3, 4], [0, 0], [0, 0]]
    assert rollout.action[1]["x"].tolist() == [[1.5, 2], [0, 0], [0, 0]]
    assert rollout.logp.tolist() == [[-3, -4], [0, 0], [0, 0]]
    assert rollout.version.tolist() == [[5, 5], [0, 0], [0, 0]]
    assert rollout.episode.tolist() == [[0, 0], [1, 1], [0, 1]]
    assert rollout.acted.tolist() == [[True, True], [False, False], [False, False]]
    assert rollout.lane_continues.tolist() == [True, True]


def test_the_closing_row_opens_the_next_fragment_with_its_action_if_it_has_one():
    lanes = make(rows=4, lanes=2)
    write(lanes, {0: 1, 1: 2})
    decide(lanes, {0: 3, 1: 4})
    write(lanes, {0: 5})
    first = close(lanes)
    decide(lanes, {0: 6}, version=9)
    write(lanes, {0: 7, 1: 8})
    second = close(lanes)
    assert first.obs.tolist() == [[1, 2], [5, 0]]
    assert second.obs.tolist() == [[5, 2], [7, 8]]
    assert second.action[0].tolist() == [[6, 4], [0, 0]]
    assert second.version.tolist() == [[9, 0], [0, 0]]
    assert second.reward.tolist() == [[5, 2], [7, 8]]
    assert not np.shares_memory(first.obs, second.obs)


def test_an_ended_lane_is_empty_in_the_next_fragment():
    lanes = make(rows=4, lanes=2)
    write(lanes, {0: 1, 1: 2})
    write(lanes, {1: 3}, ends=[1])
    assert close(lanes).lane_continues.tolist() == [True, False]
    write(lanes, {0: 4})
    assert close(lanes).filled.tolist() == [[True, False], [True, False]]


def test_a_trajectory_of_one_final_row_is_not_stored():
    lanes = make(rows=4, lanes=2)
    write(lanes, {0: 1, 1: 2, 2: 3}, ends=[1])
    rollout = close(lanes)
    assert rollout.obs.tolist() == [[1, 3]]
    assert not rollout.terminated.any()
    write(lanes, {3: 4}, ends=[3])
    assert close(lanes).obs.tolist() == [[1, 3]]


def test_a_fragment_without_rows_or_actions():
    rollout = close(make(rows=4, lanes=3))
    assert rollout.obs.shape == rollout.filled.shape == rollout.acted.shape == (0, 3)
    assert (rollout.action, rollout.state0) == (None, None)


def test_the_emptiest_free_lane_is_taken():
    lanes = make(rows=8, lanes=3)
    write(lanes, {0: 1, 1: 1, 2: 1})
    write(lanes, {0: 2, 2: 2})
    write(lanes, {0: 3, 1: 3}, ends=[0, 1])
    write(lanes, {2: 4}, ends=[2])
    write(lanes, {3: 5})
    write(lanes, {4: 6, 5: 7})
    # Lengths were 3, 2, 3: the first newcomer goes to lane 1, the others follow in lanes 0 and 2.
    assert close(lanes).obs.tolist() == [[1, 1, 1], [2, 3, 2], [3, 5, 4], [6, 0, 7]]


def test_new_lanes_keep_rows_actions_and_states():
    lanes = make(rows=2, lanes=1)
    write(lanes, {0: 1})
    lanes.write_state0(lanes.at_row0(np.array([0])), {"h": np.array([[1.0, 2.0]])})
    decide(lanes, {0: 3})
    write(lanes, {0: 2, 1: 4, 2: 5})
    assert lanes.at_row0(np.array([0, 1, 2])).tolist() == [1, 2]
    lanes.write_state0(np.array([2]), {"h": np.array([[5.0, 6.0]])})
    rollout = close(lanes)
    assert rollout.obs[:, :3].tolist() == [[1, 4, 5], [2, 0, 0]]
    assert rollout.action[0][:, 0].tolist() == [3, 0]
    assert rollout.state0["h"][:3].tolist() == [[1, 2], [0, 0], [5, 6]]


def test_rows_grow_when_the_lanes_are_full_also_after_a_fragment():
    lanes = make(rows=2, lanes=1)
    write(lanes, {0: 1})
    close(lanes)
    for number in (2, 3, 4):
        write(lanes, {0: number})
    assert close(lanes).obs[:, 0].tolist() == [1, 2, 3, 4]


def test_rows_do_not_grow_while_there_is_room():
    """Many polls with rows for one lane each are not many rows."""
    lanes = make(rows=6, lanes=8)
    for slot in range(8):
        for number in (1, 2, 3):
            write(lanes, {slot: number})
    close(lanes)
    assert lanes.get_state()["rows"] == 6


def test_a_lost_trajectory_is_unfilled_back_to_its_first_row():
    lanes = make(rows=8, lanes=2)
    write(lanes, {0: 1, 1: 2})
    decide(lanes, {0: 3, 1: 4})
    write(lanes, {1: 5}, ends=[1])
    for number in (6, 7):  # the same agent is back within its episode
        write(lanes, {3: number})
        decide(lanes, {3: number})
    lanes.discard(3)
    assert close(lanes).obs.tolist() == [[1, 2], [0, 5]]
    lanes.discard(0)
    lanes.discard(9)  # it had no rows
    assert close(lanes).filled.shape == (0, 2)
    write(lanes, {4: 1, 5: 2})
    assert close(lanes).obs.tolist() == [[1, 2]]


def test_what_was_discarded_leaves_nothing_behind():
    lanes = make(rows=8, lanes=2)
    for number in (1, 2):
        write(lanes, {0: number, 1: number})
        decide(lanes, {0: 7, 1: 8}, version=9)
    lanes.discard(1)
    rollout = close(lanes)
    for column in (rollout.obs, rollout.reward, rollout.logp, rollout.version, rollout.t, rollout.action[0]):
        assert not column[:, 1].any()
        assert column[:, 0].all()


polls = st.tuples(
    st.lists(st.sampled_from(["", "row", "end"]), min_size=5, max_size=5), st.booleans(), st.booleans()
)


@given(st.lists(polls, max_size=40))
def test_rows_are_kept_whatever_grows(script):
    """Five agents at most; the fragments of all lanes, joined at closing rows, give their trajectories."""
    lanes, live, number, wanted, found = make(1, 1), {}, 0, [], {}
    slots = list(range(16))
    for agents, closing, restoring in script:
        rows, ends = {}, []
        for agent, does in enumerate(agents):
            if does == "end" and agent in live:
                ends.append(live[agent][0])
            if does:
                number += 1
                if agent not in live:
                    wanted.append([])
                    live[agent] = slots.pop(0), wanted[-1]
                slot, trajectory = live[agent]
                rows[slot] = number
                trajectory.append(number)
        if rows:
            write(lanes, rows, ends)
        live = {agent: one for agent, one in live.items() if one[0] not in ends}
        slots += ends
        if closing:
            collect(close(lanes), found)
            lanes = copy_of(lanes) if restoring else lanes
    collect(close(lanes), found)
    assert sorted(found.values()) == sorted(one for one in wanted if one)


def collect(rollout, found):
    """Adds the rows of a fragment to ``found``: trajectories by their first row."""
    newest = {rows[-1]: first for first, rows in found.items()}
    for lane in range(rollout.filled.shape[1]):
        filled = rollout.filled[:, lane]
        assert filled[: filled.sum()].all()
        numbers, final = rollout.obs[filled, lane].astype(int).tolist(), rollout.terminated[filled, lane]
        first = None
        for number, ends in zip(numbers, final, strict=True):
            if first is None:
                first = newest.get(number, number)
            if found.setdefault(first, [])[-1:] != [number]:
                found[first].append(number)
            first = None if ends else first
        assert rollout.lane_continues[lane] == (first is not None)


def copy_of(lanes):
    state = lanes.get_state()
    again = make(1, 1)
    again.set_state(state)
    assert diff(again.get_state(), state) == []
    return again
