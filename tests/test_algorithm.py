"""The training loop through its public surface: what a program of a user relies on."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe import checkpoint
from steppe.sampling import sampler
from tests.envs_for_tests import Hidden, MultiEnv, NeverEnds, SimpleCorridor
from tests.states import diff, state_hash

TINY = {
    "num_envs_per_env_runner": 4,
    "train_batch_size": 128,
    "minibatch_size": 32,
    "num_epochs": 4,
    "fcnet_hiddens": [16],
    "write_run": False,
    "seed": 0,
}
ROOT = Path(__file__).resolve().parent.parent


def tiny(env="CartPole-v1", **changes):
    return steppe.PPOConfig(env=env, **{**TINY, **changes})


def hashes(algo):
    return {owner: state_hash(state) for owner, state in algo.get_state().items()}


def assert_same_state(one, other):
    for owner, state in one.get_state().items():
        assert diff(state, other.get_state()[owner]) == []
    assert hashes(one) == hashes(other)


def test_a_result_has_the_promised_keys_and_cannot_be_changed():
    with tiny().build() as algo:
        result = algo.train()
    promised = {
        "episode_reward_mean", "episode_reward_min", "episode_reward_max", "episode_len_mean",
        "episodes_this_iter", "episodes_total", "timesteps_this_iter", "timesteps_total",
        "agent_timesteps_total", "training_iteration", "policy_reward_mean", "policy_reward_min",
        "policy_reward_max", "agent_reward_mean", "custom_metrics", "env_health", "info", "time",
        "num_healthy_workers", "discarded",
    }  # fmt: skip
    assert promised <= set(result)
    assert result["timesteps_total"] == result["timesteps_this_iter"] == 128
    assert result["agent_timesteps_total"] == 128
    assert result["policy_reward_mean"]["default_policy"] == pytest.approx(result["episode_reward_mean"])
    time_ = result["time"]
    shares = time_["env"] + time_["inference"] + time_["learning"] + time_["other"]
    assert shares == pytest.approx(time_["iteration_s"], rel=0.02)
    assert sum(time_["share"].values()) == pytest.approx(1.0, rel=0.02)
    with pytest.raises(TypeError):
        result["timesteps_total"] = 0


def test_rewards_of_a_task_of_known_length():
    with tiny(NeverEnds, max_episode_steps=8).build() as algo:
        result = algo.train()
    assert result["episode_reward_mean"] == result["episode_len_mean"] == 8
    assert result["episodes_this_iter"] == 128 // 8
    assert result["reward_per_step"] == pytest.approx(1.0)


def test_before_an_episode_has_ended_the_reward_per_step_is_known():
    with tiny(NeverEnds).build() as algo:
        result = algo.train()
    assert np.isnan(result["episode_reward_mean"])
    assert result["episodes_total"] == 0
    assert result["reward_per_step"] == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
def test_three_and_three_iterations_equal_six(tmp_path, mode):
    """Full state of every owner, with open episodes in the lanes, through files."""
    settings = {"batch_mode": mode, "rollout_fragment_length": 13, "entropy_coeff": 0.01}
    with tiny(**settings).build() as whole, tiny(**settings).build() as half:
        for _ in range(3):
            half.train()
        half.evaluate(num_episodes=3)
        saved = half.save(tmp_path / "half")
        for algo in (whole, whole, whole):
            algo.train()
        whole.evaluate(num_episodes=3)
        open_rows = half.get_state()["runner"]["env"]["t"]
        assert mode == "complete_episodes" or (np.asarray(open_rows) > 0).any()
        with steppe.load(saved) as resumed:
            assert_same_state(resumed, half)
            for algo in (whole, resumed):
                for _ in range(3):
                    result = algo.train()
                algo.evaluate(num_episodes=3)
            assert_same_state(whole, resumed)
            assert (
                result["timesteps_total"] == resumed.train()["timesteps_total"] - 4 * 13 * 3
                or mode != "truncate_episodes"
            )


@pytest.mark.parametrize("env", ["Pendulum-v1", "Acrobot-v1", "LunarLander-v3"])
def test_resume_is_exact_for_other_envs(tmp_path, env):
    if env == "LunarLander-v3":
        pytest.importorskip("Box2D", reason="Box2D is not installed (extra box2d)")
    with tiny(env).build() as algo:
        algo.train()
        saved = algo.save(tmp_path / "saved")
        with steppe.load(saved) as resumed:
            assert algo.train()["timesteps_total"] == resumed.train()["timesteps_total"]
            assert_same_state(algo, resumed)


KILLED = """
import os, signal, sys, steppe
algo = steppe.PPOConfig(env="CartPole-v1", **{settings}).build()
for _ in range(3):
    algo.train()
algo.save("killed")
algo.train()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_resume_is_exact_across_a_killed_process(tmp_path):
    program = KILLED.replace("{settings}", repr(TINY))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    with tiny().build() as whole, steppe.load(tmp_path / "killed") as resumed:
        for _ in range(6):
            whole.train()
        for _ in range(3):
            resumed.train()
        assert_same_state(whole, resumed)


def test_an_env_that_cannot_be_replayed_is_named_and_training_goes_on(tmp_path, caplog):
    with tiny(Hidden).build() as algo:
        algo.train()
        saved = algo.save(tmp_path / "saved")
    with caplog.at_level(logging.WARNING, "steppe"), steppe.load(saved, env=Hidden) as resumed:
        assert "not exact" in caplog.text
        assert "Hidden" in caplog.text
        result = resumed.train()
    assert result["timesteps_total"] == 256
    assert np.isfinite(result["info"]["default_policy"]["total_loss"])


def test_restore_in_place_and_another_architecture(tmp_path):
    with tiny().build() as algo, tiny(fcnet_hiddens=[8]).build() as other:
        algo.train()
        saved = algo.save(tmp_path / "a")
        before = hashes(algo)
        algo.train()
        algo.restore(saved)
        assert hashes(algo) == before
        other.train()
        mine = hashes(other)
        with pytest.raises(steppe.CheckpointError, match="do not fit this network"):
            other.restore(saved)
        assert hashes(other) == mine


def test_another_number_of_envs_is_not_exact_but_goes_on(tmp_path, caplog):
    with tiny().build() as algo:
        algo.train()
        saved = algo.save(tmp_path / "a")
        weights = algo.get_weights()["default_policy"]
    with caplog.at_level(logging.WARNING, "steppe"):
        fewer = steppe.load(saved, num_envs_per_env_runner=2)
    with fewer:
        assert "2 envs instead of 4" in caplog.text
        assert np.array_equal(fewer.get_weights()["default_policy"], weights)
        assert fewer.train()["timesteps_total"] == 256


def test_an_old_env_with_spaces_of_its_class_resumes_exactly_after_an_evaluation(tmp_path, caplog):
    class Old:
        action_space, observation_space = spaces.Discrete(2), spaces.Discrete(4)

        def reset(self):
            self.t = 0
            return 0

        def step(self, action):
            self.t += 1
            return self.t % 4, float(action), self.t >= 11, {}

    with tiny(Old).build() as algo:
        algo.train()
        algo.evaluate(num_episodes=3)
        algo.train()
        saved = algo.save(tmp_path / "a")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "steppe"), steppe.load(saved, env=Old) as again:
            assert "not exact" not in caplog.text
            algo.train(), again.train()
            assert_same_state(algo, again)


def test_load_without_resume_takes_what_was_learned_and_fresh_envs(tmp_path, caplog):
    with tiny(Hidden).build() as algo:
        algo.train()
        saved = algo.save(tmp_path / "a")
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, "steppe"),
            steppe.load(saved, env=Hidden, resume=False) as fresh,
        ):
            assert "not exact" not in caplog.text
            weights = (one.get_weights()["default_policy"] for one in (algo, fresh))
            assert np.array_equal(*weights)


def test_a_restore_that_fails_at_the_envs_leaves_the_learner_as_it_was(tmp_path):
    with tiny().build() as algo:
        algo.train()
        saved = algo.save(tmp_path / "a")
        algo.train()
        before = hashes(algo)["learner"]
        owners, meta = checkpoint.load(saved)
        del owners["runner"]["env"]["seeds"][0]
        with pytest.raises(steppe.CheckpointError, match="envs"):
            algo._adopt(owners, meta)
        assert hashes(algo)["learner"] == before


def test_a_flipped_byte_or_a_missing_file_changes_nothing(tmp_path):
    with tiny().build() as algo:
        algo.train()
        saved = algo.save(tmp_path / "a")
        algo.train()
        before = hashes(algo)
        victim = saved / "learner.safetensors"
        content = bytearray(victim.read_bytes())
        content[-3] ^= 1
        victim.write_bytes(content)
        with pytest.raises(steppe.CheckpointError, match="learner"):
            algo.restore(saved)
        victim.unlink()
        with pytest.raises(steppe.CheckpointError, match="learner"):
            algo.restore(saved)
        assert hashes(algo) == before


def test_save_refuses_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with tiny().build() as algo, pytest.raises(steppe.CheckpointError):
        algo.save(tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "mine"


def test_load_lists_the_code_that_is_missing(tmp_path):
    with tiny(SimpleCorridor, env_config={"corridor_length": 4}).build() as algo:
        saved = algo.save(tmp_path / "a")
    with pytest.raises(steppe.CheckpointError, match=r"env=.*SimpleCorridor"):
        steppe.load(saved)
    with steppe.load(saved, env=SimpleCorridor) as algo:
        assert algo.config.env_config == {"corridor_length": 4}


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    states = []
    for seed in (3, 3, 4):
        with tiny(seed=seed).build() as algo:
            algo.train()
            algo.train()
            states.append(hashes(algo))
    assert states[0] == states[1]
    assert all(states[0][owner] != states[2][owner] for owner in ("learner", "runner"))


def test_evaluation_does_not_change_training():
    with tiny().build() as quiet, tiny().build() as watched:
        for _ in range(2):
            quiet.train()
            watched.train()
            watched.evaluate(num_episodes=5)
            watched.compute_single_action(np.zeros(4, np.float32), explore=True)
        states = quiet.get_state(), watched.get_state()
    for owner in ("algorithm", "learner", "runner"):
        assert diff(states[0][owner], states[1][owner]) == []


class Lengths(gymnasium.Env):
    """Env 0 plays episodes of 2 steps, the others of 20: asked greedily, short ones would win."""

    def __init__(self, env_config):
        self.length = 2 if env_config.vector_index == 0 else 20
        self.action_space, self.observation_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        return 0, 1.0, self.t >= self.length, False, {}


def test_restore_in_place_from_before_the_first_iteration(tmp_path):
    def three_iterations(algo):
        for _ in range(3):
            algo.train()
        states = algo.get_state()
        return {owner: state_hash(states[owner]) for owner in ("algorithm", "learner")}

    with tiny().build() as algo:
        algo.save(tmp_path / "new")
        wanted = three_iterations(algo)
        algo.restore(tmp_path / "new")
        assert three_iterations(algo) == wanted


def test_an_evaluation_after_a_restore_is_that_of_the_restored_run(tmp_path):
    with tiny().build() as algo:
        algo.train()
        algo.save(tmp_path / "before")
        wanted = algo.evaluate(num_episodes=6)
        algo.restore(tmp_path / "before")
        again = algo.evaluate(num_episodes=6)
        algo.save(tmp_path / "after")
    assert {**again} == {**wanted}
    with steppe.load(tmp_path / "after", evaluation_num_envs=2) as algo:
        assert algo.evaluate(num_episodes=6)["episodes_this_iter"] == 6


class Stumbles(NeverEnds):
    """Raises in evaluation, at the third step of all."""

    armed = True
    steps = 0

    def step(self, action):
        Stumbles.steps += 1
        if Stumbles.armed and Stumbles.steps == 3:
            raise ValueError("stumbled")
        return np.zeros(2, np.float32), 1.0, Stumbles.steps % 5 == 0, False, {}


def test_an_evaluation_that_failed_holds_up_nothing(tmp_path):
    with tiny(Stumbles).build() as algo:
        with pytest.raises(ValueError, match="stumbled"):
            algo.evaluate(num_episodes=8)
        assert algo.train()["training_iteration"] == 1
        algo.save(tmp_path / "after")
        assert algo.evaluate(num_episodes=8)["episodes_this_iter"] == 8


def test_every_env_is_closed_even_if_one_raises():
    closed = []

    class Clings(Lengths):
        def close(self):
            closed.append(self)
            raise OSError("will not go")

    algo = tiny(Clings).build()
    algo.evaluate(num_episodes=1)
    with pytest.raises(OSError, match="will not go"):
        algo.close()
    assert len(closed) == 8


def test_evaluation_episodes_are_assigned_in_advance_and_all_awaited():
    with tiny(Lengths).build() as algo:
        result = algo.evaluate(num_episodes=10)  # 3 for envs 0 and 1, 2 for the others
        again = algo.evaluate(num_episodes=4)
    assert result["episodes_this_iter"] == 10
    assert result["episode_reward_mean"] == pytest.approx((3 * 2 + 7 * 20) / 10)
    assert again["episode_reward_mean"] == pytest.approx((2 + 3 * 20) / 4)
    with tiny(Lengths).build() as algo, pytest.raises(steppe.ConfigError, match="at least 1"):
        algo.evaluate(num_episodes=0)


def test_waiting_for_an_episode_that_never_ends_is_said_aloud(caplog, monkeypatch):
    monkeypatch.setattr(sampler, "_PATIENCE", 5)

    class Late(NeverEnds):
        def step(self, action):
            self.t = getattr(self, "t", 0) + 1
            return np.zeros(2, np.float32), 1.0, False, self.t >= 40, {}

    with caplog.at_level(logging.WARNING, "steppe"), tiny(Late).build() as algo:
        assert algo.evaluate(num_episodes=1)["episode_len_mean"] == 40
    assert caplog.text.count("max_episode_steps") == 1


def test_exactly_as_many_envs_are_built_as_asked_for():
    MultiEnv.built.clear()
    steppe.register_env("multienv", lambda config: MultiEnv(config))
    with tiny("multienv").build() as algo:
        algo.train()
    assert MultiEnv.built == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_simple_corridor_and_multi_env_train():
    steppe.register_env("corridor", lambda ctx: SimpleCorridor(ctx))
    config = tiny("corridor", env_config={"corridor_length": 5}, lr=5e-3)
    with config.build() as algo:
        for _ in range(12):
            result = algo.train()
        assert result["episode_reward_max"] == pytest.approx(0.6)
        assert algo.evaluate(num_episodes=4)["episode_reward_mean"] == pytest.approx(0.6)
        assert algo.compute_single_action(0) == 1
        assert isinstance(algo.compute_single_action(0), int)
    with tiny(MultiEnv).build() as algo:
        assert algo.train()["episode_len_mean"] <= 40


def test_the_users_own_exception_comes_out_at_once(tmp_path):
    class Broken(NeverEnds):
        def __init__(self, where):
            super().__init__()
            self.where = where
            if where == "init":
                raise ZeroDivisionError("in init")

        def reset(self, *, seed=None, options=None):
            if self.where == "reset":
                raise ZeroDivisionError("in reset")
            return super().reset(seed=seed)

        def step(self, action):
            raise ZeroDivisionError("in step")

    for where in ("init", "reset", "step"):
        began = time.monotonic()
        with (
            pytest.raises(ZeroDivisionError, match=f"in {where}") as caught,
            tiny(lambda where=where: Broken(where)).build() as algo,
        ):
            algo.train()
        assert time.monotonic() - began < 20  # 5 s on an idle machine
        assert any(frame.name in ("__init__", "reset", "step") for frame in caught.traceback)


def test_weights_go_out_and_in():
    with tiny().build() as algo, tiny(seed=1).build() as other:
        algo.train()
        weights = algo.get_weights()
        other.set_weights(weights)
        obs = [np.array([x, 0.1, -x, 0.0], np.float32) for x in np.linspace(-1, 1, 5)]
        one, two = (algorithm._learner.learners["default_policy"] for algorithm in (algo, other))
        two.state = two.state._replace(normalizer=one.state.normalizer)
        other.set_weights(weights)
        for x in obs:
            assert algo.compute_single_action(x) == other.compute_single_action(x)
        with pytest.raises(steppe.ConfigError, match="shape"):
            algo.set_weights({"default_policy": np.zeros(3)})
        with pytest.raises(steppe.ConfigError, match="no policy"):
            algo.set_weights({"nobody": np.zeros(3)})


def test_compute_actions_agree_with_single_ones_and_unknown_policies_are_named():
    with tiny().build() as algo:
        obs = {i: np.full(4, i / 10, np.float32) for i in range(5)}
        many = algo.compute_actions(obs)
        assert many == {i: algo.compute_single_action(x) for i, x in obs.items()}
        assert algo.compute_single_action(obs[0], state=()) == (many[0], ())
        assert {algo.compute_single_action(obs[0], explore=True) for _ in range(40)} == {0, 1}
        assert algo.compute_actions({}) == {}
        with pytest.raises(steppe.ConfigError, match="default_policy"):
            algo.compute_single_action(obs[0], policy_id="defualt")
        with pytest.raises(steppe.SpaceError, match=r"E103"):
            algo.compute_single_action(np.zeros(3, np.float32))


def test_summary_names_network_and_parameters():
    with tiny().build() as algo:
        text = algo.summary()
    actor, critic = 4 * 16 + 16 + 16 * 2 + 2, 4 * 16 + 16 + 16 * 1 + 1
    assert f"{actor + critic} parameters" in text
    assert "CartPole-v1" in text


def test_min_steps_per_iteration():
    with tiny(min_sample_timesteps_per_iteration=300).build() as algo:
        assert algo.train()["timesteps_this_iter"] == 384


def test_small_fragments_are_stitched_to_a_batch():
    with tiny(rollout_fragment_length=8).build() as algo:
        result = algo.train()
    assert result["timesteps_this_iter"] == 128
    assert result["info"]["default_policy"]["rows"] == 128


def test_a_run_folder_is_written_and_names_its_seed(tmp_path):
    config = tiny(write_run=True, checkpoint_freq=1, seed=None)
    with config.build() as algo:
        algo.train()
        algo.train()
        folder = algo.run.path
    assert folder.resolve() == (tmp_path / "runs" / "CartPole-v1" / "ppo-1").resolve()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["seed"] == algo.config.seed is not None
    results = [json.loads(line) for line in (folder / "result.jsonl").read_text().splitlines()]
    assert [row["timesteps_total"] for row in results] == [128, 256]
    assert steppe.load(folder / "latest", write_run=False).train()["timesteps_total"] == 384


def test_a_failed_run_says_so(tmp_path):
    class Late(NeverEnds):
        def step(self, action):
            raise OSError("cable pulled")

    algo = tiny(Late, write_run=True).build()
    folder = algo.run.path
    with pytest.raises(OSError, match="cable pulled"), algo:
        algo.train()
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert "cable pulled" in json.loads((folder / "run.json").read_text())["error"]


def test_drawn_actions_go_on_after_a_restore(tmp_path):
    obs = {str(i): np.zeros(4, np.float32) for i in range(64)}
    with tiny().build() as algo:
        algo.compute_actions(obs, explore=True)
        path = algo.save(tmp_path / "c")
        expected = algo.compute_actions(obs, explore=True)
    with steppe.load(path) as algo:
        assert algo.compute_actions(obs, explore=True) == expected


def test_foreach_env_reaches_the_envs_of_the_user():
    with tiny(SimpleCorridor, env_config={"corridor_length": 3}).build() as algo:
        assert algo.foreach_env(lambda env: (type(env), env.end)) == [(SimpleCorridor, 3)] * 4
