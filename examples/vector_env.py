"""Many envs in one object: pucks that slide to the middle of a table, all moved by one line of numpy."""

import numpy as np
from gymnasium import spaces

import steppe

STEPS = 40


class Pucks(steppe.VectorEnv):
    """Each puck is pushed from -1 to 1, and pays for its distance from the middle."""

    def __init__(self, env_config):
        seen = spaces.Box(-10.0, 10.0, (2,), np.float32)  # position and speed
        super().__init__(seen, spaces.Box(-1.0, 1.0, (1,), np.float32), env_config.num_envs)
        self.state, self.steps = np.zeros((self.num_envs, 2), np.float32), np.zeros(self.num_envs, int)

    def vector_reset(self, *, seeds=None, options=None):
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        for index in range(self.num_envs):
            self.reset_at(index)
        return self.state, [{} for _ in self.rngs]

    def reset_at(self, index, *, seed=None, options=None):
        self.state[index], self.steps[index] = (self.rngs[index].uniform(-2, 2), 0.0), 0
        return self.state[index], {}

    def vector_step(self, actions):
        self.state[:, 1] = 0.9 * self.state[:, 1] + 0.1 * np.array(actions)[:, 0]
        self.state[:, 0] += self.state[:, 1]
        np.clip(self.state, -10.0, 10.0, out=self.state)
        self.steps += 1
        rewards = -np.abs(self.state[:, 0])
        return self.state, rewards, np.zeros(len(actions), bool), self.steps == STEPS, [{} for _ in actions]


def config():
    return steppe.PPOConfig(env=Pucks, num_envs_per_env_runner=64, seed=0)


def main(iterations=20, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["episode_reward_mean"])
    return result


if __name__ == "__main__":
    main()
