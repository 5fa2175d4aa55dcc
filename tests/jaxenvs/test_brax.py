"""Envs of Brax, by an object of its interface; by Brax itself where it is installed."""

import sys
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steppe
from steppe.jaxenvs import Brax


class State(NamedTuple):
    pipeline_state: jax.Array
    obs: object
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class Slide:
    """Moves by the action; who goes beyond 2 is done, which Brax says as a number."""

    action_size = 1

    def __init__(self, info=None, done=0.0, dicts=False):
        self.info, self.done, self.dicts = info or {}, done, dicts

    def seen(self, place):
        obs = jnp.stack([place, -place])
        return {"low": obs, "pixels/high": jnp.zeros((2, 2, 1)) + place} if self.dicts else obs

    def reset(self, key):
        zero = jnp.float32(0.0)
        info = {name: jnp.float32(0.0) for name in self.info}
        return State(zero, self.seen(zero), zero, jnp.asarray(self.done), {"place": zero}, info)

    def step(self, state, action):
        place = state.pipeline_state + action[0]
        done = (place > 2.0).astype(jnp.float32)
        return State(place, self.seen(place), place, done, {"place": place}, state.info)


class Counting(Slide):
    """With Brax's own count of steps: done, and a truncation that says why."""

    def __init__(self):
        super().__init__({"steps": 0.0, "truncation": 0.0})

    def step(self, state, action):
        moved = super().step(state, action)
        steps = state.info["steps"] + 1
        cut = jnp.where(steps >= 3, 1 - moved.done, 0.0)
        done = jnp.where(steps >= 3, 1.0, moved.done)
        return moved._replace(done=done, info={"steps": steps, "truncation": cut})


def ends(env, action):
    env.reset(seed=0)
    for t in range(1, 20):
        obs, reward, terminated, truncated, info = env.step(np.array([action], np.float32))
        assert env.observation_space.contains(obs)
        assert info["place"] == reward == np.float32(t * np.float32(action))
        if terminated or truncated:
            break
    return t, terminated, truncated


def test_done_is_terminated_and_the_limit_truncates():
    env = Brax(Slide(), episode_length=6).as_gymnasium()
    assert ends(env, 1.0) == (3, True, False)
    assert ends(env, 0.25) == (6, False, True)
    assert ends(env, 0.375) == (6, True, False)  # both at once


def test_brax_may_count_itself():
    env = Brax(Counting()).as_gymnasium()
    assert ends(env, 1.0) == (3, True, False)
    assert ends(env, 0.5) == (3, False, True)


def test_spaces_are_those_of_what_it_returns():
    env = Brax(Slide(dicts=True))
    any_number = {"low": 1 - 2 * np.zeros(2), "pixels/high": np.zeros((2, 2, 1))}
    wanted = {
        name: gymnasium.spaces.Box(-np.inf, np.inf, a.shape, np.float32) for name, a in any_number.items()
    }
    assert env.observation_space == gymnasium.spaces.Dict(wanted)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize("wrapped", [Slide({"first_obs": 0}), Slide(done=np.zeros(4))])
def test_what_resets_itself_or_is_many_is_refused(wrapped):
    with pytest.raises(steppe.ConfigError, match=r"Slide resets itself, or steps many.*leave out AutoReset"):
        Brax(wrapped)


def test_a_run_is_one_of_any_env():
    few = {"num_envs_per_env_runner": 4, "train_batch_size": 64, "fcnet_hiddens": [4], "write_run": False}
    with steppe.PPOConfig(env=Brax(Slide(), episode_length=4), **few, seed=0).build() as algo:
        result = algo.train()
        assert algo.evaluate(2)["episodes_this_iter"] == 2
    assert result["timesteps_total"] == 64
    assert 1 <= result["episode_len_mean"] <= 4


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(steppe.ConfigError, match=r"ant: no Brax .*pip install 'steppe\[brax\]'"):
        Brax("ant")


@pytest.mark.filterwarnings("ignore")  # of Brax's own imports
def test_brax_itself():
    pytest.importorskip("brax", reason="needs Brax: pip install 'steppe[brax]'")
    with pytest.raises(steppe.ConfigError, match="Brax has no env 'aunt'"):
        Brax("aunt")
    few = {"num_envs_per_env_runner": 2, "train_batch_size": 32, "fcnet_hiddens": [4], "seed": 0}
    short = {"env": "fast", "episode_length": 5}
    with steppe.PPOConfig(env=Brax, env_config=short, **few, write_run=False).build() as algo:
        (sample,) = algo.runner.sample()
    (rollout,) = sample.rollouts
    assert not rollout.terminated.any()
    np.testing.assert_array_equal(rollout.truncated, rollout.t == 5)
    assert {e.length for e in sample.episodes} == {5}
