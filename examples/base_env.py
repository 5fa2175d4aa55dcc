"""Simulators in threads of their own: whoever has finished a step is answered, nobody waits for the slow."""

import queue
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gymnasium import spaces

import steppe


class Tank:
    """Keep the level between 0 and 1 by opening or closing the inlet; each tank has a pace of its own."""

    def __init__(self, seed, delay):
        self.rng, self.delay = np.random.default_rng(seed), delay

    def reset(self):
        self.level, self.steps = self.rng.uniform(0.2, 0.8), 0
        return np.array([self.level], np.float32)

    def step(self, action):
        time.sleep(self.delay)
        self.steps += 1
        self.level += (0.1 if action else -0.1) + self.rng.normal(0, 0.02)
        obs, spilt = np.array([self.level], np.float32), not 0 < self.level < 1
        return obs, 0.0 if spilt else 1.0, spilt, self.steps == 50


class Tanks(steppe.BaseEnv):
    observation_space, action_space = spaces.Box(-1, 2, (1,)), spaces.Discrete(2)

    def __init__(self, env_config):
        self.num_envs = env_config.num_envs
        self.pool, self.done = ThreadPoolExecutor(self.num_envs), queue.SimpleQueue()

    def seed(self, seeds):
        self.tanks = [Tank(seed, 0.0002 * (1 + 4 * (i == 0))) for i, seed in enumerate(seeds)]
        for i in range(self.num_envs):
            self.try_reset(i)

    def try_reset(self, env_id=None):
        self.pool.submit(lambda: self.done.put((env_id, (self.tanks[env_id].reset(), 0.0, False, False))))
        return None  # the first observation comes with a later poll

    def send_actions(self, action_dict):
        for i, actions in action_dict.items():
            self.pool.submit(
                lambda i=i, action=actions["agent0"]: self.done.put((i, self.tanks[i].step(action)))
            )

    def poll(self):
        ready = [self.done.get()]
        while not self.done.empty():
            ready.append(self.done.get())
        columns = [{i: {"agent0": row[n]} for i, row in ready} for n in range(4)]
        for ends in columns[2:]:
            for flags in ends.values():
                flags["__all__"] = flags["agent0"]
        return *columns, {}, {}

    def stop(self):
        self.pool.shutdown(wait=True)


def config():
    return steppe.PPOConfig(env=Tanks, seed=0, num_envs_per_env_runner=8, train_batch_size=1000)


def main(iterations=10, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["episode_reward_mean"])
    return result


if __name__ == "__main__":
    main()
