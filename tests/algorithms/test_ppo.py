"""PPO: the loss on hand-computed numbers, identity envs of every action kind, guards of an update."""

from __future__ import annotations

import logging

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms.ppo import Hyper, ppo_loss
from steppe.models.distributions import Distribution
from steppe.spaces import spec_of
from tests.envs_for_tests import Identity, NeverEnds

TINY = {
    "num_envs_per_env_runner": 4,
    "train_batch_size": 128,
    "minibatch_size": 32,
    "num_epochs": 4,
    "fcnet_hiddens": [16],
    "write_run": False,
    "seed": 0,
}


class TwoLogits(eqx.Module):
    """A model whose outputs are its inputs: two logits and a value."""

    def __call__(self, obs):
        return obs[:2], obs[2]


def hyper(**changes):
    values = {
        "lr": 1e-3,
        "clip": 0.2,
        "vf_coeff": 0.5,
        "vf_clip": np.inf,
        "entropy_coeff": 0.1,
        "kl_coeff": 0.0,
        "kl_stop": np.inf,
        "gamma": 0.99,
        "lam": 0.95,
    }
    return Hyper(**{**values, **changes})


def rows(weight=(1.0, 1.0, 0.0)):
    """Three rows: equal odds; odds 3:1; and one that counts for nothing unless weighted."""
    return {
        "obs": jnp.array([[0.0, 0.0, 1.0], [np.log(3.0), 0.0, 2.0], [5.0, 0.0, 9.0]]),
        "action": jnp.array([0, 0, 1]),
        "logp": jnp.log(jnp.array([0.5, 0.5, 0.5])),
        "advantage": jnp.array([2.0, 1.0, 7.0]),
        "target": jnp.array([0.0, 5.0, 0.0]),
        "weight": jnp.array(weight),
    }


def test_the_loss_equals_hand_computed_numbers():
    loss, parts = ppo_loss(TwoLogits(), Distribution(spec_of(spaces.Discrete(2))), rows(), hyper())
    # ratios 1 and 0.75 / 0.5 = 1.5, the second clipped to 1.2
    assert parts["policy_loss"] == pytest.approx(-(2.0 + 1.2) / 2)
    assert parts["vf_loss"] == pytest.approx((1.0 + 9.0) / 2)
    entropies = np.log(2.0), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert parts["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert parts["kl"] == pytest.approx((0.5 - np.log(1.5)) / 2, rel=1e-4)
    assert parts["clip_fraction"] == pytest.approx(0.5)
    assert loss == pytest.approx(-1.6 + 0.5 * 5.0 - 0.1 * np.mean(entropies), rel=1e-5)


def test_a_negative_advantage_is_not_clipped_from_above():
    batch = {**rows(), "advantage": jnp.array([2.0, -1.0, 0.0])}
    _, parts = ppo_loss(TwoLogits(), Distribution(spec_of(spaces.Discrete(2))), batch, hyper())
    assert parts["policy_loss"] == pytest.approx(-(2.0 - 1.5) / 2)


def test_vf_clip_is_a_ceiling_on_the_squared_error_without_gradient():
    _, parts = ppo_loss(TwoLogits(), Distribution(spec_of(spaces.Discrete(2))), rows(), hyper(vf_clip=4.0))
    assert parts["vf_loss"] == pytest.approx((1.0 + 4.0) / 2)


def test_rows_without_weight_give_no_gradient_even_where_they_are_not_finite():
    batch = rows()
    batch["advantage"] = batch["advantage"].at[2].set(jnp.inf)

    def loss(obs):
        return ppo_loss(
            TwoLogits(), Distribution(spec_of(spaces.Discrete(2))), {**batch, "obs": obs}, hyper()
        )[0]

    gradient = jax.grad(loss)(batch["obs"])
    assert np.isfinite(gradient[:2]).all()


@pytest.mark.parametrize(
    ("space", "random", "bar"),
    [
        (spaces.Discrete(3, start=2), 1 / 3, 0.9),
        (spaces.MultiDiscrete([3, 2]), 5 / 12, 0.8),
        (spaces.MultiBinary(2), 1 / 2, 0.9),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))), 1 / 2 + 1 / 3, 1.5),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Dict({"c": spaces.Discrete(2)})}), None, None),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "Tuple", "nested Dict"],
)
def test_identity_is_learned(space, random, bar):
    if bar is None:
        space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.MultiDiscrete([2, 2])})
        random, bar = 1.0, 1.7
    config = steppe.PPOConfig(env=lambda: Identity(space), **{**TINY, "lr": 5e-3, "gamma": 0.0})
    with config.build() as algo:
        first = algo.train()
        assert abs(first["reward_per_step"] - random) < 0.25  # starts as random play
        for _ in range(19):
            result = algo.train()
        greedy = algo.evaluate(num_episodes=8)
    assert result["reward_per_step"] > random + 0.5 * (bar - random)
    assert greedy["episode_reward_mean"] / 8 >= bar


@pytest.mark.parametrize("squash", [False, True])
def test_identity_is_learned_with_bounded_boxes(squash):
    space = spaces.Box(-2.0, 4.0, (1,), np.float32)
    settings = {**TINY, "lr": 1e-2, "gamma": 0.0, "squash_actions": squash}
    with steppe.PPOConfig(env=lambda: Identity(space), **settings).build() as algo:
        for _ in range(25):
            algo.train()
        greedy = algo.evaluate(num_episodes=8)
    assert greedy["episode_reward_mean"] / 8 > -0.6  # random play loses 2 a step, always saying 1 loses 1.5


def test_unbounded_actions_are_learned():
    class Centre(gymnasium.Env):
        def __init__(self):
            self.action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
            self.observation_space = spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), -float(np.abs(action - 1.5).sum()), True, False, {}

    with steppe.PPOConfig(env=Centre, **{**TINY, "lr": 1e-2}).build() as algo:
        for _ in range(25):
            algo.train()
        action = algo.compute_single_action(np.zeros(1, np.float32))
    assert np.abs(action - 1.5).max() < 0.3


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    class Huge(NeverEnds):
        def step(self, action):
            return np.zeros(2, np.float32), 3e38, False, False, {}

    with steppe.PPOConfig(env=Huge, reward_scale="none", **TINY).build() as algo:
        before = algo.get_weights()["default_policy"]
        result = algo.train()
        after = algo.get_weights()["default_policy"]
    assert result["info"]["default_policy"]["updates_skipped"] == 1
    assert np.array_equal(before, after)


def test_a_first_fragment_is_explored_whatever_the_units_of_the_observations():
    settings = {**TINY, "fcnet_hiddens": [64, 64], "fcnet_activation": "relu"}
    with steppe.PPOConfig(env=NeverEnds, **settings).build() as algo:
        rng, policy = np.random.default_rng(0), algo.get_policy()
        obs = (1e5 * rng.normal(size=(64, 2))).astype(np.float32)
        weights = algo.runner.sampler.weights_of("default_policy")
        logp = policy.act(weights, obs, None, rng.uniform(0.01, 0.99, (64, 1)).astype(np.float32)).logp
    assert np.exp(logp).max() < 0.6


def test_statistics_that_would_overflow_are_not_kept():
    class Jackpot(NeverEnds):
        steps = 0

        def step(self, action):
            Jackpot.steps += 1
            return np.zeros(2, np.float32), 1e25 if Jackpot.steps == 200 else 1.0, False, False, {}

    with steppe.PPOConfig(env=Jackpot, **TINY).build() as algo:
        stats = [algo.train()["info"]["default_policy"] for _ in range(3)]
        learner = algo.get_state()["learner"]["default_policy"]
    assert [s["updates_skipped"] for s in stats] == [0, 1, 1]
    assert all(np.isfinite(array).all() for array in learner["arrays"])


def test_kl_stop_ends_the_epochs():
    settings = {**TINY, "lr": 3e-2, "num_epochs": 10}
    with steppe.PPOConfig(env="CartPole-v1", kl_stop=1e-6, **settings).build() as algo:
        assert algo.train()["info"]["default_policy"]["epochs"] < 10
    with steppe.PPOConfig(env="CartPole-v1", **settings).build() as algo:
        assert algo.train()["info"]["default_policy"]["epochs"] == 10


def test_schedules_follow_the_env_steps():
    settings = {**TINY, "lr": [[0, 1e-2], [256, 0.0]], "entropy_coeff": [[0, 0.4], [512, 0.0]]}
    with steppe.PPOConfig(env="CartPole-v1", **settings).build() as algo:
        first, second = (algo.train()["info"]["default_policy"] for _ in range(2))
        before = algo.get_weights()["default_policy"]
        algo.train()
        after = algo.get_weights()["default_policy"]
    assert first["cur_lr"] == pytest.approx(5e-3)
    assert first["entropy_coeff"] == pytest.approx(0.3)
    assert second["cur_lr"] == 0.0
    assert np.array_equal(before, after)  # a learning rate of 0 changes nothing


def test_the_kl_penalty_adapts_to_its_target():
    with steppe.PPOConfig(env="CartPole-v1", kl_coeff=0.2, kl_target=10.0, **TINY).build() as algo:
        assert algo.train()["info"]["default_policy"]["cur_kl_coeff"] == pytest.approx(0.1)
    with steppe.PPOConfig(env="CartPole-v1", kl_coeff=0.2, kl_target=1e-9, **TINY).build() as algo:
        assert algo.train()["info"]["default_policy"]["cur_kl_coeff"] == pytest.approx(0.3)


def test_a_minibatch_larger_than_the_batch_is_one_minibatch(caplog):
    with caplog.at_level(logging.WARNING, "steppe"):
        config = steppe.PPOConfig(env="CartPole-v1", **{**TINY, "minibatch_size": 100_000})
        with config.build() as algo:
            assert algo.train()["info"]["default_policy"]["rows"] == 128


def test_shared_layers_and_images_and_state_dependent_deviations_train():
    class Picture(gymnasium.Env):
        def __init__(self):
            self.action_space = spaces.Box(-1, 1, (1,), np.float32)
            self.observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.observation_space.sample(), {}

        def step(self, action):
            self.t += 1
            return self.observation_space.sample(), float(action[0]), self.t > 6, False, {}

    settings = {**TINY, "train_batch_size": 64, "vf_share_layers": True, "free_log_std": False}
    with steppe.PPOConfig(env=Picture, **settings).build() as algo:
        algo.train()
        result = algo.train()
    assert np.isfinite(list(result["info"]["default_policy"].values())).all()


def test_the_rllib_preset_trains():
    config = steppe.PPOConfig.preset("rllib", env="CartPole-v1", seed=0, write_run=False)
    config = config.copy(train_batch_size=128, num_epochs=2, fcnet_hiddens=[16])
    assert (config.clip_param, config.vf_clip_param, config.lr) == (0.3, 10.0, 5e-5)
    with config.build() as algo:
        assert np.isfinite(algo.train()["info"]["default_policy"]["total_loss"])


def test_values_of_a_truncated_task_bootstrap():
    """An episode cut after 8 steps of reward 1 with gamma 0.9 is worth 10, not 5.7."""
    settings = {**TINY, "lr": 1e-2, "gamma": 0.9, "reward_scale": "none", "max_episode_steps": 8}
    with steppe.PPOConfig(env=NeverEnds, **settings).build() as algo:
        for _ in range(40):
            algo.train()
        learner = algo._learner.learners["default_policy"]
        model = learner.networks.layout.unravel(jnp.asarray(learner.state.params))
        assert float(model.value(jnp.zeros(2))) == pytest.approx(10.0, abs=0.7)
