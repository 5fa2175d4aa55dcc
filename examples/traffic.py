"""Cars on their way to traffic lights: agents of two kinds, of which the cars leave early.

>>> env = MultiAgentTrafficEnv(num_cars=20, num_traffic_lights=5)
>>> obs, infos = env.reset(seed=0)
>>> obs["car_1"].tolist(), obs["traffic_light_1"].tolist()
([17.0, 1.0], [4.0, 0.0])
>>> while len(env.cells) == 20:  # all cars drive, all lights are green
...     obs, rewards, terminateds, truncateds, infos = env.step(dict.fromkeys(obs, 1))
>>> rewards["car_1"], rewards["traffic_light_1"], terminateds
(-1, -4, {'car_6': True, 'car_8': True, '__all__': False})
"""

import random

import numpy as np
from gymnasium import spaces

import steppe

SEEN = spaces.Box(
    0, 100, (2,), np.float32
)  # cells to go and whether it is green; cars to come, people who wait
TWO = spaces.Discrete(2)  # a car waits or drives a cell; a light is red, when people cross, or green
CARS = {"car1": (None, SEEN, TWO, {"gamma": 0.85}), "car2": (None, SEEN, TWO, {"gamma": 0.99})}


class MultiAgentTrafficEnv(steppe.MultiAgentEnv):
    def __init__(self, num_cars=20, num_traffic_lights=5):
        self.lights = [f"traffic_light_{n + 1}" for n in range(num_traffic_lights)]
        self.light_of = {f"car_{n + 1}": self.lights[n % num_traffic_lights] for n in range(num_cars)}
        self.possible_agents, self.observation_space, self.action_space = (
            [*self.light_of, *self.lights],
            SEEN,
            TWO,
        )

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.cells, self.time = {car: int(self.rng.integers(1, 20)) for car in self.light_of}, 0
        self.green, self.people = dict.fromkeys(self.lights, 1), dict.fromkeys(self.lights, 0)
        return self.observe(), {}

    def step(self, action_dict):
        self.time, self.green = self.time + 1, {light: int(action_dict[light]) for light in self.lights}
        self.people = {light: self.green[light] * (n + 1) for light, n in self.people.items()}
        cells = {car: n - int(action_dict[car]) for car, n in self.cells.items()}
        over = [car for car, n in cells.items() if n == 0]  # over the line, even at red: they leave
        rewards = dict.fromkeys(cells, -1) | {
            car: 3 if self.green[self.light_of[car]] else -5 for car in over
        }
        self.cells = {car: n for car, n in cells.items() if n}
        terminateds, obs = dict.fromkeys(over, True) | {"__all__": not self.cells}, self.observe()
        rewards |= {light: -int(obs[light].sum()) for light in self.lights}  # for cars and people alike
        return obs, rewards, terminateds, {"__all__": self.time == 100 and bool(self.cells)}, {}

    def observe(self):
        coming = [self.light_of[car] for car in self.cells]
        seen = {car: (n, self.green[self.light_of[car]]) for car, n in self.cells.items()}
        seen |= {light: (coming.count(light), n) for light, n in self.people.items()}
        return {agent: np.array(one, np.float32) for agent, one in seen.items()}


def policy_of(agent_id):
    return "traffic_light" if agent_id.startswith("traffic_light_") else random.choice(["car1", "car2"])


def config():
    policies = {**CARS, "traffic_light": (None, SEEN, TWO, {})}  # None: by the algorithm of the run
    return steppe.PPOConfig(env=MultiAgentTrafficEnv, policies=policies, policy_mapping_fn=policy_of, seed=0)


def main(iterations=10, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["episode_reward_mean"], result["policy_reward_mean"])
    return result


if __name__ == "__main__":
    main()
