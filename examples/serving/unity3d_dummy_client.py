"""A game of soccer without a picture: random observations in the shapes of Unity's."""

import argparse
from contextlib import suppress

import numpy as np

from steppe import PolicyClient

PLAYERS = ("Goalie", "Striker_1", "Striker_2")


def sees(rng, player):
    """A goalie's rays, or a striker's: those to the front and those to the back."""
    sizes = (738,) if player == "Goalie" else (231, 63)
    rays = [rng.standard_normal(n, dtype=np.float32) for n in sizes]
    return rays[0] if player == "Goalie" else rays


def game(client, rng, length):
    """One episode; returns what each player earned. A striker is sent off at half-time: agents may leave."""
    playing, earned = list(PLAYERS), dict.fromkeys(PLAYERS, 0.0)
    episode = client.start_episode()
    for step in range(length):
        actions = client.get_action(episode, {player: sees(rng, player) for player in playing})
        # Nothing falls over here, so standing still pays as well as anything else would.
        rewards = {player: float(np.mean(np.asarray(actions[player]) == 0)) for player in playing}
        off = {"Striker_2": True} if step == length // 2 else None
        client.log_returns(episode, rewards, multiagent_done_dict=off)
        for player, reward in rewards.items():
            earned[player] += reward
        playing = [player for player in playing if not (off or {}).get(player)]
    client.end_episode(episode, {player: sees(rng, player) for player in playing}, truncated=True)
    return earned


def main(address="http://localhost:9900", episodes=None, length=100, seed=None):
    """Play; returns what the players of each game earned."""
    rng, games = np.random.default_rng(seed), []
    with PolicyClient(address, "remote") as client:
        while episodes is None or len(games) < episodes:
            games.append(game(client, rng, length))
            print({player: round(earned, 2) for player, earned in games[-1].items()}, flush=True)
    return games


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="localhost", help="of the server")
    parser.add_argument("--port", type=int, default=9900)
    parser.add_argument("--episodes", type=int)
    parser.add_argument("--length", type=int, default=100, help="steps of an episode")
    given = parser.parse_args()
    with suppress(KeyboardInterrupt):
        main(f"http://{given.address}:{given.port}", given.episodes, given.length)
