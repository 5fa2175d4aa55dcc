"""Every kind of space trains without model code, comes back from a checkpoint, and acts in numpy."""

from __future__ import annotations

from functools import partial

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from tests.states import state_hash


def sequence():
    space = spaces.Sequence(spaces.Box(-1, 1, (2,), np.float32))
    space.max_length = 3
    return space


OBSERVATIONS = {
    "Box float64": spaces.Box(-2, 2, (3,), np.float64),
    "Box int8, no axes": spaces.Box(-5, 5, (), np.int8),
    "Discrete from -2": spaces.Discrete(4, start=-2),
    "MultiDiscrete": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "MultiBinary": spaces.MultiBinary((2, 2)),
    "nested": spaces.Dict(
        {
            "b": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,), np.float32))),
            "a": spaces.Dict({"z": spaces.MultiBinary(2), "y": spaces.Box(-1, 1, (2, 2), np.float32)}),
            "s": sequence(),
        }
    ),
    "Tuple": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.Tuple((spaces.Discrete(2),)))),
    "OneOf": spaces.OneOf((spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32))),
}
ACTIONS = {
    "Box int": spaces.Box(-3, 3, (2,), np.int64),
    "Box half bounded": spaces.Box(np.array([0, -np.inf], np.float32), np.array([np.inf, 1], np.float32)),
    "nested": spaces.Tuple(
        (
            spaces.Dict({"d": spaces.Box(-10, 10, (), np.float32), "e": spaces.Discrete(2)}),
            spaces.MultiBinary(3),
        )
    ),
}


def env_of(observation, action):
    class Env(gymnasium.Env):
        def __init__(self):
            self.observation_space, self.action_space = observation, action

        def sample(self):
            return self.observation_space.sample()

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.sample(), {}

        def step(self, taken):
            assert self.action_space.contains(taken), taken
            self.t += 1
            return self.sample(), 1.0, self.t >= 5, False, {}

    return Env


@pytest.mark.parametrize(
    ("observation", "action"),
    [pytest.param(space, spaces.Discrete(2), id=name) for name, space in OBSERVATIONS.items()]
    + [pytest.param(spaces.Discrete(2), space, id=f"action {name}") for name, space in ACTIONS.items()],
)
def test_it_trains_acts_and_resumes(observation, action, tmp_path):
    if isinstance(observation, spaces.Dict):  # a space draws sequences longer than its declared maximum
        pairs = observation.spaces
        pairs["s"].sample = lambda *args, **kw: tuple(np.full(2, i / 3, np.float32) for i in range(2))
    env = env_of(observation, action)
    config = steppe.PPOConfig(
        env=env,
        num_envs_per_env_runner=2,
        train_batch_size=24,
        minibatch_size=8,
        num_epochs=1,
        fcnet_hiddens=[4],
        seed=0,
        write_run=False,
    )
    with config.build() as algo:
        result = algo.train()
        assert np.isfinite(list(result["info"]["default_policy"].values())).all()
        saved = algo.save(tmp_path / "saved")
        with steppe.load(saved, env=env) as again:
            mine, theirs = (state_hash(one.get_state()["learner"]) for one in (algo, again))
            assert mine == theirs
            again.train()
        loaded = steppe.load_policy(saved)
        algo.restore(saved)
        for _ in range(5):
            obs = observation.sample()
            taken = algo.compute_single_action(obs)
            assert action.contains(taken), taken
            alike = jax.tree.map(partial(np.allclose, rtol=1e-5, atol=1e-5), taken, loaded.act(obs))
            assert jax.tree.all(alike), (taken, loaded.act(obs))
            assert action.contains(loaded.act(obs, explore=True))


@pytest.mark.parametrize(
    ("observation", "action", "reason"),
    [
        (spaces.Text(5), spaces.Discrete(2), "Text"),
        (spaces.Graph(spaces.Discrete(2), spaces.Discrete(2)), spaces.Discrete(2), "Graph"),
        (spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2), "max"),
        (spaces.Discrete(2), sequence(), "Sequence"),
    ],
    ids=["Text", "Graph", "Sequence without maximum", "Sequence as action"],
)
def test_what_cannot_be_handled_is_refused_with_a_reason(observation, action, reason):
    config = steppe.PPOConfig(env=env_of(observation, action), write_run=False)
    with pytest.raises(steppe.SpaceError, match=reason):
        config.build()


def test_numbers_beyond_32_bits_do_not_wrap_around(tmp_path):
    low, high = 10**12, 10**12 + 10**10
    env = env_of(spaces.Box(low, high, (2,), np.int64), spaces.Discrete(2))
    small = {"train_batch_size": 32, "minibatch_size": 16, "num_epochs": 1, "fcnet_hiddens": [4]}
    with steppe.PPOConfig(
        env=env, num_envs_per_env_runner=2, seed=0, write_run=False, **small
    ).build() as algo:
        algo.train()
        mean = algo.get_state()["learner"]["default_policy"]["arrays"]
        assert any(leaf.shape == (2,) and (low <= leaf).all() and (leaf <= high).all() for leaf in mean)
        obs = {str(i): np.array([low + i * 10**8, high - i * 10**8]) for i in range(100)}
        path, actions = algo.save(tmp_path / "c"), algo.compute_actions(obs)
    policy = steppe.load_policy(path)
    assert [policy.act(one) for one in obs.values()] == list(actions.values())
    assert len(set(actions.values())) == 2
