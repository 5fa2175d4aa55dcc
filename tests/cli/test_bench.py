"""``steppe bench scale``: its flags reach the study, which is written, printed and drawn."""

import json
import sys
from pathlib import Path

import pytest

from steppe.cli import bench
from tests.cli.conftest import SMALL


@pytest.fixture
def quick(monkeypatch):
    """Short measures, and no Ray."""
    monkeypatch.setattr(bench, "QUICK_S", 0.01)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("os.getloadavg", lambda: (0.01, 9.0, 9.0))


def test_a_study_is_written_printed_and_drawn(steppe, walk, quick):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'steppe[plot]'")
    args = ("--quick", "--out", "found.json", "-e", "bonus=1", "--runners", 8, "--gigabits", 25, *SMALL)
    done = steppe("bench", "scale", f"{walk}:Walk", *args)
    assert done.status == 0, done.err
    record = json.loads(Path("found.json").read_text())
    assert (record["env"], record["algo"], record["num_envs_per_env_runner"]) == ("Walk", "PPO", 2)
    assert (record["hosts"]["gigabits"], record["asynchronous"]) == (25, False)
    assert record["command"].split()[0] == "steppe"
    assert {"cpu", "cores", "system"} == set(record["machine"])
    lines = done.out.splitlines()
    assert lines[0].startswith("us an env step: step ")
    assert lines[1].split() == ["runners", "run", "measured", "predicted", "error"]
    run = record["runs"][0]
    rates = [f"{run[key]:,.0f}" for key in ("measured", "predicted")]
    assert lines[2].split() == ["0", "sampling", *rates, f"{run['error']:+.0%}"]
    sampling, training = (record["points"][kind][0] for kind in ("sampling", "training"))
    assert " ".join(lines[5].split()) == (
        f"0 1 {sampling['steps_per_s']:,.0f} {sampling['bottleneck']} "
        f"{training['steps_per_s']:,.0f} {training['bottleneck']}"
    )
    assert "pip install 'steppe[ray]'" in lines[6]
    assert lines[7:] == ["written to found.json", "picture: found.png"]
    assert Path("found.png").read_bytes().startswith(b"\x89PNG")
    assert "measuring a run with no runner ..." in done.err


def test_that_others_used_the_machine_is_said(steppe, walk, quick, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    done = steppe("bench", "scale", f"{walk}:Walk", "--quick", *SMALL)
    assert "the load was 99.0 before" in done.out
    record = json.loads(Path("scale.json").read_text())
    assert record["load"] == 99.0


def test_without_matplotlib_there_is_no_picture(steppe, walk, quick, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    done = steppe("bench", "scale", f"{walk}:Walk", "--quick", *SMALL)
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == "no matplotlib, no picture: pip install 'steppe[plot]'"
    assert [path.name for path in Path().iterdir()] == ["scale.json"]


def test_what_is_studied_if_nothing_is_named(steppe, monkeypatch):
    asked = {}

    def study(config, seconds, largest, gigabits, **_):
        asked.update(env=config.env, envs=config.num_envs_per_env_runner, algo=config.algo_name)
        asked.update(seconds=seconds, largest=largest, gigabits=gigabits)
        raise KeyboardInterrupt

    monkeypatch.setattr("steppe.scaling.study", study)
    for args, expected in (
        ((), ("Pendulum-v1", 64, "PPO", 10.0, 1024)),
        (("--num-envs-per-env-runner", 8, "--runners", "2k"), ("Pendulum-v1", 8, "PPO", 10.0, 2000)),
        (("CartPole-v1", "--algo", "dqn", "--quick"), ("CartPole-v1", 16, "DQN", 1.5, 1024)),
    ):
        steppe("bench", "scale", *args)
        assert tuple(asked[key] for key in ("env", "envs", "algo", "seconds", "largest")) == expected


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--out", "no/such/scale.json"), "in a folder that is there"),
        (("--out", "scale.png"), "must be a file that ends in .json"),
        (("--gigabits", "0"), "--gigabits"),
        (("--runners", "few"), "'few' is not a count"),
        (("--env", "Other-v1"), "two envs"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(steppe, walk, args, said):
    done = steppe("bench", "scale", f"{walk}:Walk", *args)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
