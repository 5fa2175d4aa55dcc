"""Low-level envs both ways: a user's BaseEnv as rows, and anything as a BaseEnv."""

from __future__ import annotations

import copy
import queue
import threading
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe.envs.agents import MultiAgentRows
from steppe.envs.base_env import ASYNC_RESET_RETURN, BaseEnvRows
from steppe.envs.base_view import RowsView, to_base_env
from steppe.envs.gym import GymEnv
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.envs.registry import build
from steppe.envs.vector import VectorEnv
from steppe.errors import ConfigError, EnvError
from steppe.types import Decision
from tests.fakes import Row, ScriptedEnv

LINE = Box(-1e6, 1e6, (), np.float32)


class Told(steppe.BaseEnv):
    """Says what a script says, poll by poll, and keeps what it was sent."""

    observation_space, action_space = LINE, Discrete(4)

    def __init__(self, script, num_envs=1, resets=()):
        self.script, self.num_envs, self.resets = list(script), num_envs, list(resets)
        self.sent, self.asked, self.seeds, self.stopped = [], [], None, 0

    def seed(self, seeds):
        self.seeds = seeds

    def poll(self):
        return self.script.pop(0) if self.script else ({}, {}, {}, {}, {}, {})

    def send_actions(self, action_dict):
        self.sent.append(action_dict)

    def try_reset(self, env_id=None):
        self.asked.append(env_id)
        return self.resets.pop(0) if self.resets else None

    def stop(self):
        self.stopped += 1


def six(obs, rewards=None, terminateds=None, truncateds=None, infos=None, taken=None):
    return tuple(part or {} for part in (obs, rewards, terminateds, truncateds, infos, taken))


def rows_of(base, n=1, **limits):
    return BaseEnvRows(base, seeds=[100 + i for i in range(n)], **limits)


def plain(steps, who=None):
    """Rows as (env, agent, episode, t, obs, reward, ended): whoever lives in which slot."""
    who = {} if who is None else who
    for step in steps:
        who |= {info.slot: info for info in step.opened}
    found = []
    for step in steps:
        for row, slot in enumerate(step.slot.tolist()):
            info = who[slot]
            ended = "T" * bool(step.terminated[row]) + "t" * bool(step.truncated[row])
            values = int(step.t[row]), float(step.obs[row]), float(step.reward[row]), ended
            found.append((info.env, info.agent, info.episode, *values))
    return found


def answer(env, steps, action=0):
    """Answer all rows that expect it."""
    for step in steps:
        final = step.terminated | step.truncated
        decided = np.zeros_like(final) if step.decided is None else step.decided
        slots = step.slot[~final & ~decided]
        env.send_actions(slots, np.full(len(slots), action))


def test_an_episode_row_by_row():
    base = Told(
        [
            six({0: {"agent0": 1.0}}),
            six({0: {"agent0": 2.0}}, {0: {"agent0": 0.5}}, infos={0: {"agent0": {"x": 1}}}),
            six({0: {"agent0": 3.0}}, {0: {"agent0": 0.25}}, {0: {"__all__": True}}),
            six({0: {"agent0": 5.0}}, {0: {"agent0": 1.0}}, {0: {"__all__": False}}),
        ],
        resets=[({0: {"agent0": 4.0}}, {0: {"agent0": {"new": True}}})],
    )
    env, who = rows_of(base), {}
    first = env.poll()
    assert plain(first, who) == [(0, "agent0", 0, 0, 1.0, 0.0, "")]
    assert base.seeds == [100]
    answer(env, first, 3)
    second = env.poll()
    assert base.sent == [{0: {"agent0": 3}}]
    assert plain(second, who) == [(0, "agent0", 0, 1, 2.0, 0.5, "")]
    assert second[0].info == {0: {"x": 1}}
    answer(env, second)
    third = env.poll()
    assert plain(third, who) == [
        (0, "agent0", 1, 0, 4.0, 0.0, ""),
        (0, "agent0", 0, 2, 3.0, 0.25, "T"),
    ]
    assert [tuple(end) for end in third[0].closed] == [(0, 0, 2)]
    assert third[0].info == {1: {"new": True}}
    answer(env, third)
    assert plain(env.poll(), who) == [(0, "agent0", 1, 1, 5.0, 1.0, "")]
    assert env.env_steps == 3
    assert base.asked == [0]


@pytest.mark.parametrize("late", [{0: {}}, {0: {"a": 9.0}}], ids=["nobody is back", "with the first row"])
def test_what_is_earned_after_an_end_is_refused(late):
    def play(reward):
        script = [
            six({0: {"a": 1.0}}, {0: {"a": 7.0}}),  # nobody had acted: there is nothing to earn it for
            six({0: {"a": 2.0}}, {0: {"a": 1.0}}, {0: {"__all__": True}}),
            six(late, {0: {"a": reward}}),
            six({0: {"a": 9.0}}, {0: {"a": 0.0}}),
        ]
        env, who, found = rows_of(Told(script)), {}, []
        while script:
            steps = env.poll()
            found += [row[4:6] for row in plain(steps, who)]
            answer(env, steps)
            del script[0]
        return found

    assert play(0.0)[:3] == [(1.0, 0.0), (2.0, 1.0), (9.0, 0.0)]
    with pytest.raises(
        EnvError,
        match=r"(?s)E403 .*rewards has 0.5 for agent 'a', whose episode is over; .* agent 'a', seed 100",
    ):
        play(0.5)


@pytest.mark.parametrize("later", [None, (None, None), ASYNC_RESET_RETURN])
def test_a_next_episode_that_begins_with_a_later_poll(later):
    base = Told(
        [
            six({0: {0: 1.0}}),
            six({0: {0: 2.0}}, {0: {0: 1.0}}, {0: {"__all__": True}}),
            six({}),
            six({0: {}}, {0: {}}, {0: {"__all__": False}}),
            six({0: {0: 7.0}}, {0: {0: None}}),
        ],
        resets=[later],
    )
    env, who, found = rows_of(base), {}, []
    for _ in range(5):
        steps = env.poll()
        answer(env, steps)
        found.append(plain(steps, who))
    assert found == [
        [(0, 0, 0, 0, 1.0, 0.0, "")],
        [(0, 0, 0, 1, 2.0, 1.0, "T")],
        [],
        [],
        [(0, 0, 1, 0, 7.0, 0.0, "")],
    ]
    assert env.env_steps == 1
    assert base.asked == [0]


def test_five_items_and_the_time_limit_of_old_gym():
    dones = {0: {"a": True, "b": False, "__all__": True}, 1: {"__all__": True}}
    infos = {0: {}, 1: {"a": {"TimeLimit.truncated": True}}}
    base = Told(
        [
            ({0: {"a": 1.0, "b": 2.0}, 1: {"a": 3.0}}, {0: {}, 1: {}}, {}, {}, {}),
            ({0: {"a": 1.5, "b": 2.5}, 1: {"a": 3.5}}, {0: {"b": 1}, 1: {"a": 2}}, dones, infos, {}),
        ],
        num_envs=2,
    )
    env, who = rows_of(base, 2), {}
    first = env.poll()
    plain(first, who)
    answer(env, first)
    assert plain(env.poll(), who) == [
        (0, "a", 0, 1, 1.5, 0.0, "T"),
        (0, "b", 0, 1, 2.5, 1.0, "T"),
        (1, "a", 0, 1, 3.5, 2.0, "t"),
    ]


def test_agents_that_keep_silent_and_come_late():
    base = Told(
        [
            six({0: {"a": 1.0}}),
            six({0: {"b": 2.0}}, {0: {"a": 0.5}}),
            six({0: {"b": 3.0}}, {0: {"a": 0.25, "b": 1.0}}),
            six({0: {"a": 4.0}}, {0: {"a": 1.0}}, {0: {"b": True, "__all__": False}}),
        ]
    )
    env, who, found = rows_of(base), {}, []
    for _ in range(4):
        steps = env.poll()
        answer(env, steps)
        found += plain(steps, who)
    assert found == [
        (0, "a", 0, 0, 1.0, 0.0, ""),
        (0, "b", 0, 1, 2.0, 0.0, ""),
        (0, "b", 0, 2, 3.0, 1.0, ""),
        (0, "a", 0, 3, 4.0, 1.75, ""),
        (0, "b", 0, 3, 3.0, 0.0, "T"),  # its last known observation
    ]


def test_off_policy_actions_are_decided_rows_and_await_nothing():
    base = Told(
        [
            six({0: {"a": 1.0, "b": 2.0}}, taken={0: {"b": 3}}),
            six({0: {"a": 1.5, "b": 2.5}}, {0: {"a": 1.0, "b": 1.0}}),
        ]
    )
    env = rows_of(base)
    (step,) = env.poll()
    assert step.decided.tolist() == [False, True]
    assert step.decision.action.tolist() == [3]
    assert np.isnan(step.decision.logp).tolist() == [True]
    with pytest.raises(ValueError, match="awaits no action"):
        env.send_actions(step.slot[1:], np.array([0]))
    answer(env, [step], 2)
    (step,) = env.poll()
    assert base.sent == [{0: {"a": 2}}]
    assert step.obs.tolist() == [1.5, 2.5]
    assert step.decided is None


class Logged(steppe.BaseEnv):
    """Agent "a" asks for actions; "b" has acted already, but for its first observation."""

    num_envs, observation_space, action_space = 1, LINE, Discrete(2)

    def __init__(self, env_config):
        self.t, self.received = 0, env_config["received"]

    def poll(self):
        self.t += 1
        told = {0: dict.fromkeys("ab", np.float32(self.t))}
        return six(told, {0: {"a": 1.0, "b": 2.0}}, taken={0: {"b": 1}} if self.t > 1 else {})

    def send_actions(self, action_dict):
        self.received.append(sorted(action_dict[0]))


class Zero(steppe.Policy):
    def act(self, obs, state, rng):
        return 0


def logged(**settings):
    class Kept(Logged):
        def __init__(self):
            super().__init__({"received": sent})

    sent, sizes = [], {"train_batch_size": 4, "minibatch_size": 4, "num_epochs": 1, "fcnet_hiddens": [4]}
    sizes |= {"num_envs_per_env_runner": 1, "seed": 0, "write_run": False}
    return sent, steppe.PPOConfig(env=Kept, **sizes, **settings)


def test_what_learns_on_policy_refuses_off_policy_actions():
    _, config = logged()
    with (
        config.build() as algo,
        pytest.raises(ConfigError, match=r"agent 'b' \(env 0, episode 0, step 1\).*PPO.*off_policy_actions"),
    ):
        algo.train()


def test_off_policy_actions_of_agents_that_nobody_trains_are_no_matter():
    policies = {"learns": steppe.PolicySpec(), "logs": steppe.PolicySpec(policy_class=Zero)}

    def mapping(agent_id):
        return {"a": "learns", "b": "logs"}[agent_id]

    own = {"policies": policies, "policy_mapping_fn": mapping, "policies_to_train": ["learns"]}
    sent, config = logged(**own)
    with config.build() as algo:
        result = algo.train()
    assert result["info"].keys() == {"learns"}
    assert np.isfinite(result["info"]["learns"]["total_loss"])
    assert sent == [["a", "b"], ["a"], ["a"], ["a"]]


@pytest.mark.parametrize(
    ("taken", "text"),
    [
        (
            {"a": "left"},
            r"E305 .*off_policy_actions: expected an integer .* got 'left'.* agent 'a', seed 100",
        ),
        ({"a": 1, "b": 9}, r"E305 .*got 9 in 9 \(int\).* episode 0, step 1, agent 'b', seed 100"),
        ({"c": 1}, r"E404 .*off_policy_actions has agent 'c', which has no observation that it acted on"),
        (3, r"E301 .*poll: off_policy_actions are 3 \(int\); return a dict by agent.* episode 0, step 1"),
    ],
    ids=str,
)
def test_off_policy_actions_that_cannot_be_are_refused(taken, text):
    both = {0: {"a": 1.0, "b": 2.0}}
    env = rows_of(Told([six(both), six(both, taken={0: taken})]))
    answer(env, env.poll())
    with pytest.raises(EnvError, match=f"(?s){text}"):
        env.poll()


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, r"poll returned None.*return \(obs, rewards"),
        (({}, {}), r"poll returned 2 dicts; .*\n  in Told, runner 4$"),
        (([], {}, {}, {}, {}), "poll returned"),
        ((*six({0: {"a": 1.0}}), {}), "poll returned 7 dicts"),
        (
            ({0: {"a": 1.0}}, {}, {0: {"__all__": False}}, {0: {"__all__": False}}, {}),
            r"E301 .*five items, the fourth of which are flags; with truncateds there are six: \(obs",
        ),
        (six({0: 3.0}), r"E301 .*poll: obs are 3.0 \(float\); return a dict by agent"),
        (six({0: {"a": 1.0}}, infos={0: [1]}), r"E301 .*poll: infos are \[1\] \(list\); return a dict"),
        (six({3: {"a": 1.0}}), "poll tells of env 3; envs are numbered 0 to 1"),
        (six({0: {"a": np.nan}}), "E104"),
        (six({0: {"a": 1.0}}, {0: {"a": np.inf}}), None),
    ],
)
def test_what_poll_may_not_return(result, text):
    env = rows_of(Told([result], num_envs=2), 2, runner=4)
    if text is None:  # rewards of a first observation are not read
        assert len(env.poll()) == 1
        return
    with pytest.raises(EnvError, match=f"(?s){text}"):
        env.poll()
    with pytest.raises(RuntimeError, match="failed before"):
        env.poll()


def test_an_exception_in_the_place_of_observations_is_raised():
    env = rows_of(Told([six({0: ZeroDivisionError("the simulator is gone")})]))
    with pytest.raises(ZeroDivisionError, match="gone") as caught:
        env.poll()
    assert caught.value.__notes__ == ["steppe: poll() of Told told it of env 0, runner 0"]


def test_what_the_users_methods_raise_says_where():
    class Broken(Told):
        def send_actions(self, action_dict):
            raise KeyError("x")

    env = rows_of(Broken([six({0: {"a": 1.0}})]))
    answer(env, env.poll())
    with pytest.raises(KeyError) as caught:
        env.poll()
    assert caught.value.__notes__ == ["steppe: in send_actions() of Broken, runner 0"]


def test_a_step_limit_needs_a_reset():
    def script():
        return [six({0: {"a": 1.0}}), six({0: {"a": 2.0}}, {0: {"a": 1.0}})]

    env, who = rows_of(Told(script(), resets=[{0: {"a": 9.0}}]), max_episode_steps=1), {}
    first = env.poll()
    plain(first, who)
    answer(env, first)
    assert plain(env.poll(), who) == [(0, "a", 1, 0, 9.0, 0.0, ""), (0, "a", 0, 1, 2.0, 1.0, "t")]
    assert env.health() == {"E106 obs": 3, "E401 reset": 1}  # no float32, no infos
    env = rows_of(Told(script()), max_episode_steps=1)
    answer(env, env.poll())
    with pytest.raises(EnvError, match=r"try_reset\(0\) returned None"):
        env.poll()


def test_what_was_told_of_an_episode_that_was_cut_is_dropped():
    script = [six({0: {"a": float(t)}}) for t in (1, 2, 3)]
    env, who = rows_of(Told(script, resets=[({0: {"a": 9.0}}, {})]), max_episode_steps=1), {}
    first = env.poll()
    plain(first, who)
    assert env.poll() == env.poll() == []  # 2 and 3 have come, and wait
    answer(env, first)
    second = env.poll()
    assert plain(second, who) == [(0, "a", 1, 0, 9.0, 0.0, ""), (0, "a", 0, 1, 2.0, 0.0, "t")]
    answer(env, second)
    assert env.poll() == []


def test_an_episode_that_ends_by_itself_at_the_limit_needs_no_reset():
    script = [six({0: {"a": 1.0}}), six({0: {"a": 2.0}}, None, {0: {"__all__": True}})]
    env, who = rows_of(Told(script), max_episode_steps=1), {}
    first = env.poll()
    plain(first, who)
    answer(env, first)
    assert plain(env.poll(), who) == [(0, "a", 0, 1, 2.0, 0.0, "T")]
    assert env.poll() == []


def test_what_comes_while_an_agent_is_awaited_waits():
    base = Told([six({0: {"a": 1.0}}), six({0: {"a": 2.0}}), six({0: {"a": 3.0}})])
    env, who = rows_of(base), {}
    first = env.poll()
    plain(first, who)
    assert env.poll() == []
    answer(env, first)
    second = env.poll()
    assert plain(second, who) == [(0, "a", 0, 1, 2.0, 0.0, "")]
    answer(env, second)
    assert plain(env.poll(), who) == [(0, "a", 0, 2, 3.0, 0.0, "")]
    assert env.health() == {"E106 obs": 3}  # no flags at all are no oddity


class Threads(steppe.BaseEnv):
    """Simulators in threads of their own; each answers when it is done."""

    observation_space, action_space = LINE, Discrete(2)

    def __init__(self, pauses):
        self.num_envs, self.ready = len(pauses), queue.Queue()
        self.boxes = [queue.Queue() for _ in pauses]
        self.threads = [
            threading.Thread(target=self.simulate, args=(i, pause), daemon=True)
            for i, pause in enumerate(pauses)
        ]
        self.running = False

    def simulate(self, i, pause):
        t = 0
        self.ready.put((i, t))
        while self.boxes[i].get() is not None:
            time.sleep(pause)
            t += 1
            self.ready.put((i, t))

    def poll(self):
        if not self.running:
            self.running = True
            for thread in self.threads:
                thread.start()
        told = [self.ready.get()]
        while not self.ready.empty():
            told.append(self.ready.get())
        obs = {i: {"agent0": float(t)} for i, t in told}
        return six(obs, {i: {"agent0": 1.0 * (t > 0)} for i, t in told})

    def send_actions(self, action_dict):
        for i, actions in action_dict.items():
            self.boxes[i].put(actions["agent0"])

    def stop(self):
        for box, thread in zip(self.boxes, self.threads, strict=True):
            box.put(None)
            thread.join()


def test_slow_envs_hold_up_nobody():
    env, who, most = rows_of(Threads([0.001, 0.001, 0.3]), 3), {}, {0: 0, 1: 0, 2: 0}
    while most[2] < 1:
        steps = env.poll()
        for i, _, _, t, obs, _, _ in plain(steps, who):
            assert obs == t == most[i] + (t > 0)
            most[i] = t
        answer(env, steps)
    env.close()
    env.close()
    assert most[0] > 10
    assert most[1] > 10
    assert env.env_steps == sum(most.values())


class Paced(steppe.BaseEnv):
    """Env i answers ``paces[i]`` polls after it was told what to do; says how often it has answered."""

    observation_space, action_space, paces = LINE, Discrete(2), (1, 2, 5)
    num_envs = len(paces)

    def __init__(self):
        self.polls, self.steps, self.due = 0, [0, 0, 0], {0: 0, 1: 0, 2: 0}

    def poll(self):
        ready = [i for i, poll in self.due.items() if poll == self.polls]
        self.polls += 1
        told = {i: {"agent0": np.float32(10 * i + self.steps[i])} for i in ready}
        for i in ready:
            del self.due[i]
            self.steps[i] += 1
        return six(told, {i: {"agent0": 1.0 * (self.steps[i] > 1)} for i in ready})

    def send_actions(self, action_dict):
        self.due |= {i: self.polls + self.paces[i] - 1 for i in action_dict}


class Batches(steppe.Policy):
    """Keeps the batches that it is asked about."""

    def __init__(self):
        self.asked = []

    def act_batch(self, obs, state, rng):
        self.asked.append(obs.tolist())
        return np.zeros(len(obs), np.int64)

    def act(self, obs, state, rng):
        raise NotImplementedError


def test_whoever_is_ready_is_one_batch_for_the_policy():
    """In poll n those envs are ready whose pace divides n, and all of them are asked about at once."""
    asked = Batches()
    policies = {"default_policy": steppe.PolicySpec(policy_class=asked), "idle": steppe.PolicySpec()}
    mapping = {"policies": policies, "policy_mapping_fn": lambda agent_id: "default_policy"}
    sizes = {"train_batch_size": 12, "minibatch_size": 12, "num_epochs": 1, "fcnet_hiddens": [4]}
    own = {"num_envs_per_env_runner": 3, "seed": 0, "write_run": False, "policies_to_train": ["idle"]}
    with steppe.PPOConfig(env=Paced, **sizes, **mapping, **own).build() as algo:
        ((sample,),) = [algo.runner.sample()]
    polls = [[i for i, pace in enumerate(Paced.paces) if n % pace == 0] for n in range(9)]
    expected = [[10.0 * i + n // Paced.paces[i] for i in ready] for n, ready in enumerate(polls)]
    assert asked.asked == expected[:-1]  # the last rows wait for the next fragment
    assert sample.env_steps == sum(map(len, polls[1:])) == 13  # the first one of 12 or more
    assert sample.agent_steps == sum(map(len, polls[:-1]))


class Two(MultiAgentEnv):
    """Agents 0 and 1 get a reward of 1 a step, 25 steps long."""

    possible_agents = (0, 1)
    observation_space, action_space = Discrete(2), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return {0: 0, 1: 0}, {}

    def step(self, action_dict):
        self.t += 1
        both = dict.fromkeys(action_dict, 0)
        ended = {**dict.fromkeys(both, self.t == 25), "__all__": self.t == 25}
        return both, dict.fromkeys(both, 1.0), ended, {"__all__": False}, {}


def test_two_envs_of_two_agents_through_their_dicts():
    base = to_base_env(Two, num_envs=2)
    both = {0: {0: 0, 1: 0}, 1: {0: 0, 1: 0}}
    obs, rewards, terminateds, truncateds, infos, taken = base.poll()
    assert (obs, rewards, taken) == (both, {0: {}, 1: {}}, {0: {}, 1: {}})
    assert not any(terminateds[i]["__all__"] or truncateds[i]["__all__"] for i in (0, 1))
    assert infos == {0: {0: {}, 1: {}}, 1: {0: {}, 1: {}}}
    ones = {0: {0: 1.0, 1: 1.0}, 1: {0: 1.0, 1: 1.0}}
    for _ in range(24):
        base.send_actions(both)
        obs, rewards, terminateds, *_ = base.poll()
        assert (obs, rewards) == (both, ones)
        assert terminateds == {i: {0: False, 1: False, "__all__": False} for i in (0, 1)}
    base.send_actions(both)
    obs, rewards, terminateds, truncateds, *_ = base.poll()
    assert (obs, rewards) == (both, ones)
    assert terminateds == {i: {0: True, 1: True, "__all__": True} for i in (0, 1)}
    assert truncateds == {i: {0: False, 1: False, "__all__": False} for i in (0, 1)}
    with pytest.raises(ValueError, match=r"env 0 is over: call try_reset\(0\)"):
        base.send_actions({0: {0: 0, 1: 0}})
    assert base.poll() == ({}, {}, {}, {}, {}, {})
    assert base.try_reset(0) == ({0: {0: 0, 1: 0}}, {0: {0: {}, 1: {}}})
    with pytest.raises(ValueError, match="env 1 is over"):
        base.send_actions(both)
    base.send_actions({0: {0: 0, 1: 0}})
    assert base.poll()[1] == {0: {0: 1.0, 1: 1.0}}
    assert base.try_reset() == ({1: {0: 0, 1: 0}}, {1: {0: {}, 1: {}}})
    with pytest.raises(ValueError, match="env 1 has not ended"):
        base.try_reset(1)
    assert base.get_agent_ids() == {0, 1}
    assert [type(env) for env in base.get_sub_environments()] == [Two, Two]
    assert set(base.get_sub_environments(as_dict=True)) == {0, 1}
    base.stop()


def test_actions_that_nobody_awaits_or_that_fit_no_space_send_nothing():
    base = to_base_env(Two)
    base.poll()
    for actions, text in [
        ({0: {0: 0, 5: 0}}, r"agent 5 of env 0 awaits no action; 0, 1 does"),
        ({7: {0: 0}}, "agent 0 of env 7 awaits no action; nobody does"),
        ({0: {0: 0, 1: "up"}}, "action: expected"),
    ]:
        with pytest.raises(ValueError, match=text):
            base.send_actions(actions)
    base.send_actions({0: {0: 0}})
    with pytest.raises(ValueError, match="agent 0 of env 0 awaits no action; 1 does"):
        base.send_actions({0: {0: 0}})
    assert base.poll()[0] == {}
    base.send_actions({0: {1: 0}})
    assert base.poll()[0] == {0: {0: 0, 1: 0}}


class Walk(gymnasium.Env):
    """Says its step; every third one is the last."""

    observation_space, action_space = LINE, Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.float32(0), {}

    def step(self, action):
        self.t += 1
        return np.float32(self.t), 1.0 + action, self.t == 3, False, {"t": self.t}


class OldWalk:
    observation_space, action_space = LINE, Discrete(2)

    def __init__(self):
        self.env = Walk()

    def reset(self):
        return self.env.reset()[0]

    def step(self, action):
        obs, reward, terminated, _, info = self.env.step(action)
        return obs, reward, terminated, info


class SoloWalk(MultiAgentEnv):
    observation_space, action_space = LINE, Discrete(2)

    def __init__(self):
        self.env = Walk()

    def reset(self, *, seed=None, options=None):
        return tuple({"agent0": part} for part in self.env.reset())

    def step(self, action_dict):
        obs, reward, terminated, truncated, info = self.env.step(action_dict["agent0"])
        flags = ({"__all__": terminated}, {"__all__": truncated})
        return {"agent0": obs}, {"agent0": reward}, *flags, {"agent0": info}


class ManyWalks(VectorEnv):
    def __init__(self):
        super().__init__(LINE, Discrete(2), 2)
        self.envs = [Walk(), Walk()]

    def vector_reset(self, *, seeds=None, options=None):
        return tuple(zip(*[env.reset() for env in self.envs], strict=True))

    def reset_at(self, index, *, seed=None, options=None):
        return self.envs[index].reset()

    def vector_step(self, actions):
        pairs = zip(self.envs, actions, strict=True)
        return tuple(zip(*[env.step(a) for env, a in pairs], strict=True))


class PolledWalks(steppe.BaseEnv):
    """The same once more, written as a low-level env that does not say how many envs it has."""

    observation_space, action_space = LINE, Discrete(2)

    def __init__(self):
        self.envs, self.told = [Walk(), Walk()], None

    def poll(self):
        if self.told is None:
            self.told = six({i: {"agent0": env.reset()[0]} for i, env in enumerate(self.envs)})
        told, self.told = self.told, six({})
        return told

    def send_actions(self, action_dict):
        steps = {i: self.envs[i].step(actions["agent0"]) for i, actions in action_dict.items()}
        parts = [{i: {"agent0": step[at]} for i, step in steps.items()} for at in range(5)]
        ends = {i: {"__all__": step[2]} for i, step in steps.items()}
        self.told = parts[0], parts[1], ends, {}, parts[4], {}

    def try_reset(self, env_id=None):
        return {env_id: {"agent0": self.envs[env_id].reset()[0]}}, {}

    def get_sub_environments(self, as_dict=False):
        return dict(enumerate(self.envs)) if as_dict else self.envs


SAME = gymnasium.vector.AutoresetMode.SAME_STEP
KINDS = {  # whatever can be brought, and a function that makes it
    "class": (Walk, 2),
    "object": (Walk(), 1),
    "creator": (lambda env_config: Walk(), 2),
    "old": (OldWalk, 2),
    "old object": (OldWalk(), 1),
    "many agents": (SoloWalk, 2),
    "many agents, object": (SoloWalk(), 1),
    "creator of many agents": (lambda env_config: SoloWalk(), 2),
    "creator of an old one": (lambda env_config: OldWalk(), 2),
    "Gymnasium's vector": (lambda: gymnasium.vector.SyncVectorEnv([Walk, Walk], autoreset_mode=SAME), 2),
    "vector": (ManyWalks, 2),
    "vector object": (ManyWalks(), 2),
    "creator of a vector": (lambda: ManyWalks(), 2),
    "creator of a BaseEnv": (PolledWalks, 2),
    "AsyncEnv": (GymEnv([Walk(), Walk()], seeds=[1, 2]), 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_becomes_the_same_base_env(kind):
    env, n = KINDS[kind]
    objects = not callable(env)
    base = to_base_env(env) if objects else to_base_env(env, num_envs=n)
    assert isinstance(base, steppe.BaseEnv)
    assert base.num_envs == n

    def by_env(value):
        return {i: {"agent0": value} for i in range(n)}

    assert base.poll()[:2] == (by_env(0.0), {i: {} for i in range(n)})
    for t in (1, 2, 3):
        base.send_actions(by_env(1))
        obs, rewards, terminateds, truncateds, infos, _ = base.poll()
        assert (obs, rewards, infos) == (by_env(float(t)), by_env(2.0), by_env({"t": t}))
        assert [terminateds[i]["__all__"] for i in range(n)] == [t == 3] * n
        assert [truncateds[i]["__all__"] for i in range(n)] == [False] * n
    for i in range(n):
        assert base.try_reset(i)[0] == {i: {"agent0": 0.0}}
    base.send_actions(by_env(0))
    assert base.poll()[1] == by_env(1.0)
    base.stop()


def test_a_base_env_is_its_own_view_and_one_object_is_one_env():
    base = PolledWalks()
    assert steppe.to_base_env(base) is base
    with pytest.raises(ConfigError, match="3 envs cannot be made of one object"):
        to_base_env(Walk(), num_envs=3)
    with pytest.raises(ConfigError, match="makes a BaseEnv, which cannot be used as one env"):
        steppe.make(PolledWalks)


def test_vector_envs_that_reset_in_the_next_step_come_back_with_a_poll():
    base = to_base_env(gymnasium.vector.SyncVectorEnv([Walk, Walk]))
    base.poll()
    for _ in range(3):
        base.send_actions({0: {"agent0": 0}, 1: {"agent0": 0}})
        told = base.poll()
    assert told[2][0]["__all__"]
    assert base.try_reset(0) == base.try_reset(1) == ASYNC_RESET_RETURN
    assert base.poll()[:2] == ({0: {"agent0": 0.0}, 1: {"agent0": 0.0}}, {0: {}, 1: {}})


def test_the_registry_builds_the_rows_of_a_base_env():
    env = build(PolledWalks, num_envs=2, run_seed=0)
    assert isinstance(env, BaseEnvRows)
    assert env.num_envs == 2  # as many as it has inside
    assert len(env.get_sub_environments()) == 2
    assert env.poll()[0].obs.tolist() == [0.0, 0.0]


def test_a_saved_run_begins_new_episodes():
    env, who = rows_of(PolledWalks(), 2), {}
    steps = env.poll()
    plain(steps, who)
    for _ in range(2):
        answer(env, steps)
        steps = env.poll()
    state = env.get_state()
    assert state["started"] is True
    for again in (rows_of(PolledWalks(), 2), env):
        (note,) = again.set_state(state)
        assert note.startswith("E402 the 2 envs of PolledWalks begin new episodes")
        (step,) = again.pending()
        assert step.obs.tolist() == [0.0, 0.0]
        assert not {*step.opened} & {*who.values()}  # or the sampler would take them for the old ones
        answer(again, [step])
        assert again.poll()[0].obs.tolist() == [1.0, 1.0]
    fresh = rows_of(PolledWalks(), 2)
    assert fresh.set_state(rows_of(PolledWalks(), 2).get_state()) == []


def test_a_run_goes_on_from_its_checkpoint_and_says_that_it_is_not_exact(caplog):
    sizes = {"train_batch_size": 10, "minibatch_size": 10, "num_epochs": 1, "fcnet_hiddens": [4]}
    config = steppe.PPOConfig(env=PolledWalks, **sizes, num_envs_per_env_runner=2, seed=0, write_run=False)
    with config.build() as algo:
        algo.train()
        path = algo.save("saved")
        before = [algo.train()["episodes_total"] for _ in range(2)]
        algo.restore(path)
        assert [algo.train()["timesteps_total"] for _ in range(2)] == [20, 30]
    text = "E402 the 2 envs of PolledWalks begin new episodes: a BaseEnv has no state"
    (note,) = [record.message for record in caplog.records if text in record.message]
    assert note.startswith("resume is not exact: training envs: ")
    caplog.clear()
    with steppe.load(path, env=PolledWalks) as again:
        assert sum(text in record.message for record in caplog.records) == 1
        ((rollout,),) = [sample.rollouts for sample in again.runner.sample()]
        assert rollout.env_steps == 10
        assert (rollout.t[0] == 0).all()  # what was open is cut; nothing of the old episodes goes on
        acted = np.argwhere(rollout.acted)
        for row, lane in acted:
            assert rollout.episode[row + 1, lane] == rollout.episode[row, lane]
            assert rollout.obs[row + 1, lane] == rollout.obs[row, lane] + 1
    assert before[0] >= 3


class Crowd(MultiAgentEnv):
    """Plays a script: episodes of steps of (reward, has an observation, ends) by agent."""

    observation_space, action_space = LINE, Discrete(3)

    def __init__(self, episodes):
        self.episodes, self.number = copy.deepcopy(episodes), -1

    def reset(self, *, seed=None, options=None):
        self.number = (self.number + 1) % len(self.episodes)
        self.t, self.live = 0, ["a", "b"]
        return {"a": 0.0, "b": 100.0}, {"a": {"episode": self.number}}

    def step(self, action_dict):
        self.t += 1
        script = self.episodes[self.number]
        over = self.t > len(script)
        cells = [(1.0, True, "T")] * 3 if over else script[self.t - 1]
        obs, rewards, flags = {}, {}, {"T": {}, "t": {}}
        for at, (agent, (reward, seen, ended)) in enumerate(zip("abc", cells, strict=True)):
            if agent not in self.live and (agent != "c" or self.t > 1 or not seen):
                continue
            if agent not in self.live:
                self.live.append(agent)
            if seen or agent == self.live[0]:
                obs[agent] = 100.0 * at + self.t
            rewards[agent] = reward + action_dict.get(agent, 0)
            if ended and agent != self.live[0]:
                flags[ended][agent] = True
                self.live.remove(agent)
        lost, cut = (over and len(script) % 2 == 0), (over and len(script) % 2 == 1)
        return obs, rewards, {**flags["T"], "__all__": lost}, {**flags["t"], "__all__": cut}, {}


cell = st.tuples(st.sampled_from([0.0, 0.5, -2.0]), st.booleans(), st.sampled_from(["", "", "T", "t"]))
episode = st.lists(st.tuples(cell, cell, cell), min_size=0, max_size=6)
scripts = st.lists(st.lists(episode, min_size=1, max_size=3), min_size=1, max_size=3)


def trace(env, polls):
    """All that an adapter tells in some polls, by who it is about; answers depend on the row alone."""
    who, told = {}, []
    for _ in range(polls):
        steps = env.poll()
        rows = plain(steps, who)
        infos = sorted((who[s].env, who[s].agent, str(i)) for step in steps for s, i in step.info.items())
        closed = [tuple(end) for step in steps for end in step.closed]
        told.append((rows, infos, closed, env.env_steps))
        for step in steps:
            slots = step.slot[~(step.terminated | step.truncated)]
            keep = ~(step.terminated | step.truncated)
            env.send_actions(slots, np.abs(step.obs[keep]).astype(np.int64) % 3)
    return told


@settings(max_examples=40, deadline=None)
@given(scripts)
def test_both_ways_composed_change_nothing(scripts):
    def adapter():
        return MultiAgentRows([Crowd(script) for script in scripts], seeds=list(range(len(scripts))))

    through = rows_of(RowsView(adapter()), len(scripts))
    twice = rows_of(RowsView(rows_of(RowsView(adapter()), len(scripts))), len(scripts))
    expected = trace(adapter(), 15)
    assert trace(through, 15) == expected
    assert trace(twice, 15) == expected


def test_observations_of_a_view_are_the_callers_own():
    pair = GymEnv([Walk()], seeds=[1], observation_space=Box(-9, 9, (2,), np.float32)).spaces
    script = [[Row(0, obs=[1.0, 2.0])], [Row(0, t=1, obs=[3.0, 4.0])]]
    base = RowsView(ScriptedEnv(script, pairs=pair))
    first = base.poll()[0]
    base.send_actions({0: {"agent0": 1}})
    assert base.poll()[0][0]["agent0"].tolist() == [3.0, 4.0]
    assert first[0]["agent0"].tolist() == [1.0, 2.0]


def test_decided_rows_go_both_ways():
    decision = Decision(np.array([2]), np.zeros(1, np.float32))
    script = [
        [Row(0, obs=1.0, decision=decision), Row(1, obs=2.0, env=1)],
        [Row(0, t=1, obs=3.0, reward=1.0)],
    ]
    base = RowsView(ScriptedEnv(script, num_envs=2))
    obs, _, _, _, _, taken = base.poll()
    assert taken == {0: {"agent0": 2}, 1: {}}
    with pytest.raises(ValueError, match="awaits no action"):
        base.send_actions({0: {"agent0": 0}})
    (step,) = rows_of(RowsView(ScriptedEnv(script, num_envs=2)), 2).poll()
    assert step.decided.tolist() == [True, False]
    assert step.decision.action.tolist() == [2]
    assert obs == {0: {"agent0": 1.0}, 1: {"agent0": 2.0}}
