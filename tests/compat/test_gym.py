"""``steppe.compat.gym``: the interface that gym had, over Gymnasium's envs and the user's own."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.compat import gym
from steppe.compat.agents import ppo
from steppe.compat.gym.core import OldInterface
from steppe.compat.gym.envs.registration import register
from steppe.compat.gym.utils import seeding


class Walk(gym.Env):
    """Walks right by ``stride`` from a drawn start; over at 10."""

    MAX_STEPS = 10

    def __init__(self, stride=1):
        self.stride = stride
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Box(0.0, 100.0, (1,))
        self.seed()

    def reset(self):
        self.at = self.np_random.choice(3)
        return np.array([self.at], np.float32)

    def step(self, action):
        self.at += self.stride
        return np.array([self.at], np.float32), 1.0, self.at >= 10, {"at": self.at}

    def render(self, mode="human"):
        return f"{mode} {self.at}"


@given(st.integers(0, 2**70))
def test_generators_repeat_and_give_python_numbers(seed):
    first, used = seeding.np_random(seed)
    again, _ = seeding.np_random(seed)
    assert used == seed
    for draw in (
        lambda rng: rng.choice([3, 5, 7]),
        lambda rng: rng.choice(5),
        lambda rng: rng.randint(4),
        lambda rng: rng.randint(2, 9),
        lambda rng: rng.integers(3),
    ):
        value = draw(first)
        assert type(value) is int
        assert value == draw(again)
    for draw in (
        lambda rng: rng.rand(),
        lambda rng: rng.uniform(-1, 1),
        lambda rng: rng.random_sample(),
        lambda rng: rng.normal(),
        lambda rng: rng.choice([0.5, 1.5]),
    ):
        value = draw(first)
        assert type(value) is float
        assert value == draw(again)
    assert np.array_equal(first.choice(9, size=4), again.choice(9, size=4))
    assert np.array_equal(first.permutation(6), again.permutation(6))


def test_copies_of_a_generator_are_as_it_was():
    rng, _ = seeding.np_random(3)
    copies = [copy.deepcopy(rng), pickle.loads(pickle.dumps(rng)), copy.copy(rng)]
    expected = [rng.choice(1000) for _ in range(5)]
    for other in copies:
        drawn = [other.choice(1000) for _ in range(5)]
        assert drawn == expected
        assert type(drawn[0]) is int


def test_without_a_seed_one_is_drawn_and_told():
    first, seed = seeding.np_random()
    again, _ = seeding.np_random(seed)
    assert first.rand() == again.rand()
    assert seeding.np_random()[1] != seed


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(steppe.ConfigError, match="at least 0"):
        seeding.np_random(seed)


def test_make_gives_the_user_s_own_object(quick):
    register(id="walk-v0", entry_point=Walk, kwargs={"stride": 2})
    env = gym.make("walk-v0")
    assert type(env) is Walk
    assert (env.MAX_STEPS, env.stride, env.spec.id) == (10, 2, "walk-v0")
    assert gym.make("walk-v0", stride=5).stride == 5
    assert env.seed(4) == [4]
    starts = [float(env.reset()[0]) for _ in range(10)]
    env.seed(4)
    assert starts == [float(env.reset()[0]) for _ in range(10)]
    assert len(env.step(0)) == 4


def test_registering_again_replaces(quick):
    gym.register(id="walk-v0", entry_point=Walk)
    gym.envs.registration.register(id="walk-v0", entry_point=Walk, kwargs={"stride": 3}, tags={"old": True})
    assert gym.make("walk-v0").stride == 3


def test_a_module_that_registers_is_imported_first(quick, monkeypatch, tmp_path):
    (tmp_path / "walks_for_test.py").write_text(
        "from steppe.compat.gym.envs.registration import register\n"
        "register(id='walk-v7', entry_point='tests.compat.test_gym:Walk', kwargs={'stride': 7})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert gym.make("walks_for_test:walk-v7").stride == 7


def test_an_unknown_name_is_said():
    with pytest.raises(gymnasium.error.UnregisteredEnv, match="walkk"):
        gym.make("walkk-v0")


def test_a_limit_on_the_steps_ends_an_episode_as_gym_did(quick):
    register(id="walk-v0", entry_point=Walk, max_episode_steps=3)
    env = gym.make("walk-v0")
    assert (env.MAX_STEPS, env.unwrapped.stride, env._max_episode_steps) == (10, 1, 3)
    for _ in range(2):
        env.reset()
        ends = [env.step(1)[2:] for _ in range(3)]
        assert [done for done, _ in ends] == [False, False, True]
        assert ends[2][1]["TimeLimit.truncated"] is True
        assert "TimeLimit.truncated" not in ends[0][1]
    assert env.render() == f"human {env.at}"
    assert env.render(mode="ansi") == f"ansi {env.at}"
    env.close()


def test_an_end_of_its_own_at_the_limit_is_no_truncation(quick):
    register(id="walk-v0", entry_point=Walk, max_episode_steps=2, kwargs={"stride": 5})
    env = gym.make("walk-v0")
    env.reset()
    env.step(0)
    _, _, done, info = env.step(0)
    assert done is True
    assert "TimeLimit.truncated" not in info


@pytest.mark.parametrize(("name", "limit"), [("CartPole-v0", 200), ("CartPole-v1", 500)])
def test_gymnasium_s_envs_have_the_old_interface(name, limit):
    env, modern = gym.make(name), gymnasium.make("CartPole-v1")
    assert isinstance(env, gym.Env)
    assert env.spec.max_episode_steps == env._max_episode_steps == limit
    assert env.seed(5) == [5]
    obs, (expected, _) = env.reset(), modern.reset(seed=5)
    assert np.array_equal(obs, expected)
    done, steps = False, 0
    while not done:
        obs, reward, done, info = env.step(steps % 2)
        expected, gained, terminated, truncated, _ = modern.step(steps % 2)
        steps += 1
        assert np.array_equal(obs, expected)
        assert (reward, done, info) == (gained, terminated or truncated, {})
    assert not np.array_equal(env.reset(), obs)
    assert env.gravity == 9.8
    with pytest.raises(AttributeError, match="antigravity"):
        _ = env.antigravity
    env.close()


def test_envs_registered_here_are_found_by_steppe(quick):
    register(id="walk-v0", entry_point=Walk, max_episode_steps=4)
    env = steppe.make("walk-v0")
    obs, info = env.reset(seed=0)
    assert obs.shape == (1,)
    assert info == {}
    flags = [env.step(0)[2:4] for _ in range(4)]
    assert flags == [(False, False)] * 3 + [(False, True)]
    trainer = ppo.PPOTrainer(env="walk-v0")
    assert trainer.train()["episode_len_mean"] == 4
    trainer.stop()


class Halved(gym.ObservationWrapper):
    def observation(self, observation):
        return observation / 2


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


class Flipped(gym.ActionWrapper):
    def action(self, action):
        return 1 - action


class Counting(gym.Wrapper):
    """Written as gym's own wrappers are: ``reset`` passes on what it gets."""

    resets = 0

    def reset(self, **kwargs):
        self.resets += 1
        return self.env.reset(**kwargs)


class Echo(Walk):
    def step(self, action):
        obs, reward, done, _ = super().step(action)
        return obs, reward, done, {"action": action}


def test_wrappers_change_what_they_say():
    env = Counting(Flipped(Doubled(Halved(Echo(stride=4)))))
    assert env.seed(1) == [1]
    first = env.reset()
    at = env.unwrapped.at
    assert first == at / 2
    obs, reward, done, info = env.step(1)
    assert (float(obs[0]), reward, done, info) == ((at + 4) / 2, 2.0, False, {"action": 0})
    assert (env.MAX_STEPS, env.stride, env.resets) == (10, 4, 1)
    assert env.observation_space == env.unwrapped.observation_space
    assert isinstance(env.unwrapped, Echo)
    assert env.render("ansi") == f"ansi {at + 4}"
    env.close()


def test_wrapped_old_envs_are_trained_in(quick):
    env = steppe.make(lambda config: Counting(Doubled(Walk(stride=3))))
    env.reset(seed=3)
    assert env.step(0)[1] == 2.0
    trainer = ppo.PPOTrainer(env=lambda config: OldInterface(Counting(Doubled(Walk(stride=3))), 2))
    result = trainer.train()
    assert (result["episode_len_mean"], result["episode_reward_mean"]) == (2.0, 4.0)
    trainer.stop()


def test_seed_reaches_an_env_that_is_held_inside():
    class Holder(gym.Env):
        def __init__(self):
            self.env = Walk()

    holder = Holder()
    assert holder.seed(9) == [9]
    expected = seeding.np_random(9)[0].rand()
    assert holder.env.np_random.rand() == expected == holder.np_random.rand()


def test_spaces_are_gymnasium_s():
    assert gym.spaces.Discrete is gymnasium.spaces.Discrete
    assert gym.Space is gymnasium.Space


def test_the_registry_has_gym_s_words_for_gymnasium_s_own(quick):
    registry = gym.envs.registration.registry
    assert registry is gym.envs.registry
    assert "walk-v0" not in registry.env_specs
    register(id="walk-v0", entry_point=Walk)
    assert "walk-v0" in registry
    assert registry.spec("walk-v0") is registry["walk-v0"] is gym.spec("walk-v0")
    assert registry.spec("walk-v0") in registry.all()
    del registry.env_specs["walk-v0"]
    assert "walk-v0" not in gymnasium.registry
    assert len(registry) == len(gymnasium.registry) == len(registry.all())


def test_a_time_limit_is_a_wrapper():
    env = gym.wrappers.TimeLimit(Walk(), max_episode_steps=2)
    env.reset()
    assert [env.step(0)[2] for _ in range(2)] == [False, True]
    assert env.MAX_STEPS == 10


def test_pickled_envs_are_built_anew():
    class Kept(Walk, gym.utils.EzPickle):
        def __init__(self, stride):
            Walk.__init__(self, stride)
            gym.utils.EzPickle.__init__(self, stride)

    env = Kept(3)
    env.reset()
    again = copy.copy(env)
    assert (again.stride, hasattr(again, "at")) == (3, False)


def test_the_logger_says_what_is_grave_enough(caplog):
    gym.logger.set_level(gym.logger.ERROR)
    gym.logger.warn("no %s", "word")
    gym.logger.error("one %s", "word")
    gym.logger.set_level(gym.logger.DEBUG)
    gym.logger.info("then %d", 2)
    gym.logger.debug("and %d", 3)
    assert [record.message for record in caplog.records] == ["one word", "then 2", "and 3"]


def test_the_version_is_one_of_the_old_interface():
    assert [int(part) for part in gym.__version__.split(".")][:2] < [0, 26]
    assert issubclass(gym.error.UnregisteredEnv, gym.error.Error)
