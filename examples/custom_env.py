"""An env of one's own: a corridor with the exit at its right end, its length set by ``env_config``."""

import gymnasium
import numpy as np
from gymnasium import spaces

import steppe


class SimpleCorridor(gymnasium.Env):
    """Observes how far it has come. 0 goes left, 1 right; a step costs 0.1, the exit gives 1."""

    def __init__(self, env_config):
        self.length = env_config["corridor_length"]
        self.observation_space = spaces.Box(0.0, self.length, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return self.observe(), {}

    def step(self, action):
        self.position = max(0, self.position + (1 if action == 1 else -1))
        arrived = self.position == self.length
        return self.observe(), 1.0 if arrived else -0.1, arrived, False, {}

    def observe(self):
        return np.array([self.position], np.float32)


def config():
    return steppe.PPOConfig(env=SimpleCorridor, env_config={"corridor_length": 5}, seed=0)


def main(iterations=5, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["episode_reward_mean"])  # at best 1 - 4 * 0.1 = 0.6
    return result


if __name__ == "__main__":
    main()
