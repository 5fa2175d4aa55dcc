"""Envs that learning is measured on and that no package has."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Catch(gymnasium.Env):
    """A ball falls down a picture of 40 x 40; the paddle below catches it, for 1, or misses it, for -1.

    The picture is a board of 10 x 10 squares. Chance catches about one ball in six.
    """

    SQUARES, SIDE = 10, 4
    observation_space = spaces.Box(0, 255, (40, 40, 1), np.uint8)
    action_space = spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.ball = 0, int(self.np_random.integers(self.SQUARES))
        self.paddle = self.SQUARES // 2
        return self.picture(), {}

    def step(self, action):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.SQUARES - 1)
        self.row += 1
        over = self.row == self.SQUARES - 1
        reward = (1.0 if self.paddle == self.ball else -1.0) if over else 0.0
        return self.picture(), reward, over, False, {}

    def picture(self):
        board = np.zeros((self.SQUARES, self.SQUARES), np.uint8)
        board[-1, self.paddle] = 128
        board[self.row, self.ball] = 255
        return np.kron(board, np.ones((self.SIDE, self.SIDE), np.uint8))[:, :, None]


class Ring(gymnasium.Env):
    """Five places in a ring, one way round; place ``s`` pays ``s``. It ends at place 0, if at all."""

    observation_space, action_space = spaces.Discrete(5), spaces.Discrete(1)

    def __init__(self, ends=False):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(5))
        return self.place, {}

    def step(self, action):
        reward, self.place = float(self.place), (self.place + 1) % 5
        return self.place, reward, self.ends and self.place == 0, False, {}


class StillCartPole(gymnasium.ObservationWrapper):
    """CartPole-v1 seen as a photograph sees it: where cart and pole are, not how they move."""

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        seen = self.env.observation_space
        self.observation_space = spaces.Box(seen.low[::2], seen.high[::2])

    def observation(self, observation):
        return observation[::2]


class RepeatAfter(gymnasium.Env):
    """Shows a bit; the right action is the one that was shown ``delay`` steps ago, for 1 or else -1.

    The first ``delay`` steps score nothing, then 100 do: chance makes 0, memory 100.
    """

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)
    SCORED = 100

    def __init__(self, env_config):
        self.delay = env_config.get("delay", 2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = [int(self.np_random.integers(2))]
        return self.shown[-1], {}

    def step(self, action):
        late = len(self.shown) > self.delay
        right = late and action == self.shown[-1 - self.delay]
        self.shown.append(int(self.np_random.integers(2)))
        over = len(self.shown) == self.SCORED + self.delay + 1
        return self.shown[-1], (1.0 if right else -1.0) if late else 0.0, over, False, {}
