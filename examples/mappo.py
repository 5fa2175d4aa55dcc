"""MAPPO: one policy for all agents, whose critic sees the whole state of the game while it trains."""

import numpy as np
from gymnasium import spaces

import steppe

ROBOTS, CELLS, STEPS = ("r0", "r1", "r2"), 9, 12


class Cover(steppe.MultiAgentEnv):
    """Robots on a line are paid together for each goal that one of them stands on; none sees the others."""

    def __init__(self, env_config):
        self.possible_agents, self.action_space = ROBOTS, spaces.Discrete(3)
        seen, state = (spaces.Box(-1, 1, (n,), np.float32) for n in (1 + len(ROBOTS), 1 + 2 * len(ROBOTS)))
        self.observation_space = spaces.Dict(obs=seen, state=state)

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.goals = np.sort(self.rng.choice(CELLS, len(ROBOTS), replace=False))
        self.places, self.t = self.rng.integers(CELLS, size=len(ROBOTS)), 0
        return self.seen(), {}

    def step(self, actions):
        moves = np.array([actions[robot] - 1 for robot in ROBOTS])
        self.places, self.t = np.clip(self.places + moves, 0, CELLS - 1), self.t + 1
        paid = np.isin(self.goals, self.places).sum() / len(ROBOTS)
        rewards = dict.fromkeys(ROBOTS, paid / len(ROBOTS))
        return self.seen(), rewards, {"__all__": self.t == STEPS}, {"__all__": False}, {}

    def seen(self):
        goals, places = (
            2 * where.astype(np.float32) / (CELLS - 1) - 1 for where in (self.goals, self.places)
        )
        state = np.concatenate([goals, places, [2 * np.float32(self.t) / STEPS - 1]], dtype=np.float32)
        return {
            robot: {"obs": np.append(goals, place), "state": state}
            for robot, place in zip(ROBOTS, places, strict=True)
        }


def config(**settings):
    shared = {"policies": {"shared"}, "policy_mapping_fn": lambda agent: "shared"}
    learning = {"lr": 1e-3, "train_batch_size": 2000, "seed": 0}
    return steppe.PPOConfig.preset("mappo", env=Cover, **{**shared, **learning, **settings})


def main(iterations=50, **settings):
    with config(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
    mean = result["episode_reward_mean"]  # at best about 10 of 12: goals are some steps away
    print(f"{result['timesteps_total']} steps, goals covered {mean:.1f} of {STEPS}")
    return result


if __name__ == "__main__":
    main()
