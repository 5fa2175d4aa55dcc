"""Groups of agents observe, act, earn and end as one."""

import gymnasium
import numpy as np
import pytest

from steppe.envs.agents import MultiAgentRows
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.errors import ConfigError, EnvError, SpaceError
from steppe.spaces import spec_of

BOXES = {a: gymnasium.spaces.Box(0, 100, (i + 1,), np.float32) for i, a in enumerate("abcd")}
MOVES = {a: gymnasium.spaces.Discrete(i + 2) for i, a in enumerate("abcd")}
GROUPS = {"left": ["b", "a"], "right": ["c"]}


class Four(MultiAgentEnv):
    """Agents a to d observe the step and earn 1, 2, 3 and 4; ``plan`` says what changes at which step."""

    possible_agents = tuple("abcd")
    observation_spaces, action_spaces = BOXES, MOVES

    def __init__(self, plan=None, end=4):
        self.plan, self.end, self.got = plan or {}, end, []

    def obs(self):
        return {a: np.full(i + 1, self.t, np.float32) for i, a in enumerate("abcd")}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.obs(), {"a": {"x": 1}}

    def step(self, action_dict):
        self.got.append(dict(action_dict))
        self.t += 1
        flags = {"__all__": self.t == self.end}
        result = (
            self.obs(),
            dict(zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)),
            flags,
            {"__all__": False},
            {},
        )
        change = self.plan.get(self.t)
        return result if change is None else change(*result)


def rows_of(env, groups=GROUPS, **options):
    return MultiAgentRows([env.with_agent_groups(groups, **options)], seeds=[0])


def act(env):
    """Answer every row with ones; the rows of the next poll by agent."""
    for step in env.pending():
        slots, n = step.slot, len(step.slot)
        parts = getattr(env.spaces[step.space].action, "items", None)
        column = np.ones(n, np.int64) if parts is None else tuple(np.ones(n, np.int64) for _ in parts)
        env.send_actions(slots, column)
    return env.poll()


def test_a_group_is_one_agent():
    inner = Four()
    env = rows_of(inner)
    tuples = {
        "left": gymnasium.spaces.Tuple([BOXES["b"], BOXES["a"]]),
        "right": gymnasium.spaces.Tuple([BOXES["c"]]),
        "d": BOXES["d"],
    }
    assert {a: env.spaces[k].observation for a, k in env.agents.items()} == {
        a: spec_of(space) for a, space in tuples.items()
    }
    moves = spec_of(gymnasium.spaces.Tuple([MOVES["b"], MOVES["a"]]))
    assert env.spaces[env.agents["left"]].action == moves
    first = env.poll()
    assert [(info.slot, info.agent) for step in first for info in step.opened] == [
        (0, "left"),
        (1, "right"),
        (2, "d"),
    ]
    assert first[0].info == {0: {"individual_infos": [{}, {"x": 1}]}}
    left, right, d = act(env)
    assert inner.got == [{"b": 1, "a": 1, "c": 1, "d": 1}]
    assert [part.tolist() for part in left.obs] == [[[1, 1]], [[1]]]
    assert (left.reward.tolist(), right.reward.tolist(), d.reward.tolist()) == ([3.0], [3.0], [4.0])
    assert left.info == {0: {"individual_rewards": [2.0, 1.0], "_group_rewards": [2.0, 1.0]}}
    assert right.info == {1: {"individual_rewards": [3.0], "_group_rewards": [3.0]}}
    assert d.info == {}
    act(env), act(env)
    steps = act(env)
    assert [step.terminated.tolist() for step in steps] == [[False, True]] * 3


def test_a_group_ends_when_all_its_members_have():
    def change(terminated, truncated, missing=""):
        def changed(o, r, f, g, i):
            o = {agent: value for agent, value in o.items() if agent not in missing}
            return o, r, {**f, **dict.fromkeys(terminated, True)}, {**g, **dict.fromkeys(truncated, True)}, i

        return changed

    env = rows_of(Four({1: change("a", ""), 2: change("", "b", "ab"), 3: change("", "", "ab")}, end=9))
    env.poll()
    left, *_ = act(env)
    assert not (left.terminated | left.truncated).any()
    left, *others = act(env)
    assert left.slot.tolist() == [0]
    assert (left.terminated.tolist(), left.truncated.tolist()) == ([False], [True])
    assert [part.tolist() for part in left.obs] == [[[1, 1]], [[1]]]  # the last that it saw
    assert left.reward.tolist() == [3.0]
    assert not any((step.terminated | step.truncated).any() for step in others)
    env = rows_of(Four({1: change("a", ""), 2: change("b", "", "ab")}, end=9))
    env.poll(), act(env)
    left, *_ = act(env)
    assert (left.terminated.tolist(), left.truncated.tolist()) == ([True], [False])


def test_members_act_together():
    env = rows_of(Four({2: lambda o, *rest: ({a: o[a] for a in "acd"}, *rest)}))
    env.poll(), act(env)
    with pytest.raises(EnvError, match=r"E408 .*group 'left': 'b' has no observation, but 'a' has") as caught:
        act(env)
    error = caught.value
    assert (error.env_class, error.env, error.step, error.agent) == ("Four", 0, 2, "left")
    env = rows_of(Four({2: lambda o, *rest: ({a: o[a] for a in "cd"}, *rest)}))  # both silent is fine
    env.poll(), act(env)
    assert [info.agent for step in act(env) for info in step.opened] == []
    (left, *_) = [step for step in act(env) if step.slot[0] == 0]
    assert left.reward.tolist() == [6.0]


def test_a_group_needs_no_last_observation_where_the_episode_ends():
    def last(o, r, f, g, i):
        return {"a": o["a"], "c": o["c"]}, r, {"__all__": True}, g, i

    env = rows_of(Four({2: last}))
    env.poll(), act(env)
    left, right, d = act(env)
    assert [part.tolist() for part in left.obs] == [[[0, 0], [1, 1]], [[0], [1]]]
    assert [part.tolist() for part in right.obs] == [[[0, 0, 0], [2, 2, 2]]]
    assert d.obs.tolist() == [[0] * 4, [1] * 4]
    assert [step.terminated.tolist() for step in (left, right, d)] == [[False, True]] * 3


def test_the_seeds_spelling_and_given_spaces():
    inner = Four()
    obs = gymnasium.spaces.Tuple([BOXES["a"], BOXES["b"]])
    moves = gymnasium.spaces.Tuple([MOVES["a"], MOVES["b"]])
    for grouped in (
        inner.with_agent_groups(inner, {"g": ["a", "b"]}, obs, moves),
        inner.with_agent_groups({"g": ["a", "b"]}, obs_space=obs, act_space=moves),
    ):
        assert grouped.get_observation_space("g") is obs
        assert grouped.get_action_space("g") is moves
        assert grouped.possible_agents == ["g", "c", "d"]
        assert grouped.unwrapped is inner


def test_the_old_forms_pass_through():
    class Old(Four):
        def reset(self):
            return super().reset()[0]

        def step(self, action_dict):
            o, r, f, _, i = super().step(action_dict)
            return o, r, f, i

    env = rows_of(Old(end=2))
    env.poll(), act(env)
    assert [step.terminated.tolist() for step in act(env)] == [[False, True]] * 3
    assert env.health() == {"E401 reset": 2, "E401 step": 2}


def test_what_is_no_dict_is_refused_where_it_came_from():
    env = rows_of(Four({1: lambda *_: (1, 2, 3, 4, 5)}))
    env.poll()
    with pytest.raises(EnvError, match=r"E301 .*obs: got 1 \(int\); return a dict by agent"):
        act(env)


def test_an_env_with_groups_goes_on_exactly():
    class Lucky(Four):
        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.luck = np.random.default_rng(seed)
            return super().reset()

        def step(self, action_dict):
            o, r, *rest = super().step(action_dict)
            return o, {agent: reward + self.luck.normal() for agent, reward in r.items()}, *rest

    def grouped():
        return rows_of(Lucky(end=5))

    env = grouped()
    env.poll()
    for _ in range(8):
        act(env)
    again = grouped()
    assert again.set_state(env.get_state()) == []
    for _ in range(6):
        one, two = act(env), act(again)
        assert [step.reward.tolist() for step in one] == [step.reward.tolist() for step in two]


@pytest.mark.parametrize(
    ("groups", "options", "text"),
    [
        ({"g": ["a", "b"], "h": ["b"]}, {}, "agent 'b' is named twice, in groups 'g' and 'h'"),
        ({"g": ["a", "x"]}, {}, "group 'g' has agent 'x', which is none of 'a', 'b', 'c', 'd'"),
        ({"g": []}, {}, "group 'g' has no members"),
        ({"d": ["a", "b"]}, {}, "group 'd' has the name of an agent that is not in it"),
        (
            {"g": ["a"]},
            {"obs_space": BOXES["a"]},
            "obs_space of group 'g' is a Tuple space of the 1 members'",
        ),
        ({"g": ["a"]}, {"act_space": gymnasium.spaces.Tuple([MOVES["a"]] * 2)}, "act_space of group 'g' is"),
    ],
)
def test_groups_that_cannot_be_are_refused(groups, options, text):
    with pytest.raises(ConfigError, match=text):
        Four().with_agent_groups(groups, **options)


def test_members_without_spaces_are_said():
    class Bare(Four):
        observation_spaces = action_spaces = None

    with pytest.raises(SpaceError, match="Bare has no spaces for agent 'left'"):
        rows_of(Bare()).poll()
