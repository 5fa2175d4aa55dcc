"""What users subclass: spaces in every spelling, the seeds' programs row by row through the sampler."""

import gymnasium
import numpy as np
import pytest

import steppe
from steppe.envs.agents import MultiAgentRows
from steppe.envs.registry import build, make
from steppe.errors import ConfigError, SpaceError
from steppe.sampling.sampler import Sampler
from steppe.spaces import spec_of
from steppe.types import SpacePair, Weights
from tests.fakes import CountingPolicy

BOX = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
OTHER = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
TWO, THREE = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(3)
NUMBER = gymnasium.spaces.Box(0, 10**6, (), np.float32)
MANY = gymnasium.spaces.Discrete(10)


class Pair(steppe.MultiAgentEnv):
    """Agents 0 and 1, of spaces that tests give; no super().__init__(), as users write it."""

    def __init__(self, **given):
        for name, value in given.items():
            setattr(self, name, value)

    def reset(self, *, seed=None, options=None):
        return {0: np.zeros(2, np.float32), 1: np.zeros(3, np.float32)}, {}

    def step(self, action_dict):
        raise AssertionError("nobody steps here")


class Asked(Pair):
    def get_observation_space(self, agent):
        return (BOX, OTHER)[agent]

    def get_action_space(self, agent):
        return (TWO, THREE)[agent]


class Named(gymnasium.spaces.Dict):
    """A Dict space keyed by the agents' numbers."""

    def __init__(self, spaces):
        super().__init__()
        self.spaces = spaces


EACH = {"observation_spaces": {0: BOX, 1: OTHER}, "action_spaces": {0: TWO, 1: THREE}}
PER_AGENT = [
    Pair(**EACH),
    Pair(possible_agents=[0, 1], **EACH),
    Pair(possible_agents=[0, 1], observation_space={0: BOX, 1: OTHER}, action_space={0: TWO, 1: THREE}),
    Pair(
        possible_agents=[0, 1],
        observation_space=Named({0: BOX, 1: OTHER}),
        action_space=Named({0: TWO, 1: THREE}),
    ),
    Asked(possible_agents=[0, 1]),
]


@pytest.mark.parametrize("env", PER_AGENT)
def test_agents_have_spaces_of_their_own_in_every_spelling(env):
    rows = MultiAgentRows([env], seeds=[0])
    assert rows.agents == {0: 0, 1: 1}
    assert rows.spaces == tuple(SpacePair(spec_of(a), spec_of(b)) for a, b in ((BOX, TWO), (OTHER, THREE)))
    assert [(step.space, step.obs.shape) for step in rows.poll()] == [(0, (1, 2)), (1, (1, 3))]


def test_spaces_without_known_agents_are_found_as_they_come():
    rows = MultiAgentRows([Asked()], seeds=[0])
    assert (rows.spaces, rows.agents) == ((), {})
    assert [step.space for step in rows.poll()] == [0, 1]
    assert [pair.action.n for pair in rows.spaces] == [2, 3]


def test_a_shared_dict_space_is_what_each_agent_observes():
    space = gymnasium.spaces.Dict({"x": BOX})

    class Dicts(Pair):
        def reset(self, *, seed=None, options=None):
            return {0: {"x": np.zeros(2, np.float32)}}, {}

    rows = MultiAgentRows([Dicts(observation_space=space, action_space=TWO)], seeds=[0])
    assert rows.spaces == (SpacePair(spec_of(space), spec_of(TWO)),)
    assert rows.poll()[0].obs["x"].shape == (1, 2)


def test_an_env_without_spaces_asks_who_knows():
    asked = []

    def pair_for(info):
        asked.append(info)
        return SpacePair(spec_of((BOX, OTHER)[info.agent]), spec_of(THREE))

    rows = MultiAgentRows([Pair(action_space=TWO)], seeds=[5], pair_for=pair_for)
    assert rows.spaces == ()
    assert [step.obs.shape for step in rows.poll()] == [(1, 2), (1, 3)]
    assert [pair.action.n for pair in rows.spaces] == [2, 2]
    assert asked == [(0, 0, 0, 0, 5), (1, 0, 1, 0, 5)]
    with pytest.raises(
        SpaceError, match=r"(?s)Pair has no spaces for agent 0: set self.observation_space.*policies"
    ):
        MultiAgentRows([Pair()], seeds=[0]).poll()


def test_given_spaces_win():
    rows = MultiAgentRows([Asked()], seeds=[0], observation_space=BOX, action_space=MANY)
    assert rows.spaces == (SpacePair(spec_of(BOX), spec_of(MANY)),)


def test_the_registry_builds_them_from_any_spelling():
    env = build(lambda ctx: Pair(index=ctx.vector_index, **EACH), num_envs=3, run_seed=1)
    assert isinstance(env, MultiAgentRows)
    assert [one.index for one in env.get_sub_environments()] == [0, 1, 2]
    assert isinstance(make(Asked), Asked)
    with pytest.raises(ConfigError, match="give the class or a function"):
        build(Asked(), num_envs=1, run_seed=1)

    def mixed(ctx):
        return Asked() if ctx.vector_index else gymnasium.make("CartPole-v1")

    with pytest.raises(ConfigError, match="of one agent and of many: make one kind only"):
        build(mixed, num_envs=2, run_seed=1)


class Steady(steppe.MultiAgentEnv):
    """Five agents observe 0 and earn 1 in each of 25 steps."""

    observation_space, action_space = NUMBER, MANY

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.all(np.float32(0)), {}

    def all(self, value):
        return {agent: np.asarray(value) for agent in range(5)}

    def step(self, action_dict):
        assert list(action_dict) == [0, 1, 2, 3, 4]
        self.t += 1
        over = {"__all__": self.t == 25}
        return self.all(np.float32(0)), dict.fromkeys(range(5), 1), over, {"__all__": False}, {}


def sampled(env, mapping, ids, length):
    rows = build(env, num_envs=1, run_seed=0)
    policies = {id: CountingPolicy(rows.spaces[0]) for id in ids}
    sampler = Sampler(
        rows,
        policies,
        trained=list(ids),
        mapping=mapping,
        fragment_length=length,
        rng=np.random.default_rng(0),
    )
    sampler.set_weights(dict.fromkeys(ids, Weights(0, np.zeros(0, np.float32))))
    return sampler.sample()


def test_five_agents_of_two_policies_in_two_episodes():
    sample = sampled(Steady, lambda info: f"p{info.agent % 2}", ("p0", "p1"), 50)
    assert sample.env_steps == 50
    assert sample.agent_steps == 250
    assert [(one.length, one.reward) for one in sample.episodes] == [(25, 125.0), (25, 125.0)]
    assert sample.episodes[0].policy_rewards == {"p0": [25.0] * 3, "p1": [25.0] * 2}
    for rollout, count, times in zip(sample.rollouts, (150, 100), (6, 4), strict=True):
        assert np.count_nonzero(rollout.acted) == count
        assert np.bincount(rollout.t[rollout.acted]).tolist() == [times] * 25
        assert rollout.terminated.sum() == times
        assert (rollout.t[rollout.terminated] == 25).all()


class Hierarchy(steppe.MultiAgentEnv):
    """One action of the top is two of the middle and five of the low level; observations are numbers.

    Each step earns the top 0.5, the acting middle 2 and the acting low level 1.
    """

    observation_space, action_space = NUMBER, MANY
    low = ("low_level_0",) * 3 + ("low_level_1",) * 2 + ("low_level_2",)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.numbers("top_level", "mid_level_0", "low_level_0"), {}

    def numbers(self, *agents):
        return {agent: np.float32(10 * self.t + i) for i, agent in enumerate(agents)}

    def step(self, action_dict):
        expected = {0: 3, 3: 2, 5: 3}.get(self.t, 1)
        assert len(action_dict) == expected, action_dict
        low, mid = self.low[self.t], "mid_level_1" if self.t == 5 else "mid_level_0"
        self.t += 1
        rewards = {"top_level": 0.5, mid: 2.0, low: 1.0}
        obs, ends = {
            3: (self.numbers("mid_level_0", "low_level_0", "low_level_1"), {"low_level_0": True}),
            5: (
                self.numbers("top_level", "mid_level_1", "low_level_1", "low_level_2"),
                {"mid_level_0": True, "low_level_1": True},
            ),
            6: ({}, {"__all__": True}),
        }.get(self.t, (self.numbers(low), {}))
        return obs, rewards, {"__all__": False, **ends}, {"__all__": False}, {}


def test_a_hierarchy_of_agents_that_come_and_go():
    level = {"t": "top", "m": "mid", "l": "low"}
    sample = sampled(Hierarchy, lambda info: level[info.agent[0]], ("top", "mid", "low"), 6)
    found = {}
    for rollout in sample.rollouts:
        for row, lane in np.argwhere(rollout.filled):
            at = row, lane
            values = (rollout.t[at], rollout.obs[at], rollout.reward[at], rollout.terminated[at])
            if rollout.episode[at] == 0:
                agent = rollout.agents[rollout.agent[at]]
                found.setdefault((rollout.policy, agent), []).append(tuple(map(float, values)))
        assert not rollout.truncated.any()
    assert {who: sorted(rows) for who, rows in found.items()} == {
        ("top", "top_level"): [(0, 0, 0, 0), (5, 50, 2.5, 0), (6, 50, 0.5, 1)],
        ("mid", "mid_level_0"): [(0, 1, 0, 0), (3, 30, 6, 0), (5, 30, 4, 1)],
        ("mid", "mid_level_1"): [(5, 51, 0, 0), (6, 51, 2, 1)],
        ("low", "low_level_0"): [(0, 2, 0, 0), (1, 10, 1, 0), (2, 20, 1, 0), (3, 31, 1, 1)],
        ("low", "low_level_1"): [(3, 32, 0, 0), (4, 40, 1, 0), (5, 52, 1, 1)],
        ("low", "low_level_2"): [(5, 53, 0, 0), (6, 53, 1, 1)],
    }
    (episode,) = sample.episodes
    assert (episode.length, episode.reward) == (6, 21.0)
    assert episode.policy_rewards == {"top": [3.0], "mid": [10.0, 2.0], "low": [3.0, 2.0, 1.0]}
    acted = {rollout.policy: int(rollout.acted.sum()) for rollout in sample.rollouts}
    assert acted == {"top": 2, "mid": 3, "low": 6}


def test_make_multi_agent_gives_each_agent_an_env_of_its_own():
    creator = steppe.make_multi_agent("CartPole-v1")
    env = build(creator, {"num_agents": 3}, num_envs=1, run_seed=4)
    assert env.agents == {0: 0, 1: 0, 2: 0}
    alone = [gymnasium.make("CartPole-v1") for _ in range(3)]
    (step,) = env.poll()
    assert len(np.unique(step.obs, axis=0)) == 3
    copies = env.get_sub_environments()[0].envs
    for one, copy, obs in zip(alone, copies, step.obs, strict=True):
        one.reset(seed=0)
        one.unwrapped.state = np.array(copy.unwrapped.state)
        assert np.float32(one.unwrapped.state).tolist() == obs.tolist()
    lengths, over = {}, False
    rng = np.random.default_rng(0)
    while not over:
        live = step.slot[~(step.terminated | step.truncated)]
        actions = rng.integers(0, 2, len(live))
        wanted = {slot: alone[slot].step(action) for slot, action in zip(live.tolist(), actions, strict=True)}
        env.send_actions(live, actions)
        (step,) = env.poll()
        over = bool(step.closed)
        for row, slot in enumerate(step.slot.tolist()):
            if slot in wanted:
                obs, reward, terminated, *_ = wanted[slot]
                assert step.obs[row].tolist() == obs.tolist()
                assert (step.reward[row], step.terminated[row]) == (reward, terminated)
                if terminated:
                    lengths[slot] = step.t[row]
    assert len(lengths) == 3
    assert step.closed[0].length == max(lengths.values())
    state = env.get_state()
    again = build(creator, {"num_agents": 3}, num_envs=1, run_seed=4)
    assert again.set_state(state) == []


def test_make_multi_agent_refuses_what_it_cannot_copy():
    assert len(steppe.make_multi_agent("CartPole-v1")().envs) == 2
    with pytest.raises(ConfigError, match="num_agents is a whole number from 1, not 0"):
        steppe.make_multi_agent("CartPole-v1")({"num_agents": 0})
    with pytest.raises(ConfigError, match="Asked is an env of many already"):
        steppe.make_multi_agent(Asked)()
    with pytest.raises(ConfigError, match="no env named 'CartPoll-v1'"):
        steppe.make_multi_agent("CartPoll-v1")


@pytest.mark.parametrize(
    ("dones", "infos", "terminated", "truncated"),
    [
        ({0: True, 1: True, "__all__": True}, {0: {"TimeLimit.truncated": True}}, [1], [0]),
        ({0: True, 1: True, "__all__": True}, {0: {"TimeLimit.truncated": False}, 1: {"x": 1}}, [0, 1], []),
        ({"__all__": True}, {i: {"TimeLimit.truncated": True} for i in range(2)}, [], [0, 1]),
        ({"__all__": True}, {}, [0, 1], []),
        ({0: True, "__all__": False}, {0: {"TimeLimit.truncated": True}}, [], [0]),
    ],
)
def test_old_envs_say_in_infos_who_was_cut_off(dones, infos, terminated, truncated):
    class Old(Pair):
        def step(self, action_dict):
            return {0: np.zeros(2, np.float32), 1: np.zeros(2, np.float32)}, {}, dones, infos

        def reset(self):
            return {0: np.zeros(2, np.float32), 1: np.zeros(2, np.float32)}

    env = MultiAgentRows([Old(observation_space=BOX, action_space=TWO, possible_agents=[0, 1])], seeds=[0])
    (step,) = env.poll()
    who = {info.slot: info.agent for info in step.opened}
    env.send_actions(step.slot, np.zeros(2, np.int64))
    (step,) = env.poll()
    ended = [
        sorted(who[slot] for slot in step.slot[flags].tolist()) for flags in (step.terminated, step.truncated)
    ]
    assert ended == [terminated, truncated]
    assert [end.length for end in step.closed] == [1] * dones["__all__"]
