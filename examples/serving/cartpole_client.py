"""Plays CartPole by the policy of ``cartpole_server.py``, which learns from it; run as many as you like."""

import argparse
import itertools
import logging
import sys
from contextlib import suppress

import gymnasium

from steppe import PolicyClient


def main(address="http://localhost:9900", inference_mode="local", stop_at_reward=9999.0, episodes=None):
    """Play until an episode earns ``stop_at_reward``, or that many ``episodes``; returns what each earned."""
    env, rewards = gymnasium.make("CartPole-v1"), []
    with PolicyClient(address, inference_mode) as client:
        for _ in itertools.repeat(None) if episodes is None else range(episodes):
            (obs, _), total, over = env.reset(), 0.0, False
            episode = client.start_episode()
            while not over:
                action = client.get_action(episode, obs)
                obs, reward, terminated, truncated, _ = env.step(action)
                client.log_returns(episode, reward)
                total, over = total + reward, terminated or truncated
            client.end_episode(episode, obs, truncated=not terminated)
            rewards.append(total)
            print(f"Total reward: {total}", flush=True)
            if total >= stop_at_reward:
                print("Quitting as the reward is reached")
                break
    return rewards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="localhost", help="of the server")
    parser.add_argument("--port", type=int, default=9900)
    parser.add_argument("--inference-mode", choices=["local", "remote"], default="local")
    parser.add_argument("--stop-at-reward", type=float, default=9999.0)
    parser.add_argument("--episodes", type=int, help="without it, it plays until the reward is reached")
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, format="%(message)s")  # what a client says of its batches
    logging.getLogger("steppe.client").setLevel(logging.INFO)
    address = f"http://{given.address}:{given.port}"
    with suppress(KeyboardInterrupt):
        main(address, given.inference_mode, given.stop_at_reward, given.episodes)
