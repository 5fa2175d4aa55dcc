"""The examples of serving: simulators by numbers worked out by hand, and the programs, as processes."""

from __future__ import annotations

import _thread
import http.client
import itertools
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from examples.serving import unity3d_dummy_client, unity3d_server
from examples.serving.shop import shop_server, shoppers
from steppe import PolicyClient
from steppe.serving.client import PolicyClientError
from steppe.serving.security import Tokens
from tests.serving.browser import Browser

EXAMPLES = Path(unity3d_server.__file__).parent
BATCH_BY_BATCH = (
    "Querying server for new policy weights.",
    "Generating new batch of experiences.",
    r"Total reward: \d+\.0",
    r"Sending batch of \d+ steps back to server.",
)


class Told:
    """A client that recommends what it was told to, and keeps what it hears."""

    def __init__(self, choose):
        self.choose, self.heard = choose, []

    def start_episode(self, training_enabled):
        return "e"

    def get_action(self, episode, obs):
        self.heard.append(obs)
        return self.choose(obs)

    def log_returns(self, episode, reward, step):
        self.heard.append((reward, step))

    def end_episode(self, episode, obs):
        self.heard.append(obs)


class Rigged:
    """Chance that comes as it was written down: what is below a probability happens."""

    def __init__(self, *numbers):
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers)

    def choice(self, of):
        return of[next(self.numbers)]


def left(obs):
    return [product for product, may in enumerate(obs["action_mask"]) if may]


def as_asked(obs):
    """The first product that is of what the shopper came for, as they say."""
    fit = [p for p in left(obs) if shoppers.PRODUCTS[p]["topic"] == shoppers.TOPICS[obs["topic"]]]
    return (fit or left(obs))[0]


def seen(shown, opened):
    """An observation of somebody who came for the kitchen."""
    return {
        "action_mask": [int(p not in shown) for p in range(8)],
        "opened": [int(p in opened) for p in range(8)],
        "topic": 1,
    }


def test_a_look_is_credited_to_the_page_before_and_a_sale_ends_the_visit():
    shelf = iter([5, 2, 3, 0])
    client = Told(lambda obs: next(shelf))
    # Wants the kitchen and says so. Dislikes the rucksack and stays; opens the pan; does not buy it, and
    # opens the knife; buys that.
    chance = Rigged(1, 0.1, 0.5, 0.4, 0.79, 0.5, 0.1, 0.49)
    assert shoppers.visit(client, shoppers.Shopper(chance)) == pytest.approx(0.2 + 1.2)
    pages = [seen([], []), seen([5], []), seen([5, 2], []), (0.2, 1), seen([5, 2, 3], [2])]
    assert client.heard == [*pages, (1.2, 2), seen([5, 2, 3, 0], [2, 3])]


def test_a_shopper_who_likes_nothing_leaves():
    client = Told(as_asked)
    # Wants the garden, says the kitchen; opens neither page; stays after the first one.
    assert shoppers.visit(client, shoppers.Shopper(Rigged(0, 0.9, 1, 0.1, 0.4, 0.1, 0.3))) == 0
    assert client.heard == [seen([], []), seen([2], []), seen([2, 3], [])]


def test_recommending_what_was_asked_for_earns_twice_as_much_as_chance():
    rng = random.Random(0)
    by_chance, as_said = (
        mean(shoppers.visit(Told(choose), shoppers.Shopper(rng)) for _ in range(3000))
        for choose in (lambda obs: rng.choice(left(obs)), as_asked)
    )
    assert by_chance == pytest.approx(0.37, abs=0.04)
    assert as_said == pytest.approx(0.79, abs=0.06)


def test_what_the_shop_sees_is_in_its_space():
    visit = shoppers.Visit("desk")
    visit.shown, visit.opened = [7, 1], [7]
    found = visit.obs()
    assert {key: list(value) if key != "topic" else value for key, value in found.items()} == {
        "action_mask": [1, 0, 1, 1, 1, 1, 1, 0],
        "opened": [0, 0, 0, 0, 0, 0, 0, 1],
        "topic": 3,
    }
    space = shop_server.Shop.observation_space
    assert set(found) == set(space.spaces)
    assert [space[key].n for key in ("action_mask", "opened", "topic")] == [8, 8, 4]
    assert shop_server.Shop.action_space.n == len(shoppers.PRODUCTS) > shoppers.SHOP["pages"]


def test_the_page_has_a_drawing_of_each_product_and_all_that_its_script_looks_for():
    script, page = (EXAMPLES / "shop" / f"shop.{kind}" for kind in ("mjs", "html"))
    assert len(re.findall(r"^  '<(?:path|circle|ellipse|rect) .*>',$", script.read_text(), re.MULTILINE)) == 8
    used = set(re.findall(r'\bat\("(\w+)"\)', script.read_text()))
    assert used == set(re.findall(r'\bid="(\w+)"', page.read_text()))


def test_a_page_gets_a_token_that_only_asks_and_tells(tmp_path):
    path = tmp_path / "tokens"
    page, own = shop_server.token_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    scopes = {token.name: set(token.scopes) for token in Tokens(path)._tokens}
    assert scopes == {"page": {"act"}, "own": {"act", "submit", "weights", "admin"}}
    assert page != own


def test_the_shop_gives_its_page_and_nothing_else():
    pages = ThreadingHTTPServer(("127.0.0.1", 0), shop_server.Page)
    pages.told = {"address": "http://127.0.0.1:9900"}
    thread = threading.Thread(target=pages.serve_forever, args=(0.02,))
    thread.start()
    asked = [*shop_server.FILES, "/?over=http", "/shop.json", "/shop_server.py", "/../shop_server.py"]
    found = {}
    try:
        for path in asked:
            line = http.client.HTTPConnection(*pages.server_address, timeout=10)
            line.request("GET", path)
            answer = line.getresponse()
            found[path] = (answer.status, answer.headers.get_content_type(), answer.read())
            line.close()
    finally:
        pages.shutdown()
        thread.join(10)
        pages.server_close()
    assert found["/shop.json"] == (200, "application/json", b'{"address": "http://127.0.0.1:9900"}')
    assert found["/"] == found["/?over=http"]
    assert [kind for _, kind, _ in found.values()][:3] == ["text/html", "text/javascript", "text/javascript"]
    assert b"export class PolicyClient" in found["/steppe-client.mjs"][2]
    assert [status for status, _, _ in found.values()] == [200] * 5 + [404] * 2


@contextmanager
def program(name, *flags):
    """A program of the examples that is ended after a while."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent.parent / "src")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        watch = threading.Timer(90, process.kill)
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            process.kill()


def rest_of(process):
    """What it still prints, until it has ended by itself."""
    said = process.stdout.read()
    assert process.wait() == 0, said
    return said.splitlines()


def printed(name, *flags):
    with program(name, *flags) as process:
        return rest_of(process)


def port_of(line):
    found = re.fullmatch(r"-- Starting policy server at localhost:(\d+)\n?", line)
    assert found, line
    return found[1]


def test_cartpole_is_served_to_clients_of_both_kinds():
    with program("cartpole_server", "--run=PPO", "--port=0") as server:
        port = port_of(server.stdout.readline())
        local = printed("cartpole_client", "--inference-mode=local", f"--port={port}", "--episodes=4")
        assert all(re.fullmatch("|".join(BATCH_BY_BATCH), said) for said in local)
        assert local[:2] == list(BATCH_BY_BATCH[:2])
        totals = [float(said.split()[-1]) for said in local if said.startswith("Total")]
        assert len(totals) == 4
        assert local[-1] == f"Sending batch of {sum(totals):.0f} steps back to server."
        remote = printed("cartpole_client", "--inference-mode=remote", f"--port={port}", "--stop-at-reward=9")
        assert re.fullmatch(BATCH_BY_BATCH[2], remote[0])
        assert remote[1:] == ["Quitting as the reward is reached"]
        server.send_signal(signal.SIGINT)
        assert rest_of(server)[-1] == "-- The policy server has ended"


@pytest.mark.slow
@pytest.mark.parametrize(("run", "iterations"), [("PPO", 2), ("DQN", 4)])
def test_cartpole_is_learned_from_two_programs_at_once(run, iterations):
    flags = (f"--run={run}", "--port=0", f"--iterations={iterations}")
    with program("cartpole_server", *flags) as server:
        port = port_of(server.stdout.readline())
        clients = [
            program("cartpole_client", f"--inference-mode={mode}", f"--port={port}")
            for mode in ("local", "remote")
        ]
        with clients[0], clients[1]:
            said = rest_of(server)
    told = [re.fullmatch(r"(\d+) steps; mean reward \d+\.\d", line) for line in said]
    steps = [int(line[1]) for line in told if line]
    assert len(steps) == iterations, said
    assert steps == sorted(set(steps))


def serve(module, playing, *, players=2, **settings):
    """Run a server's ``main`` while ``playing(*begun, over)`` plays in a thread."""
    over, threads, failed = threading.Event(), [], []

    def play(*begun):
        try:
            playing(*begun, over)
        except Exception as error:
            if not over.is_set() or not isinstance(error, PolicyClientError):
                failed.append(error)
                _thread.interrupt_main()

    def begun(*told):
        threads.extend(threading.Thread(target=play, args=told) for _ in range(players))
        for thread in threads:
            thread.start()

    try:
        return module.main(begun=begun, write_run=False, seed=0, **settings)
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
        for error in failed:
            raise error


def games(port, most):
    """Play so many games of 12 steps; what each earned."""
    rng = np.random.default_rng(0)
    with PolicyClient(f"http://127.0.0.1:{port}", "remote", timeout=3) as client:
        return [unity3d_dummy_client.game(client, rng, 12) for _ in range(most)]


def test_a_goalie_and_strikers_play(capsys):
    def play(port, over):
        played.extend(games(port, 2))
        over.set()
        _thread.interrupt_main()

    played = []
    serve(unity3d_server, play, port=0, players=1)
    for game in played:
        assert game.keys() == {"Goalie", "Striker_1", "Striker_2"}
        assert all(0 <= earned <= 12 for earned in game.values())
        assert game["Striker_2"] <= 7  # sent off after 7 of 12 steps
    assert len(played) == 2
    first, last = capsys.readouterr().out.splitlines()
    assert port_of(first)
    assert last == "-- The policy server has ended"


@pytest.mark.slow
def test_a_goalie_and_strikers_learn_from_games_that_are_elsewhere(capsys):
    def play(port, over):
        while not over.is_set():
            games(port, 1)

    small = {"train_batch_size": 60, "minibatch_size": 30, "num_epochs": 1, "fcnet_hiddens": [4]}
    serve(unity3d_server, play, port=0, iterations=2, **small)
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(r"\d+ \{'Striker': \d+\.\d+, 'Goalie': \d+\.\d+\}", line)


def test_the_shapes_of_the_game_are_unitys():
    spaces = unity3d_server.PLAYERS
    assert spaces["Goalie"].shape == (738,)
    assert [part.shape for part in spaces["Striker_1"]] == [(231,), (63,)]
    assert unity3d_server.MOVES.nvec.tolist() == [3, 3, 3]
    rng = np.random.default_rng(0)
    for player, space in spaces.items():
        found = unity3d_dummy_client.sees(rng, player)
        assert space.contains(found if player == "Goalie" else tuple(found))


@pytest.mark.slow
def test_the_shop_learns_what_to_recommend():
    earned, seeds = [], itertools.count()

    def come(_, address, token, over):
        rng = random.Random(next(seeds))
        with PolicyClient(address, "remote", token=token, timeout=3) as client:
            while not over.is_set():
                earned.append(shoppers.visit(client, shoppers.Shopper(rng)))

    serve(shop_server, come, port=0, page_port=0, iterations=25)
    assert len(earned) > 1500  # 25 times, 256 pages were learned from; some may wait for the learner
    assert mean(earned[:300]) < 0.52  # chance: 0.37
    assert mean(earned[-500:]) > 0.58  # what was asked for: 0.79


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="no chromedriver: `make setup-serving` installs it"
)
@pytest.mark.parametrize("over", ["ws", "http"])
def test_somebody_shops_in_a_browser(over, tmp_path, capsys):
    def shop(origin, address, token, _):
        with Browser(tmp_path / "profile") as browser:
            browser.open(f"{origin}/?over={over}")
            browser.until("#state", "^Recommendation 1 of this visit, by version 0 of the policy")
            assert browser.until("#topics", r"\bgarden\nkitchen\ntrail\ndesk$")
            names = [browser.text("#name")]
            for page in (2, 3, 4):
                browser.click("#next")
                browser.until("#state", f"^Recommendation {page} ")
                names.append(browser.text("#name"))
                if page == 3:
                    browser.click("#look")
                    browser.until("#state", "recommendation 3 earned 0.2")
            assert len(set(names)) == 4  # nothing twice
            assert set(names) <= {product["name"] for product in shoppers.PRODUCTS}
            browser.click("#shelf li:first-child button")
            browser.until("#state", f"a look at the {names[0].lower()}: recommendation 1 earned 0.2")
            assert browser.until("#shelf", f"^{names[0]}\nLooked at\n{names[1]}\nLook closer\n{names[2]}")
            browser.click("#buy")
            browser.until("#state", f"^The {names[3].lower()} is yours: recommendation 4 earned 1")
            assert browser.said() == []

    small = {"train_batch_size": 4, "minibatch_size": 4, "num_envs_per_env_runner": 1}
    serve(shop_server, shop, players=1, port=0, page_port=0, iterations=1, num_epochs=1, **small)
    assert capsys.readouterr().out.splitlines()[-1] == "1 visits; the latest 100 earned 1.40 each"
