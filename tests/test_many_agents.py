"""Runs with many agents, from env to checkpoint: counted, evaluated, watched, and resumed exactly."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from tests.states import diff

TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 40,
    "minibatch_size": 16,
    "num_epochs": 1,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}


class Poles(steppe.MultiAgentEnv):
    """CartPoles side by side; each agent ends by itself, the episode with the last one."""

    def __init__(self, env_config):
        self.envs = [gymnasium.make("CartPole-v1") for _ in range(env_config.get("num", 3))]
        self.possible_agents = list(range(len(self.envs)))
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space

    def reset(self, *, seed=None, options=None):
        self.live = set(self.possible_agents)
        seeds = [None if seed is None else seed + 1000 * i for i in self.possible_agents]
        first = [env.reset(seed=s) for env, s in zip(self.envs, seeds, strict=True)]
        return {i: obs for i, (obs, _) in enumerate(first)}, {}

    def step(self, action_dict):
        results = {i: self.envs[i].step(action) for i, action in action_dict.items()}
        self.live -= {i for i, (_, _, terminated, truncated, _) in results.items() if terminated or truncated}
        columns = [{i: result[place] for i, result in results.items()} for place in range(5)]
        columns[2]["__all__"] = not self.live
        columns[3]["__all__"] = False
        return tuple(columns)


class Crowd(steppe.MultiAgentEnv):
    """Two kinds with spaces of their own: a boss every third step, and workers who live for two."""

    def __init__(self, env_config):
        self.rng = np.random.default_rng(0)

    def get_observation_space(self, agent):
        return spaces.Discrete(30) if agent == "boss" else spaces.Box(-1, 1, (2,), np.float32)

    def get_action_space(self, agent):
        return spaces.Discrete(2) if agent == "boss" else spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t, self.length = 0, int(self.rng.integers(9, 15))
        return self.observed(), {}

    def observed(self):
        seen = {f"worker_{self.t // 2}": self.rng.uniform(-1, 1, 2).astype(np.float32)}
        return {"boss": self.t, **seen} if self.t % 3 == 0 else seen

    def step(self, action_dict):
        before = f"worker_{self.t // 2}"
        self.t += 1
        done = self.t == self.length
        obs = self.observed()
        ended = {} if before in obs else {before: True}
        return obs, {before: 1.0, "boss": 0.5}, {**ended, "__all__": done}, {"__all__": False}, {}


def kind(agent_id):
    return "boss" if agent_id == "boss" else "worker"


def crowd(**changes):
    specs = {
        "boss": (None, spaces.Discrete(30), spaces.Discrete(2), {}),
        "worker": (None, spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32), {}),
    }
    own = {"env": Crowd, "policies": specs, "policy_mapping_fn": kind}
    return steppe.PPOConfig(**{**TINY, **own, **changes})


def poles(**changes):
    own = {"policies": {"even", "odd"}, "policy_mapping_fn": lambda agent_id: ("even", "odd")[agent_id % 2]}
    return steppe.PPOConfig(env=Poles, **{**TINY, **own, **changes})


def test_env_steps_count_once_and_agents_are_counted_beside_them():
    with poles(train_batch_size=400).build() as algo:
        result = algo.train()
    assert result["timesteps_this_iter"] == 400
    assert 400 < result["agent_timesteps_total"] <= 1200
    rows = sum(stats["rows"] for stats in result["info"].values())
    assert rows <= result["agent_timesteps_total"]
    assert set(result["info"]) == set(result["policy_reward_mean"]) == {"even", "odd"}
    assert set(result["agent_reward_mean"]) == {"0", "1", "2"}
    agents, policies = result["agent_reward_mean"], result["policy_reward_mean"]
    assert result["episode_reward_mean"] == pytest.approx(sum(agents.values()))
    assert policies["odd"] == pytest.approx(agents["1"])
    assert policies["even"] == pytest.approx((agents["0"] + agents["2"]) / 2)


@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
@pytest.mark.parametrize("make", [poles, crowd])
def test_resume_is_exact_with_open_lanes_of_many_agents(make, mode, tmp_path):
    config = make(batch_mode=mode, evaluation_interval=2, evaluation_duration=2)
    with config.build() as algo:
        for _ in range(2):
            algo.train()
        path = algo.save(tmp_path / "c")
        for _ in range(2):
            algo.train()
        expected = algo.get_state()
    code = {"policy_mapping_fn": config.policy_mapping_fn}
    with steppe.load(path, env=config.env, **code) as algo:
        for _ in range(2):
            algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []


def test_rewards_of_those_who_are_silent_are_all_counted():
    lengths = []

    class Watch(steppe.Callbacks):
        def on_episode_end(self, *, episode):
            lengths.append(episode.length)
            assert episode.total_reward == pytest.approx(1.5 * episode.length)
            assert episode.agent_rewards["boss"] == pytest.approx(0.5 * episode.length)
            assert episode.policy_for("worker_1") == "worker"
            assert len(episode.get_agents()) == 2 + episode.length // 2

    with crowd(callbacks_class=Watch).build() as algo:
        result = algo.train()
        evaluation = algo.evaluate(num_episodes=4)
    assert lengths
    assert result["episode_reward_mean"] == pytest.approx(1.5 * result["episode_len_mean"])
    assert evaluation["episode_reward_mean"] == pytest.approx(1.5 * evaluation["episode_len_mean"])


def test_trajectories_of_a_fragment_by_agent_with_those_of_the_others():
    seen = set()

    class Watch(steppe.Callbacks):
        def on_postprocess_trajectory(self, *, agent_id, policy_id, postprocessed_batch, original_batches):
            seen.add(policy_id)
            assert policy_id == kind(agent_id)
            rewards = original_batches[agent_id][1]["rewards"]
            np.testing.assert_array_equal(postprocessed_batch["rewards"], rewards)
            if agent_id == "boss":  # what it earned while it was silent came with its next row
                assert set(rewards.tolist()) <= {0.5, 1.0, 1.5}

    with crowd(callbacks_class=Watch).build() as algo:
        algo.train()
    assert seen == {"boss", "worker"}


def test_a_policy_of_many_agents_is_loaded_by_its_name(tmp_path):
    with crowd().build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        expected = algo.compute_single_action(np.zeros(2, np.float32), policy_id="worker")
    policy = steppe.load_policy(path, policy_id="worker")
    np.testing.assert_allclose(policy.act(np.zeros(2, np.float32)), expected, atol=1e-5)


class Unsaid(Crowd):
    """Says nothing about its spaces, as old envs of many agents did."""

    def get_observation_space(self, agent):
        return None

    get_action_space = get_observation_space


def test_spaces_that_only_policies_name():
    asked = []

    def mapping(agent_id, episode):
        asked.append((agent_id, episode.id))
        return kind(agent_id)

    with crowd(env=Unsaid, policy_mapping_fn=mapping).build() as algo:
        result, evaluation = algo.train(), algo.evaluate(num_episodes=2)
    assert set(result["info"]) == {"boss", "worker"}
    assert evaluation["episodes_this_iter"] == 2
    assert len(asked) == len(set(asked))
    assert any(id.startswith("e") for _, id in asked)


def test_agents_without_spaces_ask_for_them():
    for env in (Crowd, Unsaid):
        config = steppe.PPOConfig(env=env, policies={"boss", "worker"}, policy_mapping_fn=kind, **TINY)
        wrong = pytest.raises((steppe.ConfigError, steppe.SpaceError), match=r"spaces? ")
        with wrong, config.build() as algo:
            algo.train()


@pytest.mark.parametrize("duration", [2, 3])
def test_shared_envs_with_hooks_and_silent_agents(duration, tmp_path):
    class Watch(steppe.Callbacks):
        def on_episode_end(self, *, episode):
            episode.custom_metrics["length"] = episode.length

    shared = {"evaluation_envs": "shared", "evaluation_interval": 1, "evaluation_duration": duration}
    config = crowd(callbacks_class=Watch, **shared)
    with config.build() as algo:
        for _ in range(2):
            assert algo.train()["evaluation"]["episodes_this_iter"] == duration
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_state()
    with steppe.load(path, env=Crowd, policy_mapping_fn=kind, callbacks_class=Watch) as algo:
        algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []
