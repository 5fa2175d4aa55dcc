"""Policies that act by what came before, out of checkpoints: in numpy they act as they did in training."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.compat.states import is_recurrent
from steppe.errors import ConfigError
from steppe.spaces import leaves
from tests.algorithms.test_framestack import Clock
from tests.algorithms.test_r2d2 import Noise

TINY = {
    "num_envs_per_env_runner": 2,
    "fcnet_hiddens": [8],
    "memory_size": 8,
    "max_seq_len": 4,
    "write_run": False,
    "seed": 0,
}
OFF = {
    "train_batch_size": 8,
    "min_sample_timesteps_per_iteration": 24,
    "num_steps_sampled_before_learning_starts": 16,
    "lr": 0.03,
}
TOLD = {"prev_action": True, "prev_reward": True}
ON = {"train_batch_size": 24, "lr": 0.03}


class Continuous(Noise):
    """The same with an action of two numbers."""

    def __init__(self, env_config):
        super().__init__(env_config)
        self.action_space = spaces.Box(-1, 2, (2,), np.float32)


CASES = {
    "dqn frames": (steppe.DQNConfig, Noise, {**OFF, "framestack": 3}),
    "dqn images": (steppe.DQNConfig, "grey", {**OFF, "framestack": 2, "train_batch_size": 2}),
    "dqn lstm": (steppe.DQNConfig, Noise, {**OFF, **TOLD, "memory": "lstm"}),
    "rainbow gru masked frames": (
        steppe.DQNConfig,
        "masked",
        {**OFF, **TOLD, "memory": "gru", "rainbow": True, "framestack": 2},
    ),
    "sac lstm": (steppe.SACConfig, Continuous, {**OFF, **TOLD, "memory": "lstm"}),
    "td3 frames": (
        steppe.TD3Config,
        Continuous,
        {**OFF, "framestack": 3, "observation_filter": "MeanStdFilter"},
    ),
    "ppo frames": (steppe.PPOConfig, "masked", {**ON, "framestack": 3}),
    "ppo lstm frames": (steppe.PPOConfig, Continuous, {**ON, **TOLD, "memory": "lstm", "framestack": 2}),
}


class Grey(Clock):
    """Small grey pictures, whose brightness is the number of the row."""

    def __init__(self, env_config):
        super().__init__({"discrete": True})
        self.observation_space = spaces.Box(0, 255, (16, 16), np.uint8)

    def row(self):
        return np.full((16, 16), 20 * self.t, np.uint8)


ENVS = {"masked": (Noise, {"masked": True}), "grey": (Grey, {})}


@pytest.mark.parametrize("case", CASES)
def test_it_acts_in_numpy_as_it_does_in_training(tmp_path, case):
    cls, env, changes = CASES[case]
    env, env_config = ENVS.get(env, (env, {}))
    extra = {"conv_filters": [[4, 4, 4]]} if env is Grey else {}
    with cls(env=env, env_config=env_config, **{**TINY, **changes, **extra}).build() as algo:
        algo.train()
        policy = steppe.load_policy(algo.save(tmp_path / "c"))
        own, loaded = {}, {}
        one = env(env_config or {"discrete": True})
        obs, _ = one.reset(seed=1)
        for _ in range(12):
            wanted, own = algo.compute_single_action(obs, own)
            found, loaded = policy.act(obs, loaded)
            np.testing.assert_allclose(found, wanted, atol=1e-4)
            for a, b in zip(leaves(own), leaves(loaded), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4)
            obs, reward, over, _, _ = one.step(one.action_space.sample())
            for state in (own, loaded):
                if "reward" in state:
                    state["reward"] = np.float32(reward)
            if over:
                obs, own, loaded = one.reset()[0], {}, {}


def test_without_a_state_it_is_said_how_to_give_one(tmp_path):
    with steppe.DQNConfig(env=Noise, env_config={}, **{**TINY, **OFF, "framestack": 2}).build() as algo:
        algo.train()
        policy = steppe.load_policy(algo.save(tmp_path / "c"))
        for act in (policy.act, algo.compute_single_action):
            with pytest.raises(ConfigError, match=r"acts by what it observed before: give state=\{\}"):
                act(np.zeros(2, np.float32))


def test_noise_that_keeps_its_direction_is_no_memory():
    """It has a state of its own, which nobody who asks for a single action has to know of."""
    noise = {"exploration_noise": 0.5, "exploration_noise_correlation": 0.9}
    with steppe.TD3Config(env=Continuous, env_config={}, **TINY, **OFF, **noise).build() as algo:
        policy, obs = algo.get_policy(), np.zeros(2, np.float32)
        assert policy.initial_state(1)["noise"].shape == (1, 2)
        assert not is_recurrent(policy)
        for explore in (False, True):
            assert algo.compute_single_action(obs, explore=explore).shape == (2,)
