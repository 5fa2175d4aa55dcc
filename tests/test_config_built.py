"""What a config says reaches a run, its checkpoint, and the run that is loaded from it."""

import logging

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
