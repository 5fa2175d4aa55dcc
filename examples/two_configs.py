"""Two policies that learn side by side in one env, each by a config of its own."""

import steppe

CAUTIOUS = steppe.PPOConfig(lr=1e-4, num_epochs=20, fcnet_hiddens=[32, 32])
BOLD = steppe.PPOConfig(lr=1e-3, num_epochs=5, gamma=0.98)


def config():
    steppe.register_env("multi_cartpole", steppe.make_multi_agent("CartPole-v1"))
    return steppe.PPOConfig(
        env="multi_cartpole",
        policies={"cautious": (CAUTIOUS, None, None, {}), "bold": (BOLD, None, None, {})},
        policy_mapping_fn=lambda agent_id: "cautious" if agent_id == 0 else "bold",
        seed=0,
    )


def main(iterations=20, **settings):
    with config().copy(**settings).build() as algo:
        for _ in range(iterations):
            result = algo.train()
            print(result["timesteps_total"], result["policy_reward_mean"])
    return result


if __name__ == "__main__":
    main()
