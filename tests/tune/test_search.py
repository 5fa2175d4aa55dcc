"""A search whose scores are known by hand: what it chooses, ends early, keeps, and how it goes on."""

import json
import sys
from pathlib import Path

import pytest

import steppe
from steppe.errors import ConfigError
from steppe.tracking.record import list_runs
from steppe.tune import Search, Trial, choice, loguniform, tune, uniform
from steppe.tune.trial import score_of, with_settings


@pytest.fixture
def config(known):
    """Iterations of 32 steps, each with episodes that end."""
    return steppe.PPOConfig(
        env=f"{known}:Known",
        env_config={"value": 1, "other": {"a": 1, "b": 2}},
        train_batch_size=32,
        minibatch_size=32,
        num_epochs=1,
        num_envs_per_env_runner=2,
        fcnet_hiddens=[4],
        seed=0,
    )


def valued(*values):
    """A function as params: trial after trial the next of these."""
    return lambda trial: {"env_config.value": values[trial.number]}


def outcomes(found):
    return [(trial.settings, trial.score, trial.status, trial.steps) for trial in found.trials]


# --- one search -------------------------------------------------------------------------------------------


def test_trials_are_runs_and_the_best_score_is_the_best_trial(config, tmp_path):
    params = {"env_config.value": uniform(-1, 1), "lr": loguniform(1e-5, 1e-2)}
    seen = []
    found = tune(
        config, params, trials=3, steps=64, progress=lambda found: seen.append([*map(str, found.trials)])
    )
    assert found.path == Path("runs/Known/tune-1")
    assert [trial.number for trial in found.trials] == [1, 2, 3]
    for trial in found.trials:  # an episode has five steps
        assert trial.score == pytest.approx(5 * trial.settings["env_config.value"], rel=1e-6)
        assert trial.path == found.path / f"trial-{trial.number}"
        assert json.loads((trial.path / "params.json").read_text())["lr"] == trial.settings["lr"]
        assert steppe.load_policy(trial.path / "latest") is not None
    assert found.best is max(found.trials, key=lambda trial: trial.score)
    assert [len(trials) for trials in seen] == [0, 1, 2, 3]
    runs = list_runs("runs/Known")
    assert [(run.status, run.steps, run.seed) for run in runs] == [("finished", 64, 0)] * 3
    record = json.loads((found.path / "tune.json").read_text())
    assert record["status"] == "finished"
    assert record["params"] == {"env_config.value": "uniform(-1.0, 1.0)", "lr": "loguniform(1e-05, 0.01)"}
    assert [trial["score"] for trial in record["trials"]] == [trial.score for trial in found.trials]


def test_the_same_seed_searches_the_same_and_another_does_not(config):
    params = {"env_config.value": uniform(-1, 1)}
    first, again = (tune(config, params, trials=2, steps=32) for _ in range(2))
    assert outcomes(first) == outcomes(again)
    assert again.path.name == "tune-2"
    other = tune(config.copy(seed=1), params, trials=1, steps=32)
    assert other.trials[0].settings != first.trials[0].settings


@pytest.mark.parametrize(("mode", "kept", "ended"), [("max", 9, 0), ("min", 0, 9)])
def test_a_trial_below_the_median_of_four_ends_early(config, mode, kept, ended):
    """20ths of 160 steps; the 4th, from which trials may end, is reached with the first 32 steps."""
    found = tune(config, valued(4, 5, 6, 7, ended, kept), trials=6, steps=160, mode=mode)
    assert [trial.status for trial in found.trials] == ["finished"] * 4 + ["stopped early", "finished"]
    assert [trial.steps for trial in found.trials] == [160] * 4 + [32, 160]
    assert found.trials[4].score == 5 * ended
    assert found.best.number == 6
    assert [trial.number for trial in found.ranked()][-1] == 5
    ended_run = json.loads((found.trials[4].path / "run.json").read_text())
    assert (ended_run["status"], ended_run["stop"]) == ("interrupted", {"total_steps": 160})


def test_successive_halving_ends_the_worse_half_and_none_ends_nothing(config):
    """After 4, 8 and 16 of 20 parts the better half goes on: of two trials the first one."""
    halved = tune(config, valued(2, 1), trials=2, steps=160, pruner="asha")
    assert [trial.steps for trial in halved.trials] == [160, 32]
    kept = tune(config, valued(2, 1), trials=2, steps=160, pruner="none")
    assert [trial.steps for trial in kept.trials] == [160, 160]


def test_trials_whose_iterations_differ_are_compared_at_equal_steps(config):
    """The fifth reports after 80 of 160 steps for the first time; the others did every 32."""
    params = lambda trial: {  # noqa: E731
        "env_config.value": [4, 5, 6, 7, 0][trial.number],
        "train_batch_size": [32, 32, 32, 32, 80][trial.number],
    }
    assert [trial.steps for trial in tune(config, params, trials=5, steps=160).trials] == [160] * 4 + [80]


def test_a_trial_without_a_score_failed_and_says_why(config, known):
    found = tune(config.copy(env=f"{known}:Endless"), {"lr": choice(1e-3, 1e-4)}, trials=1, steps=32)
    (trial,) = found.trials
    assert (trial.status, trial.score, trial.steps) == ("failed", None, 32)
    assert "episode_reward_mean was never a number in 32 steps: train longer" in trial.why
    with pytest.raises(ConfigError, match="no trial has a score: episode_reward_mean was never"):
        _ = found.best


def test_settings_that_teach_nothing_fail_and_the_search_goes_on(config):
    params = lambda trial: {"extra_loss": lambda *_: [float("nan"), 0.0][trial.number]}  # noqa: E731
    found = tune(config, params, trials=2, steps=640)
    assert [trial.status for trial in found.trials] == ["failed", "finished"]
    assert "not finite" in found.trials[0].why
    assert found.best.number == 2
    assert json.loads((found.trials[0].path / "run.json").read_text())["status"] == "failed"


def test_settings_that_do_not_go_together_fail_and_the_search_goes_on(config):
    found = tune(config, lambda trial: {"gamma": [1.5, 0.5][trial.number]}, trials=2, steps=32)
    assert outcomes(found)[0] == ({"gamma": 1.5}, None, "failed", 0)
    assert "gamma=1.5 must be" in found.trials[0].why
    assert found.best.number == 2


def test_the_best_is_the_first_of_equals_and_failed_trials_come_last():
    def trial(number, score, status="finished"):
        return Trial(number, {}, score, status, 1, Path(), "why" if status == "failed" else "")

    trials = [trial(1, None, "failed"), trial(2, 9.0, "stopped early"), trial(3, 1.0), trial(4, 1.0)]
    assert [t.number for t in Search(Path(), "m", "max", {}, trials).ranked()] == [3, 4, 2, 1]
    with pytest.raises(ConfigError, match="none has ended"):
        _ = Search(Path("p"), "m", "max", {}, []).best


@pytest.mark.parametrize(("most", "cleared"), [(0, 2), (10**9, 0)])
def test_programs_of_trials_go_before_they_fill_the_process(config, monkeypatch, most, cleared):
    times = []
    monkeypatch.setattr("jax.clear_caches", lambda: times.append(1))
    monkeypatch.setattr("steppe.tune.trial._MAPS", most)
    tune(config, valued(1, 2), trials=2, steps=32)
    assert len(times) == cleared


# --- going on ---------------------------------------------------------------------------------------------


def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(config, monkeypatch):
    params = {"env_config.value": uniform(-1, 1), "lr": choice(1e-3, 1e-4)}
    whole = tune(config, params, trials=4, steps=64)
    train, calls = steppe.Algorithm.train, []

    def cut(self):
        calls.append(self)
        if len(calls) == 4:  # the second iteration of the second trial
            raise KeyboardInterrupt
        return train(self)

    with monkeypatch.context() as patch:
        patch.setattr(steppe.Algorithm, "train", cut)
        with pytest.raises(KeyboardInterrupt):
            tune(config, params, trials=4, steps=64)
    path = Path("runs/Known/tune-2")
    assert json.loads((path / "tune.json").read_text())["status"] == "interrupted"
    with (path / "study.jsonl").open("a") as file:
        file.write('{"op_code": 8, "tri')  # as a killed process leaves it
    found = tune(config, params, trials=4, steps=64, resume=path)
    assert outcomes(found) == outcomes(whole)
    assert [trial.number for trial in found.trials] == [1, 3, 4, 5]  # the second one was begun again
    assert json.loads((path / "tune.json").read_text())["status"] == "finished"


def test_a_search_can_be_made_longer_and_nothing_else(config):
    params = {"env_config.value": uniform(-1, 1)}
    first = tune(config.copy(seed=None), params, trials=1, steps=32)
    longer = tune(config.copy(seed=None), params, trials=2, steps=32, resume=first.path)
    assert longer.trials[0] == first.trials[0]
    assert len(longer.trials) == 2
    seeds = {json.loads((t.path / "run.json").read_text())["seed"] for t in longer.trials}
    assert len(seeds) == 1
    for changed, said in (
        ({"steps": 64}, "another steps"),
        ({"config": config.copy(seed=None, gamma=0.5)}, "another gamma"),
        ({"config": config.copy(seed=5)}, "another seed"),
        ({"params": {"lr": choice(1e-3)}}, "another params"),
    ):
        given = {"config": config.copy(seed=None), "params": params, "trials": 3, "steps": 32, **changed}
        with pytest.raises(ConfigError, match=said):
            tune(resume=first.path, **given)


def test_a_folder_that_holds_a_search_or_none_is_said(config):
    params = {"env_config.value": uniform(-1, 1)}
    found = tune(config.copy(run_dir="mine"), params, trials=1, steps=32)
    assert (found.path, found.best.path) == (Path("mine"), Path("mine/trial-1"))
    with pytest.raises(ConfigError, match="mine holds a search: go on with it, resume='mine'"):
        tune(config.copy(run_dir="mine"), params, trials=1, steps=32)
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty is not the folder of a search: it has no tune\.json"):
        tune(config, params, resume="empty")
    Path("empty/tune.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        tune(config, params, resume="empty")


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"params": {}}, "params are empty"),
        ({"params": {"lrr": uniform(0, 1)}}, "no setting 'lrr'. Did you mean 'lr'?"),
        ({"params": {"gamma": uniform(0, 2)}}, "gamma=2.0 must be"),
        ({"params": {"lr": (1e-5, 1e-2)}}, "is nothing to choose from: write choice"),
        ({"params": {"lr.x": choice(1)}}, "lr={'x': 1} must be"),
        ({"mode": "most"}, "mode='most' must be one of max, min"),
        ({"pruner": "mean"}, "pruner='mean' must be one of median, asha, none"),
        ({"trials": 0}, "trials=0 must be a whole number above 0"),
        ({"steps": 1e4}, "steps=10000.0 must be a whole number above 0"),
        ({"metric": "episode_rewards_mean"}, "did you mean 'episode_reward_mean'?"),
        ({"metric": "evaluation/episode_reward_mean"}, "set evaluation_interval"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(config, given, said):
    with pytest.raises(ConfigError) as error:
        tune(config, **{"params": {"lr": choice(1e-3)}, "trials": 1, "steps": 32, **given})
    assert said in str(error.value)


def test_write_run_false_is_refused(config):
    with pytest.raises(ConfigError, match="trials of a search are runs"):
        tune(config.copy(write_run=False), {"lr": choice(1e-3)})


def test_without_optuna_the_install_line_is_said(config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'steppe\[tune\]'"):
        tune(config, {"lr": choice(1e-3)})
    assert not Path("runs").exists()


def test_a_search_that_another_process_writes_is_left_alone(config):
    params = {"env_config.value": uniform(-1, 1)}
    found = tune(config, params, trials=1, steps=32)
    file = found.path / "tune.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "status": "running", "pid": 1, "pid_started": None}))
    with pytest.raises(ConfigError, match="is being written by process 1: stop it"):
        tune(config, params, trials=2, steps=32, resume=found.path)


def test_evaluations_are_scored_where_there_are_any(config):
    config = config.copy(evaluation_interval=2, evaluation_duration=1, env_config={"value": 3})
    params = {"lr": choice(1e-3)}
    found = tune(config, params, trials=1, steps=96, metric="evaluation/episode_reward_mean")
    assert found.best.score == 15
    assert score_of({"training_iteration": 1}, "evaluation/episode_reward_mean", config) != 15


# --- settings ---------------------------------------------------------------------------------------------


def test_dotted_names_change_a_part_and_leave_the_rest(config):
    settings = {"env_config.other.a": 5, "env_config.new": 6, "model.fcnet_hiddens": [8], "gamma": 0.5}
    changed = with_settings(config, settings)
    assert changed.env_config == {"value": 1, "other": {"a": 5, "b": 2}, "new": 6}
    assert (changed.fcnet_hiddens, changed.gamma) == ([8], 0.5)
    assert config.env_config == {"value": 1, "other": {"a": 1, "b": 2}}


def test_importing_the_package_loads_neither_jax_nor_optuna():
    import subprocess

    program = "import sys, steppe.tune; print({'jax', 'optuna', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- the picture ------------------------------------------------------------------------------------------


def test_the_same_search_is_the_same_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from steppe.tune.picture import draw

    def trial(number, score, status, **settings):
        return Trial(number, settings, score, status, 1, tmp_path)

    trials = [
        trial(1, 1.0, "finished", lr=1e-3, kind="tanh"),
        trial(2, 0.5, "stopped early", lr=1e-4, kind="relu"),
        trial(3, None, "failed", lr=1.0, kind="relu"),
    ]
    params = {"lr": "loguniform(1e-05, 1.0)", "kind": "choice('tanh', 'relu')"}
    found = Search(tmp_path, "reward", "max", params, trials)
    first, second = (draw(found).read_text() for _ in range(2))
    assert first == second
    assert all(label in first for label in ("trial", "reward", "lr", "kind", "tanh", "stopped early"))
