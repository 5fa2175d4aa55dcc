"""DQN: losses on hand-computed numbers, a step against numpy, exploration from noise, whole runs."""

from __future__ import annotations

from types import SimpleNamespace

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe.algorithms.dqn import Hyper, Static, dqn_loss, projected, update
from steppe.errors import LearningError
from steppe.learning.q_networks import shrunk, stretched
from steppe.models.q_network import make_q_network
from steppe.policies.actor_critic import Layout
from steppe.policies.q import epsilon_greedy
from steppe.spaces import spec_of
from tests.algorithms.updates import begun, one_update
from tests.envs_for_tests import Identity, NeverEnds
from tests.states import diff, state_hash

TINY = {
    "num_envs_per_env_runner": 4,
    "train_batch_size": 16,
    "fcnet_hiddens": [16],
    "min_sample_timesteps_per_iteration": 64,
    "num_steps_sampled_before_learning_starts": 32,
    "replay_buffer_capacity": 1000,
    "write_run": False,
    "seed": 0,
}
WHOLE = "default_policy"


def shows(first, support=None, masked=False, actions=2):
    """A network whose outputs are some of its inputs, those from ``first`` on."""
    outputs = actions * (1 if support is None else support[2])
    spec = spec_of(spaces.Box(-99, 99, (2 * outputs,), np.float32))
    if masked:
        spec = spec_of(spaces.Dict({"x": spaces.Box(-99, 99, (2 * outputs,), np.float32)}))
    rng = np.random.default_rng(0)
    network = make_q_network(spec, actions, rng, hiddens=(), dueling=False, support=support, masked=masked)
    weight = np.zeros((2 * outputs, outputs), np.float32)
    weight[first + np.arange(outputs), np.arange(outputs)] = 1.0
    return eqx.tree_at(lambda n: n.advantage[0].weight, network, jnp.asarray(weight))


def how(double_q=True, td_error_loss="huber", rescaled=False):
    return SimpleNamespace(double_q=double_q, td_error_loss=td_error_loss, rescaled=rescaled)


def rows(**changes):
    """Two rows of two actions: inputs are the network's two values, and the target's two."""
    return {
        "obs": jnp.array([[1.0, 5.0, 0, 0], [2.0, 3.0, 0, 0]]),
        "action": jnp.array([0, 1]),
        "reward": jnp.array([1.0, -1.0]),
        "discount": jnp.array([0.5, 0.0]),
        "next_obs": jnp.array([[7.0, 6.0, 1.0, 3.0], [0.0, 0.0, 9.0, 9.0]]),
        "weight": jnp.array([1.0, 1.0]),
        **changes,
    }


def errors(network=None, target=None, batch=None, **options):
    network, target = network or shows(0), target or shows(2)
    loss, (_, error) = dqn_loss(network, target, batch or rows(), how(**options))
    return float(loss), np.asarray(error)


def test_the_network_chooses_and_its_target_judges():
    # the network prefers action 0 (7 over 6), which the target gives 1: 1 - (1 + 0.5 * 1); 3 - (-1)
    loss, error = errors()
    np.testing.assert_allclose(error, [-0.5, 4.0])
    assert loss == pytest.approx((0.5 * 0.5**2 + (4.0 - 0.5)) / 2)


def test_without_double_q_the_target_does_both():
    _, error = errors(double_q=False)
    np.testing.assert_allclose(error, [1.0 - (1.0 + 0.5 * 3.0), 4.0])


def test_values_on_a_scale_of_their_roots_by_hand():
    """8 is sqrt(9) - 1 + 0.008 there: with a target of 2.008 and no reward half of 8 is to be learned."""
    x = np.float32([-1000, -8, -0.5, 0, 3, 8, 1e4])
    np.testing.assert_allclose(np.asarray(shrunk(x))[[1, 3, 4, 5]], [-2.008, 0, 1.003, 2.008], rtol=1e-5)
    np.testing.assert_allclose(stretched(shrunk(x)), x, rtol=2e-3, atol=1e-3)
    batch = rows(reward=jnp.zeros(2), next_obs=jnp.array([[7.0, 6.0, 2.008, 3.0], [0.0, 0.0, 9.0, 9.0]]))
    _, error = errors(batch=batch, rescaled=True)
    np.testing.assert_allclose(error, [1.0 - (np.sqrt(5) - 1 + 0.004), 3.0], rtol=1e-3)


def test_squared_errors_and_weights_count_as_they_say():
    loss, _ = errors(batch=rows(weight=jnp.array([0.5, 0.25])), td_error_loss="mse")
    assert loss == pytest.approx((0.5 * 0.5 * 0.5**2 + 0.25 * 0.5 * 4.0**2) / 2)


def test_the_gradient_is_that_of_the_chosen_values_alone():
    gradient = jax.grad(lambda n, t: dqn_loss(n, t, rows(), how())[0], argnums=(0, 1))(shows(0), shows(2))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(gradient[1]))
    # of the bias: the error within the bend of the loss, or its sign, over the two rows
    np.testing.assert_allclose(gradient[0].advantage[0].bias, [-0.5 / 2, 1.0 / 2])


def test_illegal_actions_are_no_outcome():
    def dressed(obs, mask):
        return {"x": obs, "action_mask": jnp.array(mask, jnp.int8)}

    plain = rows()
    batch = rows(
        obs=dressed(plain["obs"], [[1, 1], [1, 1]]),
        next_obs=dressed(plain["next_obs"], [[0, 1], [0, 0]]),  # in the last state there is nothing to do
    )
    networks = shows(0, masked=True), shows(2, masked=True)
    np.testing.assert_allclose(errors(*networks, batch)[1], [1.0 - (1.0 + 0.5 * 3.0), 4.0])
    np.testing.assert_allclose(errors(*networks, batch, double_q=False)[1], [-1.5, 4.0])


def naive_projection(p, reward, discount, low, high, atoms):
    """Algorithm 1 of the paper, atom by atom."""
    out = np.zeros(atoms)
    gap = (high - low) / (atoms - 1)
    for j in range(atoms):
        place = (min(max(reward + discount * (low + j * gap), low), high) - low) / gap
        below = min(int(np.floor(place + 1e-9)), atoms - 1)
        above = min(below + 1, atoms - 1)
        share = max(place - below, 0.0)
        out[below] += p[j] * (1 - share)
        out[above] += p[j] * share
    return out


@given(
    logits=st.lists(st.floats(-3, 3), min_size=2, max_size=7),
    reward=st.floats(-5, 5),
    discount=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    low=st.floats(-4, 0),
    width=st.floats(0.5, 6),
)
@settings(max_examples=60, deadline=None)
def test_projection_is_that_of_the_paper(logits, reward, discount, low, width):
    p = np.exp(logits) / np.exp(logits).sum()
    support = (low, low + width, len(p))
    found = projected(jnp.array([p]), jnp.array([reward]), jnp.array([discount]), support)[0]
    np.testing.assert_allclose(found, naive_projection(p, reward, discount, *support), atol=2e-5)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_projection_by_hand():
    # atoms 0, 1, 2 move to 0.5, 1, 1.5: half each to their neighbours
    found = projected(jnp.array([[0.2, 0.3, 0.5]]), jnp.array([0.5]), jnp.array([0.5]), (0.0, 2.0, 3))
    np.testing.assert_allclose(found, [[0.1, 0.1 + 0.3 + 0.25, 0.25]], atol=1e-6)


def test_the_distributional_loss_is_the_cross_entropy_with_the_projected_target():
    support = (0.0, 2.0, 3)
    network, target = shows(0, support), shows(6, support)
    now, then = np.log([0.2, 0.3, 0.5]), np.log([0.1, 0.6, 0.3])
    other = np.zeros(3)
    after = np.concatenate([[0.0, 0.0, 5.0], other, then, other])  # the network prefers action 0
    batch = {
        "obs": jnp.array([np.concatenate([other, now, np.zeros(6)])], jnp.float32),
        "next_obs": jnp.array([after], jnp.float32),
        "action": jnp.array([1]),
        "reward": jnp.array([0.5]),
        "discount": jnp.array([0.5]),
        "weight": jnp.array([0.5]),
    }
    loss, error = errors(network, target, batch)
    wanted = naive_projection([0.1, 0.6, 0.3], 0.5, 0.5, *support)
    entropy = -(wanted * now).sum()
    assert error[0] == pytest.approx(entropy, rel=1e-5)
    assert loss == pytest.approx(0.5 * entropy, rel=1e-5)


@pytest.mark.parametrize(("sync", "tau"), [(False, 1.0), (True, 1.0), (True, 0.25)])
def test_a_step_is_adam_s_and_the_target_follows_when_it_is_due(sync, tau):
    """Against numpy: a linear network of one layer."""
    network, target = shows(0), shows(2)
    layout = Layout.of(network)
    start, follows = layout.ravel(network), layout.ravel(target)
    state, form = begun(layout, start, follows)
    static = Static(True, "huber", False, 0.2, 1e-5)
    batch = {**rows(), "sync": jnp.bool_(sync), "number": jnp.uint32(3)}
    hyper = Hyper(np.float32(0.1), np.float32(tau))
    new, parts, error = one_update(update, static, form, state, batch, hyper)
    slope = np.zeros((2, 2))
    slope[[0, 1], [0, 1]] = [-0.5 / 2, 1.0 / 2]  # row, action
    obs = np.asarray(rows()["obs"])
    gradient = layout.ravel(
        eqx.tree_at(
            lambda n: (n.advantage[0].weight, n.advantage[0].bias), network, (obs.T @ slope, slope.sum(0))
        )
    ).astype(np.float64)
    norm = np.linalg.norm(gradient)
    clipped = gradient * min(1.0, 0.2 / norm)
    change = clipped / (np.abs(clipped) + 1e-5)  # the first step of Adam, whatever its decay
    np.testing.assert_allclose(new.params, start - 0.1 * change, rtol=1e-4, atol=1e-6)
    wanted = follows + (tau if sync else 0.0) * (np.asarray(new.params) - follows)
    np.testing.assert_allclose(new.target, wanted, rtol=1e-5, atol=1e-6)
    assert parts["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert parts["mean_q"] == pytest.approx((1.0 + 3.0) / 2)
    np.testing.assert_allclose(error, [-0.5, 4.0])


# ---------------------------------------------------------------- acting


def test_epsilon_comes_from_the_first_uniform_and_the_action_from_the_second():
    values = jnp.array([[0.0, 3.0, 1.0, 2.0]] * 4)
    noise = jnp.array([[0.19, 0.1], [0.19, 0.3], [0.19, 0.99], [0.21, 0.1]])
    action, logp = epsilon_greedy(values, jnp.float32(0.2), jnp.zeros((4, 1)), noise)
    assert action.tolist() == [0, 1, 3, 1]
    np.testing.assert_allclose(np.exp(logp), [0.05, 0.85, 0.05, 0.85], rtol=1e-5)


def test_only_legal_actions_are_explored():
    noise = np.random.default_rng(0).uniform(size=(999, 2)).astype(np.float32)
    mask = np.tile(np.array([0, 1, 0, 1, 1], np.int8), (999, 1))
    values = jnp.asarray(np.where(mask, 0.0, -1e9).astype(np.float32))
    action, logp = epsilon_greedy(values, jnp.float32(1.0), {"action_mask": mask}, noise)
    counts = np.bincount(action, minlength=5)
    assert counts[[0, 2]].sum() == 0
    assert counts[[1, 3, 4]].min() > 280
    np.testing.assert_allclose(np.exp(logp), 1 / 3, rtol=1e-5)


# ---------------------------------------------------------------- whole runs


def dqn(env="CartPole-v1", **changes):
    return steppe.DQNConfig(env=env, **{**TINY, **changes})


class Masked(gymnasium.Env):
    """Pays for action 2; action 3 would pay more and is never legal."""

    observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(4), "x": spaces.Box(0, 1, (1,))})
    action_space = spaces.Discrete(4, start=1)

    def seen(self):
        return {"action_mask": np.array([1, 1, 1, 0], np.int8), "x": np.zeros(1, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        assert 1 <= action <= 3
        self.t += 1
        return self.seen(), float(action == 2), self.t == 4, False, {}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dueling": False, "double_q": False, "observation_filter": "MeanStdFilter"},
        {"rainbow": True, "v_min": 0.0, "v_max": 3.0},
    ],
    ids=["default", "plain", "rainbow"],
)
def test_identity_is_learned(changes):
    config = dqn(lambda: Identity(spaces.Discrete(3, start=2)), lr=5e-3, gamma=0.5, **changes)
    config = config.copy(epsilon=0.0 if changes.get("rainbow") else [[0, 1.0], [600, 0.05]])
    with config.build() as algo:
        for _ in range(16):
            result = algo.train()
        greedy = algo.evaluate(num_episodes=8)
    assert greedy["episode_reward_mean"] / 8 >= 0.9
    assert np.isfinite(list(result["info"][WHOLE].values())).all()


def test_masked_actions_are_never_taken_and_the_best_legal_one_is_learned():
    with dqn(
        Masked, lr=5e-3, epsilon=[[0, 1.0], [400, 0.1]], observation_filter="MeanStdFilter"
    ).build() as algo:
        for _ in range(10):
            algo.train()
        assert algo.evaluate(num_episodes=4)["episode_reward_mean"] == 4.0


def test_values_bootstrap_where_a_limit_cuts_and_not_where_an_episode_ends():
    """Reward 1 for ever with gamma 0.5 is worth 2, whatever limit cuts it."""
    with dqn(
        NeverEnds, max_episode_steps=3, gamma=0.5, lr=5e-3, target_network_update_freq=50
    ).build() as algo:
        for _ in range(12):
            algo.train()
        values = algo._learner.learners[WHOLE].values(np.zeros((3, 2), np.float32))
    assert values.shape == (3,)
    np.testing.assert_allclose(values, 2.0, atol=0.1)


def test_an_iteration_before_learning_starts_ends_and_learns_nothing():
    with dqn(num_steps_sampled_before_learning_starts=10_000).build() as algo:
        before = algo.get_weights()[WHOLE]
        result = algo.train()
        assert result["timesteps_this_iter"] == 64
        assert result["info"] == {WHOLE: {}}
        assert np.array_equal(before, algo.get_weights()[WHOLE])


def test_epsilon_follows_its_schedule_and_reaches_those_who_act():
    with dqn(epsilon=[[0, 1.0], [128, 0.0]]).build() as algo:
        weights = [algo.runner.sampler.weights_of(WHOLE)[-1]]
        stats = []
        for _ in range(2):
            stats.append(algo.train()["info"][WHOLE]["cur_epsilon"])
            weights.append(algo.runner.sampler.weights_of(WHOLE)[-1])
    assert stats == [0.5, 0.0]
    assert [float(w) for w in weights] == [1.0, 0.5, 0.0]


def test_an_update_per_env_step_unless_training_intensity_says_otherwise():
    counts = []
    for intensity in (None, 4.0):
        with dqn(training_intensity=intensity).build() as algo:
            counts.append(algo.train()["info"][WHOLE]["updates"])
    assert counts == [48, 12]  # of steps 17 to 64: learning starts with the fragment that reaches step 32


@pytest.mark.parametrize("changes", [{}, {"rainbow": True, "observation_filter": "MeanStdFilter"}])
def test_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, changes):
    with dqn(**changes).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        wanted = algo.get_state()
        with steppe.load(path) as other:
            other.train()
            found = other.get_state()
    assert diff(wanted["learner"], found["learner"]) == []
    assert state_hash(wanted["learner"]) == state_hash(found["learner"])


@pytest.mark.parametrize("changes", [{}, {"rainbow": True}, {"dueling": False}, {"fcnet_hiddens": []}])
@pytest.mark.parametrize("env", ["CartPole-v1", Masked], ids=["CartPole", "masked"])
def test_a_loaded_policy_acts_as_the_trained_one(tmp_path, changes, env):
    with dqn(env, observation_filter="MeanStdFilter", **changes).build() as algo:
        algo.train()
        loaded = steppe.load_policy(algo.save(tmp_path / "c"))
        learner, space = (
            algo._learner.learners[WHOLE],
            algo.runner.env.get_sub_environments()[0].observation_space,
        )
        space.seed(0)
        for _ in range(20):
            obs = space.sample()
            if isinstance(obs, dict):
                obs["action_mask"][0] = 1
            column = jax.tree.map(lambda a: np.asarray(a)[None], obs)
            assert loaded.outputs(obs).max() == pytest.approx(learner.values(column)[0], rel=1e-4, abs=1e-5)
            assert loaded.act(obs) == algo.compute_single_action(obs) == loaded.act(obs, explore=True)


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    class Huge(NeverEnds):
        def step(self, action):
            return np.zeros(2, np.float32), 3e38, False, False, {}

    with dqn(Huge, td_error_loss_fn="mse").build() as algo:
        before = algo.get_weights()[WHOLE]
        with pytest.raises(LearningError, match=r"rewards were up to 3e\+38"):
            algo.train()
        _, skipped, updates, _ = algo.get_state()["learner"][WHOLE]["counters"]
        assert skipped == updates > 0
        assert np.array_equal(before, algo.get_weights()[WHOLE])


def test_ppo_and_dqn_learn_side_by_side():
    specs = {"a": steppe.PolicySpec(steppe.DQNConfig(train_batch_size=16, lr=1e-3)), "b": steppe.PolicySpec()}
    config = steppe.PPOConfig(
        env=steppe.make_multi_agent("CartPole-v1"),
        env_config={"num_agents": 2},
        policies=specs,
        policy_mapping_fn=lambda agent: "ab"[int(agent) % 2],
        num_envs_per_env_runner=2,
        train_batch_size=1500,
        fcnet_hiddens=[8],
        write_run=False,
        seed=0,
    )
    with config.build() as algo:
        before = algo.get_weights()
        result = algo.train()
        after = algo.get_weights()
    assert result["info"]["a"]["updates"] == 1500
    assert "vf_loss" in result["info"]["b"]
    assert all(np.abs(before[id] - after[id]).max() > 0 for id in "ab")


def test_a_checkpoint_of_another_network_is_refused_by_its_setting(tmp_path):
    with dqn().build() as algo:
        path = algo.save(tmp_path / "c")
    with pytest.raises(steppe.CheckpointError, match=r"trained with dueling=True, here False"):
        steppe.load(path, dueling=False)


def test_a_replay_of_another_size_is_refused(tmp_path):
    with dqn().build() as algo:
        path = algo.save(tmp_path / "c")
    with pytest.raises(steppe.CheckpointError, match="capacity=1000"):
        steppe.load(path, replay_buffer_capacity=2000)


def test_the_rllib_preset_and_old_names():
    preset = steppe.DQNConfig.preset("rllib")
    assert (preset.n_step, preset.td_error_loss_fn, preset.target_network_update_freq) == (1, "huber", 500)
    old = {"buffer_size": 7, "learning_starts": 9}
    greedy = {"type": "EpsilonGreedy", "final_epsilon": 0.1, "epsilon_timesteps": 50}
    config = steppe.DQNConfig.from_dict({**old, "exploration_config": greedy})
    assert (config.replay_buffer_capacity, config.num_steps_sampled_before_learning_starts) == (7, 9)
    assert config.epsilon == [[0, 1.0], [50, 0.1]]
    with pytest.raises(steppe.ConfigError, match=r"exploration_config=.*must be a number from 0 to 1, or"):
        steppe.DQNConfig.from_dict({"exploration_config": {"type": "SoftQ"}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env": lambda: Identity(spaces.MultiDiscrete([2, 2]))}, r"Discrete space.*use PPOConfig"),
        ({"critic_only": ["x"]}, r"critic_only=\['x'\] is not for DQN"),
        ({"extra_loss": print}, "extra_loss=.* is not for DQN"),
        ({"num_atoms": 5, "v_min": 3.0, "v_max": 3.0}, r"v_min=3\.0 must be below v_max=3\.0"),
        ({"replay_buffer_capacity": 15}, "replay_buffer_capacity=15 is less than the 16 rows"),
        ({"epsilon": 1.5}, "epsilon=1.5 must be"),
    ],
)
def test_what_dqn_cannot_do_is_said(changes, said):
    with pytest.raises(steppe.ConfigError, match=said):
        dqn(**changes).build()


def test_what_an_iteration_learned_outlives_a_call_that_owed_nothing():
    """One update in 20 env steps, two env steps a fragment: most calls, and the last one, learn nothing."""
    changes = {"num_envs_per_env_runner": 1, "rollout_fragment_length": 2, "training_intensity": 0.4}
    few = {"train_batch_size": 8, "num_steps_sampled_before_learning_starts": 10}
    with dqn(**changes, **few, min_sample_timesteps_per_iteration=50).build() as algo:
        algo.train()
        stats = algo.train()["info"]["default_policy"]
    assert stats["updates"] > 1
    assert np.isfinite(stats["total_loss"])
