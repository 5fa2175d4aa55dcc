"""Hot and cold: find a place on a line by rewards that say whether it comes nearer."""

from __future__ import annotations

from typing import NamedTuple, final

import gymnasium
import jax
import jax.numpy as jnp

from steppe.jaxenvs.protocol import JaxEnv, Step


class HotAndColdState(NamedTuple):
    """Where one stands, the moves so far, and what the last one earned."""

    position: jax.Array
    moves: jax.Array
    reward: jax.Array


@final
class HotAndCold(JaxEnv):
    """Ten places in a line; go left (0) or right (1). The goal earns 10, a step nearer -1, any other -2.

    It is the env of ``examples/hot_and_cold``, in which nothing moves any more once ten moves are made: an
    eleventh step then repeats the last reward and ends the episode.
    """

    FIRST, LAST, GOAL, MAX_MOVES = 1, 10, 5, 10

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Discrete(self.LAST + 1)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset_env(self, key: jax.Array, params: tuple[()]) -> tuple[jax.Array, HotAndColdState]:
        """Any place but the goal and the last one."""
        place = jax.random.randint(key, (), self.FIRST, self.LAST - 1)
        position = place + (place >= self.GOAL)
        return position, HotAndColdState(position, jnp.int32(0), jnp.float32(0.0))

    def step_env(self, key: jax.Array, state: HotAndColdState, action: jax.Array, params: tuple[()]) -> Step:
        """One move, as long as there are some."""
        spent = state.moves == self.MAX_MOVES
        position = jnp.clip(state.position + 2 * action - 1, self.FIRST, self.LAST)
        before, after = jnp.abs(self.GOAL - state.position), jnp.abs(self.GOAL - position)
        reward = jnp.where(after == 0, 10.0, jnp.where(after < before, -1.0, -2.0))
        moved = HotAndColdState(position, state.moves + 1, reward)
        moved = jax.tree.map(lambda kept, new: jnp.where(spent, kept, new), state, moved)
        return Step(moved.position, moved, moved.reward, spent | (after == 0), jnp.bool_(False), {})
