"""Actions that somebody else took: what learns from a replay learns from them, in its own units."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import ConfigError
from steppe.sampling.lanes import in_own_units
from steppe.types import Decision

ONE = "default_policy"
SETTINGS = {
    "num_envs_per_env_runner": 1,
    "train_batch_size": 32,
    "fcnet_hiddens": [16],
    "num_steps_sampled_before_learning_starts": 64,
    "min_sample_timesteps_per_iteration": 256,
    "replay_buffer_capacity": 4096,
    "lr": 3e-3,
    "gamma": 0.0,
    "seed": 0,
    "write_run": False,
}


class Watched(steppe.BaseEnv):
    """An agent acts by chance, whatever we would do; it is paid for coming near what it observes."""

    num_envs = 1
    observation_space = spaces.Box(0.0, 1.0, (1,))

    def __init__(self, env_config):
        self.action_space = env_config["action_space"]
        self.rng, self.action, self.sent = np.random.default_rng(0), None, []

    def seed(self, seeds):
        self.action_space.seed(seeds[0])

    def poll(self):
        reward = {} if self.action is None else {"a": self.score(self.action, float(self.obs[0]))}
        self.obs = np.float32([self.rng.integers(2)])
        self.action = self.action_space.sample()
        never = {0: {"__all__": False}}
        return {0: {"a": self.obs}}, {0: reward}, never, never, {0: {}}, {0: {"a": self.action}}

    def score(self, action, target):
        if isinstance(self.action_space, spaces.Discrete):
            return float(action == self.action_space.start + 2 * target)
        return -float(np.abs(action - (10.0 + 4.0 * target)).sum())

    def send_actions(self, action_dict):
        self.sent.append(action_dict)


CHOICE, REACH = spaces.Discrete(3, start=7), spaces.Box(8.0, 16.0, (1,))


def built(cls, space, **changes):
    env = {"env": Watched, "env_config": {"action_space": space}}
    return cls(**env, **{**SETTINGS, **changes}).build()


@pytest.mark.parametrize(("cls", "space"), [(steppe.DQNConfig, CHOICE), (steppe.SACConfig, CHOICE)])
def test_choices_are_learned_from_what_others_chose(cls, space):
    with built(cls, space) as algo:
        for _ in range(4):
            stats = algo.train()["info"][ONE]
        chosen = [int(algo.compute_single_action(np.float32([x]))) for x in (0, 1)]
        assert stats["updates_skipped"] == 0.0
    assert chosen == [7, 9]


@pytest.mark.parametrize("cls", [steppe.SACConfig, steppe.TD3Config])
def test_numbers_are_learned_from_what_others_did(cls):
    quiet = {"initial_alpha": 0.01} if cls is steppe.SACConfig else {}
    with built(cls, REACH, lr=1e-2, **quiet) as algo:
        for _ in range(6):
            assert algo.train()["info"][ONE]["updates_skipped"] == 0.0
        low, high = (float(algo.compute_single_action(np.float32([x]))[0]) for x in (0, 1))
    # Paid best are 10 and 14. The env's own units, taken for the policy's, would be far off.
    assert abs(low - 10.0) < 1.2
    assert abs(high - 14.0) < 1.2


def test_rows_hold_them_in_the_policys_units():
    with built(steppe.SACConfig, REACH) as algo:
        policy = algo.get_policy()
        column = np.array([[8.0], [12.0], [14.0]], np.float32)
        unknown, known = np.full(3, np.nan, np.float32), np.zeros(3, np.float32)
        units = in_own_units(policy, Decision(column, unknown)).action
        assert units[1:].ravel() == pytest.approx([0.0, np.arctanh(0.5)], abs=1e-6)
        assert units[0] < -5.0  # the bound itself is infinitely far; it is as near as float32 allows
        assert policy.to_env(units).ravel() == pytest.approx(column.ravel(), abs=1e-4)
        assert in_own_units(policy, Decision(column, known)).action is column
        (sample,) = algo.runner.sample()
        (rollout,) = sample.rollouts
    assert rollout.action.dtype == np.float32
    assert np.isnan(rollout.logp[rollout.acted]).all()
    assert np.abs(np.tanh(rollout.action[rollout.acted])).max() <= 1.0
    assert 0.3 < np.abs(np.tanh(rollout.action[rollout.acted])).mean() < 0.7  # even over the bounds
    with built(steppe.DQNConfig, CHOICE) as algo:
        (rollout,) = algo.runner.sample().pop().rollouts
    assert set(rollout.action[rollout.acted].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("cls", [steppe.PPOConfig, steppe.IMPALAConfig])
def test_what_learns_on_policy_names_what_can(cls):
    settings = {k: v for k, v in SETTINGS.items() if k in {"seed", "write_run", "fcnet_hiddens"}}
    settings |= {"env_config": {"action_space": CHOICE}, "train_batch_size": 8}
    with (
        cls(env=Watched, **settings).build() as algo,
        pytest.raises(ConfigError, match="or use DQNConfig, SAC"),
    ):
        algo.train()
