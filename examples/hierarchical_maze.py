"""Two levels in a windy maze: the upper one says where to go, the lower one uses the wind to get there."""

import numpy as np
from gymnasium import spaces

import steppe

FREE = {(1, x) for x in range(1, 8)} | {(y, 7) for y in range(2, 6)} | {(6, x) for x in range(1, 8)}
START, GOAL, STEPS, TURN = (1, 1), (6, 1), 200, 25
WAYS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
NOT_OVER = {"__all__": False}


class WindyMaze(steppe.MultiAgentEnv):
    """``high`` picks a way, then ``low_<n>`` has 25 steps to follow it: 1 goes with the wind, 0 stays."""

    possible_agents = ("high", *(f"low_{n}" for n in range(STEPS // TURN)))

    def get_observation_space(self, agent):
        return spaces.MultiDiscrete([8, 9] if agent == "high" else [4, 4])  # row, column; wind, way told

    def get_action_space(self, agent):
        return spaces.Discrete(4 if agent == "high" else 2)

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.place, self.steps = START, 0
        return {"high": np.array(START)}, {}

    def step(self, action_dict):
        if "high" in action_dict:  # a new agent takes over; nothing moves yet
            self.told, self.low = int(action_dict["high"]), f"low_{self.steps // TURN}"
            return self.seen(), {}, NOT_OVER, NOT_OVER, {}
        there = tuple(np.add(self.place, WAYS[self.wind]).tolist())
        moves, as_told = action_dict[self.low] == 1 and there in FREE, self.wind == self.told
        self.place, self.steps = there if moves else self.place, self.steps + 1
        arrived, turn_is_over = self.place == GOAL, self.steps % TURN == 0
        obs = self.seen() | ({"high": np.array(self.place)} if arrived or turn_is_over else {})
        rewards = {"high": 100.0 * arrived, self.low: moves * (1.0 if as_told else -1.0)}
        flags = {self.low: turn_is_over, "__all__": arrived}
        return obs, rewards, flags, {"__all__": self.steps == STEPS and not arrived}, {}

    def seen(self):
        self.wind = int(self.rng.integers(4))  # it turns before each step
        return {self.low: np.array([self.wind, self.told])}


def config():
    # The upper level decides 8 times in 200 env steps. Its rows are few, so steps are large until it knows
    # the way, and minibatches small. The wind does not care what a lower agent did: it need not look ahead.
    high = {"gamma": 0.9, "minibatch_size": 64}
    return steppe.PPOConfig(env=WindyMaze, lr=[[0, 3e-3], [200_000, 3e-4]], seed=0).multi_agent(
        policies={"high": {"config": high}, "low": {"config": {"gamma": 0.0}}},
        policy_mapping_fn=lambda agent_id: agent_id.partition("_")[0],
    )


def main(iterations=50, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["agent_reward_mean"].get("high"))
    return result


if __name__ == "__main__":
    main()
