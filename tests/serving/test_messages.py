"""Every refusal of the protocol, over a socket; and that the schema and the docs say what the code does."""

from __future__ import annotations

import asyncio
import json
import re

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.serving import messages
from steppe.serving.facts import Settings
from steppe.serving.limits import Limits
from steppe.types import DEFAULT_POLICY
from tests.serving.live import MSGPACK, Live, say
from tests.serving.served import PAIR, SumPolicy

E = {"episode_id": "e"}
TWO = {"multi_agent": True, "pairs": {"left": PAIR, "right": PAIR}}


class Breaks(SumPolicy):
    def act(self, weights, obs, state, noise):
        raise ZeroDivisionError("secret")


def items(*more):
    start = {"verb": "start", "episode_id": "r"}
    act = {"verb": "act", "episode_id": "r", "obs": [1, 0], "sample": 1, "logp": 0.0, "weights_version": 5}
    return [start, *({**act, **one} if "verb" not in one else one for one in more)]


REMEMBERS = {"policies": {DEFAULT_POLICY: SumPolicy(remembers=True)}}
BREAKS = {"policies": {DEFAULT_POLICY: Breaks()}}
ONE_EPISODE, TWO_CLIENTS = Settings(most_episodes=1), Settings(most_clients=2)
NO_LAG = {"max_weight_lag": 0}
ONE_ROW = Settings(held_rows=1)
NEW = {"client": "new", "epoch": 0, "seq": 1}
TABLE = [
    # (code, verb, fields, what the message names, how the server is made)
    ("malformed", "act", {}, "episode_id", {}),
    ("malformed", "act", {"episode_id": 3, "obs": [1, 0]}, "$.episode_id", {}),
    ("malformed", "act", {"episode_id": "", "obs": [1, 0]}, "$.episode_id", {}),
    ("malformed", "start", {"client": "a b", "epoch": 0, "seq": 1}, "$.client", {}),
    ("malformed", "start", {"client": "a\n", "epoch": 0, "seq": 1}, "$.client", {}),
    ("malformed", "start", {"client": "a", "epoch": -1, "seq": 1}, "$.epoch", {}),
    ("malformed", "start", {"client": "a", "epoch": 0, "seq": 0}, "$.seq", {}),
    ("malformed", "start", {"client": "a", "epoch": 0}, "seq", {}),
    ("malformed", "act_many", {"acts": []}, "$.acts", {}),
    ("malformed", "act_many", {"acts": [{**E, "obs": [1, 0]}] * 2}, "acts", {}),
    ("malformed", "log_returns", {**E, "reward": 1, "dones": {"a": True}}, "dones", {}),
    ("malformed", "act", {**E, "obs": {}}, "obs", TWO),
    ("malformed", "report", {"items": items({"verb": "walk"})}, "$.items[1].verb", {}),
    ("unknown_field", "start", {"colour": "red"}, "`colour`", {}),
    ("unknown_field", "start", {"id": 3}, "`id`", {}),
    ("unknown_field", "start", {"verb": "start"}, "`verb`", {}),
    ("unknown_field", "start", {"id": None}, "`id`", {}),
    ("unknown_field", "act_many", {"acts": [{**E, "obs": [1, 0], "full": True}]}, "`full`", {}),
    ("unknown_field", "report", {"items": items({"colour": 1})}, "`colour`", {}),
    ("unknown_verb", "walk", {}, "walk", {}),
    ("unknown_episode", "act", {"episode_id": "x", "obs": [1, 0]}, "'x'", {}),
    ("unknown_episode", "report", {"items": items({"episode_id": "x"})}, "items[1]: ", {}),
    ("unknown_version", "rollback", {"version": 9}, "9", {}),
    ("weights_too_old", "report", {"items": items({"weights_version": 6})}, "another run", {}),
    ("not_local", "report", {"items": items({})}, DEFAULT_POLICY, REMEMBERS),
    ("episode_exists", "start", E, "'e'", {}),
    ("episode_ended", "act", {"episode_id": "old", "obs": [1, 0]}, "'old'", {}),
    ("agent_done", "act", {**E, "obs": {"left": [1, 0]}}, "left", TWO),
    ("step_unknown", "log_returns", {**E, "reward": 1, "step": 3}, "step", {}),
    ("step_learned", "log_returns", {**E, "reward": 1, "step": 0}, "newest 1", {"settings": ONE_ROW}),
    ("seq_reused", "start", {"client": "c", "epoch": 0, "seq": 1, "episode_id": "z"}, "seq 1", {}),
    ("seq_expired", "start", {"client": "far", "epoch": 3, "seq": 36}, "seq 36", {}),
    ("epoch_expired", "start", {"client": "far", "epoch": 2, "seq": 101}, "epoch 3", {}),
    ("weights_too_old", "report", {"items": items({"weights_version": 4})}, "version 4", NO_LAG),
    ("out_of_space", "act", {**E, "obs": [1]}, "obs: ", {}),
    ("out_of_space", "act", {**E, "obs": [1, 10.5]}, "obs[1]: ", {}),
    ("out_of_space", "act_many", {"acts": [{**E, "obs": [1, "x"]}]}, "acts[0].obs", {}),
    ("out_of_space", "log_action", {**E, "obs": [1, 0], "action": 4}, "action: ", {"off_policy": True}),
    ("out_of_space", "end", {**E, "obs": [1, None]}, "obs: ", {}),
    ("out_of_space", "report", {"items": items({"sample": -1})}, "items[1].sample", {}),
    ("out_of_space", "report", {"items": items({"logp": "x"})}, "items[1]: logp", {}),
    ("out_of_space", "act", {**E, "obs": {"left": [1, 0], "right": [0]}}, 'obs["right"]', TWO),
    ("reward", "log_returns", {**E, "reward": "x"}, "reward: ", {}),
    ("reward", "act", {**E, "obs": {"right": [1, 0]}, "reward": {"right": True}}, 'reward["right"]', TWO),
    ("unknown_agent", "act", {**E, "obs": {"up": [1, 0]}}, "'up'", TWO),
    ("off_policy", "log_action", {**E, "obs": [1, 0], "action": 1}, "training_enabled", {}),
    ("not_training", "report", {"items": items({})}, "only acts", {"training": False}),
    ("busy", "act", {**E, "obs": [1, 0]}, "behind", {"queue": -1}),
    ("too_many_episodes", "start", {}, "1 episodes", {"settings": ONE_EPISODE}),
    ("too_many_clients", "start", NEW, "2 clients", {"settings": TWO_CLIENTS}),
    ("not_ready", "act", {**E, "obs": [1, 0]}, "weights", {"version": None}),
    ("internal", "act", {**E, "obs": [1, 0]}, "ZeroDivisionError", BREAKS),
]  # fmt: skip


async def prepared(live, queue):
    """One open episode with some steps, one that has ended, and a client that is far ahead."""
    multi = live.facts.multi_agent
    assert (await live.post("start", **E)).status == 200
    if (
        queue is None
        and live.version is not None
        and not isinstance(live.policies.get(DEFAULT_POLICY), Breaks)
    ):
        for _ in range(2):
            await live.post("act", **E, obs={"left": [1, 0], "right": [1, 0]} if multi else [1, 0])
    if multi:
        await live.post("log_returns", **E, reward={"left": 1}, dones={"left": True})
    if live.settings.most_episodes > 1:
        await live.post("start", episode_id="old")
        await live.post("end", episode_id="old", obs=None)
    await live.post("start", client="far", epoch=3, seq=100)


@pytest.mark.parametrize(("code", "verb", "fields", "names", "made"), TABLE)
def test_refusals(code, verb, fields, names, made, tmp_path, caplog):
    made = {"version": 5, **made}
    queue = made.pop("queue", None)

    async def main():
        async with Live(folder=tmp_path / "log", **made) as live:
            await prepared(live, queue)
            if queue is not None:
                live.server._verbs._settings = live.settings._replace(queue_bytes=queue)
            before = live.server.snapshot(), live.log.end
            answer = await live.post(verb, **fields)
            assert (answer.body["code"], answer.status) == (code, messages.STATUS[code])
            assert names in answer.body["message"]
            assert answer.body["request_id"] == answer.headers["steppe-request-id"]
            assert ("retry-after" in answer.headers) == (answer.status in messages.WAITING)
            if verb != "walk" and not fields.keys() & {"id", "verb"}:
                async with live.socket() as socket:
                    told = await say(socket, verb=verb, id=3, **live.numbered(fields))
                assert (told["id"], told["status"], told["code"]) == (3, answer.status, code)
                assert ("retry_after" in told) == (answer.status in messages.WAITING)
            assert (live.server.snapshot(), live.log.end) == before
            health = (await live.http("GET", "/v1/health")).body
            assert health["episodes"] >= 1

    asyncio.run(main())
    assert "secret" not in caplog.text or code == "internal"


SECRET = "s" * 43
DEEP = b'{"client":"a","epoch":0,"seq":1,"episode_id":"e","obs":' + b"[" * 90_000
TRANSPORT = [
    ("malformed", "POST", "/v1/start", b"{", {}),
    ("malformed", "POST", "/v1/start", b"[" * 100_000, {}),
    ("malformed", "POST", "/v1/act", DEEP, {}),
    ("malformed", "POST", "/v1/start", b"\xff", {}),
    ("malformed", "POST", "/v1/start", b"\xc1", {"kind": MSGPACK}),
    ("body_length", "POST", "/v1/start", None, {"Content_Type": "application/json"}),
    ("body_length", "POST", "/v1/start", None, {"Transfer_Encoding": "chunked"}),
    ("unauthorized", "GET", "/v1/spaces", None, {"Authorization": None}),
    ("unauthorized", "POST", "/v1/start", b"{}", {"Authorization": "Bearer wrong"}),
    ("scope", "GET", "/v1/versions", None, {}),
    ("scope", "POST", "/v1/release", b"{}", {}),
    ("host", "GET", "/v1/spaces", None, {"Host": "evil.example"}),
    ("origin", "GET", "/v1/spaces", None, {"Origin": "https://evil.example"}),
    ("unknown_verb", "GET", "/v1/start", None, {}),
    ("unknown_verb", "GET", "/etc/passwd", None, {}),
    ("unknown_policy", "GET", "/v1/weights?policy=x", None, {}),
    ("malformed", "DELETE", "/v1/episodes/e?client=a", None, {}),
    ("unknown_field", "DELETE", "/v1/episodes/e?client=a&epoch=0&seq=1&x=1", None, {}),
    ("unknown_episode", "DELETE", "/v1/episodes/a%2Fb?client=a&epoch=0&seq=1", None, {}),
    ("too_large", "POST", "/v1/start", b"x" * 2049, {}),
    ("too_large", "GET", "/v1/spaces", None, {"X": "x" * 20_000}),
    ("media_type", "POST", "/v1/start", b"{}", {"kind": "text/plain"}),
    ("protocol", "GET", "/v1/spaces", None, {"Steppe_Protocol": "2"}),
]  # fmt: skip


def test_refusals_of_the_transport(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{SECRET} act,submit,weights someone\n")
    tokens.chmod(0o600)

    async def main():
        limits = Limits(body=2048, wrong_tokens=1000)
        async with Live(tokens=tokens, limits=limits) as live:
            live.limits = limits
            for code, method, path, body, headers in TRANSPORT:
                if code == "malformed" and body is not None and len(body) > 2048:
                    continue
                given = {"Authorization": f"Bearer {SECRET}", **headers}
                answer = await live.http(method, path, body, **given)
                where = (code, method, path, headers)
                assert (answer.status, answer.body["code"]) == (messages.STATUS[code], code), where
                assert answer.body["request_id"] == answer.headers["steppe-request-id"]
                assert answer.headers["steppe-protocol"] == "1"
                fine = await live.http("GET", "/v1/spaces", Authorization=f"Bearer {SECRET}")
                assert fine.status == 200
            async with live.socket(Authorization=f"Bearer {SECRET}") as socket:
                told = await say(socket, verb="release", id=1, client="c", epoch=0, seq=1)
                assert (told["status"], told["code"]) == (403, "scope")
        async with Live(tokens=tokens, limits=Limits(rate=1.0)) as live:
            headers = {"Authorization": f"Bearer {SECRET}"}
            answers = [await live.http("GET", "/v1/spaces", **headers) for _ in range(3)]
            assert answers[-1].body["code"] == "rate"
            assert answers[-1].headers["retry-after"] == "1"
        async with Live() as live:
            for code, method, path, body, headers in TRANSPORT:
                if code == "malformed" and body is not None:
                    answer = await live.http(method, path, body, **headers)
                    assert (answer.status, answer.body["code"]) == (400, code)

    asyncio.run(main())


def test_the_tables_name_every_code():
    tried = {row[0] for row in TABLE} | {row[0] for row in TRANSPORT} | {"rate"}
    assert tried == messages.STATUS.keys()


def test_the_schema_says_what_is_taken():
    schema = messages.schema()
    who = {"client": "c", "epoch": 0, "seq": 1}
    bodies = {
        "start": [{}, {"episode_id": "e"}, {"colour": 1}, {"episode_id": ""}],
        "act": [{**E, "obs": [1]}, {**E, "obs": 1, "reward": 5, "full": True}, E, {**E, "obs": 1, "full": 1}],
        "act_many": [{"acts": [{**E, "obs": 1}]}, {"acts": []}, {"acts": [{**E, "obs": 1, "x": 1}]}],
        "log_returns": [{**E, "reward": 1, "dones": {"a": True}}, {**E, "reward": 1, "dones": {"a": 1}}],
        "report": [{"items": items({})}, {"items": items({"verb": "act"})}, {"items": []}],
        "delete": [E, {}],
        "rollback": [{"version": 3}, {"version": -3}],
    }  # fmt: skip
    seen = set()
    for verb, several in bodies.items():
        one = {"$defs": schema["$defs"], **schema["properties"][verb]}
        for body in several:
            whole = {"verb": verb, "id": 1, **who, **body}
            valid = jsonschema.Draft202012Validator(one).is_valid(whole)
            try:
                messages.read_frame(json.dumps(whole).encode(), "json")
                taken = True
            except messages.Refused:
                taken = False
            assert taken is valid, whole
            seen.add(taken)
    assert seen == {True, False}


@given(st.binary(max_size=200), st.sampled_from(["json", "msgpack"]))
def test_garbage_is_refused(body, kind):
    for read in (lambda: messages.read_frame(body, kind), lambda: messages.read_body("act", body, kind)):
        with pytest.raises(messages.Refused):
            read()
    messages.frame_id(body, kind)


@given(
    st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), max_size=8),
    st.integers(0, 999),
)
def test_an_answer_is_framed_with_its_id(reply, id):
    for kind, decode in (("json", msgspec.json.decode), ("msgpack", msgspec.msgpack.decode)):
        reply = {key: value for key, value in reply.items() if key not in ("id", "status")}
        body = messages.encoded(kind, reply)
        assert decode(messages.framed(kind, id, 200, body)) == {"id": id, "status": 200, **reply}
        for other in ("json", "msgpack"):
            assert messages.as_kind(kind, messages.encoded(other, reply)) == body


def test_the_same_words_have_the_same_digest():
    """Whatever they are encoded as, and over which connection they come."""
    body = {"client": "c", "epoch": 0, "seq": 1, "episode_id": "e", "obs": [1.5, 2]}
    frame = {"verb": "act", "id": 8, **body}
    digests = {
        messages.read_body("act", json.dumps(body).encode(), "json").digest,
        messages.read_body("act", msgspec.msgpack.encode(body), "msgpack").digest,
        messages.read_frame(json.dumps(frame).encode(), "json").digest,
        messages.read_frame(msgspec.msgpack.encode(frame | {"id": 9}), "msgpack").digest,
    }
    assert len(digests) == 1
    assert (
        messages.read_body("act", json.dumps(body | {"obs": [1.5, 3]}).encode(), "json").digest not in digests
    )
    assert re.fullmatch(rb"[\s\S]{8}", digests.pop())
