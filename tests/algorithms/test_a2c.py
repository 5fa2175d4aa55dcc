"""A2C: one step of a whole batch against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest

import steppe
from steppe.errors import ConfigError
from tests.algorithms.naive import TINY, column, first_step, network, one_update, vtrace_by_loop
from tests.envs_for_tests import Identity

SMALL = {"num_envs_per_env_runner": 2, "train_batch_size": 32, "fcnet_hiddens": [8], "write_run": False}


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_an_update_is_one_step_of_the_whole_batch(lam):
    config = steppe.A2CConfig(**TINY, lr=0.01, lambda_=lam, entropy_coeff=0.1, vf_loss_coeff=0.3)
    learner, before, batch, stats = one_update(config)
    value, logp = network(learner, before, batch)
    # Traces that are never cut, with ratios of 1: generalised advantage estimation.
    advantage, target = vtrace_by_loop(batch, value, np.zeros_like(logp), 0.9, lam=lam)

    def loss(places, logp, value, entropy):
        gain = (logp * column(advantage, places)).mean()
        return -gain + 0.3 * ((value - column(target, places)) ** 2).mean() - 0.1 * entropy.mean()

    after, norm = first_step(learner, before, batch, loss, lr=0.01, grad_clip=0.5)
    assert np.abs(after - before).max() > 1e-3
    assert learner.get_weights() == pytest.approx(after, abs=2e-5)
    assert stats["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert stats["rows"] == len(advantage) == 48
    assert stats["epochs"] == 1
    assert stats["kl"] == pytest.approx(0.0, abs=1e-6)


def test_identity_is_learned_in_iterations_of_many_updates():
    settings = {"num_envs_per_env_runner": 4, "fcnet_hiddens": [16], "write_run": False, "seed": 0}
    batches = {"train_batch_size": 64, "min_sample_timesteps_per_iteration": 640}
    config = steppe.A2CConfig(env=Identity, **settings, **batches, lr=1e-2, gamma=0.0)
    with config.build() as algo:
        for _ in range(4):
            result = algo.train()
        greedy = algo.evaluate(num_episodes=4)
    assert result["timesteps_total"] == 4 * 640
    assert greedy["episode_reward_mean"] / 8 >= 0.9


def test_policies_that_share_layers_must_both_take_whole_batches():
    share = {"share": {"encoder": "trunk"}}
    policies = {
        "a": steppe.PolicySpec(config=share),
        "b": steppe.PolicySpec(config={**share, "minibatch_size": 16}),
    }
    config = steppe.IMPALAConfig(env=steppe.make_multi_agent("CartPole-v1"), env_config={"num_agents": 2})
    config = config.copy(policies=policies, policy_mapping_fn=lambda agent, *_: "ab"[agent], **SMALL)
    with pytest.raises(ConfigError, match="minibatch_size=None must be equal, not True and False"):
        config.build()


def test_two_policies_that_share_layers_are_stepped_once_by_whole_batches():
    policies = {
        name: steppe.PolicySpec(config={"share": {"encoder": "trunk"}, "gamma": gamma})
        for name, gamma in (("a", 0.9), ("b", 0.99))
    }
    config = steppe.A2CConfig(env=steppe.make_multi_agent("CartPole-v1"), env_config={"num_agents": 2})
    config = config.copy(policies=policies, policy_mapping_fn=lambda agent, *_: "ab"[agent], seed=0, **SMALL)
    with config.copy(min_sample_timesteps_per_iteration=0).build() as algo:
        for _ in range(3):
            info = algo.train()["info"]
    assert info["a"]["grad_norm"] == info["b"]["grad_norm"] > 0
    assert info["a"]["epochs"] == 1


def test_more_agents_than_a_batch_has_steps_are_still_one_step():
    env = steppe.make_multi_agent("CartPole-v1")
    config = steppe.A2CConfig(env=env, env_config={"num_agents": 5}, seed=0, **SMALL)
    with config.copy(min_sample_timesteps_per_iteration=0).build() as algo:
        rows = [algo.train()["info"]["default_policy"]["rows"] for _ in range(3)]
        learner = algo._learner.learners["default_policy"]
    assert max(rows) > 32
    assert int(learner.state.opt[1].count) == 3
