"""Evaluation: how long, in which envs, what it leaves alone, and the best checkpoint by it."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from tests.states import diff

TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 26,
    "minibatch_size": 8,
    "num_epochs": 1,
    "fcnet_hiddens": [8],
    "seed": 0,
}


class Plant(gymnasium.Env):
    """Episodes of ``length`` steps that pay the action; counts itself and remembers all that it did."""

    built = 0

    def __init__(self, env_config):
        Plant.built += 1
        self.length = env_config.get("length", 5)
        self.observation_space, self.action_space = spaces.Box(0, 99, (1,), np.float32), spaces.Discrete(2)
        self.log = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.log.append("reset")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        self.log.append(int(action))
        return np.full(1, self.t, np.float32), float(action), self.t == self.length, False, {}


@pytest.fixture(autouse=True)
def _none_built():
    Plant.built = 0


def tiny(**changes):
    return steppe.PPOConfig(**{"env": Plant, **TINY, "write_run": False, **changes})


def test_a_number_of_timesteps_awaits_every_episode_that_began_within_it():
    with tiny(
        evaluation_duration=12, evaluation_duration_unit="timesteps", evaluation_num_envs=2
    ).build() as algo:
        result = algo.evaluate()
        # 6 steps of each env: the second episodes began, and are played to their end.
        assert (result["episodes_this_iter"], result["timesteps_this_iter"]) == (4, 20)
        assert algo.evaluate(num_episodes=3)["episodes_this_iter"] == 3


def test_settings_of_its_own():
    seen = []

    class Watch(steppe.Callbacks):
        def on_episode_end(self, *, episode, worker):
            seen.append((worker.in_evaluation, episode.length))

    own = {"env_config": {"length": 7}, "explore": True, "callbacks": Watch}
    with tiny(evaluation_interval=1, evaluation_duration=4, evaluation_config=own).build() as algo:
        result = algo.train()
        assert result["evaluation"]["episode_len_mean"] == 7.0
        assert result["episode_len_mean"] == 5.0
        drawn, best = result["evaluation"], algo.evaluate(explore=False)
        assert drawn["episode_reward_min"] < drawn["episode_reward_max"]
        assert best["episode_reward_min"] == best["episode_reward_max"]
    assert seen == [(True, 7)] * 8


def test_env_config_of_an_evaluation_adds_to_that_of_the_run():
    seen = []

    class Watch(steppe.Callbacks):
        def on_sub_environment_created(self, *, env_context):
            seen.append(dict(env_context))

    changes = {"env_config": {"length": 6, "kind": "a"}, "evaluation_config": {"env_config": {"kind": "b"}}}
    with tiny(callbacks_class=Watch, evaluation_num_envs=1, **changes).build() as algo:
        algo.evaluate(num_episodes=1)
    assert seen == [{"length": 6, "kind": "a"}] * 2 + [{"length": 6, "kind": "b"}]


def test_shared_envs_are_the_training_envs_and_training_goes_on_in_them():
    with tiny(evaluation_envs="shared", evaluation_interval=1, evaluation_duration=3).build() as algo:
        results = [algo.train() for _ in range(3)]
        logs = [" ".join(map(str, env.log)) for env in algo.runner.env.get_sub_environments()]
    assert Plant.built == 2
    for log in logs:  # each episode was played to its end, and the newest has only begun
        *played, newest = [len(episode.split()) for episode in log.split("reset")[1:]]
        assert (set(played), newest) == ({5}, 0)
    for result in results:
        # 13 steps of each env: two episodes, and three steps of one that evaluation plays to its end.
        assert (result["timesteps_this_iter"], result["episodes_this_iter"]) == (26, 4)
        assert result["evaluation"]["episodes_this_iter"] == 3
        assert result["evaluation"]["episode_len_mean"] == 5.0
        # The other two steps of two episodes are played first, and not counted.
        assert result["evaluation"]["timesteps_this_iter"] == 3 * 5
    assert results[-1]["timesteps_total"] == 3 * 26


def test_rows_of_an_evaluation_in_shared_envs_are_never_learned_from():
    rows = []

    class Watch(steppe.Callbacks):
        def on_postprocess_trajectory(self, *, postprocessed_batch, worker):
            assert not worker.in_evaluation
            rows.append(postprocessed_batch["t"].tolist())

    config = tiny(
        evaluation_envs="shared", evaluation_interval=1, evaluation_duration=2, callbacks_class=Watch
    )
    with config.build() as algo:
        algo.train()
        rows.clear()
        algo.train()
    # After the evaluation both envs are at a first row: nothing of the episodes that it ended remains.
    assert sorted(rows) == sorted([[0, 1, 2, 3, 4]] * 4 + [[0, 1, 2]] * 2)


def test_a_first_evaluation_in_shared_envs_before_any_training():
    with tiny(evaluation_envs="shared").build() as algo:
        assert algo.evaluate(num_episodes=2)["episodes_this_iter"] == 2
        result = algo.train()
        assert (result["timesteps_this_iter"], result["episodes_this_iter"]) == (26, 4)


def test_resume_is_exact_with_shared_envs(tmp_path):
    shared = {"evaluation_envs": "shared", "evaluation_interval": 1, "evaluation_duration": 2}
    shared["evaluation_config"] = {"explore": True}
    with tiny(**shared).build() as algo:
        for _ in range(4):
            algo.train()
        expected = algo.get_state()
    with tiny(**shared).build() as algo:
        algo.train()
        algo.train()
        path = algo.save(tmp_path / "c")
    with steppe.load(path, env=Plant) as algo:
        algo.train()
        algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []


def test_the_best_checkpoint_is_the_one_that_was_evaluated_best():
    scores = iter([1.0, 3.0, 2.0, 2.5, 0.0])

    class Judge(steppe.Callbacks):
        def on_evaluate_end(self, *, evaluation_metrics):
            evaluation_metrics["episode_reward_mean"] = next(scores)

    changes = {
        "evaluation_interval": 2,
        "evaluation_duration": 1,
        "checkpoint_freq": 5,
        "keep_checkpoints_num": 1,
    }
    with tiny(write_run=True, run_dir="run", callbacks_class=Judge, **changes).build() as algo:
        saved = []
        for _ in range(10):
            algo.train()
            saved.append(
                [
                    entry["steps"] // 26
                    for entry in json.loads(Path("run/run.json").read_text())["checkpoints"]
                ]
            )
    # Evaluated after 2, 4, 6, 8, 10; the best so far after 2 and 4; every fifth is saved all the same.
    assert saved == [[], [2], [2], [4], [4, 5], [4, 5], [4, 5], [4, 5], [4, 5], [4, 10]]
    assert Path("run/best").resolve().name == str(4 * 26)
    assert Path("run/latest").resolve().name == str(10 * 26)


def test_evaluation_settings_that_contradict_each_other_are_refused():
    with pytest.raises(steppe.ConfigError, match=r"shared.*evaluation_num_envs"):
        tiny(evaluation_envs="shared", evaluation_num_envs=3).build()
    with pytest.raises(steppe.ConfigError, match=r"shared.*evaluation_config.max_episode_steps"):
        tiny(evaluation_envs="shared", evaluation_config={"horizon": 3}).build()
    with pytest.raises(steppe.ConfigError, match="evaluation_duration_unit"):
        tiny(evaluation_duration_unit="hours")
    assert Plant.built == 0


class Long(Plant):
    """Episodes that outlive an iteration, of another length each."""

    def reset(self, *, seed=None, options=None):
        found = super().reset(seed=seed)
        self.length = int(self.np_random.integers(20, 60))
        return found


class Diary(steppe.Callbacks):
    """Counts what it is told, and refuses to be told of what it did not see begin."""

    def __init__(self):
        self.told = {}

    def tell(self, what, worker):
        name = f"{what} {'evaluation' if worker.in_evaluation else 'training'}"
        self.told[name] = self.told.get(name, 0) + 1

    def on_episode_start(self, *, episode, worker):
        assert (episode.length, episode.total_reward) == (0, 0.0)
        episode.user_data["steps"] = 0
        self.tell("start", worker)

    def on_episode_step(self, *, episode, worker):
        episode.user_data["steps"] += 1

    def on_episode_end(self, *, episode, worker):
        assert episode.user_data["steps"] == episode.length
        episode.custom_metrics["steps"] = episode.length
        self.tell("end", worker)

    def get_state(self):
        return {"told": self.told}

    def set_state(self, state):
        self.told = dict(state["told"])


def test_hooks_and_exact_resume_while_episodes_outlive_an_iteration_in_shared_envs(tmp_path):
    shared = {"evaluation_envs": "shared", "evaluation_interval": 2, "evaluation_duration": 4, "env": Long}
    with tiny(**shared, callbacks_class=Diary).build() as algo:
        algo.train()
        algo.train()
        path = algo.save(tmp_path / "c")
        for _ in range(4):
            algo.train()
        expected = algo.get_state()
    with steppe.load(path, env=Long, callbacks_class=Diary) as algo:
        for _ in range(4):
            algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []
    told = expected["callbacks"]["0"]["told"]
    assert told["end evaluation"] == 12
    assert told["start training"] > told.get("end training", 0)  # those that evaluations ended got no end


def test_after_a_failed_evaluation_in_shared_envs_only_a_restore_goes_on(tmp_path):
    class Boom(steppe.Callbacks):
        def on_episode_step(self, *, episode, worker):
            if worker.in_evaluation and episode.length == 3:
                raise ZeroDivisionError("mine")

    with tiny(evaluation_envs="shared", env=Long, callbacks_class=Boom).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        with pytest.raises(ZeroDivisionError, match="mine"):
            algo.evaluate(2)
        for use in (algo.train, lambda: algo.save(tmp_path / "d")):
            with pytest.raises(RuntimeError, match="restore a checkpoint"):
                use()
        algo.restore(path)
        assert algo.train()["training_iteration"] == 2


def test_timesteps_in_shared_envs_are_those_of_the_evaluation():
    changes = {"evaluation_duration_unit": "timesteps", "evaluation_duration": 30, "env": Long}
    with tiny(evaluation_envs="shared", **changes).build() as algo:
        algo.train()
        result = algo.evaluate()
    assert result["episodes_this_iter"] >= 2  # each env began at least one, and ended it
    lengths = result["episode_len_mean"] * result["episodes_this_iter"]
    assert result["timesteps_this_iter"] == pytest.approx(lengths)


def test_callbacks_of_the_evaluation_keep_their_state(tmp_path):
    own = {"evaluation_interval": 1, "evaluation_config": {"callbacks": Diary}}
    with tiny(**own).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_state()["evaluator"]
    with steppe.load(path, env=Plant, evaluation_config={"callbacks": Diary}) as algo:
        algo.train()
        assert diff(expected, algo.get_state()["evaluator"]) == []
    assert expected["callbacks"]["0"]["told"]["end evaluation"] == 20


def test_ids_of_episodes_are_unique_in_the_run():
    ids = []

    class Watch(steppe.Callbacks):
        def on_episode_start(self, *, episode):
            ids.append(episode.id)

    with tiny(evaluation_interval=1, callbacks_class=Watch).build() as algo:
        algo.train()
        algo.train()
    assert len(ids) == len(set(ids)) > 20


def test_a_score_that_a_hook_made_no_number_is_named():
    class Judge(steppe.Callbacks):
        def on_evaluate_end(self, *, evaluation_metrics):
            evaluation_metrics["episode_reward_mean"] = None

    text = "episode_reward_mean None: it must be one number"
    with tiny(callbacks_class=Judge).build() as algo, pytest.raises(steppe.ConfigError, match=text):
        algo.evaluate(1)
