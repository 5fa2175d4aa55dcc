"""The picture of the game: what is recorded for it, and that the same record makes the same file."""

import json

import pytest

from benchmarks import pictures

RUN = {"steps": [4000, 8000], "always_same": [1.0, 7.0], "beat_last": [2.0, 6.5]}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pictures, "play", lambda *given: (asked.append(given), RUN)[1])
    pictures.record(tmp_path / "game.json", 8000, (0, 1))
    assert asked == [("lstm", 0, 8000), ("lstm", 1, 8000), ("none", 0, 8000), ("none", 1, 8000)]
    return json.loads((tmp_path / "game.json").read_text())


def test_a_record_has_a_run_for_each_kind_and_seed(recorded):
    assert recorded["runs"] == {"lstm": [RUN, RUN], "none": [RUN, RUN]}
    assert {"command", "machine", "versions"} < recorded.keys()


def test_the_same_record_is_the_same_picture(recorded, tmp_path):
    pytest.importorskip("matplotlib")
    for name in "ab":
        pictures.draw(recorded, tmp_path / name / "game.svg")
    first, second = ((tmp_path / name / "game.svg").read_text() for name in "ab")
    assert first == second
    assert all(label in first for label in ("LSTM", "feed-forward", "keeps to its move", "beats the last"))
