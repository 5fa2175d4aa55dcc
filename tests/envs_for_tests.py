"""Small envs with known answers, shared by tests."""

from __future__ import annotations

from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class SimpleCorridor(gymnasium.Env):
    """Walk right to the end of a corridor: action 1 right, 0 left; the end pays 1, each step costs 0.1."""

    def __init__(self, env_config):
        self.end = env_config["corridor_length"]
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Discrete(self.end + 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return self.position, {}

    def step(self, action):
        self.position = max(0, self.position + (1 if action == 1 else -1))
        done = self.position >= self.end
        return self.position, 1.0 if done else -0.1, done, False, {}


class MultiEnv(gymnasium.Env):
    """Another inner env for each index, as an ensemble; remembers which indices were built."""

    built: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, env_config):
        MultiEnv.built.append((env_config.worker_index, env_config.vector_index))
        length = 3 + env_config.vector_index % 2
        self.env = gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1").unwrapped, 10 * length)
        self.action_space, self.observation_space = self.env.action_space, self.env.observation_space

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        return self.env.step(action)


class Identity(gymnasium.Env):
    """The right action is the observation; an episode is ``length`` steps. Random play is easy to compute."""

    def __init__(self, space=None, length=8):
        self.action_space = space or spaces.Discrete(3)
        self.observation_space = self.action_space
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        self.t, self.now = 0, self.observation_space.sample()
        return self.now, {}

    def step(self, action):
        reward = self.score(action, self.now)
        self.t, self.now = self.t + 1, self.observation_space.sample()
        return self.now, reward, False, self.t >= self.length, {}

    def score(self, action, target):
        if isinstance(self.action_space, spaces.Dict):
            return sum(self._leaf(action[k], target[k]) for k in self.action_space.spaces)
        if isinstance(self.action_space, spaces.Tuple):
            return sum(self._leaf(a, b) for a, b in zip(action, target, strict=True))
        return self._leaf(action, target)

    @staticmethod
    def _leaf(action, target):
        if np.asarray(target).dtype.kind == "f":
            return -float(np.abs(np.asarray(action) - target).sum())
        return float(np.mean(np.asarray(action) == target))


class NeverEnds(gymnasium.Env):
    """Pays 1 a step, for ever."""

    def __init__(self):
        self.action_space, self.observation_space = spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


class Hidden(gymnasium.Env):
    """Draws from numpy's global generator, which no checkpoint of ours can hold."""

    def __init__(self):
        self.action_space, self.observation_space = spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.random.uniform(-1, 1, 1).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        return np.random.uniform(-1, 1, 1).astype(np.float32), 1.0, self.t >= 50, False, {}
