"""Train PPO for five iterations, then restore the last checkpoint and watch the policy play."""

import shutil

import steppe
from gym_example.envs.example_env import Example_v0

CHECKPOINTS = "tmp/exa"
SELECT_ENV = "example-v0"
STATUS = "{:2d} reward {:6.2f}/{:6.2f}/{:6.2f} len {:4.2f} saved {}"


def train(algo, n_iter=5):
    for n in range(n_iter):
        result = algo.train()
        path = algo.save(f"{CHECKPOINTS}/checkpoint_{n + 1}")
        print(
            STATUS.format(
                n + 1,
                result["episode_reward_min"],
                result["episode_reward_mean"],
                result["episode_reward_max"],
                result["episode_len_mean"],
                path,
            )
        )
    return path


def rollout(algo, n_step=20, seed=0):
    env = Example_v0()
    env.seed(seed)
    state = env.reset()
    sum_reward = 0
    for _ in range(n_step):
        action = algo.compute_single_action(state)
        state, reward, done, _info = env.step(action)
        sum_reward += reward
        env.render()
        if done:
            print("cumulative reward", sum_reward)
            state = env.reset()
            sum_reward = 0


def main():
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    steppe.register_env(SELECT_ENV, lambda config: Example_v0())
    config = steppe.PPOConfig(env=SELECT_ENV, seed=0)
    with config.build() as algo:
        path = train(algo)
        algo.restore(path)
        rollout(algo)


if __name__ == "__main__":
    main()
