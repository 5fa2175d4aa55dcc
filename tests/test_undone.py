"""Updates that are not finite, again and again: the run stops, says why, and loses nothing."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import steppe
from steppe.errors import LearningError
from steppe.learning.independent import IndependentLearner
from tests.envs_for_tests import NeverEnds
from tests.learning_core.test_independent import Counting

ONE = "default_policy"
TINY = {
    "train_batch_size": 32,
    "minibatch_size": 32,
    "num_epochs": 1,
    "num_envs_per_env_runner": 2,
    "fcnet_hiddens": [4],
    "max_episode_steps": 8,
    "seed": 0,
}


class Explodes(NeverEnds):
    """From its 40th step on it pays what overflows."""

    steps = 0

    def step(self, action):
        self.steps += 1
        reward = 3e38 if self.steps > 40 else 1.0
        return np.full(2, 0.5, np.float32), reward, False, False, {}


class Told(Counting):
    """Reports the counts that it is given, one after the other."""

    def __init__(self, *counts):
        super().__init__(1)
        self.counts = list(counts)

    def update(self, env_steps):
        return self.counts.pop(0)


def undone(skipped, updates=None):
    return {"updates_skipped": float(skipped)} | ({} if updates is None else {"updates": float(updates)})


def rollout(reward=0.0, obs=0.0, policy="a"):
    filled = np.array([True, False])
    columns = np.array([reward, 1e9], np.float32), np.array([[obs], [1e9]], np.float32)
    return SimpleNamespace(policy=policy, reward=columns[0], obs=columns[1], filled=filled)


def test_ten_in_a_row_stop_the_run_and_nothing_is_lost(tmp_path):
    config = steppe.PPOConfig(env=Explodes, reward_scale="none", checkpoint_freq=1, **TINY)
    kept, results = None, []
    with pytest.raises(LearningError) as raised, config.build() as algo:  # noqa: PT012
        for _ in range(100):
            kept = algo.get_weights()[ONE]
            results.append(algo.train()["info"][ONE]["updates_skipped"])
    # 16 steps an env and iteration: the third is the first with a reward from beyond step 40.
    assert results == [0.0, 0.0, *range(1, 10)]
    assert np.array_equal(algo.get_weights()[ONE], kept)
    message = str(raised.value)
    for part in (
        "'default_policy'",
        "since iteration 3 (96 env steps)",
        "10 updates in a row",
        "up to 3e+38",
    ):
        assert part in message
    assert "observations up to 0.5" in message
    folder = algo.run.path
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed"
    assert "LearningError: policy 'default_policy' learns nothing since iteration 3" in record["error"]
    rows = [json.loads(line) for line in (folder / "result.jsonl").read_text().splitlines()]
    assert [row["training_iteration"] for row in rows] == [*range(1, 13)]
    with steppe.load(folder, Explodes, write_run=False, resume=False) as again:
        assert np.array_equal(again.get_weights()[ONE], kept)
        assert again.iteration == 12


@pytest.mark.parametrize("cls", [steppe.DQNConfig, steppe.SACConfig])
def test_what_learns_from_a_replay_stops_too(cls):
    settings = {"min_sample_timesteps_per_iteration": 96, "num_steps_sampled_before_learning_starts": 32}
    own = {"train_batch_size": 8, "num_envs_per_env_runner": 1, "rollout_fragment_length": 8}
    shared = {"fcnet_hiddens": [4], "max_episode_steps": 8, "seed": 0, "write_run": False}
    with cls(env=Explodes, replay_buffer_capacity=64, **settings, **own, **shared).build() as algo:
        before = algo.get_weights()[ONE]
        with pytest.raises(
            LearningError, match=r"since iteration 1 \(\d\d env steps\): \d\d updates in a row"
        ):
            algo.train()
        after = algo.get_weights()[ONE]
    assert not np.array_equal(before, after)  # it had learned
    assert np.isfinite(after).all()


def test_an_update_that_learned_breaks_the_row():
    counts = [undone(i) for i in range(10)] + [undone(9)] + [undone(i) for i in range(10, 20)]
    one = IndependentLearner({"a": Told(*counts)})
    for _ in range(10):
        one.update(0)
    assert not one.stuck  # nine, as the first was fine
    one.update(0)
    for _ in range(9):
        one.update(0, 20)
        assert not one.stuck
    one.update(0, 29)
    assert "since iteration 20" in one.stuck


def test_a_call_of_many_updates_counts_them_all_if_none_of_them_learned():
    one = IndependentLearner({"a": Told({}, undone(0, 4), undone(3, 8), undone(7, 12), undone(13, 18))})
    stuck = []
    for i in range(5):
        one.update(100 * i, i)
        stuck.append(bool(one.stuck))
    assert stuck == [False] * 4 + [True]  # three of four; four of four; six of six
    assert "since iteration 3 (300 env steps): 10 updates" in one.stuck


def test_the_report_has_the_largest_numbers_seen_since():
    one = IndependentLearner({"a": Told(*(undone(i) for i in range(1, 11))), "b": Told(*[undone(0)] * 10)})
    one.add([rollout(reward=1e30)])  # before the first
    for i in range(10):
        one.update(i)
        one.add([rollout(reward=-float(i), obs=1.0), rollout(obs=-50.0 + i), rollout(policy="b", obs=1e5)])
    assert "policy 'a' learns nothing" in one.stuck
    assert "rewards were up to 8 and observations up to 50 in size" in one.stuck


def test_what_was_undone_before_a_checkpoint_was_loaded_does_not_count():
    one = IndependentLearner({"a": Told(*(undone(i) for i in range(1, 21)))})
    for _ in range(9):
        one.update(0)
    one.set_state(one.get_state())
    for _ in range(10):  # of the first it is not known
        one.update(0)
        assert not one.stuck
    one.update(0)
    assert one.stuck
    assert math.isclose(one._counts["a"][1], 20.0)
