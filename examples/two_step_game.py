"""QMIX and VDN on a game that two agents win by trusting each other; the sum of two values cannot say so."""

import numpy as np
from gymnasium import spaces

import steppe

AGENTS = ("agent_1", "agent_2")


class TwoStepGame(steppe.MultiAgentEnv):
    """In state 0 agent_1 picks state 1, a sure 7, or state 2: 8 for (1, 1), nothing for (0, 0), else 1."""

    def __init__(self, env_config):
        self.apart = env_config.get("separate_state_space", False)  # the state beside what agents see
        self.possible_agents, self.action_space = AGENTS, spaces.Discrete(2)
        self.state_space = spaces.Discrete(3)
        if env_config.get("one_hot_state_encoding", False):
            self.state_space = spaces.Box(0, 1, (3,), np.int8)
        self.observation_space = self.state_space
        if self.apart:
            self.observation_space = spaces.Dict(obs=self.state_space, state=self.state_space)

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return self.seen(), {}

    def step(self, actions):
        before, (first, second) = self.at, (actions[agent] for agent in AGENTS)
        reward = (0.0, 7.0, (0.0, 1.0, 8.0)[first + second])[before]
        self.at = 1 + int(first)
        rewards = dict.fromkeys(AGENTS, reward / 2)
        return self.seen(), rewards, {"__all__": before > 0}, {"__all__": False}, {}

    def seen(self):
        one_hot = isinstance(self.state_space, spaces.Box)
        state = np.eye(3, dtype=np.int8)[self.at] if one_hot else self.at
        return dict.fromkeys(AGENTS, {"obs": state, "state": state} if self.apart else state)


def grouped(env_config):
    return TwoStepGame(env_config).with_agent_groups({"team": AGENTS})


def config(algo=steppe.QMIXConfig, **settings):
    game = {"separate_state_space": True, "one_hot_state_encoding": True}
    return algo(env=grouped, env_config=game, policies={"team"}, **{"epsilon": 1.0, "seed": 0, **settings})


def main(algo=steppe.QMIXConfig, iterations=8, **settings):
    with config(algo, **settings).build() as algorithm:
        for _ in range(iterations):
            result = algorithm.train()
        reward = algorithm.evaluate(num_episodes=1)["episode_reward_mean"]
    print(f"{algo.algo_name}: {result['timesteps_total']} steps, then greedily {reward:.0f} of 8")
    return result


if __name__ == "__main__":
    for algo in (steppe.QMIXConfig, steppe.VDNConfig):
        main(algo)
