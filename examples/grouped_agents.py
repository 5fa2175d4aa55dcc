"""Two agents that act as one: a group observes and does what its members do, as tuples."""

import numpy as np
from gymnasium import spaces

import steppe


class Meeting(steppe.MultiAgentEnv):
    """Each sees one bit, and earns 1 if it says whether the bits of the two differ."""

    possible_agents = ("ann", "bob")
    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.rounds = 0
        return self.hints(), {}

    def step(self, action_dict):
        wanted = (self.seen["ann"] + self.seen["bob"]) % 2  # neither knows it alone
        right = {agent: float(action_dict[agent] == wanted) for agent in ("ann", "bob")}
        self.rounds += 1
        return self.hints(), right, {"__all__": False}, {"__all__": self.rounds == 10}, {}

    def hints(self):
        self.seen = {agent: int(self.rng.integers(2)) for agent in self.possible_agents}
        return self.seen


def grouped(env_config):
    return Meeting().with_agent_groups({"pair": ["ann", "bob"]})


def config():
    return steppe.PPOConfig(env=grouped, policies={"pair"}, seed=0)


def main(iterations=5, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["policy_reward_mean"]["pair"])  # at best 20, by chance 10
    return result


if __name__ == "__main__":
    main()
