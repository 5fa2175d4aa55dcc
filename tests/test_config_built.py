"""What a config says reaches a run, its checkpoint, and the run that is loaded from it."""

import logging
from typing import ClassVar

import gymnasium
import numpy as np
import pytest

import steppe
from steppe.errors import CheckpointError, ConfigError


class Count(steppe.Callbacks):
    def __init__(self):
        self.updates = 0

    def on_train_result(self, *, result):
        self.updates += 1
        result["updates"] = self.updates


def tiny(**changes):
    return steppe.PPOConfig.from_dict(
        {
            "env": "CartPole-v1",
            "num_envs_per_worker": 2,
            "train_batch_size": 32,
            "sgd_minibatch_size": 16,
            "num_sgd_iter": 1,
            "model": {"fcnet_hiddens": [8]},
            "seed": 0,
            "write_run": False,
            **changes,
        }
    )


def test_a_checkpoint_asks_for_callbacks_and_takes_them(tmp_path):
    with tiny(callbacks=[Count()], multiagent={"policies": {"default_policy"}}).build() as algo:
        assert algo.train()["updates"] == 1
        path = algo.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"load\(path, callbacks_class=\.\.\. \(it was \['Count'\]\)\)"):
        steppe.load(path)
    with steppe.load(path, callbacks_class=Count) as again:
        assert again.train()["training_iteration"] == 2
        assert again.config.copy(callbacks_class=None) == tiny(multiagent={"policies": {"default_policy"}})
    with steppe.load(path, callbacks_class=None) as without:
        assert "updates" not in without.train()


def test_neither_config_of_a_run_changes():
    config = tiny(seed=None, log_level="ERROR")
    with config.build() as algo:
        assert config.seed is None
        assert logging.getLogger("steppe").level == logging.ERROR
        for built in (config, algo.config):
            for change in (
                lambda built=built: built.training(lr=1.0),
                lambda built=built: built.env_config.update(x=1),
                lambda built=built: built.fcnet_hiddens.append(1),
            ):
                with pytest.raises(ConfigError, match=r"change a copy: config\.copy\("):
                    change()
        algo.train()
    logging.getLogger("steppe").setLevel(logging.WARNING)


class Sized(gymnasium.Env):
    """Remembers the sizes that its objects were made with, and spoils what it was given."""

    made: ClassVar[list[int]] = []

    def __init__(self, env_config):
        Sized.made.append(env_config["map"]["size"])
        env_config["map"]["size"] += 100
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}


def with_keywords(size=1):
    return Sized({"map": {"size": size}})


@pytest.fixture(autouse=True)
def _none_made():
    Sized.made.clear()


def test_every_env_is_made_from_what_was_set(tmp_path):
    given = {"size": 3}
    config = tiny(
        env=Sized, env_config={"map": given}, evaluation_config={"env_config": {"map": {"size": 4}}}
    )
    with config.build() as algo:
        given["size"] = 99
        algo.evaluate(num_episodes=1)
        assert Sized.made == [3, 3, 4, 4]
        assert config.env_config == algo.config.env_config == {"map": {"size": 3}}
        path = algo.save(tmp_path / "c")
    with steppe.load(path, env=Sized):
        assert Sized.made[4:] == [3, 3, 4, 4]


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"env": "CartPole-v9"}, "PPOConfig: evaluation_config: no env named 'CartPole-v9'; did you mean"),
        ({"env_config": {"sise": 3}}, r"evaluation_config: env_config does not fit with_keywords\(size=1\)"),
        ({"env": "CartPole-v1"}, r"evaluation_config: env_config does not fit CartPole-v1\(.*'size'"),
    ],
)
def test_envs_of_evaluation_are_found_before_anything_is_built(evaluation, said):
    config = tiny(env=with_keywords, env_config={"size": 1}, evaluation_config=evaluation)
    with pytest.raises(ConfigError, match=said):
        config.build()
    assert Sized.made == []


def test_keys_that_are_no_text_are_asked_for_by_name(tmp_path, caplog):
    seen = []

    def make(env_config):
        seen.append(dict(env_config))
        return gymnasium.make("CartPole-v1")

    with tiny(env=make, env_config={1: 2}, write_run=True, run_dir=str(tmp_path / "run")).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
    assert "env_config]\n1 = 2" in (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(CheckpointError, match=r"env_config=\.\.\. \(it was {'1': 2}\)"):
        steppe.load(path, env=make)
    with steppe.load(path, env=make, env_config={1: 2}, write_run=False) as again:
        assert again.iteration == 1
    assert seen == [{1: 2}] * 4
    assert "has keys that are no text" in caplog.text
