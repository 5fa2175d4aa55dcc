"""QMIX whose members remember: runs of rows against plain loops, acting against learning, files, a game."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.learning.joint_q import joint_loss, values_along
from tests.algorithms.test_qmix import doors, qmix, team_of
from tests.states import diff, state_hash

GRU = {"memory": "gru", "memory_size": 8, "max_seq_len": 4, "prev_action": True, "prev_reward": True}


class Recall(steppe.MultiAgentEnv):
    """Each of two is shown a sign at first, and is asked for it two steps later; both have to know theirs."""

    possible_agents = ("ann", "bob")
    action_space = spaces.Discrete(2)
    observation_space = spaces.MultiDiscrete([3, 3])

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.signs, self.t = self.rng.integers(2, size=2), 0
        return self.seen(), {}

    def step(self, actions):
        right = [actions[agent] == sign for agent, sign in zip(self.possible_agents, self.signs, strict=True)]
        paid = float(self.t == 2 and all(right)) / 2
        self.t += 1
        rewards = dict.fromkeys(self.possible_agents, paid)
        return self.seen(), rewards, {"__all__": self.t == 3}, {"__all__": False}, {}

    def seen(self):
        shown = self.signs if self.t == 0 else (2, 2)
        return {
            agent: np.array([sign, min(self.t, 2)])
            for agent, sign in zip(self.possible_agents, shown, strict=True)
        }


def recall(env_config):
    return Recall().with_agent_groups({"team": ["ann", "bob"]})


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_members_remember_each_what_it_saw(memory):
    more = {} if memory == "none" else {**GRU, "memory_size": 16}
    config = qmix(recall, lr=5e-3, gamma=0.9, epsilon=[[0, 1.0], [2000, 0.05]], **more)
    with config.copy(memory=memory, train_batch_size=32).build() as algo:
        for _ in range(45 if memory == "gru" else 15):
            algo.train()
        reached = algo.evaluate(num_episodes=40)["episode_reward_mean"]
    assert (reached >= 0.95) if memory == "gru" else (reached <= 0.6)


def naive_values(network, rows, state, size):
    """Row by row, member by member: values ``(rows, members, actions)`` of one sequence."""
    found, ask = [], jax.jit(lambda obs, own: network(obs, own))
    for member in range(size):
        own = {"memory": jax.tree.map(lambda a, i=member: a[i], state["memory"])}
        own |= {"action": state["action"][member], "reward": state["reward"]}
        said = []
        for t, fresh in enumerate(rows["fresh"]):
            own = jax.tree.map(jnp.zeros_like, own) if fresh else {**own, "reward": rows["earned"][t]}
            obs = {"agent": jnp.int32(member), "obs": rows["obs"][member][t]}
            out, kept = ask(obs, own)
            said.append(out[:, 0])
            own = {"memory": kept, "action": rows["action"][member][t]}
        found.append(said)
    return np.asarray(found).swapaxes(0, 1)


def test_a_run_of_rows_is_learned_from_as_it_was_acted_on_and_as_row_by_row():
    """What was greedy when it was done is greedy in the learner, and its values are those of a plain loop."""
    never = {"num_steps_sampled_before_learning_starts": 10_000, "epsilon": 0.0}
    never["num_envs_per_env_runner"] = 3  # of which those who act are filled up to four
    with qmix(recall, **{**GRU, **never, "fcnet_hiddens": [6]}, burn_in=1).build() as algo:
        algo.train()
        learner = team_of(algo)
        batch = learner._replay.sample(np.random.default_rng(0), 1, 64)
        columns = {name: jax.tree.map(lambda a: jnp.asarray(a[0]), column) for name, column in batch.items()}
        static = learner._method.static
        model = learner._method.form.params.unravel(jnp.asarray(learner.state.params))
    rows, action = static.members.rows(columns["obs"], jnp.stack, lead=2), jnp.stack(columns["action"], -1)
    found = np.asarray(values_along(model, static, columns, rows, action))
    done = batch["learned"][0]
    assert done.sum() > 100
    assert (found.argmax(-1) == np.asarray(action))[done].all()
    for place in range(0, 64, 16):
        one = jax.tree.map(
            lambda a, i=place: a[i], {k: columns[k] for k in ("obs", "action", "earned", "fresh")}
        )
        state = jax.tree.map(lambda a, i=place: a[i], columns["state"])
        wanted = naive_values(model.network, one, state, 2)
        real = batch["filled"][0, place]
        np.testing.assert_allclose(found[place][real], wanted[real], atol=1e-5)


def test_the_loss_of_sequences_is_that_of_their_rows():
    """Row by row by hand: chosen values against those at each row's end, over the rows that count."""
    never = {"num_steps_sampled_before_learning_starts": 10_000, "fcnet_hiddens": [6]}
    with qmix(recall, **{**GRU, **never}).build() as algo:
        algo.train()
        learner = team_of(algo)
    batch = learner._replay.sample(np.random.default_rng(0), 1, 8)
    columns = {name: jax.tree.map(lambda a: jnp.asarray(a[0]), column) for name, column in batch.items()}
    static = learner._method.static
    model = learner._method.form.params.unravel(jnp.asarray(learner.state.params))
    target = jax.tree.map(lambda a: 0.7 * a + 0.01, model)
    rows, action = static.members.rows(columns["obs"], jnp.stack, lead=2), jnp.stack(columns["action"], -1)
    now, then = (np.asarray(values_along(one, static, columns, rows, action)) for one in (model, target))

    ask = jax.jit(lambda m, values, seen: m.total(values[None], seen)[0])

    def total(m, values, s, t):
        return float(ask(m, values, tuple(np.asarray(part)[s, t][None] for part in columns["obs"])))

    losses, errors = [], np.zeros(now.shape[:2])
    for s, t in zip(*np.nonzero(batch["learned"][0]), strict=True):
        end = int(columns["end"][s, t])
        best = now[s, end].argmax(-1)
        outcome = total(target, then[s, end][[0, 1], best], s, end)
        wanted = float(columns["reward"][s, t]) + float(columns["discount"][s, t]) * outcome
        errors[s, t] = total(model, now[s, t][[0, 1], np.asarray(action[s, t])], s, t) - wanted
        losses.append(0.5 * errors[s, t] ** 2)
    loss, (parts, error) = joint_loss(model, target, columns, static)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-4)
    np.testing.assert_allclose(error, np.abs(errors).mean(1), atol=1e-4)
    assert float(parts["mean_td_error"]) == pytest.approx(errors.sum() / len(losses), abs=1e-4)


@pytest.mark.parametrize("env", [recall, doors], ids=["plain", "masks and state"])
def test_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, env):
    settings = {**GRU, "train_batch_size": 16, "observation_filter": "MeanStdFilter"}
    with qmix(env, **settings).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        result = algo.train()
        wanted = algo.get_state()
        with steppe.load(path, env=env) as other:
            other.train()
            found = other.get_state()
    assert result["info"]["team"]["updates"] > 60
    for owner in ("learner", "runner"):
        assert diff(wanted[owner], found[owner]) == []
        assert state_hash(wanted[owner]) == state_hash(found[owner])


@pytest.mark.parametrize("env", [recall, doors], ids=["plain", "masks and state"])
@pytest.mark.parametrize("told", [{}, {"prev_action": False, "prev_reward": False, "memory": "lstm"}])
def test_a_loaded_policy_remembers_as_the_trained_one(tmp_path, env, told):
    with qmix(
        env, **{**GRU, **told}, observation_filter="MeanStdFilter", train_batch_size=16
    ).build() as algo:
        algo.train()
        learner = team_of(algo)
        loaded = steppe.load_policy(algo.save(tmp_path / "c"), "team")
    policy, rng = learner.policy, np.random.default_rng(0)
    weights, own, other = policy.load(learner.publish()), policy.initial_state(1), {}
    for step in range(12):
        if env is recall:
            obs = tuple(rng.integers(3, size=(2, 2)))
        else:
            masks = rng.permuted([[1, 1, 0], [0, 0, 1]], axis=1).astype(np.int8)
            obs = tuple({"obs": rng.normal(size=2).astype(np.float32), "action_mask": m} for m in masks)
        action, other = loaded.act(obs, other)
        decision = policy.act(weights, jax.tree.map(lambda a: a[None], obs), own, None)
        own = decision.state
        assert action == tuple(int(one[0]) for one in policy.to_env(decision.action))
        for name, part in own.items():
            wanted = jax.tree.map(lambda a: a[0], part)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other[name], wanted)
        if "reward" in own:
            own["reward"][:] = other["reward"] = np.float32(step)
    assert set(other) == set(own) == ({"memory"} if told else {"memory", "action", "reward"})
