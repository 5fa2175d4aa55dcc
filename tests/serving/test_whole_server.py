"""A real server on a socket: HTTP and WebSocket, JSON and MessagePack, with a log and without."""

from __future__ import annotations

import asyncio
import json

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load

from steppe.policies.numpy_policy import Exported
from steppe.serving.facts import Settings
from steppe.serving.log import LogWriteError, Tail
from steppe.serving.records import decode_write
from steppe.types import DEFAULT_POLICY
from tests.serving.live import MSGPACK, Live, say
from tests.serving.served import EVERY_SCOPE, PAIR, SumPolicy


@pytest.mark.parametrize("kind", ["application/json", MSGPACK])
@pytest.mark.parametrize("logged", [False, True])
def test_an_episode_over_http(kind, logged, tmp_path):
    async def main():
        async with Live(folder=tmp_path / "log" if logged else None) as live:
            spaces = await live.http("GET", "/v1/spaces", Accept=kind)
            assert spaces.body["action_space"] == {"kind": "Discrete", "n": 4, "start": 0}
            start = await live.post("start", kind=kind)
            assert start.status == 200
            id = start.body["episode_id"]
            act = await live.post("act", kind=kind, episode_id=id, obs=[3, 0.5], full=True)
            assert act.body == {"action": 3, "step": 0, "logp": -0.5, "weights_version": 0}
            assert act.headers["content-type"] == kind
            again = {
                "client": "c",
                "epoch": 0,
                "seq": live.seq,
                "episode_id": id,
                "obs": [3, 0.5],
                "full": True,
            }
            assert (await live.post("act", kind=kind, **again)).body == act.body
            assert (await live.post("log_returns", kind=kind, episode_id=id, reward=1.5)).body == {}
            assert (await live.post("end", kind=kind, episode_id=id, obs=None)).body == {}
            health = (await live.http("GET", "/v1/health")).body
            assert (health["episodes"], health["clients"], health["ready"]) == (0, 1, True)
            if logged:
                assert live.positions[-1] == live.log.end
                assert health["queue_bytes"] == live.log.end

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_an_episode_over_a_websocket(kind, tmp_path):
    async def main():
        async with Live(folder=tmp_path / "log") as live, live.socket() as socket:

            async def ask(verb, id, **fields):
                return await say(socket, kind=kind, verb=verb, id=id, **live.numbered(fields))

            assert await ask("start", 5, episode_id="e") == {"id": 5, "status": 200, "episode_id": "e"}
            assert await ask("act", 6, episode_id="e", obs=[2, 0]) == {"id": 6, "status": 200, "action": 2}
            assert await ask("log_returns", 0, episode_id="e", reward=1) == {"id": 0, "status": 200}
            refused = await ask("act", 7, episode_id="x", obs=[2, 0])
            assert (refused["id"], refused["status"], refused["code"]) == (7, 404, "unknown_episode")
            health = await say(socket, kind=kind, verb="health", id=9)
            assert (health["id"], health["episodes"]) == (9, 1)
            seq = {"client": "c", "epoch": 0, "seq": 2, "episode_id": "e", "obs": [2, 0]}
            repeated = await say(socket, kind=kind, verb="act", id=100, **seq)
            assert repeated == {"id": 100, "status": 200, "action": 2}
            over_http = await live.post("act", **seq)
            assert over_http.body == {"action": 2}
            for broken in (b"\xc1", b"[1]") if kind == "msgpack" else ("{", "[1]", '{"verb": "act"}'):
                await socket.send(broken)
                answer = await asyncio.wait_for(socket.recv(), 5)
                answer = json.loads(answer) if kind == "json" else msgspec.msgpack.decode(answer)
                assert (answer["id"], answer["status"], answer["code"]) == (None, 400, "malformed")
            bad = await say(socket, kind=kind, verb="walk", id=3)
            assert (bad["id"], bad["status"], bad["code"]) == (3, 404, "unknown_verb")

    asyncio.run(main())


def test_what_was_answered_is_there_after_a_crash(tmp_path):
    async def main():
        live = Live(folder=tmp_path / "log", policies={DEFAULT_POLICY: SumPolicy(remembers=True)})
        async with live:
            await live.post("start", episode_id="e")
            for _ in range(2):
                answer = await live.post("act", episode_id="e", obs=[0, 0])
            assert answer.body == {"action": 1}
        again = Live(folder=tmp_path / "log", policies={DEFAULT_POLICY: SumPolicy(remembers=True)})
        async with again:
            again.seq = live.seq
            repeated = {"client": "c", "epoch": 0, "seq": live.seq, "episode_id": "e", "obs": [0, 0]}
            assert (await again.post("act", **repeated)).body == {"action": 1}
            assert (await again.post("act", episode_id="e", obs=[0, 0])).body == {"action": 2}
        return live.positions, again.log.end

    positions, end = asyncio.run(main())
    assert positions == sorted(positions)
    tail = Tail(tmp_path / "log")
    writes = [decode_write(record) for record in tail.read(end)]
    tail.close()
    assert [write.seq for write in writes] == [1, 2, 3, 4]


def test_many_clients_at_once_are_acted_for_in_few_batches(tmp_path):
    async def main():
        async with Live(folder=tmp_path / "log") as live:

            async def client(number):
                async with live.socket() as socket:
                    who = {"client": f"c{number}", "epoch": 0, "episode_id": f"e{number}"}
                    await say(socket, verb="start", id=0, seq=1, **who)
                    for seq in range(2, 12):
                        answer = await say(socket, verb="act", id=seq, seq=seq, obs=[number % 4, 0], **who)
                        assert answer == {"id": seq, "status": 200, "action": number % 4}

            await asyncio.gather(*map(client, range(16)))
            batches = live.policies[DEFAULT_POLICY].batches
            assert sum(batches) == 160
            assert len(batches) < 160
            metrics = (await live.http("GET", "/metrics")).body.decode()
            assert 'steppe_requests_total{verb="act",status="200"} 160' in metrics
            assert "steppe_rows_total 160" in metrics
            assert "steppe_episodes 16" in metrics
            for line in metrics.splitlines():
                assert line.startswith("#") or float(line.rsplit(" ", 1)[1]) >= 0

    asyncio.run(main())


def test_weights_have_a_tag(tmp_path):
    async def main():
        async with Live(version=None) as live:
            assert (await live.http("GET", "/v1/weights")).body["code"] == "not_ready"
            arrays = {"mlp.weights.0": np.arange(6.0).reshape(2, 3).T}
            live.server.publish(DEFAULT_POLICY, Exported(7, arrays, {"epsilon": 0.25}))
            first = await live.http("GET", "/v1/weights")
            found = load(first.body)
            np.testing.assert_array_equal(found["mlp.weights.0"], arrays["mlp.weights.0"])
            assert found["mlp.weights.0"].dtype == np.float32
            header = json.loads(first.body[8 : 8 + int.from_bytes(first.body[:8], "little")])["__metadata__"]
            assert (header["version"], header["policy"]) == ("7", DEFAULT_POLICY)
            assert json.loads(header["scalars"]) == {"epsilon": 0.25}
            assert json.loads(header["network"]) == {"encoder": {"kind": "flat"}}
            tag = first.headers["etag"]
            second = await live.http("GET", "/v1/weights?policy=default_policy", If_None_Match=tag)
            assert (second.status, second.body) == (304, b"")
            live.server.publish(DEFAULT_POLICY, Exported(8, arrays, {"epsilon": 0.25}))
            third = await live.http("GET", "/v1/weights", If_None_Match=tag)
            assert third.status == 200
            await live.post("rollback", version=7)
            assert (await live.http("GET", "/v1/weights")).headers["etag"] == tag
            assert (await live.http("GET", "/v1/weights?policy=x")).body["code"] == "unknown_policy"
        async with Live(policies={DEFAULT_POLICY: SumPolicy(remembers=True)}) as live:
            assert (await live.http("GET", "/v1/weights")).body["code"] == "not_local"

    asyncio.run(main())


def test_a_learner_that_is_stuck_and_a_disk_that_takes_nothing_are_told(tmp_path):
    async def main():
        async with Live(folder=tmp_path / "log") as live:
            ready = await live.http("GET", "/readyz")
            assert (ready.status, ready.body["reasons"]) == (200, [])
            live.server._beat -= 6
            stuck = await live.http("GET", "/readyz")
            assert (stuck.status, stuck.body["ready"]) == (503, False)
            assert "no sign" in stuck.body["reasons"][0]
            assert (await live.http("GET", "/livez")).status == 200
            live.server.beat()
            assert (await live.http("GET", "/readyz")).status == 200

            def broken():
                raise LogWriteError("no space")

            working, live.log.sync = live.log.sync, broken
            waiting = asyncio.create_task(live.post("start", episode_id="e"))
            await asyncio.sleep(0.05)
            health = (await live.http("GET", "/v1/health")).body
            assert health["reasons"] == ["no space"]
            assert not waiting.done()
            live.log.sync = working
            live.server.tick()
            assert (await waiting).body == {"episode_id": "e"}
            assert (await live.http("GET", "/readyz")).status == 200

            live.log._most_bytes, most = 10, live.log._most_bytes
            assert (await live.post("start")).body["code"] == "not_ready"
            assert (await live.http("GET", "/readyz")).status == 503
            live.log._most_bytes = most
            assert (await live.post("start")).status == 200
            assert (await live.http("GET", "/readyz")).status == 200

    asyncio.run(main())


def test_a_server_that_ends_answers_what_is_under_way():
    async def main():
        asked = []
        policies = {"a": SumPolicy(), "b": SumPolicy()}
        spaces = {"multi_agent": True, "pairs": {"left": PAIR, "right": PAIR}}
        async with Live(policies=policies, ask=lambda *what: asked.append(what), **spaces) as live:
            await live.post("start", episode_id="e")
            waiting = asyncio.create_task(live.post("act", episode_id="e", obs={"left": [1, 0]}))
            while not asked:
                await asyncio.sleep(0.01)
            draining = asyncio.create_task(live.server.drain(2.0))
            await asyncio.sleep(0)
            late = await live.post("start")
            assert (late.status, late.body["code"], late.headers["retry-after"]) == (503, "not_ready", "2")
            live.server.mapped(*asked[0], "b")
            assert (await waiting).body == {"action": {"left": 1}}
            await draining

    asyncio.run(main())


def test_episodes_outlive_nobody():
    async def main():
        async with Live(settings=Settings(episode_ttl=0.0)) as live:
            await live.post("start", episode_id="e")
            await asyncio.sleep(0.01)
            live.server.tick()
            assert (await live.post("act", episode_id="e", obs=[1, 0])).body["code"] == "episode_ended"
            assert live.server.counts()["expired"] == 1

    asyncio.run(main())


def test_what_has_its_time_goes_on_after_a_fault(caplog, monkeypatch):
    async def main():
        async with Live() as live:
            rounds = []

            def tick():
                rounds.append(1)
                raise ZeroDivisionError

            monkeypatch.setattr("steppe.serving.server._TICK", 0.001)
            monkeypatch.setattr(live.server, "tick", tick)
            live.running.cancel()
            live.running = asyncio.create_task(live.server.run())
            while len(rounds) < 3:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert "ZeroDivisionError" in caplog.text


def test_an_answer_that_cannot_be_given_keeps_no_other_waiting(tmp_path, caplog):
    async def main():
        async with Live(folder=tmp_path / "log") as live:

            class Gone:
                verb, kind, accept, query, etag, request_id = "start", "json", "json", {}, None, "r1"
                body = b'{"client":"gone","epoch":0,"seq":1}'

                class caller:  # noqa: N801
                    scopes = EVERY_SCOPE

                def answer(self, *_):
                    raise ConnectionError("gone")

            first = asyncio.create_task(live.post("start"))
            live.server(Gone())
            assert (await first).status == 200
            assert (await live.post("start")).status == 200
            await live.server.drain(1.0)
            assert (await live.post("start")).body["code"] == "not_ready"

    asyncio.run(main())
    assert "request r1 could not be answered" in caplog.text
