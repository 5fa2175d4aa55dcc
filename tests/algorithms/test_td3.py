"""TD3: the losses on hand-computed numbers, what is delayed, beginning by chance, exact resume."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms.td3 import Hyper, Static, td3_actor_loss, td3_critic_loss, td3_update
from steppe.learning.action_networks import make_action_networks
from steppe.learning.off_policy import LearnerState
from steppe.learning.optimizer import clipped_adam_form, clipped_adam_init
from steppe.policies.actor_critic import Layout
from steppe.spaces import spec_of
from steppe.types import SpacePair
from tests.algorithms.updates import one_update
from tests.envs_for_tests import Identity
from tests.states import diff, state_hash

TINY = {
    "train_batch_size": 32,
    "fcnet_hiddens": [16],
    "num_steps_sampled_before_learning_starts": 64,
    "min_sample_timesteps_per_iteration": 128,
    "replay_buffer_capacity": 4096,
    "write_run": False,
    "seed": 0,
}
REACH = spaces.Box(-2.0, 4.0, (1,), np.float32)


def networks():
    return make_action_networks(
        SpacePair(spec_of(spaces.Box(-1, 1, (2,), np.float32)), spec_of(REACH)),
        np.random.default_rng(0),
        algorithm="TD3",
        unused=[],
        discrete=False,
        count=2,
        normalize=False,
        hiddens=[4],
        activation="tanh",
        conv_filters=None,
        log_std=-2.0,
    )


def hyper(**changes):
    values = {"lr": 0.0, "actor_lr": 1e-3, "critic_lr": 1e-2, "policy_delay": 2, "noise": 0.2}
    values |= {"noise_clip": 0.5, "tau": 0.25} | changes
    return Hyper(**{name: np.float32(value) for name, value in values.items()})


class Linear(eqx.Module):
    """An actor whose mean is what it observes first, or a critic: weights of observation and action."""

    w: jax.Array

    def __call__(self, obs, action=None):
        return obs * self.w if action is None else (jnp.concatenate([obs, action]) @ self.w)[None]


def test_the_losses_equal_hand_computed_numbers():
    structure, actor = networks().structure, Linear(jnp.ones(2))
    critics = Linear(jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 4.0]]))  # obs[0] + 2 * action; 4 * action
    targets = Linear(jnp.array([[0.0, 0.0, 10.0], [0.0, 5.0, 0.0]]))  # 10 * action; 5 * obs[1]
    rows = {
        "obs": jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
        "action": jnp.arctanh(jnp.array([[0.5], [0.5], [0.5]])),
        "reward": jnp.array([1.0, 2.0, 3.0]),
        "discount": jnp.array([0.9, 0.5, 0.0]),
        "next_obs": jnp.array([[0.0, 1.0], [3.0, 9.0], [7.0, 7.0]]),
        "weight": jnp.array([1.0, 1.0, 2.0]),
    }
    normal = jnp.array([[1.0], [9.0], [0.0]])  # 0.2; 1.8, of which 0.5 is let through
    judge = jax.jit(partial(td3_critic_loss, structure))
    loss, (parts, td_error) = judge(critics, (actor, targets), rows, normal, hyper())
    aims = np.array([1.0 + 0.9 * min(10 * 0.2, 5.0), 2.0 + 0.5 * min(10 * 1.0, 45.0), 3.0])  # 1: the bound
    first, second = np.array([2.0, 1.0, 1.0]) - aims, np.array([2.0, 2.0, 2.0]) - aims
    np.testing.assert_allclose(td_error, first, rtol=1e-5)
    weights = np.array([1.0, 1.0, 2.0])
    assert loss == pytest.approx((weights * (first**2 + second**2)).mean(), rel=1e-5)
    assert parts["mean_q"] == pytest.approx((4.0 + 6.0) / 6, rel=1e-5)
    actor_loss = td3_actor_loss(structure, actor, critics, rows["obs"])
    assert actor_loss == pytest.approx(-(1.0 + 2 * np.tanh(1.0)) / 3, rel=1e-5)  # by the first critic alone


def test_actor_and_targets_move_with_every_second_update_only():
    nets, n = networks(), 6
    size = nets.structure.actor.size
    params = np.concatenate([nets.actor, nets.critics])
    opt = clipped_adam_init(nets.actor), clipped_adam_init(nets.critics)
    state, layout = LearnerState(params, params + 1.0, opt), Layout.of(nets.trees)
    forms = clipped_adam_form(nets.structure.actor), clipped_adam_form(nets.structure.critics)
    form = LearnerState(layout, layout, forms, None)
    rng = np.random.default_rng(0)
    columns = {"obs": (n, 2), "action": (n, 1), "reward": n, "discount": n, "next_obs": (n, 2)}
    rows = {name: rng.normal(size=shape).astype(np.float32) for name, shape in columns.items()}
    rows |= {"weight": np.ones(n, np.float32), "sync": np.bool_(True)}
    static = Static(nets.structure, None)
    for number in (0, 1):
        rows["number"] = np.uint32(number)
        new, parts, _ = one_update(td3_update, static, form, state, rows, hyper())
        moved = np.abs(new.params - params)
        assert moved[size:].max() == pytest.approx(1e-2, rel=0.1)
        if number:
            assert moved[:size].max() == parts["actor_loss"] == 0.0
            assert np.array_equal(new.target, state.target)
            assert jax.tree.all(jax.tree.map(np.array_equal, new.opt[0], opt[0]))
        else:
            assert moved[:size].max() == pytest.approx(1e-3, rel=0.1)
            np.testing.assert_allclose(
                new.target, state.target + 0.25 * (new.params - state.target), rtol=1e-4
            )


# ---------------------------------------------------------------- whole runs


def test_identity_is_learned_and_begun_by_chance():
    seen = []

    class Watched(Identity):
        def step(self, action):
            seen.append(float(action[0]))
            return super().step(action)

    settings = {**TINY, "lr": 5e-3, "gamma": 0.0, "rollout_fragment_length": 4}
    with steppe.TD3Config(env=lambda: Watched(REACH), **settings).build() as algo:
        algo.train()
        first = np.array(seen[:64])
        assert (first < -1).sum() > 4  # uniform over the bounds, where the new network would say 1
        assert (first > 3).sum() > 4
        for _ in range(10):
            algo.train()
        greedy = algo.evaluate(num_episodes=8)
    assert greedy["episode_reward_mean"] / 8 > -0.4  # random play loses 2 a step, always saying 1 loses 1.5


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(0, np.inf, (1,), np.float32)], ids=str)
def test_actions_that_it_cannot_learn_are_refused_with_who_can(space):
    other = "DQNConfig or PPOConfig" if isinstance(space, spaces.Discrete) else "PPOConfig"
    with pytest.raises(steppe.ConfigError, match=rf"TD3 chooses in Boxes with finite bounds, .*use {other},"):
        steppe.TD3Config(env=lambda: Identity(space), **TINY).build()


def test_a_run_goes_on_exactly_from_a_checkpoint_and_acts_alike_without_jax(tmp_path):
    config = {**TINY, "exploration_noise_correlation": 0.8, "observation_filter": "MeanStdFilter"}
    with steppe.TD3Config(env="Pendulum-v1", **config).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        policy, rng = steppe.load_policy(path), np.random.default_rng(0)
        for obs in rng.uniform(-1, 1, (16, 3)).astype(np.float32):
            expected = algo.compute_single_action(obs, explore=False)
            np.testing.assert_allclose(policy.act(obs), expected, atol=1e-5)
        assert policy.outputs(obs)[1] == pytest.approx(np.log(0.1))  # what it explores with
        algo.train()
        expected = algo.get_state()
    with steppe.load(path) as again:
        again.train()
        assert diff(again.get_state(), expected) == []
        assert state_hash(again.get_state()) == state_hash(expected)


def test_without_the_twin_and_its_delay_it_is_ddpg():
    settings = {**TINY, "twin_q": False, "policy_delay": 1, "target_noise": 0.0}
    with steppe.TD3Config(env="Pendulum-v1", **settings).build() as algo:
        stats = algo.train()["info"]["default_policy"]
    assert np.isfinite(list(stats.values())).all()
    assert stats["updates"] > 0
