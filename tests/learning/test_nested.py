"""Actions and observations of nested spaces: repeat what is seen."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe

pytestmark = pytest.mark.slow

NESTED = spaces.Dict(
    a=spaces.Tuple([spaces.Dict(d=spaces.Box(-10, 10, ()), e=spaces.Discrete(2))]),
    b=spaces.Box(-10, 10, (2,)),
    c=spaces.Discrete(4),
)


class Echo(gymnasium.Env):
    """+1 for each equal choice, minus the distance for each number; 100 steps."""

    def __init__(self, env_config):
        self.observation_space = self.action_space = NESTED

    def _seen(self):
        draw = self.np_random
        self.shown = {
            "a": ({"d": np.float32(draw.uniform(-10, 10)), "e": int(draw.integers(2))},),
            "b": draw.uniform(-10, 10, 2).astype(np.float32),
            "c": int(draw.integers(4)),
        }
        return self.shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action):
        shown, self.t = self.shown, self.t + 1
        choices = (action["a"][0]["e"] == shown["a"][0]["e"]) + (action["c"] == shown["c"])
        distance = np.abs(action["a"][0]["d"] - shown["a"][0]["d"]) + np.abs(action["b"] - shown["b"]).sum()
        return self._seen(), float(choices - distance), False, self.t == 100, {}


def test_ppo_nested(learned):
    """What is done now changes nothing later: gamma 0. The deviations have to shrink fast."""
    config = steppe.PPOConfig(env=Echo, gamma=0.0, lr=2e-3, fcnet_activation="relu", train_batch_size=2000)
    learned(config, 0, 100_000)
