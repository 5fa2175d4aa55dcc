"""Learning curves: when a run counts as learned, what a row's file holds, and that the docs show it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import steppe
from benchmarks import curves
from tests.envs_for_tests import Identity

ROOT = Path(__file__).resolve().parent.parent
RECORDED = curves.rows()


class Scripted:
    """A run whose iterations score what they are told to, 10 steps each."""

    def __init__(self, scores):
        self.scores, self.changes = scores, {}

    def copy(self, **changes):
        self.changes = changes
        return self

    build = __enter__ = lambda self: self

    def __exit__(self, *error):
        self.left = list(self.scores)

    def train(self):
        self.steps = getattr(self, "steps", 0) + 10
        score, *self.scores = self.scores
        episodes = 0 if score is None else 50
        return {"timesteps_total": self.steps, "episode_reward_mean": score, "episodes_total": episodes}


@pytest.mark.parametrize(
    ("bar", "to_bar", "best", "left"), [(3.0, 20, 4.0, 3), (5.0, 40, 5.5, 1), (6.0, None, 5.5, 0)]
)
def test_a_run_ends_at_the_first_iteration_that_reaches_the_bar(bar, to_bar, best, left):
    config = Scripted([None, 4.0, 2.0, 5.5, 1.0])
    run = curves.train(config, 7, bar=bar, steps=50)
    assert (run["seed"], run["to_bar"], run["best"], len(config.left)) == (7, to_bar, best, left)
    assert config.changes == {"seed": 7, "metrics_num_episodes_for_smoothing": 50, "write_run": False}
    assert run["scores"] == [None, 4.0, 2.0, 5.5, 1.0][: len(run["steps"])]


def test_what_comes_after_the_last_step_does_not_count():
    run = curves.train(Scripted([1.0, 1.0, 9.0, 9.0]), 0, bar=5.0, steps=25)
    assert (run["to_bar"], run["best"], run["steps"]) == (None, 1.0, [10, 20, 30])


def test_a_run_may_go_on_to_the_end_and_score_by_a_function_of_its_own():
    run = curves.train(
        Scripted([1.0, 3.0, 2.0]),
        0,
        bar=-2.0,
        steps=30,
        score=lambda r: -r["episode_reward_mean"],
        to_the_end=True,
    )
    assert (run["to_bar"], run["best"], run["scores"]) == (10, -1.0, [-1.0, -3.0, -2.0])


def test_a_row_s_file_says_how_it_was_made(tmp_path):
    config = steppe.PPOConfig(env=Identity, lr=1e-3, train_batch_size=64, minibatch_size=32, num_epochs=1)
    runs = [curves.train(config, seed, bar=99.0, steps=128, episodes=4) for seed in (0, 1)]
    path = curves.record("some_row", config, 99.0, 128, runs, tmp_path)
    row = curves.rows(tmp_path)["some_row"]
    assert path.name == "some_row.json"
    sizes = {"minibatch_size": 32, "num_epochs": 1, "train_batch_size": 64}
    assert row["config"] == {"env": "Identity", "lr": 1e-3, **sizes}
    assert (row["algorithm"], row["bar"], row["limit"]) == ("PPO", 99.0, 128)
    assert [run["steps"] for run in row["runs"]] == [[64, 128]] * 2
    assert row["runs"] == runs
    assert {"cpu", "cores", "system"} == set(row["machine"])
    assert row["versions"]["steppe"] == steppe.__version__


def test_settings_leave_out_what_says_nothing_and_where_a_file_lies():
    policies = {"a": None, "b": (steppe.DQNConfig(), None, None, {"lr": 0.1})}
    config = steppe.PPOConfig(env="/home/me/env.py:Env", policies=policies, seed=3)
    found = curves.settings(config)
    assert found["env"] == "env.py:Env"
    assert found["policies"] == {"a": {}, "b": {"policy_class": "DQNConfig", "config": {"lr": 0.1}}}
    assert "seed" not in found


def test_a_mean_is_taken_where_every_seed_has_a_score():
    runs = [
        {"steps": [10, 20, 30], "scores": [None, 1.0, 3.0]},
        {"steps": [10, 25, 40], "scores": [0.0, 3.0, 9.0]},
    ]
    steps, scores = curves.together(runs)
    assert steps.tolist() == [20, 25, 30]
    assert scores.tolist() == [[1, 2, 3], [2, 3, 5]]
    assert curves.together([{"steps": [1], "scores": [None]}])[0].size == 0


def test_the_interval_is_that_of_the_mean_over_seeds():
    low, high = curves.interval(np.array([[0.0, 5.0], [3.0, 5.0], [6.0, 5.0]]))
    assert (low[0], high[0]) == (0, 6)  # all draws alike: 1 in 27 at either end
    assert (low[1], high[1]) == (5, 5)


def test_pictures_are_the_same_for_the_same_rows(tmp_path):
    pytest.importorskip("matplotlib")
    row = {"row": "r", "bar": 1.0, "runs": [{"steps": [1, 2], "scores": [0.0, s]} for s in (1.0, 2.0)]}
    texts = []
    for name in ("a.svg", "b.svg"):
        curves.draw([row, row], tmp_path / name)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert "<dc:date>" not in texts[0]


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_row_holds_a_test_of_its_own_and_reaches_its_bar(name):
    row = RECORDED[name]
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "learning").glob("test_*.py"))
    assert re.search(rf'(?:def test_{name}\(|"{name}")', tests)
    assert row["command"] == f"make learn ROW={name}"
    assert sum(run["to_bar"] is not None for run in row["runs"]) * 3 >= 2 * len(row["runs"]) >= 6
    assert "/root" not in json.dumps(row)
    for run in row["runs"]:
        reached = [
            at
            for at, score in zip(run["steps"], run["scores"], strict=True)
            if score is not None and score >= row["bar"] and at <= row["limit"]
        ]
        assert run["to_bar"] == (reached[0] if reached else None)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "algorithms").glob("*.md")), ids=lambda p: p.stem)
def test_a_page_shows_what_is_recorded_and_each_picture_is_there(path):
    assert path.read_text() == curves.page(path, RECORDED)
    for picture in re.findall(r"\]\(\.\./(images/[^)]+)\)", path.read_text()):
        assert (ROOT / "docs" / picture).exists(), picture
