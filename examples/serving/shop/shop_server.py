"""A small shop on the web: a policy recommends products, and learns from what shoppers do about them.

Two servers run: one gives browsers the page, the other one answers what the page asks the policy. Open the
page, or let ``shoppers.py`` come by the thousand.
"""

import argparse
import json
import os
import secrets
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gymnasium.spaces import Dict, Discrete, MultiBinary

import steppe

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parent.parent.parent / "clients" / "javascript" / "steppe-client.mjs"
SHOP = json.loads((HERE / "products.json").read_text())
FILES = {
    "/": (HERE / "shop.html", "text/html; charset=utf-8"),
    "/shop.mjs": (HERE / "shop.mjs", "text/javascript"),
    "/steppe-client.mjs": (CLIENT, "text/javascript"),
}


class Shop:
    """Says what is observed and chosen; there is nothing to step, as shoppers come by themselves."""

    observation_space = Dict(
        action_mask=MultiBinary(len(SHOP["products"])),  # not shown yet in this visit
        opened=MultiBinary(len(SHOP["products"])),  # had a closer look at
        topic=Discrete(len(SHOP["topics"])),  # what the shopper came for, as they say
    )
    action_space = Discrete(len(SHOP["products"]))


class Page(BaseHTTPRequestHandler):
    """Gives the page, its scripts, and what it has to know."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/shop.json":
            self.answer(200, "application/json", json.dumps(self.server.told).encode())
        elif path in FILES:
            file, kind = FILES[path]
            self.answer(200, kind, file.read_bytes())
        else:
            self.answer(404, "text/plain", b"there is no such page")

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing."""


def token_file(path):
    """Two tokens: what a page has everybody can read, so it may ask and tell, and no more."""
    page, own = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    path.touch(0o600)
    path.write_text(f"{page} act page\n{own} act,submit,weights,admin own\n")
    return page, own


def main(port=9900, page_port=8000, iterations=None, seed=None, begun=None, **settings):
    """Serve and learn, ``iterations`` times or until Ctrl-C; ``begun`` is told the addresses and a token."""
    pages = ThreadingHTTPServer(("127.0.0.1", page_port), Page)
    origin = f"http://127.0.0.1:{pages.server_address[1]}"
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        page_token, own_token = token_file(tokens)
        server = steppe.PolicyServer(port=port, token_file=tokens, allow_origins=[origin])
        learning = {"train_batch_size": 256, "minibatch_size": 64, "num_epochs": 10, "lr": 1e-2, "gamma": 0.9}
        config = steppe.PPOConfig(env=Shop, input=server, seed=seed, **(learning | settings))
        with config.build() as algo:
            pages.told = {**SHOP, "address": server.address, "token": page_token}
            thread = threading.Thread(target=pages.serve_forever, daemon=True)
            thread.start()
            print(f"The shop is open at {origin}; its policy is served at {server.address}", flush=True)
            shoppers = os.path.relpath(HERE / "shoppers.py")
            print(f"python {shoppers} --address {server.address} --token {own_token}", flush=True)
            if begun is not None:
                begun(origin, server.address, own_token)
            try:
                while iterations is None or algo.iteration < iterations:
                    result = algo.train()
                    visits, earned = result["episodes_total"], result["episode_reward_mean"]
                    print(f"{visits} visits; the latest 100 earned {earned:.2f} each", flush=True)
            except KeyboardInterrupt:
                print("The shop is closed")
            finally:
                pages.shutdown()
                pages.server_close()
                thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=9900, help="of the policy server")
    parser.add_argument("--page-port", type=int, default=8000, help="of the page")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int)
    main(**vars(parser.parse_args()))
