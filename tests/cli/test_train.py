"""``steppe train``: flags reach the config, it stops when told, and a run goes on where it was."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import steppe.cli
from steppe.algorithms import config_class
from steppe.cli.flags import ConfigCommand, field_options
from steppe.cli.saved import env_of_run
from steppe.cli.train import Interrupts, StopWhen, loop
from steppe.config import field_specs
from tests.cli.conftest import SMALL


def rows(run):
    return [json.loads(line) for line in (run / "result.jsonl").read_text().splitlines()]


def steps(run):
    return [row["timesteps_total"] for row in rows(run)]


def status(run):
    return json.loads((run / "run.json").read_text())["status"]


@pytest.fixture
def copy(trained, tmp_path):
    """The trained run, free to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))


# --- flags ------------------------------------------------------------------------------------------------


def test_every_field_that_text_can_set_is_a_flag():
    cls = config_class("PPO")
    names = {option.name for option in field_options(cls)}
    written_otherwise = {"env", "env_config", "observation_space", "action_space", "evaluation_config"}
    written_otherwise |= {"share", "custom_resources_per_env_runner"}
    code = {"policies", "policy_mapping_fn", "policies_to_train", "callbacks_class", "input"}
    code |= {"observation_fn", "postprocess_trajectory", "extra_loss", "models"}
    assert set(field_specs(cls)) - names == written_otherwise | code
    flags = {flag for option in field_options(cls) for flag in option.opts}
    assert {"--lambda", "--num-epochs", "--explore", "--vf-clip-param"} <= flags


def test_help_shows_docs_defaults_and_sections(steppe):
    text = " ".join(steppe("train", "--help").out.split())
    assert text.index("Options:") < text.index("--config FILE") < text.index("--set KEY=VALUE")
    assert text.index("--set KEY=VALUE") < text.index("Environment:")
    assert "--gamma X Discount per step. [default: 0.99]" in text
    assert "[default: 10]" in text[text.index("--checkpoint-freq") :]  # the config's is 0
    places = [
        text.index(f"{title}:")
        for title in ("Options", "Environment", "Env runners", "Training", "Debugging")
    ]
    assert places == sorted(places)


def test_flags_reach_the_config(steppe, walk, monkeypatch):
    seen = []
    monkeypatch.setattr(steppe_config(), "build", lambda self: seen.append(self) or sys.exit(0))
    done = steppe(
        *(
            "train",
            "--env",
            f"{walk}:Walk",
            "-e",
            "bonus=2",
            "-e",
            "map=[1, 2]",
            "--lr",
            "[[0, 1e-3], [2M, 0]]",
        ),
        *("--train-batch-size", "1e3", "--fcnet-hiddens", "8,8", "--no-explore", "--lambda", "0.5"),
        *("--grad-clip", "none", "--seed", "7"),
    )
    assert done.status == 2  # 2M inside of a list is text
    assert "[[step, number], ...]" in done.err
    steppe(
        *(
            "train",
            "--env",
            f"{walk}:Walk",
            "-e",
            "bonus=2",
            "-e",
            "map=[1, 2]",
            "--lr",
            "[[0, 1e-3], [2e6, 0]]",
        ),
        *("--train-batch-size", "1e3", "--fcnet-hiddens", "8,8", "--no-explore", "--lambda", "0.5"),
        *("--grad-clip", "none", "--seed", "7", "--name", "mine"),
    )
    assert seen[0].changes() == {
        "env": f"{walk}:Walk",
        "env_config": {"bonus": 2, "map": [1, 2]},
        "lr": [[0.0, 1e-3], [2e6, 0.0]],
        "train_batch_size": 1000,
        "fcnet_hiddens": [8, 8],
        "explore": False,
        "lambda_": 0.5,
        "grad_clip": None,
        "seed": 7,
        "checkpoint_freq": 10,
        "run_dir": str(Path("runs/Walk/mine")),
    }


def steppe_config():
    return config_class("PPO")


# --- a file and --set -------------------------------------------------------------------------------------


@pytest.fixture
def built(steppe, monkeypatch):
    """Call ``steppe train``; returns what would be trained, as the settings that are not the default."""

    def call(*args):
        seen = []
        monkeypatch.setattr(steppe_config(), "build", lambda self: seen.append(self) or sys.exit(0))
        done = steppe("train", *args)
        assert len(seen) == 1, done.err
        return seen[0].changes()

    return call


YAML = """
env: CartPole-v1
env_config: {size: 3, colour: red}
num_workers: 0
num_sgd_iter: 3
lr: 1e-3
train_batch_size: 2e3
gamma: 0.9
model: {fcnet_hiddens: [8], fcnet_activation: relu}
"""


def test_a_flag_wins_over_set_and_set_over_the_file(built, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(YAML)
    in_file = {
        "env": "CartPole-v1",
        "env_config": {"size": 3, "colour": "red"},
        "num_epochs": 3,
        "lr": 0.001,
        "train_batch_size": 2000,
        "gamma": 0.9,
        "fcnet_hiddens": [8],
        "fcnet_activation": "relu",
        "checkpoint_freq": 10,
    }
    assert built("--config", path) == in_file
    sets = ("num_epochs=4", "env_config.size=4", "model.fcnet_hiddens=[4]", "lr=[[0, 1e-2], [2e6, 0]]")
    sets = [word for text in (*sets, "lambda=0.5", "train_batch_size=1k") for word in ("--set", text)]
    by_set = in_file | {
        "num_epochs": 4,
        "env_config": {"size": 4, "colour": "red"},
        "fcnet_hiddens": [4],
        "lr": [[0.0, 0.01], [2e6, 0.0]],
        "lambda_": 0.5,
        "train_batch_size": 1000,
    }
    assert built(f"--config={path}", *sets) == by_set
    flags = ("Other-v0", "--num-epochs", "5", "-e", "size=5", "--gamma", "0.8", "--name", "x")
    assert built(*flags, *sets, "--config", path) == by_set | {
        "env": "Other-v0",
        "num_epochs": 5,
        "env_config": {"size": 5, "colour": "red"},
        "gamma": 0.8,
        "run_dir": str(Path("runs/Other-v0/x")),
    }


def test_set_alone_reads_values_as_the_field_does(built):
    pairs = ("env=E-v0", "run_dir=3", "num_epochs=2", "num_epochs=1.2e1", "explore=False", "grad_clip=none")
    pairs += ("fcnet_hiddens=8,8", "env_config={a = 1}", "env_config.b.c=1e-3", "env_config.lr=on")
    pairs += ("evaluation_config.explore=true", "checkpoint_freq=2", "sgd_minibatch_size=2k")
    assert built(*(word for pair in pairs for word in ("--set", pair))) == {
        "env": "E-v0",
        "run_dir": "3",
        "num_epochs": 12,
        "explore": False,
        "grad_clip": None,
        "fcnet_hiddens": [8, 8],
        "env_config": {"a": 1, "b": {"c": 0.001}, "lr": "on"},
        "evaluation_config": {"explore": True},
        "checkpoint_freq": 2,
        "minibatch_size": 2000,
    }


def test_mistakes_in_settings_name_what_was_meant(steppe, tmp_path):
    def said(*args, file=""):
        path = tmp_path / "my.yaml"
        path.write_text(file)
        done = steppe("train", "CartPole-v1", "--config", path, *args)
        assert (done.status, done.out, "Traceback" in done.err) == (2, "", False)
        return done.err.replace(f"{tmp_path}/", "")

    assert "Error: my.yaml: PPOConfig has no setting 'gama'. Did you mean 'gamma'?" in said(file="gama: 1")
    nested = said(file="model: {fcnet_hidens: [8]}")
    assert nested.startswith("Error: my.yaml: ")
    assert "fcnet_hiddens" in nested
    assert said(file="lr: fast").startswith("Error: my.yaml: PPOConfig: lr='fast' must be a number")
    assert said(file="lr: 1\nx: [").startswith("Error: my.yaml:2: ")
    assert "disagree; keep one" in said(file="num_sgd_iter: 1\nnum_epochs: 2")
    assert "Did you mean 'gamma'?" in said("--set", "gama=1")
    assert "fcnet_hiddens" in said("--set", "model.fcnet_hidens=8")
    assert "'lr' is not key=value" in said("--set", "lr")
    assert "has a dot with no name beside it" in said("--set", "model..lr=1")
    assert "lr={'x': 1} must be a number" in said("--set", "lr.x=1")
    for pair in (("model=3", "model.fcnet_hiddens=8"), ("model.fcnet_hiddens=8", "model=3")):
        both = said("--set", pair[0], "--set", pair[1])
        assert "--set model=3 and --set model.fcnet_hiddens=... contradict each other" in both
    assert "env_config.b=1 and --set env_config.b.c=..." in said(
        "--set", "env_config.b=1", "--set", "env_config.b.c=2"
    )
    shared = (": evaluation_envs='shared' evaluates", "--set", "evaluation_envs=shared")
    old = f"evaluation_num_workers=2 (evaluation_num_env_runners){shared[0]}"
    assert old in said(*shared[1:], file="evaluation_num_workers: 2")
    assert old in said(*shared[1:], "--set", "evaluation_num_workers=2")
    new = f"PPOConfig: evaluation_num_env_runners=2{shared[0]}"
    assert new in said(*shared[1:], "--evaluation-num-env-runners", "2")
    assert "no algorithm 'PPPO'" in said(file="algo: PPPO")
    missing = steppe("train", "CartPole-v1", "--config", tmp_path / "mi.yaml")
    assert (missing.status, "no such file. Did you mean" in missing.err) == (2, True)


def test_a_run_is_trained_again_from_its_own_settings(steppe, trained, walk, tmp_path):
    done = steppe("train", "--config", trained / "config.toml", "--stop-iters", "1", "--quiet")
    assert done.status == 0, done.err
    run = tmp_path / "runs" / "Walk" / "ppo-1"
    was, now = (tomllib.loads((folder / "config.toml").read_text()) for folder in (trained, run))
    assert was.pop("run_dir") == str(trained)
    assert was == now
    first = [row["episode_reward_mean"] for row in rows(trained)]
    assert [row["episode_reward_mean"] for row in rows(run)] == first[:1]
    assert "walk.py, which this run names as its env" in done.err


def test_the_env_of_a_run_that_named_a_class_is_asked_for(steppe, built, copy, walk):
    text = (copy / "config.toml").read_text().replace(f"{walk}:Walk", "Walk")
    (copy / "config.toml").write_text(text)
    assert "--env file.py:Class" in steppe("train", "--config", copy / "config.toml").err
    assert built("CartPole-v1", "--config", copy / "config.toml")["env"] == "CartPole-v1"
    assert built("--set", "env=Pendulum-v1", "--config", copy / "config.toml")["env"] == "Pendulum-v1"


def test_a_tuned_example_trains_until_it_says_and_resumes_without_its_file(steppe, walk, tmp_path):
    path = tmp_path / "walk.yaml"
    path.write_text(
        f"walk:\n  run: PPO\n  env: {walk}:Walk\n  stop: {{training_iteration: 2, timesteps_total: 1e9}}\n"
        "  config: {train_batch_size: 64, sgd_minibatch_size: 64, num_sgd_iter: 1, num_envs_per_worker: 2,\n"
        "    model: {fcnet_hiddens: [4]}, seed: 0}\n"
    )
    done = steppe("train", "--config", path, "--name", "tuned", "--quiet")
    assert done.out == "reached 2 iterations; run folder: runs/Walk/tuned\n", done.err
    run = tmp_path / "runs" / "Walk" / "tuned"
    assert steps(run) == [64, 128]
    path.unlink()
    refused = steppe("train", "--resume", run)
    assert refused.status == 2
    assert f"{run} is at 2 of 2 iterations; more go on, such as --stop-iters 4" in refused.err
    assert steppe("train", "--resume", run, "--stop-iters", "3", "--quiet").status == 0
    assert steps(run) == [64, 128, 192]
    stop = json.loads((run / "run.json").read_text())["stop"]
    assert stop == {"total_steps": 10**9, "stop_iters": 3, "stop_reward": None, "stop_time": None}


def test_the_algorithm_is_the_flags_or_the_files(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "steppe.cli.flags.config_class", lambda name: asked.append(name) or config_class("PPO")
    )
    (tmp_path / "a.toml").write_text('algo = "A"')
    for args in (["--config", "a.toml"], ["--algo", "B", "--config=a.toml"], ["--config", "none.toml"]):
        options = [click.Option(["--algo"]), click.Option(["--config"])]
        ConfigCommand("x", params=options, callback=lambda **_: None).make_context("x", args)
    assert asked == ["A", "B", "PPO"]


def test_contradictions(steppe):
    assert "two envs: a and --env b" in steppe("train", "a", "--env", "b").err
    assert "--name and --run-dir both name" in steppe("train", "a", "--name", "x", "--run-dir", "y").err


@pytest.mark.parametrize(
    ("args", "algo"), [(["--algo", "A"], "A"), (["--algo=B"], "B"), ([], "PPO"), (["--algo"], "PPO")]
)
def test_the_flags_are_those_of_the_algorithm(args, algo, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "steppe.cli.flags.config_class", lambda name: asked.append(name) or config_class("PPO")
    )
    command = ConfigCommand("x", params=[click.Option(["--algo"])], callback=lambda **_: None)
    with contextlib.suppress(click.UsageError):
        command.make_context("x", list(args))
    assert asked == [algo]
    assert "lambda_" in [param.name for param in command.params]


# --- when it stops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        (StopWhen(), ""),
        (StopWhen(total_steps=1001), ""),
        (StopWhen(total_steps=1000), "reached 1,000 steps"),
        (StopWhen(stop_reward=4.5), "reached a mean reward of 4.50"),
        (StopWhen(stop_reward=4.6), ""),
        (StopWhen(stop_time=60), "trained for 60 s"),
        (StopWhen(stop_time=61), ""),
        (StopWhen(stop_iters=10), "reached 10 iterations"),
        (StopWhen(stop_iters=11), ""),
    ],
)
def test_stop_when(stop, reason):
    result = {"timesteps_total": 1000, "episode_reward_mean": 4.5, "training_iteration": 10}
    assert stop.reached(result, 60.0) == reason


def test_no_episode_yet_reaches_no_reward():
    result = {"timesteps_total": 1000, "episode_reward_mean": float("nan")}
    assert StopWhen(stop_reward=-1e9).reached(result, 0.0) == ""


class Training:
    """Stands in for an Algorithm; Ctrl-C comes in the iterations named."""

    def __init__(self, *interrupted):
        self.iterations, self._interrupted = 0, interrupted

    def train(self):
        self.iterations += 1
        for _ in range(self._interrupted.count(self.iterations)):
            os.kill(os.getpid(), signal.SIGINT)
        return {"timesteps_total": 100 * self.iterations, "episode_reward_mean": float(self.iterations)}


def watched():
    shown, said = [], []
    return SimpleNamespace(update=shown.append, message=said.append, shown=shown, said=said)


def test_the_loop_stops_and_shows_every_result():
    algo, display = Training(), watched()
    with Interrupts(display) as interrupts:
        assert loop(algo, StopWhen(total_steps=250), display, interrupts) == "reached 300 steps"
    assert [result["timesteps_total"] for result in display.shown] == [100, 200, 300]


def test_the_first_ctrl_c_ends_the_iteration_and_the_handler_is_given_back():
    algo, display = Training(2), watched()
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(display) as interrupts:
        assert loop(algo, StopWhen(), display, interrupts) == ""
    assert algo.iterations == 2
    assert display.said == ["stopping after this iteration; Ctrl-C again stops at once"]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_stops_at_once():
    algo, display = Training(2, 2), watched()
    with Interrupts(display) as interrupts, pytest.raises(KeyboardInterrupt):
        loop(algo, StopWhen(), display, interrupts)
    assert len(display.shown) == 1


# --- real runs --------------------------------------------------------------------------------------------


def test_a_run_writes_its_folder_once(trained, walk):
    assert steps(trained) == [64, 128]
    assert status(trained) == "finished"
    assert (trained / "latest").resolve() == (trained / "checkpoints" / "128").resolve()
    assert tomllib.loads((trained / "config.toml").read_text())["env"] == f"{walk}:Walk"


def test_resume_goes_on_in_the_same_folder(steppe, copy):
    done = steppe("train", "--resume", copy, "--total-steps", "256")
    assert done.status == 0, done.err
    assert steps(copy) == [64, 128, 192, 256]
    assert [row["training_iteration"] for row in rows(copy)] == [1, 2, 3, 4]
    assert done.out.splitlines()[-1] == f"reached 256 steps; run folder: {copy}"
    assert "walk.py, which this run names as its env" in done.err
    assert (copy / "latest").resolve().name == "256"


def test_resume_takes_the_env_from_the_flag(steppe, copy, walk):
    (copy / "config.toml").write_text("env = 'Walk'")  # as a run of a class has it
    assert steppe("train", "--resume", copy, "--total-steps", "192").status == 2
    done = steppe("train", f"{walk}:Walk", "--resume", copy, "--total-steps", "192")
    assert (done.status, steps(copy)) == (0, [64, 128, 192]), done.err


def test_resume_takes_back_what_came_after_the_checkpoint(steppe, copy):
    before = rows(copy)
    shutil.rmtree(copy / "checkpoints" / "128")
    done = steppe("train", "--resume", copy, "--total-steps", "128")
    assert done.status == 0, done.err
    assert steps(copy) == [64, 128]
    assert [r["episode_reward_mean"] for r in rows(copy)] == [r["episode_reward_mean"] for r in before]
    shutil.rmtree(copy / "checkpoints")
    refused = steppe("train", "--resume", copy).err
    assert "this run has no checkpoint yet; it was started with: " in refused


def test_resume_remembers_when_to_stop_and_keeps_its_settings(steppe, copy):
    record = json.loads((copy / "run.json").read_text())
    assert record["stop"].pop("total_steps") == 128  # of the command that trained it
    record["stop"] |= {"total_steps": 100, "stop_reward": 400}
    (copy / "run.json").write_text(json.dumps(record))
    done = steppe("train", "--resume", copy)
    assert done.status == 2
    assert f"{copy} is at 128 of 100 steps; more go on, such as --total-steps 256" in done.err
    assert "is at 128 of 64 steps;" in steppe("train", "--resume", copy, "--total-steps", "64").err
    done = steppe("train", "--resume", copy, "--lr", "1", "--lambda", "0.5", "--name", "x")
    assert done.status == 2
    assert "keeps its settings; leave out --lr, --lambda, --name" in done.err
    done = steppe("train", "--resume", copy, "--config", "missing.toml", "--set", "lr=1")
    assert done.status == 2
    assert "keeps its settings; leave out --set, --config" in done.err
    assert "it has no run.json" in steppe("train", "--resume", bare_checkpoint(copy)).err
    assert "no such run or checkpoint" in steppe("train", "--resume", copy / "nothing").err


def bare_checkpoint(run):
    return shutil.copytree(run / "checkpoints" / "128", run.parent / "bare" / "128")


def test_the_env_file_is_found_from_elsewhere(tmp_path, capsys, walk):
    run = tmp_path / "work" / "runs" / "Walk" / "ppo-1"
    run.mkdir(parents=True)
    shutil.copy(walk, tmp_path / "work" / "walk.py")
    (run / "config.toml").write_text("env = 'walk.py:Walk'")
    assert env_of_run(run) == f"{tmp_path / 'work' / 'walk.py'}:Walk"
    (run / "config.toml").write_text("env = 'CartPole-v1'")
    assert env_of_run(run) == "CartPole-v1"
    assert capsys.readouterr().err.count("importing") == 1


def test_ctrl_c_saves_and_says_how_to_go_on(walk, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(steppe.cli.__file__).parents[2])}
    program = [sys.executable, "-c", "from steppe.cli import main; main()"]
    args = ["train", f"{walk}:Walk", "--name", "stopped", *SMALL]
    with subprocess.Popen(
        [*program, *args], env=env, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout.readline().startswith("iteration=1 ")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    run = tmp_path / "runs" / "Walk" / "stopped"
    assert process.returncode == 130
    assert out.splitlines()[-1] == "stopped; go on with: steppe train --resume runs/Walk/stopped"
    assert status(run) == "interrupted"
    assert json.loads((run / "run.json").read_text())["error"] is None
    assert (run / "latest").resolve().name == str(steps(run)[-1])


def test_a_run_stopped_at_once_promises_no_resume(steppe, walk, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("steppe.cli.train.loop", stopped)
    done = steppe("train", f"{walk}:Walk", *SMALL)
    assert (done.status, done.out) == (130, "stopped; nothing was saved\n")
    monkeypatch.setattr("steppe.cli.train.loop", saves_and_stops)
    done = steppe("train", f"{walk}:Walk", *SMALL)
    assert (done.status, done.out) == (
        130,
        "stopped; go on with: steppe train --resume runs/Walk/ppo-2\n",
    )


def saves_and_stops(algo, *_):
    algo.train()
    algo.save_to_run()
    raise KeyboardInterrupt


def test_a_module_beside_the_working_folder_is_an_env(steppe, walk, tmp_path):
    (tmp_path / "walk_of_this_test.py").write_text(walk.read_text())
    done = steppe("baseline", "walk_of_this_test:Walk", "--episodes", "1")
    assert done.out.endswith("length 5.0\n"), done.err


def test_a_run_folder_that_cannot_be_made_is_an_instruction(steppe, walk, tmp_path):
    (tmp_path / "file").write_text("")
    done = steppe("train", f"{walk}:Walk", *SMALL, "--run-dir", tmp_path / "file" / "run")
    assert done.status == 2
    assert "the run's folder cannot be made" in done.err
    assert "--no-write-run" in done.err
