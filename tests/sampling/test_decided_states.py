"""Rows that others decided pass through a policy's memory as its own do."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.spaces import leaves, take
from tests.test_off_policy_actions import Watched

SETTINGS = {
    "env": Watched,
    "num_envs_per_env_runner": 1,
    "fcnet_hiddens": [8],
    "memory_size": 4,
    "seed": 0,
    "write_run": False,
}
CHOICE, REACH = spaces.Discrete(3, start=7), spaces.Box(8.0, 16.0, (1,))


@pytest.mark.parametrize(
    ("cls", "space", "changes"),
    [
        (steppe.DQNConfig, CHOICE, {"memory": "lstm", "prev_action": True, "prev_reward": True}),
        (steppe.SACConfig, REACH, {"memory": "gru", "prev_action": True, "framestack": 2}),
        (steppe.TD3Config, REACH, {"framestack": 3}),
    ],
)
def test_the_state_of_a_fragment_is_that_of_a_walk_through_all_rows(cls, space, changes):
    with cls(**SETTINGS, **changes, env_config={"action_space": space}).build() as algo:
        policy, weights = algo.get_policy(), algo.runner.sampler.weights_of("default_policy")
        state, seen = policy.initial_state(1), 0
        for _ in range(4):
            (sample,) = algo.runner.sample()
            (rollout,) = sample.rollouts
            for row in np.flatnonzero(rollout.filled[:, 0]):
                if "reward" in state:
                    state["reward"][:] = rollout.reward[row]
                if row == 0:
                    for wanted, found in zip(leaves(state), leaves(rollout.state0), strict=True):
                        np.testing.assert_allclose(wanted, found[:1], atol=1e-6)
                if row == rollout.filled.sum() - 1:  # row 0 of the next fragment
                    break
                state = policy.act(weights, take(rollout.obs, row), state, None).state
                if "action" in state:
                    state["action"] = take(rollout.action, row)
                seen += 1
    assert seen > 12
    assert any(np.abs(leaf).max() > 0 for leaf in leaves(state))
