"""Envs of the old gym interface train as they are: detected by what they do, said once, nothing lost."""

import copy
import logging
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import seeding

from steppe.envs.gym import GymEnv
from steppe.envs.legacy_gym import LegacyGym, modern_space, modern_step, modernize
from steppe.errors import EnvError


class Array(gymnasium.Env):
    """As in a tutorial of 2020: reset without seed, a list out of step, an int `done`, `render(mode)`."""

    metadata = {"render.modes": ["human"]}  # noqa: RUF012

    def __init__(self):
        self.observation_space, self.action_space = spaces.Discrete(11), spaces.Discrete(2)
        self.seeds, self.rendered = [], []
        self.seed()
        self.reset()

    def reset(self):
        self.position = self.np_random.integers(1, 10)
        self.count = 0
        return self.position

    def step(self, action):
        self.count += 1
        return [self.position, -1, int(self.count == 3), {"dist": 1}]

    def render(self, mode="human"):
        self.rendered.append(mode)

    def seed(self, seed=None):
        self.np_random, seed = seeding.np_random(seed)
        self.seeds.append(seed)
        return [seed]

    def close(self):
        self.closed = True


class Alone:
    """No base class, nothing but what an env needs."""

    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, *results, first=None):
        self.results = list(results)
        self.first = np.zeros(2, np.float32) if first is None else first

    def reset(self):
        return self.first

    def step(self, action):
        return self.results.pop(0)


ZERO = np.zeros(2, np.float32)


def of(*envs):
    return GymEnv(
        [modernize(env) for env in envs], seeds=[5 + i for i in range(len(envs))], modern_step=modern_step
    )


def act(env):
    (pending,) = env.pending()
    env.send_actions(pending.slot, np.zeros(len(pending.slot), np.int64))
    (step,) = env.poll()
    return step


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ((0, 1.0, False, {}), (0, 1.0, False, False, {})),
        ([0, 1.0, True, {}], (0, 1.0, True, False, {})),
        ((0, 1.0, 1, {}), (0, 1.0, True, False, {})),
        ((0, 1.0, True, {"TimeLimit.truncated": True}), (0, 1.0, False, True, {"TimeLimit.truncated": True})),
        ((0, 1.0, 1, {"TimeLimit.truncated": True}), (0, 1.0, False, True, {"TimeLimit.truncated": True})),
        (
            (0, 1.0, True, {"TimeLimit.truncated": False}),
            (0, 1.0, True, False, {"TimeLimit.truncated": False}),
        ),
        (
            (0, 1.0, False, {"TimeLimit.truncated": True}),
            (0, 1.0, False, False, {"TimeLimit.truncated": True}),
        ),
        ((0, 1.0, np.True_, None), (0, 1.0, True, False, None)),
        (
            (0, 1.0, "yes", {"TimeLimit.truncated": True}),
            (0, 1.0, "yes", False, {"TimeLimit.truncated": True}),
        ),
        ([0, 1.0, False, True, {}], (0, 1.0, False, True, {})),
        ((0, 1.0, True), (0, 1.0, True)),
        (None, None),
    ],
)
def test_modern_step(result, expected):
    got = modern_step(result)
    assert got == expected
    assert [type(item) for item in got or ()] == [type(item) for item in expected or ()]


def test_what_is_legacy():
    class Modern(gymnasium.Env):
        def reset(self, *, seed=None, options=None):
            return 0, {}

    class Keywords(Array):
        def reset(self, **kwargs):
            return 0, {}

    class Between(Array):
        def reset(self, *, seed=None, return_info=False, options=None):
            return 0

    envs = [env() for env in (Modern, Keywords, Between, Array, Alone)]
    adapted = [modernize(env) for env in envs]
    assert [isinstance(env, LegacyGym) for env in adapted] == [False, False, True, True, True]
    wrapped = modernize(gymnasium.wrappers.TimeLimit(Array(), 3))
    assert isinstance(wrapped.env, LegacyGym)
    modern = Modern()
    assert modernize(modern) is modern


def test_the_tutorial_env_runs_and_is_told_about_once(caplog):
    class Example(Array):
        pass

    with caplog.at_level(logging.WARNING, "steppe.envs"):
        envs = [Example(), Example()]
        env = of(*envs)
    (record,) = caplog.records
    assert "E401 old gym interface adapted: Example" in record.getMessage()
    (first,) = env.poll()
    assert first.obs.tolist() == [
        np.random.Generator(np.random.PCG64(seed)).integers(1, 10) for seed in (5, 6)
    ]
    for _ in range(2):
        act(env)
    step = act(env)
    assert step.terminated.tolist() == [False, False, True, True]
    assert step.reward.tolist() == [0, 0, -1, -1]
    assert step.info == {0: {"dist": 1}, 1: {"dist": 1}}
    assert [one.seeds[1:] for one in envs] == [[5], [6]]
    env.close()
    assert all(one.closed for one in envs)


def test_without_seed_its_np_random_is_seeded():
    class Seedless(Array):
        seed = None

        def __init__(self):
            self.observation_space, self.action_space = spaces.Discrete(1 << 20), spaces.Discrete(2)

        def reset(self):
            return int(self.np_random.integers(1 << 20))

    assert of(Seedless()).poll()[0].obs == of(Seedless()).poll()[0].obs


def test_an_env_that_holds_another_gets_that_one_seeded():
    class Outer(gymnasium.Env):
        def __init__(self):
            self.env = gymnasium.make("CartPole-v1")
            self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

        def reset(self):
            return self.env.reset()

        def step(self, action):
            return self.env.step(action)

    env, again = of(Outer()), of(Outer())
    np.testing.assert_array_equal(env.poll()[0].obs, again.poll()[0].obs)
    for _ in range(30):
        act(env)
    assert again.set_state(env.get_state()) == []
    for _ in range(30):
        np.testing.assert_array_equal(act(env).obs, act(again).obs)


def test_modern_wrappers_around_an_old_env_stay():
    inner = Array()
    wrapped = gymnasium.wrappers.TimeLimit(gymnasium.wrappers.OrderEnforcing(inner), 2)
    assert modernize(wrapped) is wrapped
    env = GymEnv([wrapped], seeds=[1])
    env.poll()
    act(env)
    assert act(env).truncated.tolist() == [False, True]
    assert wrapped.unwrapped is inner


def test_an_old_wrapper_is_adapted_as_a_whole():
    class Scaled(gymnasium.Wrapper):
        def reset(self):
            return self.env.reset()

        def step(self, action):
            obs, reward, done, info = self.env.step(action)
            return obs, 10 * reward, done, info

    env = of(Scaled(Array()))
    env.poll()
    assert act(env).reward.tolist() == [-10]


def test_an_env_with_a_modern_reset_and_an_old_step():
    class Mixed(Array):
        def reset(self, *, seed=None, options=None):
            super().reset()
            return 1, {}

    env = of(Mixed())
    env.poll()
    assert act(env).t.tolist() == [1]
    assert env.health() == {"E401 step": 1}


def test_an_env_that_takes_a_seed_and_returns_an_observation_alone():
    class Mixed(Array):
        def reset(self, seed=None):
            return super().reset()

    env = of(Mixed())
    env.poll()
    assert env.health() == {"E401 reset": 1}
    with pytest.raises(EnvError, match="E304"):
        GymEnv([Mixed()], seeds=[0]).poll()


def test_a_reset_with_none_for_its_info_is_not_taken_for_an_old_one():
    class NoInfo(Array):
        def reset(self, seed=None):
            return super().reset(), None

    with pytest.raises(EnvError, match=r"E304 .*return \(observation, info\), info being a dict"):
        of(NoInfo()).poll()


def test_an_env_between_the_generations_is_seeded_by_reset():
    class Between(Array):
        def reset(self, *, seed=None, return_info=False, options=None):
            self.got = seed, options
            return 3

    env = Between()
    assert modernize(env).reset(seed=4, options={"a": 1}) == (3, {})
    assert env.got == (4, {"a": 1})


PAIR = spaces.Tuple((spaces.Discrete(2), spaces.Dict({"x": spaces.Discrete(3)})))


@pytest.mark.parametrize(
    ("space", "first", "expected"),
    [
        (PAIR, (1, {"x": 2}), ((1, {"x": 2}), {})),
        (PAIR, ((1, {"x": 2}), {}), ((1, {"x": 2}), {})),
        (spaces.Discrete(2), (1, {"x": 2}), (1, {"x": 2})),
        (spaces.Tuple((spaces.Discrete(2),)), ((1,), {}), ((1,), {})),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (1, 1), ((1, 1), {})),
    ],
)
def test_the_space_decides_what_a_pair_is(space, first, expected):
    env = Alone(first=first)
    env.observation_space = space
    assert modernize(env).reset() == expected


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ((ZERO, 1.0, True), "E301"),
        ((ZERO, 1.0, "True", {}), "E302"),
        ((ZERO, 1.0, 2, {}), "E302"),
        ((ZERO, 1.0, None, {}), "E302"),
        ((ZERO, 1.0, True, None), "E303"),
        ((ZERO, "1", True, {}), "E201"),
    ],
)
def test_bad_steps_of_old_envs(result, code):
    env = of(Alone(result))
    env.poll()
    with pytest.raises(EnvError) as caught:
        act(env)
    assert (caught.value.code, caught.value.env_class) == (code, "Alone")


def test_render_speaks_the_env_s_own_dialect():
    old = Array()
    modernize(old).render()
    assert old.rendered == ["human"]
    old.render_mode = "rgb_array"
    modernize(old).render()
    assert old.rendered == ["human", "rgb_array"]
    plain = Alone()
    assert modernize(plain).render() is None
    plain.render = lambda: "picture"
    assert modernize(plain).render() == "picture"
    modernize(plain).close()


def test_a_modern_env_without_base_class_is_not_called_old(caplog):
    class Duck(Alone):
        def reset(self, seed=None, options=None):
            self.seed_seen = seed
            return self.first, {}

    duck = Duck((ZERO, 1.0, False, False, {}))
    with caplog.at_level(logging.WARNING, "steppe.envs"):
        env = of(duck)
    assert not caplog.records
    env.poll()
    act(env)
    assert duck.seed_seen == 5
    assert isinstance(modernize(duck), LegacyGym)


def test_keywords_reach_a_reset_that_takes_any():
    class Duck(Alone):
        def reset(self, **keywords):
            return self.first, keywords

    assert modernize(Duck()).reset(seed=3, options={"a": 1})[1] == {"seed": 3, "options": {"a": 1}}


def foreign():
    """Spaces as another package would define them, with the same class names and attributes."""

    class Box:
        def __init__(self, low, high, shape, dtype):
            self.low, self.high, self.shape, self.dtype = low, high, shape, dtype

    class Discrete:
        def __init__(self, n):
            self.n = n

    class MultiDiscrete:
        nvec = (2, 3)

    class MultiBinary:
        n = 4

    class Tuple:
        def __init__(self, parts):
            self.spaces = parts

    class Dict:
        def __init__(self, parts):
            self.spaces = parts

    box = Box(np.zeros(2), np.ones(2), (2,), np.dtype("float32"))
    return Dict({"a": Tuple([box, Discrete(3)]), "b": MultiDiscrete(), "c": MultiBinary()})


def test_spaces_of_another_package_become_gymnasium_s():
    expected = spaces.Dict(
        {
            "a": spaces.Tuple([spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(3)]),
            "b": spaces.MultiDiscrete([2, 3]),
            "c": spaces.MultiBinary(4),
        }
    )
    assert modern_space(foreign()) == expected
    assert modern_space(expected) is expected
    assert modern_space(None) is None
    strange = object()
    assert modern_space(strange) is strange


def test_instances_do_not_share_the_spaces_of_their_class():
    class Shared:
        action_space = gymnasium.spaces.Discrete(2)
        observation_space = gymnasium.spaces.Discrete(3)

        def reset(self):
            return 0

        def step(self, action):
            return 0, 1.0, False, {}

    one, other = modernize(Shared()), modernize(Shared())
    assert one.action_space == other.action_space == Shared.action_space
    assert one.action_space is not other.action_space is not Shared.action_space


def test_what_the_env_has_of_its_own_is_reached_through_the_adapter():
    class Phased(Array):
        phase = 0

        def set_phase(self, phase):
            self.phase = phase

    env = modernize(Phased())
    assert isinstance(env, LegacyGym)
    env.set_phase(3)
    assert (env.phase, env.env.phase, env.position) == (3, 3, env.env.position)
    for name in ("phases", "_phase", "__deepcopy__"):
        assert not hasattr(env, name)
    with pytest.raises(AttributeError, match="'Phased' object has no attribute 'phases'"):
        _ = env.phases
    copied = copy.deepcopy(env)
    copied.set_phase(5)
    assert (copied.phase, env.phase) == (5, 3)
    again = pickle.loads(pickle.dumps(modernize(Array())))
    assert again.unwrapped.seeds == again.seeds
    assert len(again.reset(seed=1)) == 2
    with pytest.raises(AttributeError, match="LegacyGym has no attribute 'env'"):
        _ = LegacyGym.__new__(LegacyGym).phase  # as copies are made: nothing is held yet
