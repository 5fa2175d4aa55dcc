"""PettingZoo: pistons that roll a ball to the left, by one policy (``pip install '.[pettingzoo]'``)."""

import pettingzoo

import steppe


def env_creator(env_config):
    return pettingzoo.make("parallel", "butterfly/pistonball-v6", n_pistons=env_config.get("n_pistons", 20))


def config(n_pistons=3):
    steppe.register_env(
        "pistonball", lambda env_config: steppe.ParallelPettingZooEnv(env_creator(env_config))
    )
    return steppe.PPOConfig(
        env="pistonball",
        env_config={"n_pistons": n_pistons},
        policies={"piston"},  # the one policy of all agents: no policy_mapping_fn is needed
        num_envs_per_env_runner=2,
        train_batch_size=100,  # each agent sees an image of 164,520 bytes
        minibatch_size=32,
        num_epochs=2,
        seed=0,
    )


def main(iterations=10, n_pistons=3, **settings):
    with config(n_pistons).copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["episode_reward_mean"])
    return result


if __name__ == "__main__":
    main()
