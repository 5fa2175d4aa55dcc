"""A learner that owns policies which learn each by itself: routing, all-or-nothing changes, state."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from steppe.errors import CheckpointError, ConfigError
from steppe.learning.independent import IndependentLearner, PolicyLearner


class Counting(PolicyLearner):
    """Learns when it has two fragments; its weights are a vector of its own length."""

    def __init__(self, size):
        self.policy = SimpleNamespace(size=size)
        self.weights, self.fragments, self.seen = np.zeros(size, np.float32), [], 0

    def add(self, rollout):
        self.fragments.append(rollout)

    def values(self, obs):
        return np.zeros(len(obs), np.float32)

    def update(self, env_steps):
        if len(self.fragments) < 2:
            return None
        self.fragments, self.seen = [], env_steps
        return {"env_steps": float(env_steps)}

    def publish(self):
        return self.weights

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = np.array(weights, np.float32)

    def summary(self):
        return f"{len(self.weights)} weights"

    def get_state(self):
        return {"weights": self.weights, "seen": self.seen}

    def checked(self, state):
        if len(state["weights"]) != len(self.weights):
            raise CheckpointError("another size")
        return np.array(state["weights"])

    def set_state(self, state, checked):
        self.weights, self.seen = checked, state["seen"]


def learner():
    return IndependentLearner({"a": Counting(2), "b": Counting(3)})


def fragment(policy):
    return SimpleNamespace(policy=policy)


def test_fragments_go_to_their_policy_and_only_full_ones_learn():
    both = learner()
    assert both.update(0) is None
    both.add([fragment("a"), fragment("b")])
    assert both.update(1) is None
    both.add([fragment("b")])
    assert both.update(7) == {"b": {"env_steps": 7.0}}
    both.add([fragment("a"), fragment("b")])
    assert both.update(9) == {"a": {"env_steps": 9.0}}
    assert list(both.policies) == ["a", "b"]
    assert set(both.publish()) == {"a", "b"}
    assert both.summary() == "a: 2 weights\nb: 3 weights"


def test_weights_are_replaced_all_or_none():
    both = learner()
    both.set_weights({"b": [1, 2, 3]})
    assert both.get_weights()["b"].tolist() == [1, 2, 3]
    for bad, reason in (({"a": [5, 5], "c": [1]}, "no policy 'c'"), ({"a": [5, 5], "b": [1, 2]}, r"\(3,\)")):
        with pytest.raises(ConfigError, match=reason):
            both.set_weights(bad)
        assert both.get_weights()["a"].tolist() == [0, 0]


def test_state_is_restored_all_or_none():
    both, other = learner(), learner()
    both.set_weights({"a": [1, 1], "b": [2, 2, 2]})
    state = both.get_state()
    other.set_state(state)
    assert other.get_weights()["b"].tolist() == [2, 2, 2]
    fresh = learner()
    with pytest.raises(CheckpointError, match="policies"):
        fresh.set_state({"a": state["a"]})
    with pytest.raises(CheckpointError, match="another size"):
        fresh.set_state({"a": state["a"], "b": {"weights": [1.0], "seen": 0}})
    assert fresh.get_weights()["a"].tolist() == [0, 0]


def test_an_update_that_was_undone_is_said_aloud(caplog):
    class Skipping(Counting):
        def update(self, env_steps):
            return {"updates_skipped": float(env_steps)}

    one = IndependentLearner({"a": Skipping(1)})
    with caplog.at_level(logging.WARNING, "steppe"):
        for skipped in (0, 1, 1, 2):
            one.update(skipped)
    assert caplog.text.count("not finite") == 2
