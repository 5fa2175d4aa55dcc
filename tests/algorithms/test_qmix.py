"""QMIX: the mixer, losses by hand, an update against numpy, masks, groups in one env, files, whole runs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from examples.two_step_game import TwoStepGame, grouped
from steppe.learning.joint_q import (
    Hyper,
    JointValue,
    Static,
    joint_loss,
    make_joint_value,
    update,
    values,
)
from steppe.models.members import members_of
from steppe.models.mixers import Total, make_monotonic
from steppe.policies.actor_critic import Layout
from steppe.spaces import spec_of
from steppe.types import SpacePair
from tests.algorithms.updates import begun, one_update
from tests.states import diff, state_hash

TINY = {
    "num_envs_per_env_runner": 4,
    "train_batch_size": 8,
    "fcnet_hiddens": [8],
    "min_sample_timesteps_per_iteration": 64,
    "num_steps_sampled_before_learning_starts": 32,
    "replay_buffer_capacity": 1000,
    "write_run": False,
    "seed": 0,
}
MIXING = {"mixing_embed_dim": 4}
LAYERS = {"hiddens": (), "activation": "relu", "conv_filters": None}
DRAW = {"algorithm": "QMIX", "unused": (), "memory": None, **LAYERS}


def group(member, actions=2, size=2, start=0):
    """The spaces of a group of members who observe ``member``."""
    action = spaces.Tuple([spaces.Discrete(actions, start=start)] * size)
    return SpacePair(spec_of(spaces.Tuple([member] * size)), spec_of(action))


# ---------------------------------------------------------------- the mixer


@given(seed=st.integers(0, 99), member=st.integers(0, 2), rise=st.floats(0.0, 50.0))
@settings(max_examples=50, deadline=None)
def test_the_team_s_value_never_falls_when_a_member_s_rises(seed, member, rise):
    rng = np.random.default_rng(seed)
    mixer = make_monotonic(3, 4, 5, rng)
    q, state = rng.normal(0, 10, 3).astype(np.float32), rng.normal(0, 3, 4).astype(np.float32)
    higher = q + rise * (np.arange(3) == member).astype(np.float32)
    assert mixer(jnp.asarray(higher), state) >= mixer(jnp.asarray(q), state) - 1e-3


def naive_mixing(mixer, q, state):
    """Figure 2 of the paper, in float64."""

    def layer(linear, x):
        return x @ np.asarray(linear.weight, np.float64) + np.asarray(linear.bias, np.float64)

    first = np.abs(layer(mixer.first, state)).reshape(len(q), -1)
    hidden = q @ first + layer(mixer.first_bias, state)
    hidden = np.where(hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1)
    bias = layer(mixer.second_bias, np.maximum(layer(mixer.hidden, state), 0))
    return float(hidden @ np.abs(layer(mixer.second, state)) + bias[0])


@given(seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_mixing_is_that_of_the_paper(seed):
    rng = np.random.default_rng(seed)
    mixer = make_monotonic(2, 3, 6, rng)
    q, state = rng.normal(size=(2, 2))[0], rng.normal(size=3)
    found = mixer(jnp.asarray(q, jnp.float32), jnp.asarray(state, jnp.float32))
    assert float(found) == pytest.approx(naive_mixing(mixer, q, state), rel=1e-4, abs=1e-4)


def test_a_mixer_by_hand():
    mixer = jax.tree.map(jnp.zeros_like, make_monotonic(2, 1, 1, np.random.default_rng(0)))

    def biases(m):
        return m.first.bias, m.first_bias.bias, m.second.bias, m.hidden.bias, m.second_bias.weight

    numbers = [[-2.0, 0.5]], [1.0], [-3.0], [4.0], [[0.25]]
    mixer = eqx.tree_at(
        biases,
        mixer,
        tuple(jnp.array(n).reshape(np.shape(b)) for n, b in zip(numbers, biases(mixer), strict=True)),
    )
    # elu(2 * 5 + 0.5 * 4 + 1) * 3 + 0.25 * relu(4), and where the inner sum is -1
    assert float(mixer(jnp.array([5.0, 4.0]), jnp.zeros(1))) == pytest.approx(13 * 3 + 1)
    assert float(mixer(jnp.array([-2.0, 4.0]), jnp.zeros(1))) == pytest.approx((math.exp(-1) - 1) * 3 + 1)


# ---------------------------------------------------------------- losses


def shows(first, masked=False):
    """A team of two whose members' two values are two of the four numbers that they observe."""
    seen = spaces.Box(-99, 99, (4,), np.float32)
    member = spaces.Dict(x=seen, action_mask=spaces.MultiBinary(2)) if masked else seen
    members = members_of(group(member), "QMIX")
    model = make_joint_value(members, np.random.default_rng(0), mixing=None, **DRAW)
    weight = np.zeros((6, 2), np.float32)  # two of the inputs say which agent it is
    weight[2 + first + np.arange(2), np.arange(2)] = 1.0
    return members, eqx.tree_at(lambda m: m.network.advantage[0].weight, model, jnp.asarray(weight))


def how(members, double_q=True, td_error_loss="mse"):
    return SimpleNamespace(members=members, double_q=double_q, td_error_loss=td_error_loss)


def batch(**changes):
    """Two rows of two members: each sees the network's two values, and the target's two."""
    return {
        "obs": (
            jnp.array([[1.0, 5.0, 0, 0], [2.0, 3.0, 0, 0]]),
            jnp.array([[4.0, 0.0, 0, 0], [1.0, 1.5, 0, 0]]),
        ),
        "action": (jnp.array([0, 1]), jnp.array([1, 0])),
        "reward": jnp.array([1.0, -1.0]),
        "discount": jnp.array([0.5, 0.0]),
        "next_obs": (
            jnp.array([[7.0, 6.0, 1.0, 3.0], [0.0, 0.0, 9.0, 9.0]]),
            jnp.array([[0.0, 1.0, 4.0, 2.0], [0.0, 0.0, 9.0, 9.0]]),
        ),
        "weight": jnp.array([1.0, 1.0]),
        **changes,
    }


def errors(rows=None, masked=False, **options):
    (members, model), (_, target) = shows(0, masked), shows(2, masked)
    loss, (parts, error) = joint_loss(model, target, rows or batch(), how(members, **options))
    return float(loss), np.asarray(error), parts


def test_each_member_chooses_by_the_network_and_the_target_judges_the_team():
    # row 0: chosen 1 + 0; next: members prefer 0 (7 over 6) and 1 (1 over 0), to the target 1 + 2
    # row 1: chosen 3 + 1, over
    loss, error, parts = errors()
    np.testing.assert_allclose(error, [1.0 - (1.0 + 0.5 * 3.0), 4.0 - (-1.0)])
    assert loss == pytest.approx((0.5 * 1.5**2 + 0.5 * 5.0**2) / 2)
    assert float(parts["mean_q"]) == pytest.approx((1.0 + 4.0) / 2)
    assert float(parts["mean_member_q"]) == pytest.approx((1.0 + 0.0 + 3.0 + 1.0) / 4)


def test_without_double_q_the_target_does_both_and_huber_is_linear_beyond_1():
    loss, error, _ = errors(double_q=False, td_error_loss="huber")
    np.testing.assert_allclose(error, [1.0 - (1.0 + 0.5 * (3.0 + 4.0)), 5.0])
    assert loss == pytest.approx((3.5 - 0.5 + 5.0 - 0.5) / 2)


def test_what_a_member_may_not_do_is_no_outcome():
    def dressed(parts, masks):
        return tuple(
            {"x": x, "action_mask": jnp.array(mask, jnp.int8)} for x, mask in zip(parts, masks, strict=True)
        )

    plain, free = batch(), [[1, 1], [1, 1]]
    rows = batch(
        obs=dressed(plain["obs"], (free, free)),
        next_obs=dressed(plain["next_obs"], ([[0, 1], [0, 0]], [[1, 0], [0, 0]])),
    )
    np.testing.assert_allclose(errors(rows, masked=True)[1], [1.0 - (1.0 + 0.5 * (3.0 + 4.0)), 5.0])


def naive_loss(numbers, rows, target, double_q):
    """Of one-layer members and the sum or the paper's mixer, in float64; state is what all see."""
    model = jax.tree.map(lambda a: np.asarray(a, np.float64), numbers)

    def member_values(m, obs, agent):
        row = np.concatenate([np.eye(2)[agent], np.asarray(obs, np.float64)])
        return row @ m.network.advantage[0].weight + m.network.advantage[0].bias

    total = 0.0
    for n in range(2):
        now, after = ([np.asarray(part[n], np.float64) for part in rows[key]] for key in ("obs", "next_obs"))
        q = [member_values(model, now[i], i)[int(rows["action"][i][n])] for i in range(2)]
        best = [int(np.argmax(member_values(model if double_q else target, after[i], i))) for i in range(2)]
        then = [member_values(target, after[i], i)[best[i]] for i in range(2)]
        outcome = naive_mixing(target.mixer, np.array(then), np.concatenate(after))
        wanted = float(rows["reward"][n]) + float(rows["discount"][n]) * outcome
        total += 0.5 * (naive_mixing(model.mixer, np.array(q), np.concatenate(now)) - wanted) ** 2 / 2
    return total


def test_an_update_is_adam_s_step_along_the_numerical_gradient_of_a_plain_loop():
    members = members_of(group(spaces.Box(-99, 99, (4,), np.float32)), "QMIX")
    model, target = (make_joint_value(members, np.random.default_rng(i), mixing=3, **DRAW) for i in (1, 2))
    layout = Layout.of(model)
    start, follows = layout.ravel(model), layout.ravel(target)
    static = Static(members, True, "mse", None, 1e-5)
    rows = {**batch(), "sync": jnp.bool_(True), "number": jnp.uint32(0)}
    state, form = begun(layout, start, follows)
    hyper = Hyper(np.float32(0.01), np.float32(0.25))
    new, parts, error = one_update(update, static, form, state, rows, hyper)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), target)
    gradient = np.zeros(len(start))
    for i in range(len(start)):
        sides = []
        for step in (1e-4, -1e-4):
            moved = start.astype(np.float64)
            moved[i] += step
            sides.append(naive_loss(layout.unravel(moved), rows, wide, True))
        gradient[i] = (sides[0] - sides[1]) / 2e-4
    assert float(parts["total_loss"]) == pytest.approx(
        naive_loss(layout.unravel(start), rows, wide, True), rel=1e-4
    )
    assert float(parts["grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
    clear = np.abs(gradient) > 1e-2  # the first step of Adam is the gradient's sign
    assert clear.sum() > 20
    np.testing.assert_allclose(
        (start - np.asarray(new.params))[clear], 0.01 * np.sign(gradient[clear]), rtol=1e-2
    )
    moved = follows + 0.25 * (np.asarray(new.params) - follows)
    np.testing.assert_allclose(new.target, moved, rtol=1e-4, atol=1e-6)
    assert error.shape == (2,)


def test_members_are_told_apart_and_share_one_network():
    """Two members that see the same have values of their own, and swapped they have each other's."""
    members = members_of(group(spaces.Box(-1, 1, (3,), np.float32), 4, 3), "QMIX")
    model = make_joint_value(members, np.random.default_rng(0), mixing=8, **DRAW)
    obs = np.full((2, 3), 0.5, np.float32)
    found = np.asarray(model.values(members.rows((obs, obs, obs), jnp.stack)))
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found[0], found[1])
    assert np.abs(found[0, 0] - found[0, 1]).min() > 1e-3
    weight = np.asarray(model.network.advantage[0].weight)  # inputs: which agent, then what it sees
    np.testing.assert_allclose(found[0], weight[:3] + (obs[0] @ weight[3:]), rtol=1e-5)


def test_the_team_s_best_is_each_member_s_best():
    members = members_of(group(spaces.Box(-1, 1, (2,), np.float32), 3, 2), "QMIX")
    model = make_joint_value(members, np.random.default_rng(3), mixing=8, **DRAW)
    obs = tuple(np.random.default_rng(0).uniform(-1, 1, (2, 9, 2)).astype(np.float32))
    found = np.asarray(model.values(members.rows(obs, jnp.stack)))
    totals = np.stack(
        [
            [model.total(jnp.stack([found[:, 0, a], found[:, 1, b]], 1), obs) for b in range(3)]
            for a in range(3)
        ]
    )
    static = Static(members, True, "mse", None, 1e-5)
    np.testing.assert_allclose(values(static, model, obs), totals.max((0, 1)), rtol=1e-5)


def test_the_state_is_what_the_mixer_sees_and_members_do_not():
    member = spaces.Dict(obs=spaces.Discrete(3), state=spaces.Box(-1, 1, (5,), np.float32))
    members = members_of(group(member), "QMIX")
    model = make_joint_value(members, np.random.default_rng(0), mixing=4, **DRAW)
    assert model.network.encoder.size == 2 + 3
    assert model.encoder.size == 5
    alone = members_of(group(spaces.Discrete(3)), "QMIX")
    assert make_joint_value(alone, np.random.default_rng(0), mixing=4, **DRAW).encoder.size == 3 + 3


def test_the_sum_has_no_parameters_and_reads_no_state():
    members = members_of(group(spaces.Discrete(3)), "VDN")
    model = make_joint_value(members, np.random.default_rng(0), mixing=None, **DRAW)
    assert isinstance(model, JointValue)
    assert model.encoder is None
    assert isinstance(model.mixer, Total)
    chosen = jnp.array([[1.5, 2.0], [-1.0, 0.25]])
    np.testing.assert_allclose(model.total(chosen, (jnp.zeros(2), jnp.zeros(2))), [3.5, -0.75])


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (
            SpacePair(spec_of(spaces.Box(0, 1)), spec_of(spaces.Discrete(2))),
            r"with_agent_groups.*or use PPOConfig",
        ),
        (
            SpacePair(
                spec_of(spaces.Tuple([spaces.Discrete(2)] * 2)),
                spec_of(spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])),
            ),
            r"member 1 has Discrete\(3\), member 0 has Discrete\(2\).*action_mask.*or use PPOConfig",
        ),
        (
            SpacePair(
                spec_of(spaces.Tuple([spaces.Discrete(2)] * 2)),
                spec_of(spaces.Tuple([spaces.Box(0, 1)] * 2)),
            ),
            r"a Discrete; member 0 has Box.*use PPOConfig",
        ),
        (
            SpacePair(
                spec_of(spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2,))])),
                spec_of(spaces.Tuple([spaces.Discrete(2)] * 2)),
            ),
            r"observes the same space; member 1 has Box.*member 0 has Discrete",
        ),
        (
            group(spaces.Dict(x=spaces.Discrete(2), action_mask=spaces.MultiBinary(5))),
            r'obs\["action_mask"\] is the mask of the actions',
        ),
    ],
    ids=["no group", "other actions", "no choices", "other observations", "bad mask"],
)
def test_what_is_no_team_is_refused_with_the_fix(pair, said):
    with pytest.raises(steppe.ConfigError, match=said):
        members_of(pair, "QMIX")


def test_bounds_of_observations_and_starts_of_actions_may_differ():
    low, high = spaces.Box(0, 1, (2,), np.float32), spaces.Box(-5, 5, (2,), np.float32)
    action = spec_of(spaces.Tuple([spaces.Discrete(3), spaces.Discrete(3, start=7)]))
    assert members_of(SpacePair(spec_of(spaces.Tuple([low, high])), action), "QMIX").size == 2


# ---------------------------------------------------------------- whole runs


def qmix(env=grouped, **changes):
    return steppe.QMIXConfig(env=env, policies={"team"}, **{**TINY, **MIXING, **changes})


class Doors(steppe.MultiAgentEnv):
    """Each of two sees which of its three doors are open; only both through their last open door pays."""

    possible_agents = ("ann", "bob")
    action_space = spaces.Discrete(3, start=1)
    observation_space = spaces.Dict(
        obs=spaces.Box(-9, 9, (2,), np.float32),
        state=spaces.Box(-9, 9, (4,), np.float32),
        action_mask=spaces.MultiBinary(3),
    )

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.t = 0
        return self.seen(), {}

    def step(self, actions):
        for agent, action in actions.items():
            assert self.open[agent][action - 1] == 1
        last = [1 + int(np.flatnonzero(self.open[agent])[-1]) for agent in self.possible_agents]
        paid = float([actions[agent] for agent in self.possible_agents] == last)
        self.t += 1
        rewards = dict.fromkeys(self.possible_agents, paid)
        return self.seen(), rewards, {"__all__": False}, {"__all__": self.t == 5}, {}

    def seen(self):
        self.open = {agent: np.eye(3, dtype=np.int8)[self.rng.integers(3)] for agent in self.possible_agents}
        for mask in self.open.values():
            mask[self.rng.integers(3)] = 1
        state = self.rng.uniform(-9, 9, 4).astype(np.float32)
        return {
            agent: {"obs": 9 * mask[:2].astype(np.float32), "state": state, "action_mask": mask}
            for agent, mask in self.open.items()
        }


def doors(env_config):
    return Doors().with_agent_groups({"team": ["ann", "bob"]})


def test_only_legal_actions_are_taken_and_the_best_of_them_learned():
    """The env breaks where an illegal one is; two sums of 5 steps make 10."""
    with qmix(doors, lr=5e-3, gamma=0.0, epsilon=[[0, 1.0], [1500, 0.1]]).build() as algo:
        for _ in range(30):
            algo.train()
        assert algo.evaluate(num_episodes=8)["episode_reward_mean"] >= 9


class ToldDoors(Doors):
    """The masks stand in the infos."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)

    def told(self, seen):
        infos = {agent: {"action_mask": one["action_mask"]} for agent, one in seen.items()}
        return {agent: one["obs"] for agent, one in seen.items()}, infos

    def reset(self, *, seed=None, options=None):
        return self.told(super().reset(seed=seed)[0])

    def step(self, actions):
        seen, *rest, _ = super().step(actions)
        obs, infos = self.told(seen)
        return obs, *rest, infos


def test_masks_of_infos_are_those_of_the_members():
    def told(env_config):
        return ToldDoors().with_agent_groups({"team": ["ann", "bob"]})

    with qmix(told, action_mask="info").build() as algo:  # the env breaks where an illegal action is
        algo.train()
        member = team_of(algo).policy.observation.items[1]
        assert [key for key, _ in member.items] == ["action_mask", "observation"]

    class Silent(ToldDoors):
        def told(self, seen):
            obs, infos = super().told(seen)
            return obs, {**infos, "bob": {}}

    def silent(env_config):
        return Silent().with_agent_groups({"team": ["ann", "bob"]})

    with (
        qmix(silent, action_mask="info").build() as algo,
        pytest.raises(steppe.EnvError, match=r"obs\[1\].*action_mask.*no 'action_mask' in the env's info"),
    ):
        algo.train()


def team_of(algo, id="team"):
    return algo._learner.learners[id]


@pytest.mark.parametrize("env", [doors, grouped], ids=["masks and state", "plain"])
@pytest.mark.parametrize(
    "changes", [{}, {"observation_filter": "MeanStdFilter"}], ids=["as is", "normalised"]
)
def test_a_loaded_policy_acts_as_the_trained_one(tmp_path, env, changes):
    with qmix(env, **changes).build() as algo:
        algo.train()
        algo.train()
        loaded = steppe.load_policy(algo.save(tmp_path / "c"), "team")
        space = algo.runner.env.spaces[0].observation
        rng = np.random.default_rng(0)
        for _ in range(20):
            if env is doors:
                masks = rng.permuted([[1, 1, 0], [0, 0, 1]], axis=1).astype(np.int8)
                obs = tuple({"obs": rng.normal(size=2).astype(np.float32), "action_mask": m} for m in masks)
            else:
                obs = tuple(rng.integers(3, size=2).tolist())
            action = algo.compute_single_action(obs, policy_id="team")
            assert loaded.act(obs) == action == loaded.act(obs, explore=True)
            assert len(loaded.outputs(obs)) == 2 * (3 if env is doors else 2)
        assert space == team_of(algo).policy.observation


def test_the_global_state_may_be_absent_when_acting_and_changes_no_action():
    with qmix(doors).build() as algo:
        algo.train()
        mask = np.array([1, 1, 0], np.int8)
        obs = [{"obs": np.full(2, i, np.float32), "action_mask": mask} for i in (0, 1)]
        action = algo.compute_single_action(tuple(obs), policy_id="team")
        full = tuple({**one, "state": np.full(4, 9.0, np.float32)} for one in obs)
        assert algo.compute_single_action(full, policy_id="team") == action
        assert set(action) <= {1, 2}
        nothing = tuple({**one, "action_mask": np.zeros(3, np.int8)} for one in obs)
        with pytest.raises(steppe.SpaceError, match=r'obs\[0\]\["action_mask"\] of row 0: expected a legal'):
            algo.compute_single_action(nothing, policy_id="team")


@pytest.mark.parametrize("changes", [{}, {"env": doors, "observation_filter": "MeanStdFilter"}])
def test_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, changes):
    with qmix(**changes).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        wanted = algo.get_state()
        with steppe.load(path, env=changes.get("env", grouped)) as other:
            other.train()
            found = other.get_state()
    assert diff(wanted["learner"], found["learner"]) == []
    assert state_hash(wanted["learner"]) == state_hash(found["learner"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixing_embed_dim": 8}, "trained with mixing_embed_dim=4, here 8"),
        ({"memory": "lstm"}, "trained with memory='none', here 'lstm'"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_its_setting(tmp_path, changes, said):
    with qmix().build() as algo:
        path = algo.save(tmp_path / "c")
    with pytest.raises(steppe.CheckpointError, match=said):
        steppe.load(path, env=grouped, **changes)


class Pairs(TwoStepGame):
    """Two games side by side, of two teams."""

    def __init__(self, env_config):
        super().__init__({})
        self.possible_agents = ("a1", "a2", "b1", "b2")
        self.games = {team: TwoStepGame({}) for team in "ab"}

    def reset(self, *, seed=None, options=None):
        return {agent: self.games[agent[0]].reset()[0]["agent_1"] for agent in self.possible_agents}, {}

    def step(self, actions):
        obs, rewards, over = {}, {}, False
        for team, game in self.games.items():
            seen, paid, ended, _, _ = game.step({f"agent_{i}": actions[f"{team}{i}"] for i in (1, 2)})
            over = ended["__all__"]
            for i in (1, 2):
                obs[f"{team}{i}"], rewards[f"{team}{i}"] = seen["agent_1"], paid["agent_1"]
        return obs, rewards, {"__all__": over}, {"__all__": False}, {}


@pytest.mark.parametrize("policies", [{"a", "b"}, {"both"}])
def test_two_groups_in_one_env_learn_each_by_itself_or_as_one(policies):
    def pairs(env_config):
        return Pairs(env_config).with_agent_groups({"a": ["a1", "a2"], "b": ["b1", "b2"]})

    mapping = {"policy_mapping_fn": lambda group: "both"} if policies == {"both"} else {}
    config = qmix(pairs, lr=3e-3, epsilon=1.0, gamma=0.9).copy(policies=policies, **mapping)
    with config.build() as algo:
        for _ in range(20):
            result = algo.train()
        assert set(result["info"]) == policies
        games = algo.evaluate(num_episodes=2)
    assert games["episode_reward_mean"] == 16.0


def test_qmix_beside_ppo():
    """A group by QMIX and the agent outside of it by PPO."""

    def some(env_config):
        return Pairs(env_config).with_agent_groups({"a": ["a1", "a2"]})

    specs = {"a": steppe.PolicySpec(steppe.QMIXConfig(train_batch_size=8)), "rest": steppe.PolicySpec()}
    config = steppe.PPOConfig(
        env=some,
        policies=specs,
        policy_mapping_fn=lambda agent: "a" if agent == "a" else "rest",
        num_envs_per_env_runner=2,
        train_batch_size=1200,
        fcnet_hiddens=[4],
        write_run=False,
        seed=0,
    )
    with config.build() as algo:
        result = algo.train()
    assert result["info"]["a"]["updates"] > 0
    assert "vf_loss" in result["info"]["rest"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env": TwoStepGame}, r"policy 'team': QMIX learns what a group.*with_agent_groups"),
        ({"critic_only": ["x"]}, r"critic_only=\['x'\] has no meaning here; leave it out, or use PPOConfig"),
        ({"framestack": 4}, "framestack=4 has no meaning here"),
        ({"vf_share_layers": True}, "vf_share_layers=True has no meaning here"),
        ({"replay_buffer_capacity": 4}, r"replay_buffer_capacity=4 .* less than the 8 rows"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
    config = qmix(**changes)
    if "env" in changes:
        config.policy_mapping_fn = lambda agent: "team"
    with pytest.raises(steppe.ConfigError, match=said):
        config.build()


def test_the_settings_of_an_old_program():
    old = {
        "mixer": "qmix",
        "buffer_size": 5000,
        "learning_starts": 9,
        "grad_norm_clipping": 5,
        "num_workers": 0,
    }
    old |= {"exploration_config": {"final_epsilon": 0.0}, "optim_alpha": 0.99, "mixing_embed_dim": 16}
    config = steppe.QMIXConfig.from_dict(old)
    assert (config.replay_buffer_capacity, config.num_steps_sampled_before_learning_starts) == (5000, 9)
    assert (config.epsilon, config.grad_clip, config.mixing_embed_dim) == ([[0, 1.0], [10_000, 0.0]], 5.0, 16)
    with pytest.raises(steppe.ConfigError, match=r"mixer='vdn'.*VDNConfig sums them"):
        steppe.QMIXConfig.from_dict({"mixer": "vdn"})
