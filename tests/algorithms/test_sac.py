"""SAC: the losses on hand-computed numbers, one update against a naive one, known answers, exact resume."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms.sac import Hyper, Static, outlook, sac_losses, sac_update, sac_values
from steppe.errors import LearningError
from steppe.learning.action_networks import make_action_networks
from steppe.learning.off_policy import LearnerState
from steppe.learning.optimizer import clipped_adam_form, clipped_adam_init
from steppe.models.distributions import Distribution
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
PAIR = SpacePair(spec_of(spaces.Box(-1, 1, (2,), np.float32)), spec_of(REACH))


def networks(pair=PAIR, **changes):
    settings = {
        "algorithm": "SAC",
        "unused": [],
        "discrete": True,
        "count": 2,
        "normalize": False,
        "hiddens": [4],
        "activation": "tanh",
        "conv_filters": None,
    }
    return make_action_networks(pair, np.random.default_rng(0), **settings | changes)


class Outputs(eqx.Module):
    """An actor whose parameters are what it observes, and a critic: weights of observation and action."""

    w: jax.Array

    def __call__(self, obs, action=None):
        return obs * self.w if action is None else (jnp.concatenate([obs, action]) @ self.w)[None]


CHOICES = (
    networks()
    ._replace(
        structure=networks().structure._replace(
            distribution=Distribution(spec_of(spaces.Discrete(2)), squash=True)
        )
    )
    .structure
)


class Table(eqx.Module):
    """Two choices' values, whatever is observed."""

    q: jax.Array

    def __call__(self, obs, action):
        return self.q + 0.0 * obs[:2].sum()


def test_the_losses_of_a_box_equal_hand_computed_numbers():
    """Noise of 0.5 draws the mean, 0 in ``obs``, where tanh has a slope of 1: a density of 1 / sqrt(2 pi)."""
    structure = networks().structure
    actor, log_alpha = Outputs(jnp.ones(2)), jnp.log(0.5)
    critics = Outputs(jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 4.0]]))  # 1 * obs[0] + 2 * action; 4 * action
    targets = Outputs(jnp.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))  # obs[0]; 2 * obs[0]
    rows = {
        "obs": jnp.zeros((1, 2)),
        "action": jnp.arctanh(jnp.array([[0.5]])),
        "reward": jnp.array([1.0]),
        "discount": jnp.array([0.9]),
        "next_obs": jnp.array([[3.0, 0.0]]),
        "weight": jnp.ones(1),
    }
    noise = (jnp.full((1, 1), 0.5), jnp.full((1, 1), 0.5))
    _, (parts, td_error) = jax.jit(partial(sac_losses, structure))(
        (actor, log_alpha, critics), targets, rows, noise, -1.0
    )
    normal = -0.5 * np.log(2 * np.pi)
    then = normal - np.log(
        1 - np.tanh(3.0) ** 2
    )  # the density of tanh(3), which the mean of 3 makes likeliest
    target = 1.0 + 0.9 * (min(3.0, 6.0) - 0.5 * then)
    assert td_error[0] == pytest.approx(2 * 0.5 - target, rel=1e-4)
    assert parts["critic_loss"] == pytest.approx(0.5 * ((1.0 - target) ** 2 + (2.0 - target) ** 2), rel=1e-4)
    assert parts["actor_loss"] == pytest.approx(0.5 * normal, rel=1e-5)  # both critics say 0
    assert parts["entropy"] == pytest.approx(-normal, rel=1e-5)
    assert parts["alpha_loss"] == pytest.approx(np.log(0.5) * (-normal + 1.0), rel=1e-5)


def test_the_losses_of_choices_are_means_over_all_of_them():
    actor, log_alpha = Outputs(jnp.ones(2)), jnp.log(0.1)
    critics, targets = (Table(jnp.array(q)) for q in ([[1.0, 4.0], [2.0, 2.0]], [[8.0, 0.0], [4.0, 4.0]]))
    rows = {
        "obs": jnp.array([[np.log(3.0), 0.0]]),
        "action": jnp.array([1]),
        "reward": jnp.array([1.0]),
        "discount": jnp.array([0.5]),
        "next_obs": jnp.zeros((1, 2)),
        "weight": jnp.full(1, 2.0),
    }
    noise = (jnp.full((1, 1), 0.5),) * 2
    _, (parts, td_error) = jax.jit(partial(sac_losses, CHOICES))(
        (actor, log_alpha, critics), targets, rows, noise, 0.6
    )
    target = 1.0 + 0.5 * ((4.0 + 0.0) / 2 + 0.1 * np.log(2.0))
    assert td_error[0] == pytest.approx(4.0 - target, rel=1e-5)
    assert parts["critic_loss"] == pytest.approx(((4.0 - target) ** 2 + (2.0 - target) ** 2), rel=1e-5)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert parts["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert parts["actor_loss"] == pytest.approx(-0.1 * entropy - (0.75 * 1.0 + 0.25 * 2.0), rel=1e-5)
    assert parts["alpha_loss"] == pytest.approx(np.log(0.1) * (entropy - 0.6), rel=1e-5)


def batch(n=6, seed=0):
    rng = np.random.default_rng(seed)
    columns = {
        "obs": rng.normal(size=(n, 2)),
        "action": rng.normal(size=(n, 1)),
        "reward": rng.normal(size=n),
        "discount": rng.choice([0.0, 0.9], n),
        "next_obs": rng.normal(size=(n, 2)),
        "weight": np.ones(n),
    }
    return {name: np.float32(column) for name, column in columns.items()}


def test_each_loss_moves_its_own_parameters_alone():
    """The gradient of the sum equals that of each loss by itself for its own part, and of no other."""
    nets, rows = networks(), batch()
    structure, noise = nets.structure, (jnp.full((6, 1), 0.3), jnp.full((6, 1), 0.6))
    targets = structure.critics.unravel(jnp.asarray(nets.critics) + 0.1)
    parts = (
        structure.actor.unravel(jnp.asarray(nets.actor)),
        jnp.log(0.3),
        structure.critics.unravel(jnp.asarray(nets.critics)),
    )

    def whole(learned):
        return sac_losses(structure, learned, targets, rows, noise, -1.0)[0]

    def naive(place, own):
        actor, log_alpha, critics = (own if i == place else parts[i] for i in range(3))
        if place == 2:
            value, logp = outlook(structure, actor, targets, rows["next_obs"], noise[1])
            target = rows["reward"] + rows["discount"] * (value - 0.3 * logp)
            q = structure.values(critics, rows["obs"], rows["action"])
            return 0.5 * ((q[0] - target) ** 2).mean() + 0.5 * ((q[1] - target) ** 2).mean()
        value, logp = outlook(structure, actor, critics, rows["obs"], noise[0])
        return (0.3 * logp - value).mean() if place == 0 else -(log_alpha * (logp - 1.0)).mean()

    together = jax.jit(jax.grad(whole))(parts)
    for place in range(3):
        alone = jax.jit(jax.grad(partial(naive, place)))(parts[place])
        pairs = zip(jax.tree.leaves(together[place]), jax.tree.leaves(alone), strict=True)
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs), place


def test_an_update_takes_a_step_of_each_rate_and_the_targets_follow_where_due():
    nets, hyper = networks(), Hyper(*(np.float32(x) for x in (0.0, 1e-3, 1e-2, 1e-1, -1.0, 0.25)))
    size = nets.structure.actor.size
    params = np.concatenate([nets.actor, [np.float32(0.0)], nets.critics])
    layout = Layout.of((nets.trees[0], np.float32(0.0), nets.trees[1]))
    form = LearnerState(layout, nets.structure.critics, clipped_adam_form(layout), None)
    state = LearnerState(params, nets.critics + 1.0, clipped_adam_init(params))
    static = Static(nets.structure, None)
    for due in (True, False):
        new, _, _ = one_update(sac_update, static, form, state, batch() | {"sync": np.bool_(due)}, hyper)
        moved = np.abs(new.params - params)
        # the first step of Adam is the rate itself, wherever the gradient is far above epsilon
        assert moved[:size].max() == pytest.approx(1e-3, rel=0.1)
        assert moved[size] == pytest.approx(1e-1, rel=0.1)
        assert moved[size + 1 :].max() == pytest.approx(1e-2, rel=0.1)
        expected = state.target + 0.25 * due * (new.params[size + 1 :] - state.target)
        np.testing.assert_allclose(new.target, expected, rtol=1e-5)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    ("space", "bar"),
    [
        (REACH, -0.6),  # random play loses 2 a step, always saying 1 loses 1.5
        (spaces.Tuple((spaces.Box(0, 1, (1, 1), np.float32), REACH)), -1.0),
        (spaces.Discrete(3, start=2), 0.9),
    ],
    ids=["Box", "Tuple of Boxes", "Discrete"],
)
def test_identity_is_learned(space, bar):
    settings = {**TINY, "lr": 5e-3, "gamma": 0.0, "initial_alpha": 0.1, "target_entropy": -2.0}
    with steppe.SACConfig(env=lambda: Identity(space), **settings).build() as algo:
        for _ in range(10):
            algo.train()
        greedy = algo.evaluate(num_episodes=8)
    assert greedy["episode_reward_mean"] / 8 > bar


def test_the_temperature_goes_where_the_entropy_is_as_asked():
    settings = {**TINY, "gamma": 0.0, "lr": 3e-3, "alpha_lr": 2e-2, "target_entropy": -0.5}
    with steppe.SACConfig(env=lambda: Identity(REACH), **settings).build() as algo:
        for _ in range(12):
            stats = algo.train()["info"]["default_policy"]
    assert stats["entropy"] == pytest.approx(-0.5, abs=0.25)
    with steppe.SACConfig(env=lambda: Identity(REACH), **settings | {"alpha_lr": 0.0}).build() as algo:
        assert [algo.train()["info"]["default_policy"]["alpha"] for _ in range(2)] == [1.0, 1.0]


@pytest.mark.parametrize(
    "space", [spaces.Box(-np.inf, 1.0, (1,), np.float32), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]
)
def test_actions_that_it_cannot_learn_are_refused_with_who_can(space):
    said = r"SAC chooses in Boxes with finite bounds or a Discrete, .*; use PPOConfig, which can"
    with pytest.raises(steppe.ConfigError, match=said) as refused:
        steppe.SACConfig(env=lambda: Identity(space), **TINY).build()
    assert str(refused.value).endswith("bounds") == isinstance(space, spaces.Box)


def test_settings_without_a_meaning_are_refused():
    with pytest.raises(steppe.ConfigError, match="vf_share_layers=True has no meaning for SAC"):
        steppe.SACConfig(env="Pendulum-v1", vf_share_layers=True, **TINY).build()


@pytest.mark.parametrize("cls", [steppe.SACConfig, steppe.TD3Config])
def test_old_names_are_read(cls):
    config = cls.from_dict({"buffer_size": 500, "learning_starts": 7, "timesteps_per_iteration": 90})
    assert (config.replay_buffer_capacity, config.num_steps_sampled_before_learning_starts) == (500, 7)
    assert config.min_sample_timesteps_per_iteration == 90


@pytest.mark.parametrize("settings", [{}, {"exploration_noise": 0.3, "exploration_noise_correlation": 0.9}])
def test_a_run_goes_on_exactly_from_a_checkpoint(settings, tmp_path):
    config = {**TINY, "n_step": 2, "observation_filter": "MeanStdFilter", **settings}
    with steppe.SACConfig(env="Pendulum-v1", **config).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_state()
    with steppe.load(path) as again:
        again.train()
        assert diff(again.get_state(), expected) == []
        assert state_hash(again.get_state()) == state_hash(expected)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_the_loaded_policy_acts_as_the_algorithm_does(env, tmp_path):
    with steppe.SACConfig(env=env, observation_filter="MeanStdFilter", **TINY).build() as algo:
        algo.train()
        policy = steppe.load_policy(algo.save(tmp_path / "c"))
        space = steppe.make(env).observation_space
        space.seed(0)
        for obs in (np.clip(space.sample(), -5, 5) for _ in range(16)):
            expected = algo.compute_single_action(obs, explore=False)
            np.testing.assert_allclose(policy.act(obs), expected, atol=1e-5)


def test_values_are_the_smaller_critics_of_the_likeliest_action():
    nets, obs = networks(), np.float32([[0.5, -1.0], [2.0, 0.0]])
    actor, critics = nets.trees
    mean = jnp.stack([actor(one)[:1] for one in obs])  # of the parameters, the deviation comes last
    expected, static = nets.structure.values(critics, obs, mean).min(0), Static(nets.structure, None)
    np.testing.assert_allclose(sac_values(static, (actor, 0.0, critics), obs), expected, rtol=1e-5)


def test_deviations_of_a_loaded_policy_are_kept_in_bounds_too(tmp_path):
    with steppe.SACConfig(env="Pendulum-v1", **TINY).build() as algo:
        weights = algo.get_weights()["default_policy"]
        algo.set_weights({"default_policy": 50.0 * weights})
        policy = steppe.load_policy(algo.save(tmp_path / "c"))
        outputs = [policy.outputs(np.float32([x, 1.0, 8 * x]))[1] for x in (-1.0, 0.5, 1.0)]
    assert -20.0 <= min(outputs) <= max(outputs) <= 2.0
    assert {-20.0, 2.0} & set(map(float, outputs))


def test_an_update_that_is_not_finite_is_undone(caplog):
    class Jackpot(Identity):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, 1e30, *rest

    with steppe.SACConfig(env=lambda: Jackpot(REACH), **TINY).build() as algo:
        before = algo.get_weights()["default_policy"]
        with pytest.raises(LearningError, match=r"rewards were up to 1e\+30"):
            algo.train()
        assert np.isfinite(before).all()
        assert np.array_equal(before, algo.get_weights()["default_policy"])


def test_policies_of_several_algorithms_learn_in_one_run():
    class Pair(steppe.MultiAgentEnv):
        """Two agents; each is to say what it sees."""

        possible_agents = ("box", "choice")

        def __init__(self):
            self.envs = {"box": Identity(REACH), "choice": Identity(spaces.Discrete(2))}
            self.observation_spaces = {a: env.observation_space for a, env in self.envs.items()}
            self.action_spaces = {a: env.action_space for a, env in self.envs.items()}

        def reset(self, *, seed=None, options=None):
            starts = {a: env.reset(seed=seed) for a, env in self.envs.items()}
            return {a: obs for a, (obs, _) in starts.items()}, {}

        def step(self, actions):
            steps = {a: self.envs[a].step(action) for a, action in actions.items()}
            obs, reward, over, cut, _ = ({a: s[i] for a, s in steps.items()} for i in range(5))
            return obs, reward, over | {"__all__": False}, cut | {"__all__": all(cut.values())}, {}

    sac = {k: v for k, v in TINY.items() if k in steppe.SACConfig.POLICY_SCOPE}
    ppo = steppe.PPOConfig(
        env=Pair,
        policies={"box": steppe.PolicySpec(steppe.SACConfig(**sac)), "choice": steppe.PolicySpec()},
        train_batch_size=128,
        num_envs_per_env_runner=2,
        fcnet_hiddens=[8],
        write_run=False,
        seed=0,
    )
    with ppo.build() as algo:
        info = algo.train()["info"]
        info = algo.train()["info"]
    assert info["box"]["updates"] > 0
    assert np.isfinite(info["choice"]["total_loss"])


def test_masked_choices_are_never_chosen():
    class Masked(gymnasium.Env):
        observation_space = spaces.Dict(
            {"observation": spaces.Box(-1, 1, (2,), np.float32), "action_mask": spaces.MultiBinary(3)}
        )
        action_space = spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.now(), {}

        def now(self):
            self.legal = np.int8([1, self.t % 2, 0])
            return {"observation": np.float32([self.t % 2, 0.5]), "action_mask": self.legal}

        def step(self, action):
            assert self.legal[action]
            self.t += 1
            return self.now(), float(action), False, self.t == 8, {}

    with steppe.SACConfig(env=Masked, **TINY).build() as algo:
        for _ in range(3):
            stats = algo.train()["info"]["default_policy"]
    assert np.isfinite(list(stats.values())).all()
    assert stats["updates_skipped"] == 0
