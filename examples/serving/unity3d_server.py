"""A policy server for a game of soccer: a goalie against two strikers, who see and learn differently.

The game asks over the network, see ``unity3d_dummy_client.py`` for one without a picture, and
``clients/csharp/SoccerAgents.cs`` for Unity.
"""

import argparse

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete, Tuple

import steppe


def rays(n):
    """What an agent's rays hit, and how far away."""
    return Box(-np.inf, np.inf, (n,), np.float32)


GOALIE, STRIKER = rays(738), Tuple((rays(231), rays(63)))
MOVES = MultiDiscrete([3, 3, 3])  # forward or back, sideways, turn; 0 is neither
PLAYERS = {"Goalie": GOALIE, "Striker_1": STRIKER, "Striker_2": STRIKER}


class Soccer:
    """A stub: who plays, what they see and do. The game itself is elsewhere."""

    observation_spaces = PLAYERS
    action_spaces = dict.fromkeys(PLAYERS, MOVES)


def policy_of(agent_id, episode, worker, **_):
    return "Striker" if agent_id.startswith("Striker") else "Goalie"


def main(port=9900, iterations=None, begun=None, **settings):
    """Serve and learn, ``iterations`` times or until Ctrl-C; ``begun`` is told the port."""
    config = steppe.PPOConfig(
        env=Soccer,
        input=steppe.PolicyServer(port=port),
        policies={"Goalie": None, "Striker": None},
        policy_mapping_fn=policy_of,
        **{"train_batch_size": 4000, "minibatch_size": 256, "num_epochs": 10, "lr": 3e-4} | settings,
    )
    with config.build() as algo:
        port = int(config.input.address.rpartition(":")[2])
        print(f"-- Starting policy server at localhost:{port}", flush=True)
        if begun is not None:
            begun(port)
        try:
            while iterations is None or algo.iteration < iterations:
                result = algo.train()
                means = result["policy_reward_mean"].items()
                print(result["timesteps_total"], {name: round(mean, 2) for name, mean in means}, flush=True)
        except KeyboardInterrupt:
            print("-- The policy server has ended")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=9900, help="0 for one that is free")
    parser.add_argument("--iterations", type=int)
    main(**vars(parser.parse_args()))
