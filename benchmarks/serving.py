"""A policy server under load, under attack, killed, and told nonsense; and what clients learn from it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from gymnasium import spaces

import steppe
from benchmarks import serving_core, serving_players
from benchmarks.processes import ROOT, ceiling
from benchmarks.report import Row
from benchmarks.serving_load import FIRST_SEQ
from steppe.envs.driven import Acted, Earned
from steppe.serving import child
from steppe.serving.env import PolicyServer
from steppe.serving.log import Log, Tail
from steppe.serving.records import decode_write
from steppe.serving.server import Server

ASKED = os.environ.get("BENCH_ROWS", "").split()
"""Keys of :data:`ROWS`; none: all of them."""
QUICK = "BENCH_QUICK" in os.environ
"""Shorter, for a look; the figures are no measurements then."""
ALL_SCOPES = "act,submit,weights,admin"


class Stub:
    """What the 8-64-4 policy observes and chooses from; nothing is stepped."""

    observation_space, action_space = spaces.Box(-1, 1, (8,), np.float32), spaces.Discrete(4)


@final
class Trainer:
    """A run whose env is a policy server, and instead of a learner somebody who takes the rows.

    Attributes:
        rows: that were taken.
        earned: with the last step of episodes that came to their own end, and how often.
        most: rows a second that are taken; None: all.
        token: with all scopes.
        port: of the server.
    """

    def __init__(self, **options: Any) -> None:
        self._ends = contextlib.ExitStack()
        folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory()))
        self.token, self.log = secrets.token_hex(16), folder / "log"
        tokens = folder / "tokens"
        tokens.touch(0o600)
        tokens.write_text(f"{self.token} {ALL_SCOPES} load\n")
        server = PolicyServer(port=0, token_file=tokens, log_dir=self.log, **options)
        config = steppe.PPOConfig(env=Stub, input=server, fcnet_hiddens=[64], seed=0, write_run=False)
        self.algo = self._ends.enter_context(config.build())
        self.port = int(server.address.rpartition(":")[2])
        self.env: Any = self.algo.runner.env
        self.rows, self.earned, self._over = 0, Counter[float](), False
        self.most: float | None = None
        self.env.poll(0.0)
        self._thread = threading.Thread(target=self._take, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        self._ends.close()

    def _take(self) -> None:
        began, rows = time.monotonic(), 0
        while not self._over:
            if self.most is None:
                began, rows = time.monotonic(), self.rows
            elif self.rows - rows > self.most * (time.monotonic() - began):
                time.sleep(0.01)
                continue
            for step in self.env.poll(0.1):
                self.rows += len(step.slot)
                self.earned.update(step.reward[step.terminated].tolist())

    @property
    def pid(self) -> int:
        """Of the server process."""
        return int(self.env._process.pid)


def load(module: str = "serving_load", **what: Any) -> subprocess.Popen[str]:
    """Clients in a process of their own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", json.dumps(what)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def loaded(trainer: Trainer, **what: Any) -> dict[str, Any]:
    """What clients in a process of their own saw."""
    with load(port=trainer.port, token=trainer.token, **what) as process:
        output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@contextlib.contextmanager
def beside(process: subprocess.Popen[str]) -> Iterator[None]:
    """A load that goes on until the end of the block; it has begun when it has said so."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def resident(pid: int | str) -> float:
    """Megabytes that a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    [size] = [line.split()[1] for line in status if line.startswith("VmRSS")]
    return int(size) * 1024 / 1e6


def actions() -> Iterator[Row]:
    """Actions of 64 clients."""
    seconds = 3 if QUICK else 20
    for way, websocket, least, most in (("HTTP", False, 7_000, 20), ("WebSocket", True, 20_000, 10)):
        with Trainer() as trainer:
            found = loaded(trainer, mode="ask", websocket=websocket, seconds=seconds)
        name = f"{way}: actions of 64 clients"
        yield floor(name, "/s", found["rate"], least)
        yield ceiling(f"{name}, median", "ms", found["p50"], most)
        yield ceiling(f"{name}, 99th percentile", "ms", found["p99"], most)
        yield none(f"{name} that were refused or lost", sum(found["refused"].values()) + found["lost"])


def idle() -> Iterator[Row]:
    """The same with connections that do nothing."""
    repeats, seconds = (1, 2) if QUICK else (5, 8)
    alone, crowded = list[float](), list[float]()
    with Trainer() as trainer:
        loaded(trainer, mode="ask", seconds=seconds)
        for _ in range(repeats):
            alone.append(loaded(trainer, mode="ask", seconds=seconds)["rate"])
            base = resident(trainer.pid)
            with beside(load(port=trainer.port, token=trainer.token, mode="hold")):
                crowded.append(loaded(trainer, mode="ask", seconds=seconds)["rate"])
                grown = resident(trainer.pid) - base
    slower = 100 * (1 - statistics.median(crowded) / statistics.median(alone))
    name = "2,000 idle connections"
    yield ceiling(f"{name}: HTTP actions of 64 clients are slower by", "%", slower, 10)
    yield ceiling(f"{name}: memory of the server grows by", "MB", grown, 80)


def attacked() -> Iterator[Row]:
    """A good client beside bad ones."""
    seconds = 5 if QUICK else 60
    with Trainer() as trainer:
        good = {"mode": "ask", "clients": 1}
        loaded(trainer, **good, seconds=2)
        baseline = loaded(trainer, **good, seconds=min(seconds, 20))
        bad = load(port=trainer.port, token=trainer.token, mode="attack", seconds=seconds + 3)
        time.sleep(1)
        found = loaded(trainer, **good, seconds=seconds)
        output, _ = bad.communicate()
    print(f"# alone {baseline}, attacked {found}, attack {output.strip()}", file=sys.stderr)
    name = "500 slow requests, 1,000 wrong tokens/s, 100 large bodies"
    yield none(f"{name}: failures of a good client", sum(found["refused"].values()) + found["lost"])
    yield Row(
        name=f"{name}: its 99th percentile, by alone",
        unit="ms",
        value=found["p99"],
        peer=baseline["p99"],
        bar=2.0,
        at_least=False,
    )


def slow() -> Iterator[Row]:
    """A learner that takes a tenth of what comes."""
    seconds, warm = (10, 5) if QUICK else (300, 30)
    with Trainer(queue_bytes=1 << 20 if QUICK else 64 << 20) as trainer:
        what = {"port": trainer.port, "token": trainer.token, "mode": "ask", "warm": 0.0}
        clients = load(**what, seconds=warm + seconds)
        time.sleep(warm / 2)
        rows, began = trainer.rows, time.monotonic()
        time.sleep(warm / 2)
        trainer.most = (trainer.rows - rows) / (time.monotonic() - began) / 10
        sizes = []
        for _ in range(seconds):
            sizes.append((resident(trainer.pid), resident("self")))
            time.sleep(1.0)
        trainer.most = None
        output, _ = clients.communicate()
        found = json.loads(output.splitlines()[-1])
        expected = found["acknowledged"] + 64
        wait(lambda: trainer.rows >= expected, 60)
    slopes = 60 * np.polyfit(range(len(sizes)), np.array(sizes), 1)[0]
    print(f"# slow learner: {found}, {sizes[0]} MB to {sizes[-1]} MB", file=sys.stderr)
    name = "a learner that is 10 times too slow"
    for who, slope in zip(("server", "trainer"), slopes, strict=True):
        yield ceiling(f"{name}: memory of the {who} grows by", "MB/min", float(slope), 1.0)
    yield none(f"{name}: acknowledged rows that were lost, or came twice", abs(expected - trainer.rows))
    yield floor(f"{name}: requests that had to wait", "", found["refused"].get("429", 0), 1)


def killed() -> Iterator[Row]:
    """A server that is killed again and again."""
    kills, clients, batches = (5, 8, 200) if QUICK else (200, 8, 8_000)
    chance = random.Random(0)
    with Trainer() as trainer:
        what = {"mode": "number", "clients": clients, "batches": batches}
        process = load(port=trainer.port, token=trainer.token, **what)
        each = clients * batches / (kills + 1)
        for kill in range(kills):
            due = (kill + chance.uniform(0.5, 1.0)) * each
            wait(lambda due=due: len(trainer.earned) > due, 120)
            time.sleep(chance.uniform(0.0, 0.02))
            pid = trainer.pid
            os.kill(pid, signal.SIGKILL)
            wait(lambda pid=pid: trainer.pid != pid, 60)
        output, _ = process.communicate(timeout=600)
        found = json.loads(output.splitlines()[-1])
        expected = {
            float((client + 1) * 10**7 + FIRST_SEQ + batch)
            for client in range(clients)
            for batch in range(batches)
        }
        wait(lambda: len(trainer.earned) >= len(expected), 20)
        logged = _rewards(trainer.log)
        killed = trainer.env.health().get("restarts", 0)
    print(f"# killed: {found}", file=sys.stderr)
    name = f"{kills} kills of the server, {clients} clients, {clients * batches:,} batches"
    yield floor(f"{name}: servers that took its place", "", killed, kills)
    yield none(f"{name}: refused", sum(found["refused"].values()))
    for where, seen in (("log", logged), ("learner", trainer.earned)):
        yield none(f"{name}: lost on the way to the {where}", len(expected - seen.keys()))
        doubled = sum(seen.values()) - len(expected & seen.keys())
        yield none(f"{name}: in the {where} and not sent, or twice", doubled)


def mutated() -> Iterator[Row]:
    """Requests that are nearly right, on sockets: those that are accepted have to be right after all."""
    count = 2_000 if QUICK else 200_000
    approved, logged, bystander = set[tuple[Any, ...]](), list[tuple[Any, ...]](), Counter[str]()
    with _standard_error() as said, Trainer(episode_ttl=5.0) as trainer:
        tail, outputs = Tail(trainer.log), list[str]()
        process = load("serving_mutants", port=trainer.port, token=trainer.token, seed=0, count=count)
        reader = threading.Thread(target=lambda: outputs.append(process.communicate()[0]))
        reader.start()
        while reader.is_alive():
            found = loaded(trainer, mode="ask", clients=2, seconds=2)
            bystander.update(asked=found["acknowledged"], lost=found["lost"], **found["refused"])
            logged += _rows(tail, trainer.env._synced)
        logged += _rows(tail, trainer.env._synced)
        tail.close()
        told = json.loads(outputs[0].splitlines()[-1])
        approved.update(map(tuple, told["approved"]))
        restarts = trainer.env.health().get("restarts", 0)
    counts = told["counts"]
    counts["uncaught"] = counts.get("uncaught", 0) + restarts + said[0].count("Traceback")
    counts["unapproved"] = len([who for who in logged if who not in approved])
    counts["rows"] = len(logged)
    yield from _of_mutants(f"{count:,} mutants on sockets", counts, told["wrong"] + [said[0][-5_000:]])
    others = sum(bystander.values()) - bystander["asked"]
    yield none(f"{count:,} mutants on sockets: errors of other clients", others)
    yield floor(f"{count:,} mutants on sockets: actions of other clients", "", bystander["asked"], 1_000)


def mutated_in_process() -> Iterator[Row]:
    """The same without sockets."""
    count = 20_000 if QUICK else 2_000_000
    with Trainer(episode_ttl=5.0) as trainer:
        heard = serving_core.run(lambda log: _server(trainer, log), count)
    yield from _of_mutants(f"{count:,} mutants in process", heard.counts, heard.wrong)


def _server(trainer: Trainer, log: Log) -> Server:
    """One in this process, as the server process makes it."""
    server, _ = child.served(trainer.env._configure(), log=log)
    for policy, packed in trainer.env._weights.items():
        server.publish(policy, child._exported(packed))
    return server


def _of_mutants(name: str, counts: dict[str, int], wrong: list[str]) -> Iterator[Row]:
    print(f"# {name}: {counts}", *wrong[:20], sep="\n# ", file=sys.stderr)
    yield none(f"{name}: uncaught", counts.get("uncaught", 0))
    missing = sum(counts.get(what, 0) for what in ("unanswered", "unexplained", "good_refused"))
    yield none(f"{name}: without an answer or a reason that is due", missing)
    yield none(f"{name}: accepted and not right", counts.get("wrong", 0))
    yield none(f"{name}: rows of such that reach the learner", counts.get("unapproved", 0))
    yield floor(f"{name}: rows of those that are right after all", "", counts.get("rows", 0), 1)


@contextlib.contextmanager
def _standard_error() -> Iterator[list[str]]:
    """What this process and its children write there; it is known after the block."""
    said, own = [""], os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(own, 2)
            os.close(own)
            file.seek(0)
            said[0] = file.read().decode(errors="replace")[-1_000_000:]


def _rows(tail: Tail, end: int) -> list[tuple[Any, ...]]:
    """Who sent the next rows of the log, but for those who only load the server."""
    found = []
    while records := tail.read(end):
        for write in map(decode_write, records):
            if not write.client.startswith("load"):
                rows = sum(isinstance(entry, Acted) for entry in write.entries)
                found += rows * [(write.client, write.epoch, write.seq)]
    return found


def learned() -> Iterator[Row]:
    """CartPole, by clients that ask for each action, and by such that act by themselves."""
    rates = {}
    for mode in ("remote", "local"):
        found = serving_players.played(mode, seconds=10 if QUICK else 900)
        print(f"# CartPole, {mode}: {found}", file=sys.stderr)
        name, rates[mode] = f"CartPole, 3 {mode} clients", found.rate
        yield floor(f"{name}: mean of 100 episodes of one", "", found.mean, serving_players.SCORE)
        yield ceiling(f"{name}: env steps to it", "steps", found.steps, 200_000)
    yield Row(
        name="CartPole, 3 clients, local by remote over HTTP",
        unit="steps/s",
        value=rates["local"],
        peer=rates["remote"],
        bar=5.0,
        at_least=True,
    )


def _rewards(folder: Path) -> Counter[float]:
    """What was earned, as the log has it."""
    end = max(int(path.stem) + path.stat().st_size for path in folder.glob("*.log"))
    tail, found = Tail(folder), Counter[float]()
    while records := tail.read(end):
        entries = [entry for record in records for entry in decode_write(record).entries]
        found.update(entry.reward for entry in entries if isinstance(entry, Earned))
    tail.close()
    return found


def wait(condition: Callable[[], bool], seconds: float) -> None:
    """For something, but not for ever."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)


def floor(name: str, unit: str, value: float, bar: float) -> Row:
    return Row(name=name, unit=unit, value=value, bar=bar, at_least=True)


def none(name: str, count: float) -> Row:
    """Of these there must not be a single one."""
    return ceiling(name, "", count, 0)


ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    function.__name__: function
    for function in (actions, idle, attacked, slow, killed, mutated, mutated_in_process, learned)
}


def rows() -> Iterator[Row]:
    """All of them, or those that are asked for."""
    for name in ASKED or ROWS:
        yield from ROWS[name]()
