"""The picture of a study shows what was measured, what was predicted, and what is known of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steppe.scaling.model import Costs, Hosts, Wire, predict
from steppe.scaling.picture import draw
from steppe.scaling.studying import KINDS, PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'steppe[plot]'")


def record():
    """Of a made-up machine: sampling is limited by env steps, learning by itself from 16 runners on."""
    costs = Costs(1e-5, 1e-6, 1e-6, 1e-6, 4000)
    wire, hosts = Wire(1e-3, 1e-4, 1e-3, 1e-4, 1e-3, 1e-3, 200_000, 40_000), Hosts(cores=2)
    points = {
        kind: [
            predict(costs, wire, hosts, n, learns=kind == "training")._asdict()
            for n in (0, 1, 2, 4, 8, 16, 32, 64)
        ]
        for kind in KINDS
    }
    runs = [
        {"runners": n, "kind": kind, "measured": 70_000.0 * (n or 1), "predicted": 1, "error": 0}
        for n in (0, 1, 2)
        for kind in KINDS
    ]
    return {
        **{"env": "Pendulum-v1", "algo": "PPO", "asynchronous": False, "num_envs_per_env_runner": 64},
        **{"hosts": {"cores": 2}, "points": points, "runs": runs, "published": PUBLISHED},
    }


def test_it_names_what_it_shows(tmp_path):
    text = draw(record(), tmp_path / "scale.svg").read_text()
    for shown in (
        "Pendulum-v1, PPO, synchronous, 64 envs a runner, hosts of 2 cores",
        "sampling, predicted",
        "training, measured",
        "RLlib's documentation: PongNoFrameskip-v4 on GPU, sampling",
        "env steps a second",
        "learning",
        "1,000,000",
    ):
        assert shown in text, shown
    assert text.count("<!-- env steps -->") + text.count(">env steps<") >= 2


def test_the_same_record_makes_the_same_picture_also_from_json(tmp_path):
    first = draw(record(), tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert draw(json.loads(json.dumps(record())), tmp_path / "b.png").read_bytes() == first


def test_what_is_published_is_what_the_model_says_of_what_was_measured():
    """A model that was changed since needs `steppe bench scale` again, and docs/scale.md a look."""
    kept = json.loads((ROOT / "benchmarks" / "results" / "bench-scale-model.json").read_text())
    costs, wire, hosts = Costs(**kept["costs"]), Wire(**kept["wire"]), Hosts(**kept["hosts"])
    assert not kept["asynchronous"]
    for kind, points in kept["points"].items():
        assert [point["runners"] for point in points] == [0, *(2**i for i in range(11))]
        for point in points:
            told = predict(costs, wire, hosts, point["runners"], learns=kind == "training")
            assert told.steps_per_s == pytest.approx(point["steps_per_s"])
            assert told.bottleneck == point["bottleneck"]
