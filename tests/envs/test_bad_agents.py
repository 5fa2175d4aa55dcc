"""What envs of many agents may not return, in every spelling: refused, or counted, by name and place."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from pettingzoo import AECEnv, ParallelEnv

import steppe
from steppe.envs.agents import MultiAgentRows
from steppe.envs.base_env import BaseEnvRows
from steppe.envs.multi_agent import ALL, MultiAgentEnv
from steppe.envs.vector import VectorRows
from steppe.errors import EnvError
from steppe.spaces import map_leaves, zeros

BOX, MOVES = Box(-10, 10, (2,), np.float32), Discrete(3)
NAN = np.array([np.nan, 0], np.float32)


def zero():
    return np.zeros(2, np.float32)


class Duel(MultiAgentEnv):
    """Red and blue, four steps an episode; ``says`` may change what step 2 of the second episode returns."""

    possible_agents = ("red", "blue")
    observation_space, action_space = BOX, MOVES

    def __init__(self, says=None):
        self.says, self.number = says, -1

    def reset(self, *, seed=None, options=None):
        self.t, self.number = 0, self.number + 1
        return {"red": zero(), "blue": zero()}, {}

    def step(self, action_dict):
        self.t += 1
        rewards = {"red": 1.0, "blue": 2.0}
        flags = {"red": False, "blue": False, ALL: self.t == 4}
        result = {"red": zero(), "blue": zero()}, rewards, flags, {ALL: False}, {}
        wrong = self.says is not None and (self.number, self.t) == (1, 2)
        return self.says(*result) if wrong else result


class OldDuel(Duel):
    """The same with four items."""

    def reset(self):
        return super().reset()[0]

    def step(self, action_dict):
        result = super().step(action_dict)
        return (*result[:3], result[4]) if isinstance(result, tuple) and len(result) == 5 else result


class Together(ParallelEnv):
    """The same as a PettingZoo env."""

    metadata, possible_agents = {"name": "together_v0"}, ["red", "blue"]

    def __init__(self, says=None):
        self.duel = Duel(says)

    def observation_space(self, agent):
        return BOX

    def action_space(self, agent):
        return MOVES

    def reset(self, seed=None, options=None):
        self.agents = ["red", "blue"]
        return self.duel.reset()

    def step(self, actions):
        result = self.duel.step(actions)
        self.agents = [] if self.duel.t == 4 else self.agents
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[2], dict):
            return result
        obs, rewards, flags, cut, infos = result
        over = flags.get(ALL) is True
        ended = {
            **dict.fromkeys(("red", "blue"), over),
            **{a: f for a, f in flags.items() if a != ALL and f is not False},
        }
        return obs, rewards, ended, {a: f for a, f in cut.items() if a != ALL}, infos


class Told(steppe.BaseEnv):
    """Two of them as a low-level env."""

    observation_space, action_space, num_envs = BOX, MOVES, 2

    def __init__(self, says):
        self.duels = [Duel(), Duel(says)]
        self.told = {i: (duel.reset()[0], {}, {}, {}, {}) for i, duel in enumerate(self.duels)}

    def get_agent_ids(self):
        return {"red", "blue"}

    def poll(self):
        told, self.told = self.told, {}
        return (*({i: five[at] for i, five in told.items()} for at in range(5)), {})

    def send_actions(self, action_dict):
        self.told = {i: self.duels[i].step(actions) for i, actions in action_dict.items()}

    def try_reset(self, env_id=None):
        return {env_id: self.duels[env_id].reset()[0]}, {}


def low(make):
    base = Told(None)
    base.duels = [make(), make()]
    for duel in base.duels:
        duel.reset()
    return BaseEnvRows(base, seeds=[7, 8])


def of(make):
    return lambda says: MultiAgentRows([make(None), make(says)], seeds=[7, 8], runner=4)


KINDS = {
    "new": ("Duel", of(Duel)),
    "old": ("OldDuel", of(OldDuel)),
    "grouped": ("Duel", of(lambda says: Duel(says).with_agent_groups({"both": ["red", "blue"]}))),
    "parallel": ("together_v0", of(lambda says: steppe.ParallelPettingZooEnv(Together(says)))),
    "base": ("Told", lambda says: BaseEnvRows(Told(says), seeds=[7, 8], runner=4)),
}


def play(env, polls):
    """Answer all rows, time after time; returns who lived in which slot."""
    who = {}
    for _ in range(polls):
        for step in env.poll():
            who |= {info.slot: info for info in step.opened}
            slots = step.slot[~(step.terminated | step.truncated)]
            env.send_actions(
                slots, map_leaves(lambda a: a + 1, zeros(env.spaces[step.space].action, len(slots)))
            )
    return who


def obs(**more):
    return lambda o, *rest: ({**o, **more}, *rest)


def rewards(**more):
    return lambda o, r, *rest: (o, {**r, **more}, *rest)


def ends(**more):
    return lambda o, r, f, *rest: (o, r, {**f, **more}, *rest)


def infos(told):
    return lambda o, r, f, g, i: (o, r, f, g, told)


# What is wrong; the code; what the message says; whether it is about blue; kinds where it cannot be.
WRONG = {
    "NaN": (obs(blue=NAN), "E104", "expected finite numbers", True),
    "no observation": (obs(blue=None), "E102", r"expected float32 of shape \(2,\), got None", True),
    "shape": (obs(blue=np.zeros(3, np.float32)), "E103", r"expected float32 of shape \(2,\), got", True),
    "no reward": (rewards(blue=None), "E201", "got None .*return one finite Python or numpy number", True),
    "a reward of text": (rewards(blue="1"), "E201", r"got '1' \(str\); return one finite", True),
    "two rewards": (rewards(blue=np.ones(2)), "E201", r"of shape \(2,\)\); return one finite", True),
    "NaN earned": (rewards(blue=np.nan), "E201", "got nan", True),
    "a huge reward": (rewards(blue=10**400), "E201", "within the range of float32", True),
    "maybe": (ends(blue="maybe"), "E302", r"terminateds: got 'maybe' \(str\); return a bool", True),
    "two": (ends(blue=2), "E302", r"terminateds: got 2 \(int\); return a bool", True),
    "two flags": (ends(blue=np.array([True, False])), "E302", r"shape \(2,\)\); return a bool", True),
    "no flag": (ends(blue=np.nan), "E302", r"terminateds: got nan", True),
    "info": (infos({"blue": [1]}), "E303", r"info: got \[1\] \(list\); return a dict", True),
    "stranger's reward": (
        rewards(blu=1.0),
        "E404",
        "rewards has agent 'blu'.*; there are .*'blue|both'",
        False,
    ),
    "stranger's flag": (
        ends(blu=True),
        "E404",
        "terminateds has agent 'blu'.*there are .*'blue|both'",
        False,
    ),
    "reward of all": (rewards(**{ALL: 1.0}), "E407", "rewards has the agent '__all__'", False),
    "all observe": (obs(**{ALL: zero()}), "E407", "obs has the agent '__all__'.*except", False),
    "a float": (
        lambda o, *rest: ({**o, 1.5: zero()}, *rest),
        "E407",
        r"1.5 \(float\); name agents by",
        False,
    ),
    "nobody": (lambda o, *rest: ({**o, None: zero()}, *rest), "E407", r"None \(NoneType\); name", False),
    "no infos": (infos([]), "E301", r"infos(:| are) \[?.*return a dict by agent", False),
    "one reward": (
        lambda o, r, *rest: (o, 1.0, *rest),
        "E301",
        r"rewards.* 1.0 \(float\); return a dict",
        False,
    ),
    "no dict": (lambda o, *rest: (None, *rest), "E301", r"obs.* None \(NoneType\); return a dict", False),
}
ALL_MAYBE = {
    "all may end": (ends(**{ALL: "maybe"}), "E302", "terminateds: got 'maybe'", False),
    "two for all": (ends(**{ALL: np.array([True, False])}), "E302", r"of shape \(2,\)", False),
}
CASES = [
    pytest.param(*KINDS[kind], *case, id=f"{kind}: {name}")
    for kind in KINDS
    for name, case in (WRONG | (ALL_MAYBE if kind != "parallel" else {})).items()
]


@pytest.mark.parametrize(("name", "build", "says", "code", "text", "blue"), CASES)
def test_bad_input_is_refused_with_its_place(name, build, says, code, text, blue):
    env = build(says)
    with pytest.raises(EnvError, match=f"(?s)^{code} .*{text}") as caught:
        play(env, 9)
    error = caught.value
    assert (error.env_class, error.runner, error.env, error.episode, error.step) == (name, 4, 1, 1, 2)
    assert error.seed == 8
    assert (error.agent in ("blue", "both")) == blue
    if blue and code in ("E201", "E302", "E303"):
        assert error.agent == "blue"  # a member of a group is called by its own name
    with pytest.raises(RuntimeError, match="failed before"):
        env.poll()


@pytest.mark.parametrize("kind", ["new", "grouped", "parallel"])
@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, r"step returned None \(NoneType\)"),
        ((1, 2, 3), "step returned 3 items"),
        (({},) * 6, "step returned 6 items"),
        (3.0, r"step returned 3.0 \(float\)"),
    ],
    ids=str,
)
def test_a_step_of_another_form_is_refused(kind, result, text):
    name, build = KINDS[kind]
    want = r"; return \(obs, rewards, terminateds, truncateds, infos\), five dicts by agent"
    with pytest.raises(
        EnvError, match=f"(?s)E301 .*{text}{want}.*in {name}, runner 4, env 1, episode 1, step 2"
    ):
        play(build(lambda *_: result), 9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_odd_is_said_once_and_counted(kind, caplog):
    name, build = KINDS[kind]

    def says(o, r, f, g, i):
        return o, r, f, g, {"ghost": {"x": 1}, "__common__": {"y": 2}, "red": {"z": 3}}

    env = build(says)
    with caplog.at_level(logging.WARNING, "steppe.envs"):
        play(env, 12)
    assert env.health()["E404 infos"] == 2
    (said,) = [record.message for record in caplog.records if "E404" in record.message]
    assert f"infos has 'ghost', which is no agent that has had an observation: it is lost ({name}" in said


@pytest.mark.parametrize("kind", ["new", "old", "parallel"])
def test_who_comes_unannounced_is_let_in_and_told(kind, caplog):
    _, build = KINDS[kind]
    env = build(obs(blu=zero()))
    who = play(env, 8)
    assert "blu" in {info.agent for info in who.values()}
    assert env.health()["E404 obs"] == 1
    assert "agent 'blu' came, which is not in possible_agents; did you mean 'blue'?" in caplog.text


@pytest.mark.parametrize("kind", ["new", "old", "base"])
def test_who_has_ended_does_not_come_back(kind):
    class Back(OldDuel if kind == "old" else Duel):
        def step(self, action_dict):
            o, r, f, *rest = super().step(action_dict)
            return o, r, {**f, "blue": self.t == 1}, *rest

    with pytest.raises(EnvError, match=r"(?s)E405 .*obs has agent 'blue', which ended before.*step 2, agent"):
        play(low(Back) if kind == "base" else of(lambda _: Back())(None), 4)


@pytest.mark.parametrize("earned", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["new", "old", "parallel", "base"])
def test_an_agent_that_has_ended_earns_nothing(kind, earned):
    """Red goes on; blue ended in the step before."""

    class Short(OldDuel if kind == "old" else Duel):
        def step(self, action_dict):
            o, r, f, *rest = super().step(action_dict)
            if self.t > 1:
                return {"red": o["red"]}, {"red": 1.0, "blue": earned}, f, *rest
            return o, r, {**f, "blue": True}, *rest

    class Apart(Together):
        def __init__(self, _):
            self.duel = Short()

        def step(self, actions):
            result = super().step(actions)
            self.agents = [agent for agent in self.agents if agent == "red"]
            return result

    apart = of(lambda _: steppe.ParallelPettingZooEnv(Apart(None)))
    makers = {"base": lambda _: low(Short), "parallel": apart}
    env = makers.get(kind, of(lambda _: Short()))(None)
    if earned:
        with pytest.raises(EnvError, match=r"E403 .*rewards has 0.5 for agent 'blue', which ended before"):
            play(env, 3)
    else:
        play(env, 3)


class Turns(AECEnv):
    """Red and blue by turns; ``spoil`` may change it before red's second turn of the second episode."""

    metadata, possible_agents = {"name": "turns_v0", "render_modes": []}, ["red", "blue"]

    def __init__(self, spoil=None):
        super().__init__()
        self.spoil, self.number, self.render_mode, self.seen = spoil, -1, None, zero()

    def observation_space(self, agent):
        return BOX

    def action_space(self, agent):
        return MOVES

    def reset(self, seed=None, options=None):
        self.t, self.number, self.agents, self.agent_selection = 0, self.number + 1, ["red", "blue"], "red"
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in range(2))
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos = {agent: {} for agent in self.agents}

    def observe(self, agent):
        return self.seen

    def step(self, action):
        self.t += 1
        self.agent_selection = "blue" if self.agent_selection == "red" else "red"
        if self.spoil is not None and (self.number, self.t) == (1, 2):
            self.spoil(self)
        if self.t == 4:
            self.agents = []


SPOILT = {
    "NaN": (lambda env: setattr(env, "seen", NAN), "E104", "expected finite"),
    "no observation": (lambda env: setattr(env, "seen", None), "E102", "got None"),
    "reward": (lambda env: env._cumulative_rewards.update(red="x"), "E201", r"got 'x' \(str\)"),
    "no reward": (lambda env: env._cumulative_rewards.update(red=None), "E201", "got None"),
    "flag": (lambda env: env.terminations.update(red="maybe"), "E302", "got 'maybe'"),
    "flags": (lambda env: env.truncations.update(red=np.array([True, False])), "E302", r"shape \(2,\)"),
    "info": (lambda env: env.infos.update(red=3), "E303", r"got 3 \(int\)"),
}


@pytest.mark.parametrize(("spoil", "code", "text"), SPOILT.values(), ids=SPOILT)
def test_bad_input_of_a_game_by_turns_is_refused_with_its_place(spoil, code, text):
    with pytest.raises(EnvError, match=f"{code} .*{text}") as caught:
        play(of(lambda spoil: steppe.PettingZooEnv(Turns(spoil)))(spoil), 9)
    error = caught.value
    assert (error.env_class, error.runner, error.env, error.episode, error.step) == ("turns_v0", 4, 1, 1, 2)
    assert (error.agent, error.seed) == ("red", 8)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([["a"], "b"], r"possible_agents has \['a'\] \(list\); name agents by texts"),
        ([1.5], r"possible_agents has 1.5 \(float\)"),
        ([None], "possible_agents has None"),
        ([ALL], "possible_agents has '__all__'.*except"),
        ([np.int64(3)], r"as int\(agent\)"),
        ([True], r"has True \(bool\)"),
        ("red", r"possible_agents is 'red' \(str\); give a list"),
        (3, r"possible_agents is 3 \(int\); give a list"),
    ],
    ids=str,
)
def test_agents_that_cannot_be_announced(ids, text):
    class Announced(Duel):
        possible_agents = ids

    with pytest.raises(EnvError, match=f"(?s)E407 .*{text}.*in Announced, runner 0, env 0"):
        MultiAgentRows([Announced()], seeds=[7])


def test_any_collection_announces():
    class Announced(Duel):
        possible_agents = {"red": 1, "blue": 2}.keys()

    env = MultiAgentRows([Announced()], seeds=[7])
    play(env, 6)
    assert env.agents == {"red": 0, "blue": 0}
    assert env.health() == {}


def test_an_agent_whose_name_is_no_key_is_the_envs_own_error():
    with pytest.raises(TypeError, match="unhashable") as caught:
        play(KINDS["new"][1](lambda *_: ({["red"]: 1},)), 9)
    assert "Duel, runner 4, env 1, episode 1, step 2, seed 8" in caught.value.__notes__[0]


def test_a_group_that_has_ended_earns_nothing():
    class Apart(Duel):
        def step(self, action_dict):
            o, r, f, *rest = super().step(action_dict)
            if self.t == 1:
                return o, r, {**f, "blue": True}, *rest
            return {"red": o["red"]}, {"red": 1.0, "blue": 0.5 * (self.t == 3)}, {ALL: False}, *rest

    env = MultiAgentRows([Apart().with_agent_groups({"r": ["red"], "b": ["blue"]})], seeds=[7])
    play(env, 3)  # nothing is nothing, also for who has ended
    with pytest.raises(EnvError, match=r"(?s)E403 .*rewards has 0.5 for agent 'b', which ended.*step 3"):
        play(env, 2)


class Late(VectorEnv):
    """Two envs of two steps each that are reset by the step after; the first then earns something."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it
    num_envs, single_observation_space, single_action_space = 2, BOX, MOVES
    observation_space, action_space = batch_space(BOX, 2), batch_space(MOVES, 2)

    def __init__(self, earned):
        self.earned, self.t = earned, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions):
        self.t += 1
        rewards = np.array([self.earned if self.t == 3 else 1.0, 1.0])
        return np.zeros((2, 2), np.float32), rewards, np.array([self.t == 2, False]), np.zeros(2, bool), {}


def test_the_step_that_resets_an_env_earns_nothing():
    assert len(play(VectorRows(Late(0.0), seeds=[7, 8]), 5)) == 3
    env = VectorRows(Late(0.5), seeds=[7, 8], runner=4)
    text = r"rewards has 0.5 in the step that resets the env; give it with the end"
    with pytest.raises(EnvError, match=rf"(?s)E403 .*{text}.*in Late, runner 4, env 0, episode 1, step 0"):
        play(env, 5)
