"""Envs of gymnax, by objects of its two interfaces; by gymnax itself where it is installed."""

import dataclasses
import sys
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steppe
from steppe.envs.registry import env_name
from steppe.jaxenvs import Gymnax


class Box(NamedTuple):
    low: object
    high: object
    shape: tuple
    dtype: type


class Discrete(NamedTuple):
    n: int


class Dict(NamedTuple):
    spaces: dict


class Tuple(NamedTuple):
    spaces: tuple


class Params(NamedTuple):
    max_steps_in_episode: int = 5
    cliff: int = 3


class State(NamedTuple):
    place: jax.Array
    time: jax.Array


class Ledge:
    """Walk right (1) or stay; who comes to the cliff falls. One flag says that, and the end of time."""

    name = "Ledge-v0"
    default_params = Params()

    def reset_env(self, key, params):
        return jnp.zeros((1, 1)), State(0, 0)

    def step_env(self, key, state, action, params):
        state = State(state.place + action, state.time + 1)
        over = (state.place >= params.cliff) | (state.time >= params.max_steps_in_episode)
        return state.place[None, None] * 1.0, state, jnp.ones(1), over, {"discount": 1.0 - over}

    def observation_space(self, params):
        return Box(0, jnp.array([[params.cliff]]), (1, 1), jnp.float32)

    def action_space(self, params):
        return Discrete(2)


class NewLedge(Ledge):
    """The same as gymnax 1.0 has it: the flag of a step is one for falling."""

    def step_env(self, key, state, action, params):
        obs, state, reward, _, info = super().step_env(key, state, action, params)
        return obs, state, reward, state.place >= params.cliff, info

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode


def ends(env, actions):
    """The length of an episode, and its two flags at the end."""
    env.reset(seed=0)
    t = 0
    for action in actions:
        t += 1
        obs, reward, terminated, truncated, _ = env.step(action)
        assert env.observation_space.contains(obs)
        assert reward == 1.0
        if terminated or truncated:
            break
    return t, terminated, truncated


@pytest.mark.parametrize("ledge", [Ledge, NewLedge])
def test_who_falls_is_terminated_and_who_runs_out_of_time_is_truncated(ledge):
    env = Gymnax(ledge()).as_gymnasium()
    assert ends(env, [1, 1, 1]) == (3, True, False)
    assert ends(env, [0] * 9) == (5, False, True)


def test_at_once_one_flag_says_the_limit_and_two_say_that_it_fell():
    actions = [0, 0, 1, 1, 1]
    assert ends(Gymnax(Ledge()).as_gymnasium(), actions) == (5, False, True)
    assert ends(Gymnax(NewLedge()).as_gymnasium(), actions) == (5, True, False)


def test_an_env_without_a_limit_is_terminated():
    class Endless(Ledge):
        default_params = (0, 2)  # says nothing of steps

        def step_env(self, key, state, action, params):
            state = State(state.place + action, 0)
            return state.place[None, None] * 1.0, state, 1.0, state.place >= params[1], {}

        def observation_space(self, params):
            return Box(0, params[1], (1, 1), jnp.float32)

    assert ends(Gymnax(Endless()).as_gymnasium(), [0] * 7 + [1, 1]) == (9, True, False)


@pytest.mark.parametrize("ledge", [Ledge, NewLedge])
def test_rollouts_hold_both_kinds_of_ends(ledge):
    config = steppe.PPOConfig(
        env=Gymnax(ledge()), num_envs_per_env_runner=8, train_batch_size=160, fcnet_hiddens=[4], seed=0
    )
    with config.copy(write_run=False).build() as algo:
        (sample,) = algo.runner.sample()
    (rollout,) = sample.rollouts
    fallen = rollout.terminated
    assert (rollout.obs[fallen] == 3).all()
    assert (rollout.t[rollout.truncated] == 5).all()
    assert fallen.any()
    assert rollout.truncated.any()
    assert {e.length for e in sample.episodes} == {3, 4, 5}


def test_params_are_given_whole_or_by_name():
    @dataclasses.dataclass
    class Replaced:
        max_steps_in_episode: int = 5
        cliff: int = 3

        def replace(self, **changes):
            return dataclasses.replace(self, **changes)

    jax.tree_util.register_dataclass(Replaced, ["max_steps_in_episode", "cliff"], [])
    ledge = Ledge()
    ledge.default_params = Replaced()
    changed = {"max_steps_in_episode": 2}
    for env in (Gymnax(ledge, Params(2)), Gymnax(ledge, changed)):
        assert ends(env.as_gymnasium(), [0] * 9) == (2, False, True)
    assert Gymnax(ledge, {"cliff": 7}).observation_space.high == 7
    with pytest.raises(steppe.ConfigError, match=r"Ledge-v0 has no parameter 'clif'; choose among max_ste"):
        Gymnax(ledge, {"clif": 2})


def test_spaces_are_gymnasiums():
    ledge = Ledge()
    wide = Box(jnp.array([-1.0, -2.0]), 3.0, (2,), jnp.float32)
    ledge.observation_space = lambda params: Dict({"a": wide, "b": Tuple((Discrete(4), wide))})
    spaces = gymnasium.spaces
    box = spaces.Box(np.array([-1, -2], np.float32), np.float32(3), (2,), np.float32)
    wanted = spaces.Dict({"a": box, "b": spaces.Tuple((spaces.Discrete(4), box))})
    assert Gymnax(ledge).observation_space == wanted
    ledge.action_space = lambda params: Params()
    with pytest.raises(steppe.ConfigError, match="a space Params of gymnax is none of Discrete"):
        Gymnax(ledge)


def test_a_run_is_named_by_the_env():
    assert env_name(Gymnax(Ledge())) == "Ledge-v0"


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(steppe.ConfigError, match=r"CartPole-v1: no gymnax .*pip install 'steppe\[gymnax\]'"):
        steppe.PPOConfig(env=Gymnax, env_config={"env": "CartPole-v1"}, write_run=False).build()


def test_gymnax_itself():
    pytest.importorskip("gymnax", reason="needs gymnax: pip install 'steppe[gymnax]'")
    with pytest.raises(steppe.ConfigError, match=r"gymnax has no env 'CartPole'; choose among CartPole-v1"):
        Gymnax("CartPole")
    few = {"num_envs_per_env_runner": 4, "train_batch_size": 400, "fcnet_hiddens": [8], "seed": 0}
    short = {"env": "CartPole-v1", "params": {"max_steps_in_episode": 12}}
    with steppe.PPOConfig(env=Gymnax, env_config=short, **few, write_run=False).build() as algo:
        (sample,) = algo.runner.sample()
    (rollout,) = sample.rollouts
    x, _, theta, _ = np.moveaxis(rollout.obs, -1, 0)
    fell = (abs(x) > 2.4) | (abs(theta) > 12 * np.pi / 180)
    np.testing.assert_array_equal(rollout.terminated, fell)
    np.testing.assert_array_equal(rollout.truncated, (rollout.t == 12) & ~fell)
    assert rollout.terminated.any()
    assert rollout.truncated.any()
