"""Several policies in one run: who acts for whom, who learns, and by what."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe import Policy, PolicySpec
from steppe.runners.policies import PolicyMapping
from steppe.types import SlotInfo
from tests.envs_for_tests import SimpleCorridor
from tests.states import diff

TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 32,
    "minibatch_size": 16,
    "num_epochs": 1,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}


class Echo(gymnasium.Env):
    """Episodes of 4 steps; the reward is the action."""

    def __init__(self, env_config=None):
        self.observation_space, self.action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), float(action), self.t == 4, False, {}


class Always(Policy):
    """One and the same action; remembers how often."""

    def __init__(self, action=2):
        self.action = action

    def initial_state(self):
        return np.zeros((), np.int64)

    def act(self, obs, state, rng):
        assert obs[0] == state  # the env's clock: each episode begins with a fresh memory
        return self.action, state + 1


class Dice(Policy):
    def act(self, obs, state, rng):
        return int(rng.integers(3))


class Batch(Policy):
    def act(self, obs, state, rng):
        raise AssertionError

    def act_batch(self, obs, state, rng):
        return np.ones(len(obs), np.int64)


def tiny(policies, fn, env=Echo, **changes):
    return steppe.PPOConfig(env=env, policies=policies, policy_mapping_fn=fn, **{**TINY, **changes})


def by_parity(agent_id, episode):
    return ("learner", "fixed")[episode.number % 2]


def test_a_scripted_policy_acts_by_its_rule_and_only_the_other_one_learns():
    with tiny({"learner": None, "fixed": (Always, None, None, {})}, by_parity).build() as algo:
        result = algo.train()
    assert set(result["info"]) == {"learner"}
    assert result["policy_reward_mean"]["fixed"] == 8.0
    assert result["info"]["learner"]["rows"] == 16  # of 32 steps, half were the scripted policy's
    assert result["episodes_this_iter"] == 8


@pytest.mark.parametrize(("given", "mean"), [(Always(1), 4.0), (Batch, 4.0), (Dice, None)])
def test_forms_of_scripted_policies(given, mean):
    with tiny({"learner": None, "fixed": PolicySpec(given)}, by_parity).build() as algo:
        result, action = algo.train(), algo.compute_actions({"a": np.zeros(1, np.float32)}, policy_id="fixed")
        evaluation = algo.evaluate(num_episodes=8)
    assert action["a"] in range(3)
    for found in (result, evaluation):
        if mean is None:
            low, high = found["policy_reward_min"]["fixed"], found["policy_reward_max"]["fixed"]
            assert low < high
        else:
            assert found["policy_reward_mean"]["fixed"] == mean


def test_policies_that_do_not_train_keep_their_parameters_bit_by_bit():
    config = tiny({"learner", "fixed"}, by_parity, policies_to_train=["learner"])
    with config.build() as algo:
        before = algo.get_weights()
        result = algo.train()
        after = algo.get_weights()
    assert set(result["info"]) == {"learner"}
    np.testing.assert_array_equal(before["fixed"], after["fixed"])
    assert (before["learner"] != after["learner"]).any()
    assert result["policy_reward_mean"].keys() == {"learner", "fixed"}


def test_settings_of_their_own():
    policies = {
        "small": PolicySpec(config={"lr": 0.0, "fcnet_hiddens": [4]}),
        "large": {"config": {"gamma": 0.5}},
    }
    with tiny(policies, lambda agent_id, episode: ("small", "large")[episode.number % 2]).build() as algo:
        before = algo.get_weights()
        result = algo.train()
        after = algo.get_weights()
    assert len(before["small"]) < len(before["large"])
    assert (before["small"] == after["small"]).all()
    assert (before["large"] != after["large"]).any()
    assert result["info"]["small"]["cur_lr"] == 0.0


def test_a_policy_by_a_config_of_its_own():
    own = steppe.PPOConfig(lr=0.0, num_epochs=2, fcnet_hiddens=[4], train_batch_size=32)
    policies = {"a": None, "b": (own, None, None, {}), "c": (steppe.PPOConfig, None, None, {"lr": 0.0})}
    with tiny(
        policies, lambda agent_id, episode: "abc"[episode.number % 3], min_sample_timesteps_per_iteration=64
    ).build() as algo:
        before = algo.get_weights()
        algo.train()
        after = algo.get_weights()
    assert [(before[id] == after[id]).all() for id in "abc"] == [False, True, True]
    assert len(before["b"]) < len(before["a"]) < len(before["c"])  # hidden layers of 4, 8, and 64 and 64


def test_a_policy_that_nobody_is_mapped_to_holds_up_nothing():
    with tiny({"used", "idle"}, lambda agent_id: "used").build() as algo:
        for _ in range(3):
            result = algo.train()
    assert result["training_iteration"] == 3
    assert set(result["info"]) == {"used", "idle"}
    assert result["info"]["idle"] == {}


def drawn(agent_id, episode):
    return random.choice(["a", "b"]) if np.random.rand() < 0.5 else "b"


def test_random_mappings_are_reproducible_resume_exactly_and_leave_the_programs_chance_alone(tmp_path):
    shares = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        own = random.getstate()
        with tiny({"a", "b"}, drawn).build() as algo:
            for _ in range(2):
                algo.train()
            path = algo.save(tmp_path / str(seed))
            for _ in range(2):
                result = algo.train()
            expected = algo.get_state()
        assert random.getstate() == own
        shares.append(result["info"]["a"]["rows"])
    assert shares[0] == shares[1]
    with steppe.load(path, env=Echo, policy_mapping_fn=drawn) as algo:
        for _ in range(2):
            algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda agent_id: agent_id, ("car",)),
        (lambda agent_id, episode: (agent_id, episode.number), ("car", 3)),
        (lambda agent_id, episode, worker: (agent_id, episode.id, worker), ("car", "1-2-3", 7)),
        (lambda agent_id, episode, worker, **kwargs: (agent_id, worker), ("car", 7)),
        (lambda agent_id, *, worker: (agent_id, worker), ("car", 7)),
        (lambda *args: args[0], ("car",)),
        (lambda agent_id, episode=None: (agent_id, episode.env_index), ("car", 2)),
    ],
)
def test_a_mapping_gets_what_it_takes(fn, expected):
    class Runner:
        worker_index, in_evaluation = 1, False

        def __repr__(self):
            return "7"

    runner = Runner()
    seen = []

    def record(found):
        seen.append(tuple(found) if isinstance(found, tuple) else (found,))
        return "car"

    mapping = PolicyMapping(fn, ["car"], runner)
    mapping._function = lambda *args, **kwargs: record(fn(*args, **kwargs))
    assert mapping(SlotInfo(0, 2, "car", 3, 0)) == "car"
    assert [7 if part is runner else part for part in seen[0]] == list(expected)


def test_the_mapping_is_asked_once_per_agent_and_episode():
    asked = []

    def fn(agent_id, episode):
        asked.append((agent_id, episode.env_index, episode.number))
        return "a"

    with tiny({"a", "b"}, fn).build() as algo:
        algo.train()
    assert len(asked) == len(set(asked)) == 10  # 2 envs x (4 episodes and one that has begun)


@pytest.mark.parametrize(
    ("policies", "fn", "changes", "text"),
    [
        ({"a", "b"}, lambda agent_id: "c", {}, r"maps agent 'agent0' to policy 'c'.*there are a, b"),
        ({"a", "b"}, None, {}, r"no policy_mapping_fn maps agent 'agent0' to policy 'agent0'"),
        (
            {"a", "b"},
            lambda agent_id: "a",
            {"policies_to_train": ["d"]},
            r"'d', which is not there; there are a, b",
        ),
        (
            {"a": (Dice, None, None, {}), "b": None},
            lambda a: "a",
            {"policies_to_train": ["a"]},
            r"'a', which is scripted",
        ),
        ({"a": (Dice, None, None, {})}, lambda a: "a", {}, r"no policy learns"),
        ({"a", "b"}, lambda agent_id: "a", {"policies_to_train": lambda id: False}, r"no policy learns"),
        (
            {"a": (None, spaces.Box(0, 1, (2,)), spaces.Discrete(3), {}), "b": None},
            lambda agent_id: "a",
            {},
            r"agent 'agent0' \(env 0, episode 0\).*is mapped to policy 'a', which takes observation space",
        ),
    ],
)
def test_what_cannot_be_is_named(policies, fn, changes, text):
    with pytest.raises(steppe.ConfigError, match=text), tiny(policies, fn, **changes).build() as algo:
        algo.train()


def test_an_action_that_is_none_is_the_scripted_policys_fault():
    config = tiny({"learner": None, "fixed": (Always(9), None, None, {})}, by_parity)
    text = r"policy 'fixed', Always: action: .*got 9.*\n  in runner 0, env 0, episode 1, step 0, agent 'agent"
    with config.build() as algo, pytest.raises(steppe.SpaceError, match=text):
        algo.train()


def test_resume_is_exact_with_a_scripted_policy_that_draws_and_remembers(tmp_path):
    policies = {"learner": None, "fixed": (Dice, None, None, {}), "counts": (Always, None, None, {})}

    def fn(agent_id, episode):
        return ("learner", "fixed", "counts")[episode.number % 3]

    with tiny(policies, fn, train_batch_size=26).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_state()
    with steppe.load(path, env=Echo, policies=policies, policy_mapping_fn=fn) as algo:
        algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []


def test_one_policy_of_another_name_needs_no_mapping():
    config = steppe.PPOConfig(
        env=SimpleCorridor, env_config={"corridor_length": 3}, policies={"walker"}, **TINY
    )
    with config.build() as algo:
        assert set(algo.train()["info"]) == {"walker"}
        assert algo.compute_single_action(0, policy_id="walker") in (0, 1)


def test_a_frozen_copy_joins_a_run_and_is_in_its_checkpoints(tmp_path):
    """As in self-play: past versions play, and stay what they were while the newest one learns."""
    later = {}

    def past(agent_id, episode):
        return ("main", "v1")[episode.number % 2]

    with tiny(
        {"main"}, lambda agent_id: "main", evaluation_interval=1, evaluation_duration=2
    ).build() as algo:
        algo.train()
        algo.add_policy("v1", like="main", policy_mapping_fn=past)
        first = algo.get_weights()
        np.testing.assert_array_equal(first["v1"], first["main"])
        obs = {i: np.full(1, i, np.float32) for i in range(5)}
        acted = algo.compute_actions(obs, policy_id="v1")
        assert acted == algo.compute_actions(obs, policy_id="main")  # observation statistics included
        for _ in range(2):
            result = algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_state()
        later = algo.get_weights()
        assert algo.compute_actions(obs, policy_id="v1") == acted
    assert set(result["info"]) == {"main"}
    assert set(result["policy_reward_mean"]) == {"main", "v1"}
    np.testing.assert_array_equal(later["v1"], first["v1"])
    assert (later["main"] != first["main"]).any()
    with steppe.load(path, env=Echo, policy_mapping_fn=past) as algo:
        algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []


def test_policies_that_join_may_learn_or_be_scripted():
    with tiny({"main"}, lambda agent_id: "main").build() as algo:
        algo.train()
        algo.add_policy("second", PolicySpec(config={"fcnet_hiddens": [4]}), trained=True)
        algo.add_policy(
            "fixed",
            PolicySpec(Always(1)),
            policy_mapping_fn=lambda agent_id, episode: ("main", "second", "fixed")[episode.number % 3],
        )
        for _ in range(3):
            result = algo.train()
    assert set(result["info"]) == {"main", "second"}
    assert result["info"]["second"]["rows"] > 0
    assert result["policy_reward_mean"]["fixed"] == 4.0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda algo: algo.add_policy("main"), r"there is a policy 'main'"),
        (
            lambda algo: algo.add_policy("b", like="c"),
            r"like='c' is no policy with parameters; there are main",
        ),
        (lambda algo: algo.add_policy("b", PolicySpec(), like="main"), r"give spec or like='main', not both"),
        (lambda algo: algo.add_policy("b", PolicySpec(config={"env": 1})), r"holds for the whole run"),
    ],
)
def test_a_policy_that_cannot_join_changes_nothing(call, text):
    with tiny({"main"}, None).build() as algo:
        before = algo.get_state()
        with pytest.raises(steppe.ConfigError, match=text):
            call(algo)
        assert diff(before, algo.get_state()) == []
        algo.train()
