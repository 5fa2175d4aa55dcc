"""Each env in JAX is, step by step, its twin in Python: observations, rewards and ends."""

import gymnasium
import jax
import numpy as np
import pytest

from steppe.jaxenvs import CartPole


def walk(env, twin, copy, rng, steps, *, tolerance):
    """Walk both from the twin's first states on; ``copy`` makes the state in JAX of the twin's.

    Returns:
        How many episodes ended by themselves, and how many were cut.
    """
    step, terminations, truncations, state = jax.jit(env.step_env), 0, 0, None
    key = jax.random.key(0)
    for _ in range(steps):
        if state is None:
            twin.reset(seed=int(rng.integers(1 << 31)))
            state = copy(twin.unwrapped)
        action = twin.action_space.sample()
        wanted = twin.step(action)
        obs, state, reward, terminated, truncated, _ = step(key, state, action, env.default_params)
        np.testing.assert_allclose(obs, wanted[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(reward, wanted[1], rtol=tolerance, atol=tolerance)
        assert (bool(terminated), bool(truncated)) == wanted[2:4]
        terminations, truncations = terminations + wanted[2], truncations + wanted[3]
        if wanted[2] or wanted[3]:
            state = None
    return terminations, truncations


def same_spaces(env, twin):
    assert env.observation_space == twin.observation_space
    assert env.action_space == twin.action_space


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def seeded(name, **arguments):
    twin = gymnasium.make(name, disable_env_checker=True, **arguments)
    twin.action_space.seed(0)
    return twin


def cart_pole_state(env, twin):
    _, state = env.reset_env(jax.random.key(0), env.default_params)
    numbers = np.asarray(twin.state, np.float32)
    return state._replace(x=numbers[0], x_dot=numbers[1], theta=numbers[2], theta_dot=numbers[3])


def test_cart_pole_falls_as_gymnasiums_does(rng):
    env, twin = CartPole(), seeded("CartPole-v1")
    same_spaces(env, twin)
    terminations, truncations = walk(env, twin, lambda t: cart_pole_state(env, t), rng, 1_000, tolerance=1e-5)
    assert terminations > 20
    assert truncations == 0


def test_cart_pole_is_cut_as_gymnasiums_is(rng):
    env, twin = CartPole(max_steps=8), seeded("CartPole-v1", max_episode_steps=8)
    _, truncations = walk(env, twin, lambda t: cart_pole_state(env, t), rng, 200, tolerance=1e-5)
    assert truncations > 10


def test_cart_pole_leaves_the_track():
    env = CartPole()
    _, state = env.reset_env(jax.random.key(0), env.default_params)
    for x, over in ((2.39, False), (2.41, True), (-2.41, True)):
        made = env.step_env(jax.random.key(0), state._replace(x=x, x_dot=0.0), 1, env.default_params)
        assert bool(made.terminated) is over


def test_cart_pole_begins_near_the_middle():
    env = CartPole()
    obs, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(jax.random.key(0), 500), ())
    assert np.abs(obs).max() <= 0.05
    assert np.abs(obs.mean(0)).max() < 0.006  # four standard errors
    assert obs.std(0) == pytest.approx(0.05 / np.sqrt(3), rel=0.1)
    np.testing.assert_array_equal(obs[:, 2], state.theta)
