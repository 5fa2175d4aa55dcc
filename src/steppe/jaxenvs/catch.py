"""A ball falls down a picture; the paddle below it catches it."""

from __future__ import annotations

from typing import NamedTuple, final

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from steppe.jaxenvs.protocol import JaxEnv, Step


class CatchState(NamedTuple):
    """Row and column of the ball, and column of the paddle, in squares."""

    row: jax.Array
    ball: jax.Array
    paddle: jax.Array


@final
class Catch(JaxEnv):
    """The board is a picture of bytes; the ball is white, the paddle grey. Caught is 1, missed is -1.

    Args:
        squares: along each side of the board.
        pixels: along each side of a square.
    """

    def __init__(self, squares: int = 10, pixels: int = 4) -> None:
        self._squares, self._pixels = squares, pixels
        side = squares * pixels
        self.observation_space = gymnasium.spaces.Box(0, 255, (side, side, 1), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)  # left, stay, right

    def reset_env(self, key: jax.Array, params: tuple[()]) -> tuple[jax.Array, CatchState]:
        """The ball is in any column of the top row, the paddle in the middle."""
        ball = jax.random.randint(key, (), 0, self._squares)
        state = CatchState(jnp.int32(0), ball, jnp.int32(self._squares // 2))
        return self._picture(state), state

    def step_env(self, key: jax.Array, state: CatchState, action: jax.Array, params: tuple[()]) -> Step:
        """The paddle moves, and the ball falls by one square."""
        paddle = jnp.clip(state.paddle + action - 1, 0, self._squares - 1)
        moved = CatchState(state.row + 1, state.ball, paddle)
        over = moved.row == self._squares - 1
        reward = jnp.where(over, jnp.where(paddle == state.ball, 1.0, -1.0), 0.0)
        return Step(self._picture(moved), moved, reward, over, jnp.bool_(False), {})

    def _picture(self, state: CatchState) -> jax.Array:
        board = jnp.zeros((self._squares, self._squares), jnp.uint8)
        board = board.at[-1, state.paddle].set(128).at[state.row, state.ball].set(255)
        return board.repeat(self._pixels, 0).repeat(self._pixels, 1)[:, :, None]
