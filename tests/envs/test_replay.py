"""A restored run goes on bit by bit: real envs, every kind of generator, own state; what cannot is named."""

import json
import random

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from steppe.envs import replay
from steppe.envs.gym import GymEnv
from steppe.errors import CheckpointError, EnvError


def of(*envs, **options):
    return GymEnv(envs, seeds=[7 + i for i in range(len(envs))], **options)


def act(env, actions):
    """Answer every row that awaits an action, and poll."""
    env.send_actions(env.pending()[0].slot, actions)
    (step,) = env.poll()
    return step


class Jittery(gymnasium.Env):
    """A generator of its own, of any kind, made in the constructor; lengths and rewards are random too."""

    def __init__(self, kind):
        self.observation_space = spaces.Box(-100, 100, (1,), np.float64)
        self.action_space = spaces.MultiDiscrete([3, 2])
        self.rng = {"state": np.random.RandomState(0), "python": random.Random(0)}[kind]

    def draw(self):
        return self.rng.gauss(0, 1) if isinstance(self.rng, random.Random) else self.rng.normal()

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.rng.seed(seed)
        self.left = 5 + int(20 * abs(self.draw()))
        return np.array([self.draw()]), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.draw()]), self.draw() + int(action.sum()), self.left == 0, False, {}


def made(name, **options):
    return lambda: gymnasium.make(name, **options)


RESUMABLE = [
    made("CartPole-v1"),
    made("Pendulum-v1", max_episode_steps=20),
    made("Acrobot-v1", max_episode_steps=30),
    made("Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3"),
    lambda: Jittery("state"),
    lambda: Jittery("python"),
]


def actions_for(env, rng):
    space = env.spaces[0].action
    n = env.num_envs
    if space.shape == ():
        return rng.integers(0, space.n, n)
    if np.dtype(space.dtype).kind == "f":
        return rng.uniform(-1, 1, (n, *space.shape)).astype(space.dtype)
    return rng.integers(0, 2, (n, *space.shape))


def record(env, polls, seed):
    rng, rows = np.random.default_rng(seed), []
    for _ in range(polls):
        step = act(env, actions_for(env, rng))
        rows.append((step.slot, step.t, step.obs, step.reward, step.terminated, step.truncated))
        rows.append((np.array([info[1] * 1000 + info[3] for info in step.opened]),))
    return rows


def assert_resumes(factory, polls, n=2, more=80):
    env = of(*[factory() for _ in range(n)])
    env.poll()
    record(env, polls, 1)
    again = of(*[factory() for _ in range(n)])
    state = env.get_state()
    assert json.dumps(state, default=np.ndarray.tolist)
    assert again.set_state(state) == []
    for one, two in zip(record(env, more, 2), record(again, more, 2), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
    assert again.env_steps == env.env_steps
    env.close()
    again.close()


@pytest.mark.parametrize("polls", [0, 13, 70])
@pytest.mark.parametrize("factory", RESUMABLE)
def test_the_future_after_a_restore_is_the_same_bit_by_bit(factory, polls):
    assert_resumes(factory, polls)


def test_a_simulator_in_c_resumes_too():
    pytest.importorskip("Box2D")
    assert_resumes(made("LunarLander-v3"), 120, n=1, more=60)


class Walk(gymnasium.Env):
    """Its observation counts steps, or is what `noise` draws; an episode has `end` steps."""

    def __init__(self, noise=None, end=9):
        self.observation_space = spaces.Box(-1000, 1000, (1,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.noise, self.end, self.t = noise, end, 0

    def look(self):
        return np.array([float(self.t) if self.noise is None else self.noise()])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), 1.0, self.t == self.end, False, {}


def walked(env, steps):
    env.poll()
    for _ in range(steps):
        act(env, np.zeros(env.num_envs, np.int64))
    return env


def test_hidden_randomness_is_named_and_begins_a_new_episode():
    hidden = np.random.default_rng(5)

    def envs():
        return of(Walk(lambda: hidden.normal()), Walk())

    env = walked(envs(), 4)
    again = envs()
    (sentence,) = again.set_state(env.get_state())
    assert sentence.startswith("E402 env 0 (Walk) begins a new episode, it was at step 4: its replay gave")
    (step,) = again.pending()
    assert (step.slot.tolist(), step.t.tolist()) == ([2, 1], [0, 4])
    assert step.reward.tolist() == [0, 1]
    assert step.obs[1] == 4
    assert [info.episode for info in step.opened] == [1, 0]
    assert again.env_steps == env.env_steps == 8
    step = act(again, np.zeros(2, np.int64))
    assert (step.slot.tolist(), step.t.tolist()) == ([2, 1], [1, 5])


def test_a_reward_that_differs_is_not_exact_either():
    hidden = np.random.default_rng(5)

    class Lucky(Walk):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, hidden.normal(), *rest

    (sentence,) = of(Lucky()).set_state(walked(of(Lucky()), 3).get_state())
    assert "another observation or reward" in sentence


def test_an_env_that_ends_or_raises_during_the_replay_is_named():
    class Broken(Walk):
        def step(self, action):
            raise OSError("no simulator")

    state = walked(of(Walk()), 3).get_state()
    (sentence,) = of(Walk(end=2)).set_state(state)
    assert "its episode ended after 2 steps, not 3" in sentence
    (sentence,) = of(Broken()).set_state(state)
    assert "it raised OSError: no simulator" in sentence


def test_a_generator_that_is_gone_is_named():
    class Own(Walk):
        def __init__(self, rng):
            super().__init__(end=2)
            if rng:
                self.rng = np.random.default_rng(0)

    state = walked(of(Own(True)), 3).get_state()
    (sentence,) = of(Own(False)).set_state(state)
    assert "no generator 'rng'" in sentence


def test_a_generator_that_wakes_up_late_is_exact_from_its_second_save_on():
    class Late(Walk):
        """Draws from its own generator in its later episodes only."""

        def __init__(self):
            super().__init__(self.draw, end=3)
            self.rng, self.episode = np.random.default_rng(1), 0

        def draw(self):
            return self.rng.normal() if self.episode > 6 else 0.0

        def reset(self, *, seed=None, options=None):
            self.episode += 1
            return super().reset(seed=seed)

    def late():
        env = Late()
        env.episode = 100
        return of(env)

    env = walked(of(Late()), 28)
    (sentence,) = late().set_state(env.get_state())
    assert "came into use only lately" in sentence
    for _ in range(4):
        act(env, np.zeros(1, np.int64))
    again = late()
    assert again.set_state(env.get_state()) == []
    for _ in range(10):
        a, b = (act(one, np.zeros(1, np.int64)) for one in (env, again))
        np.testing.assert_array_equal(a.obs, b.obs)


class Native(Walk):
    """Its state is its own business; a replay would not do."""

    def __init__(self, state=None):
        super().__init__(end=100)
        self.state, self.taken = state, []

    def look(self):
        return np.array([self.np_random.normal() + len(self.taken)])

    def get_state(self):
        return {"t": self.t, "more": (1, np.float32(2.5), np.arange(3), None, self.state)}

    def set_state(self, state):
        self.t = state["t"]
        self.taken.append(state)


def test_an_env_with_a_state_of_its_own_is_asked_and_time_limits_go_on():
    def limited():
        return of(gymnasium.wrappers.TimeLimit(Native(), 6))

    env = walked(limited(), 4)
    state = env.get_state()
    assert "actions" not in state["envs"][0]
    again = limited()
    assert again.set_state(state) == []
    (taken,) = again._envs[0].unwrapped.taken
    assert taken["more"][:2] == [1, 2.5]
    again._envs[0].unwrapped.taken.clear()
    for truncated in ([False], [False, True]):
        a, b = (act(one, np.zeros(1, np.int64)) for one in (env, again))
        np.testing.assert_array_equal(a.obs, b.obs)
        assert a.truncated.tolist() == b.truncated.tolist() == truncated


def test_a_wrapper_with_a_state_of_its_own_is_replayed():
    class Memory(gymnasium.Wrapper):
        pass

    assert "actions" in walked(of(Memory(Native())), 2).get_state()["envs"][0]


@pytest.mark.parametrize("state", [object(), {1: 2}, {"a": {3}}, np.array([None])])
def test_an_own_state_that_no_file_can_hold_is_an_error(state):
    env = walked(of(Walk(), Native(state)), 1)
    with pytest.raises(EnvError, match=r"get_state\(\)\['more'\]\[4\].*only JSON values") as caught:
        env.get_state()
    assert (caught.value.code, caught.value.env) == ("E402", 1)


def test_states_are_taken_and_given_at_the_right_moment_only():
    env = walked(of(Walk()), 1)
    state = env.get_state()
    env.send_actions(np.array([0]), np.array([0]))
    with pytest.raises(ValueError, match="between a poll and the send"):
        env.get_state()
    with pytest.raises(CheckpointError, match="of 1 envs, here are 2"):
        of(Walk(), Walk()).set_state(state)


def test_a_run_that_failed_goes_on_from_its_last_state():
    class Stumbles(Walk):
        stumble = False

        def step(self, action):
            if self.stumble:
                raise OSError("gone")
            return super().step(action)

    inner = Stumbles()
    env = walked(of(Walk(), inner), 2)
    state = env.get_state()
    inner.stumble = True
    with pytest.raises(OSError, match="gone"):
        act(env, np.zeros(2, np.int64))
    with pytest.raises(RuntimeError, match="failed before"):
        env.get_state()
    inner.stumble = False
    assert env.set_state(state) == []
    assert act(env, np.zeros(2, np.int64)).obs.tolist() == [[3], [3]]


def test_the_state_before_the_first_poll_brings_a_running_env_back_to_its_seed():
    def future(env):
        return [
            env.poll()[0].obs.tolist(),
            *(act(env, np.array([n % 2] * 2)).obs.tolist() for n in range(60)),
        ]

    env = of(*(gymnasium.make("CartPole-v1") for _ in range(2)))
    state = env.get_state()
    wanted = future(env)
    other = GymEnv([gymnasium.make("CartPole-v1") for _ in range(2)], seeds=[70, 71])
    other.poll()
    for again in (env, other):
        assert again.set_state(state) == []
        assert (again.env_steps, again.health(), list(again.pending())) == (0, {}, [])
        assert future(again) == wanted
    with pytest.raises(CheckpointError, match="of 2 envs, here are 1"):
        of(Walk()).set_state(state)


def test_a_very_long_episode_is_not_replayed(monkeypatch):
    monkeypatch.setattr(replay, "LOG_LIMIT", 600)
    env = walked(of(Walk(end=1000), Walk(end=50)), 800)
    (sentence,) = of(Walk(end=1000), Walk(end=50)).set_state(env.get_state())
    assert sentence.startswith("E402 env 0")
    assert "longer than the 600 actions" in sentence


def test_the_log_of_actions_does_not_grow_with_the_run():
    env = walked(of(Walk(end=50), Walk(end=70)), 3000)
    assert len(env._memory.log) <= 768
    assert of(Walk(end=50), Walk(end=70)).set_state(env.get_state()) == []


class Nested(Walk):
    """Draws from generators that stand in lists, tuples and dicts, one of them inside another env."""

    def __init__(self):
        super().__init__(end=9)
        self.parts = [{"dice": np.random.default_rng()}, (gymnasium.make("CartPole-v1"),)]
        self.data = [np.random.default_rng(0)] * 2000  # too long to be looked through at each reset

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.parts[0]["dice"] = np.random.default_rng(seed)
            self.parts[1][0].reset(seed=seed)
        obs, info = super().reset(seed=seed)
        self.luck = float(self.parts[1][0].reset()[0][0])
        return obs, info

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, self.luck + float(self.parts[0]["dice"].normal()), *rest


def test_generators_in_lists_tuples_and_dicts_are_found():
    env = walked(of(Nested()), 40)
    again = of(Nested())
    assert again.set_state(env.get_state()) == []
    actions = np.zeros(1, np.int64)
    for _ in range(20):
        assert act(env, actions).reward.tolist() == act(again, actions).reward.tolist()
    paths = [path for path, _ in env._memory.generators.captured[0]]
    assert "parts.0.dice" in paths
    assert not any(path.startswith("data") for path in paths)
