"""Actions that come and go: CartPole with ten slots, two of which, others each step, push the cart."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe

pytestmark = pytest.mark.slow

SLOTS = 10
PUSHES = np.array([[1.0, 0.2], [-0.3, 0.9]], np.float32)
"""What left and right look like, wherever they are."""


class Slots(gymnasium.Env):
    """CartPole; what an action does is said by the row of its slot, and a slot without one breaks the env."""

    def __init__(self, env_config):
        self.cart = gymnasium.make("CartPole-v1")
        self.action_space = spaces.Discrete(SLOTS)
        self.observation_space = spaces.Dict(
            cart=self.cart.observation_space,
            avail_actions=spaces.Box(-10, 10, (SLOTS, 2)),
            action_mask=spaces.MultiBinary(SLOTS),
        )

    def _seen(self, cart):
        self.places = self.np_random.choice(SLOTS, 2, replace=False)
        rows = self.np_random.normal(size=(SLOTS, 2)).astype(np.float32)
        rows[self.np_random.random(SLOTS) < 0.5] = 0.0
        rows[self.places] = PUSHES
        mask = np.zeros(SLOTS, np.int8)
        mask[self.places] = 1
        return {"cart": cart, "avail_actions": rows.clip(-10, 10), "action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        cart, info = self.cart.reset(seed=seed)
        return self._seen(cart), info

    def step(self, action):
        assert action in self.places, "an action that is not there was chosen"
        cart, *rest = self.cart.step(int(np.flatnonzero(self.places == action)[0]))
        return self._seen(cart), *rest


def test_ppo_slots(learned):
    learned(steppe.PPOConfig(env=Slots, action_embeddings="avail_actions"), 150, 100_000)


def test_dqn_slots(learned):
    learned(steppe.DQNConfig(env=Slots, action_embeddings="avail_actions"), 150, 100_000)
