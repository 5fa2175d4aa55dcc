"""Simulated shoppers of the small shop: each visit is an episode, each page recommends one product.

A shopper says what they came for, which is wrong at times. If they like what a page shows, they open it in
another tab, and the shop hears of it when the next page has been shown: ``log_returns(step=...)`` credits the
earlier decision. Then they buy it, or go on, or leave.
"""

import argparse
import json
import random
from contextlib import suppress
from pathlib import Path

from steppe import PolicyClient

SHOP = json.loads(Path(__file__).with_name("products.json").read_text())
TOPICS, PRODUCTS, EARNS = SHOP["topics"], SHOP["products"], SHOP["earns"]

SAYS_THE_TRUTH = 0.85  # about what they came for
LOOKS = {True: 0.8, False: 0.05}  # whether they open a product, by whether it is of their topic
BUYS = 0.5  # what they have opened
LEAVES = 0.4  # after a page that they did not like


class Shopper:
    """What somebody in the shop wants, and does about a product."""

    def __init__(self, rng):
        self.rng, self.wants = rng, rng.choice(TOPICS)
        self.says = self.wants if rng.random() < SAYS_THE_TRUTH else rng.choice(TOPICS)

    def looks(self, product):
        return self.rng.random() < LOOKS[PRODUCTS[product]["topic"] == self.wants]

    def buys(self):
        return self.rng.random() < BUYS

    def leaves(self):
        return self.rng.random() < LEAVES


class Visit:
    """What the shop knows of a visit: what was said, shown and opened."""

    def __init__(self, topic):
        self.topic, self.shown, self.opened = topic, [], []

    def obs(self):
        """What the policy sees; nothing is recommended twice."""
        everything = range(len(PRODUCTS))
        return {
            "action_mask": [int(product not in self.shown) for product in everything],
            "opened": [int(product in self.opened) for product in everything],
            "topic": TOPICS.index(self.topic),
        }


def visit(client, shopper, training_enabled=True):
    """One visit; returns what the shop earned by it."""
    episode, seen = client.start_episode(training_enabled=training_enabled), Visit(shopper.says)
    earned, liked = 0.0, None
    for page in range(SHOP["pages"]):
        seen.shown.append(client.get_action(episode, seen.obs()))
        if liked is not None:  # on the page before, and only now we hear of it
            seen.opened.append(seen.shown[liked])
            bought = shopper.buys()
            reward = EARNS["look"] + bought * EARNS["buy"]
            client.log_returns(episode, reward, step=liked)
            earned += reward
            if bought:
                break
        liked = page if shopper.looks(seen.shown[-1]) else None
        if liked is None and shopper.leaves():
            break
    client.end_episode(episode, seen.obs())
    return earned


def main(
    address="http://127.0.0.1:9900", visits=1000, token=None, seed=None, inference_mode="remote", said=100
):
    """Send shoppers; returns what each visit earned."""
    rng, earned = random.Random(seed), []
    with PolicyClient(address, inference_mode, token=token) as client:
        while len(earned) < visits:
            earned.append(visit(client, Shopper(rng)))
            if len(earned) % said == 0:
                mean = sum(earned[-said:]) / said
                print(f"{len(earned)} visits; the latest {said} earned {mean:.2f} each", flush=True)
    return earned


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="http://127.0.0.1:9900")
    parser.add_argument("--visits", type=int, default=1000)
    parser.add_argument("--token", help="file:PATH, env:NAME, or the token itself")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--inference-mode", choices=["local", "remote"], default="remote")
    with suppress(KeyboardInterrupt):
        main(**vars(parser.parse_args()))
