"""Each env in JAX is, step by step, its twin in Python: observations, rewards and ends."""

import gymnasium
import jax
import numpy as np
import pytest

from gym_example.envs import Example_v0
from steppe.envs.legacy_gym import modernize
from steppe.jaxenvs import CartPole, Catch, HotAndCold, Pendulum
from tests.learning import envs


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


def test_pendulum_swings_as_gymnasiums_does(rng):
    env, twin = Pendulum(), seeded("Pendulum-v1")
    same_spaces(env, twin)

    def copy(twin):
        _, state = env.reset_env(jax.random.key(0), env.default_params)
        return state._replace(theta=np.float32(twin.state[0]), theta_dot=np.float32(twin.state[1]))

    # Angles are kept in 32 bits here, in 64 there: what differs by rounding is swung apart.
    terminations, truncations = walk(env, twin, copy, rng, 800, tolerance=1e-3)
    assert (terminations, truncations) == (0, 4)


def test_each_step_of_pendulum_is_gymnasiums(rng):
    env, twin = Pendulum(gravity=9.81), seeded("Pendulum-v1", g=9.81).unwrapped
    step = jax.jit(env.step_env)
    for _ in range(300):
        twin.reset()
        twin.state = rng.uniform([-8, -8], [8, 8])
        theta, speed = np.float32(twin.state)
        _, state = env.reset_env(jax.random.key(0), env.default_params)
        action = rng.uniform(-3, 3, 1).astype(np.float32)
        wanted = twin.step(action)
        state = state._replace(theta=theta, theta_dot=speed)
        obs, _, reward, *_ = step(jax.random.key(0), state, action, env.default_params)
        np.testing.assert_allclose(obs, wanted[0], atol=1e-5)
        np.testing.assert_allclose(reward, wanted[1], rtol=1e-5)


def test_pendulum_begins_anywhere():
    env = Pendulum()
    obs, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(jax.random.key(0), 2_000), ())
    for values, most in ((state.theta, np.pi), (state.theta_dot, 1.0)):
        assert np.abs(values).max() <= most
        assert values.mean() == pytest.approx(0.0, abs=0.06 * most)
        assert values.std() == pytest.approx(most / np.sqrt(3), rel=0.05)
    np.testing.assert_allclose(np.arctan2(obs[:, 1], obs[:, 0]), state.theta, atol=1e-5)


def test_catch_is_the_one_that_learning_is_measured_on(rng):
    env, twin = Catch(), envs.Catch()
    same_spaces(env, twin)

    def copy(twin):
        _, state = env.reset_env(jax.random.key(0), ())
        np.testing.assert_array_equal(env.reset_env(jax.random.key(0), ())[0].shape, twin.picture().shape)
        return state._replace(ball=twin.ball)

    terminations, _ = walk(env, twin, copy, rng, 270, tolerance=0.0)
    assert terminations == 30


def test_catch_begins_as_its_twin_does():
    env, twin = Catch(), envs.Catch()
    twin.reset(seed=0)
    balls = set()
    for seed in range(60):
        obs, state = env.reset_env(jax.random.key(seed), ())
        twin.ball = int(state.ball)
        np.testing.assert_array_equal(obs, twin.picture())
        balls.add(twin.ball)
    assert balls == set(range(10))


def test_hot_and_cold_is_the_example(rng):
    env, twin = HotAndCold(), modernize(Example_v0())
    same_spaces(env, twin)
    twin.action_space.seed(0)

    def copy(twin):
        _, state = env.reset_env(jax.random.key(0), ())
        return state._replace(position=twin.position)

    terminations, truncations = walk(env, twin, copy, rng, 600, tolerance=0.0)
    assert terminations > 50
    assert truncations == 0


def test_hot_and_cold_begins_where_the_example_does():
    obs, _ = jax.vmap(HotAndCold().reset_env, (0, None))(jax.random.split(jax.random.key(0), 400), ())
    places, counts = np.unique(obs, return_counts=True)
    assert places.tolist() == Example_v0().init_positions
    assert counts.min() > 25


def test_hot_and_cold_stands_still_once_its_moves_are_made():
    env = HotAndCold()
    _, state = env.reset_env(jax.random.key(0), ())
    state, rewards, ends = state._replace(position=9), [], []
    for _ in range(11):
        obs, state, reward, terminated, _, _ = env.step_env(jax.random.key(0), state, 1, ())
        rewards.append(float(reward))
        ends.append(bool(terminated))
    assert (rewards, ends, int(obs)) == ([-2.0] * 11, [False] * 10 + [True], 10)
