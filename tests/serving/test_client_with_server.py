"""The Python client against a real server: batches, weights that grow old, and a server that is killed."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from steppe.envs.driven import Acted, Began, Earned, Ended
from steppe.policies.actors import Actors
from steppe.policies.numpy_policy import Exported, NumpyPolicy
from steppe.serving.certificates import make_cert
from steppe.serving.client import PolicyClient, RefusedError, UnauthorizedError, UnreachableError
from steppe.serving.facts import Facts, PolicyFacts, Settings
from steppe.serving.gate import Gate
from steppe.serving.limits import Limits
from steppe.serving.log import Log, Tail
from steppe.serving.records import decode_write
from steppe.serving.security import Tokens, tls_context
from steppe.serving.server import Server
from steppe.serving.transport import Transport
from steppe.types import DEFAULT_POLICY, SINGLE_AGENT, SpacePair
from tests.serving.conforming import SCENARIOS

ROOT = Path(__file__).resolve().parent.parent.parent
TOLD = SCENARIOS["one agent"]["server"]
ARRAYS = {name: np.array(array, np.float32) for name, array in TOLD["arrays"].items()}
QUERYING, GENERATING = "Querying server for new policy weights.", "Generating new batch of experiences."


class Serving:
    """The server of the script of all clients, in a thread, with a log; ``facts`` are as of Facts."""

    def __init__(self, folder, *, version=0, port=0, tls=None, body_limit=1 << 20, **facts):
        self.folder, self.version, self.port, self.tls = folder, version, port, tls
        policy = NumpyPolicy(TOLD["network"], TOLD["exploration"])
        one = PolicyFacts(policy.observation, policy.action, TOLD["network"], TOLD["exploration"])
        pair = SpacePair(policy.observation, policy.action)
        self.facts = Facts({SINGLE_AGENT: pair}, {DEFAULT_POLICY: one}, {}, off_policy=True, **facts)
        self.policies, self.settings = {DEFAULT_POLICY: policy}, Settings(body_limit=body_limit)
        self.loop, self.begun = asyncio.new_event_loop(), threading.Event()

    async def main(self, abruptly):
        self.log = Log(self.folder, snapshot=lambda: self.server.snapshot())
        actors = Actors(self.policies, explore=True, rng=np.random.default_rng(0))
        self.server = Server(self.facts, actors, self.settings, log=self.log)
        self.server.recover()
        self.server.publish(DEFAULT_POLICY, Exported(self.version, ARRAYS))
        transport = Transport(self.server, Gate(Tokens(None, 1e9), Limits()), Limits(), tls=self.tls)
        self.port = await transport.listen("127.0.0.1", self.port)
        self.over, running = asyncio.Event(), asyncio.create_task(self.server.run())
        self.begun.set()
        await self.over.wait()
        if not abruptly:
            await self.server.drain(1.0)
        for _ in range(3):  # what was being accepted meanwhile would stay open in this process
            await transport.drain(0.0)
            await asyncio.sleep(0.005)
        running.cancel()
        self.log.close()

    def publish(self, version):
        done = threading.Event()

        def publish():
            self.server.publish(DEFAULT_POLICY, Exported(version, ARRAYS))
            done.set()

        self.loop.call_soon_threadsafe(publish)
        assert done.wait(5)

    def entries(self):
        """All that its log holds."""
        tail = Tail(self.folder)
        writes = [
            decode_write(record) for record in tail.read(self.log.synced, 1 << 30) if record[:1] != b"\xc3"
        ]
        return [entry for write in writes for entry in write.entries]


@contextmanager
def running(folder, *, abruptly=False, **options):
    it = Serving(folder, **options)
    thread = threading.Thread(target=it.loop.run_until_complete, args=(it.main(abruptly),))
    thread.start()
    try:
        assert it.begun.wait(5)
        yield it
    finally:
        it.loop.call_soon_threadsafe(it.over.set)
        thread.join(10)
        it.loop.close()


def client_of(it, mode="local", interval=60.0, **options):
    scheme = "http" if it.tls is None else "https"
    return PolicyClient(f"{scheme}://127.0.0.1:{it.port}", mode, interval, **{"timeout": 5, **options})


def drive(client, id, steps):
    """Some steps, each of which earns 1."""
    for _ in range(steps):
        assert client.get_action(id, [1.0, -1.0]) == 0
        client.log_returns(id, 1.0)


def test_batches_of_a_thousand_steps_say_what_they_do(tmp_path, caplog):
    caplog.set_level(logging.INFO, "steppe.client")
    with running(tmp_path) as it:
        with client_of(it) as client:
            id = client.start_episode()
            drive(client, id, 1001)
            assert client.get_action(id, [1.0, -1.0], full=True)[1] == (1001, 0.0, 0)
            client.end_episode(id, [0.0, 0.0])
        assert client.discarded == 0
    own = [record.message for record in caplog.records if record.name == "steppe.client"]
    sent = "Sending batch of {} steps back to server."
    assert own == [QUERYING, GENERATING, sent.format(1000), GENERATING, sent.format(2)]
    entries = it.entries()
    assert [type(entry) for entry in entries if isinstance(entry, Began | Ended)] == [Began, Ended]
    assert [entry.t for entry in entries if isinstance(entry, Acted)] == [*range(1002)]
    assert sum(entry.reward for entry in entries if isinstance(entry, Earned)) == 1001.0


def test_weights_are_fetched_at_the_interval_and_steps_sent(tmp_path, caplog):
    caplog.set_level(logging.INFO, "steppe.client")
    with running(tmp_path) as it, client_of(it, interval=0.0) as client:
        id = client.start_episode()
        versions = []
        for version in (0, 0, 3):
            it.publish(version)
            versions.append(client.get_action(id, [1.0, -1.0], full=True)[1].weights_version)
        assert versions == [0, 0, 3]
    own = [record.message for record in caplog.records if record.name == "steppe.client"]
    one = "Sending batch of 1 steps back to server."
    assert own == [QUERYING, GENERATING, one, QUERYING, GENERATING, one, QUERYING, GENERATING, one]
    assert [entry.version for entry in it.entries() if isinstance(entry, Acted)] == [0, 0, 3]


def test_rows_that_are_too_old_are_discarded_counted_and_said_and_episodes_go_on_as_others(
    tmp_path, caplog, monkeypatch
):
    with running(tmp_path, max_weight_lag=1) as it:
        with client_of(it) as client:
            known, fresh = client.start_episode("known"), client.start_episode()
            drive(client, known, 2)
            client._local.flush()
            drive(client, known, 3)
            drive(client, fresh, 4)
            client.log_returns(known, 50.0)
            it.publish(2)
            with monkeypatch.context() as patch:
                ask, asked = client._wire.ask, []
                patch.setattr(client._wire, "ask", lambda *args: asked.append(args[1]) or ask(*args))
                client.start_episode()
                client._local.flush()
            assert asked == ["report", "end", "end"], "of the third the server has not heard"
            assert client.discarded == 7
            client.log_returns(known, 9.0, step=3)
            drive(client, known, 1)
            assert client.get_action(known, [1.0, -1.0], full=True)[1][::2] == (6, 2)
            client.log_returns(known, 7.0, step=5)
            for id in (known, fresh):
                client.end_episode(id, [0.0, 0.0])
        assert client.discarded == 7
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("Discarded 7 steps, and what they may earn yet: ")
    assert "weights_too_old" in said
    by_episode = {}
    for entry in it.entries():
        by_episode.setdefault(entry.episode, []).append(entry)
    old = by_episode.pop("known")
    assert [type(entry) for entry in old] == [Began, Acted, Earned, Acted, Ended]
    assert old[-1].truncated
    third, before, after, new = sorted(by_episode.values(), key=len)
    assert [type(entry) for entry in third] == [Began]
    assert [type(entry) for entry in before] == [Began, Ended]
    assert [type(entry) for entry in after] == [Began, Ended], "nothing is earned by what was discarded"
    assert {before[1].truncated, after[1].truncated} == {True, False}
    assert [type(entry) for entry in new] == [Began, Acted, Earned, Acted, Earned, Ended]
    assert [(entry.reward, entry.t) for entry in new if isinstance(entry, Earned)] == [(1.0, None), (7.0, 0)]


def test_an_episode_that_another_client_ended_goes_on_as_another(tmp_path, caplog):
    with running(tmp_path) as it:
        with client_of(it) as client, client_of(it, "remote") as other:
            client.start_episode("e")
            drive(client, "e", 2)
            other.end_episode("e", None)
            client._local.flush()
            drive(client, "e", 3)
            client.end_episode("e", None)
        assert client.discarded == 2
    assert "Discarded 2 steps" in caplog.text
    assert sum(isinstance(entry, Acted) for entry in it.entries()) == 3


def test_steps_that_a_token_forbids_to_send_are_kept(tmp_path):
    with running(tmp_path) as it, client_of(it) as client:
        id = client.start_episode()
        drive(client, id, 2)
        ask = client._wire.ask

        def forbidden(*_, **__):
            raise UnauthorizedError("who?", 401, "unauthorized")

        client._wire.ask = forbidden
        with pytest.raises(
            UnauthorizedError, match=r"who\?. Unsent: report of 2 steps; the next call sends it"
        ):
            client._local.flush()
        client._wire.ask = ask
        client.end_episode(id, None)
        assert client.discarded == 0
    assert sum(isinstance(entry, Acted) for entry in it.entries()) == 2


def test_weights_that_grow_old_are_fetched_before_their_time(tmp_path):
    with running(tmp_path, max_weight_lag=1) as it, client_of(it) as client:
        id = client.start_episode()
        drive(client, id, 1)
        it.publish(1)
        client._local.flush()
        assert client.get_action(id, [1.0, -1.0], full=True)[1].weights_version == 1
        assert client.discarded == 0


def test_a_batch_is_no_longer_than_the_server_reads(tmp_path):
    with running(tmp_path, body_limit=40_000) as it, client_of(it) as client:
        id = client.start_episode()
        drive(client, id, 900)
        client.end_episode(id, None)
    assert sum(isinstance(entry, Acted) for entry in it.entries()) == 900


def test_a_server_that_only_acts_is_sent_nothing(tmp_path):
    with running(tmp_path, training=False) as it, client_of(it) as client:
        id = client.start_episode()
        drive(client, id, 5)
        client.log_action(id, [0.0, 0.0], 1)
        client.end_episode(id, None)
    assert it.entries() == []


def test_episodes_of_others_and_bad_observations_are_refused_in_local_mode(tmp_path):
    with running(tmp_path) as it, client_of(it) as client:
        with pytest.raises(RefusedError, match="in local mode episodes are its own"):
            client.get_action("somebody's", [1.0, 1.0])
        id = client.start_episode(training_enabled=False)
        with pytest.raises(RefusedError, match=r"expected finite numbers of shape \(2,\)"):
            client.get_action(id, [1.0])
        drive(client, id, 3)
        client.end_episode(id, None)
        with pytest.raises(RefusedError):
            client.end_episode(id, None)
    assert [entry.training for entry in it.entries() if isinstance(entry, Began)] == [False]


@pytest.mark.parametrize("mode", ["remote", "local"])
def test_a_server_that_is_replaced_under_a_client_loses_and_doubles_nothing(mode, tmp_path):
    """Three lives of a server at one port, over one log; the client does not stop for them."""
    stop, counts = threading.Event(), {"acts": 0, "earned": 0.0}

    def live(client):
        id = client.start_episode("e")
        while not stop.is_set():
            client.get_action(id, [1.0, -1.0])
            client.log_returns(id, 1.0)
            counts["acts"] += 1
        client.end_episode(id, None)

    port, client, thread = 0, None, None
    for life in range(3):
        with running(tmp_path, abruptly=True, port=port) as it:
            if client is None:
                client, port = client_of(it, mode, 0.01), it.port
                thread = threading.Thread(target=live, args=(client,))
                thread.start()
            before = counts["acts"]
            while counts["acts"] < before + 100:
                assert thread.is_alive()
                time.sleep(0.005)
            if life == 2:
                stop.set()
                thread.join(10)
                client.close()
    entries = it.entries()
    assert [entry.t for entry in entries if isinstance(entry, Acted)] == [*range(counts["acts"])]
    assert sum(entry.reward for entry in entries if isinstance(entry, Earned)) == counts["acts"]
    assert [type(entry) for entry in entries if isinstance(entry, Began | Ended)] == [Began, Ended]


def test_steps_that_nobody_took_are_kept_until_somebody_does(tmp_path):
    with running(tmp_path / "log") as it:
        client, port = client_of(it, timeout=0.2), it.port
        id = client.start_episode()
        drive(client, id, 3)
    with pytest.raises(UnreachableError, match="Unsent: report of 3 steps"):
        client.close()
    client.log_action(id, [0.5, 0.5], 1)
    with running(tmp_path / "log", port=port) as it, client:
        client.end_episode(id, None)
    entries = it.entries()
    assert [entry.t for entry in entries if isinstance(entry, Acted)] == [0, 1, 2, 3]
    assert isinstance(entries[-1], Ended)


def test_a_certificate_of_ones_own_is_trusted_where_it_is_given(tmp_path):
    cert, key = make_cert(tmp_path / "tls", ["127.0.0.1"])
    with running(tmp_path / "log", tls=tls_context(cert, key)) as it:
        with pytest.raises(UnreachableError, match=r"is not trusted .*: give its certificate, ca=PATH"):
            client_of(it, "remote").start_episode()
        for scheme in ("https", "wss"):
            address = f"{scheme}://127.0.0.1:{it.port}"
            with PolicyClient(address, "remote", ca=str(cert), timeout=5) as client:
                id = client.start_episode()
                drive(client, id, 2)
                client.end_episode(id, None)
    assert sum(isinstance(entry, Acted) for entry in it.entries()) == 4


ALONE = """
import sys
from importlib.util import find_spec
from steppe_client import PolicyClient, PolicyClientError

assert find_spec("steppe") is None and find_spec("numpy") is None
with PolicyClient(sys.argv[1], "remote", timeout=5) as client:
    id = client.start_episode()
    print(client.get_action(id, [1.0, -1.0]), client.get_action(id, [-1.0, 1.0]))
    client.log_returns(id, 2.5)
    client.end_episode(id, None)
try:
    PolicyClient(sys.argv[1])
except PolicyClientError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_file_is_a_package_that_installs_without_anything_else(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", ROOT / "clients" / "python"], check=True)
    with running(tmp_path / "log") as it:
        for scheme in ("http", "ws"):
            command = [python, "-I", "-c", ALONE, f"{scheme}://127.0.0.1:{it.port}"]
            said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
            assert said.splitlines() == [
                "0 1",
                "inference_mode='local' needs numpy: pip install numpy, or use 'remote'",
            ]
        subprocess.run([python, "-m", "pip", "install", "-q", "numpy"], check=True)
        local = ALONE.replace('"remote"', '"local"').replace(' and find_spec("numpy") is None', "")
        command = [python, "-I", "-c", local, f"http://127.0.0.1:{it.port}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert said == "0 1\n"
    assert sum(entry.reward for entry in it.entries() if isinstance(entry, Earned)) == 7.5


def test_importing_the_client_loads_neither_the_rest_of_steppe_nor_numpy():
    program = "import sys; before = set(sys.modules); import steppe.serving.client; "
    program += (
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith(('steppe', 'numpy'))))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["steppe", "steppe.serving", "steppe.serving.client"]
