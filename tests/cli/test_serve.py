"""``steppe serve``: clients of a run that is served, its end, its resumption, and a policy that only acts."""

import contextlib
import json
import os
import signal
import socket
import threading

import pytest

from steppe.serving.certificates import make_cert
from tests.cli.conftest import SMALL
from tests.serving.clients import Asking, GoneError

STUB = """
import gymnasium
import numpy as np


class Stub:
    observation_space = gymnasium.spaces.Box(0, 5, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
"""
SPACES = {
    "observation_space": {"kind": "Box", "shape": [1], "dtype": "float32", "low": 0, "high": 5},
    "action_space": {"kind": "Discrete", "n": 2, "start": 0},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "spaces.json").write_text(json.dumps(SPACES))
    return tmp_path


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Clients:
    """Somebody who plays episodes of five steps until told to stop, and then perhaps something else."""

    def __init__(self, port, name="c", episodes=10_000, then=lambda: None):
        self._stop, self._episodes, self._then, self.actions = threading.Event(), episodes, then, []
        self._port, self._name = port, name
        self._thread = threading.Thread(target=self._play)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _play(self):
        address = f"http://127.0.0.1:{self._port}"
        with Asking(address, self._name, stop=self._stop) as client, contextlib.suppress(GoneError):
            for _ in range(self._episodes):
                self.actions += client.play([[float(t)] for t in range(5)], [1.0] * 5)[1]
            self._then()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_is_served_goes_on_and_only_acts_in_the_end(steppe, home, port):
    (home / "spaces.json").replace(home / "my.json")
    with Clients(port):
        done = steppe("serve", "--spaces", "my.json", "--port", port, "--stop-iters", 1, *SMALL)
    assert done.status == 0, done.err
    run = home / "runs" / "my.json" / "ppo-1"
    first, *lines = done.out.splitlines()
    assert first == f"-- Starting policy server at localhost:{port}"
    assert lines[-1].startswith("reached 1 iterations; run folder: runs/my.json/ppo-1")
    assert json.loads((run / "result.jsonl").read_text())["episode_reward_mean"] == 5.0
    assert (run / "experience" / "log.json").exists()
    done = steppe("train", "--resume", run)
    assert (done.status, done.err) == (
        2,
        f"Error: {run} was served, and goes on with: steppe serve --resume {run}\n",
    )
    with Clients(port, "d"):
        done = steppe("serve", "--resume", run, "--port", port, "--stop-iters", 2)
    assert done.status == 0, done.err
    steps = [json.loads(line)["timesteps_total"] for line in (run / "result.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    with Clients(port, "e", 2, then=terminate) as clients:
        done = steppe("serve", run, "--no-train", "--port", port)
    assert (done.status, done.out) == (0, f"-- Starting policy server at localhost:{port}\n")
    assert len(clients.actions) == 10
    assert clients.actions[:5] == clients.actions[5:]  # the likeliest


def test_ctrl_c_and_sigterm_end_the_wait_for_clients_and_save(steppe, home, port, monkeypatch):
    monkeypatch.setattr("steppe.envs.driven._SAY", 0.05)
    with Clients(port, episodes=1, then=terminate):
        done = steppe("serve", "stub.py:Stub", "--port", port, *SMALL)
    assert done.status == 130
    assert done.out.splitlines()[-1] == "stopped; go on with: steppe serve --resume runs/Stub/ppo-1"
    assert json.loads((home / "runs/Stub/ppo-1/run.json").read_text())["status"] == "interrupted"
    (line,) = (home / "runs/Stub/ppo-1/result.jsonl").read_text().splitlines()
    steps = json.loads(line)["timesteps_total"]  # what is not in the checkpoint is in the log
    assert steps in (0, 5)
    assert (home / "runs/Stub/ppo-1/checkpoints" / str(steps)).is_dir()
    with Clients(port, "d"):
        done = steppe("serve", "--resume", "runs/Stub/ppo-1", "--port", port, "--stop-iters", 2)
    assert done.status == 0, done.err
    episodes = (home / "runs/Stub/ppo-1/episodes.jsonl").read_text().splitlines()
    total = json.loads((home / "runs/Stub/ppo-1/run.json").read_text())["steps"]
    assert len(episodes) == total // 5


def test_files_are_made_where_they_are_not_there(steppe, home, port):
    make_cert(home / "own", ["localhost"])
    files = ("--token-file", "t.txt", "--make-tokens", "--make-cert", "--tls-cert", "own/cert.pem")
    done = steppe("serve", "nowhere", "--no-train", *files, "--tls-key", "own/key.pem", "--host", "0.0.0.0")
    assert done.status == 2
    assert "nowhere" in done.err
    assert (home / "t.txt").stat().st_mode & 0o777 == 0o600
    assert len((home / "t.txt").read_text().splitlines()) == 2
    assert "wrote t.txt" in done.out
    steppe("serve", "nowhere", "--no-train", "--make-cert")
    assert (home / "certificate" / "key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stub.py:Stub", "--host", "0.0.0.0"], "needs a token"),
        (["stub.py:Stub", "--tls-cert", "a.pem"], "give both"),
        (["stub.py:Stub", "--spaces", "spaces.json"], "two envs"),
        (["--spaces", "stub.py"], "is a file: add the class"),
        (["--spaces", "none.json"], "none.json cannot be read"),
        (["stub.py:Nothing"], "'Nothing' is not in there"),
        (["stub.py:Stub", "--num-env-runners", "2"], "write num_env_runners=0"),
        (["stub.py:Stub", "--max-episode-steps", "9"], "no env is stepped here"),
        (["stub.py:Stub", "--make-cert", "--tls-cert", "a/cert.pem", "--tls-key", "b/key.pem"], "one folder"),
        (["--no-train", "stub.py"], "stub.py"),
    ],
)
def test_what_cannot_be_served_is_said(steppe, home, arguments, said):
    done = steppe("serve", *arguments, "--port", 0)
    assert done.status == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_port_that_is_taken_is_said(steppe, home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = steppe("serve", "stub.py:Stub", "--port", taken.getsockname()[1], *SMALL)
    assert done.status == 2
    assert "cannot listen at 127.0.0.1" in done.err
