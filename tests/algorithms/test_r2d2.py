"""DQN with a memory: sequences against a step-by-step walk, acting as learning sees it, exact resume."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms.dqn import Hyper, Static, dqn_loss, update
from steppe.errors import CheckpointError, ConfigError
from steppe.learning.q_networks import looked_along
from steppe.learning.walks import by_sequence
from steppe.models.before import Memory
from steppe.models.q_memory import make_memory_q
from steppe.policies.actor_critic import Layout
from steppe.spaces import map_leaves, spec_of, take
from tests.algorithms.updates import begun, one_update
from tests.states import diff, state_hash

TINY = {
    "memory": "lstm",
    "memory_size": 8,
    "max_seq_len": 5,
    "num_envs_per_env_runner": 3,
    "train_batch_size": 20,
    "fcnet_hiddens": [8],
    "min_sample_timesteps_per_iteration": 60,
    "num_steps_sampled_before_learning_starts": 30,
    "replay_buffer_capacity": 500,
    "write_run": False,
    "seed": 0,
}
WHOLE = "default_policy"
RNG = np.random.default_rng(3)
OBS, ACT = spec_of(spaces.Box(-1, 1, (2,), np.float32)), spec_of(spaces.Discrete(3))


class Noise(gymnasium.Env):
    """Shows chance, pays chance, and masks an action by chance; episodes are of 1 to 9 steps."""

    def __init__(self, env_config):
        box = spaces.Box(-9, 9, (2,), np.float32)
        self.masked = env_config.get("masked", False)
        mask = spaces.MultiBinary(3)
        self.observation_space = spaces.Dict({"x": box, "action_mask": mask}) if self.masked else box
        self.action_space = spaces.Discrete(3)

    def row(self):
        x = self.np_random.normal(size=2).astype(np.float32)
        mask = np.ones(3, np.int8)
        mask[self.np_random.integers(3)] = 0
        return {"x": x, "action_mask": mask} if self.masked else x

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 10))
        return self.row(), {}

    def step(self, action):
        self.left -= 1
        return self.row(), float(self.np_random.normal()), self.left == 0, False, {}


def config(**changes):
    return steppe.DQNConfig(env=Noise, **{**TINY, **changes})


def drawn_network(kind="lstm", seed=0, **head):
    memory = Memory(kind, 4, 5, True, True)
    return make_memory_q(OBS, ACT, np.random.default_rng(seed), memory, hiddens=(6,), **head)


def sequences(s=3, rows=7, n_step=2):
    """Sequences of chance: the first begins a trajectory, the last one ends after four rows."""
    filled = np.ones((s, rows), bool)
    filled[-1, 4:] = False
    learned = filled & (np.arange(rows) < rows - n_step)
    learned[-1, 3] = False
    fresh = np.zeros((s, rows), bool)
    fresh[0, 0] = True
    state = {
        "memory": {name: RNG.normal(size=(s, 4)).astype(np.float32) for name in ("c", "h")},
        "action": RNG.integers(0, 3, s).astype(np.int32),
        "reward": np.zeros(s, np.float32),
    }
    return {
        "obs": RNG.normal(size=(s, rows, 2)).astype(np.float32),
        "action": RNG.integers(0, 3, (s, rows)).astype(np.int32),
        "earned": RNG.normal(size=(s, rows)).astype(np.float32),
        "reward": RNG.normal(size=(s, rows)).astype(np.float32),
        "discount": RNG.uniform(size=(s, rows)).astype(np.float32),
        "end": np.minimum(np.arange(rows) + n_step, filled.sum(1, keepdims=True) - 1).astype(np.int32),
        "weight": np.float32([1.0, 0.5, 0.25]),
        "filled": filled,
        "learned": learned,
        "fresh": fresh,
        "state": state,
    }


def walked(network, rows):
    """The network's outputs, row by row of one sequence after the other."""
    out = np.zeros((*rows["fresh"].shape, 3, 1), np.float32)
    step = jax.jit(lambda *given: network(*given))
    for i in range(len(out)):
        memory, action = (take(rows["state"][name], i) for name in ("memory", "action"))
        if rows["fresh"][i, 0]:
            memory = map_leaves(np.zeros_like, memory)
        for t in range(out.shape[1]):
            state = {"memory": memory, "action": jnp.asarray(action), "reward": rows["earned"][i, t]}
            out[i, t], memory = step(rows["obs"][i, t], state)
            action = rows["action"][i, t]
    return out


@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_sequence_is_walked_from_the_state_that_it_was_met_with(kind, burn_in):
    network, rows = drawn_network(kind), sequences()
    if kind == "gru":
        rows["state"]["memory"].pop("c")
    out = network.sequences(rows, burn_in)
    np.testing.assert_allclose(out, walked(network, rows), atol=1e-5)


@pytest.mark.parametrize("double", [True, False])
def test_the_loss_is_that_of_the_rows_that_count(double):
    """Against loops: the target walks for itself, outcomes are rows of the sequence."""
    network, target, rows = drawn_network(seed=0), drawn_network(seed=1), sequences()
    static = SimpleNamespace(double_q=double, td_error_loss="mse", rescaled=False, burn_in=0)
    loss, (parts, error) = dqn_loss(network, target, rows, static)
    now, then = walked(network, rows)[..., 0], walked(target, rows)[..., 0]
    wanted, total, values = np.zeros(rows["learned"].shape), 0.0, []
    for i, t in np.argwhere(rows["learned"]):
        end = rows["end"][i, t]
        best = (now if double else then)[i, end].argmax()
        goal = rows["reward"][i, t] + rows["discount"][i, t] * then[i, end, best]
        value = now[i, t, rows["action"][i, t]]
        wanted[i, t] = value - goal
        total += rows["weight"][i] * 0.5 * wanted[i, t] ** 2
        values.append(value)
    assert loss == pytest.approx(total / rows["learned"].sum(), rel=1e-4)
    learned = rows["learned"]
    np.testing.assert_allclose(error.reshape(learned.shape)[learned], wanted[learned], atol=1e-4)
    assert parts["mean_q"] == pytest.approx(np.mean(values), abs=1e-5)
    assert (parts["min_q"], parts["max_q"]) == (
        pytest.approx(np.min(values), abs=1e-5),
        pytest.approx(np.max(values), abs=1e-5),
    )
    assert parts["mean_td_error"] == pytest.approx(wanted[learned].mean(), abs=1e-5)


def test_rows_that_do_not_count_change_nothing():
    network, target, rows = drawn_network(seed=0), drawn_network(seed=1), sequences()
    static = SimpleNamespace(double_q=True, td_error_loss="mse", rescaled=False, burn_in=0)
    grad = jax.grad(lambda n, r: dqn_loss(n, target, r, static)[0])
    before = grad(network, rows)
    other = {**rows, "obs": np.where(rows["filled"][..., None], rows["obs"], 7.0)}
    other["reward"] = np.where(rows["learned"], rows["reward"], 1e3)
    for one, two in zip(jax.tree.leaves(before), jax.tree.leaves(grad(network, other)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_no_gradient_comes_through_the_burn_in():
    """Rows before the cut that are not learned from have none; with no burn-in they have one."""
    network, target, rows = drawn_network(seed=0), drawn_network(seed=1), sequences()
    rows["learned"] = rows["learned"] & (np.arange(7) >= 3)

    def by_obs(burn_in):
        static = SimpleNamespace(double_q=True, td_error_loss="mse", rescaled=False, burn_in=burn_in)
        return jax.grad(lambda obs: dqn_loss(network, target, {**rows, "obs": obs}, static)[0])(rows["obs"])

    assert np.abs(by_obs(3)[:2, :3]).max() == 0.0
    assert np.abs(by_obs(0)[:2, :3]).min() > 0.0
    np.testing.assert_allclose(by_obs(3)[:, 4], by_obs(0)[:, 4], atol=1e-6)


def test_priorities_mix_the_largest_and_the_mean_error():
    error = jnp.array([[1.0, -3.0, 9.0], [2.0, 0.0, 0.0]])
    learned = jnp.array([[True, True, False], [True, False, False]])
    np.testing.assert_allclose(by_sequence(error, learned), [0.9 * 3 + 0.1 * 2, 2.0], rtol=1e-6)


def test_an_update_moves_every_part_and_gives_one_error_a_sequence():
    network, rows = drawn_network(dueling=True, support=(-3.0, 3.0, 5), sigma0=0.5), sequences()
    layout = Layout.of(network)
    params = layout.ravel(network)
    state, form = begun(layout, params, params.copy())
    batch = {**rows, "sync": jnp.bool_(True), "number": jnp.uint32(0)}
    static = Static(True, "mse", False, 10.0, 1e-5, 2)
    hyper = Hyper(np.float32(0.1), np.float32(0.5))
    new, parts, error = one_update(update, static, form, state, batch, hyper)
    assert error.shape == (3,)
    assert (error > 0).all()
    assert all(np.isfinite(part) for part in parts.values())
    moved = layout.unravel(np.asarray(new.params) - params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moved))
    np.testing.assert_allclose(new.target, (params + new.params) / 2, atol=1e-6)


# --- whole runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"prev_action": True, "prev_reward": True},
        {"memory": "gru", "env_config": {"masked": True}, "burn_in": 2, "prev_action": True},
        {"framestack": 3, "prev_reward": True, "observation_filter": "NoFilter"},
        {"memory": "attention", "attention_memory": 3, "prev_action": True, "burn_in": 1},
        {"env": steppe.make_multi_agent(Noise), "env_config": {"num_agents": 2}, "prev_reward": True},
    ],
    ids=["lstm", "gru masked", "frames", "attention", "agents"],
)
def test_acting_is_what_learning_sees(changes):
    """Without chance and learning, what was chosen is the best of what a walk over the sequence gives."""
    own = config(epsilon=0.0, lr=0.0).copy(**changes)
    with own.build() as algo:
        for _ in range(3):
            algo.train()
        learner = algo._learner.learners[WHOLE]
        columns = learner._replay.columns(learner._replay._ready.members)
        network = learner._method.form.params.unravel(learner.state.params)
        if learner._method.frames is not None:
            columns["obs"] = learner._method.frames.joined(columns["obs"], 2)
        seen = looked_along(
            network,
            network,
            {**columns, "weight": np.ones(len(columns["index"]), np.float32), "end": 0 * columns["end"]},
            True,
            (None, None, None),
            own.burn_in,
        )
    rows = columns["filled"] & (np.arange(columns["filled"].shape[1]) < columns["filled"].sum(1)[:, None] - 1)
    values = np.asarray(seen.out[..., 0]).reshape(*rows.shape, 3)
    if "masked" in own.env_config:
        values = np.where(columns["obs"]["action_mask"] != 0, values, -1e9)
    assert rows.sum() > 200
    assert len({tuple(row) for row in values.argmax(-1)}) > 5  # what is best differs
    assert (values.argmax(-1) == columns["action"])[rows].all()


@pytest.mark.parametrize(
    "changes",
    [
        {"prev_action": True, "prev_reward": True, "burn_in": 2, "value_rescaling": True},
        {"memory": "gru", "rainbow": True, "observation_filter": "MeanStdFilter", "framestack": 2},
    ],
)
def test_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, changes):
    with config(**changes).build() as algo:
        algo.train()
        algo.save(tmp_path / "c")
        algo.train()
        wanted = algo.get_state()
        with steppe.load(tmp_path / "c", env=Noise) as other:
            other.train()
            found = other.get_state()
    assert state_hash(wanted) == state_hash(found), diff(wanted, found)


def test_a_checkpoint_of_another_replay_is_refused_and_nothing_is_changed(tmp_path):
    with config(prev_action=True).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
    for changes, words in (
        ({"max_seq_len": 6}, "max_seq_len=5, these max_seq_len=6"),
        ({"replay_buffer_capacity": 400}, "capacity=500, this one capacity=400"),
    ):
        with config(prev_action=True, **changes).build() as other:
            before = state_hash(other.get_state())
            with pytest.raises(CheckpointError, match=words):
                other.restore(path)
            assert state_hash(other.get_state()) == before


def test_a_replay_without_room_for_a_sequence_is_refused():
    with pytest.raises(ConfigError, match="=80 is too little for sequences of 43 rows"):
        config(replay_buffer_capacity=80, max_seq_len=40).build()


def test_a_batch_of_rows_is_one_of_as_many_rows_in_sequences():
    with config(train_batch_size=23).build() as algo:
        assert algo._learner.learners[WHOLE]._size == 4
    with config(train_batch_size=2).build() as algo:
        assert algo._learner.learners[WHOLE]._size == 1


def test_a_critic_with_a_memory_does_not_judge_single_observations():
    with config().build() as algo, pytest.raises(ConfigError, match="framestack, memory"):
        algo._learner.learners[WHOLE].values(np.zeros((1, 2), np.float32))


def test_a_burn_in_without_a_memory_is_said(caplog):
    config(memory="none", burn_in=3, memory_size=64, max_seq_len=20).build().close()
    assert "burn_in=3 has no effect with memory='none'" in caplog.text
