"""Tic-tac-toe by self-play: against past versions of oneself (``pip install '.[pettingzoo]'``)."""

import random

import numpy as np
import pettingzoo

import steppe

MOST = 4  # past versions that play at the same time, beside the first one


class AnyMove(steppe.Policy):
    """Any square that is free; the learned policy is measured against it, and never meets it in training."""

    def act(self, obs, state, rng):
        return int(rng.choice(np.flatnonzero(obs["action_mask"])))


class PastVersions(steppe.Callbacks):
    """After each iteration a frozen copy of the learned policy joins, and the oldest one leaves.

    The very first version stays: who moves anyhow comes to squares that good players do not leave open.
    """

    def on_train_result(self, *, algorithm, result):
        algorithm.add_policy(f"past_{result['training_iteration']}", like="learned")
        _, *others = past_of(algorithm.runner)
        if len(others) > MOST:
            algorithm.remove_policy(others[0])


def past_of(worker):
    return [id for id in worker.policy_ids if id.startswith("past_")]


def policy_of(agent_id, episode, worker):
    if (agent_id == "player_1") == (episode.number % 2 == 0):  # it begins in every second game
        return "learned"
    return "any_move" if worker.in_evaluation else random.choice(past_of(worker))


def env_creator(env_config):
    return steppe.PettingZooEnv(pettingzoo.make("aec", "classic/tictactoe-v3"))


def config():
    steppe.register_env("tictactoe", env_creator)
    policies = {"learned": None, "past_0": None, "any_move": steppe.PolicySpec(AnyMove)}
    ppo = {"gamma": 0.95, "lambda_": 0.9, "minibatch_size": 256, "fcnet_hiddens": [128, 128]}
    ppo |= {"lr": [[0, 2e-3], [120_000, 1e-4]], "entropy_coeff": [[0, 0.03], [120_000, 0.003]]}
    games = {"evaluation_interval": 5, "evaluation_num_envs": 10, "evaluation_duration": 200}
    return steppe.PPOConfig(
        env="tictactoe",
        policies=policies,
        policy_mapping_fn=policy_of,
        policies_to_train=["learned"],
        callbacks_class=PastVersions,
        num_envs_per_env_runner=16,
        seed=0,
        **ppo,
        **games,
    )


def main(iterations=30, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            score = result.get("evaluation", {}).get("policy_reward_mean", {}).get("learned")
            print(result["timesteps_total"], score)  # a game is worth 1 if it is won, -1 if it is lost
    return result


if __name__ == "__main__":
    main()
