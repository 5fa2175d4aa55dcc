"""What clients were acknowledged reaches the learner: once, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from websockets.sync.client import connect

import steppe
from steppe import checkpoint
from steppe.errors import ConfigError, IdleError
from steppe.runners.policies import PolicyMapping
from steppe.serving.certificates import make_cert
from steppe.serving.env import PolicyServer
from steppe.serving.process import bound
from steppe.serving.security import make_token_file
from steppe.spaces import from_description
from steppe.types import Weights
from tests.serving.clients import Asking

BOX = {"kind": "Box", "shape": [2], "dtype": "float32", "low": -100.0, "high": 100.0}
DISCRETE = {"kind": "Discrete", "n": 3, "start": 0}


class Stub:
    """What is served."""

    observation_space = from_description(BOX)
    action_space = from_description(DISCRETE)


class Leaning:
    """Logits are the version times (obs[0], obs[1], 0): as an exported policy would have them."""

    observation = acting = from_description(BOX)
    action = from_description(DISCRETE)

    def initial_state(self, n):
        return None

    def export(self, weights):
        network = {
            "kind": "actor",
            "observation": BOX,
            "action": DISCRETE,
            "distribution": {"squash": False, "normalize": True, "clip": True, "autoregressive": False},
            "normalizer": False,
            "critic_only": [],
            "encoder": {"kind": "flat"},
            "mlp": {"sizes": [2, 3], "activation": "tanh"},
            "free_log_std": False,
            "masked": False,
            "bounded_log_std": 0,
        }
        matrix = float(weights.version) * np.array([[1, 0, 0], [0, 1, 0]], np.float32)
        arrays = {"mlp.weights.0": matrix, "mlp.biases.0": np.zeros(3, np.float32)}
        return {"network": network, "arrays": arrays, "exploration": {"kind": "sampled"}}


class Run:
    """A trainer's side without a learner: rows are polled by the test."""

    def __init__(
        self, server, *, env=Stub, policies=None, mapping=None, whole=False, explore=False, **settings
    ):
        policies = policies or {"default_policy": Leaning()}
        config = steppe.PPOConfig(env=env, num_envs_per_env_runner=2, **settings)
        self.decider = None
        self.env = server.build(env, config=config, decides=self._note)
        self.explore, self.weights = explore, Weights(1, np.zeros(0, np.float32))
        asked = PolicyMapping(mapping, list(policies), SimpleNamespace(worker_index=0, in_evaluation=False))
        self.decider.begin(policies, asked, np.random.default_rng(), whole=False, evaluation=False)
        self.publish(1)

    def _note(self, decider):
        self.decider = decider

    def publish(self, version):
        weights = {id: Weights(version, np.zeros(0, np.float32)) for id in self.decider._policies}
        self.decider.set_weights(weights, self.explore)

    def rows(self, seconds=10.0, *, until=lambda rows: False):
        """What comes, as (env, episode, t, obs, reward, end, version), until that is enough."""
        found, end = [], time.monotonic() + seconds
        who = {info.slot: info for step in self.env.pending() for info in step.opened}
        while not until(found) and time.monotonic() < end:
            for step in self.env.poll(0.2):
                who |= {info.slot: info for info in step.opened}
                decided = iter([] if step.decision is None else step.decision.version.tolist())
                for i, slot in enumerate(step.slot.tolist()):
                    final = "T" * bool(step.terminated[i]) + "C" * bool(step.truncated[i])
                    version = None if final else next(decided)
                    info = who[slot]
                    row = info.env, info.episode, int(step.t[i]), step.obs[i].tolist(), float(step.reward[i])
                    found.append((*row, final, version))
        return found


@pytest.fixture
def running():
    with contextlib.ExitStack() as ends:

        def run(server, **how):
            made = Run(server, **how)
            ends.callback(made.env.close)
            return made

        yield run


@pytest.fixture
def asking():
    with contextlib.ExitStack() as ends:
        yield lambda *about: ends.enter_context(Asking(*about))


def ended(n):
    return lambda rows: sum(bool(row[5]) for row in rows) >= n


def served(run):
    """Start to serve, as the first poll does."""
    run.env.poll(0)
    return run.env._server.address


def test_rows_are_what_the_client_did(running, asking):
    run = running(PolicyServer(port=0))
    client = asking(served(run))
    _, actions = client.play([[3, 1], [1, 3], [-1, -2]], [0.5, -1.0, 2.0])
    assert actions == [0, 1, 2]
    rows = run.rows(until=ended(1))
    assert [row[2:] for row in rows] == [
        (0, [3, 1], 0.0, "", 1),
        (1, [1, 3], 0.5, "", 1),
        (2, [-1, -2], -1.0, "", 1),
        (3, [-1, -2], 2.0, "T", None),
    ]
    assert run.env.env_steps == 3
    assert run.env.health() == {}
    status, told = client.ask("POST", "/v1/act", b'{"client": "c", "epoch": 1, "seq": 99}')
    assert (status, told["code"]) == (400, "malformed")
    until = time.monotonic() + 5
    while not run.env.health() and time.monotonic() < until:
        time.sleep(0.05)
    assert run.env.health() == {"refused_malformed": 1}


def play_all(address, name, episodes, length, acknowledged, repeated):
    with Asking(address, name) as client:
        for episode in range(episodes):
            first = hash((name, episode)) % 1_000_003
            rewards = [float(first * 100 + i) for i in range(length)]
            client.play([[1.0, 0.0]] * length, rewards)
            acknowledged += rewards
        repeated.append(client.repeated)


def kill_and_count(run, *, clients, episodes, length, kills, pause):
    """The server process is killed so often while clients play; what was acknowledged, and what came."""
    address, acknowledged, repeated = served(run), [], []
    threads = [
        threading.Thread(target=play_all, args=(address, f"c{i}", episodes, length, acknowledged, repeated))
        for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    rows, killed, known = [], 0, 0
    while any(thread.is_alive() for thread in threads):
        rows += run.rows(pause, until=lambda rows: False)
        if killed < kills and len(acknowledged) > known:
            known = len(acknowledged)
            with contextlib.suppress(ProcessLookupError):  # just between two
                os.kill(run.env._process.pid, signal.SIGKILL)
                killed += 1
    for thread in threads:
        thread.join()
    missing = clients * episodes - sum(bool(row[5]) for row in rows)
    return acknowledged, rows + run.rows(10, until=ended(missing)), repeated


def test_a_server_that_is_killed_loses_nothing_and_doubles_nothing(running):
    run = running(PolicyServer(port=0, held_rows=3))
    acknowledged, rows, repeated = kill_and_count(run, clients=3, episodes=60, length=5, kills=3, pause=0.3)
    assert run.env._process.restarts >= 2
    assert sum(repeated) > 0
    assert len(acknowledged) == 3 * 60 * 5
    assert Counter(row[4] for row in rows if row[2] > 0) == Counter(acknowledged)
    assert all(row[2] <= 5 for row in rows)
    assert run.env.health()["restarts"] == run.env._process.restarts


@pytest.mark.slow
def test_two_hundred_kills(running):
    run = running(PolicyServer(port=0))
    acknowledged, rows, _ = kill_and_count(run, clients=8, episodes=2_700, length=4, kills=200, pause=0.6)
    assert run.env._process.restarts >= 190
    assert Counter(row[4] for row in rows if row[2] > 0) == Counter(acknowledged)


def test_a_run_that_is_restored_reads_the_log_from_where_it_was(running, asking, tmp_path):
    log = tmp_path / "log"
    run = running(PolicyServer(port=0, log_dir=log))
    client = asking(served(run))
    client.play([[1, 0], [2, 0]], [1.0, 2.0])
    early = run.rows(until=ended(1))
    client.say("start", episode_id="open")
    client.say("act", episode_id="open", obs=[5, 5])
    run.rows(0.5)
    state = run.env.get_state()
    client.say("act", episode_id="open", obs=[6, 6], reward=7.0)
    client.say("end", episode_id="open", obs=[8, 8], reward=9.0, truncated=True)
    client.play([[3, 0]], [4.0])
    late = run.rows(until=ended(2))
    assert [row[4] for row in early if row[2] > 0] == [1.0, 2.0]
    run.env.close()  # and all that came after the state is forgotten

    again = running(PolicyServer(port=0, log_dir=log))
    assert again.env.set_state(state) == []
    again.publish(1)
    assert sorted(again.rows(until=ended(2))) == sorted(late)
    assert sorted(row[4] for row in late if row[2] > 0) == [4.0, 7.0, 9.0]
    assert again.env.env_steps == 5
    assert again.env.set_state(state) == []  # a second time, while it serves
    assert sorted(again.rows(until=ended(2))) == sorted(late)
    assert asking(again.env._server.address, "d").play([[1, 1]], [1.0])


@pytest.mark.slow
def test_a_run_whose_log_is_gone_says_so_and_goes_on(running, asking, tmp_path):
    run = running(PolicyServer(port=0, log_dir=tmp_path / "one"))
    client = asking(served(run))
    client.say("start", episode_id="open")
    for i in range(4):
        client.say("act", episode_id="open", obs=[i, 0])
    run.rows(0.5)
    state = run.env.get_state()
    run.env.close()
    other = running(PolicyServer(port=0, log_dir=tmp_path / "two"))
    (note,) = other.env.set_state(state)
    assert "another one than the run's" in note
    other.publish(1)
    asking(other.env._server.address, "d").play([[1, 1]], [1.0])
    assert [row[4] for row in other.rows(until=ended(1))] == [0.0, 1.0]


@pytest.mark.slow
def test_a_new_run_begins_behind_what_is_in_its_log(running, asking, tmp_path):
    run = running(PolicyServer(port=0, log_dir=tmp_path))
    asking(served(run)).play([[1, 1]], [1.0])
    run.env.close()
    run = running(PolicyServer(port=0, log_dir=tmp_path))
    asking(served(run), "d").play([[1, 1]], [2.0])
    assert [row[4] for row in run.rows(until=ended(1))] == [0.0, 2.0]
    assert run.rows(0.3) == []


def test_only_what_two_checkpoints_are_past_is_let_go(running, asking, monkeypatch):
    run, told = running(PolicyServer(port=0)), []
    client = asking(served(run))
    monkeypatch.setattr(run.env._process, "consumed", lambda *positions: told.append(positions))

    def play():
        told.clear()
        client.play([[1, 1]], [1.0])
        run.rows(until=ended(1))
        return told[-1]

    position, saved = play()
    assert position == saved > 0  # nobody can go back
    first = run.env.get_state()["position"]
    assert play()[1] == first
    second = run.env.get_state()["position"]
    assert play()[1] == first < second
    run.env.get_state()
    assert play()[1] == second
    monkeypatch.setattr("steppe.serving.env._KEPT_BYTES", 10)
    position, saved = play()
    assert saved == position - 10  # a bound for those who save once and never again


def test_agents_are_mapped_by_the_run_and_an_error_there_ends_it(running, asking):
    asked = []

    def mapping(agent_id, episode):
        asked.append((agent_id, episode.number))
        if agent_id == "bad":
            raise RuntimeError("nobody")
        return "b" if agent_id.startswith("b") else "a"

    crowd = SimpleNamespace(
        observation_spaces=dict.fromkeys(("a1", "b1"), Stub.observation_space),
        action_spaces=dict.fromkeys(("a1", "b1"), Stub.action_space),
    )
    both = {"a": Leaning(), "b": Leaning()}
    server = PolicyServer(port=0)
    run = running(server, env=crowd, policies=both, mapping=mapping, policy_mapping_fn=mapping)
    client = asking(served(run))
    client.say("start", episode_id="e")
    assert client.say("act", episode_id="e", obs={"a1": [1, 0], "b1": [0, 1]})["action"] == {"a1": 0, "b1": 1}
    client.say("act", episode_id="e", obs={"b2": [0, 1]}, reward={"a1": 3.0})
    assert asked == [("a1", 0), ("b1", 0), ("b2", 0)]
    client.say("log_returns", episode_id="e", reward={"b1": 2.0}, dones={"b1": True})
    client.say("end", episode_id="e", obs=None)
    rows = run.rows(until=ended(3))
    assert Counter(row[4] for row in rows) == {0.0: 4, 3.0: 1, 2.0: 1}
    client.say("start", episode_id="f")
    client.send("act", episode_id="f", obs={"bad": [0, 1]})
    with pytest.raises(RuntimeError, match="nobody"):
        run.rows(5)


def test_waiting_is_said_ends_in_time_and_can_be_interrupted(running, monkeypatch, caplog):
    monkeypatch.setattr("steppe.envs.driven._SAY", 0.1)
    run = running(PolicyServer(port=0, idle_timeout=0.6))
    served(run)
    with pytest.raises(IdleError, match="nothing came for 0"):
        run.env.poll()
    assert f"waiting for clients at {run.env._server.address}" in caplog.messages
    run.env.interrupt()
    with pytest.raises(IdleError, match="interrupted"):
        run.env.poll()


def test_closing_ends_the_process_and_takes_the_temporary_log_away(running):
    run = running(PolicyServer(port=0))
    served(run)
    pid, folder = run.env._process.pid, run.env._folder
    assert (folder / "log.json").exists()
    began = time.monotonic()
    run.env.close()
    run.env.close()
    assert time.monotonic() - began < 5
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    never = running(PolicyServer(port=0))
    never.env.close()  # nobody had polled it


ORPHAN = """
import sys, time
from tests.serving.test_policy_server import PolicyServer, Run
run = Run(PolicyServer(port=0))
run.env.poll(0)
print(run.env._process.pid, flush=True)
time.sleep(60)
"""


def gone_within(seconds, pid):
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_the_process_ends_when_its_trainer_does():
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, cwd=root) as trainer:
        pid = int(trainer.stdout.readline())
        os.kill(pid, 0)
        trainer.kill()
        assert gone_within(5, pid)


@pytest.mark.slow
def test_a_server_process_that_is_told_to_end_is_replaced_when_it_has_answered(running, asking):
    run = running(PolicyServer(port=0))
    client = asking(served(run))
    client.play([[1, 1]], [1.0])
    pid = run.env._process.pid
    os.kill(pid, signal.SIGTERM)
    client.play([[1, 1]], [2.0])
    assert [row[4] for row in run.rows(until=ended(2))] == [0.0, 1.0, 0.0, 2.0]
    assert gone_within(5, pid)


def test_messages_over_a_websocket(running):
    run = running(PolicyServer(port=0))
    with connect(f"ws://{served(run).partition('//')[2]}/v1/socket") as line:
        for seq, message in enumerate(
            ({"verb": "start", "episode_id": "e"}, {"verb": "act", "episode_id": "e", "obs": [0, 1]}), start=1
        ):
            line.send(json.dumps({"id": seq, "client": "c", "epoch": 1, "seq": seq, **message}))
            told = json.loads(line.recv(timeout=10))
            assert (told["id"], told["status"]) == (seq, 200)
    assert told["action"] == 1


def test_clients_are_let_in_with_the_restored_weights_only(running, asking, tmp_path):
    run = running(PolicyServer(port=0, log_dir=tmp_path))
    asking(served(run)).play([[1, 1]], [1.0])
    run.rows(until=ended(1))
    state = run.env.get_state()
    run.env.close()
    run = running(PolicyServer(port=0, log_dir=tmp_path))
    run.env.set_state(state)
    waiting = socket.create_connection(run.env._listener.getsockname())
    with waiting:
        waiting.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        waiting.settimeout(0.5)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        run.publish(7)
        assert waiting.recv(12) == b"HTTP/1.1 200"
    client = asking(run.env.address, "d")
    client.say("start", episode_id="f")
    assert client.say("act", episode_id="f", obs=[1, 0], full=True)["weights_version"] == 7
    assert [one["version"] for one in client.ask("GET", "/v1/versions")[1]["versions"]] == [7]


@pytest.mark.slow
def test_what_froze_outlives_the_server_process(running, asking):
    run = running(PolicyServer(port=0))
    client = asking(served(run))
    for version in range(2, 12):
        run.publish(version)

    def acting():
        return client.ask("GET", "/v1/versions")[1]["acting"]

    def kill():
        pid = run.env._process.pid
        os.kill(pid, signal.SIGKILL)
        assert gone_within(5, pid)

    until(lambda: acting() == 11)
    client.say("rollback", version=5)
    assert acting() == 5
    kill()
    assert acting() == 5
    for version in range(12, 25):  # until it would be forgotten
        run.publish(version)
    kill()
    assert acting() == 5
    client.say("release")
    assert acting() == 24
    kill()
    assert acting() == 24
    assert [one["version"] for one in client.ask("GET", "/v1/versions")[1]["versions"]] == [*range(17, 25)]


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_tokens_and_tls(running, asking, tmp_path):
    cert, key = make_cert(tmp_path / "tls", ["127.0.0.1"])
    make_token_file(tmp_path / "tokens.txt")
    token = (tmp_path / "tokens.txt").read_text().split()[0]
    with pytest.raises(ConfigError, match="needs a token"):
        PolicyServer("0.0.0.0", 0, tls_cert=cert, tls_key=key)
    server = PolicyServer(port=0, token_file=tmp_path / "tokens.txt", tls_cert=cert, tls_key=key)
    run = running(server)
    address = served(run)
    assert address.startswith("https://127.0.0.1:")
    asking(address, "c", 20.0, token, None, cert).play([[1, 1]], [2.0])
    assert [row[4] for row in run.rows(until=ended(1))] == [0.0, 2.0]
    status, told = asking(address, "d", 20.0, None, None, cert).ask("POST", "/v1/start", b"{}")
    assert (status, told["code"]) == (401, "unauthorized")
    pid = run.env._process.pid
    os.kill(pid, signal.SIGHUP)  # the tokens are read anew, and nobody dies
    asking(address, "e", 20.0, token, None, cert).play([[1, 1]], [3.0])
    assert run.env._process.pid == pid


def test_what_the_server_process_cannot_begin_with_ends_the_run(running, tmp_path):
    (tmp_path / "log.json").write_text("{}")
    run = running(PolicyServer(port=0, log_dir=tmp_path))
    with pytest.raises(ConfigError):
        run.env.poll(0)


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ((), "http://127.0.0.1:9900"),
        (("127.0.0.1:80",), "http://127.0.0.1:80"),
        (("localhost", 7), "http://localhost:7"),
        (("http://127.0.0.1:0/",), "http://127.0.0.1:0"),
        (("[::1]:81",), "http://[::1]:81"),
    ],
)
def test_addresses(arguments, address):
    assert PolicyServer(*arguments).address == address
    assert repr(PolicyServer(*arguments)) == f"PolicyServer({address!r})"


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (("a:b:c",), {}, "write '127.0.0.1:9900'"),
        (("127.0.0.1:80", 81), {}, "write '127.0.0.1:9900'"),
        ((), {"port": 70_000}, "from 0 to 65535"),
        ((), {"tls_cert": "x"}, "give both"),
        ((), {"episode_ttl": 0}, "more than 0"),
        ((), {"token_file": "nowhere"}, "nowhere"),
        (("0.0.0.0",), {}, "needs a token"),
    ],
)
def test_settings_that_make_no_server(arguments, settings, said):
    with pytest.raises(ConfigError, match=said):
        PolicyServer(*arguments, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"env": Stub},
        {"env": "spaces.json"},
        {"observation_space": Stub.observation_space, "action_space": Stub.action_space},
    ],
)
def test_that_a_stub_cannot_be_evaluated_is_said_before_anything_is_learned(settings):
    config = steppe.PPOConfig(input=PolicyServer(port=0), evaluation_interval=2, write_run=False, **settings)
    with pytest.raises(ConfigError, match="nothing can be evaluated on a stub, which has no step"):
        config.build()


def test_a_server_is_made_and_not_named():
    with pytest.raises(ConfigError, match="must be a PolicyServer, or a function"):
        steppe.PPOConfig(env=Stub, input=PolicyServer)


CRASHING = """
import sys
from steppe import checkpoint
from tests.serving.test_policy_server import PolicyServer, Run
log, port = sys.argv[1], int(sys.argv[2])
run = Run(PolicyServer(port=port, log_dir=log + "/log", held_rows=2))
seen = []
if len(sys.argv) > 3:
    owners, meta = checkpoint.load(sys.argv[3])
    assert run.env.set_state(owners["env"]) == []
    run.publish(1)
    seen = meta["seen"]
number = len(sys.argv) > 3 and int(sys.argv[3].rpartition("-")[2])
while True:
    seen += [row[4] for row in run.rows(0.2) if row[2] > 0]
    number += 1
    print(checkpoint.save(f"{log}/c-{number}", {"env": run.env.get_state()}, {"seen": seen}), flush=True)
"""


@pytest.mark.slow
def test_a_trainer_that_is_killed_goes_on_with_nothing_lost_or_doubled(tmp_path):
    """Each trainer is killed at some moment; the next one begins with the newest checkpoint."""
    root, acknowledged, repeated = Path(__file__).parents[2], [], []
    with bound("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    clients = [
        threading.Thread(target=play_all, args=(address, f"c{i}", 150, 5, acknowledged, repeated))
        for i in range(3)
    ]
    for client in clients:
        client.start()
    newest, lives = [], 0
    while any(client.is_alive() for client in clients) or lives < 2:
        command = [sys.executable, "-c", CRASHING, str(tmp_path), str(port), *newest]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as trainer:
            lives, ends = lives + 1, time.monotonic() + 6 + lives / 7
            while time.monotonic() < ends and (line := trainer.stdout.readline()):
                newest = [line.strip()]
            trainer.kill()
    for client in clients:
        client.join()
    again, (_, meta) = Run(PolicyServer(port=port, log_dir=tmp_path / "log")), checkpoint.load(newest[0])
    again.env.set_state(checkpoint.load(newest[0])[0]["env"])
    seen = [*meta["seen"], *(row[4] for row in again.rows(3) if row[2] > 0)]
    again.env.close()
    assert lives >= 2
    assert Counter(seen) == Counter(acknowledged)


def test_the_server_process_loads_neither_jax_nor_gymnasium_nor_ray():
    program = "import sys, steppe.serving.child as c; print(*{'jax', 'gymnasium', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
