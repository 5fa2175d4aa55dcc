"""What random actions earn: the baseline that a trained policy has to beat."""

import gymnasium as gym

import gym_example  # noqa: F401


def run_one_episode(env):
    env.reset()
    sum_reward = 0
    for _ in range(env.MAX_STEPS):
        action = env.action_space.sample()
        _state, reward, done, _info = env.step(action)
        sum_reward += reward
        if done:
            break
    return sum_reward


def main(episodes=10_000, seed=0):
    env = gym.make("example-v0")
    env.seed(seed)
    env.action_space.seed(seed)
    history = [run_one_episode(env) for _ in range(episodes)]
    avg_sum_reward = sum(history) / len(history)
    print(f"\nbaseline cumulative reward: {avg_sum_reward:6.2f}")
    return avg_sum_reward


if __name__ == "__main__":
    main()
