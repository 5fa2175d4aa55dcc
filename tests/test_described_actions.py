"""Choices that the observation describes: learned by what they are, with every algorithm that can."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import ConfigError

SMALL = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
    "action_embeddings": "offers",
}
PPO = {**SMALL, "minibatch_size": 32, "num_epochs": 2}
REPLAY = {**SMALL, "train_batch_size": 32, "num_steps_sampled_before_learning_starts": 64}
REPLAY |= {"min_sample_timesteps_per_iteration": 128, "replay_buffer_capacity": 2000}
GOOD, BAD = np.array([1.0, -0.5], np.float32), np.array([-0.3, 0.8], np.float32)


class Market(gymnasium.Env):
    """Six offers, two of which are there: the good one is paid, wherever it stands; others break the env."""

    action_space = spaces.Discrete(6)
    observation_space = spaces.Dict(
        mood=spaces.Box(-1, 1, (1,)),
        offers=spaces.Box(-5, 5, (6, 2)),
        action_mask=spaces.MultiBinary(6),
    )

    def __init__(self, config):
        pass

    def seen(self):
        self.good, self.bad = self.np_random.choice(6, 2, replace=False)
        offers = self.np_random.uniform(-1, 1, (6, 2)).astype(np.float32)
        offers[self.good], offers[self.bad] = GOOD, BAD
        mask = np.zeros(6, np.int8)
        mask[[self.good, self.bad]] = 1
        return {"mood": np.zeros(1, np.float32), "offers": offers, "action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        assert action in (self.good, self.bad)
        self.t += 1
        reward = float(action == self.good)
        return self.seen(), reward, False, self.t == 8, {}


LEARNERS = {
    "ppo": (steppe.PPOConfig, {**PPO, "lr": 0.01, "gamma": 0.0}, 6),
    "dqn": (steppe.DQNConfig, {**REPLAY, "lr": 3e-3, "gamma": 0.0, "epsilon": 0.2}, 3),
    "rainbow": (
        steppe.DQNConfig,
        {**REPLAY, "lr": 3e-3, "gamma": 0.0, "num_atoms": 11, "v_min": -1.0, "v_max": 2.0, "noisy": True},
        1,
    ),
    "lstm": (steppe.PPOConfig, {**PPO, "memory": "lstm", "memory_size": 8, "max_seq_len": 8}, 1),
    "frames": (steppe.DQNConfig, {**REPLAY, "framestack": 2}, 1),
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_pays_is_learned_saved_and_gone_on_with_exactly(learner, tmp_path):
    cls, settings, iterations = LEARNERS[learner]
    with cls(env=Market, **settings).build() as algo:
        before = algo.get_weights()["default_policy"]
        for _ in range(iterations):
            algo.train()
        assert (algo.get_weights()["default_policy"] != before).mean() > 0.8
        score = algo.evaluate(num_episodes=20)["episode_reward_mean"] / 8
        assert score > 0.95 or iterations == 1, "chance gets half"
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_weights()["default_policy"]
    with steppe.load(path, env=Market) as again:
        again.train()
        np.testing.assert_array_equal(again.get_weights()["default_policy"], expected)


@pytest.mark.parametrize("learner", ["ppo", "dqn"])
def test_numpy_chooses_alike(learner, tmp_path):
    cls, settings, _ = LEARNERS[learner]
    env = Market({})
    obs, _ = env.reset(seed=3)
    with cls(env=Market, **settings).build() as algo:
        algo.train()
        loaded = steppe.load_policy(algo.save(tmp_path / "c"))
        for _ in range(20):
            assert loaded.act(obs) == algo.compute_single_action(obs)
            obs = env.seen()
    for other in ({**settings, "action_embeddings": None}, {**settings, "fcnet_hiddens": [9]}):
        with pytest.raises(steppe.CheckpointError):
            steppe.load(tmp_path / "c", env=Market, **other)


def test_who_cannot_says_who_can():
    for cls in (steppe.SACConfig, steppe.TD3Config):
        with pytest.raises(ConfigError, match=r"action_embeddings='offers'.*PPOConfig"):
            cls(env=Market, action_embeddings="offers", write_run=False).build()
    with pytest.raises(ConfigError, match="did you mean 'offers'"):
        steppe.PPOConfig(env=Market, **{**PPO, "action_embeddings": "offer"}).build()
