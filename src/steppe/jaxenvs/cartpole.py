"""A pole on a cart, to be kept upright: Gymnasium's CartPole-v1 (Barto, Sutton and Anderson, 1983)."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from steppe.jaxenvs.protocol import JaxEnv, Step


class CartPoleState(NamedTuple):
    """Place and speed of the cart, angle of the pole and its change, and the steps so far."""

    x: jax.Array
    x_dot: jax.Array
    theta: jax.Array
    theta_dot: jax.Array
    t: jax.Array


class CartPoleParams(NamedTuple):
    """Gymnasium's numbers, in metres, kilograms, seconds and radians; ``length`` is half of the pole's."""

    gravity: float = 9.8
    cart_mass: float = 1.0
    pole_mass: float = 0.1
    length: float = 0.5
    force: float = 10.0
    tau: float = 0.02
    theta_limit: float = 12 * 2 * math.pi / 360
    x_limit: float = 2.4
    max_steps: int = 500


@final
class CartPole(JaxEnv):
    """Push the cart left (0) or right (1); each step earns 1, until the pole falls or the cart leaves.

    Args:
        max_steps: after which an episode is truncated.
    """

    def __init__(self, max_steps: int = 500) -> None:
        self.default_params = params = CartPoleParams(max_steps=max_steps)
        high = np.array([2 * params.x_limit, np.inf, 2 * params.theta_limit, np.inf], np.float32)
        self.observation_space = gymnasium.spaces.Box(-high, high)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset_env(self, key: jax.Array, params: CartPoleParams) -> tuple[jax.Array, CartPoleState]:
        """All four numbers are drawn evenly from [-0.05, 0.05]."""
        obs = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
        return obs, CartPoleState(obs[0], obs[1], obs[2], obs[3], jnp.int32(0))

    def step_env(
        self, key: jax.Array, state: CartPoleState, action: jax.Array, params: CartPoleParams
    ) -> Step:
        """One step of Euler's method."""
        x, x_dot, theta, theta_dot, t = state
        force = jnp.where(action == 1, params.force, -params.force)
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        mass, moment = params.cart_mass + params.pole_mass, params.pole_mass * params.length
        push = (force + moment * theta_dot**2 * sin) / mass
        turn = (params.gravity * sin - cos * push) / (
            params.length * (4.0 / 3.0 - params.pole_mass * cos**2 / mass)
        )
        speed = push - moment * turn * cos / mass
        tau = params.tau
        moved = CartPoleState(
            x + tau * x_dot, x_dot + tau * speed, theta + tau * theta_dot, theta_dot + tau * turn, t + 1
        )
        fell = (jnp.abs(moved.x) > params.x_limit) | (jnp.abs(moved.theta) > params.theta_limit)
        obs = jnp.stack(moved[:4])
        return Step(obs, moved, jnp.float32(1.0), fell, moved.t >= params.max_steps, {})
