"""Policies leave a run: who acts for their agents then, what is kept, and what a checkpoint holds."""

from __future__ import annotations

import gc
import random

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe import Policy, PolicySpec
from steppe.learning.independent import PolicyLearner
from tests.states import diff
from tests.test_policies import TINY

LENGTH = 12


class Long(gymnasium.Env):
    """Episodes of 12 steps; the reward is the action, the observation the time."""

    def __init__(self, env_config=None):
        self.observation_space, self.action_space = spaces.Box(0, 99, (1,), np.float32), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), float(action), self.t == LENGTH, False, {}


class Turns(steppe.MultiAgentEnv):
    """Two agents move by turns, each 6 times; the reward is the action."""

    possible_agents = ("x", "y")
    observation_space, action_space = spaces.Box(0, 99, (1,), np.float32), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return {"x": np.zeros(1, np.float32)}, {}

    def step(self, action_dict):
        ((agent, action),) = action_dict.items()
        self.t += 1
        seen = ("x", "y") if self.t == LENGTH else ("xy"[self.t % 2],)
        obs = {one: np.full(1, self.t, np.float32) for one in seen}
        return obs, {agent: float(action)}, {"__all__": self.t == LENGTH}, {"__all__": False}, {}


class Fixed(Policy):
    def __init__(self, action):
        self.action = action

    def act(self, obs, state, rng):
        return self.action


class Since(Policy):
    """2 once it has acted three times for somebody, 0 until then."""

    def initial_state(self):
        return np.int64(0)

    def act(self, obs, state, rng):
        return 2 * int(state >= 3), state + 1


SCRIPTED = {"one": PolicySpec(Fixed(1)), "two": PolicySpec(Fixed(2)), "since": PolicySpec(Since)}


def config(policies, fn, env=Long, **changes):
    small = {**TINY, "num_envs_per_env_runner": 1, "train_batch_size": 16, "minibatch_size": 8}
    return steppe.PPOConfig(env=env, policies=policies, policy_mapping_fn=fn, **{**small, **changes})


def to(*policies):
    """A mapping that gives the agents of one episode after the other to these, then to the last one."""
    left = list(policies)
    return lambda agent_id: left.pop(0) if len(left) > 1 else left[0]


def same(expected, algo):
    for owner, state in algo.get_state().items():
        assert diff(expected[owner], state) == [], owner


def test_others_go_on_with_a_running_episode_and_no_reward_is_lost():
    """16 steps an iteration: two acted in the first 4 of the second episode, and one goes on."""
    with config({"main": None, **SCRIPTED}, to("main", "two", "since")).build() as algo:
        assert algo.train()["policy_reward_mean"].keys() == {"main"}
        algo.remove_policy("two", policy_mapping_fn=lambda agent_id: "one")
        result = algo.train()
    assert result["policy_reward_max"]["one"] == 4 * 2 + 8 * 1
    assert "two" not in result["policy_reward_mean"]
    assert result["episodes_total"] == 2
    assert result["episode_len_mean"] == LENGTH
    assert set(algo.config.policies) == {"main", "one", "since"}


def test_who_takes_over_begins_with_a_fresh_memory():
    with config({"main": None, **SCRIPTED}, to("main", "two", "since")).build() as algo:
        algo.train()
        algo.remove_policy("two")
        result = algo.train()
    # Of the 8 steps that were left, 3 are before it wakes up.
    assert result["policy_reward_max"]["since"] == 4 * 2 + 5 * 2


def test_a_trained_policy_learns_from_its_own_part_alone():
    with config({"main": None, "other": None}, to("main", "other", "main")).build() as algo:
        assert [algo.train()["info"][id]["rows"] for id in ("main",)] == [12]
        algo.remove_policy("other")
        stats = algo.train()["info"]
        assert stats.keys() == {"main"}
        # 4 of 16 steps belong to the episode that was the other's; its 8 last steps are main's.
        assert stats["main"]["rows"] == 16


def test_a_policy_that_takes_over_sees_each_row_with_its_own_action_and_reward():
    """What the lanes hold, against what the env was sent."""
    seen = []

    class Watch(steppe.Callbacks):
        def on_sample_end(self, *, worker, samples):
            seen.extend(samples.rollouts)

    mapping = to("main", "other", "main")
    with config({"main": None, "other": None}, mapping, callbacks_class=Watch).build() as algo:
        algo.train()
        seen.clear()
        algo.remove_policy("other")
        algo.train()
    (rollout,) = seen
    assert rollout.policy == "main"
    taken = np.flatnonzero(rollout.acted[:, 0])
    assert len(taken) == 16 or rollout.acted.sum() == 16
    for row, lane in np.argwhere(rollout.acted):
        assert rollout.reward[row + 1, lane] == rollout.action[row, lane]
        assert rollout.obs[row + 1, lane, 0] == rollout.obs[row, lane, 0] + 1
        assert (rollout.logp[row, lane] < 0).all()
    begins = sorted(rollout.obs[0, rollout.filled[0], 0].tolist())
    assert begins == [4.0]


def test_a_silent_agent_changes_hands_too():
    """16 steps: the second episode is cut after 4, x waits to move and y is silent."""
    mapping = to("main", "main", "two", "two", "one")
    with config({"main": None, **SCRIPTED}, mapping, Turns).build() as algo:
        algo.train()
        algo.remove_policy("two")
        result = algo.train()
    assert result["policy_reward_max"]["one"] == 2 * 2 + 4 * 1
    assert result["agent_reward_mean"].keys() == {"x", "y"}


def test_hooks_know_who_took_over():
    told = []

    class Tell(steppe.Callbacks):
        def on_episode_start(self, *, episode):
            told.append(("start", episode.number, episode.policy_for()))

        def on_episode_step(self, *, episode):
            told.append((episode.length, episode.number, episode.policy_for()))

        def on_episode_end(self, *, episode):
            told.append(("end", episode.number, episode.policy_for(), episode.total_reward))

    policies = {"main": None, **SCRIPTED}
    with config(policies, to("main", "two", "one"), callbacks_class=Tell).build() as algo:
        algo.train()
        before = len(told)
        algo.remove_policy("two")
        assert len(told) == before  # nothing begins, and no step is seen twice
        assert told[-1] == (4, 1, "two")
        algo.train()
    assert told[before] == (5, 1, "one")
    assert ("end", 1, "one", 16.0) in told
    assert [one for one in told if one[0] == "start"] == [
        ("start", n, id) for n, id in ((0, "main"), (1, "two"), (2, "one"))
    ]


def test_checkpoints_hold_the_rest_and_load_exactly(tmp_path):
    def by_chance(agent_id):
        return random.choice(["main", "old", "new"])

    def then(agent_id):
        return random.choice(["main", "new"])

    evaluated = {"evaluation_interval": 1, "evaluation_duration": 3, "num_envs_per_env_runner": 2}
    with config(
        {"main", "old", "new"}, by_chance, policies_to_train=["main", "old"], **evaluated
    ).build() as algo:
        for _ in range(2):
            algo.train()
        algo.remove_policy("old", policy_mapping_fn=then)
        path = algo.save(tmp_path / "c")
        for _ in range(2):
            assert algo.train()["info"].keys() <= {"main"}
        expected = algo.get_state()
    assert set(expected["learner"]) == {"main", "new"}
    with pytest.raises(steppe.ConfigError, match=r"no policy 'old'; there are main, new"):
        steppe.load_policy(path, "old")
    with steppe.load(path, env=Long, policy_mapping_fn=then) as algo:
        assert algo.config.policies_to_train == ["main"]
        for _ in range(2):
            algo.train()
        same(expected, algo)


@pytest.mark.parametrize("where", ["separate", "shared"])
def test_evaluation_goes_on_without_it(where):
    policies = {"main": None, **SCRIPTED}
    settings = {"evaluation_envs": where, "evaluation_duration": 2, "num_envs_per_env_runner": 2}
    with config(policies, lambda agent_id: "two", **settings).build() as algo:
        assert algo.evaluate()["policy_reward_mean"] == {"two": 24.0}
        algo.train()
        algo.remove_policy("two", policy_mapping_fn=lambda agent_id: "one")
        assert algo.evaluate()["policy_reward_mean"] == {"one": 12.0}
        algo.remove_policy("one", policy_mapping_fn=lambda agent_id: "main")
        assert algo.evaluate()["policy_reward_mean"].keys() == {"main"}
        algo.train()


def test_an_evaluation_that_still_names_it_says_so_at_its_start():
    def fn(agent_id, episode, worker):
        return "two" if worker.in_evaluation else "main"

    with config({"main": None, **SCRIPTED}, fn, evaluation_duration=1).build() as algo:
        algo.evaluate()
        algo.remove_policy("two")
        algo.train()
        with pytest.raises(steppe.ConfigError, match=r"maps agent 'agent0' to policy 'two'"):
            algo.evaluate()


def test_before_the_first_iteration_and_down_to_one():
    with config({"main": None, **SCRIPTED}, lambda agent_id: "main").build() as algo:
        for id in SCRIPTED:
            algo.remove_policy(id)
        assert algo.train()["policy_reward_mean"].keys() == {"main"}
        algo.add_policy("one", SCRIPTED["one"], policy_mapping_fn=lambda agent_id: "one")
        for _ in range(2):
            result = algo.train()
        assert result["policy_reward_max"]["one"] == LENGTH


def test_the_same_name_again_is_another_policy():
    with config({"main", "past"}, lambda agent_id: "main", policies_to_train=["main"]).build() as algo:
        algo.train()
        first = algo.get_weights()["past"]
        algo.remove_policy("past")
        algo.add_policy("past", like="main")
        weights = algo.get_weights()
        np.testing.assert_array_equal(weights["past"], weights["main"])
        algo.remove_policy("past")
        algo.add_policy("past")
        algo.add_policy("third")
        weights = algo.get_weights()
        kinds = [first, *weights.values()]
        assert len({one.tobytes() for one in kinds}) == len(kinds)  # nobody begins as another one did
        algo.train()


def test_who_learns_can_become_fewer():
    with config({"a", "b", "c"}, to("a", "b", "c", "a")).build() as algo:
        algo.train()
        algo.remove_policy("c", policies_to_train=["b"], policy_mapping_fn=to("a", "b", "a"))
        before = algo.get_weights()
        for _ in range(3):
            assert algo.train()["info"].keys() == {"b"}
        after = algo.get_weights()
        np.testing.assert_array_equal(before["a"], after["a"])
        assert algo.config.policies_to_train == ["b"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda algo: algo.remove_policy("tow"), r"no policy 'tow' to remove; there are main, fixed, two"),
        (lambda algo: algo.remove_policy("main"), r"no policy learns: policies_to_train=\[\]"),
        (lambda algo: algo.remove_policy("two"), r"maps agent 'agent0' to policy 'two' \(env 0, episode 1\)"),
        (
            lambda algo: algo.remove_policy("two", policy_mapping_fn=lambda agent_id: "four"),
            r"to policy 'four' .*; there are main, fixed",
        ),
        (
            lambda algo: algo.remove_policy(
                "two", policy_mapping_fn=lambda a: "main", policies_to_train=["fixed"]
            ),
            r"names 'fixed', which does not learn by now: add_policy\(\.\.\., like='fixed', trained=True\)",
        ),
        (
            lambda algo: algo.remove_policy("two", policies_to_train=["two"]),
            r"policies_to_train names 'two', which is not there; there are main, fixed",
        ),
        (
            lambda algo: algo.remove_policy("two", policy_mapping_fn=lambda agent_id: "fixed"),
            r"is mapped to policy 'fixed', which takes action space Discrete\(5\), here Discrete\(3\)",
        ),
    ],
)
def test_a_policy_that_cannot_leave_stays_and_nothing_changes(call, text):
    fixed = PolicySpec(None, Long().observation_space, spaces.Discrete(5))
    policies = {"main": None, "fixed": fixed, "two": SCRIPTED["two"]}
    mapping = to("main", "two")
    with config(policies, mapping, policies_to_train=["main"]).build() as algo:
        algo.train()
        before, settings = algo.get_state(), algo.config
        with pytest.raises(steppe.ConfigError, match=text):
            call(algo)
        same(before, algo)
        assert algo.config is settings
        assert algo.train()["policy_reward_max"]["two"] == 24.0


def test_policies_say_the_spaces_of_an_env_that_does_not():
    class Silent(Turns):
        observation_space = action_space = None

    pair = (Turns.observation_space, Turns.action_space)
    policies = {"main": (None, *pair, {}), "two": (Fixed(2), *pair, {})}
    with config(policies, lambda agent_id: "two", Silent).build() as algo:
        algo.train()
        algo.add_policy("past", like="main", policy_mapping_fn=lambda agent_id: "past")
        algo.remove_policy("two")
        for _ in range(2):
            result = algo.train()
    assert "past" in result["policy_reward_mean"]


def test_the_last_policy_stays():
    with (
        config({"main"}, None).build() as algo,
        pytest.raises(steppe.ConfigError, match=r"'main' is the last policy"),
    ):
        algo.remove_policy("main")


def test_in_on_train_result_but_not_while_envs_step():
    class Replace(steppe.Callbacks):
        def on_train_result(self, *, algorithm, result):
            n = algorithm.iteration
            algorithm.add_policy(f"past_{n}", like="main", policy_mapping_fn=lambda agent_id: f"past_{n}")
            if n > 1:
                algorithm.remove_policy(f"past_{n - 1}")

    class Early(steppe.Callbacks):
        def on_episode_end(self, *, worker, episode):
            self.algorithm.remove_policy("two")

        def on_algorithm_init(self, *, algorithm):
            self.algorithm = algorithm

    with config({"main"}, lambda agent_id: "main", callbacks_class=Replace).build() as algo:
        for _ in range(3):
            algo.train()
        assert set(algo.config.policies) == {"main", "past_3"}
    with (
        config({"main": None, **SCRIPTED}, lambda agent_id: "main", callbacks_class=Early).build() as algo,
        pytest.raises(steppe.ConfigError, match=r"envs are stepping: remove a policy between iterations"),
    ):
        algo.train()


def test_two_hundred_rounds_leave_nothing_behind():
    def one_of_them(agent_id, episode, worker):
        return random.choice(worker.policy_ids)  # without the one that leaves, when asked anew

    def sizes(algo):
        gc.collect()
        sampler, mapping = algo.runner.sampler, algo.runner.mapping
        columns = [sampler._ids, sampler._policies, sampler._lanes, sampler._weights, sampler._states]
        columns += [sampler._versions, sampler._initial, mapping.ids, algo.runner.spaces]
        learners = [one for one in gc.get_objects() if isinstance(one, PolicyLearner)]
        return {len(one) for one in columns}, len(mapping._asked), len(learners)

    with config({"main"}, one_of_them, num_envs_per_env_runner=2).build() as algo:
        others = sizes(algo)[2] - 1  # of runs that other tests left to the collector
        for n in range(200):
            algo.add_policy(f"past_{n}", like="main", trained=n % 2 == 0)
            if n % 20 == 0:
                algo.train()
            if n >= 2:
                algo.remove_policy(f"past_{n - 2}")
            if n in (10, 199):
                assert sizes(algo) == ({3}, 0, 3 + others)
        algo.train()
