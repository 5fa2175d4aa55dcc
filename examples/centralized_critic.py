"""Two agents have to trust each other to win; their critics see more than they do, in either of two ways."""

import numpy as np
from gymnasium import spaces

import steppe

AGENTS = ["agent_0", "agent_1"]


class TwoStepGame(steppe.MultiAgentEnv):
    """In state 0 agent_0 picks state 1, a sure 7, or state 2: 8 for (1, 1), nothing for (0, 0), else 1."""

    def __init__(self, env_config):
        self.possible_agents = AGENTS
        self.observation_space, self.action_space = spaces.Discrete(3), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.state = 0
        return dict.fromkeys(AGENTS, 0), {}

    def step(self, actions):
        state, (first, second) = self.state, (actions[agent] for agent in AGENTS)
        reward = (0.0, 7.0, (0.0, 1.0, 8.0)[first + second])[state]
        self.state = 1 + int(first)
        obs, rewards = dict.fromkeys(AGENTS, self.state), dict.fromkeys(AGENTS, reward / 2)
        return obs, rewards, {"__all__": state > 0}, {"__all__": False}, {}


class CentralCritic:
    """Way one: the mean return after each (state, action of the other), which no agent knows in time."""

    def __init__(self):
        self.total, self.count = np.zeros((3, 2)), np.zeros((3, 2))

    def __call__(self, policy, batch, other_agent_batches, episode):
        other = AGENTS[policy.policy_id == AGENTS[0]]
        where = batch["obs"], other_agent_batches[other][1]["actions"]
        returns = batch["rewards"][::-1].cumsum()[::-1]  # episodes are whole here
        np.add.at(self.total, where, returns)
        np.add.at(self.count, where, 1)
        batch["advantages"] = returns - self.total[where] / self.count[where]


def with_state(agent_obs):
    """Way two: all observations go into a leaf of each that the critic alone sees."""
    state = np.array([agent_obs[agent] for agent in AGENTS])
    return {agent: {"own": obs, "state": state} for agent, obs in agent_obs.items()}


def config(way=1, **settings):
    if way == 1:
        sharing = {"postprocess_trajectory": CentralCritic(), "batch_mode": "complete_episodes"}
    else:
        space = spaces.Dict({"own": spaces.Discrete(3), "state": spaces.MultiDiscrete([3, 3])})
        sharing = {"observation_fn": with_state, "critic_only": ["state"], "observation_space": space}
    learning = {"train_batch_size": 512, "minibatch_size": 128, "num_epochs": 4}
    learning |= {"lr": [[0, 5e-3], [80_000, 3e-4]], "entropy_coeff": [[0, 0.4], [60_000, 0.02]]}
    return steppe.PPOConfig(
        env=TwoStepGame, policies=AGENTS, **sharing, **{"seed": 0, **learning, **settings}
    )


def main(way=1, iterations=100, **settings):
    with config(way, **settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
    print(f"way {way}: {result['timesteps_total']} steps, reward {result['episode_reward_mean']:.2f} of 8")
    return result


if __name__ == "__main__":
    for way in (1, 2):
        main(way)
