"""``tune.run`` for one trial: when it ends, what it leaves, and what it refuses."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import steppe
import steppe.config
from steppe.compat import DefaultCallbacks, gym, tune
from steppe.compat.agents import ppo
from steppe.compat.ray import tune as mirrored
from steppe.compat.ray.tune.logger import pretty_print
from steppe.compat.ray.tune.registry import register_env
from steppe.compat.tune import ExperimentAnalysis, Trial


class Rising(gym.Env):
    """Pays one more in each episode of all envs together, so that later results are better."""

    episodes = 0

    def __init__(self, config):
        self.action_space = self.observation_space = gym.spaces.Discrete(2)

    def reset(self):
        Rising.episodes += 1
        return 0

    def step(self, action):
        return 0, float(Rising.episodes), True, {}


@pytest.fixture
def config(quick):
    Rising.episodes = 0
    register_env("rising", lambda config: Rising(config))
    return {"env": "rising"}


def test_it_ends_at_each_kind_of_criterion(config, capsys):
    for stop, iterations in (
        ({"training_iteration": 2}, 2),
        ({"timesteps_total": 65}, 2),
        ({"episode_reward_mean": 100, "training_iteration": 9}, 3),
        ({"info/num_steps_trained": 64}, 1),
        (lambda trial_id, result: trial_id == "PPO_rising_00000" and result["episodes_total"] > 128, 3),
    ):
        Rising.episodes = 0
        analysis = tune.run("PPO", config=config, stop=stop, verbose=0)
        result = analysis.trials[0].last_result
        assert result["training_iteration"] == iterations
        assert result["done"] is True
    # After three iterations: the last 100 of episodes 1 to 192, of which 93 to 192 count: 142.5.
    assert result["episode_reward_mean"] == pytest.approx(142.5)
    assert capsys.readouterr().out == ""


def test_what_it_leaves(config, capsys):
    analysis = mirrored.run(
        "PPO",
        name="first",
        config=config,
        stop={"training_iteration": 5},
        checkpoint_freq=2,
        checkpoint_at_end=True,
        local_dir="results",
        verbose=1,
    )
    folder = Path("results/first/PPO_rising_00000")
    paths = [str(folder / f"checkpoint_{n}" / f"checkpoint-{n}") for n in (2, 4, 5)]
    trial = analysis.trials[0]
    assert [path for path, _ in trial.checkpoints] == paths
    assert all(Path(path).is_dir() for path in paths)
    assert analysis.get_last_checkpoint() == analysis.best_checkpoint == paths[2]
    assert analysis.get_best_checkpoint(trial, metric="episode_reward_mean", mode="min") == paths[0]
    assert analysis.results == {"PPO_rising_00000": trial.last_result}
    assert analysis.best_trial is trial
    assert (analysis.best_result, analysis.best_config["env"]) == (trial.last_result, "rising")
    assert Path(analysis.best_logdir) == folder
    assert (folder / "progress.csv").exists()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0] == "PPO_rising_00000: iteration 1, 64 steps, reward 32.50"  # the mean of 1 to 64
    assert analysis.get_best_trial("episode_reward_mean", mode="max") is trial
    assert analysis.get_best_config(metric="episode_reward_mean", mode="max") is trial.config
    assert analysis.get_best_logdir("episode_reward_mean") == str(folder)
    # 64 episodes an iteration; after four, those from 157 to 256 count.
    rewards = [78.5, 206.5, 270.5]
    assert analysis.get_trial_checkpoints_paths(trial, "episode_reward_mean") == list(
        zip(paths, rewards, strict=True)
    )
    assert (trial.checkpoint.value, trial.checkpoint.result) == (paths[2], trial.last_result)
    again = ppo.PPOTrainer(config)
    again.restore(analysis.best_checkpoint)
    assert again.iteration == 5
    again.stop()


def test_a_second_run_of_a_name_gets_a_folder_of_its_own_and_may_restore(config):
    runs = [tune.run("PPO", "one", config=config, stop={"training_iteration": 1}, verbose=0)]
    path = ppo.PPOTrainer(config)
    path.train()
    saved = path.save("elsewhere")
    path.stop()
    runs.append(
        tune.run("PPO", "one", config=config, stop={"training_iteration": 2}, restore=saved, verbose=0)
    )
    assert [Path(run.best_logdir) for run in runs] == [
        Path("runs/one/PPO_rising_00000"),
        Path("runs/one/PPO_rising_00001"),
    ]
    assert runs[1].best_result["timesteps_this_iter"] == 64
    assert runs[1].best_result["timesteps_total"] == 128


def test_checkpoints_are_compared_by_known_results():
    trial = Trial("t", {}, None)
    analysis = ExperimentAnalysis(trial, None, None)
    assert analysis.best_checkpoint is None
    assert analysis.get_last_checkpoint() is None
    trial.checkpoints.append(("a", {"episode_reward_mean": np.nan}))
    assert analysis.best_checkpoint == "a"
    trial.checkpoints += [("b", {"episode_reward_mean": 2.0}), ("c", {"episode_reward_mean": 1.0})]
    assert (analysis.best_checkpoint, analysis.get_last_checkpoint()) == ("b", "c")
    assert ExperimentAnalysis(trial, "episode_reward_mean", "min").best_checkpoint == "c"


def test_a_frame_needs_pandas(monkeypatch):
    trial = Trial("t", {"lr": 0.5, "model": {"fcnet_hiddens": [4], "dim": 84}}, "here")
    trial.last_result.update(
        {"episode_reward_mean": 2.0, "info": {"learner": {"a": {"kl": 0.1}}}, "config": 1}
    )
    analysis = ExperimentAnalysis(trial)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(steppe.ConfigError, match=r"pip install pandas.*here/progress\.csv"):
        analysis.dataframe()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    assert analysis.dataframe("episode_reward_mean", "max") == [
        {
            "episode_reward_mean": 2.0,
            "info/learner/a/kl": 0.1,
            "config/lr": 0.5,
            "config/model/dim": 84,
            "logdir": "here",
        }
    ]


def test_a_callback_may_end_a_trial(config):
    class Enough(DefaultCallbacks):
        def on_train_result(self, *, trainer, result, **kwargs):
            result["done"] = result["training_iteration"] == 2

    stop = {"training_iteration": 5}
    analysis = tune.run("PPO", config={**config, "callbacks": Enough}, stop=stop, verbose=0, local_dir="done")
    assert analysis.best_result["training_iteration"] == 2
    assert analysis.best_result["done"] is True


def test_criteria_that_come_with_time_are_waited_for(config):
    class Measuring(DefaultCallbacks):
        def on_episode_end(self, *, episode, **kwargs):
            episode.custom_metrics["reward"] = episode.total_reward

        def on_train_result(self, *, trainer, result, **kwargs):
            result["twice"] = 2 * result["training_iteration"]

    config = {**config, "callbacks": Measuring, "evaluation_interval": 2, "evaluation_num_episodes": 1}
    for stop, iterations in (
        ({"custom_metrics/reward_max": 65}, 2),
        ({"evaluation/episode_reward_mean": 0, "training_iteration": 4}, 2),
        ({"twice": 6}, 3),
    ):
        Rising.episodes = 0
        found = tune.run("PPO", config=config, stop=stop, verbose=0)
        assert found.best_result["training_iteration"] == iterations
    for wrong in ("custom_metrics/rewards_max", "twicee"):  # nobody can know before an iteration
        with pytest.raises(steppe.ConfigError, match=r"there is .*(reward_max|twice)"):
            tune.run("PPO", config=config, stop={wrong: 1}, verbose=0)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({"training_iterations": 3}, "there is training_iteration"),
        ({"episode_reward_men": 1}, "episode_reward_mean"),
        ({"training_iteration": "5"}, "is a number"),
        ({"training_iteration": True}, "is a number"),
        ({"training_iteration": None}, "is a number"),
        ({"episode_reward_mean": float("nan")}, "is a number"),
        ("training_iteration", "give a dict, or a function"),
        (5, "give a dict, or a function"),
        (lambda result: True, r"stop\(trial_id, result\)"),
        (None, "never ends"),
    ],
)
def test_a_wrong_criterion_is_said_before_an_env_is_built(quick, stop, message):
    def never(config):
        raise AssertionError("built")

    with pytest.raises(steppe.ConfigError, match=message):
        tune.run("PPO", config={"env": never}, stop=stop)


def test_all_keys_of_a_result_may_end_a_trial(config):
    """What is known of results beforehand is what is in them."""
    result = ppo.PPOTrainer(config).train()
    rest = {"config", "hist_stats"}
    assert (result.keys() | {"evaluation"}) - rest == tune._KEYS | tune._OPEN
    for key in tune._KEYS | {"info/learner/default_policy/kl", "time/env"}:
        tune._check_stop({key: np.float32(1)}, callbacks=False)


@pytest.mark.parametrize("name", ["grid_search", "choice", "uniform", "sample_from", "loguniform"])
def test_search_spaces_are_refused_with_what_to_do_instead(name):
    for module in (tune, mirrored):
        with pytest.raises(steppe.ConfigError, match=rf"tune\.{name}: .*one trial.*loop"):
            getattr(module, name)([1, 2])


def test_what_else_is_refused(config):
    stop = {"training_iteration": 1}
    for arguments, message in (
        ({"num_samples": 3}, "num_samples=3.*several trials.*loop"),
        ({"scheduler": object()}, "scheduler.*several trials"),
        ({"resume": True}, "resume"),
        ({"chekpoint_freq": 1}, "did you mean 'checkpoint_freq'"),
        ({"stop": {}}, "never ends"),
    ):
        with pytest.raises(steppe.ConfigError, match=message):
            tune.run("PPO", **{"config": config, "stop": stop, "verbose": 0, **arguments})
    for what in ("DQNN", lambda config: None):
        with pytest.raises(steppe.ConfigError, match="PPO"):
            tune.run(what, config=config, stop=stop)
    with pytest.raises(AttributeError, match="with_parameters"):
        _ = tune.with_parameters


def test_options_of_tune_without_effect_are_said(config, caplog, monkeypatch):
    monkeypatch.setattr(steppe.config.messages, "_said", set())
    tune.run(
        "PPO",
        config=config,
        stop={"training_iteration": 1},
        resources_per_trial={"cpu": 1},
        scheduler=None,
        resume=False,
        verbose=0,
    )
    assert "resources_per_trial is accepted and has no effect" in caplog.text
    assert "scheduler" not in caplog.text


def test_a_failing_env_ends_the_run_as_failed(config):
    class Broken(Rising):
        def step(self, action):
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError):
        tune.run("PPO", "broken", config={"env": Broken}, stop={"training_iteration": 1}, verbose=0)
    record = Path("runs/broken/PPO_Broken_00000/run.json").read_text()
    assert '"status": "failed"' in record
    assert "ZeroDivisionError: on purpose" in record


def test_pretty_print():
    result = {"b": 1.5, "a": {"z": {}, "y": {"x": 1}}, "config": {"lr": 1}, "none": None}
    assert pretty_print(result) == "a:\n  y:\n    x: 1\n  z: {}\nb: 1.5"
