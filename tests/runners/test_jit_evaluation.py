"""Evaluation in compiled envs: so many episodes as are asked for, none of them for being short."""

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steppe
from steppe.jaxenvs import CartPole, JaxEnv
from steppe.runners.jit_evaluation import JitEvaluator

TINY = {"fcnet_hiddens": [8], "write_run": False, "train_batch_size": 8, "num_envs_per_env_runner": 4}


class State(NamedTuple):
    t: jax.Array
    length: jax.Array


class Drawn(JaxEnv):
    """An episode takes 1 or 90 steps, by chance; each earns 1, and action 1 one more."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset_env(self, key, params):
        return jnp.zeros(1), State(0, jnp.where(jax.random.bernoulli(key), 1, 90))

    def step_env(self, key, state, action, params):
        t = state.t + 1
        return jnp.zeros(1), State(t, state.length), 1.0 + action, t == state.length, False, {}


def drawn(**settings):
    return steppe.PPOConfig(**{"env": Drawn, "seed": 0, **TINY, **settings})


@pytest.fixture(scope="module")
def trained():
    with drawn().build() as algo:
        algo.train()
        yield algo


def test_short_episodes_do_not_win(trained):
    result = trained.evaluate(60)
    assert isinstance(trained._evaluator, JitEvaluator)
    assert result["episodes_this_iter"] == 60
    # Half of the episodes are long: of the first 60 to end nearly all would be short.
    assert result["episode_len_mean"] == pytest.approx(45.5, abs=3 * 44.5 / np.sqrt(60))
    assert result["timesteps_this_iter"] == pytest.approx(60 * result["episode_len_mean"])


def test_fewer_episodes_than_envs(trained):
    assert trained.evaluate(3)["episodes_this_iter"] == 3


def test_the_likeliest_actions_are_taken_unless_it_explores(trained):
    best, drawn = trained.evaluate(20), trained.evaluate(20, explore=True)
    assert best["episode_reward_mean"] / best["episode_len_mean"] in (1.0, 2.0)
    assert 1.2 < drawn["episode_reward_mean"] / drawn["episode_len_mean"] < 1.8


def test_episodes_that_began_within_the_steps_are_awaited():
    config = drawn(evaluation_duration=400, evaluation_duration_unit="timesteps", evaluation_num_envs=2)
    with config.build() as algo:
        result = algo.evaluate()
    # Each of two envs begins episodes within its 200 steps, and the last of them takes 89 more at most.
    assert 400 <= result["timesteps_this_iter"] <= 2 * 289


def test_evaluations_differ_and_go_on_exactly_from_a_checkpoint():
    def scores(algo):
        return [algo.evaluate(7)["episode_len_mean"] for _ in range(4)]

    with drawn().build() as algo:
        algo.train()
        algo.evaluate(7)
        path = algo.save("c")
        wanted = scores(algo)
    assert len(set(wanted)) > 1
    with steppe.load(path, env=Drawn) as algo:
        assert scores(algo) == wanted


def test_another_env_is_evaluated_as_gymnasiums_are():
    poles = {"env": CartPole, "evaluation_config": {"env": "CartPole-v1"}, "evaluation_num_envs": 1}
    with drawn(**poles).build() as algo:
        assert algo.evaluate(2)["episodes_this_iter"] == 2
        assert not isinstance(algo._evaluator, JitEvaluator)


def test_a_run_evaluates_itself():
    with drawn(evaluation_interval=1, evaluation_duration=5).build() as algo:
        assert algo.train()["evaluation"]["episodes_this_iter"] == 5
