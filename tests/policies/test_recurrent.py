"""Policies that remember act alike wherever they act: in training, one by one, and in numpy alone."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import ConfigError
from steppe.spaces import leaves, map_leaves, take
from tests.states import diff

KINDS = ("lstm", "gru", "attention")
TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 40,
    "rollout_fragment_length": 7,
    "minibatch_size": 8,
    "max_seq_len": 4,
    "memory_size": 4,
    "attention_memory": 3,
    "num_epochs": 1,
    "fcnet_hiddens": [3],
    "write_run": False,
    "seed": 0,
}


class Masked(gymnasium.Env):
    """Six steps of a number; one of three choices is forbidden, another one each step."""

    observation_space = spaces.Dict(
        {"action_mask": spaces.MultiBinary(3), "seen": spaces.Box(-9, 9, (2,), np.float32)}
    )
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def seen(self):
        self.mask = np.arange(3) != self.t % 3
        numbers = self.np_random.normal(0, 2, 2).astype(np.float32)
        return {"action_mask": self.mask.astype(np.int8), "seen": numbers}

    def step(self, action):
        assert self.mask[action]
        self.t += 1
        return self.seen(), float(action), self.t == 6, False, {}


class Boxes(gymnasium.Env):
    """Five steps in which everything is a number."""

    observation_space, action_space = spaces.Box(-9, 9, (2,)), spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(0, 2, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.normal(0, 2, 2).astype(np.float32), float(action[0]), self.t == 5, False, {}


def tiny(env, kind, **changes):
    return steppe.PPOConfig(env=env, memory=kind, **{**TINY, **changes})


TOLD = {"prev_action": True, "prev_reward": True}


@pytest.fixture(
    scope="module",
    params=[(Masked, "lstm", TOLD), (Boxes, "gru", TOLD), (Boxes, "attention", {}), (Boxes, "lstm", {})],
    ids=["lstm", "gru", "attention", "plain"],
)
def trained(request, tmp_path_factory):
    """An algorithm that learned a little, and its policy out of a checkpoint."""
    env, kind, told = request.param
    with tiny(env, kind, **told).build() as algo:
        algo.train()
        path = algo.save(tmp_path_factory.mktemp(kind) / "c")
        yield algo, steppe.load_policy(path), env()


def close(a, b):
    for left, right in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_numpy_acts_and_remembers_as_jax_does(trained):
    """Through two episodes, state by state and action by action."""
    algo, policy, env = trained
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        state, numpy_state, reward, over = {}, {}, 0.0, False
        while not over:
            if "reward" in state:
                state["reward"] = numpy_state["reward"] = reward
            action, state = algo.compute_single_action(obs, state)
            numpy_action, numpy_state = policy.act(obs, numpy_state)
            close(action, numpy_action)
            close(state, numpy_state)
            obs, reward, over, *_ = env.step(action)
        assert any(leaf.any() for leaf in leaves(state["memory"]))


def test_a_batch_acts_as_its_rows_do_and_each_keeps_its_state(trained):
    algo, policy, env = trained
    obs = {name: env.reset(seed=i)[0] for i, name in enumerate("abc")}
    _, before = algo.compute_single_action(obs["a"], {})
    actions, states = algo.compute_actions(obs, {"a": before, "b": None})
    together, after = policy.act_batch([*obs.values()], states=[before, {}, None])
    for i, (name, known) in enumerate({"a": before, "b": {}, "c": {}}.items()):
        action, state = algo.compute_single_action(obs[name], known)
        close(action, actions[name])
        close(state, states[name])
        close(action, together[i])
        close(state, after[i])


def test_a_state_changes_what_is_done(trained):
    """The state that is given is not written to."""
    algo, _, env = trained
    obs, _ = env.reset(seed=0)
    _, first = algo.compute_single_action(obs, {})
    kept = map_leaves(np.copy, first)
    _, second = algo.compute_single_action(obs, first)
    assert diff(kept, first) == []
    assert diff(first, second) != []


@pytest.mark.parametrize("explore", [False, True])
def test_who_remembers_is_to_be_told_where_a_trajectory_begins(trained, explore):
    algo, policy, env = trained
    obs, _ = env.reset(seed=0)
    for act in (algo.compute_single_action, policy.act, lambda obs, **_: policy.act_batch([obs])):
        with pytest.raises(ConfigError, match=r"'default_policy'.*state=\{\} with the first observation"):
            act(obs, explore=explore)


@pytest.mark.parametrize("state", [{"memory": {"h": np.zeros(9)}}, {"h": 0}, [np.zeros(4)], 3])
def test_another_state_is_refused_with_the_shapes_of_its_own(trained, state):
    algo, policy, env = trained
    obs, _ = env.reset(seed=0)
    for act in (algo.compute_single_action, policy.act):
        with pytest.raises(ConfigError, match=r"of shapes .* is none of its own.*\{\} where a trajectory"):
            act(obs, state)


def test_a_policy_without_a_memory_hands_the_state_back():
    with tiny(Boxes, "none").build() as algo:
        obs = np.zeros(2, np.float32)
        alone = algo.compute_single_action(obs)
        action, state = algo.compute_single_action(obs, "mine")
        assert state == "mine"
        assert algo.compute_actions({"a": obs}, {})[1] == {"a": None}
        close(action, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_acting_is_padded_but_not_seen_to_be(kind):
    """Three rows are acted on as four; each is as if it were alone, with noise or without."""
    with tiny(Boxes, kind, **TOLD).build() as algo:
        policy, rng = algo.get_policy(), np.random.default_rng(0)
        weights = algo.runner.sampler.weights_of("default_policy")
        obs = rng.normal(0, 1, (3, 2)).astype(np.float32)
        state = map_leaves(lambda a: rng.normal(1, 0.1, a.shape).astype(np.float32), policy.initial_state(3))
        for noise in (None, rng.random((3, policy.noise_size), np.float32)):
            decision = policy.act(weights, obs, state, noise)
            assert [len(leaf) for leaf in leaves(decision.state)] == [3] * len(leaves(state))
            for i in range(3):
                one = take(state, slice(i, i + 1)), None if noise is None else noise[i : i + 1]
                alone = policy.act(weights, obs[i : i + 1], *one)
                close(take(decision[:3], slice(i, i + 1)), alone[:3])
            np.testing.assert_array_equal(decision.state["action"], decision.action)
            assert not decision.state["reward"].any()


def test_a_critic_that_sees_more_remembers_by_itself(tmp_path):
    """``critic_only`` keys are for the critic's memory alone: acting goes without them."""

    class Secret(Masked):
        observation_space = spaces.Dict(
            {**Masked.observation_space.spaces, "secret": spaces.Box(-1, 1, (1,), np.float32)}
        )

        def seen(self):
            return {**super().seen(), "secret": np.float32([self.t / 6])}

    with tiny(Secret, "lstm", critic_only=["secret"]).build() as algo:
        result = algo.train()["info"]["default_policy"]
        assert np.isfinite(list(result.values())).all()
        obs, _ = Masked().reset(seed=0)
        action, state = algo.compute_single_action(obs, {})
        loaded = steppe.load_policy(algo.save(tmp_path / "c"))
        close(loaded.act(obs, {}), (action, state))
        sizes = {
            leaf.shape[0] for leaf in jax.tree.leaves(algo._learner.learners["default_policy"].state[-1])
        }
        assert sizes == {2}  # lanes, of which the critic knows where they were cut
