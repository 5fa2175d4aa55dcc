"""The load, the attack and the mutants of ``make bench-serving``: a little of each, against a server here."""

from __future__ import annotations

import asyncio
import json
import random
import re

import msgspec
import numpy as np
import pytest

from benchmarks import report, serving_core, serving_load, serving_mutants
from benchmarks.report import Row
from benchmarks.serving_mutants import Mutants, Sender, Sent, judged
from steppe.envs.driven import Acted, Earned
from steppe.policies.numpy_policy import Exported
from steppe.serving.facts import Settings
from steppe.serving.log import Tail
from steppe.serving.records import decode_write
from steppe.serving.server import Server
from steppe.spaces import BoxSpec
from steppe.types import DEFAULT_POLICY, SINGLE_AGENT, SpacePair
from tests.serving.live import Live
from tests.serving.served import FOUR, SumPolicy, actors_of, facts_of

PAIR = SpacePair(BoxSpec((8,), np.dtype(np.float32), -1.0, 1.0), FOUR)
TOKEN = "a" * 32
OBS = [0.5] * 8
WHO = {"client": "c", "epoch": 0, "seq": 1}


def against_a_server(tmp_path, what):
    """What comes of ``what(port)`` in a thread, and what the server's log holds afterwards."""
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"{TOKEN} act,submit,weights,admin\n")

    async def main():
        policies, spaces = {DEFAULT_POLICY: SumPolicy(PAIR)}, {SINGLE_AGENT: PAIR}
        folder = tmp_path / "log"
        async with Live(policies=policies, pairs=spaces, folder=folder, tokens=tokens) as live:
            found = await asyncio.to_thread(what, live.port)
        return found, live.log.end

    found, end = asyncio.run(main())
    tail = Tail(tmp_path / "log")
    writes = [decode_write(record) for record in tail.read(end, 10**6)]
    tail.close()
    return found, writes


@pytest.mark.parametrize("websocket", [False, True])
def test_all_that_is_acknowledged_is_in_the_log(tmp_path, websocket):
    def what(port):
        return serving_load.ask(port, TOKEN, clients=5, websocket=websocket, seconds=0.2, warm=0.05)

    found, writes = against_a_server(tmp_path, what)
    rows = [entry for write in writes for entry in write.entries if isinstance(entry, Acted)]
    assert found["acknowledged"] == len(rows) > 10
    assert (found["refused"], found["lost"]) == ({}, 0)
    assert 0 < found["p50"] <= found["p99"]
    assert 0 < found["rate"] * 0.2 <= len(rows)
    steps = {}
    for row in rows:
        steps.setdefault(row.episode, []).append(row.t)
    assert len(steps) == 5
    assert all(of_one == [*range(len(of_one))] for of_one in steps.values())


def test_numbered_reports_come_once_each(tmp_path):
    def what(port):
        return serving_load.number(port, TOKEN, clients=3, batches=20)

    found, writes = against_a_server(tmp_path, what)
    assert found["acknowledged"] == 60
    numbers = [entry.reward for write in writes for entry in write.entries if isinstance(entry, Earned)]
    first = serving_load.FIRST_SEQ
    assert sorted(numbers) == [1e7 * client + first + i for client in (1, 2, 3) for i in range(20)]


def test_the_attack_is_one(tmp_path):
    def what(port):
        return serving_load.attack(port, TOKEN, seconds=0.5, rate=100, slow=5, large=3)

    found, writes = against_a_server(tmp_path, what)
    assert not writes
    assert (found["slow"], found["large"]) == (5, 3)
    assert 40 <= found["sent"] <= 51
    assert found["seen"]["413"] >= 2
    assert found["seen"]["401"] >= 20  # so many wrong tokens are looked at a second
    assert found["seen"].keys() <= {"401", "413", "429"}


def test_mutants_on_sockets(tmp_path):
    def what(port):
        with Sender(port, TOKEN, seed=1) as sender:
            sender.send(300)
        return sender

    found, writes = against_a_server(tmp_path, what)
    assert not found.wrong
    assert found.counts.keys() <= {str(one) for one in serving_mutants.STATUSES} | {"closed", "reset"}
    assert found.counts["400"] > 100
    assert found.counts["200"] >= 300 / 16
    rows = {
        (write.client, write.epoch, write.seq)
        for write in writes
        if any(isinstance(entry, Acted) for entry in write.entries)
    }
    assert rows <= found.approved


def core(count):
    policies = {DEFAULT_POLICY: SumPolicy(PAIR)}

    def make(log):
        facts = facts_of(policies, {SINGLE_AGENT: PAIR})
        server = Server(facts, actors_of(policies), Settings(), log=log)
        server.publish(DEFAULT_POLICY, Exported(0, {}))
        return server

    return serving_core.run(make, count, seed=3)


def test_mutants_in_process():
    heard = core(800)
    assert not heard.wrong
    assert heard.counts["rows"] > 5
    assert not {"uncaught", "unanswered", "unapproved", "good_refused", "wrong"} & {
        name for name, count in heard.counts.items() if count
    }


def test_the_oracle_finds_what_should_not_have_been_accepted(monkeypatch):
    monkeypatch.setattr(
        serving_core, "judged", lambda sent: judged(sent) if b"act" not in sent.body else None
    )
    heard = core(320)
    assert heard.counts["wrong"] > 0
    assert heard.wrong[0].startswith("accepted: ")
    assert 0 < heard.counts["unapproved"] <= heard.counts["rows"]


ACT = {**WHO, "episode_id": "e", "obs": OBS}
GOOD = [
    ("act", ACT),
    ("act", {**ACT, "reward": -1, "full": True}),
    ("act", {**ACT, "obs": {"dtype": "float32", "shape": [8], "bytes": "AAAAAA" + "A" * 37 + "="}}),
    ("act", {**ACT, "seq": 7.0, "reward": None}),
    ("start", WHO),
    ("end", {**WHO, "episode_id": "e", "obs": None}),
    ("report", {**WHO, "items": [{"verb": "start"}]}),
    ("log_returns", {**WHO, "episode_id": "e", "reward": 1e38, "info": {"a": [None]}}),
]
BAD = [
    ("act", {**ACT, "obs": [*OBS[:7], True]}),
    ("act", {**ACT, "obs": [*OBS[:7], 1.01]}),
    ("act", {**ACT, "obs": OBS[:7]}),
    ("act", {**ACT, "obs": None}),
    ("act", {**ACT, "obs": {"dtype": "float32", "shape": [8], "bytes": "AAAA"}}),
    ("act", {**ACT, "reward": float("inf")}),
    ("act", {**ACT, "reward": 1e39}),
    ("act", {**ACT, "x": 1}),
    ("act", {**ACT, "id": 1}),
    ("act", {**ACT, "seq": 0}),
    ("act", {**ACT, "seq": "1"}),
    ("act", {**ACT, "client": "a b"}),
    ("act", {**ACT, "episode_id": ""}),
    ("act", {**ACT, "full": 1}),
    ("act", WHO),
    ("act_many", {**WHO, "acts": []}),
    ("end", {**WHO, "episode_id": "e"}),
    ("log_action", {**ACT, "action": 1}),
    ("report", {**WHO, "items": [{"verb": "walk"}]}),
]


@pytest.mark.parametrize("kind", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("right", "verb", "fields"), [*((True, *one) for one in GOOD), *((False, *one) for one in BAD)]
)
def test_the_oracle(kind, right, verb, fields):
    body = json.dumps(fields).encode() if kind == "json" else msgspec.msgpack.encode(fields)
    assert judged(Sent(verb, kind, body)) == (("c", 0, int(fields["seq"])) if right else None)
    if "id" not in fields:
        named = {"verb": verb, "id": 3, **fields}
        body = json.dumps(named).encode() if kind == "json" else msgspec.msgpack.encode(named)
        assert (judged(Sent("", kind, body)) is not None) is right


def test_a_number_without_end_is_none():
    body = json.dumps(ACT).encode()
    assert judged(Sent("act", "json", body)) is not None
    for name in (b"seq", b"epoch"):
        broken = re.sub(b'"%b": ' % name + rb"\d", b'"%b": 1e999' % name, body)
        assert judged(Sent("act", "json", broken)) is None


def test_mutants_differ_and_their_originals_are_right():
    mutants = Mutants(5)
    assert judged(mutants.start(framed=True)) == (mutants.name, 1, 1)
    for framed in (False, True):
        for kind in ("json", "msgpack"):
            good = mutants.sent(*swapped(mutants.good(), kind), framed=framed)
            assert judged(good) is not None
    right = sum(judged(mutants.mutant(framed=bool(i % 2))) is not None for i in range(500))
    assert 5 < right < 150


def swapped(verb_and_fields, kind):
    verb, fields = verb_and_fields
    return verb, kind, fields


def test_bytes_are_told_apart_again():
    first = serving_load.head(1, TOKEN, 2, "act").replace(b"POST ", b"POST  ") + b"{}"
    second = serving_load.head(1, TOKEN, 4, "end") + b"[12]"
    assert [*serving_mutants._requests(first + second)] == [
        Sent("act", "json", b"{}"),
        Sent("end", "json", b"[12]"),
    ]
    long = random.Random(0).randbytes(300)
    frames = serving_load.frame(b"{}") + serving_load.frame(long, 0x82)
    assert [*serving_mutants._frames(frames)] == [Sent("", "json", b"{}"), Sent("", "msgpack", long)]
    masked = b"\x81\x82\x01\x02\x03\x04" + bytes([ord("{") ^ 1, ord("}") ^ 2])
    assert [*serving_mutants._frames(masked)] == [Sent("", "json", b"{}")]


def test_answers_are_told_apart():
    answer = b"HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nContent-Length: 3\r\n\r\nabc"
    assert serving_load.http_answer(answer) == (429, 2.0, b"abc")
    assert serving_load.http_answer(answer[:-1]) is None
    assert serving_load.http_answer(answer[:30]) is None
    message = b'\x81\x2e{"id":1,"status":503,"retry_after":2.5,"a":10}'
    assert serving_load.socket_answer(message)[:2] == (503, 2.5)
    assert serving_load.socket_answer(message[:-1]) is None
    with pytest.raises(ConnectionError):
        serving_load.socket_answer(b"\x88\x02\x03\xe8")


def test_rows_that_were_measured_alone_take_their_place(tmp_path):
    def row(name, value):
        return Row(name=name, unit="", value=value, bar=1.0, at_least=True)

    report.write("g", [row("a", 1.0), row("b", 2.0)], tmp_path)
    merged = report.updated("g", [row("b", 3.0), row("c", 4.0)], tmp_path)
    assert [(one.name, one.value) for one in merged] == [("a", 1.0), ("b", 3.0), ("c", 4.0)]
    assert report.updated("other", [row("b", 3.0)], tmp_path) == [row("b", 3.0)]
