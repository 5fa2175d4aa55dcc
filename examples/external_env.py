"""A shop that runs by itself: visitors look at pages side by side, and a click is known one page later."""

import numpy as np
from gymnasium import spaces

import steppe

ITEMS, PAGES = 4, 10


class Shop(steppe.ExternalEnv):
    """Shows one of four items on each page; the visitor's interest in each is observed, a click earns 1."""

    observation_space, action_space = spaces.Box(0, 1, (ITEMS,)), spaces.Discrete(ITEMS)

    def __init__(self, env_config):
        super().__init__()
        self.rng = np.random.default_rng(env_config.vector_index)

    def run(self):
        visits = [self.visit() for _ in range(20)]
        while True:
            i = self.rng.integers(len(visits))
            if next(visits[i], None) is None:
                visits[i] = self.visit()

    def visit(self):
        """One visitor, page by page."""
        visit, clicked = self.start_episode(), None
        for _ in range(PAGES):
            interest = self.rng.random(ITEMS, np.float32)
            item, about = self.get_action(visit, interest, full=True)
            if clicked is not None:
                self.log_returns(visit, 1.0, step=clicked)
            clicked = about.step if self.rng.random() < interest[item] else None
            yield item
        self.log_returns(visit, float(clicked is not None))
        self.end_episode(visit, None)


def config():
    return steppe.PPOConfig(env=Shop, seed=0, train_batch_size=2000)


def main(iterations=15, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["episode_reward_mean"])
    return result


if __name__ == "__main__":
    main()
