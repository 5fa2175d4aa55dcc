"""Learners from a replay on pictures: they train, their networks are convolutions, rows are kept as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

import steppe
from tests.algorithms.test_framestack import Clock

TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 4,
    "fcnet_hiddens": [4],
    "conv_filters": [[4, 4, 4]],
    "min_sample_timesteps_per_iteration": 40,
    "num_steps_sampled_before_learning_starts": 16,
    "replay_buffer_capacity": 100,
    "training_intensity": 0.5,
    "write_run": False,
    "seed": 0,
}


class Pictures(Clock):
    """Small pictures, grey or in colour, whose brightness is the number of the row."""

    def __init__(self, env_config):
        super().__init__(env_config)
        self.shape = tuple(env_config.get("shape", (16, 16, 3)))
        self.observation_space = spaces.Box(0, 255, self.shape, np.uint8)

    def row(self):
        return np.full(self.shape, 20 * self.t, np.uint8)


@pytest.mark.parametrize(
    ("name", "env_config", "changes"),
    [
        ("SAC", {}, {}),
        ("TD3", {}, {}),
        ("SAC", {"discrete": True}, {}),
        ("TD3", {"shape": (16, 16)}, {"framestack": 2}),
        (
            "SAC",
            {"shape": (3, 16, 16)},
            {"framestack": 2, "memory": "gru", "max_seq_len": 2, "memory_size": 4},
        ),
        ("PPO", {"shape": (16, 16)}, {"framestack": 2}),
    ],
)
def test_pictures_are_learned_from(name, env_config, changes):
    own = TINY
    if name == "PPO":
        names = ("num_envs_per_env_runner", "fcnet_hiddens", "conv_filters", "write_run", "seed")
        own = {key: TINY[key] for key in names} | {"train_batch_size": 40, "num_epochs": 1}
    config = getattr(steppe, f"{name}Config")(env=Pictures, env_config=env_config, **own, **changes)
    with config.build() as algo:
        before = algo.get_weights()["default_policy"]
        stats = algo.train()["info"]["default_policy"]
        after = algo.get_weights()["default_policy"]
        learner = algo._learner.learners["default_policy"]
        network = learner.policy.export(learner.publish())["network"]
    assert stats["updates_skipped"] == 0
    assert np.abs(after - before).max() > 0
    torso = network.get("torso", network)
    assert torso["encoder"]["kind"] == "image"
    if name != "PPO":
        kept = getattr(learner._replay, "_replay", learner._replay)._obs
        assert (kept.dtype, kept.shape[1:]) == (np.uint8, tuple(env_config.get("shape", (16, 16, 3))))
