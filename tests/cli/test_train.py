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
    code = {"policies", "policy_mapping_fn", "policies_to_train", "callbacks_class"}
    assert set(field_specs(cls)) - names == written_otherwise | code
    flags = {flag for option in field_options(cls) for flag in option.opts}
    assert {"--lambda", "--num-epochs", "--explore", "--vf-clip-param"} <= flags


def test_help_shows_docs_defaults_and_sections(steppe):
    text = " ".join(steppe("train", "--help").out.split())
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
    ],
)
def test_stop_when(stop, reason):
    assert stop.reached({"timesteps_total": 1000, "episode_reward_mean": 4.5}, 60.0) == reason


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
    record["command"] = "steppe train x.py:Walk --total-steps 128 --stop-reward 400"
    (copy / "run.json").write_text(json.dumps(record))
    done = steppe("train", "--resume", copy)
    assert done.status == 2
    assert f"{copy} is at 128 of 128 steps; more go on, such as --total-steps 256" in done.err
    assert "is at 128 of 64 steps;" in steppe("train", "--resume", copy, "--total-steps", "64").err
    done = steppe("train", "--resume", copy, "--lr", "1", "--lambda", "0.5", "--name", "x")
    assert done.status == 2
    assert "keeps its settings; leave out --lr, --lambda, --name" in done.err
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
