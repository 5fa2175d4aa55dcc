"""Observations that a function changes on their way to the agents, and agents that are told who they are."""

from __future__ import annotations

from copy import deepcopy

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.envs.agents import MultiAgentRows
from steppe.envs.base_env import BaseEnv, BaseEnvRows
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.envs.observing import Observing
from steppe.envs.registry import build
from steppe.errors import ConfigError, EnvError
from steppe.spaces import spec_of
from tests.envs.agent_scripts import Driver, rows_of, scripts_of

LINE = Box(-1e6, 1e6, (1,), np.float32)


def array(*numbers):
    return np.array(numbers, np.float32)


class Asked:
    """A function of an env's index, the number of its episode, the step and the observations."""

    runner = None

    def __init__(self, function):
        self.function, self.moments = function, []

    def __call__(self, moment, obs):
        self.moments.append(moment[:3])
        return self.function(*moment[:3], obs)

    def get_state(self, envs):
        return []

    def set_state(self, state):
        assert state == []


def by(function=None, *, add_agent_id=False, policies_say=False):
    function = None if function is None else Asked(function)
    return Observing(function, add_agent_id=add_agent_id, policies_say=policies_say)


class Pair(MultiAgentEnv):
    """Agents "a" and "b" observe the step, and earn 1 and 10 with each; "b" ends at step 2, all at step 4."""

    def __init__(self, possible=("a", "b"), old=False, space=LINE, see=lambda t: array(t)):
        self.possible_agents, self.old, self.see, self.got = list(possible), old, see, []
        self.observation_space, self.action_space = space, Discrete(5)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        obs = {agent: self.see(0) for agent in "ab"}
        return obs if self.old else (obs, {})

    def step(self, action_dict):
        self.got.append(dict(action_dict))
        self.t += 1
        here = "ab" if self.t <= 2 else "a"
        obs, ends = {a: self.see(self.t) for a in here}, {"b": True} if self.t == 2 else {}
        rewards = {a: 1.0 if a == "a" else 10.0 for a in here}
        flags = {**ends, "__all__": self.t == 4}
        if self.old:
            return obs, rewards, flags, {}
        return obs, rewards, flags, {"__all__": False}, {}


class Player:
    """Answers everyone with the number of their turn; writes down rows as (agent, t, obs, reward, end)."""

    def __init__(self, env):
        self.env, self.who, self.turn = env, {}, 0

    def poll(self):
        steps = self.env.poll()
        rows = []
        for step in steps:
            self.who |= {info.slot: info for info in step.opened}
            ends = np.where(step.terminated, "terminated", np.where(step.truncated, "truncated", ""))
            for row, slot in enumerate(step.slot.tolist()):
                obs = _row(step.obs, row)
                agent = self.who[slot].agent
                rows.append((agent, int(step.t[row]), obs, float(step.reward[row]), str(ends[row])))
            acting = step.slot[~(step.terminated | step.truncated)]
            self.env.send_actions(acting, np.full(len(acting), self.turn))
        self.turn += 1
        return rows


def _row(column, row):
    if isinstance(column, dict):
        return {key: _row(part, row) for key, part in column.items()}
    if isinstance(column, tuple):
        return tuple(_row(part, row) for part in column)
    return column[row].tolist()


def shuffled(env, episode, t, obs):
    """Twice the number is what "a" sees, "b" is shown at even steps, and "c" watches from step 1 to 3."""
    own = {agent: 2 * value if agent == "a" else value for agent, value in obs.items()}
    if t % 2:
        own.pop("b", None)
    if 1 <= t <= 3:
        own["c"] = array(100 + t)
    return own


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("possible", [("a", "b"), ()])
def test_agents_are_rewritten_dropped_and_added_number_by_number(old, possible):
    env = Pair(possible, old=old)
    rows = MultiAgentRows([env], seeds=[0], observing=by(shuffled))
    player = Player(rows)
    assert player.poll() == [("a", 0, [0], 0, ""), ("b", 0, [0], 0, "")]
    assert player.poll() == [("a", 1, [2], 1, ""), ("c", 1, [101], 0, "")]
    assert player.poll() == [
        ("a", 2, [4], 1, ""),
        ("c", 2, [102], 0, ""),
        ("b", 2, [2], 20, "terminated"),  # with what it earned while it was not shown
    ]
    assert player.poll() == [("a", 3, [6], 1, ""), ("c", 3, [103], 0, "")]
    assert player.poll() == [
        ("a", 0, [0], 0, ""),
        ("b", 0, [0], 0, ""),
        ("a", 4, [8], 1, "terminated"),
        ("c", 4, [103], 0, "terminated"),
    ]
    assert env.got == [{"a": 0, "b": 0}, {"a": 1, "c": 1}, {"a": 2, "c": 2}, {"a": 3, "c": 3}]
    assert rows.health() == ({"E401 reset": 2, "E401 step": 4} if old else {})


def test_who_is_never_shown_may_be_unknown_to_everyone():
    """Its flags and rewards are the env's own business, its reward is said to be lost."""
    observing = by(lambda env, episode, t, obs: {"a": obs["a"]})
    rows = MultiAgentRows([Pair(())], seeds=[0], observing=observing)
    player = Player(rows)
    ends = [[row[4] for row in player.poll()] for _ in range(5)]
    assert ends == [[""], [""], [""], [""], ["", "terminated"]]
    assert rows.health() == {"E404 rewards": 1}


def test_the_function_is_told_when_and_may_write_to_its_dict():
    class Keeps(Pair):
        def step(self, action_dict):
            self.kept, *_ = result = super().step(action_dict)
            return result

    def take(env, episode, t, obs):
        obs["z"] = obs.pop("a")
        return obs

    env, observing = Keeps(), by(take)
    player = Player(MultiAgentRows([env], seeds=[0], observing=observing))
    for _ in range(3):
        player.poll()
    assert sorted(env.kept) == ["a", "b"]
    for _ in range(3):
        player.poll()
    steps = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 0, 4), (0, 1, 0), (0, 1, 1)]
    assert observing.function.moments == steps


def dropped(env, episode, t, agent):
    return hash((env, episode, t, str(agent) == "a", agent == 0)) % 3 == 0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), steady=st.sampled_from([0.2, 0.8]))
def test_rows_are_those_of_an_env_that_shows_what_the_function_does(seed, steady):
    """Naive reference: the scripts without what is dropped, played without a function."""
    scripts = scripts_of(seed, steady=steady)
    less = deepcopy(scripts)
    for i, script in enumerate(less):
        for number, turns in enumerate(script):
            for t, turn in enumerate(turns):
                turn.obs = {a: o for a, o in turn.obs.items() if not dropped(i, number, t, a)}

    def drop(env, episode, t, obs):
        number = episode % len(scripts[env])
        return {agent: one for agent, one in obs.items() if not dropped(env, number, t, agent)}

    ours = Driver(rows_of(scripts, observing=by(drop)), seed, 0.7).run(60)
    naive = Driver(rows_of(less), seed, 0.7).run(60)
    assert ours.found == naive.found
    assert ours.sent == naive.sent
    same = Driver(rows_of(scripts, observing=by(lambda env, episode, t, obs: obs)), seed).run(40)
    assert same.found == Driver(rows_of(scripts), seed).run(40).found


def test_a_state_is_gone_on_from_in_the_middle_of_an_episode():
    def count(env, episode, t, obs):
        return {**obs, f"extra_{t}": array(episode)} if t % 2 else obs

    def made():
        return MultiAgentRows([Pair(), Pair()], seeds=[0, 1], observing=by(count))

    rows = made()
    player = Player(rows)
    for _ in range(6):
        player.poll()
    rows.poll()
    state, again = rows.get_state(), made()
    assert again.set_state(deepcopy(state)) == []
    assert again.get_state()["episodes"] == state["episodes"]
    assert again._observing.function.moments[-3:] == [(1, 1, 0), (1, 1, 1), (1, 1, 2)]


def test_a_buffer_that_the_function_writes_to_again_and_again():
    buffer = array(0)

    def reuse(env, episode, t, obs):
        buffer[:] = 100 * env + t
        return {"a": buffer}

    rows = MultiAgentRows([Pair(), Pair()], seeds=[0, 1], observing=by(reuse))
    player = Player(rows)
    for t in range(4):
        assert [row[2] for row in player.poll()] == [[t], [100 + t]]


class Single(BaseEnv):
    """One agent in each of two envs; each episode has three steps."""

    observation_space, action_space, num_envs = LINE, Discrete(5), 2

    def __init__(self):
        self.t, self.sent = -1, []

    def poll(self):
        self.t += 1
        over = self.t % 3 == 2
        obs = {i: {"agent0": array(self.t % 3)} for i in range(2)}
        rewards = {} if self.t % 3 == 0 else {i: {"agent0": 1.0} for i in range(2)}
        flags = {i: {"__all__": over} for i in range(2)}
        return obs, rewards, flags, {i: {"__all__": False} for i in range(2)}, {}, {}

    def send_actions(self, action_dict):
        self.sent.append(action_dict)


def test_a_low_level_env():
    base = Single()
    observing = by(lambda env, episode, t, obs: {**obs, "boss": obs["agent0"] + 10 * env})
    rows = BaseEnvRows(base, seeds=[0, 1], observing=observing)
    player = Player(rows)
    assert [row[:3] for row in player.poll()] == [
        ("agent0", 0, [0]),
        ("boss", 0, [0]),
        ("agent0", 0, [0]),
        ("boss", 0, [10]),
    ]
    assert [row[2] for row in player.poll()] == [[1], [1], [1], [11]]
    assert base.sent == [{i: {"agent0": 0, "boss": 0} for i in range(2)}]


def test_wrong_observations_are_blamed_on_the_function():
    wrong = by(lambda env, episode, t, obs: {a: o if t < 2 else np.zeros(3) for a, o in obs.items()})
    player = Player(MultiAgentRows([Pair()], seeds=[0], observing=wrong))
    player.poll(), player.poll()
    with pytest.raises(EnvError, match="observation_fn returned it; declare the space") as caught:
        player.poll()
    assert (caught.value.code, caught.value.step, caught.value.agent) == ("E103", 2, "a")
    far = by(lambda env, episode, t, obs: {"a": array(1e9)})
    with pytest.raises(EnvError, match=r"(?s)E101.*bound is 1000000.*config.observation_space"):
        MultiAgentRows([Pair()], seeds=[0], observing=far, on_out_of_space="raise").poll()
    with pytest.raises(EnvError) as caught:
        MultiAgentRows([Pair(see=lambda t: "x")], seeds=[0], observing=by(add_agent_id=True)).poll()
    assert "observation_fn" not in str(caught.value)
    back = by(lambda env, episode, t, obs: {"a": array(0), "b": array(0)})
    player = Player(MultiAgentRows([Pair()], seeds=[0], observing=back))
    for _ in range(3):
        player.poll()
    with pytest.raises(EnvError, match="agent 'b', which ended before"):
        player.poll()


def test_an_exception_of_the_function_is_the_users_own():
    def broken(env, episode, t, obs):
        return {"a": obs["nobody"]} if t else obs

    rows = MultiAgentRows([Pair()], seeds=[7], observing=by(broken))
    player = Player(rows)
    player.poll()
    with pytest.raises(KeyError, match="nobody") as caught:
        player.poll()
    assert any("Pair, runner 0, env 0, episode 0, step 1, seed 7" in note for note in caught.value.__notes__)


def test_policies_say_what_is_observed_before_the_env_does():
    from steppe.types import SpacePair

    wide = SpacePair(spec_of(Box(-1, 1, (2,), np.float32)), spec_of(Discrete(9)))
    observing = by(lambda env, episode, t, obs: {"a": np.zeros(2, np.float32)}, policies_say=True)
    rows = MultiAgentRows([Pair()], seeds=[0], observing=observing, pair_for=lambda info: wide)
    assert rows.spaces == ()
    assert rows.agents == {}
    rows.poll()
    assert rows.spaces == (SpacePair(wide.observation, spec_of(Discrete(5))),)  # what it does, the env says


def test_a_plain_observation_goes_into_a_dict_with_the_place_of_its_agent():
    rows = MultiAgentRows([Pair(("b", "a"))], seeds=[0], observing=by(add_agent_id=True))
    assert rows.spaces[0].observation == spec_of(Dict({"observation": LINE, "agent_id": Discrete(2)}))
    assert rows.agents == {"a": 0, "b": 0}
    player = Player(rows)
    assert [(row[0], row[2]) for row in player.poll()] == [
        ("a", {"agent_id": 1, "observation": [0]}),
        ("b", {"agent_id": 0, "observation": [0]}),
    ]
    player.poll()
    assert player.poll()[-1][2:] == ({"agent_id": 0, "observation": [2]}, 10, "terminated")


def test_a_dict_gets_another_key_and_a_tuple_stays_whole():
    mask = Dict({"observation": LINE, "action_mask": Box(0, 1, (5,), np.int8)})
    seen = {"observation": array(3), "action_mask": np.ones(5, np.int8)}
    env = Pair(space=mask, see=lambda t: seen)
    rows = MultiAgentRows([env], seeds=[0], observing=by(add_agent_id=True))
    assert rows.spaces[0].observation == spec_of(Dict({**mask.spaces, "agent_id": Discrete(2)}))
    (step,) = rows.poll()
    assert step.obs["agent_id"].tolist() == [0, 1]
    assert step.obs["action_mask"].shape == (2, 5)
    assert "agent_id" not in seen
    pair = Tuple((LINE, Discrete(3)))
    rows = MultiAgentRows(
        [Pair(space=pair, see=lambda t: (array(t), 2))], seeds=[0], observing=by(add_agent_id=True)
    )
    (step,) = rows.poll()
    assert step.obs["observation"][1].tolist() == [2, 2]
    assert step.obs["agent_id"].tolist() == [0, 1]


def test_ids_are_added_to_what_the_function_made_and_a_given_space_is_without_them():
    def stack(env, episode, t, obs):
        return {agent: np.concatenate([one, one]) for agent, one in obs.items()}

    double = Box(-1e6, 1e6, (2,), np.float32)
    observing = by(stack, add_agent_id=True)
    rows = MultiAgentRows([Pair()], seeds=[0], observing=observing, observation_space=double)
    assert rows.spaces[0].observation == spec_of(Dict({"observation": double, "agent_id": Discrete(2)}))
    (step,) = rows.poll()
    assert step.obs["observation"].shape == (2, 2)


def test_a_group_has_the_place_of_a_group():
    env = Pair().with_agent_groups({"team": ["b"]})
    rows = MultiAgentRows([env], seeds=[0], observing=by(add_agent_id=True))
    steps = rows.poll()
    spaces = [spec_of(LINE), spec_of(Tuple((LINE,)))]
    found = {str(dict(pair.observation.items)["observation"]) for pair in rows.spaces}
    assert found == set(map(str, spaces))
    assert sorted(step.obs["agent_id"].tolist() for step in steps) == [[0], [1]]
    assert env.possible_agents == ["team", "a"]


def test_ids_need_names_and_a_free_key():
    with pytest.raises(ConfigError, match=r"Pair does not say who its agents are; set self\.possible_agents"):
        MultiAgentRows([Pair(())], seeds=[0], observing=by(add_agent_id=True))
    taken = Pair(space=Dict({"agent_id": Discrete(2)}))
    with pytest.raises(ConfigError, match="the key 'agent_id' already"):
        MultiAgentRows([taken], seeds=[0], observing=by(add_agent_id=True))
    rows = MultiAgentRows([Pair(("a",))], seeds=[0], observing=by(add_agent_id=True))
    with pytest.raises(EnvError, match=r"(?s)E404.*'b' .*not in possible_agents.*Pair.*agent 'b'"):
        rows.poll()


def test_envs_of_one_agent_are_refused():
    for env in ("CartPole-v1", lambda ctx: gymnasium.make_vec("CartPole-v1", num_envs=2)):
        with pytest.raises(ConfigError, match="no env of many agents: leave out observation_fn"):
            build(env, num_envs=2, run_seed=0, observing=by(add_agent_id=True))
