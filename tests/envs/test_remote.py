"""Envs in processes of their own: the same rows, by arrival or by turns; errors, handles, state."""

import json
import os
import sys
import threading
import time
import warnings
from contextlib import closing
from typing import ClassVar

import cloudpickle
import gymnasium
import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="envs in processes of their own need Ray: pip install 'steppe[ray]'")


from steppe import PPOConfig, spaces  # noqa: E402
from steppe.envs import registry, remote  # noqa: E402
from steppe.envs.multi_agent import MultiAgentEnv  # noqa: E402
from steppe.errors import ConfigError, EnvError, RunnerError  # noqa: E402
from steppe.types import EpisodeEnd  # noqa: E402

ALL_MS = 60_000
ALL = remote.Rules(wait_ms=ALL_MS)  # a poll waits for all envs


class Counter(gymnasium.Env):
    """Ends at random after 1 to 7 steps; the observation says who it is and what was earned."""

    observation_space = gymnasium.spaces.Box(-1e7, 1e7, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, env_config):
        self.context, self.phase = env_config, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.token = 0, int(self.np_random.integers(1 << 20))
        self.length = int(self.np_random.integers(1, 8))
        return self.look(0.0), {"begins": True}

    def step(self, action):
        self.t += 1
        reward = float(self.np_random.normal()) + action
        over = self.t >= self.length
        return self.look(reward), reward, over and self.length % 2 == 0, over and self.length % 2 == 1, {}

    def look(self, reward):
        return np.array([self.context.vector_index, self.token, self.t, reward], np.float32)

    def set_phase(self, phase):
        self.phase = phase
        return self.context.vector_index


@pytest.fixture(scope="module", autouse=True)
def _ray():
    for pickler in (cloudpickle, ray.cloudpickle):  # tests are no modules of the actors
        pickler.register_pickle_by_value(sys.modules[__name__])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks, where another file of tests has loaded it
        ray.init("local", num_cpus=1, include_dashboard=False, logging_level="warning", log_to_driver=False)
    yield
    ray.shutdown()


class Answers:
    """Follows who waits for an action, and gives it."""

    def __init__(self, env):
        self.env, self.waiting = env, set()

    def poll(self):
        steps = list(self.env.poll())
        for step in steps:
            self.see(step)
        return steps

    def see(self, step):
        self.waiting |= set(step.slot[~(step.terminated | step.truncated)].tolist())

    def envs(self):
        return {slot % self.env.num_envs for slot in self.waiting}

    def send(self, but=None):
        slots = np.array(sorted(s for s in self.waiting if s % self.env.num_envs != but), np.int64)
        self.env.send_actions(slots, np.zeros(len(slots), np.int64))
        self.waiting -= set(slots.tolist())


def assert_ends(ask):
    """A process ends soon after it was told to."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            ray.get(ask())
        except ray.exceptions.RayActorError:
            return
        time.sleep(0.1)
    pytest.fail("its process goes on")


def rows(step):
    columns = (step.slot, step.t, step.obs, step.reward, step.terminated, step.truncated)
    return [column.tolist() for column in columns], list(step.opened), list(step.closed), dict(step.info)


def test_the_rows_are_those_of_envs_in_this_process():
    here = registry.build(Counter, {"a": 1}, num_envs=3, run_seed=5)
    there = remote.build(Counter, {"a": 1}, num_envs=3, run_seed=5, rules=ALL)
    try:
        assert there.spaces == here.spaces
        rng = np.random.default_rng(0)
        for _ in range(30):
            (one,), (two,) = here.poll(), there.poll()
            assert rows(one) == rows(two)
            slots = one.slot[~(one.terminated | one.truncated)]
            actions = rng.integers(0, 3, len(slots))
            here.send_actions(slots, actions)
            there.send_actions(slots, actions)
        assert there.env_steps == here.env_steps == 29 * 3
    finally:
        there.close()


@pytest.mark.slow
def test_a_slow_env_holds_up_nobody():
    class Slow(Counter):
        def step(self, action):
            time.sleep(0.5 if self.context.vector_index == 0 else 0.0)
            return super().step(action)

    with closing(remote.build(Slow, num_envs=3, run_seed=0)) as env:
        answers = Answers(env)
        while len(answers.waiting) < 3:  # the first rows may come one by one, too
            answers.poll()
        answers.send()
        polls = 0
        while 0 not in answers.envs():
            answers.poll()
            answers.send(but=0)
            polls += 1
        assert polls > 10
        assert env.env_steps > 10


def test_a_poll_that_is_given_time_ends_with_it():
    class Stuck(Counter):
        def reset(self, *, seed=None, options=None):
            time.sleep(0.3)
            return super().reset(seed=seed)

    with closing(remote.build(Stuck, num_envs=1, run_seed=0, rules=ALL)) as env:
        assert list(env.poll(0.01)) == []
        (step,) = env.poll()
        assert step.opened[0].env == 0


class ClosedError(Exception):
    def __init__(self, door, *, since):
        super().__init__(f"{door} is closed since {since}")
        self.door = door


class LockError(Exception):
    def __init__(self):
        super().__init__("locked")
        self.lock = threading.Lock()


class Failing(Counter):
    """Env 1 fails in its first step, as its config says."""

    def step(self, action):
        if self.context.vector_index == 1:
            self.fail(self.context["how"])
        return super().step(action)

    def fail(self, how):
        if how == "own":
            raise ClosedError("the door", since="today")
        if how == "unsendable":
            raise LockError
        if how == "exit":
            os._exit(3)

    def look(self, reward):
        seen = super().look(reward)
        return seen[:2] if self.context["how"] == "shape" and self.context.vector_index and self.t else seen


def failure(how):
    with closing(remote.build(Failing, {"how": how}, num_envs=2, run_seed=0, rules=ALL)) as env:
        env.poll()
        env.send_actions(np.arange(2), np.zeros(2, np.int64))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what the tests judge
            env.poll()
        with pytest.raises(RuntimeError, match="failed before"):
            env.poll()
        return caught.value


def test_an_exception_of_the_env_comes_as_it_was_raised():
    error = failure("own")
    assert type(error) is ClosedError
    assert (str(error), error.door) == ("the door is closed since today", "the door")
    told = "\n".join(error.__notes__)
    assert "runner 0, env 1, episode 0, step 1" in told
    assert 'raise ClosedError("the door", since="today")' in told  # the line in the env's own code


@pytest.mark.slow
def test_one_that_cannot_be_sent_comes_in_words():
    error = failure("unsendable")
    assert type(error) is RunnerError
    assert str(error) == "LockError: locked"


def test_a_broken_contract_names_the_env():
    error = failure("shape")
    assert isinstance(error, EnvError)
    assert (error.code, error.env, error.step, error.env_class) == ("E103", 1, 1, "Failing")
    assert "env 1, episode 0, step 1" in str(error)


@pytest.mark.slow
def test_a_process_that_ended_is_told_by_the_number_of_its_env():
    error = failure("exit")
    assert isinstance(error, EnvError)
    assert (error.code, error.env) == ("E501", 1)
    assert "Failing, runner 0, env 1" in str(error)


def test_users_have_handles_whose_methods_are_remote():
    created = []
    env = remote.build(
        Counter,
        {"a": 1},
        num_envs=2,
        run_seed=0,
        worker_index=3,
        num_workers=4,
        created=lambda one, context: created.append((one, context.vector_index)),
    )
    with closing(env):
        envs = env.get_sub_environments()
        assert created == [(envs[0], 0), (envs[1], 1)]
        assert ray.get([one.set_phase.remote(phase=7) for one in envs]) == [0, 1]
        assert ray.get([one.phase.remote() for one in envs]) == [7, 7]
        context = ray.get(envs[1].context.remote())
        assert dict(context) == {"a": 1}
        assert (context.remote, context.num_envs, context.worker_index, context.num_workers) == (
            True,
            2,
            3,
            4,
        )
        with pytest.raises(AttributeError, match="nothing"):
            ray.get(envs[0].nothing.remote())
    assert_ends(lambda: envs[0].phase.remote())


@pytest.mark.slow
def test_an_actor_that_the_creator_returns_is_used_as_it_is():
    def creator(env_config):
        return ray.remote(num_cpus=0)(Counter).remote(env_config)

    here = registry.build(Counter, num_envs=2, run_seed=5)
    with closing(remote.build(creator, num_envs=2, run_seed=5, rules=ALL)) as env:
        handles = env.get_sub_environments()
        assert ray.get([handle.set_phase.remote(1) for handle in handles]) == [0, 1]
        for _ in range(5):
            (one,), (two,) = here.poll(), env.poll()
            assert rows(one) == rows(two)
            slots = one.slot[~(one.terminated | one.truncated)]
            here.send_actions(slots, np.ones(2, np.int64))
            env.send_actions(slots, np.ones(2, np.int64))
    assert_ends(lambda: handles[0].set_phase.remote(1))


class Old:
    """The interface of old gym, in a class of its own."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self):
        self.t = 0
        return np.zeros(1, np.float32)

    def step(self, action):
        self.t += 1
        return np.array([self.t], np.float32), float(action), self.t == 2, {"TimeLimit.truncated": True}


@pytest.mark.slow
def test_old_envs_are_adapted_where_they_live():
    with closing(remote.build(Old, num_envs=1, run_seed=0, rules=ALL)) as env:
        env.poll()
        for _ in range(2):
            env.send_actions(np.array([0]), np.array([1]))
            (step,) = env.poll()
        assert step.slot.tolist() == [1, 0]
        assert step.truncated.tolist() == [False, True]
        assert step.reward.tolist() == [0.0, 1.0]
        assert step.closed == [EpisodeEnd(0, 0, 2)]
        assert ray.get(env.get_sub_environments()[0].t.remote()) == 0


class Crowd(MultiAgentEnv):
    """Two kinds of agents; "b" acts every other step and leaves after four."""

    possible_agents = ("a", "b")
    observation_spaces: ClassVar = {
        "a": gymnasium.spaces.Discrete(100),
        "b": gymnasium.spaces.Box(-100, 100, (2,), np.float32),
    }
    action_spaces: ClassVar = {"a": gymnasium.spaces.Discrete(3), "b": gymnasium.spaces.Discrete(2)}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        return self.look(), {}

    def look(self):
        b = {"b": np.full(2, self.t, np.float32)} if self.t % 2 == 0 and self.t <= 4 else {}
        return {"a": self.t} | b

    def step(self, action_dict):
        self.t += 1
        seen = self.look()
        rewards = {agent: float(self.rng.normal()) + action_dict.get(agent, 0) for agent in seen}
        ends = {"__all__": self.t == 7} | ({"b": self.t == 4} if "b" in seen else {})
        return seen, rewards, ends, {"__all__": False}, {}


def lives(env, polls):
    """What happened to every agent: by env, agent and episode."""
    live, told = {}, {}
    for _ in range(polls):
        for step in env.poll():
            live |= {one.slot: one for one in step.opened}
            columns = zip(
                step.slot.tolist(), step.t, spaces.rows(env.spaces[step.space].observation, step.obs),
                step.reward, step.terminated, strict=True,
            )  # fmt: skip
            for slot, t, obs, reward, over in columns:
                who = live[slot]
                key = who.env, who.agent, who.episode
                told.setdefault(key, []).append((int(t), np.asarray(obs).tolist(), reward, bool(over)))
            slots = step.slot[~(step.terminated | step.truncated)]
            env.send_actions(slots, np.array([live[s].env for s in slots.tolist()], np.int64))
    return told


@pytest.mark.slow
def test_many_agents_live_as_they_do_in_this_process():
    expected = lives(registry.build(Crowd, num_envs=2, run_seed=1), 20)
    with closing(remote.build(Crowd, num_envs=2, run_seed=1, rules=ALL)) as env:
        assert dict(env.agents) == {"a": 0, "b": 1}
        assert lives(env, 20) == expected
    assert {agent for _, agent, _ in expected} == {"a", "b"}
    assert len(expected[1, "b", 0]) == 3
    assert expected[1, "b", 0][-1][3]


def test_a_restored_run_goes_on_bit_by_bit():
    with (
        closing(remote.build(Counter, num_envs=2, run_seed=2, rules=ALL)) as env,
        closing(remote.build(Counter, num_envs=2, run_seed=3, rules=ALL)) as other,
    ):
        answers = Answers(env)
        for _ in range(9):
            answers.poll()
            answers.send()
        answers.poll()
        state = env.get_state()
        assert json.dumps(state, default=np.ndarray.tolist)
        assert other.set_state(state) == []
        assert other.env_steps == env.env_steps
        again = Answers(other)
        (step,) = other.pending()
        again.see(step)
        assert again.waiting == answers.waiting
        for _ in range(20):
            answers.send()
            again.send()
            assert [rows(a) for a in answers.poll()] == [rows(b) for b in again.poll()]


@pytest.mark.slow
def test_what_was_stepping_begins_anew_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(remote, "_PATIENCE_S", 0.1)

    class Slow(Counter):
        def step(self, action):
            time.sleep(30 if self.context.vector_index == 0 and self.context["slow"] else 0.0)
            return super().step(action)

    soon = remote.Rules(wait_ms=0.01)
    with closing(remote.build(Slow, {"slow": True}, num_envs=2, run_seed=2, rules=soon)) as env:
        answers = Answers(env)
        while len(answers.waiting) < 2:
            answers.poll()
        answers.send()
        (step,) = answers.poll()
        state = env.get_state()
    with closing(remote.build(Slow, {"slow": False}, num_envs=2, run_seed=2, rules=ALL)) as env:
        (told,) = env.set_state(state)
        assert told.startswith("E402 env 0 (Slow) begins a new episode")
        (pending,) = env.pending()
        assert pending.slot.tolist() == [0, int(step.slot[~(step.terminated | step.truncated)][0])]
        assert pending.t.tolist()[0] == 0
        seeds = [one.seed for one in pending.opened]
        assert seeds[1] == state["seeds"][1]
        assert seeds[0] != state["seeds"][0]


@pytest.mark.slow
def test_what_cannot_be_remote_is_refused():
    def vector(env_config):
        return gymnasium.make_vec("CartPole-v1", num_envs=2)

    lock = threading.Lock()
    with pytest.raises(ConfigError, match="a vector env or a BaseEnv steps its envs itself"):
        remote.build(vector, num_envs=1, run_seed=0)
    with pytest.raises(ConfigError, match="cannot be sent to a process of its own"):
        remote.build(lambda env_config: lock, num_envs=1, run_seed=0)
    with pytest.raises(ConfigError, match="observation_fn and add_agent_id do not reach"):
        remote.build(Crowd, num_envs=1, run_seed=0, observing=object())
    with pytest.raises(ConfigError, match="no env named 'CartPoll-v1'; did you mean"):
        remote.build("CartPoll-v1", num_envs=1, run_seed=0)


@pytest.mark.slow
def test_an_error_in_the_constructor_is_the_users_own():
    def broken(env_config):
        raise KeyError("map")

    with pytest.raises(KeyError, match="map") as caught:
        remote.build(broken, num_envs=1, run_seed=0)
    assert 'raise KeyError("map")' in "\n".join(caught.value.__notes__)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"remote_worker_envs=True needs Ray.*pip install 'steppe\[ray\]'"):
        remote.build(Counter, num_envs=1, run_seed=0)


SMALL = {
    "train_batch_size": 64,
    "minibatch_size": 32,
    "num_epochs": 1,
    "fcnet_hiddens": [8],
    "num_envs_per_env_runner": 2,
    "seed": 0,
    "write_run": False,
}


@pytest.mark.slow
def test_training_is_the_same_where_all_envs_are_waited_for():
    means = []
    for far in ({}, {"remote_worker_envs": True, "remote_env_batch_wait_ms": ALL_MS}):
        with PPOConfig(env="CartPole-v1", **SMALL, **far).build() as algo:
            first, second = algo.train(), algo.train()
            means.append([first["episode_reward_mean"], second["episode_reward_mean"], second["info"]])
            if far:
                gravity = algo.foreach_env(lambda env: ray.get(env.get_wrapper_attr.remote("gravity")))
                assert gravity == [9.8, 9.8]
    assert means[0] == means[1]


@pytest.mark.slow
def test_training_goes_on_by_arrival():
    with PPOConfig.from_dict(
        {"env": "CartPole-v1", **SMALL, "remote_worker_envs": True, "remote_env_batch_wait_ms": 0}
    ).build() as algo:
        assert algo.train()["timesteps_total"] >= 64
        assert algo.evaluate(num_episodes=2)["episodes_this_iter"] == 2
