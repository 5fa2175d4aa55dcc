"""The rows of envs with many agents: random episodes against a naive model, and bad envs by name."""

import copy
import json
import logging

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.envs import agent_log
from steppe.envs.agents import MultiAgentRows
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.errors import CheckpointError, ConfigError, EnvError
from tests.envs.agent_scripts import ALL, Driver, Scripted, merged, rows_of, scripts_of, told

runs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "envs": st.integers(1, 3),
        "share": st.sampled_from([1.0, 0.6]),
        "limit": st.sampled_from([None, None, 1, 3]),
        "steady": st.sampled_from([0.0, 0.6, 0.95]),
    }
)


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """Thousands of odd episodes would be said aloud."""
    logger = logging.getLogger("steppe.envs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def check(seed, envs, share, limit, steady, polls=40):
    scripts = scripts_of(seed, envs, steady=steady)
    env = rows_of(scripts, max_episode_steps=limit)
    driver = Driver(env, seed, share).run(polls)
    for i, script in enumerate(scripts):
        sub = env.get_sub_environments()[i]
        steps = len(sub.received)
        wanted = [turn for turn in told(script, steps, limit) if any(turn)]
        assert merged(driver.found[i]) == merged(wanted)
        assert [(n, t, given) for n, t, given in sub.received if given] == [
            (*at, given) for at, given in driver.sent[i].items() if at in {(n, t) for n, t, _ in sub.received}
        ]
    assert env.env_steps == sum(len(sub.received) for sub in env.get_sub_environments())
    return sum(len(found) for found in driver.found), sum(
        len(closed) for found in driver.found for *_, closed in found
    )


@given(runs)
def test_rows_are_those_of_a_naive_model(drawn):
    check(**drawn)


@pytest.mark.slow
def test_rows_are_those_of_a_naive_model_in_thousands_of_episodes():
    episodes, seed = 0, 10**7
    while episodes < 5000:
        seed += 1
        share, limit = (1.0, 0.6)[seed % 2], (None, None, None, 2, 7)[seed % 5]
        episodes += check(seed, 1 + seed % 4, share, limit, (0.0, 0.5, 0.9)[seed % 3], polls=150)[1]
    assert episodes >= 5000


@given(runs)
def test_no_reward_is_lost_or_given_twice(drawn):
    scripts = scripts_of(drawn["seed"], 2, steady=drawn["steady"])
    driver = Driver(rows_of(scripts), drawn["seed"], drawn["share"]).run(40)
    for script, found in zip(scripts, driver.found, strict=True):
        earned = {}
        for acting, final, closed in found:
            for agent, number, _, _, reward, _ in final + acting:
                earned[number, agent] = earned.get((number, agent), 0.0) + reward
            for number, length in closed:
                turns = script[number % len(script)][: length + 1]
                seen = {agent for turn in turns for agent in turn.obs}
                for agent in seen:
                    wanted = sum(turn.rewards.get(agent, 0.0) for turn in turns)
                    assert earned.get((number, agent), 0.0) == wanted


@given(runs)
def test_the_common_case_is_only_faster(drawn):
    """Results in lists are taken apart agent by agent; those in tuples may not be."""
    scripts = scripts_of(drawn["seed"], drawn["envs"], steady=drawn["steady"])
    fast, slow = (
        Driver(rows_of(scripts, kind), drawn["seed"], drawn["share"]).run(40) for kind in (tuple, list)
    )
    assert fast.found == slow.found
    assert fast.polls == slow.polls


def visible(steps):
    columns = ("slot", "t", "obs", "reward", "terminated", "truncated")
    return [
        ([getattr(step, name).tolist() for name in columns], step.opened, step.closed, step.info, step.space)
        for step in steps
    ]


class Dice(Scripted):
    """Plays its script, and rolls dice of many kinds and in many places for its rewards."""

    def __init__(self, script):
        super().__init__(script)
        self.dice = [np.random.default_rng(), {"old": np.random.RandomState()}]
        self.inner = (gymnasium.make("CartPole-v1"),)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.dice[0] = np.random.default_rng(seed)
            self.dice[1]["old"].seed(seed)
            self.inner[0].reset(seed=seed)
        self.start = [float(self.dice[0].normal()), float(self.inner[0].reset()[0][0])]
        return super().reset()

    def step(self, action_dict):
        obs, rewards, *rest = super().step(action_dict)
        luck = self.start[0] + self.start[1] + self.dice[0].normal() + self.dice[1]["old"].normal()
        extra = float(luck) + sum(action_dict.values())
        return obs, {agent: reward + extra for agent, reward in rewards.items()}, *rest


class Known(Scripted):
    """Gives and takes its own state."""

    def get_state(self):
        return {"number": self.number, "t": self.t}

    def set_state(self, state):
        self.number, self.t = state["number"], state["t"]


def dice_of(scripts, kind=Dice):
    return MultiAgentRows([kind(script) for script in scripts], seeds=[10 + i for i in range(len(scripts))])


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 30), st.sampled_from([Dice, Known]))
def test_a_restored_run_goes_on_bit_by_bit(seed, polls, kind):
    scripts = scripts_of(seed, 2, episodes=1)  # a new env does not know how many episodes it has played
    env = dice_of(scripts, kind)
    driver = Driver(env, seed, 0.8).run(polls)
    state = env.get_state()
    assert json.dumps(state, default=np.ndarray.tolist)
    state = copy.deepcopy(state)
    for _ in range(2):  # a restored run can be saved and restored in its turn
        again = dice_of(scripts, kind)
        assert again.set_state(state) == []
        state = again.get_state()
    other = Driver(again, seed, 0.8)
    other.rng.bit_generator.state = driver.rng.bit_generator.state
    other.live, other.awaiting = dict(driver.live), dict(driver.awaiting)
    assert {info.slot: info for step in again.pending() for info in step.opened} == driver.live
    waiting = {slot for step in again.pending() for slot in step.slot.tolist()}
    assert waiting == set(driver.awaiting)
    assert again.env_steps == env.env_steps
    for _ in range(25):
        for one in (driver, other):
            one.answer()
        assert visible(driver.poll()) == visible(other.poll())
    assert again.health() == env.health()


def test_a_state_from_before_the_first_poll_seeds_anew():
    scripts = scripts_of(3)
    env = dice_of(scripts)
    state = env.get_state()
    first = visible(Driver(env).run(5).env.pending())
    assert env.set_state(state) == []
    assert env.pending() == []
    env.get_sub_environments()[0].number = env.get_sub_environments()[1].number = -1
    assert visible(Driver(env).run(5).env.pending()) == first
    with pytest.raises(CheckpointError, match="of 2 envs, here are 1"):
        dice_of(scripts[:1]).set_state(state)


def test_what_cannot_be_replayed_begins_a_new_episode(caplog):
    class Hidden(Scripted):
        lucky = 0.0

        def step(self, action_dict):
            obs, rewards, *rest = super().step(action_dict)
            return obs, {agent: reward + self.lucky for agent, reward in rewards.items()}, *rest

    scripts = scripts_of(5, 2, episodes=1, steady=1.0)
    scripts = [[[scripts[0][0][0], *scripts[0][0][1:2] * 20, scripts[0][0][-1]]]] * 2
    env = dice_of(scripts, Hidden)
    driver = Driver(env).run(4)
    state = env.get_state()
    again = dice_of(scripts, Hidden)
    again.get_sub_environments()[1].lucky = 1.0
    (note,) = again.set_state(state)
    assert note == (
        "E402 env 1 (Hidden) begins a new episode, it was at step 4: "
        "its replay gave other agents, observations or rewards"
    )
    old = next(slot for slot, info in driver.live.items() if info.env == 1)
    with pytest.raises(ValueError, match=f"slot {old} awaits no action"):
        again.send_actions(np.array([old]), np.zeros(1, np.int64))
    infos = [info for step in again.pending() for info in step.opened]
    assert [info for info in infos if info.env == 0] == [i for i in driver.live.values() if i.env == 0]
    assert {info.episode for info in infos if info.env == 1} == {1}
    assert not {info.slot for info in infos if info.env == 1} & set(driver.live)
    t = {slot: t for step in again.pending() for slot, t in zip(step.slot, step.t, strict=True)}
    assert {int(t[info.slot]) for info in infos if info.env == 1} == {0}
    other = Driver(again)
    other.live = {info.slot: info for info in infos}
    other.awaiting = {
        slot: (other.live[slot].env, 0, 0, 0, step.space) for step in again.pending() for slot in step.slot
    }
    for _ in range(10):
        other.answer()
        other.poll()


def test_a_very_long_episode_is_not_replayed(monkeypatch):
    monkeypatch.setattr(agent_log, "AGENT_LOG_LIMIT", 50)
    monkeypatch.setattr(agent_log, "_LONG_LOG", 20)
    state = {}
    for length in (10, 200):
        env = MultiAgentRows([Duel()], seeds=[0])
        act(env, length)
        state[length] = env.get_state()
    assert MultiAgentRows([Duel()], seeds=[0]).set_state(state[10]) == []
    (note,) = MultiAgentRows([Duel()], seeds=[0]).set_state(state[200])
    assert note.startswith(
        "E402 env 0 (Duel) begins a new episode, it was at step 200: its episode is longer"
    )


def test_the_log_of_answers_does_not_grow_with_the_run(monkeypatch):
    monkeypatch.setattr(agent_log, "_LONG_LOG", 64)
    env = MultiAgentRows([Duel(end=7), Duel(end=11)], seeds=[0, 1])
    act(env, 1000)
    assert env._log._size <= 64
    assert MultiAgentRows([Duel(end=7), Duel(end=11)], seeds=[0, 1]).set_state(env.get_state()) == []


class Duel(MultiAgentEnv):
    """Two agents act in each step; ``says`` changes what it returns at step 2."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, says=None, end=10**9, first=None):
        self.says, self.end, self.t, self.first = says, end, 0, first

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return (
            ({"red": np.zeros(2, np.float32), "blue": np.ones(2, np.float32)}, {})
            if self.first is None
            else self.first
        )

    def step(self, action_dict):
        self.t += 1
        obs = {agent: np.zeros(2, np.float32) for agent in ("red", "blue")}
        rewards, flags = {"red": 1.0, "blue": 2.0}, {ALL: self.t >= self.end}
        result = [obs, rewards, flags, {ALL: False}, {}]
        if self.t == 2 and self.says is not None:
            return self.says(*result)
        return tuple(result)


def act(env, steps):
    """Answer all rows, ``steps`` times."""
    found = env.pending() or env.poll()
    for _ in range(steps):
        for step in found:
            slots = step.slot[~(step.terminated | step.truncated)]
            env.send_actions(slots, np.ones(len(slots), np.int64))
        found = env.poll()
    return found


PLACE = r"in Duel, runner 4, env 0, episode 0, step 2"
BLUE = rf"{PLACE}, agent 'blue', seed 7, after action 1"
NAN = np.array([np.nan, 0], np.float32)
WRONG = {
    "nan": (lambda o, *r: ({**o, "blue": NAN}, *r), "E104", BLUE),
    "shape": (lambda o, *r: ({**o, "blue": np.zeros(3, np.float32)}, *r), "E103", BLUE),
    "reward": (lambda o, r, *rest: (o, {**r, "blue": np.nan}, *rest), "E201", BLUE),
    "reward of the silent": (
        lambda o, r, *rest: ({"red": o["red"]}, {**r, "blue": "x"}, *rest),
        "E201",
        BLUE,
    ),
    "flag": (lambda o, r, f, *rest: (o, r, {**f, "blue": "yes"}, *rest), "E302", BLUE),
    "info": (lambda o, r, f, g, i: (o, r, f, g, {"blue": 3}), "E303", BLUE),
    "no dict": (
        lambda o, r, *rest: (o, 3.0, *rest),
        "E301",
        r"rewards: got 3.0 \(float\); return a dict by agent",
    ),
    "nothing": (
        lambda *_: None,
        "E301",
        r"step returned None.*\(obs, rewards, terminateds, truncateds, infos\)",
    ),
    "three": (lambda o, r, *_: (o, r, {}), "E301", "five dicts by agent"),
    "stranger's reward": (
        lambda o, r, *rest: (o, {**r, "blu": 1.0}, *rest),
        "E404",
        r"rewards has agent 'blu', .* not in possible_agents; there are 'red', 'blue'; did you mean 'blue'\?",
    ),
    "stranger's flag": (
        lambda o, r, f, *rest: (o, r, {**f, "gren": False}, *rest),
        "E404",
        "terminateds has",
    ),
    "a tuple for a name": (
        lambda o, *r: ({**o, (1, 2): NAN}, *r),
        "E407",
        r"\(1, 2\) \(tuple\); name agents by",
    ),
    "numpy for a name": (lambda o, *r: ({**o, np.int64(3): NAN}, *r), "E407", r"as int\(agent\)"),
    "all for a name": (lambda o, *r: ({**o, ALL: NAN}, *r), "E407", "except"),
}


@pytest.mark.parametrize(("says", "code", "text"), WRONG.values(), ids=WRONG)
def test_a_bad_result_is_refused_by_name(says, code, text):
    env = MultiAgentRows([Duel(says)], seeds=[7], runner=4)
    with pytest.raises(EnvError, match=f"(?s)^{code}.*{text}") as caught:
        act(env, 2)
    assert caught.value.code == code
    assert PLACE in str(caught.value)
    with pytest.raises(RuntimeError, match="failed before"):
        env.poll()


def late(*, obs=False, reward=0.0):
    """Blue ends at step 2; at step 3 something more comes from it."""

    class Late(Duel):
        def step(self, action_dict):
            o, r, f, g, i = super().step(action_dict)
            if self.t == 2:
                f = {**f, "blue": True}
            if self.t == 3:
                o = o if obs else {"red": o["red"]}
                r = {"red": 1.0, "blue": reward}
            return o, r, f, g, i

    return MultiAgentRows([Late()], seeds=[7])


def test_after_its_end_an_agent_earns_and_observes_nothing():
    (step,) = act(late(), 3)
    assert step.reward.tolist() == [1.0]
    with pytest.raises(EnvError, match=r"E403 .*rewards has 0\.5 for agent 'blue', which ended before"):
        act(late(reward=0.5), 3)
    with pytest.raises(EnvError, match=r"E405 .*obs has agent 'blue', which ended before.*another id"):
        act(late(obs=True), 3)


@pytest.mark.parametrize("first", [None, (1, 2), ({}, None), 3.0], ids=repr)
def test_a_bad_reset_is_refused(first):
    class Bad(Duel):
        def reset(self, *, seed=None, options=None):
            return first

    with pytest.raises(EnvError, match=r"E304 .*return \(observations, infos\), two dicts by agent"):
        MultiAgentRows([Bad()], seeds=[7]).poll()


def test_what_an_env_raises_is_its_own_with_a_note():
    class Picky(Duel):
        def step(self, action_dict):
            raise KeyError("red must not move")

    env = MultiAgentRows([Picky()], seeds=[7], runner=2)
    with pytest.raises(KeyError, match="red must not move") as caught:
        act(env, 1)
    (note,) = caught.value.__notes__
    assert note == (
        "steppe: Picky, runner 2, env 0, episode 0, step 1, seed 7, after action {'red': 1, 'blue': 1}"
    )


def test_flags_without_all_are_said_once_and_counted(caplog):
    class Quiet(Duel):
        def step(self, action_dict):
            o, r, _, _, i = super().step(action_dict)
            return o, r, dict.fromkeys(o, self.t == 3), {}, i

    env = MultiAgentRows([Quiet()], seeds=[7])
    with caplog.at_level(logging.WARNING, "steppe.envs"):
        (step,) = act(env, 3)
    assert [end.length for end in step.closed] == [3]
    assert step.terminated.tolist() == [False, False, True, True]
    assert env.health() == {"E406 step": 3}
    assert sum("E406" in record.message for record in caplog.records) == 1


def test_a_reward_of_one_who_never_came_is_counted():
    class Owed(Duel):
        possible_agents = ("red", "blue", "ghost")

        def step(self, action_dict):
            o, r, *rest = super().step(action_dict)
            return o, {**r, "ghost": 1.0}, *rest

    env = MultiAgentRows([Owed(end=3)], seeds=[7])
    act(env, 3)
    assert env.health() == {"E404 rewards": 1}


def test_the_old_forms_are_understood_and_counted():
    class Old(Duel):
        def reset(self):
            return super().reset()[0]

        def seed(self, seed=None):
            self.seeded = seed

        def step(self, action_dict):
            o, r, f, _, i = super().step(action_dict)
            return o, r, f, i

    env = MultiAgentRows([Old(end=2)], seeds=[7])
    (step,) = act(env, 2)
    assert env.get_sub_environments()[0].seeded == 7
    assert step.terminated.tolist() == [False, False, True, True]
    assert env.health() == {"E401 reset": 2, "E401 step": 2}
    again = MultiAgentRows([Old(end=2)], seeds=[7])
    assert again.set_state(env.get_state()) == []
    assert again.health() == env.health()


def test_infos_come_by_slot_and_survive_the_next_episode():
    class Told(Duel):
        def step(self, action_dict):
            o, r, f, g, _ = super().step(action_dict)
            self.info = getattr(self, "info", {})
            self.info["t"] = self.t
            return o, r, f, g, {"blue": self.info, "red": {}, "__common__": {"x": 1}}

        def reset(self, *, seed=None, options=None):
            if hasattr(self, "info"):
                self.info["t"] = "spoilt"
            return super().reset()[0], {"red": {"new": True}}

    env = MultiAgentRows([Told(end=2)], seeds=[7])
    assert dict(env.poll()[0].info) == {0: {"new": True}}
    env.send_actions(np.arange(2), np.zeros(2, np.int64))
    assert dict(env.poll()[0].info) == {1: {"t": 1}}
    env.send_actions(np.arange(2), np.zeros(2, np.int64))
    (step,) = env.poll()
    assert step.slot.tolist() == [2, 3, 0, 1]
    assert dict(step.info) == {1: {"t": 2}, 2: {"new": True}}


def test_slots_are_given_again_after_the_poll_that_freed_them():
    env = MultiAgentRows([Duel(end=2)], seeds=[7])
    slots = [env.poll()[0].slot.tolist()]
    for _ in range(6):
        env.send_actions(np.array(slots[-1][:2]), np.zeros(2, np.int64))
        slots.append(env.poll()[0].slot.tolist())
    assert slots == [[0, 1], [0, 1], [2, 3, 0, 1], [2, 3], [0, 1, 2, 3], [0, 1], [2, 3, 0, 1]]


def test_envs_do_not_wait_for_each_other_but_for_all_their_agents():
    env = MultiAgentRows([Duel(), Duel()], seeds=[0, 1])
    env.poll()
    env.send_actions(np.array([0, 2, 3]), np.zeros(3, np.int64))
    (step,) = env.poll()
    assert step.slot.tolist() == [2, 3]
    assert env.env_steps == 1
    env.send_actions(np.array([1]), np.zeros(1, np.int64))
    (step,) = env.poll()
    assert (step.slot.tolist(), step.reward.tolist(), env.env_steps) == ([0, 1], [1.0, 2.0], 2)


def test_an_env_that_awaits_nobody_is_stepped_with_nothing():
    class Rests(Duel):
        def reset(self, *, seed=None, options=None):
            self.t, self.got = 0, []
            return {}, {}

        def step(self, action_dict):
            self.got.append(dict(action_dict))
            o, r, *rest = super().step(action_dict)
            return (o, r, *rest) if self.t == 3 else ({}, r if self.t > 3 else {}, *rest)

    env = MultiAgentRows([Rests(end=5)], seeds=[0])
    polls = [env.poll() for _ in range(4)]
    assert [[len(step.slot) for step in steps] for steps in polls] == [[], [], [], [2]]
    env.send_actions(np.array([0, 1]), np.zeros(2, np.int64))
    assert env.poll() == []
    (pending,) = env.pending()
    assert len(pending.slot) == 0
    assert [info.agent for info in pending.opened] == ["red", "blue"]
    got = env.get_sub_environments()[0].got
    (step,) = env.poll()
    assert got == [{}, {}, {}, {"red": 0, "blue": 0}, {}]
    assert (step.t.tolist(), step.reward.tolist(), step.terminated.all()) == ([5, 5], [2.0, 4.0], True)


def test_an_env_may_do_what_it_likes_with_its_dict_of_actions():
    class Greedy(Duel):
        def step(self, action_dict):
            action_dict.clear()
            o, *rest = super().step(action_dict)
            return {**o, "blue": NAN}, *rest

    with pytest.raises(EnvError, match="agent 'blue', seed 0, after action 1") as caught:
        act(MultiAgentRows([Greedy()], seeds=[0]), 1)
    assert (caught.value.agent, caught.value.action) == ("blue", 1)


def test_of_an_env_that_gives_its_own_state_no_actions_are_saved():
    scripts = scripts_of(2, 2, steady=1.0)
    for kind, kept in ((Known, 0), (Dice, 1)):
        state = Driver(dice_of(scripts, kind)).run(5).env.get_state()
        assert min(1, sum(len(part["slots"]) for part in state["log"])) == kept


def test_an_episode_to_which_nobody_comes_is_closed_all_the_same():
    class Unsaid(Duel):
        def reset(self, *, seed=None, options=None):
            return {}, {}

        def step(self, action_dict):
            return {}, {}, {}, {}, {}

    unsaid = MultiAgentRows([Unsaid()], seeds=[0])  # nobody has come yet, who could end
    assert [unsaid.poll() for _ in range(5)] == [[]] * 5

    class Empty(Duel):
        def reset(self, *, seed=None, options=None):
            self.t = 0
            return {}, {}

        def step(self, action_dict):
            return ({}, {}, *super().step(action_dict)[2:])

    env = MultiAgentRows([Empty(end=2)], seeds=[0])
    closed = [[tuple(end) for step in env.poll() for end in step.closed] for _ in range(5)]
    assert closed == [[], [], [(0, 0, 2)], [], [(0, 1, 2)]]
    assert env.env_steps == 4


def test_envs_that_write_to_one_buffer_are_told_apart():
    buffer = np.zeros(2, np.float32)

    class Shared(Duel):
        def __init__(self, value):
            super().__init__(end=3)
            self.value = value

        def look(self):
            buffer[:] = self.value, self.t / 10
            return {"red": buffer}

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return self.look(), {}

        def step(self, action_dict):
            _, _, *rest = super().step(action_dict)
            return self.look(), {"red": 1.0}, *rest

    env = MultiAgentRows([Shared(0.25), Shared(0.5)], seeds=[0, 1])
    for steps in range(4):
        (step,) = act(env, 1) if steps else env.poll()
        ends = step.terminated
        assert step.obs[~ends, 0].tolist() == [0.25, 0.5]
        assert step.obs[~ends, 1].tolist() == pytest.approx([steps % 3 / 10] * 2)
        last = [[0.25, 0.3], [0.5, 0.3]] if steps == 3 else []
        assert step.obs[ends].tolist() == np.array(last, np.float32).tolist()


def test_flags_may_be_numpys_and_may_name_who_has_not_come():
    class Early(Duel):
        possible_agents = ("red", "blue", "late")

        def step(self, action_dict):
            o, r, f, g, i = super().step(action_dict)
            f = {key: np.bool_(flag) for key, flag in f.items()} | {"late": self.t == 1}
            return ({**o, "late": o["red"]} if self.t == 3 else o), {**r, "late": 0}, f, g, i

    env = MultiAgentRows([Early()], seeds=[0])
    (step,) = act(env, 2)
    assert step.reward.tolist() == [1.0, 2.0]
    assert env.health() == {}
    with pytest.raises(EnvError, match=r"E405 .*'late'"):
        act(env, 1)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="1 envs and 2 seeds"):
        MultiAgentRows([Duel()], seeds=[0, 1])
    with pytest.raises(ConfigError, match="max_episode_steps is at least 1"):
        MultiAgentRows([Duel()], seeds=[0], max_episode_steps=0)
    env = rows_of(scripts_of(1, 1))
    driver = Driver(env).run(0)
    spaces = {who[-1] for who in driver.awaiting.values()}
    if len(spaces) == 2:
        slots = np.array(list(driver.awaiting))
        with pytest.raises(ValueError, match="several space pairs"):
            env.send_actions(slots, np.zeros(len(slots), np.int64))
    env.send_actions(np.array(list(driver.awaiting))[:1], np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="actions were sent"):
        env.get_state()


def test_all_envs_are_closed_even_if_one_fails():
    class Stuck(Duel):
        closed = False

        def close(self):
            self.closed = True
            raise OSError("stuck")

    envs = [Stuck(), Stuck()]
    env = MultiAgentRows(envs, seeds=[0, 1])
    with pytest.raises(OSError, match="stuck"):
        env.close()
    assert all(one.closed for one in envs)
    env.close()
