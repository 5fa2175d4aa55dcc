"""ES: ranks and the step by hand, whose parameters act, which trajectories count, exact resume."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.algorithms import es
from steppe.algorithms.es import centered_ranks, es_step
from steppe.learning.optimizer import clipped_adam_init
from steppe.policies.perturbed import direction, noise_table
from steppe.spaces import spec_of
from steppe.types import Rollout, SpacePair, Weights
from tests.envs_for_tests import Identity
from tests.rllib_keys import ES_CONFIG
from tests.states import diff, state_hash
from tests.test_docs import keys_of_table

TINY = {
    "num_envs_per_env_runner": 4,
    "episodes_per_batch": 8,
    "train_batch_size": 8,
    "fcnet_hiddens": [4],
    "write_run": False,
    "seed": 0,
}


BOX, TWO = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)


def learner(config=None, observation=BOX, action=TWO):
    config = config or steppe.ESConfig(**TINY)
    return config.make_learner("p", SpacePair(spec_of(observation), spec_of(action)), 0)


# ---------------------------------------------------------------- the step


def test_ranks_lie_between_minus_a_half_and_a_half_and_equal_returns_share_theirs():
    assert centered_ranks(np.array([30.0, -1.0, 2.0])).tolist() == [0.5, -0.5, 0.0]
    assert centered_ranks(np.array([5.0, 5.0, 1.0])).tolist() == [0.25, 0.25, -0.5]
    assert centered_ranks(np.array([7.0, 7.0])).tolist() == [0.0, 0.0]


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_ranks_sum_to_nothing_and_see_order_alone(returns):
    ranks = centered_ranks(np.array(returns, float))
    assert ranks.sum() == pytest.approx(0.0, abs=1e-5)
    assert np.array_equal(ranks, centered_ranks(np.exp(np.array(returns, float))))
    for a, x in zip(returns, ranks, strict=True):
        below, same = (np.array(returns) < a).sum(), (np.array(returns) == a).sum()
        assert x == pytest.approx((below + (same - 1) / 2) / (len(returns) - 1) - 0.5, abs=1e-6)


def test_a_direction_is_a_part_of_the_table_and_its_opposite_is_taken_away():
    table = jnp.asarray(noise_table())
    assert np.array_equal(direction(table, np.int32(8), 3), noise_table()[7:10])
    assert np.array_equal(direction(table, np.int32(-8), 3), -noise_table()[7:10])
    assert not np.any(direction(table, np.int32(0), 3))
    assert noise_table().std() == pytest.approx(1.0, abs=0.01)


def test_a_step_goes_along_what_paid_and_back_to_small_parameters():
    """Two mirrored trajectories, of ranks 0.5 and -0.5: the directions' mean is half the first one's."""
    table, params = jnp.array([9.0, 2.0, -4.0, 9.0]), np.array([1.0, 3.0], np.float32)
    codes, worth = jnp.array([2, -2, 0, 0]), jnp.array([0.5, -0.5, 0, 0])
    step = (table, codes, worth, np.int32(2), (0.1, 0.25, 0.5))  # lr, l2_coeff, deviation
    after, opt, told = es_step(None, params, clipped_adam_init(params), *step)
    climb = np.array([0.5 * 2.0 + 0.5 * 2.0, -2.0 - 2.0]) / (2 * 0.5)
    gradient = 0.25 * params - climb
    assert gradient.tolist() == [-1.75, 4.75]
    assert after == pytest.approx(params - 0.1 * np.sign(gradient), abs=1e-5)  # Adam's first step
    assert opt[1].mu == pytest.approx(0.1 * gradient)
    assert told["grad_norm"] == pytest.approx(np.hypot(1.75, 4.75))
    assert told["weights_norm"] == pytest.approx(np.hypot(1.0, 3.0))


# ---------------------------------------------------------------- acting


def test_fresh_trajectories_are_moved_in_pairs_and_keep_their_perturbation():
    policy, noise = learner().policy, np.linspace(0.1, 0.9, 5, dtype=np.float32)[:, None]
    weights, obs = policy.load(learner().publish()), np.zeros((5, 3), np.float32)
    first = policy.act(weights, obs, policy.initial_state(5), noise)
    a, b, c, d, alone = first.state.tolist()
    assert (b, d) == (-a, -c)
    assert min(a, c, alone) > 0
    assert len({a, c, alone}) == 3
    assert first.action["perturbation"].tolist() == first.state.tolist()
    later = policy.act(weights, obs, np.array([a, 0, b, 0, c]), noise)
    assert later.state[[0, 2, 4]].tolist() == [a, b, c]
    assert later.state[1] == -later.state[3] > 0


@pytest.mark.parametrize("filtered", ["MeanStdFilter", "NoFilter"])
def test_a_row_is_acted_by_the_parameters_that_its_trajectory_moved(filtered):
    config = steppe.ESConfig(**TINY, observation_filter=filtered, noise_stdev=0.5, clip_actions=False)
    own = learner(config, action=spaces.Box(-9, 9, (2,), np.float32))
    policy, params = own.policy, own.get_weights()
    statistics = (np.float32(50), *np.ones((2, 3), np.float32)) if own.state.normalizer else ()
    weights = policy.load(Weights(0, params, statistics))
    obs = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    codes = np.array([5, -5, 1000], np.int32)
    acted = policy.act(weights, obs, codes, np.full((3, 1), 0.5, np.float32)).action["action"]
    for row, code in enumerate(codes):
        moved = np.sign(code) * noise_table()[abs(code) - 1 :][: len(params)]
        other = policy.load(Weights(0, params + np.float32(0.5) * moved, statistics))
        still = policy.act(other, obs, np.zeros(3, np.int32), None).action
        assert acted[row] == pytest.approx(still["action"][row], abs=1e-5)
        assert not still["perturbation"].any()
    assert policy.to_env({"action": acted, "perturbation": codes}).shape == (3, 2)


def test_masks_hold_for_moved_parameters_too():
    space = spaces.Dict({"action_mask": spaces.MultiBinary(4), "x": spaces.Box(-1, 1, (2,), np.float32)})
    own = learner(steppe.ESConfig(**TINY, noise_stdev=5.0), space, spaces.Discrete(4))
    mask = np.tile([[0, 1, 0, 1], [1, 0, 0, 0]], (20, 1)).astype(np.int8)
    obs = {"action_mask": mask, "x": np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)}
    noise = np.random.default_rng(1).uniform(0.01, 0.99, (40, 1)).astype(np.float32)
    decision = own.policy.act(own.policy.load(own.publish()), obs, own.policy.initial_state(40), noise)
    assert mask[np.arange(40), decision.action["action"]].all()
    assert set(decision.action["action"].tolist()) == {0, 1, 3}


def test_evaluation_acts_with_parameters_that_are_not_moved(tmp_path):
    with steppe.ESConfig(env="CartPole-v1", **TINY).build() as algo:
        algo.train()
        obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
        policy = steppe.load_policy(algo.save(tmp_path / "c"))
        assert [algo.compute_single_action(o) for o in obs] == [policy.act(o) for o in obs]
        again = [algo.evaluate(num_episodes=4)["episode_reward_mean"] for _ in range(2)]
        assert algo.compute_single_action(obs[0], explore=True) in (0, 1)
    assert min(again) > 0


# ---------------------------------------------------------------- which trajectories count


class Batches(steppe.Callbacks):
    def __init__(self):
        self.seen = []

    def on_learn_on_batch(self, *, policy, train_batch, result):
        self.seen.append({name: column.copy() for name, column in train_batch.items()})
        result["pairs"] = len(np.unique(np.abs(train_batch["perturbations"])))


def test_a_batch_is_what_whole_episodes_earned_each_direction_both_ways():
    batches = Batches()
    with steppe.ESConfig(env="CartPole-v1", **TINY, callbacks_class=batches).build() as algo:
        for _ in range(3):
            result = algo.train()
            played = sorted(episode.reward for episode in algo.recent_episodes)[-100:]
        stats = result["info"]["default_policy"]
    returns = np.concatenate([batch["returns"] for batch in batches.seen])
    assert sorted(returns.tolist()) == played
    for batch in batches.seen:
        codes, count = np.unique(batch["perturbations"], return_counts=True)
        assert len(codes) == 8
        assert (count == 1).all()
        assert set(codes.tolist()) == set((-codes).tolist())
    assert stats["episodes"] == len(batches.seen[-1]["returns"]) == 2 * stats["pairs"]
    assert stats["return_mean"] == pytest.approx(batches.seen[-1]["returns"].mean())
    assert stats["return_max"] == batches.seen[-1]["returns"].max()


def fragment(codes, rewards, ends, versions, first_t=0):
    """One lane of one env; ``codes`` and ``versions`` are of rows, which all but the last one act or end."""
    n = len(codes)

    def column(values, dtype):
        return np.array(values, dtype)[:, None]

    zero = column([0] * n, np.int32)
    final = column(ends, np.bool_)
    episode = column(np.cumsum([0, *ends[:-1]]) + first_t, np.int32)
    action = {"action": zero, "perturbation": column(codes, np.int32)}
    about = SimpleNamespace(obs=np.zeros((n, 1, 3), np.float32), action=action, logp=zero)
    return Rollout(
        **vars(about),
        reward=column(rewards, np.float32),
        terminated=final,
        truncated=np.zeros_like(final),
        filled=np.ones_like(final),
        version=column(versions, np.int32),
        env=zero,
        agent=zero,
        episode=episode,
        t=zero,
        policy="p",
        runner=0,
        incarnation=0,
        sequence=0,
        lane_continues=np.ones(1, np.bool_),
        agents=("a",),
        env_steps=n - 1,
    )


def test_returns_are_summed_over_fragments_each_reward_once():
    own = learner(steppe.ESConfig(**{**TINY, "episodes_per_batch": 2, "observation_filter": "NoFilter"}))
    own.add(fragment([7, 7, 7], [9, 1, 2], [0, 0, 0], [0, 0, 0]))
    assert own.update(2) is None
    # Row 0 closed the fragment before; the episode ends in row 2, and the next one has a code of its own.
    own.add(fragment([7, 7, 0, 8, 8, 0], [2, 4, 8, 0, 16, 32], [0, 0, 1, 0, 0, 1], [0] * 6))
    assert own.get_state()["over"] == [[7, 1 + 2 + 4 + 8], [8, 16 + 32]]
    assert own.update(7) is None  # 7 env steps of 8
    own.add(fragment([0, 0], [32, 0], [1, 0], [0, 0]))
    stats = own.update(8)
    assert (stats["episodes"], stats["return_mean"], stats["return_max"]) == (2, (15 + 48) / 2, 48)
    assert own.get_state()["over"] == []


def test_what_began_under_older_weights_does_not_count():
    own = learner(steppe.ESConfig(**{**TINY, "episodes_per_batch": 2, "observation_filter": "NoFilter"}))
    own.add(fragment([7, 7, 0, 8, 8, 0, 9, 9], [0, 1, 1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 1, 0, 0], [0] * 8))
    own.add(fragment([9, 9], [1, 1], [0, 0], [0, 0]))
    assert own.update(8)["episodes"] == 2
    own.add(fragment([9, 9, 0, 5, 5, 0], [1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1], [1] * 6, first_t=2))
    assert own.get_state()["over"] == [[5, 2.0]]
    own.set_weights(own.get_weights())
    assert own.get_state()["over"] == []


def test_an_update_in_which_nobody_acts_waits_for_nobody():
    own = learner()
    idle = fragment([0, 0], [0, 0], [0, 0], [0, 0])
    idle.filled[:] = False
    idle.env_steps = 8
    own.add(idle)
    assert own.update(8) == {}
    assert own.update(8) is None


def test_statistics_of_observations_are_those_of_acted_rows_from_the_next_update_on():
    own = learner()
    one = fragment([7, 7, 0], [0, 1, 1], [0, 0, 1], [0] * 3)
    one.obs[:, 0] = [[1, 2, 3], [3, 4, 5], [99, 99, 99]]
    one.env_steps = 8
    own.add(one)
    own._over *= 8
    assert own.publish().normalizer[0] == 0
    own.update(8)
    count, mean, m2 = own.publish().normalizer
    assert (count, mean.tolist(), m2.tolist()) == (2, [2, 3, 4], [2, 2, 2])


class Ticks(gymnasium.Env):
    """Seven steps, each worth one."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t], np.float32), 1.0, self.t == 7, False, {}


def test_fragments_that_cut_episodes_give_whole_returns_too():
    batches = Batches()
    cut = {"batch_mode": "truncate_episodes", "rollout_fragment_length": 5}
    with steppe.ESConfig(env=Ticks, **TINY, **cut, callbacks_class=batches).build() as algo:
        for _ in range(4):
            result = algo.train()
    returns = np.concatenate([batch["returns"] for batch in batches.seen])
    assert len(batches.seen) == 4
    assert (returns == 7).all()
    assert len(returns) < result["episodes_total"]  # those that an update cut are left out


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("space", "least"),
    [
        (spaces.Discrete(3), 7.5),
        (spaces.Box(-1, 1, (2,), np.float32), -2.0),  # about -7 before
        (spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(2))), 15.0),
    ],
    ids=["Discrete", "Box", "Tuple"],
)
def test_identity_is_learned(space, least):
    settings = {**TINY, "num_envs_per_env_runner": 16, "episodes_per_batch": 32, "fcnet_hiddens": [8]}
    with steppe.ESConfig(env=lambda: Identity(space), **settings, noise_stdev=0.1).build() as algo:
        for _ in range(40):
            algo.train()
        after = algo.evaluate(num_episodes=8)["episode_reward_mean"]
    assert after >= least


@pytest.mark.parametrize("mode", ["complete_episodes", "truncate_episodes"])
def test_a_run_goes_on_exactly_from_a_checkpoint(mode, tmp_path):
    config = steppe.ESConfig(env="CartPole-v1", **TINY, batch_mode=mode)
    with config.copy(rollout_fragment_length=7).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        for _ in range(2):
            algo.train()
        expected = algo.get_state()
    with steppe.load(path) as again:
        for _ in range(2):
            again.train()
        assert diff(again.get_state(), expected) == []
        assert state_hash(again.get_state()) == state_hash(expected)


def test_agents_of_one_env_are_moved_each_by_itself():
    steppe.register_env("three_poles", steppe.make_multi_agent("CartPole-v1"))
    batches = Batches()
    config = steppe.ESConfig(env="three_poles", env_config={"num_agents": 3}, **TINY, callbacks_class=batches)
    with config.build() as algo:
        algo.train()
    codes = batches.seen[0]["perturbations"]
    assert len(codes) == len(np.unique(codes)) == 12  # 4 envs x 3 agents


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"share": {"encoder": "x"}}, "share=.*PPOConfig"),
        ({"explore": False}, "explore=False moves no parameters"),
        ({"framestack": 4}, "framestack=4 has no meaning for ES"),
        ({"memory": "lstm", "train_batch_size": 64}, "memory='lstm' has no meaning for ES"),
    ],
)
def test_what_means_nothing_here_is_refused(changes, said):
    with pytest.raises(steppe.ConfigError, match=said):
        steppe.ESConfig(env="CartPole-v1", **{**TINY, **changes}).build()


def test_a_network_that_is_too_large_is_refused_before_anything_is_sampled(monkeypatch):
    monkeypatch.setattr(es, "noise_table", lambda: np.zeros(40))
    with pytest.raises(steppe.ConfigError, match="at most 20 parameters, and the network has 30; make it sm"):
        steppe.ESConfig(env="CartPole-v1", **TINY).build()


class Others(steppe.BaseEnv):
    """Every second action was chosen elsewhere."""

    num_envs = 1
    observation_space, action_space = BOX, TWO

    def __init__(self, env_config):
        self.t = 0

    def poll(self):
        self.t += 1
        taken = {0: {"a": 1}} if self.t % 2 else {}
        seen, going = np.zeros(3, np.float32), {0: {"__all__": False}}
        return {0: {"a": seen}}, {0: {"a": 1.0}}, going, going, {0: {}}, taken

    def send_actions(self, action_dict):
        assert action_dict[0]["a"] in (0, 1)


def test_actions_of_others_are_refused_in_words():
    cut = {**TINY, "num_envs_per_env_runner": 1, "batch_mode": "truncate_episodes"}
    algo = steppe.ESConfig(env=Others, **cut, rollout_fragment_length=5).build()
    with algo, pytest.raises(steppe.ConfigError, match=r"chosen elsewhere.*leave off_policy_actions out"):
        algo.train()


def test_there_are_no_values():
    with pytest.raises(steppe.ConfigError, match="no critic"):
        learner().values(np.zeros((1, 3), np.float32))


def test_the_rllib_preset_trains_and_old_names_are_understood_or_refused(caplog):
    small = {"train_batch_size": 20, "episodes_per_batch": 2, "fcnet_hiddens": [4]}
    config = steppe.ESConfig.preset("rllib", env="CartPole-v1", seed=0, write_run=False)
    assert (config.lr, config.noise_stdev, config.episodes_per_batch) == (0.01, 0.02, 1000)
    with config.copy(**small).build() as algo:
        assert np.isfinite(algo.train()["info"]["default_policy"]["grad_norm"])
        assert "parameters" in algo.summary()
    old = {key: value for key, value in ES_CONFIG.items() if key not in ("stepsize", "num_workers")}
    assert steppe.ESConfig.from_dict(old).episodes_per_batch == 1000
    assert caplog.messages == []
    with pytest.raises(steppe.ConfigError, match=r"stepsize.*ES calls it lr"):
        steppe.ESConfig.from_dict({"stepsize": 0.01})


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "algorithms" / "es.md").read_text()


def test_the_page_explains_what_is_measured_and_states_the_defaults():
    with steppe.ESConfig(env="CartPole-v1", **TINY).build() as algo:
        stats = algo.train()["info"]["default_policy"]
    assert keys_of_table(PAGE, "What learning measures") == sorted(stats)
    for name, value in [("noise_stdev", 0.05), ("episodes_per_batch", 64), ("l2_coeff", 0.005)]:
        assert f"`{name}` ({value})" in PAGE
        assert getattr(steppe.ESConfig(), name) == value


def test_code_that_the_page_points_to_is_there():
    pointers = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(pointers) > 6
    for file, what in pointers:
        source = (Path(steppe.__file__).parent / file).read_text()
        assert re.search(rf"^(?:def|class) {what}\b", source, re.MULTILINE), f"{file}::{what}"
