"""What an env in JAX must return is said before anything is compiled, and it is an env of Gymnasium, too."""

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import steppe
from steppe.jaxenvs import CartPole, Catch, HotAndCold, JaxEnv, Pendulum, Step
from steppe.jaxenvs.protocol import checked, jax_env


class Still(JaxEnv):
    """Returns what it is told to."""

    def __init__(self, begun=None, **changes):
        self.observation_space = gymnasium.spaces.Dict(
            {"a": gymnasium.spaces.Box(-1, 1, (2,)), "b": gymnasium.spaces.Discrete(3)}
        )
        self.action_space = gymnasium.spaces.Discrete(2)
        good = {"a": jnp.zeros(2), "b": jnp.int32(1)}
        self.begun = good if begun is None else begun
        self.step = Step(good, jnp.zeros(3), 0.0, False, False, {"seen": jnp.ones(2)})._replace(**changes)

    def reset_env(self, key, params):
        return self.begun, jnp.zeros(3)

    def step_env(self, key, state, action, params):
        return self.step


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"begun": jnp.zeros(2)}, r"Still.reset_env: an observation of shape \(2,\)"),
        (
            {"obs": {"a": jnp.zeros(2)}},
            r"Still.step_env: an observation of shape \{'a': \(2,\)\}, and the space says Dict.*b: Discrete",
        ),
        ({"obs": {"a": jnp.zeros(3), "b": 1}}, r"Still.step_env: an observation of shape"),
        ({"reward": jnp.zeros(1)}, r"Still.step_env: reward has shape \(1,\); return one number"),
        ({"terminated": jnp.zeros(2)}, r"terminated has shape \(2,\)"),
        ({"truncated": jnp.zeros(2)}, r"truncated has shape \(2,\)"),
        ({"state": jnp.zeros(4)}, r"Still: a state of shapes \(3,\) at reset becomes \(4,\) in a step"),
    ],
)
def test_what_is_wrong_is_named(changes, said):
    env = Still(**changes)
    with pytest.raises(steppe.SpaceError, match=said):
        checked(env, env.default_params)


@pytest.mark.parametrize("length", [4, 5])
def test_a_step_is_a_tuple_of_six(length):
    env = Still()
    env.step = tuple(env.step)[:length]
    with pytest.raises(steppe.SpaceError, match=f"step_env returns {length} values; return .obs, state, rew"):
        checked(env, ())


def test_what_is_right_is_taken():
    assert checked(Still(), ()).shape == (3,)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of CartPole's and Pendulum's bounds, which are theirs
@pytest.mark.parametrize("env", [CartPole, Pendulum, Catch, HotAndCold])
def test_each_is_an_env_of_gymnasium(env):
    check_env(steppe.make(env), skip_render_check=True)


def test_gymnasium_sees_values_of_the_space():
    env = steppe.make(Still)
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert info == {}
    obs, reward, terminated, truncated, info = env.step(1)
    assert env.observation_space.contains(obs)
    assert [type(x) for x in (reward, terminated, truncated)] == [float, bool, bool]
    np.testing.assert_array_equal(info["seen"], [1.0, 1.0])


def test_the_seed_of_gymnasium_is_what_chance_comes_from():
    env = steppe.make(CartPole)
    first, again, other = (env.reset(seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (env.reset()[0] != other).any()


def test_every_spelling_of_a_class_is_compiled():
    steppe.register_env("pole", CartPole)
    pole = CartPole(max_steps=7)
    assert jax_env(pole, {}) is pole
    for spelling in (CartPole, "pole", "steppe.jaxenvs:CartPole"):
        made = jax_env(spelling, {"max_steps": 9})
        assert isinstance(made, CartPole)
        assert made.default_params.max_steps == 9
    assert jax_env("CartPole-v1", {}) is None
    assert jax_env(None, {}) is None
    assert jax_env(lambda config: 1 / 0, {}) is None  # is not called


def test_a_function_that_makes_one_makes_an_env_of_gymnasium():
    env = steppe.make(lambda config: CartPole(**config), {"max_steps": 2})
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(2)] == [False, True]


def test_arguments_that_do_not_fit_are_said_at_once():
    with pytest.raises(steppe.ConfigError, match=r"does not fit CartPole\(max_steps.*'max_step'"):
        steppe.PPOConfig(env=CartPole, env_config={"max_step": 3}, write_run=False).build()
    with pytest.raises(steppe.ConfigError, match=r"does not fit CartPole\(\)"):
        steppe.PPOConfig(env=CartPole(), env_config={"max_steps": 3}, write_run=False).build()
