"""Going on from a checkpoint in a run that differs: what is refused, what is only said, in which words."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe import checkpoint
from tests.states import diff, state_hash

TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 16,
    "minibatch_size": 8,
    "num_epochs": 1,
    "fcnet_hiddens": [4],
    "write_run": False,
    "seed": 0,
}
BOX = spaces.Box(-9, 9, (2,), np.float32)
REACH = spaces.Box(-1, 1, (1,), np.float32)


class Walk(gymnasium.Env):
    """Seven steps of any spaces."""

    observation_space, action_space = BOX, spaces.Discrete(3)

    def __init__(self, env_config=None):
        self.observation_space = dict(env_config or {}).get("observation", self.observation_space)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 7, False, {}


def walk(observation=BOX, action=Walk.action_space):
    return type("Other", (Walk,), {"observation_space": observation, "action_space": action})


def tiny(env=Walk, **changes):
    return steppe.PPOConfig(env=env, **{**TINY, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a trained Walk."""
    with tiny().build() as algo:
        algo.train()
        algo.evaluate(num_episodes=1)
        return algo.save(tmp_path_factory.mktemp("saved") / "c")


# ---------------------------------------------------------------- spaces

OTHERS = {
    "action space Discrete(3), here Discrete(5)": walk(action=spaces.Discrete(5)),
    "action space Discrete(3), here Discrete(3, start=1)": walk(action=spaces.Discrete(3, start=1)),
    "observation space Box(2,) float32, here Box(3,) float32": walk(spaces.Box(-9, 9, (3,), np.float32)),
    "observation space Box(2,) float32, here Discrete(4)": walk(spaces.Discrete(4)),
}


@pytest.mark.parametrize("said", OTHERS)
def test_an_env_of_other_spaces_is_refused_by_load_restore_and_evaluation(said, saved):
    other = OTHERS[said]
    with pytest.raises(steppe.CheckpointError) as refused:
        steppe.load(saved, env=other)
    assert str(refused.value).startswith(f"policy 'default_policy' was trained with {said} (")
    with tiny(other).build() as algo:
        before = state_hash(algo.get_state())
        with pytest.raises(steppe.CheckpointError) as refused:
            algo.restore(saved)
        assert said in str(refused.value)
        assert state_hash(algo.get_state()) == before
    with tiny(evaluation_config={"env": other}).build() as algo:
        with pytest.raises(steppe.ConfigError) as refused:
            algo.evaluate(num_episodes=1)
        assert str(refused.value).startswith(
            f"evaluation_config.env: policy 'default_policy' trains with {said}"
        )
        assert algo.train()["training_iteration"] == 1


def test_bounds_of_actions_are_what_actions_mean(tmp_path):
    near, far = (walk(action=spaces.Box(-b, b, (1,), np.float32)) for b in (1, 100))
    with tiny(near).build() as algo:
        path = algo.save(tmp_path / "c")
    with pytest.raises(steppe.CheckpointError, match=r"low -1\.0, here -100\.0; high 1\.0, here 100\.0"):
        steppe.load(path, env=far)


def test_the_part_of_evaluation_config_that_makes_other_spaces_is_named():
    other = {"observation": spaces.Box(-9, 9, (5,), np.float32)}
    config = tiny(evaluation_interval=2, evaluation_config={"env_config": other})
    with config.build() as algo:
        algo.train()
        with pytest.raises(steppe.ConfigError, match=r"^evaluation_config\.env_config: .*here Box\(5,\)"):
            algo.train()


def test_the_envs_of_a_refused_evaluation_are_closed():
    closed = []

    class Other(walk(action=spaces.Discrete(4))):
        def close(self):
            closed.append(self)

    with tiny(evaluation_config={"env": Other}).build() as algo:
        with pytest.raises(steppe.ConfigError):
            algo.evaluate()
        assert len(closed) == 2


def test_bounds_of_observations_may_differ_and_are_said_once(saved, caplog):
    wide = walk(spaces.Box(-20, 9, (2,), np.float64))
    with caplog.at_level(logging.WARNING, "steppe"):
        with steppe.load(saved, env=wide, resume=False) as algo:
            assert algo.train()["training_iteration"] == 2
        assert "was trained with observation space Box(2,) float32, here Box(2,) float64" in caplog.text
        assert "(low -9.0, here -20.0)" in caplog.text
        caplog.clear()
        for _ in range(2):
            with tiny(evaluation_config={"env": wide}).build() as algo:
                assert algo.evaluate(num_episodes=1)["episodes_this_iter"] == 1
        assert caplog.text.count("it is evaluated with these bounds") == 1


def test_a_checkpoint_with_damaged_spaces_is_refused(saved, tmp_path):
    owners, meta = checkpoint.load(saved)
    owners["policies"]["default_policy"]["network"]["observation"] = {"kind": "Box", "shape": 2}
    path = checkpoint.save(tmp_path / "c", owners, meta)
    with pytest.raises(steppe.CheckpointError, match="spaces of policy 'default_policy' make no sense"):
        steppe.load(path, env=Walk)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fcnet_hiddens": [4, 4]}, r"fcnet_hiddens=\[4\], here \[4, 4\]: .*do not fit this network"),
        ({"vf_share_layers": True}, r"vf_share_layers=False, here True: .*do not fit"),
        (
            {"observation_filter": "NoFilter"},
            r"observation_filter='MeanStdFilter', here 'NoFilter': .*not fit",
        ),
        ({"fcnet_activation": "relu"}, r"fcnet_activation='tanh', here 'relu': .*compute something else"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_settings_that_make_other_networks_are_named_before_shapes(change, said, saved):
    with pytest.raises(steppe.CheckpointError, match=rf"^the checkpoint was trained with {said}"):
        steppe.load(saved, env=Walk, **change)


def test_settings_of_networks_that_change_nothing_here_are_no_reason(saved):
    """Neither images nor continuous actions: the networks are the same."""
    with steppe.load(saved, env=Walk, free_log_std=False, conv_filters=[[16, 3, 2]]) as algo:
        assert algo.iteration == 1


# ---------------------------------------------------------------- settings


class Count(steppe.Callbacks):
    n = 0

    def on_train_result(self):
        self.n += 1


def test_settings_may_have_any_of_their_names(saved):
    changes = {
        "num_envs_per_worker": 3,
        "lambda": 0.5,
        "callbacks": Count,
        "model": {"vf_share_layers": False},
    }
    with steppe.load(saved, env=Walk, **changes) as algo:
        config = algo.config
        assert (config.num_envs_per_env_runner, config.lambda_, config.callbacks_class) == (3, 0.5, Count)
        assert config.gamma == tiny().gamma


def test_a_misspelt_setting_is_reported_as_such_and_not_as_missing(tmp_path):
    with tiny(callbacks_class=Count).build() as algo:
        path = algo.save(tmp_path / "c")
    with pytest.raises(steppe.ConfigError, match=r"no setting 'callback_class'.*'callbacks_class'"):
        steppe.load(path, env=Walk, callback_class=Count)
    missing = r"load\(path, callbacks_class=\.\.\. \(it was 'Count'\), env=\.\.\. \(it was 'Walk'\)\)"
    with pytest.raises(steppe.CheckpointError, match=missing):
        steppe.load(path)
    for given in ({"callbacks": Count}, {"callbacks_class": None}):
        steppe.load(path, env=Walk, **given).close()


@pytest.mark.parametrize("before", ["shared", "separate"])
def test_evaluations_may_move_to_other_envs(before, tmp_path, caplog):
    after = {"shared": "separate", "separate": "shared"}[before]
    with tiny(evaluation_interval=1, evaluation_envs=before).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
    with caplog.at_level(logging.WARNING, "steppe"):
        resumed = steppe.load(path, env=Walk, evaluation_envs=after)
    with resumed as algo:
        assert f"not exact: evaluation_envs='{before}' before" in caplog.text
        assert algo.train()["evaluation"]["episodes_this_iter"] == 10
    with tiny(evaluation_interval=1, evaluation_envs=after).build() as algo:
        algo.train()
        algo.restore(path)
        assert algo.train()["training_iteration"] == 2


def test_what_is_no_training_is_said_by_what_is_absent(tmp_path, saved):
    path = checkpoint.save(tmp_path / "c", {"learner": {}}, {"run_id": "r"})
    with pytest.raises(steppe.CheckpointError, match=r"no checkpoint of a training: it holds no actions"):
        steppe.load(path)
    owners, meta = checkpoint.load(saved)
    del meta["config"]
    with pytest.raises(steppe.CheckpointError, match="it holds no config"):
        steppe.load(checkpoint.save(tmp_path / "d", owners, meta))


# ---------------------------------------------------------------- run folders


def test_a_loaded_run_gets_a_folder_of_its_own(caplog):
    with tiny(write_run=True, run_dir="mine", checkpoint_freq=1).build() as algo:
        algo.train()
    record = Path("mine/run.json").read_bytes()
    with caplog.at_level(logging.WARNING, "steppe"), steppe.load("mine", env=Walk) as again:
        assert "run_dir='mine' belongs to the run that was saved" in caplog.text
        again.train()
        assert again.run.path == Path("runs/Walk/ppo-1")
    assert Path("mine/run.json").read_bytes() == record
    caplog.clear()
    with caplog.at_level(logging.WARNING, "steppe"), steppe.load("mine", env=Walk, run_dir="new") as named:
        named.train()
    assert "run_dir" not in caplog.text
    assert json.loads(Path("new/run.json").read_text())["steps"] == 3 * 16 - 16


def test_a_taken_folder_stops_the_first_iteration_before_any_work():
    stepped = []

    class Watched(Walk):
        def step(self, action):
            stepped.append(action)
            return super().step(action)

    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    with tiny(Watched, write_run=True, run_dir="mine").build() as algo:
        for _ in range(2):
            said = r"mine is not empty: name another with run_dir.* steppe train --resume mine"
            with pytest.raises(steppe.ConfigError, match=said):
                algo.train()
        assert (algo.iteration, stepped) == (0, [])
    assert [entry.name for entry in Path("mine").iterdir()] == ["thesis.txt"]


def test_load_and_restore_take_all_that_names_a_checkpoint():
    with tiny(write_run=True, run_dir="run", checkpoint_freq=1).build() as algo:
        algo.train()
        algo.train()
    link, text = Path("run/latest"), Path("run/best")
    text.unlink()
    text.write_text("checkpoints/16\n")  # where links cannot be made
    at = {"run": 2, Path("run/checkpoints"): 2, link: 2, text: 1, "run/checkpoints/16": 1}
    with tiny().build() as algo:
        for path, iteration in at.items():
            algo.restore(path)
            assert algo.iteration == iteration
            with steppe.load(path, env=Walk, write_run=False) as loaded:
                assert loaded.iteration == iteration


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("hook", ["on_sample_end", "on_learn_on_batch", "on_episode_step"])
def test_a_save_while_envs_step_is_refused_in_words_and_harms_nothing(hook, tmp_path):
    refused = []

    def save(self):
        with pytest.raises(steppe.CheckpointError, match=r"envs are stepping.*on_train_result") as error:
            self.algorithm.save(tmp_path / "c")
        refused.append(error)

    def init(self, *, algorithm):
        self.algorithm = algorithm

    saving = type("Saving", (steppe.Callbacks,), {hook: save, "on_algorithm_init": init})
    with tiny(callbacks_class=saving).build() as algo, tiny().build() as other:
        algo.train(), other.train()
        trained = len(refused)
        algo.evaluate(num_episodes=1)
        assert (trained > 0, len(refused) > trained) == (True, hook != "on_learn_on_batch")
        assert not (tmp_path / "c").exists()
        assert diff(algo.get_state()["learner"], other.get_state()["learner"]) == []
        assert algo.save(tmp_path / "c") == tmp_path / "c"  # nothing steps any more


def test_hooks_between_iterations_save(tmp_path):
    class Saving(steppe.Callbacks):
        def on_train_result(self, *, algorithm):
            algorithm.save(tmp_path / "result")

        def on_evaluate_end(self, *, algorithm):
            algorithm.save(tmp_path / "evaluated")

    with tiny(callbacks_class=Saving, evaluation_interval=1).build() as algo:
        algo.train()
        wanted = algo.train()
    for name in ("result", "evaluated"):
        with steppe.load(tmp_path / name, env=Walk, callbacks=None, evaluation_interval=0) as algo:
            assert algo.iteration == wanted["training_iteration"]


@pytest.mark.parametrize("episodes", ["3", 2.5, 0, -1, True, [3]], ids=str)
def test_a_number_of_episodes_that_is_none_is_refused(episodes):
    with tiny().build() as algo:
        with pytest.raises(steppe.ConfigError, match=r"num_episodes=.* must be a whole number at least 1"):
            algo.evaluate(episodes)
        assert algo.evaluate(np.int64(2))["episodes_this_iter"] == 2


@pytest.mark.parametrize("path", [None, "", 3, b"c"], ids=str)
def test_what_is_no_path_is_refused(path):
    with tiny().build() as algo:
        for use in (algo.save, algo.restore, steppe.load, steppe.load_policy):
            with pytest.raises(steppe.ConfigError, match="is no path of a checkpoint: give a folder"):
                use(path)
