"""Actors: which version acts, what each row remembers, and acting while others publish."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from gymnasium import spaces

from steppe.policies.actors import KEPT, Actors
from steppe.policies.numpy_policy import Exported, NumpyPolicy
from steppe.policies.scripted import Policy, scripted
from steppe.seeding import SMALLEST_NOISE
from steppe.spaces import describe, spec_of
from steppe.types import Decision

BOX, ACTION = spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(3, start=10)
OBS = np.zeros((2, 2), np.float32)
NETWORK = {
    "kind": "actor",
    "observation": describe(spec_of(BOX)),
    "action": describe(spec_of(ACTION)),
    "distribution": {},
    "normalizer": False,
    "encoder": {"kind": "flat"},
    "mlp": {"sizes": [2, 3], "activation": "tanh"},
    "free_log_std": False,
}


class Counting:
    """Counts the rows of each trajectory; its weights are what it is given, and its actions tell all."""

    observation = acting = spec_of(BOX)
    action, noise_size, draws = spec_of(ACTION), 2, False

    def __init__(self, remembers=True):
        self.remembers = remembers
        self.load = lambda weights: weights

    def to_env(self, action):
        return action + 10

    def from_env(self, action):
        return action - 10

    def act(self, weights, obs, state, noise):
        self.given = state, noise
        after = {"rows": state["rows"] + 1} if self.remembers else None
        return Decision(np.full(len(obs), weights, np.int32), np.zeros(len(obs), np.float32), after)

    def initial_state(self, n):
        return {"rows": np.zeros(n, np.int32)} if self.remembers else None

    def export(self, weights):
        return {}


def made(explore=True, **policies):
    policies = policies or {"p": Counting()}
    return Actors(policies, explore=explore, rng=np.random.default_rng(0))


def acted(actors, policy="p", n=1):
    chosen = actors.act(policy, OBS[:1].repeat(n, axis=0), [actors.initial_state(policy)] * n)
    assert chosen.decision.version.tolist() == chosen.decision.action.tolist()  # see publishing()
    assert chosen.env_actions.tolist() == [10 + v for v in chosen.decision.version.tolist()]
    return chosen.decision.version[0]


def publishing(actors, *versions, policy="p"):
    """Weights that are their own number."""
    for version in versions:
        actors.publish(policy, version, version)


def test_the_newest_of_eight_versions_acts():
    actors = made()
    assert (actors.acting, actors.versions) == ({}, {})
    publishing(actors, *range(1, 12))
    assert acted(actors, n=3) == 11
    assert actors.versions == {"p": tuple(range(4, 12))}
    assert len(actors.versions["p"]) == KEPT == 8
    assert actors.acting == {"p": 11}


def test_nothing_acts_before_there_are_weights():
    with pytest.raises(LookupError, match="policy 'p' has no weights yet"):
        acted(made())


def test_a_version_that_is_chosen_acts_and_is_kept_until_it_is_let_go():
    actors = made()
    publishing(actors, 1, 2, 3)
    actors.use(2)
    assert acted(actors) == 2
    publishing(actors, *range(4, 20))
    assert acted(actors) == 2
    assert actors.versions["p"] == (2, *range(12, 20))
    with pytest.raises(LookupError, match="no version 3; there are 2, 12, 13"):
        actors.use(3)
    assert actors.acting == {"p": 2}
    actors.use(None)
    assert acted(actors) == 19
    publishing(actors, 20)
    assert actors.versions["p"] == tuple(range(13, 21))


def test_a_policy_without_the_version_acts_with_one_before_it_or_its_first():
    actors = made(p=Counting(), q=Counting(), r=Counting())
    publishing(actors, 3, 5, 7)
    publishing(actors, 2, 4, 6, policy="q")
    publishing(actors, 8, 9, policy="r")
    actors.use(5)
    assert actors.acting == {"p": 5, "q": 4, "r": 8}
    assert [acted(actors, policy) for policy in "pqr"] == [5, 4, 8]


def test_a_run_that_goes_back_counts_back():
    actors = made()
    publishing(actors, 5, 6, 7)
    publishing(actors, 6)
    assert acted(actors) == 6
    assert actors.versions["p"] == (5, 7, 6)


def test_each_row_keeps_its_own_state():
    policy = Counting()
    actors = made(p=policy)
    publishing(actors, 1)
    fresh = actors.initial_state("p")
    assert fresh["rows"].shape == (1,)
    [one] = actors.act("p", OBS[:1], [fresh]).states
    both = actors.act("p", OBS, [one, fresh]).states
    assert policy.given[0]["rows"].tolist() == [1, 0]
    assert [state["rows"].tolist() for state in both] == [[2], [1]]
    assert both[0]["rows"].base is None
    assert fresh["rows"].tolist() == [0]
    plain = made(p=Counting(remembers=False))
    publishing(plain, 1)
    assert plain.act("p", OBS, [None, None]).states == [None, None]
    assert plain.initial_state("p") is None


def test_noise_is_drawn_where_it_is_needed_and_never_0():
    policy = Counting()
    actors = made(p=policy)
    publishing(actors, 1)
    actors.act("p", OBS, [actors.initial_state("p")] * 2)
    noise = policy.given[1]
    expected = np.random.default_rng(0).random((2, 2), np.float32)
    assert np.array_equal(noise, expected)
    still = made(explore=False, p=policy)
    publishing(still, 1)
    still.act("p", OBS, [still.initial_state("p")] * 2)
    assert policy.given[1] is None

    class Zeros:
        def random(self, size, dtype):
            return np.zeros(size, dtype)

    lowest = Actors({"p": policy}, explore=True, rng=Zeros())
    publishing(lowest, 1)
    lowest.act("p", OBS, [lowest.initial_state("p")] * 2)
    assert (policy.given[1] == SMALLEST_NOISE).all()


class Rule(Policy):
    """Draws, whoever explores."""

    def act(self, obs, state, rng):
        return int(rng.integers(10, 13))


def test_a_rule_of_the_users_own_draws_even_where_nothing_is_explored():
    actors = made(explore=False, p=scripted("p", Rule, spec_of(BOX), spec_of(ACTION)))
    actors.publish("p", None, 0)
    chosen = [actors.act("p", OBS, [None, None]).env_actions.tolist() for _ in range(9)]
    assert len({tuple(row) for row in chosen}) > 1


def numpy_actors(seed=0):
    """One layer that says the same of every observation: 1 to 1 to 6."""
    policy = NumpyPolicy(NETWORK, {"kind": "sampled"})
    bias = np.log(np.float32([1.0, 1.0, 6.0]))
    arrays = {"mlp.weights.0": np.zeros((2, 3), np.float32), "mlp.biases.0": bias}
    actors = Actors({"p": policy}, explore=True, rng=np.random.default_rng(seed))
    actors.publish("p", policy.load(Exported(4, arrays)), 4)
    return actors


def test_what_is_drawn_has_the_chances_that_are_said():
    chosen = numpy_actors().act("p", OBS[:1].repeat(4000, axis=0), [None] * 4000)
    share = np.bincount(chosen.env_actions - 10, minlength=3) / 4000
    np.testing.assert_allclose(share, [1 / 8, 1 / 8, 6 / 8], atol=0.02)
    said = np.log([1 / 8, 1 / 8, 6 / 8])[chosen.decision.action]
    np.testing.assert_allclose(chosen.decision.logp, said, rtol=1e-5)
    assert set(chosen.decision.version.tolist()) == {4}
    again = [numpy_actors(seed).act("p", OBS, [None, None]).env_actions.tolist() for seed in (1, 1)]
    assert again[0] == again[1], "the same stream draws the same"


def test_threads_act_while_others_publish():
    """No row mixes two versions, and each thread sees versions in their order."""
    actors = made(p=Counting())
    publishing(actors, 1)
    failed, over = [], threading.Event()

    def act():
        newest = 0
        try:
            while not over.is_set():
                version = acted(actors, n=2)
                assert version >= newest
                newest = version
            assert newest > 1
        except BaseException as error:  # a thread's own assertion would go unseen
            failed.append(error)

    threads = [threading.Thread(target=act) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 1000):
        publishing(actors, version)
        if version % 50 == 0:
            assert len(actors.versions["p"]) <= KEPT + 1
    over.wait(0.05)
    over.set()
    for thread in threads:
        thread.join(10)
    assert not failed
    assert actors.acting == {"p": 999}
