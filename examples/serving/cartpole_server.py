"""A policy server that learns CartPole from the clients that play it, see ``cartpole_client.py``."""

import argparse

import gymnasium

import steppe

CONFIGS = {"DQN": steppe.DQNConfig, "PPO": steppe.PPOConfig}


class CartPole:
    """A stub: what is observed and done. The poles are the clients'."""

    observation_space = gymnasium.make("CartPole-v1").observation_space
    action_space = gymnasium.make("CartPole-v1").action_space


def main(run="PPO", port=9900, iterations=None, begun=None, **settings):
    """Serve and learn, ``iterations`` times or until Ctrl-C; ``begun`` is told the port."""
    server = steppe.PolicyServer(port=port)
    with CONFIGS[run](env=CartPole, input=server, **settings).build() as algo:
        port = int(server.address.rpartition(":")[2])
        print(f"-- Starting policy server at localhost:{port}", flush=True)
        if begun is not None:
            begun(port)
        try:
            while iterations is None or algo.iteration < iterations:
                result = algo.train()
                steps, mean = result["timesteps_total"], result["episode_reward_mean"]
                print(f"{steps} steps; mean reward {mean:.1f}", flush=True)
        except KeyboardInterrupt:
            print("-- The policy server has ended")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=CONFIGS, default="PPO")
    parser.add_argument("--port", type=int, default=9900, help="0 for one that is free")
    parser.add_argument("--iterations", type=int)
    main(**vars(parser.parse_args()))
