"""A pendulum that is to be swung up and kept there: Gymnasium's Pendulum-v1."""

from __future__ import annotations

from typing import NamedTuple, final

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from steppe.jaxenvs.protocol import JaxEnv, Step


class PendulumState(NamedTuple):
    """The angle, 0 where it stands upright, its change, and the steps so far."""

    theta: jax.Array
    theta_dot: jax.Array
    t: jax.Array


class PendulumParams(NamedTuple):
    """Gymnasium's numbers, in metres, kilograms, seconds and radians."""

    gravity: float = 10.0
    mass: float = 1.0
    length: float = 1.0
    tau: float = 0.05
    torque_limit: float = 2.0
    speed_limit: float = 8.0
    max_steps: int = 200


@final
class Pendulum(JaxEnv):
    """Turn the pendulum by a torque of at most 2; angle, speed and torque cost.

    Args:
        max_steps: after which an episode is truncated; nothing else ends one.
        gravity: in metres a second squared.
    """

    def __init__(self, max_steps: int = 200, gravity: float = 10.0) -> None:
        self.default_params = params = PendulumParams(gravity=gravity, max_steps=max_steps)
        high = np.array([1.0, 1.0, params.speed_limit], np.float32)
        self.observation_space = gymnasium.spaces.Box(-high, high)
        self.action_space = gymnasium.spaces.Box(-params.torque_limit, params.torque_limit, (1,), np.float32)

    def reset_env(self, key: jax.Array, params: PendulumParams) -> tuple[jax.Array, PendulumState]:
        """Any angle, and a speed drawn evenly from [-1, 1]."""
        high = jnp.array([jnp.pi, 1.0])
        theta, speed = jax.random.uniform(key, (2,), jnp.float32, -high, high)
        return _seen(theta, speed), PendulumState(theta, speed, jnp.int32(0))

    def step_env(
        self, key: jax.Array, state: PendulumState, action: jax.Array, params: PendulumParams
    ) -> Step:
        """One step of Euler's method; the cost is of the state before it."""
        torque = jnp.clip(action[0], -params.torque_limit, params.torque_limit)
        off = (state.theta + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = off**2 + 0.1 * state.theta_dot**2 + 0.001 * torque**2
        inertia = params.mass * params.length**2
        turn = 1.5 * params.gravity / params.length * jnp.sin(state.theta) + 3.0 / inertia * torque
        limit = params.speed_limit
        speed = jnp.clip(state.theta_dot + turn * params.tau, -limit, limit)
        moved = PendulumState(state.theta + speed * params.tau, speed, state.t + 1)
        cut = moved.t >= params.max_steps
        return Step(_seen(moved.theta, speed), moved, -cost, jnp.bool_(False), cut, {})


def _seen(theta: jax.Array, speed: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(theta), jnp.sin(theta), speed])
