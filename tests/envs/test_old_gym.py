"""Envs written for the old gym package, for which a module of that name stands in."""

import logging
import sys
from collections import OrderedDict
from types import ModuleType

import gymnasium
import numpy as np
import pytest

import steppe
from steppe.envs.gym import GymEnv
from steppe.envs.legacy_gym import modern_space, modern_step, modernize
from steppe.spaces import BoxSpec, spec_of

GYM = """
import numpy as np


class Space:
    def __init__(self, shape=None, dtype=None):
        self.shape, self.dtype, self.seeds = shape, dtype, []

    def seed(self, seed=None):
        self.seeds.append(seed)
        return [seed]


class Box(Space):
    def __init__(self, low, high, shape=None, dtype=np.float32):
        shape = np.shape(low) if shape is None else shape
        super().__init__(shape, np.dtype(dtype))
        self.low, self.high = np.full(shape, low, float), np.full(shape, high, float)


class Discrete(Space):
    def __init__(self, n):
        super().__init__((), np.int64)
        self.n = n


class MultiDiscrete(Space):
    def __init__(self, nvec):
        self.nvec = np.asarray(nvec, np.uint32)
        super().__init__(self.nvec.shape, np.uint32)


class MultiBinary(Space):
    def __init__(self, n):
        self.n = n
        super().__init__((n,) if isinstance(n, int) else tuple(n), np.int8)


class Dict(Space):
    def __init__(self, spaces):
        super().__init__()
        self.spaces = spaces


class Tuple(Space):
    def __init__(self, spaces):
        super().__init__()
        self.spaces = spaces


class Env:
    metadata, reward_range = {"render.modes": []}, (-np.inf, np.inf)

    @property
    def unwrapped(self):
        return self

    def seed(self, seed=None):
        return

    def close(self):
        pass


class Wrapper(Env):
    def __init__(self, env):
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space

    @property
    def unwrapped(self):
        return self.env.unwrapped

    def reset(self, **kwargs):
        return self.env.reset(**kwargs)

    def step(self, action):
        return self.env.step(action)

    def seed(self, seed=None):
        return self.env.seed(seed)


class TimeLimit(Wrapper):
    def __init__(self, env, max_episode_steps):
        super().__init__(env)
        self.limit = max_episode_steps

    def reset(self, **kwargs):
        self.elapsed = 0
        return self.env.reset(**kwargs)

    def step(self, action):
        observation, reward, done, info = self.env.step(action)
        self.elapsed += 1
        if self.elapsed >= self.limit:
            info["TimeLimit.truncated"] = not done
            done = True
        return observation, reward, done, info
"""


@pytest.fixture(scope="module")
def gym():
    package, old_spaces = ModuleType("gym"), ModuleType("gym.spaces")
    exec(GYM.replace("__name__", "gym"), vars(old_spaces))
    package.spaces, package.Env, package.Wrapper = old_spaces, old_spaces.Env, old_spaces.Wrapper
    package.TimeLimit = old_spaces.TimeLimit
    assert type(old_spaces.Box(0, 1, (1,))).__module__ != "gymnasium.spaces.box"
    return package


@pytest.fixture
def walk(gym):
    """An env of old: counts up from a random start, four items a step."""

    class Walk(gym.Env):
        def __init__(self, end=5):
            self.observation_space = gym.spaces.Box(0.0, 1e6, (1,))
            self.action_space = gym.spaces.Discrete(2)
            self.end, self.calls = end, []

        def seed(self, seed=None):
            self.calls.append(("seed", seed))
            self.rng = np.random.RandomState(seed)
            return [seed]

        def reset(self):
            self.calls.append(("reset",))
            self.t, self.start = 0, self.rng.randint(100_000)
            return np.array([self.start], np.float32)

        def step(self, action):
            assert type(action) is int
            self.t += 1
            return np.array([self.start + self.t], np.float32), 1.0, self.t == self.end, {}

    return Walk


def old_space(gym):
    s = gym.spaces
    return s.Dict(
        OrderedDict(
            [
                (
                    "z",
                    s.Tuple([s.Discrete(np.int64(3)), s.Tuple((s.MultiBinary(2), s.MultiDiscrete([2, 3])))]),
                ),
                ("a", s.Dict({"image": s.Box(0.0, 255.0, (4, 2), np.uint8), "bits": s.MultiBinary([2, 2])})),
                ("m", s.Box(np.array([-1.5, -np.inf]), np.array([2.5, np.inf]))),
            ]
        )
    )


def test_nested_spaces_are_read_without_gym(gym):
    assert "gym" not in sys.modules
    s = gymnasium.spaces
    expected = s.Dict(
        {
            "a": s.Dict({"bits": s.MultiBinary([2, 2]), "image": s.Box(0, 255, (4, 2), np.uint8)}),
            "m": s.Box(np.array([-1.5, -np.inf], np.float32), np.array([2.5, np.inf], np.float32)),
            "z": s.Tuple([s.Discrete(3), s.Tuple([s.MultiBinary(2), s.MultiDiscrete([2, 3])])]),
        }
    )
    assert modern_space(old_space(gym)) == expected
    assert spec_of(modern_space(old_space(gym))) == spec_of(expected)
    assert "gym" not in sys.modules


def test_infinite_bounds_of_integers_and_too_large_ones_of_floats(gym):
    whole = modern_space(gym.spaces.Box(-np.inf, np.inf, (2,), np.int32))
    assert (whole.low[0], whole.high[0]) == (-(2**31), 2**31 - 1)
    wide = modern_space(gym.spaces.Box(-1e300, 1e300, (1,), np.float32))
    assert spec_of(wide).limits is None
    assert isinstance(spec_of(gym.spaces.Box(-1.0, 1.0, (2,))), BoxSpec)


def test_subclasses_of_its_spaces_count(gym):
    class Angle(gym.spaces.Box):
        pass

    assert modern_space(Angle(-1, 1, (2,))) == gymnasium.spaces.Box(-1, 1, (2,), np.float32)


def test_seed_is_called_once_before_the_first_reset(walk):
    envs = [walk(2), walk(3)]
    env = GymEnv([modernize(one) for one in envs], seeds=[5, 6], modern_step=modern_step)
    (first,) = env.poll()
    starts = [np.random.RandomState(seed).randint(100_000) for seed in (5, 6)]
    assert first.obs[:, 0].tolist() == starts
    for _ in range(6):
        (waiting,) = env.pending()
        env.send_actions(waiting.slot, np.zeros(2, np.int64))
        env.poll()
    assert envs[0].calls == [("seed", 5)] + [("reset",)] * 4
    assert envs[1].calls == [("seed", 6)] + [("reset",)] * 3


def test_the_action_space_that_the_env_samples_from_is_seeded(walk):
    one, same, other = walk(), walk(), walk()
    for env, seed in ((one, 5), (same, 5), (other, 6)):
        GymEnv([modernize(env)], seeds=[seed], modern_step=modern_step).poll()
    seeds = one.action_space.seeds
    assert len(seeds) == 1
    assert seeds == same.action_space.seeds != other.action_space.seeds
    assert seeds != one.observation_space.seeds


@pytest.mark.parametrize("forwards_seed", [True, False])
def test_its_wrappers_hand_on_no_seed_to_reset(gym, walk, forwards_seed, caplog, monkeypatch):
    monkeypatch.setattr("steppe.envs.legacy_gym._told", set())

    class Mute(gym.Wrapper):
        seed = None  # such as a wrapper of no base class that holds `.env`

    inner = walk(9)
    wrapped = gym.TimeLimit(inner if forwards_seed else Mute(inner), 3)
    if not forwards_seed:
        wrapped.seed = None
    with caplog.at_level(logging.WARNING, "steppe.envs"):
        env = GymEnv([modernize(wrapped)], seeds=[5], modern_step=modern_step)
    assert "E401 old gym interface adapted: TimeLimit" in caplog.text
    (first,) = env.poll()
    assert inner.calls == [("seed", 5), ("reset",)]
    assert first.obs.tolist() == [[np.random.RandomState(5).randint(100_000)]]
    for t in (1, 2, 3):
        env.send_actions(env.pending()[0].slot, np.zeros(1, np.int64))
        (step,) = env.poll()
        assert step.t[-1] == t
    assert step.truncated.tolist() == [False, True]
    assert not step.terminated.any()
    assert modernize(wrapped).unwrapped is inner


def test_a_holder_of_no_base_class_gets_what_it_holds_seeded(walk):
    class Holder:
        def __init__(self, env):
            self.env, self.observation_space, self.action_space = env, env.observation_space, env.action_space

        def reset(self):
            return self.env.reset()

        def step(self, action):
            return self.env.step(action)

    inner = walk(9)
    GymEnv([modernize(Holder(Holder(inner)))], seeds=[5], modern_step=modern_step).poll()
    assert inner.calls == [("seed", 5), ("reset",)]


def test_an_end_of_its_own_at_the_limit_is_no_truncation(gym, walk):
    env = GymEnv([modernize(gym.TimeLimit(walk(3), 3))], seeds=[5], modern_step=modern_step)
    env.poll()
    for _ in range(3):
        env.send_actions(env.pending()[0].slot, np.zeros(1, np.int64))
        (step,) = env.poll()
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([False, True], [False, False])


def test_it_trains_and_comes_back_exactly(gym, walk):
    def make(ctx):
        return gym.TimeLimit(walk(9), 4)

    config = steppe.PPOConfig(
        env=make, num_envs_per_env_runner=2, train_batch_size=32, num_epochs=1, minibatch_size=32, seed=1,
        fcnet_hiddens=[8], write_run=False,
    )  # fmt: skip
    with config.build() as algo:
        result = algo.train()
        state = algo.runner.get_state()
        other = GymEnv([modernize(make(None)) for _ in range(2)], seeds=[1, 2], modern_step=modern_step)
        assert other.set_state(state["env"]) == []
    assert result["episode_len_mean"] == 4.0
    assert result["env_health"] == {}
