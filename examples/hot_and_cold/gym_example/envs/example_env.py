"""Hot and cold on a line of ten cells, written against the old gym interface on purpose.

`reset()` gives the observation alone, `step()` a list of four, `done` is a bool or an int, and seeding has a
method of its own. Nothing of this needs to change for steppe.
"""

import gymnasium as gym
from gymnasium.utils import seeding


class Example_v0(gym.Env):
    LF_MIN = 1
    RT_MAX = 10

    MOVE_LF = 0
    MOVE_RT = 1

    MAX_STEPS = 10

    REWARD_AWAY = -2
    REWARD_STEP = -1
    REWARD_GOAL = 10

    metadata = {"render_modes": ["human"]}  # noqa: RUF012

    def __init__(self):
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Discrete(self.RT_MAX + 1)

        self.goal = (self.LF_MIN + self.RT_MAX - 1) // 2
        self.init_positions = [p for p in range(self.LF_MIN, self.RT_MAX) if p != self.goal]

        self.seed()
        self.reset()

    def reset(self):
        self.position = int(self.np_random.choice(self.init_positions))
        self.count = 0
        self.reward = 0
        self.done = False
        self.info = {}
        return self.position

    def step(self, action):
        if self.done:
            print("the episode is over: call reset()")
        elif self.count == self.MAX_STEPS:
            self.done = True
        else:
            assert self.action_space.contains(action)
            self.count += 1
            self._move(1 if action == self.MOVE_RT else -1)
            self.info = {"dist": self.goal - self.position}
        return [self.position, self.reward, self.done, self.info]

    def _move(self, direction):
        before = abs(self.goal - self.position)
        self.position = min(max(self.position + direction, self.LF_MIN), self.RT_MAX)
        if self.position == self.goal:
            self.reward = self.REWARD_GOAL
            self.done = 1
        elif abs(self.goal - self.position) < before:
            self.reward = self.REWARD_STEP
        else:
            # away from the goal, or against a wall
            self.reward = self.REWARD_AWAY

    def render(self, mode="human"):
        print(f"position: {self.position:2d}  reward: {self.reward:2d}  info: {self.info}")

    def seed(self, seed=None):
        self.np_random, seed = seeding.np_random(seed)
        return [seed]

    def close(self):
        pass
