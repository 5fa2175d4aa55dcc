"""A run's folder: its name is its own, its files hold what was logged, also after a kill or a resume."""

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from steppe import checkpoint
from steppe.errors import ConfigError
from steppe.tracking import record as records
from steppe.tracking import run as run_module
from steppe.tracking.rows import read_jsonl
from steppe.tracking.run import Run, checkpoint_of, list_runs


@pytest.fixture(autouse=True)
def _close_runs(monkeypatch):
    """Open files of a run that a test leaves open would be warnings in another test."""
    runs = []
    begin = Run.__init__

    def remember(self, *args):
        begin(self, *args)
        runs.append(self)

    monkeypatch.setattr(Run, "__init__", remember)
    yield
    for run in runs:
        if run.path.exists():
            run.close()


def start(root=".", env="corridor", algo="ppo", **given):
    info = given.pop("info", {"seed": 7, "env": "envs.py:Corridor"})
    config = given.pop("config", {"lr": 0.1, "env_config": {"length": 5}, "nothing": None})
    return Run.create(root, env, algo, info=info, config=config, **given)


def result(steps, reward=1.0, **more):
    return {
        "timesteps_total": steps,
        "episode_reward_mean": reward,
        "info": {"default_policy": {"entropy": np.float32(0.5)}},
        "env_health": {},
        **more,
    }


def table(run):
    with (run.path / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def saved(run, steps, reward):
    path = checkpoint.save(run.checkpoint_dir(steps), {"learner": {"steps": steps}}, {"run_id": run.run_id})
    run.register_checkpoint(path, steps, reward)
    return path


def checkpoints(run):
    return sorted((p.name for p in (run.path / "checkpoints").iterdir()), key=int)


# --- names ------------------------------------------------------------------------------------------------


def test_folders_count_up_and_are_never_used_again():
    for n in (1, 2, 3):
        run = start()
        run.close()
        assert run.path == Path("runs/corridor") / f"ppo-{n}"
    shutil.rmtree("runs/corridor/ppo-3")
    shutil.rmtree("runs/corridor/ppo-2")
    assert start().path.name == "ppo-4"
    assert start(algo="dqn").path.name == "dqn-1"
    assert start(env="other").path == Path("runs/other/ppo-1")


def test_numbers_go_on_behind_folders_that_the_counter_does_not_know():
    Path("runs/corridor/ppo-41").mkdir(parents=True)
    Path("runs/corridor/ppo-x").mkdir()
    assert start().path.name == "ppo-42"


def test_runs_that_start_at_once_get_folders_of_their_own():
    paths, barrier = [], threading.Barrier(8)

    def begin():
        barrier.wait()
        paths.append(run_module.claim_folder(Path("runs/corridor"), "ppo", None).name)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 8
    assert set(paths) == set(os.listdir("runs/corridor")) - {".counter"}


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("ALE/Pong-v5", "ALE-Pong-v5"),
        ("path/to/file.py:Corridor", "Corridor"),
        ("..", "env"),
        ("a b/ü", "a-b"),
    ],
)
def test_env_names_become_folder_names(env, folder):
    assert start(env=env).path.parent == Path("runs") / folder


def test_a_folder_of_ones_own():
    assert start(directory="deep/er").path == Path("deep/er")
    with pytest.raises(ConfigError, match="not empty"):
        start(directory="deep")


# --- what is written ----------------------------------------------------------------------------------------


def test_run_json_and_settings():
    run = start(info={"seed": 7, "env": "envs.py:Corridor", "command": "steppe train"})
    record = json.loads((run.path / "run.json").read_text())
    assert record["run_id"] == run.run_id
    assert len(run.run_id) == 32
    assert (record["status"], record["seed"], record["command"]) == ("running", 7, "steppe train")
    assert (record["env"], record["algo"]) == ("envs.py:Corridor", "ppo")
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["versions"].keys() == {"python", "steppe", "jax", "numpy", "gymnasium"}
    assert record["pid"] == os.getpid()
    assert record["finished"] is None
    assert run.record == record
    assert tomllib.loads((run.path / "config.toml").read_text()) == {"lr": 0.1, "env_config": {"length": 5}}
    assert json.loads((run.path / "params.json").read_text()) == {
        "lr": 0.1,
        "env_config": {"length": 5},
        "nothing": None,
    }


def test_the_command_line_is_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["steppe", "train", "a b"])
    assert start(info={}).record["command"] == "steppe train 'a b'"


def test_a_setting_that_cannot_be_written_leaves_no_folder():
    with pytest.raises(ConfigError, match=r"env_config\.x is of type object"):
        start(config={"env_config": {"x": object()}})
    assert not Path("runs").exists()


def test_results_go_to_every_file():
    run = start()
    run.log_result(result(100, float("nan")))
    run.log_result(result(200, 5.0, late=1))
    run.log_result(result(300, 3.0))
    assert [(r["timesteps_total"], r["episode_reward_mean"], r["late"]) for r in table(run)] == [
        ("100", "nan", ""),
        ("200", "5.0", "1"),
        ("300", "3.0", ""),
    ]
    assert table(run)[0]["info/default_policy/entropy"] == "0.5"
    rows = list(read_jsonl(run.path / "result.jsonl"))
    assert [r["episode_reward_mean"] for r in rows] == [None, 5.0, 3.0]
    assert rows[0]["info"] == {"default_policy": {"entropy": 0.5}}
    assert (run.record["steps"], run.record["best_reward"]) == (300, 5.0)
    assert json.loads((run.path / "run.json").read_text()) == run.record
    (events,) = run.path.glob("events.out.tfevents.*")
    assert b"info/default_policy/entropy" in events.read_bytes()


def test_episodes_are_lines():
    run = start()
    run.log_episodes([{"reward": np.float64(1.5), "length": 3, "env": 0, "episode": 0, "steps": 12}])
    run.log_episodes([])
    assert (
        run.path / "episodes.jsonl"
    ).read_text() == '{"reward":1.5,"length":3,"env":0,"episode":0,"steps":12}\n'


def test_the_log_is_written_until_the_run_closes(caplog):
    run = start()
    logging.getLogger("steppe.envs").warning("first")
    run.close()
    logging.getLogger("steppe").warning("second")
    text = (run.path / "log.txt").read_text()
    assert text.endswith(" WARNING first\n")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_how_it_ended(status):
    run = start()
    run.finish(status, "because" if status == "failed" else None)
    run.close()
    run.close()
    record = json.loads((run.path / "run.json").read_text())
    assert (record["status"], record["error"]) == (status, "because" if status == "failed" else None)
    assert record["finished"] >= record["started"]
    with pytest.raises(ValueError, match="'running'"):
        run.finish("running")


def test_closed_without_an_end_is_interrupted():
    run = start()
    run.close()
    assert run.record["status"] == "interrupted"


def test_logging_a_result_takes_less_than_five_milliseconds():
    run = start()
    stats = {f"policy_{i}": {f"stat_{j}": 0.1 * j for j in range(12)} for i in range(5)}
    took = []
    for i in range(40):
        began = time.perf_counter()
        run.log_result({**result(i), "info": stats})
        took.append(time.perf_counter() - began)
    assert sorted(took)[10] < 0.005  # what it takes when the machine is not busy elsewhere


# --- checkpoints --------------------------------------------------------------------------------------------


def test_the_last_three_and_the_best_are_kept():
    run = start()
    assert run.latest() is run.best() is None
    for steps, reward in [(10, float("nan")), (20, 9.0), (30, 9.0), (40, 1.0), (50, 2.0), (60, None)]:
        path = saved(run, steps, reward)
        assert run.latest() == path
    assert run.best() == run.checkpoint_dir(20)
    assert checkpoints(run) == ["20", "40", "50", "60"]
    assert os.readlink(run.path / "latest") == os.path.join("checkpoints", "60")
    assert os.readlink(run.path / "best") == os.path.join("checkpoints", "20")
    assert checkpoint.load(run.path / "best")[0] == {"learner": {"steps": 20}}
    saved(run, 70, 10.0)
    assert checkpoints(run) == ["50", "60", "70"]
    assert (
        (run.path / "best").resolve() == (run.path / "latest").resolve() == run.checkpoint_dir(70).resolve()
    )


def test_another_number_is_kept_when_asked():
    run = start(keep=1)
    for steps in (10, 20, 30):
        saved(run, steps, -steps)
    assert checkpoints(run) == ["10", "30"]


def test_a_checkpoint_saved_again_counts_once_with_its_new_reward():
    run = start()
    saved(run, 10, 5.0)
    saved(run, 20, 1.0)
    saved(run, 10, 0.0)
    assert run.best() == run.checkpoint_dir(20)
    assert run.latest() == run.checkpoint_dir(20)


def test_without_a_reward_there_is_no_best():
    run = start()
    saved(run, 10, float("nan"))
    assert run.best() is None
    assert not (run.path / "best").exists()


def test_a_checkpoint_saved_elsewhere_is_not_counted():
    run = start()
    with pytest.raises(ValueError, match="belongs into"):
        run.register_checkpoint("elsewhere", 10, 1.0)


def test_where_links_cannot_be_a_text_file_stands_for_them(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run = start()
    saved(run, 10, 1.0)
    saved(run, 20, 2.0)
    assert (run.path / "latest").read_text() == "checkpoints/20\n"
    assert run.latest() == run.checkpoint_dir(20)


def test_a_copied_folder_is_read_from_there_alone():
    run = start()
    saved(run, 10, 1.0)
    run.close()
    shutil.copytree(run.path, "copy", symlinks=True)
    shutil.rmtree(run.path)
    assert checkpoint_of("copy", "best") == Path("copy/checkpoints/10")
    assert checkpoint.load("copy/latest")[0] == {"learner": {"steps": 10}}
    again = Run.open("copy")
    assert again.run_id == run.run_id
    saved(again, 10, 2.0)  # the same run: it may replace its own


# --- going on -----------------------------------------------------------------------------------------------


def test_a_resumed_run_repeats_nothing():
    run = start()
    for steps in (100, 200, 300, 400):
        run.log_result(result(steps, float(steps)))
        run.log_episodes([{"steps": steps - 50}, {"steps": steps}])
        saved(run, steps, steps)
    run.close()
    again = Run.open(run.path)
    assert again.record["status"] == "running"
    assert again.record["started"] == run.record["started"]
    again.truncate_to(200)
    assert (again.record["steps"], again.record["best_reward"]) == (200, 200.0)
    assert again.latest() == again.best() == again.checkpoint_dir(200)
    assert os.readlink(again.path / "latest") == os.path.join("checkpoints", "200")
    again.log_result(result(300, 1.0))
    again.log_episodes([{"steps": 250}])
    assert [r["timesteps_total"] for r in table(again)] == ["100", "200", "300"]
    assert [r["episode_reward_mean"] for r in read_jsonl(again.path / "result.jsonl")] == [100.0, 200.0, 1.0]
    assert [r["steps"] for r in read_jsonl(again.path / "episodes.jsonl")] == [50, 100, 150, 200, 250]
    assert again.record["best_reward"] == 200.0
    # A later checkpoint is replaced when the run gets there again, and does not push out new ones.
    saved(again, 300, 1.0)
    assert again.latest() == again.checkpoint_dir(300)
    newest = max(again.path.glob("events.out.tfevents.*"))
    assert Event(step=201).SerializeToString() in newest.read_bytes()


def test_truncating_to_the_beginning_leaves_files_that_can_be_written():
    run = start()
    run.log_result(result(100))
    saved(run, 100, 1.0)
    run.truncate_to(0)
    assert run.latest() is None
    assert not (run.path / "latest").is_symlink()
    assert run.record["best_reward"] is None
    run.log_result(result(50, 2.0))
    assert [r["timesteps_total"] for r in table(run)] == ["50"]


def test_opening_sweeps_up_what_a_killed_save_left():
    run = start()
    leftover = run.path / "checkpoints" / ".10.new-abc"
    leftover.mkdir(parents=True)
    run.close()
    Run.open(run.path)
    assert not leftover.exists()


def test_no_run_is_refused():
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it has no run\.json"):
        Run.open("nowhere")
    for text in ("{", "[]", "{}"):
        Path("run.json").write_text(text)
        with pytest.raises(ConfigError, match=r"run\.json is damaged"):
            Run.open(".")


CHILD = """
import sys, time
from steppe.tracking.run import Run
run = Run.create(".", "corridor", "ppo", info={}, config={})
for i in range(1, 4):
    run.log_result({"timesteps_total": i, "episode_reward_mean": float(i)})
    run.log_episodes([{"steps": i}])
print(run.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def child():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        process.path = Path(process.stdout.readline().strip())
        yield process
        process.kill()


def test_a_killed_run_is_readable_listed_as_interrupted_and_can_go_on(child):
    assert [s.status for s in list_runs(".")] == ["running"]
    with pytest.raises(ConfigError, match=f"is being written by process {child.pid}"):
        Run.open(child.path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (summary,) = list_runs(".")
    assert (summary.status, summary.steps, summary.best_reward, summary.name) == (
        "interrupted",
        3,
        3.0,
        "ppo-1",
    )
    assert json.loads((child.path / "run.json").read_text())["status"] == "running"
    run = Run.open(child.path)
    assert [r["timesteps_total"] for r in table(run)] == ["1", "2", "3"]
    assert [r["steps"] for r in read_jsonl(run.path / "episodes.jsonl")] == [1, 2, 3]


# --- lists --------------------------------------------------------------------------------------------------


def test_list_of_runs():
    first = start(env="a", algo="ppo", info={"seed": 3})
    first.log_result(result(100, 2.5))
    first.finish("failed", "ValueError: x")
    first.close()
    start(env="b", algo="dqn")
    Path("runs/b/broken").mkdir()
    Path("runs/b/broken/run.json").write_text("{")
    for root in (".", "runs"):
        by_name = {s.name: s for s in list_runs(root)}
        assert by_name.keys() == {"ppo-1", "dqn-1", "broken"}
        ppo = by_name["ppo-1"]
        assert (ppo.env, ppo.algo, ppo.status, ppo.steps) == ("a", "ppo", "failed", 100)
        assert (ppo.best_reward, ppo.seed, ppo.error) == (2.5, 3, "ValueError: x")
        assert by_name["dqn-1"].status == "running"
        assert by_name["broken"].status == "unreadable"
        assert "damaged" in by_name["broken"].error
    assert list_runs("nowhere") == []


def test_a_process_id_used_again_is_another_process():
    mine = records.process_start(os.getpid())
    assert records.is_alive({"pid": os.getpid(), "pid_started": mine})
    assert records.is_alive({"pid": os.getpid(), "pid_started": None})
    if mine is not None:
        assert not records.is_alive({"pid": os.getpid(), "pid_started": mine - 1})
    assert not records.is_alive({"pid": None})
    assert not records.is_alive({"pid": 2**22 + 1, "pid_started": None})  # above Linux's highest


def test_a_program_that_changes_its_working_folder_goes_on_writing_where_it_began(tmp_path, monkeypatch):
    run = Run.create(tmp_path.relative_to(tmp_path), "env", "ppo", info={}, config={})
    assert run.path == Path("runs/env/ppo-1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run.path == tmp_path / "runs/env/ppo-1"
    run.finish("finished")
    run.close()
    assert json.loads((tmp_path / "runs/env/ppo-1/run.json").read_text())["status"] == "finished"
    assert list(elsewhere.iterdir()) == []
