"""Framestack in whole runs: what a policy acts on is what it learns from, and a run goes on exactly."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import ConfigError
from tests.states import diff, state_hash

OFF_POLICY = {
    "num_envs_per_env_runner": 3,
    "train_batch_size": 16,
    "fcnet_hiddens": [16],
    "min_sample_timesteps_per_iteration": 60,
    "num_steps_sampled_before_learning_starts": 32,
    "replay_buffer_capacity": 200,
    "write_run": False,
    "seed": 0,
    "framestack": 3,
}


class Clock(gymnasium.Env):
    """Shows the name of its episode and the number of its row; episodes are of 1 to 7 steps."""

    def __init__(self, env_config):
        self.observation_space = spaces.Box(-1e4, 1e4, (2,), np.float32)
        self.action_space = spaces.Discrete(2) if env_config.get("discrete") else spaces.Box(-1, 1, (1,))

    def row(self):
        return np.float32([self.name, self.t])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.name, self.length = 0, *self.np_random.integers([1, 1], [9999, 8])
        return self.row(), {}

    def step(self, action):
        self.t += 1
        return self.row(), 1.0, bool(self.t == self.length), False, {}


def config(name, **changes):
    own = {**OFF_POLICY, **changes}
    own.setdefault("env_config", {"discrete": name == "DQN"})
    return getattr(steppe, f"{name}Config")(env=Clock, **own)


def stack_at(obs, count=3):
    """What is to be seen of a row that shows its name and its time."""
    name, t = obs
    return tuple(float(x) for back in range(count - 1, -1, -1) for x in (name, max(t - back, 0)))


def spied(policy, shown):
    """Note what the policy inside of the frames is shown."""
    inner, act = policy._policy, policy._policy.act

    def noting(weights, obs, state, noise):
        shown.extend(tuple(row) for row in obs.tolist())
        return act(weights, obs, state, noise)

    inner.act = noting


@pytest.mark.parametrize("name", ["DQN", "SAC", "TD3"])
def test_what_is_acted_on_is_what_is_learned_from(name):
    shown, batches = [], []
    with config(name).build() as algo:
        learner = algo._learner.learners["default_policy"]
        spied(learner.policy, shown)
        for _ in range(5):  # more rows than the replay holds
            algo.train()
            batches.append(learner._replay.sample(np.random.default_rng(0), 4, 50))
        frames = learner._method.frames
    assert set(shown) == {stack_at(row[-2:]) for row in shown}
    for batch in batches:
        seen, after = (frames.joined(batch[key], 2).reshape(-1, 6) for key in ("obs", "next_obs"))
        assert {tuple(row) for row in seen.tolist()} <= set(shown)
        for row in after.tolist():  # final ones are not acted on
            assert tuple(row) == stack_at(row[-2:])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DQN", {"prioritized_replay": True, "observation_filter": "MeanStdFilter"}),
        ("SAC", {"exploration_noise": 0.1, "exploration_noise_correlation": 0.5}),
        ("TD3", {"exploration_noise_correlation": 0.5, "observation_filter": "MeanStdFilter"}),
    ],
)
def test_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, name, changes):
    with config(name, **changes).build() as algo:
        algo.train()
        algo.save(tmp_path / "c")
        algo.train()
        wanted = algo.get_state()
        with steppe.load(tmp_path / "c", env=Clock) as again:
            again.train()
            found = again.get_state()
    owners = ("learner", "runner", "actions")
    assert [state_hash(wanted[o]) for o in owners] == [state_hash(found[o]) for o in owners], diff(
        wanted, found
    )


def test_images_are_stacked_by_channels_and_learned_from():
    class Still(Clock):
        def __init__(self, env_config):
            super().__init__(env_config)
            self.observation_space = spaces.Box(0, 255, (16, 16), np.uint8)

        def row(self):
            return np.full((16, 16), self.t, np.uint8)

    own = config("DQN", framestack=2, conv_filters=[[4, 4, 4]], train_batch_size=4)
    with own.copy(env=Still).build() as algo:
        result = algo.train()
        learner = algo._learner.learners["default_policy"]
        assert learner._method.observation.shape == (16, 16, 2)
        assert learner._replay._obs.shape == (200, 16, 16)
    assert result["info"]["default_policy"]["updates"] > 0


def test_the_critic_does_not_judge_single_observations():
    with config("DQN").build() as algo:
        learner = algo._learner.learners["default_policy"]
        with pytest.raises(ConfigError, match="single ones are not enough"):
            learner.values(np.zeros((1, 2), np.float32))


def test_a_space_without_boxes_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match="framestack=3 stacks Boxes"):
        config("DQN", env_config={}).copy(env="FrozenLake-v1").build()
