"""Rock, paper, scissors: a learned policy against two that follow rules (``pip install '.[pettingzoo]'``)."""

import numpy as np
import pettingzoo

import steppe

NOTHING_YET = 3  # what a player observes of the other before the first round; 0, 1, 2 are the moves


class AlwaysSame(steppe.Policy):
    """Picks a move at random, and keeps to it for the episode."""

    def initial_state(self):
        return np.int64(-1)

    def act(self, obs, state, rng):
        move = int(rng.integers(3)) if state < 0 else int(state)
        return move, np.int64(move)


class BeatLast(steppe.Policy):
    """Plays what would have beaten the other's last move."""

    def act(self, obs, state, rng):
        return int(rng.integers(3)) if obs == NOTHING_YET else (int(obs) + 1) % 3


class ByOpponent(steppe.Callbacks):
    """What was won against each opponent."""

    def on_episode_end(self, *, episode):
        episode.custom_metrics[episode.policy_for("player_1")] = episode.agent_rewards["player_0"]


def policy_of(agent_id, episode):
    return "learned" if agent_id == "player_0" else ("always_same", "beat_last")[episode.episode_id % 2]


def env_creator(env_config):
    return steppe.ParallelPettingZooEnv(pettingzoo.make("parallel", "classic/rps-v2", max_cycles=15))


def config():
    steppe.register_env("rps", env_creator)
    scripted = {"always_same": steppe.PolicySpec(AlwaysSame), "beat_last": steppe.PolicySpec(BeatLast)}
    mapped = {"policies": {"learned": None, **scripted}, "policy_mapping_fn": policy_of}
    return steppe.PPOConfig(
        env="rps", **mapped, policies_to_train=["learned"], callbacks_class=ByOpponent, seed=0
    )


def main(iterations=20, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(
                result["timesteps_total"], result["policy_reward_mean"]["learned"], result["custom_metrics"]
            )
    return result


if __name__ == "__main__":
    main()
