"""RLlib's Repeated: a Sequence that says how long it gets, in whatever package its class stands."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.compat.ray.rllib.utils.spaces.repeated import Repeated
from steppe.errors import EnvError
from steppe.spaces import SequenceSpec, collect, spec_of

ITEM = spaces.Box(-1, 1, (2,))


def test_it_is_a_sequence_of_its_own_length():
    space = Repeated(ITEM, max_len=3)
    assert spec_of(space) == SequenceSpec(spec_of(ITEM), 3, False)
    space.seed(0)
    drawn = [space.sample() for _ in range(50)]
    assert {len(one) for one in drawn} == {1, 2, 3}
    assert all(space.contains(one) for one in drawn)
    assert space.contains([])
    assert not space.contains([ITEM.sample()] * 4)
    assert not space.contains([np.full(2, 2.0, np.float32)])
    column = collect(spec_of(space), drawn)
    assert column["items"].shape == (50, 3, 2)
    np.testing.assert_array_equal(column["length"], [len(one) for one in drawn])


def test_the_class_of_rllib_itself_is_known_by_its_name():
    theirs = type("Repeated", (), {"child_space": ITEM, "max_len": 5, "shape": None})()
    assert spec_of(theirs) == SequenceSpec(spec_of(ITEM), 5, False)


class Crowd(gymnasium.Env):
    """A list of others is seen, now and then too long a one if ``most`` says so."""

    def __init__(self, config):
        self.observation_space = spaces.Dict(others=Repeated(ITEM, 3), speed=spaces.Box(0, 1, ()))
        self.action_space, self.most = spaces.Discrete(2), config.get("most", 3)

    def seen(self):
        count = int(self.np_random.integers(0, self.most + 1))
        return {"others": [np.full(2, 0.5, np.float32)] * count, "speed": np.float32(0.5)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        self.t += 1
        return self.seen(), 1.0, self.t == 5, False, {}


def config(**env_config):
    small = {"train_batch_size": 32, "minibatch_size": 32, "num_epochs": 1, "fcnet_hiddens": [4]}
    return steppe.PPOConfig(
        env=Crowd, env_config=env_config, num_envs_per_env_runner=2, write_run=False, seed=0, **small
    )


def test_a_program_trains_on_it():
    with config().build() as algo:
        assert algo.train()["episode_reward_mean"] == 5.0
    with config(most=4).build() as algo, pytest.raises(EnvError, match=r'obs\["others"\].*at most 3'):
        algo.train()
