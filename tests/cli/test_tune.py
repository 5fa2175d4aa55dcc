"""``steppe tune``: its flags reach the search, it prints what was found, and a killed one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steppe import PPOConfig
from steppe.cli import INTERRUPTED, main
from steppe.cli.tune import line, short
from steppe.tune import Trial, choice, read_search, tune
from tests.cli.conftest import SMALL
from tests.envs_for_tests import Identity

BONUS = ("--param", "env_config.bonus=uniform(-1, 1)")
SOURCE = Path(main.__code__.co_filename).parents[2]
ACTS = ("--no-explore", *SMALL)
"""The best action of an untrained policy is always the same one: scores tell by the bonus alone."""


def scores(path):
    return [(t["settings"], t["score"], t["status"]) for t in read_search(path)["trials"]]


def test_a_search_prints_its_trials_a_table_and_what_to_do_next(steppe, walk, tmp_path):
    lr = ("--param", "lr=choice(1e-3, 1e-4)")
    done = steppe("tune", f"{walk}:Walk", *BONUS, *lr, "--trials", 3, "--steps", 64, *ACTS)
    assert done.status == 0
    lines = done.out.splitlines()
    path = Path("runs/Walk/tune-1")
    assert lines[0] == f"search in {path}, 0 trials so far"
    record = read_search(path)
    trials = record["trials"]
    assert [text.partition(":")[0] for text in lines[1:4]] == ["trial 1", "trial 2", "trial 3"]
    assert all("(finished, 64 steps)" in text for text in lines[1:4])
    assert lines[4].split() == ["trial", "env_config.bonus", "lr", "episode_reward_mean", "steps", "status"]
    ranked = sorted(trials, key=lambda trial: -trial["score"])
    assert [int(text.split()[0]) for text in lines[5:8]] == [trial["number"] for trial in ranked]
    assert [float(text.split()[3]) for text in lines[5:8]] == [round(t["score"], 2) for t in ranked]
    best = path / f"trial-{ranked[0]['number']}"
    assert lines[-1].endswith(f"steppe train --config {best / 'config.toml'}")
    assert (record["steps"], record["num_trials"], record["config"]["num_epochs"]) == (64, 3, 1)
    again = steppe("train", "--config", best / "config.toml", "--stop-iters", 1, "--quiet")
    assert again.status == 0
    run = json.loads(Path("runs/Walk/ppo-1/params.json").read_text())
    assert {"env_config.bonus": run["env_config"]["bonus"], "lr": run["lr"]} == ranked[0]["settings"]


def test_the_search_of_a_config_file_and_flags(steppe, walk):
    Path("mine.toml").write_text(f'env = "{walk}:Walk"\ngamma = 0.5\nstop = {{timesteps_total = 64}}\n')
    options = ("--mode", "min", "--pruner", "none", "--metric", "episode_reward_min", "--run-dir", "here")
    done = steppe("tune", "--config", "mine.toml", *BONUS, "--trials", 2, *options, *ACTS)
    assert done.status == 0, done.err
    record = read_search(Path("here"))
    assert [record[key] for key in ("steps", "mode", "pruner", "metric")] == [
        64,
        "min",
        "none",
        "episode_reward_min",
    ]
    assert record["config"]["gamma"] == 0.5
    least = min(record["trials"], key=lambda trial: trial["score"])
    assert f"here/trial-{least['number']}/config.toml" in done.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "say what to search: --param 'lr=loguniform(1e-5, 1e-2)'"),
        (("--param", "lr"), "'lr' is not key=value"),
        (("--param", "lr=0.1"), "says nothing to choose from"),
        (("--param", "lr=loguniforn(1e-5, 1e-2)"), "did you mean 'loguniform'?"),
        (("--param", "lrr=uniform(0, 1)"), "no setting 'lrr'. Did you mean 'lr'?"),
        (("--param", "lr=choice(1)", "--param", "lr=choice(2)"), "two --param are about one setting"),
        (("--param", "lr=choice(1)", "--env", "Other-v1"), "two envs"),
        (("--param", "lr=choice(1)", "--pruner", "best"), "'median', 'asha', 'pbt', 'none'"),
        (("--param", "lr=choice(1)", "--steps", "0"), "'0' is not a count"),
        (("--param", "lr=choice(1)", "--on", "slurm"), "'slurm' is not one of 'here', 'ray'"),
        (("--param", "lr=choice(1)", "--pruner", "pbt"), "pruner='pbt' must be one of median, asha, none"),
        (("--param", "lr=choice(1)", "--per-trial", "CPU=two"), "'two'; write CPU=2 or GPU=0.5"),
    ],
)
def test_mistakes_are_said_and_make_no_folder(steppe, walk, args, said):
    done = steppe("tune", f"{walk}:Walk", *args)
    assert done.status == 2
    assert said in done.err
    assert not Path("runs").exists()


def test_where_trials_are_and_what_they_need_reach_the_search(steppe, walk, monkeypatch):
    asked = {}

    def search(config, params, progress, **options):
        asked.update(options, ray_address=config.ray_address, params=params)
        raise KeyboardInterrupt

    monkeypatch.setattr("steppe.cli.tune.tune", search)
    needs = ("--per-trial", "CPU=4", "--per-trial", "GPU=0.5")
    place = ("--on", "ray", "--ray-address", "auto", "--pruner", "pbt")
    assert steppe("tune", f"{walk}:Walk", "--param", "lr=choice(1, 2)", *place, *needs).status != 0
    assert asked == {
        "on": "ray",
        "pruner": "pbt",
        "per_trial": {"CPU": 4.0, "GPU": 0.5},
        "ray_address": "auto",
        "params": {"lr": choice(1, 2)},
        "resume": None,
    }


WAITS = """
import os, time
from walk import Walk

class Waits(Walk):
    def step(self, action):
        results = os.environ.get("WAITS_AFTER", "none")
        while os.path.exists(results) and os.path.getsize(results):
            time.sleep(1)
        return super().step(action)
"""


def test_a_killed_search_goes_on_and_finds_what_it_would_have_found(steppe, walk, monkeypatch):
    """The second trial stands still after its first iteration, so that it is killed in its middle."""
    Path("waits.py").write_text(WAITS)
    monkeypatch.syspath_prepend(walk.parent)
    args = ["tune", "waits.py:Waits", *BONUS, "--trials", "3", "--steps", "320", *ACTS]
    path = Path("runs/Waits/tune-1")
    results = path / "trial-2" / "result.jsonl"
    env = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{walk.parent}", "WAITS_AFTER": str(results)}
    program = [sys.executable, "-c", "from steppe.cli import main; main()"]
    with subprocess.Popen([*program, *args], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"search in {path}, 0 trials so far\n"
        assert process.stdout.readline().startswith("trial 1: ")
        while not (results.exists() and results.read_text()):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (read_search(path)["status"], len(scores(path))) == ("running", 1)
    done = steppe("tune", "--resume", path)
    assert done.status == 0
    assert done.out.startswith(f"search in {path}, 1 trials so far")
    assert "importing waits.py:Waits, which this search names as its env" in done.err
    assert steppe(*args).status == 0
    assert scores(path) == scores(path.with_name("tune-2"))
    assert [trial["number"] for trial in read_search(path)["trials"]] == [1, 3, 4]
    longer = steppe("tune", "--resume", path, "--trials", 4)
    assert (longer.status, len(scores(path))) == (0, 4)
    refused = steppe("tune", "--resume", path, "--steps", 64, *BONUS)
    assert refused.status == 2
    assert "a resumed run keeps its settings; leave out --steps, --param" in refused.err


def test_ctrl_c_says_how_to_go_on(steppe, walk, monkeypatch):
    def cut(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("steppe.algorithm.Algorithm.train", cut)
    done = steppe("tune", f"{walk}:Walk", *BONUS, *ACTS)
    assert done.status == INTERRUPTED
    assert done.out.splitlines()[-1] == "stopped; go on with: steppe tune --resume runs/Walk/tune-1"
    assert read_search(Path("runs/Walk/tune-1"))["status"] == "interrupted"


def test_what_a_program_began_goes_on_in_the_program(steppe):
    config = PPOConfig(env=Identity, train_batch_size=8, num_envs_per_env_runner=1, fcnet_hiddens=[4])
    by_function = tune(config, lambda trial: {"lr": trial.suggest_float("lr", 1e-4, 1e-3)}, trials=1, steps=8)
    done = steppe("tune", "--resume", by_function.path)
    assert done.status == 2
    assert "was begun by a program that gave code as env, params: go on there, tune(..., resume=" in done.err
    by_class = tune(config, {"lr": choice(1e-3)}, trials=1, steps=8)
    assert "gave code as env" in steppe("tune", "--resume", by_class.path, "--trials", 2).err


def test_lines_have_few_digits():
    trial = Trial(3, {"lr": 0.000123456, "kind": "tanh"}, 12.5, "finished", 5000, Path())
    assert line(trial) == "trial 3: lr=0.0001235, kind=tanh: 12.50 (finished, 5,000 steps)"
    failed = Trial(4, {"lr": 1.0}, None, "failed", 32, Path(), "it fell")
    assert line(failed) == "trial 4: lr=1: none (failed, 32 steps: it fell)"
    assert short(True) == "True"
