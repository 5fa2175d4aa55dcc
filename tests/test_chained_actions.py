"""Parts of an action chosen one after the other: what independent parts cannot learn, files, and refusals."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import ConfigError

SMALL = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "minibatch_size": 32,
    "num_epochs": 2,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}
NESTED = spaces.Dict(
    kind=spaces.Discrete(3, start=1),
    how=spaces.Tuple([spaces.Box(-2, 2, (2,)), spaces.MultiDiscrete([2, 4])]),
    bits=spaces.MultiBinary(2),
)


class Twice(gymnasium.Env):
    """The second of two choices is to equal the first, whatever that is."""

    observation_space = spaces.Box(0, 1, (1,))

    def __init__(self, config):
        self.action_space = config.get("space", spaces.Tuple([spaces.Discrete(4), spaces.Discrete(4)]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), float(action[0] == action[1]), False, self.t == 8, {}


class Anything(gymnasium.Env):
    """Takes nested actions, for nothing."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), NESTED

    def __init__(self, config):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def seen(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        assert self.action_space.contains(action)
        over = self.np_random.random() < 0.1
        return self.seen(), float(action["kind"]), False, over, {}


def equal_and_random(chained, space=None):
    """How often the choices are equal, and the entropy of both, after a little learning that wants both."""
    learning = {"lr": 3e-3, "gamma": 0.0, "entropy_coeff": 0.3, "reward_scale": "none", "fcnet_hiddens": [16]}
    batches = {"train_batch_size": 512, "minibatch_size": 128, "num_epochs": 4}
    settings = {} if space is None else {"space": space}
    config = steppe.PPOConfig(
        env=Twice, env_config=settings, autoregressive_actions=chained, **{**SMALL, **learning, **batches}
    )
    with config.build() as algo:
        for _ in range(15):
            stats = algo.train()["info"]["default_policy"]
        result = algo.evaluate(num_episodes=50, explore=True)
    return result["episode_reward_mean"] / 8, stats["entropy"]


def test_one_knows_the_other_where_independent_ones_must_choose_between_chance_and_being_right():
    equal, entropy = equal_and_random(True)
    assert equal > 0.95
    assert entropy == pytest.approx(np.log(4), abs=0.2), "the first is any, the second no longer"
    equal, entropy = equal_and_random(False)
    assert equal < 0.9
    assert equal < 0.5 or entropy < np.log(4) + 0.35, "not both"


def test_so_do_the_choices_of_one_multi_discrete():
    equal, entropy = equal_and_random(True, spaces.MultiDiscrete([4, 4]))
    assert equal > 0.95
    assert entropy > 1.1


@pytest.mark.parametrize("cls", [steppe.PPOConfig, steppe.A2CConfig, steppe.IMPALAConfig, steppe.APPOConfig])
def test_nested_ones_train_with_every_policy_gradient(cls):
    settings = {name: value for name, value in SMALL.items() if name in cls().to_dict()}
    with cls(env=Anything, autoregressive_actions=True, **settings).build() as algo:
        before = algo.get_weights()["default_policy"]
        stats = algo.train()["info"]["default_policy"]
        assert all(map(np.isfinite, stats.values()))
        assert stats["updates_skipped"] == 0
        assert (algo.get_weights()["default_policy"] != before).mean() > 0.5


def test_it_is_saved_and_goes_on_exactly_and_acts_in_numpy_alone(tmp_path):
    config = steppe.PPOConfig(env=Anything, autoregressive_actions=True, **SMALL)
    with config.build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        obs = np.array([0.3, -0.8], np.float32)
        ours = algo.compute_single_action(obs)
        algo.train()
        expected = algo.get_weights()["default_policy"]
    loaded = steppe.load_policy(path)
    theirs = loaded.act(obs)
    assert theirs["kind"] == ours["kind"]
    np.testing.assert_allclose(theirs["how"][0], ours["how"][0], atol=1e-5)
    np.testing.assert_array_equal(theirs["how"][1], ours["how"][1])
    assert all(NESTED.contains(loaded.act(obs, explore=True)) for _ in range(10))
    with steppe.load(path, env=Anything) as again:
        again.train()
        np.testing.assert_array_equal(again.get_weights()["default_policy"], expected)
    with pytest.raises(steppe.CheckpointError, match="autoregressive_actions=True, here False"):
        steppe.load(path, env=Anything, autoregressive_actions=False)


def test_together_with_a_memory_that_knows_the_action_before():
    memory = {"memory": "gru", "memory_size": 8, "max_seq_len": 8, "prev_action": True}
    with steppe.PPOConfig(env=Anything, autoregressive_actions=True, **SMALL, **memory).build() as algo:
        stats = algo.train()["info"]["default_policy"]
        assert stats["kl"] < 0.1
        assert all(map(np.isfinite, stats.values()))


def test_masks_hold_whatever_was_chosen_before():
    class Locked(gymnasium.Env):
        action_space = spaces.MultiDiscrete([3, 4])
        observation_space = spaces.Dict(x=spaces.Box(0, 1, (1,)), action_mask=spaces.MultiBinary(7))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.seen(), {}

        def seen(self):
            self.open = np.zeros(7, np.int8)
            self.open[self.np_random.integers(3)] = 1
            self.open[3 + self.np_random.choice(4, 2, replace=False)] = 1
            return {"x": np.zeros(1, np.float32), "action_mask": self.open}

        def step(self, action):
            assert self.open[action[0]]
            assert self.open[3 + action[1]]
            return self.seen(), float(action[1]), False, self.np_random.random() < 0.2, {}

    config = steppe.PPOConfig(env=lambda _: Locked(), autoregressive_actions=True, **SMALL)
    with config.build() as algo:
        first = algo.train()["info"]["default_policy"]
        assert first["entropy"] == pytest.approx(np.log(2), abs=0.1), "one and two of them are open"
        algo.train()


def test_who_cannot_says_who_can():
    for cls, env in ((steppe.DQNConfig, "CartPole-v1"), (steppe.SACConfig, "Pendulum-v1")):
        with pytest.raises(ConfigError, match=r"autoregressive_actions=True.*PPOConfig"):
            cls(env=env, autoregressive_actions=True, write_run=False).build()
