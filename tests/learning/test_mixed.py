"""PPO and DQN in one env: agents with even ids learn by the one, those with odd ids by the other."""

import pytest

import steppe


def config(**settings):
    steppe.register_env("multi_cartpole", steppe.make_multi_agent("CartPole-v1"))
    return steppe.PPOConfig(
        env="multi_cartpole",
        env_config={"num_agents": 4},
        policies={"even": None, "odd": (steppe.DQNConfig(), None, None, {})},
        policy_mapping_fn=lambda agent: "odd" if agent % 2 else "even",
        **settings,
    )


@pytest.mark.slow
def test_ppo_and_dqn_in_one_env(learned):
    def worse(result):
        rewards = result["policy_reward_mean"]
        return min(rewards.values()) if len(rewards) == 2 else None

    learned(config(), 100, 100_000, score=worse)


def test_each_learner_gets_the_rows_of_its_own_agents_and_no_others():
    small = {"train_batch_size": 64, "minibatch_size": 32, "num_epochs": 1, "num_envs_per_env_runner": 2}
    seen = {"even": set(), "odd": set()}

    def watched(id, add):
        def taking(rollout):
            assert rollout.policy == id
            seen[id] |= {rollout.agents[index] for index in rollout.agent[rollout.filled]}
            add(rollout)

        return taking

    with config(seed=0, write_run=False, fcnet_hiddens=[8], **small).build() as algo:
        for id, learner in algo._learner.learners.items():
            learner.add = watched(id, learner.add)
        algo.train()
    assert seen == {"even": {0, 2}, "odd": {1, 3}}
