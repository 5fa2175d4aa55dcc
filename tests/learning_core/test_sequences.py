"""Lanes of policies that remember: what is learned from is what was acted, trajectory by trajectory."""

from __future__ import annotations

from functools import cache

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe.learning import sequences
from steppe.learning.minibatches import FragmentQueue
from steppe.models.before import Memory
from steppe.models.distributions import Distribution
from steppe.models.memory import make_memory_actor_critic
from steppe.spaces import map_leaves, spec_of, take

ROWS, LANES, LENGTH = 12, 3, 4
BOX = spec_of(spaces.Box(-1, 1, (2,), np.float32))
MIXED = spec_of(spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(-1, 1, (1,), np.float32))))
DISTRIBUTION = Distribution(MIXED)
KINDS = ("lstm", "gru", "attention")


@cache
def model_of(kind, share=False):
    """Every input there is, and biases that are not 0."""
    memory = Memory(kind, 4, 2, prev_action=True, prev_reward=True, length=LENGTH)
    rng = np.random.default_rng(0)
    model = make_memory_actor_critic(BOX, DISTRIBUTION, rng, memory, hiddens=(3,), share_layers=share)
    return jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.3, a.shape), jnp.float32), model)


@cache
def learned(kind, share=False):
    """Compiled: one walk, its cuts, and the outputs of all sequences as minibatches see them."""
    model = model_of(kind, share)

    def whole(batch, continues, carry, acted):
        value, params, steps, closing = sequences.walked(model, batch["obs"], batch, continues, carry)
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), {"obs": batch["obs"]})
        rows = sequences.cut(flat, steps, acted, LENGTH)
        opened, weight = sequences.opened(rows, jnp.ones(len(rows["fresh"]), jnp.bool_))
        return (value, params.reshape(ROWS, LANES, -1), closing), model.outputs(opened), weight

    return jax.jit(whole)


def tree_of(shape, rng):
    """Some state or action of ``(*shape, ...)``."""
    return (rng.integers(0, 3, shape).astype(np.int32), rng.normal(0, 1, (*shape, 1)).astype(np.float32))


def some(tree, rng):
    """A state that a network may be in."""

    def one(a):
        return rng.normal(0, 1, (LANES, *a.shape)).astype(np.float32) if a.ndim else np.full(LANES, 2.0, "f4")

    return map_leaves(one, tree)


def batch_of(model, rng):
    """Lanes of unequal lengths, in which trajectories end; some go on from before."""
    length = rng.integers(0, ROWS + 1, LANES)
    filled = np.arange(ROWS)[:, None] < length
    ends = rng.random((2, ROWS, LANES)) < 0.15
    goes_on = rng.random(LANES) < 0.5
    initial = model.initial()
    memory = some(initial, rng)

    def kept(a):
        return np.where(goes_on.reshape(-1, *(1,) * (a.ndim - 1)), a, np.zeros_like(a))

    choice, number = tree_of((LANES,), rng)
    state0 = {
        "memory": map_leaves(kept, memory["actor"]),
        "action": (kept(choice), kept(number)),
        "reward": np.zeros(LANES, np.float32),
    }
    batch = {
        "obs": rng.normal(0, 1, (ROWS, LANES, 2)).astype(np.float32),
        "action": tree_of((ROWS, LANES), rng),
        "prev_reward": rng.normal(0, 9, (ROWS, LANES)).astype(np.float32),
        "terminated": ends[0] & filled,
        "truncated": ends[1] & filled,
        "filled": filled,
        "state0": state0,
    }
    acted = np.zeros_like(filled)
    acted[:-1] = filled[:-1] & filled[1:] & ~(ends.any(0) & filled)[:-1]
    return batch, goes_on, memory.get("critic", ()), acted


@cache
def one_row(kind, share):
    """Compiled: one row, met with a state; as acting does it, and the critic beside."""
    model = model_of(kind, share)

    def step(obs, state, critic):
        params, memory = model.actor(obs, state)
        own = model.critic.torso
        if own is None:
            features, _ = model.actor.torso.cell(model.actor.torso.inputs(obs, state), state["memory"])
        else:
            features, critic = own.cell(own.inputs(obs, state), critic)
        return params, model.critic.value(features), memory, critic

    return jax.jit(step)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([*KINDS, "shared"]), st.integers(0, 10**6))
def test_rows_in_sequences_equal_a_run_through_each_trajectory(kind, seed):
    share = kind == "shared"
    kind = "gru" if share else kind
    model, rng = model_of(kind, share), np.random.default_rng(seed)
    batch, goes_on, carry, acted = batch_of(model, rng)
    (value, params, closing), (again, value_again), weight = learned(kind, share)(
        batch, goes_on, carry, acted
    )
    by_lane = [np.asarray(a).reshape(LANES, ROWS, *a.shape[1:]).swapaxes(0, 1) for a in (again, value_again)]
    np.testing.assert_array_equal(np.asarray(weight).reshape(LANES, ROWS).T, acted)
    initial, nothing = model.initial(), map_leaves(lambda a: np.zeros_like(a[0, 0]), batch["action"])
    for lane in range(LANES):
        state = take({k: batch["state0"][k] for k in ("memory", "action")}, lane)
        critic = take(carry, lane) if goes_on[lane] and carry else initial.get("critic", ())
        met = critic
        for row in range(int(batch["filled"][:, lane].sum())):
            state["reward"], met = batch["prev_reward"][row, lane], critic
            expected, own, memory, critic = one_row(kind, share)(batch["obs"][row, lane], state, critic)
            for found in (params, by_lane[0]):
                np.testing.assert_allclose(found[row, lane], expected, atol=1e-5)
            for found in (value, by_lane[1]):
                np.testing.assert_allclose(found[row, lane], own, atol=1e-5)
            state = {"memory": memory, "action": take(batch["action"], (row, lane))}
            if batch["terminated"][row, lane] or batch["truncated"][row, lane]:
                state, critic = {"memory": initial["actor"], "action": nothing}, initial.get("critic", ())
        if not share:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), take(closing, lane), met)


def test_sequences_that_hold_an_acted_row():
    acted = np.zeros((4, 3), np.bool_)
    acted[1, 0] = acted[2, 2] = acted[3, 2] = True
    assert sequences.acted_sequences(acted, 2).tolist() == [True, False, False, False, False, True]


class Crowd(steppe.MultiAgentEnv):
    """Agents that come and go and skip turns; numbers as observations, choices and rewards."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.rng = np.random.default_rng(seed if seed is not None else self.rng.integers(10**9))
        self.t, self.came, self.here = 0, 1, ["0"]
        return {"0": self.seen()}, {}

    def seen(self):
        return self.rng.normal(0, 1, 2).astype(np.float32)

    def step(self, actions):
        self.t += 1
        left = [agent for agent in self.here if self.rng.random() < 0.1 and len(self.here) > 1]
        come = [str(self.came)] if self.rng.random() < 0.3 else []
        self.came += len(come)
        over = self.t == 17
        self.here = [agent for agent in self.here if agent not in left] + come
        turn = [agent for agent in self.here if self.rng.random() < 0.8 or over] or self.here[:1]
        seen = {agent: self.seen() for agent in {*turn, *left}}
        rewards = {agent: float(self.rng.normal()) for agent in seen}
        ended = {**dict.fromkeys(left, True), "__all__": over}
        return seen, rewards, ended, {"__all__": False}, {}


class Numbers(gymnasium.Env):
    """Nine steps of two numbers."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(0, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        seen = self.np_random.normal(0, 1, 2).astype(np.float32)
        return seen, float(self.np_random.normal()), self.t == 9, self.t % 7 == 0, {}


SMALL = {
    "num_envs_per_env_runner": 3,
    "train_batch_size": 60,
    "rollout_fragment_length": 5,
    "minibatch_size": 8,
    "max_seq_len": 4,
    "memory_size": 4,
    "attention_memory": 3,
    "num_epochs": 1,
    "fcnet_hiddens": [3],
    "prev_action": True,
    "prev_reward": True,
    "observation_filter": "NoFilter",
    "write_run": False,
    "seed": 0,
}


@pytest.mark.parametrize(("env", "kind"), [(Crowd, "lstm"), (Crowd, "attention"), (Numbers, "gru")])
def test_the_learner_makes_of_rows_what_acting_made_of_them(env, kind):
    """Over batches of stitched fragments: the same log-probabilities, and values as if never cut."""
    with steppe.PPOConfig(env=env, memory=kind, **SMALL).build() as algo:
        learner = algo._learner.learners["default_policy"]
        model = learner.static.layout.unravel(learner.state.params)
        queue, carry = FragmentQueue(SMALL["train_batch_size"], 4), learner.state.memory
        walk = jax.jit(lambda *given: sequences.walked(model, given[0]["obs"], *given))
        critics: dict[tuple[int, ...], object] = {}
        known = checked = 0
        for _ in range(3):
            while (taken := queue.take()) is None:
                for rollout in algo.runner.sample()[0].rollouts:
                    identity = [rollout.env, rollout.agent, rollout.episode, rollout.t]
                    rollout.extra["who"] = np.stack(identity, axis=-1)
                    queue.add(rollout)
            batch, acted, continues = taken
            carry = sequences.longer(map_leaves(np.asarray, carry), len(continues))
            value, params, _, carry = walk(batch, continues, carry)
            logp = learner.static.distribution.logp(params, map_leaves(flat, batch["action"]))
            np.testing.assert_allclose(np.asarray(logp)[acted.ravel()], batch["logp"][acted], atol=1e-5)
            known += sum(continues)
            checked += check_values(model, batch, value, critics)
        assert known > 2
        assert checked > 150


def flat(a):
    return a.reshape(-1, *a.shape[2:])


def check_values(model, batch, value, critics):
    """Against the critic's memory of each trajectory, kept by who lives it; how many values were compared."""
    checked, torso = 0, model.critic.torso
    cell = jax.jit(lambda obs, before, state: torso.cell(torso.inputs(obs, before), state))
    lanes = batch["filled"].shape[1]
    for lane in range(lanes):
        for row in range(int(batch["filled"][:, lane].sum())):
            env, agent, episode, t = batch["who"][row, lane].tolist()
            who = (env, agent, episode)
            state, action, seen = critics.get(who, (model.initial()["critic"], None, -1))
            if seen == t:  # the closing row of the batch before is the first one of this
                state, action, _ = critics[who, "met"]
            critics[who, "met"] = (state, action, t)
            at = (row, lane)
            nothing = map_leaves(lambda a: np.zeros_like(a[0, 0]), batch["action"])
            told = {"action": nothing if action is None else action, "reward": batch["prev_reward"][at]}
            features, state = cell(batch["obs"][at], told, state)
            np.testing.assert_allclose(value[at], model.critic.value(features), atol=1e-5)
            critics[who] = (state, take(batch["action"], at), t)
            checked += 1
            if batch["terminated"][at] or batch["truncated"][at]:
                del critics[who], critics[who, "met"]
    return checked
