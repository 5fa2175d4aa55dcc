"""Agents that each balance a pole of their own, by two policies or more."""

import steppe


def policy_of(agent_id, episode, worker, **kwargs):
    return f"policy_{agent_id % 2}"


def config(num_agents=2):
    steppe.register_env("multi_cartpole", steppe.make_multi_agent("CartPole-v1"))
    return steppe.PPOConfig(
        env="multi_cartpole",
        env_config={"num_agents": num_agents},
        policies={"policy_0", "policy_1"},
        policy_mapping_fn=policy_of,
        seed=0,
    )


def main(iterations=20, num_agents=2, **settings):
    with config(num_agents).copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            # The episode's reward is the sum over its agents: at best 500 for each.
            print(result["timesteps_total"], result["episode_reward_mean"], result["policy_reward_mean"])
    return result


if __name__ == "__main__":
    main()
