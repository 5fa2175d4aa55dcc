"""An env whose score is known before it is played, so that a search can be worked out by hand."""

from __future__ import annotations

import pytest

KNOWN = '''
import gymnasium
import numpy as np


class Known(gymnasium.Env):
    """Five steps that pay ``value`` each, whatever is done: an episode's reward is five times that."""

    observation_space = gymnasium.spaces.Box(0, 5, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, env_config):
        self.value = env_config["value"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), float(self.value), self.t == 5, False, {}


class Endless(Known):
    """No episode ever ends."""

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}
'''


@pytest.fixture
def known(tmp_path):
    """``file.py`` with the envs above; append ``:Class``."""
    path = tmp_path / "known.py"
    path.write_text(KNOWN)
    return path
