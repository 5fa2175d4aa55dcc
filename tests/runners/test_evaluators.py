"""Evaluation in processes of its own: every episode once, the same as here, whatever befalls a process."""

from __future__ import annotations

import os
import signal

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.runners.evaluators import shared_out

pytestmark = pytest.mark.usefixtures("ray")


class Luck(gymnasium.Env):
    """Episodes of a length, and with a reward, of chance."""

    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, env_config):
        self.config = env_config

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 9))
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        return self.np_random.random(2, np.float32), float(self.np_random.random()), not self.left, False, {}


def luck(**changes):
    small = {"num_envs_per_env_runner": 2, "train_batch_size": 16, "num_epochs": 1, "fcnet_hiddens": [4]}
    return steppe.PPOConfig(**{"env": Luck, "seed": 3, "write_run": False, **small, **changes})


def test_one_runner_evaluates_what_this_process_does():
    found = []
    for runners in (0, 1):
        with luck(evaluation_num_env_runners=runners).build() as algo:
            found.append([dict(algo.evaluate(7)), dict(algo.evaluate(7, explore=True))])
    assert found[0] == found[1]
    assert found[0][0]["episodes_this_iter"] == 7


@pytest.mark.parametrize("unit", ["episodes", pytest.param("timesteps", marks=pytest.mark.slow)])
def test_several_share_an_evaluation_out(unit, tmp_path):
    changes = {"evaluation_num_env_runners": 2, "evaluation_duration": 5, "evaluation_duration_unit": unit}
    results = []
    for local in (True, False):
        with luck(local_mode=local, **changes).build() as algo:
            results.append([algo.evaluate(), algo.evaluate()])
            path = algo.save(tmp_path / str(local))
            results[-1].append(algo.evaluate(5))
        with steppe.load(path, env=Luck) as algo:
            assert dict(algo.evaluate(5)) == dict(results[-1][2])
    assert [dict(r) for r in results[0]] == [dict(r) for r in results[1]]
    assert results[0][0]["episode_reward_mean"] != results[0][1]["episode_reward_mean"]
    if unit == "episodes":
        assert [r["episodes_this_iter"] for r in results[0]] == [5, 5, 5]
    else:
        assert results[0][0]["timesteps_this_iter"] >= 5


@pytest.mark.slow
def test_beside_runners_that_sample_and_with_what_is_evaluated_otherwise():
    changes = {"num_env_runners": 1, "num_cpus_per_env_runner": 0.5, "evaluation_interval": 1}
    own = {"evaluation_config": {"max_episode_steps": 2}, "evaluation_num_env_runners": 2}
    with luck(**changes, **own, evaluation_duration=6).build() as algo:
        evaluation = algo.train()["evaluation"]
    assert evaluation["episodes_this_iter"] == 6
    assert evaluation["episode_len_mean"] <= 2


def test_a_share_of_a_process_that_died_is_played_anew():
    with luck(evaluation_num_env_runners=2).build() as algo:
        wanted = dict(algo.evaluate(6))
    with luck(evaluation_num_env_runners=2).build() as algo:
        algo._evaluator = algo._make_evaluator()
        crew = algo._evaluator._crew
        pid = crew._ray.get(crew._actors[1].__ray_call__.remote(lambda actor: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        assert dict(algo.evaluate(6)) == wanted


def test_policies_may_join_and_leave_between_evaluations():
    with luck(evaluation_num_env_runners=1, local_mode=True).build() as algo:
        algo.evaluate(2)
        algo.add_policy("b", policy_mapping_fn=lambda agent: "b")
        assert set(algo.evaluate(2)["policy_reward_mean"]) == {"b"}


@pytest.mark.parametrize(
    ("count", "runners", "wanted"), [(7, 3, [3, 2, 2]), (2, 3, [1, 1, 0]), (6, 2, [3, 3])]
)
def test_shares_are_even(count, runners, wanted):
    assert shared_out(count, runners) == wanted
