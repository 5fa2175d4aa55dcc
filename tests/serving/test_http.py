"""Requests over real sockets: what is let in, in which order it is answered, and what is closed when."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import random
import socket
import ssl
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

from steppe.errors import ConfigError
from steppe.serving.certificates import make_cert
from steppe.serving.gate import ROUTES, Gate
from steppe.serving.http import Http
from steppe.serving.limits import Limits
from steppe.serving.requests import Request
from steppe.serving.security import Tokens, tls_context
from steppe.serving.transport import Connection, Transport
from tests.serving.listening import answers, ask, everything, get, listening, one, post, some, until

GOOD, OTHER = "good-token-of-a-client", "other-token-of-an-operator"
HOST = b"Host: localhost\r\n"
ACT = b"POST /v1/act HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
EVIL, ASKS = "Origin: https://evil.example", "Access-Control-Request-Method: POST"
OPENING = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
OPENING += ("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",)
SPACES = b"GET /v1/spaces HTTP/1.1\r\n" + HOST


@pytest.fixture(scope="module")
def server():
    """Nothing is slow or much on it; tests that need other limits have servers of their own."""
    with listening(limits=Limits(body=4096, header=2048), origins=["https://shop.example"]) as it:
        yield it


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# who may do what\n{GOOD} act,submit shop\n{OTHER} admin\n")
    path.chmod(0o600)
    return path


def bearer(token):
    return f"Authorization: Bearer {token}"


def websocket(it, **more):
    return connect(f"ws://127.0.0.1:{it.port}/v1/socket", open_timeout=5, close_timeout=1, **more)


# --- what is no good

MALFORMED = {
    "length and chunks": ACT + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": ACT + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": ACT + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "a list of lengths": ACT + b"Content-Length: 2, 2\r\n\r\n{}",
    "length with a sign": ACT + b"Content-Length: +2\r\n\r\n{}",
    "negative length": ACT + b"Content-Length: -2\r\n\r\n{}",
    "length of 30 digits": ACT + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
    "length in hexadecimal": ACT + b"Content-Length: 0x2\r\n\r\n{}",
    "folded header": SPACES + b"X-Long: a\r\n b\r\n\r\n",
    "space before the colon": b"GET /v1/spaces HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "header without a name": b"GET /v1/spaces HTTP/1.1\r\n: localhost\r\n\r\n",
    "bare line feeds": b"GET /v1/spaces HTTP/1.1\nHost: localhost\n\n",
    "NUL in a header": b"GET /v1/spaces HTTP/1.1\r\nHost: local\0host\r\n\r\n",
    "two hosts": b"GET /v1/spaces HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "two authorizations": SPACES + b"Authorization: a\r\nauthorization: b\r\n\r\n",
    "absolute address": b"GET http://localhost/v1/spaces HTTP/1.1\r\n" + HOST + b"\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT localhost:1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"FETCH /v1/spaces HTTP/1.1\r\n" + HOST + b"\r\n",
    "method in lower case": b"get /v1/spaces HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in the path": b"GET /v1/\x01\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another version": b"GET /v1/spaces HTTP/3.7\r\n" + HOST + b"\r\n",
    "an upgrade to what is not spoken": get("/v1/spaces", "Connection: Upgrade", "Upgrade: h2c"),
    "a socket without an upgrade": get("/v1/socket"),
    "an upgrade without a key": get("/v1/socket", "Connection: Upgrade", "Upgrade: websocket"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "zeros": bytes(512),
}  # fmt: skip
REFUSED = {
    "chunks": (ACT + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "body_length"),
    "bad chunk": (ACT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "body_length"),
    "unknown encoding": (ACT + b"Transfer-Encoding: x\r\n\r\n{}", "body_length"),
    "chunks of a GET": (get("/v1/spaces", "Transfer-Encoding: chunked") + b"0\r\n\r\n", "body_length"),
    "no length": (ACT + b"\r\n", "body_length"),
    "a byte too much": (post(body=b"x" * 4097), "too_large"),
    "length of a gigabyte": (ACT + b"Content-Length: 1073741824\r\n\r\n{}", "too_large"),
    "long header": (get("/v1/spaces", "X-Long: " + "x" * 2048), "too_large"),
    "many headers": (get("/v1/spaces", *[f"X-{i}: 1" for i in range(300)]), "too_large"),
    "long path": (get("/v1/" + "x" * 2048), "too_large"),
    "no host": (b"GET /v1/spaces HTTP/1.1\r\n\r\n", "host"),
    "another host": (get(host="evil.example"), "host"),
    "host with another in front": (get(host="evil.example:80@localhost"), "host"),
    "another origin": (get("/v1/spaces", EVIL), "origin"),
    "no origin": (get("/v1/spaces", "Origin: null"), "origin"),
    "origin that begins like one": (get("/v1/spaces", "Origin: https://shop.example.evil"), "origin"),
    "health of another origin": (get("/livez", EVIL), "origin"),
    "preflight of another origin": (get("/", EVIL, ASKS, method="OPTIONS"), "origin"),
    "unknown path": (get("/v1/spacecraft"), "unknown_verb"),
    "root": (get("/"), "unknown_verb"),
    "path that ends too early": (get("/v1/episodes/", method="DELETE"), "unknown_verb"),
    "path above": (get("/v1/../v1/spaces"), "unknown_verb"),
    "encoded path": (get("/v1/%73paces"), "unknown_verb"),
    "GET of what is posted": (get("/v1/act"), "unknown_verb"),
    "PUT": (get("/v1/spaces", method="PUT"), "unknown_verb"),
    "no kind": (b"POST /v1/act HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", "media_type"),
    "a form": (post(kind="application/x-www-form-urlencoded"), "media_type"),
    "text that a browser may send": (post(kind="text/plain"), "media_type"),
    "another version of the protocol": (get("/v1/spaces", "Steppe-Protocol: 2"), "protocol"),
    "subprotocols without ours": (get("/v1/socket", *OPENING, "Sec-WebSocket-Protocol: chat"), "protocol"),
}  # fmt: skip
STATUS = {"body_length": 400, "too_large": 413, "host": 403, "origin": 403, "unknown_verb": 404}
STATUS |= {"media_type": 415, "protocol": 426, "malformed": 400}


@pytest.mark.parametrize(
    ("data", "code"),
    [*((data, "malformed") for data in MALFORMED.values()), *REFUSED.values()],
    ids=[*MALFORMED, *REFUSED],
)
def test_what_is_no_good_is_refused_and_goes_no_further(server, data, code):
    server.heard.clear()
    with server.connect() as bystander:
        status, headers, body = ask(server, data)[0]
        told = json.loads(body)
        assert (status, told["code"]) == (STATUS[code], code)
        assert told["message"]
        assert told["request_id"] == headers["Steppe-Request-Id"]
        assert headers["Steppe-Protocol"] == "1"
        assert server.heard == []
        bystander.sendall(post(body=b"{}"))
        assert one(bystander)[0] == 200


def test_nothing_that_follows_what_cannot_be_framed_is_heard(server):
    """A request that is smuggled behind another is not answered."""
    server.heard.clear()
    for data in (
        MALFORMED["length and chunks"],
        MALFORMED["two lengths"],
        REFUSED["chunks"][0],
        post(body=b"x" * 5000),
    ):
        [(status, headers, _)] = ask(server, data + post(body=b"smuggled"))
        assert status in (400, 413)
        assert headers["Connection"] == "close"
    assert server.heard == []


def test_a_refusal_that_leaves_no_doubt_leaves_the_connection(server):
    found = ask(server, post(kind="text/plain", body=b"x" * 100) + get("/nothing") + post(body=b"after"))
    assert [status for status, *_ in found] == [415, 404, 200]
    assert json.loads(found[2][2])["body"] == "after"


def test_a_refusal_is_in_the_kind_that_was_asked_for(server):
    [(_, headers, body)] = ask(server, get("/nothing", "Accept: text/html, application/msgpack;q=0.9"))
    assert headers["Content-Type"] == "application/msgpack"
    assert msgspec.msgpack.decode(body)["code"] == "unknown_verb"
    [(_, headers, body)] = ask(server, post("/nothing", kind="application/msgpack"))
    assert msgspec.msgpack.decode(body)["code"] == "unknown_verb"


# --- what is good


def test_what_the_application_is_told(server):
    server.heard.clear()
    data = post(body=b"\x80", kind="Application/MsgPack; v=5")
    data += get("/v1/weights?policy=default%20one&x=", 'If-None-Match: "7"', "Accept: application/json")
    data += (
        get("/v1/episodes/a%2Fb%20c?client=me&epoch=1&seq=2", method="DELETE")
        + get("/livez")
        + get("/metrics")
    )
    found = ask(server, data)
    assert [status for status, *_ in found] == [200, 304, 200, 200, 200]
    act, weights, delete, livez, metrics = server.heard
    assert (act.verb, act.kind, act.accept, act.body, act.etag) == (
        "act",
        "msgpack",
        "msgpack",
        b"\x80",
        None,
    )
    assert (weights.verb, weights.query, weights.etag) == (
        "weights",
        {"policy": "default one", "x": ""},
        '"7"',
    )
    assert delete.query == {"episode_id": "a/b c", "client": "me", "epoch": "1", "seq": "2"}
    assert (livez.verb, metrics.verb) == ("livez", "metrics")
    assert act.caller == ("", {"act", "submit", "weights", "admin"}, "127.0.0.1")
    assert len({request.request_id for request in server.heard}) == 5
    assert found[0][1]["Content-Type"] == "application/msgpack"
    with pytest.raises(RuntimeError, match="a second time"):
        act.answer(200, b"")


def test_answers_that_have_no_body(server):
    [(status, headers, body)] = ask(server, get("/v1/weights", 'If-None-Match: "7"'))
    assert (status, headers["ETag"], body) == (304, '"7"', b"")
    assert "Content-Length" not in headers
    [(status, headers, _)] = ask(server, get("/livez", method="HEAD"))
    assert (status, headers["Content-Length"] != "0") == (404, True)


def test_a_page_of_an_allowed_origin_may_ask(server):
    page = "Origin: https://shop.example"
    data = get("/v1/act", page, ASKS, method="OPTIONS") + post("/v1/act", b"{}", page)
    (status, headers, _), (_, then, _) = ask(server, data)
    assert status == 204
    assert "Authorization" in headers["Access-Control-Allow-Headers"]
    assert "DELETE" in headers["Access-Control-Allow-Methods"]
    assert (
        headers["Access-Control-Allow-Origin"]
        == then["Access-Control-Allow-Origin"]
        == "https://shop.example"
    )
    assert then["Vary"] == "Origin"
    assert ask(server, get("/v1/act", ASKS, method="OPTIONS"))[0][1]["Access-Control-Max-Age"] == "600"


def test_a_page_of_an_allowed_origin_is_told_why_it_was_refused(tokens):
    allowed, page = "Access-Control-Allow-Origin", "Origin: https://shop.example"
    with listening(tokens=tokens, origins=["https://shop.example"]) as it:
        for data, wanted in (
            (post("/v1/act", b"{}", page), 401),
            (get("/v1/versions", page, bearer(GOOD)), 403),
            (get("/v1/spacecraft", page, bearer(GOOD)), 404),
            (post("/v1/act", b"{}", page, bearer(GOOD), kind="text/plain"), 415),
        ):
            [(status, headers, body)] = ask(it, data)
            assert (status, headers[allowed]) == (wanted, "https://shop.example")
            assert json.loads(body)["code"]
        [(status, headers, _)] = ask(it, post("/v1/act", b"{}", EVIL))
        assert (status, headers.get(allowed)) == (401, None)


def test_a_connection_stays_unless_its_client_wants_it_closed(server):
    with server.connect() as connection:
        for number in range(3):
            connection.sendall(post(body=b"%d" % number))
            assert json.loads(one(connection)[2])["body"] == str(number)
        connection.sendall(post("/v1/act", b"{}", "Connection: close") + post(body=b"not heard"))
        [(status, headers, _)] = answers(everything(connection))
        assert (status, headers["Connection"]) == (200, "close")
    with server.connect() as connection:
        connection.sendall(get("/livez").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert answers(everything(connection))[0][1]["Connection"] == "close"


def test_who_waits_to_be_told_to_send_its_body_is_told(server):
    with server.connect() as connection:
        head, body = post("/v1/act", b"{}", "Expect: 100-continue").split(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert one(connection)[0] == 200
        connection.sendall(head.replace(b"Content-Length: 2", b"Content-Length: 9999") + b"\r\n\r\n")
        assert one(connection)[0] == 413


def test_requests_of_a_connection_are_answered_in_order_one_by_one(server):
    server.heard.clear()
    server.hold = True
    try:
        with server.connect() as connection:
            connection.sendall(post(body=b"1") + get("/nothing") + post(body=b"2") + post(body=b"3"))
            for number in range(1, 4):
                until(lambda: server.held)
                assert [request.body for request in server.heard] == [b"1", b"2", b"3"][:number]
                server.release()
            connection.shutdown(socket.SHUT_WR)
            found = answers(everything(connection))
    finally:
        server.hold = False
    assert [status for status, *_ in found] == [200, 404, 200, 200]


def test_who_goes_away_is_not_missed(server):
    server.hold = True
    try:
        with server.connect() as connection:
            connection.sendall(post())
            until(lambda: server.held)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: server.transport.counts["connections"] == 0)
        server.release()
    finally:
        server.hold = False
    assert ask(server, post())[0][0] == 200


# --- bytes in pieces


class FakeLine:
    """A line that notes what it is told."""

    def __init__(self):
        self.limits, self.told, self.at = Limits(body=64, header=200), [], 0

    def now(self):
        return 0.0

    def request(self):
        return Request(self, "id")

    def heard(self, request, ready=None):
        self.told.append((request.verb, request.body, request.kind, request.last, ready))

    def count(self, what): ...

    def write(self, data):
        self.told.append(data)

    def encourage(self):
        self.told.append("go on")

    def end(self, *, linger=False):
        self.told.append("end")


SAID = [
    post(body=b"one"),
    get("/v1/weights?policy=a"),
    post(kind="text/plain", body=b"dropped"),
    get("/nothing"),
    b"\r\n" + get("/v1/episodes/x", method="DELETE"),
    post("/v1/act", b"{}", "Expect: 100-continue"),
    get("/v1/spaces", "X: " + "x" * 200),
    post(body=b"x" * 65),
    ACT + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    post("/v1/act", b"{}", "Connection: close"),
    b"\x00garbage",
]


FRAMES = ("text", "binary", "ping", "parts", "unmasked", "large")
VERBS = {route.verb for route in ROUTES.values()}


def pieces_of(data, cuts):
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(
    st.lists(st.sampled_from(SAID), min_size=1, max_size=6),
    st.lists(st.integers(0, 5000), max_size=40),
    st.booleans(),
)
def test_how_bytes_are_cut_changes_nothing(parts, cuts, tail):
    data, heard = b"".join(parts) + get()[:30] * tail, []
    for pieces in ([data], pieces_of(data, cuts)):
        line = FakeLine()
        speech = Http(line, Gate(Tokens(None), line.limits), "1.2.3.4", "127.0.0.1")
        for piece in pieces:
            speech = speech.feed(piece)
        heard.append(line.told)
        assert speech.unfinished == tail or "end" in line.told
    assert heard[0] == heard[1]


@given(
    st.lists(
        st.tuples(st.sampled_from(FRAMES), st.binary(max_size=60)),
        max_size=6,
    ),
    st.lists(st.integers(0, 2000), max_size=30),
)
def test_how_frames_are_cut_changes_nothing(said, cuts):
    opening = get("/v1/socket", *OPENING)
    frames, heard = opening + b"".join(frame(kind, content) for kind, content in said), []
    for pieces in ([frames], pieces_of(frames, cuts)):
        line = FakeLine()
        line.limits = Limits(body=64)
        speech = Http(line, Gate(Tokens(None), line.limits), "1.2.3.4", "127.0.0.1")
        for piece in pieces:
            speech = speech.feed(piece)
        written = b"".join(told for told in line.told[1:] if isinstance(told, bytes))
        # But for the answer to the opening, which has the date.
        heard.append((written, [told for told in line.told if not isinstance(told, bytes)]))
    assert heard[0] == heard[1]
    bad = [kind in ("unmasked", "large") for kind, _ in said] + [True]
    good = [content for kind, content in said[: bad.index(True)] if kind in ("text", "binary", "parts")]
    assert [told[1] for told in heard[0][1] if isinstance(told, tuple)] == good
    assert ("end" in heard[0][1]) == any(bad[:-1])
    if not any(bad[:-1]):
        assert not speech.unfinished


def frame(kind, content):
    def one_of(opcode, data, fin=True, mask=True):
        return Frame(opcode, data, fin).serialize(mask=mask)

    if kind == "parts":
        half = len(content) // 2
        ping = one_of(Opcode.PING, b"between")
        return one_of(Opcode.TEXT, content[:half], fin=False) + ping + one_of(Opcode.CONT, content[half:])
    if kind == "large":
        return one_of(Opcode.BINARY, bytes(65))
    opcode = {"text": Opcode.TEXT, "binary": Opcode.BINARY, "ping": Opcode.PING, "unmasked": Opcode.TEXT}[
        kind
    ]
    return one_of(opcode, content, mask=kind != "unmasked")


def fed(data, opened=False):
    """What a line is told of bytes of any kind, in pieces of any size."""
    line = FakeLine()
    line.limits = Limits(body=64, header=500)
    speech = Http(line, Gate(Tokens(None), line.limits), "1.2.3.4", "127.0.0.1")
    for piece in ([get("/v1/socket", *OPENING)] if opened else []) + data:
        speech = speech.feed(piece)
        if "end" in line.told:
            break
    return [told[:2] for told in line.told if isinstance(told, tuple) and told[-1] is None]


def mutated(rng, data):
    """``data`` with some bytes changed, taken out, put in, or said twice."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, size = rng.randrange(len(data) + 1), rng.randrange(12)
        new = rng.choice([rng.randbytes(size), b"\r\n", b": ", bytes(size), bytes(data[at : at + 3 * size])])
        data[at : at + rng.choice([0, len(new), size])] = new
    return bytes(data)


@pytest.mark.parametrize("rounds", [2_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_nothing_is_raised_whatever_comes_and_no_more_is_heard_than_was_said(rounds):
    rng, heard, whole = random.Random(7), 0, b"".join(frame(kind, b"x" * 30) for kind in FRAMES)
    for number in range(rounds):
        opened = bool(number % 2)
        data = mutated(rng, whole if opened else b"".join(rng.choices(SAID, k=2)))
        told = fed(pieces_of(data, rng.sample(range(1, 2000), 3)), opened) if data else []
        assert all(len(body) <= 64 for _, body in told)
        assert {verb for verb, _ in told} <= ({""} if opened else VERBS)
        heard += len(told)
    assert heard > rounds / 4  # or these were no tests of what is nearly right


def test_a_head_without_an_end_is_not_waited_for():
    line = FakeLine()
    speech = Http(line, Gate(Tokens(None), line.limits), "1.2.3.4", "127.0.0.1")
    for _ in range(6):
        speech = speech.feed(b"GET /v1/spaces HTTP/1.1\r\nX: " if not line.told else b"")
        speech = speech.feed(b"x" * 100)
    assert (line.told[0][-1][0], line.told[1:]) == (413, ["end"])


def test_empty_parts_of_a_message_cost_nothing():
    line = FakeLine()
    speech = Http(line, Gate(Tokens(None), line.limits), "1.2.3.4", "127.0.0.1").feed(
        get("/v1/socket", *OPENING)
    )
    for fin, content in ((False, b"a"), *[(False, b"")] * 500, (True, b"b")):
        last = len(speech._parts)
        opcode = Opcode.TEXT if content == b"a" else Opcode.CONT
        speech = speech.feed(Frame(opcode, content, fin).serialize(mask=True))
    assert last == 1
    assert line.told[-1][1] == b"ab"


class FakeTransport(asyncio.Transport):
    """One whose client is noted to have got what was written before it was closed."""

    def __init__(self):
        super().__init__()
        self.got, self.open = b"", True

    def write(self, data):
        self.got += data * self.open

    def close(self):
        self.open = False

    abort = close

    def set_write_buffer_limits(self, high=None, low=None): ...

    def can_write_eof(self):
        return False


def test_a_client_that_has_gone_before_it_is_refused_is_no_error():
    def write_eof():
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    async def turn():
        limits, transport = Limits(), FakeTransport()
        transport.can_write_eof, transport.write_eof = (lambda: True), write_eof
        owner = Transport(lambda request: None, Gate(Tokens(None), limits), limits)
        connection = Connection(owner)
        connection.connection_made(transport)
        data = get(host="evil.example")
        connection.get_buffer(-1)[: len(data)] = data
        connection.buffer_updated(len(data))
        connection.flush()
        assert transport.got.startswith(b"HTTP/1.1 403")
        assert not transport.open

    asyncio.run(turn())


def test_an_answer_is_not_lost_when_the_client_has_said_all_in_the_same_turn():
    async def turn():
        limits, transport = Limits(), FakeTransport()
        owner = Transport(lambda request: request.answer(200, b"{}"), Gate(Tokens(None), limits), limits)
        connection = Connection(owner)
        connection.connection_made(transport)
        data = get()
        connection.get_buffer(-1)[: len(data)] = data
        connection.buffer_updated(len(data))
        assert not transport.got
        if not connection.eof_received():
            transport.close()  # as asyncio does
        await asyncio.sleep(0)
        return transport.got

    assert answers(asyncio.run(turn()))[0][0] == 200


# --- WebSockets


def test_a_websocket_has_messages_of_both_kinds_and_many_of_them_under_way():
    with (
        listening(limits=Limits(under_way=4)) as it,
        websocket(it, subprotocols=["chat", "steppe.v1"]) as socket,
    ):
        assert socket.subprotocol == "steppe.v1"
        assert socket.response.headers["Steppe-Protocol"] == "1"
        it.hold = True
        for number in range(6):
            socket.send(b"%d" % number if number % 2 else f"{number}")
        until(lambda: len(it.held) == 4)
        time.sleep(0.02)
        assert [(one.verb, one.kind, one.body) for one in it.heard] == [
            ("", "msgpack" if i % 2 else "json", b"%d" % i) for i in range(4)
        ]
        it.release(it.held[3])
        assert socket.recv(2) == b"3"
        until(lambda: len(it.heard) == 5)
        it.release(it.heard[0])
        assert socket.recv(2) == "0"
        until(lambda: len(it.heard) == 6)
        for request in list(it.held):
            it.release(request)
        assert {socket.recv(2) for _ in range(4)} == {b"1", "2", "4", b"5"}


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (Frame(Opcode.TEXT, b"hi").serialize(mask=False), 1002),
        (Frame(Opcode.TEXT, b"x" * 4097).serialize(mask=True), 1009),
        (b"\x82\xff" + (1 << 62).to_bytes(8, "big") + bytes(4), 1009),
        (Frame(Opcode.CONT, b"nothing before").serialize(mask=True), 1002),
        (b"\xf1\x80" + bytes(4), 1002),
        (b"\x83\x80" + bytes(4), 1002),
        (
            b"".join(Frame(op, b"x" * 3000, False).serialize(mask=True) for op in (Opcode.TEXT, Opcode.CONT)),
            1009,
        ),
        (Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True), 1000),
    ],
    ids=[
        "unmasked",
        "too long",
        "length of exabytes",
        "out of turn",
        "extension",
        "opcode",
        "parts",
        "farewell",
    ],
)
def test_frames_that_are_no_good_end_the_websocket(server, frames, code):
    server.heard.clear()
    with server.connect() as connection:
        connection.sendall(get("/v1/socket", *OPENING))
        assert one(connection)[0] == 101
        connection.sendall(frames)
        data = everything(connection)
    assert data[0] == 0x88
    assert int.from_bytes(data[2:4], "big") == code
    assert server.heard == []


def test_a_ping_is_answered(server):
    with websocket(server) as connection:
        assert connection.ping().wait(2)


# --- time and amount


def test_who_is_slow_is_disconnected_and_nobody_else():
    """Drips in the head, in the body, in a frame; and a farewell that is not heard."""
    with listening(limits=Limits(deadline=0.4)) as it:
        with it.connect() as bystander:
            slow = [it.connect() for _ in range(4)]
            slow[3].sendall(get("/v1/socket", *OPENING))
            assert one(slow[3])[0] == 101
            begins = (get(), post(body=b"x" * 50)[:-48], b"\r\n" * 50 + b"GET", frame("text", b"x" * 50))
            start, left, sent = time.monotonic(), dict(enumerate(slow)), 0
            while left and time.monotonic() - start < 3:
                for number in list(left):
                    try:
                        slow[number].sendall(begins[number][sent : sent + 1])
                        slow[number].settimeout(0.001)
                        if slow[number].recv(1) == b"":
                            del left[number]
                    except TimeoutError:
                        pass
                    except OSError:
                        del left[number]
                sent = sent + 1 if sent < 40 else sent
                bystander.sendall(post())
                assert one(bystander)[0] == 200
                time.sleep(0.01)
            took = time.monotonic() - start
        assert not left
        assert 0.3 < took < 1.5
        assert it.transport.counts["closed_slow"] == 4
        assert all(request.verb == "act" for request in it.heard)


def test_who_is_not_read_is_not_slow():
    """A message that has arrived in part waits behind others that are under way, however long these take."""
    with listening(limits=Limits(deadline=0.2, under_way=1)) as it, it.connect() as connection:
        it.hold = True
        connection.sendall(get("/v1/socket", *OPENING))
        assert one(connection)[0] == 101
        first, second, third = (frame("text", content) for content in (b"1", b"2", b"3"))
        connection.sendall(first + second + third[:-1])
        time.sleep(0.5)
        it.hold = False
        it.release()
        connection.sendall(third[-1:])
        data = b""
        while not data.endswith(b"3"):
            data += some(connection)


def test_a_connection_without_a_request_is_closed_but_not_one_that_waits_for_its_answer():
    with listening(limits=Limits(idle=0.2)) as it, it.connect() as idle, it.connect() as waits:
        it.hold = True
        waits.sendall(post())
        start = time.monotonic()
        assert everything(idle) == b""
        assert 0.1 < time.monotonic() - start < 1.5
        time.sleep(0.3)
        it.release()
        assert one(waits)[0] == 200
        assert it.transport.counts["closed_idle"] == 1


def test_for_one_connection_too_many_the_one_that_rested_longest_goes():
    with listening(limits=Limits(connections=3)) as it:
        busy, old, new = it.connect(), it.connect(), it.connect()
        it.hold = True
        busy.sendall(post())
        until(lambda: it.held)
        it.hold = False
        for connection in (new, old, new):
            connection.sendall(post())
            assert one(connection)[0] == 200
        with it.connect() as another:
            assert everything(old) == b""
            for connection in (new, another):
                connection.sendall(post())
                assert one(connection)[0] == 200
            it.hold = True
            for connection in (new, another):
                connection.sendall(post())
            until(lambda: len(it.held) == 3)
            with it.connect() as late:
                assert everything(late) == b""
            for request in list(it.held):
                it.release(request)
            assert [one(connection)[0] for connection in (busy, new, another)] == [200] * 3
        assert it.transport.counts["closed_crowd"] == 2
        for connection in (busy, old, new):
            connection.close()


def test_who_does_not_read_is_begun_no_more_and_disconnected():
    """Who reads slowly gets all of it."""
    limits = Limits(deadline=0.2, write_buffer=1 << 16)
    with listening(limits=limits) as it, it.connect() as deaf, it.connect() as slow:
        it.size = 10 << 20
        deaf.sendall(get("/v1/weights") * 50)
        slow.sendall(get("/v1/weights"))
        data, start = b"", time.monotonic()
        while len(data) < it.size:
            data += some(slow, 1 << 17)
            time.sleep(0.01)
        assert time.monotonic() - start > 3 * limits.deadline
        assert one_of(data) == (200, it.size)
        until(lambda: it.transport.counts["closed_unread"] == 1)
        assert len(it.heard) < 10


def one_of(data):
    [(status, _, body)] = answers(data)
    return status, len(body)


def test_a_token_has_a_rate(tokens):
    with listening(tokens=tokens, limits=Limits(rate=5)) as it:
        found = ask(it, get("/v1/spaces", bearer(GOOD)) * 7)
        assert [status for status, *_ in found] == [200] * 5 + [429] * 2
        assert found[-1][1]["Retry-After"] == "1"
        assert "shop" in json.loads(found[-1][2])["message"]
        assert ask(it, get("/v1/spaces", bearer(OTHER)))[0][0] == 200
        time.sleep(0.25)
        with websocket(it, additional_headers={"Authorization": f"Bearer {GOOD}"}) as socket:
            socket.send('{"id": 7}')
            told = json.loads(socket.recv(2))
            assert (told["id"], told["status"], told["code"], told["retry_after"]) == (7, 429, "rate", 1)


# --- tokens


def test_the_token_is_looked_at_before_anything_else_and_for_all_verbs_alike(tokens):
    with listening(tokens=tokens, limits=Limits(wrong_tokens=1000)) as it:
        for (method, path), route in ROUTES.items():
            for line in (
                "X: 1",
                "Authorization: Basic Zm9vOmJhcg==",
                bearer(GOOD + "x"),
                bearer(""),
                bearer(GOOD[:-1]),
            ):
                request = get(path + ("e" if route.rest else ""), line, "Content-Length: 0", method=method)
                status = ask(it, request)[0][0]
                assert status == (401 if not route.public else 200), (method, path, line)
        assert ask(it, get("/nothing"))[0][0] == 401
        assert {request.verb for request in it.heard} == {"livez", "readyz"}
        with it.connect() as connection:
            connection.sendall(post(body=b"x" * 10_000)[:200])
            assert one(connection)[0] == 401
            connection.sendall(b"x" * 10_000)
            assert everything(connection) == b""
        it.heard.clear()
        found = ask(
            it,
            post("/v1/act", b"{}", bearer(GOOD))
            + get("/v1/versions", bearer(GOOD))
            + get("/v1/health", bearer(OTHER)),
        )
        assert [status for status, *_ in found] == [200, 403, 200]
        assert it.heard[0].caller == ("shop", {"act", "submit"}, "127.0.0.1")
        assert ask(it, post("/v1/act", b"{}", bearer(OTHER)))[0][0] == 403


def test_wrong_tokens_of_an_address_are_soon_too_many_and_right_ones_never(tokens):
    with listening(tokens=tokens, limits=Limits(wrong_tokens=3)) as it:
        found = [ask(it, get() * 2) for _ in range(6)]
        assert [(one[0][0], one[0][1]["Connection"], len(one)) for one in found] == [
            *[(401, "close", 1)] * 3,
            *[(429, "close", 1)] * 3,
        ]
        assert ask(it, get("/v1/spaces", bearer(GOOD)))[0][0] == 200


def test_a_browser_shows_its_token_as_a_subprotocol(tokens):
    with listening(tokens=tokens) as it:
        with websocket(it, subprotocols=["steppe.v1", f"steppe.token.{GOOD}"]) as socket:
            assert socket.subprotocol == "steppe.v1"
            socket.send("{}")
            assert socket.recv(2) == "{}"
            assert it.heard[0].caller.name == "shop"
        with it.connect() as connection:
            connection.sendall(
                get("/v1/socket", *OPENING, "Sec-WebSocket-Protocol: steppe.v1, steppe.token.wrong")
            )
            assert one(connection)[0] == 401


def test_tokens_are_changed_while_the_server_runs(tokens):
    with listening(tokens=tokens, limits=Limits(deadline=0.2)) as it:
        with websocket(it, additional_headers={"Authorization": f"Bearer {GOOD}"}) as gone:
            tokens.write_text("this is no file of tokens\n")
            until(lambda: it.said)
            assert it.said[0][0] == logging.WARNING
            assert "stay what they were" in it.said[0][1]
            assert ask(it, get("/v1/spaces", bearer(GOOD)))[0][0] == 200
            time.sleep(0.15)
            assert len(it.said) == 1
            new = tokens.with_suffix(".new")
            new.write_text(f"{OTHER} act\n")
            new.chmod(0o600)
            os.replace(new, tokens)
            with pytest.raises(ConnectionClosed):
                gone.recv(3)
        assert ask(it, get("/v1/spaces", bearer(GOOD)))[0][0] == 401
        assert ask(it, post("/v1/act", b"{}", bearer(OTHER)))[0][0] == 200


# --- beginning and end


def test_what_is_under_way_is_answered_before_the_end():
    with listening() as it, it.connect() as idle, it.connect() as connection, websocket(it) as socket:
        it.hold = True
        connection.sendall(post())
        socket.send("{}")
        until(lambda: len(it.held) == 2)
        for request in list(it.held):
            it.loop.call_soon_threadsafe(it.loop.call_later, 0.1, it.answer, request)
        it.drain(3.0)
        assert everything(idle) == b""
        assert one(connection)[0] == 200
        assert socket.recv(2) == "{}"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(2)
        assert closed.value.rcvd.code == 1001
        with pytest.raises(OSError):  # noqa: PT011 - refused, or reset
            it.connect()


def test_a_port_that_is_taken_is_said():
    said = pytest.raises(ConfigError, match="cannot listen on")
    with socket.create_server(("127.0.0.1", 0)) as taken, listening() as it, said:
        it.listen(taken.getsockname()[1])


def test_a_warning_is_said_again_every_minute(monkeypatch):
    monkeypatch.setattr("steppe.serving.transport._MINUTE", 0.1)
    with listening(limits=Limits(deadline=0.1), warning="insecure: mind") as it:
        until(lambda: len(it.said) >= 3)
    assert set(it.said) == {(logging.WARNING, "insecure: mind")}


def test_the_same_over_tls(tmp_path):
    cert, key = make_cert(tmp_path, ["localhost", "127.0.0.1"])
    trust = ssl.create_default_context(cafile=cert)
    with listening(tls=tls_context(cert, key), limits=Limits(deadline=0.4)) as it:
        stalls, plain = it.connect(), it.connect()
        plain.sendall(post())
        with trust.wrap_socket(it.connect(), server_hostname="localhost") as connection:
            assert connection.version() in ("TLSv1.2", "TLSv1.3")
            for size in (10, 300_000):
                connection.sendall(post(body=b"x" * size))
                assert len(json.loads(one(connection)[2])["body"]) == size
            connection.sendall(post(kind="text/plain") + post(body=b"x" * (2 << 20))[:500])
            assert [status for status, *_ in answers(everything(connection))] == [415, 413]
        with connect(f"wss://127.0.0.1:{it.port}/v1/socket", ssl=trust) as socket:
            socket.send("{}")
            assert socket.recv(2) == "{}"
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(it.connect(), server_hostname="localhost")

        assert everything(plain)[:1] != b"H"
        assert everything(stalls) == b""
        until(lambda: it.transport.counts["connections"] == 0)
        assert it.transport.counts["failed_tls"] == 3
        assert [request.verb for request in it.heard] == ["act", "act", ""]


def test_a_request_that_comes_with_the_last_of_a_handshake_is_heard(tmp_path):
    cert, key = make_cert(tmp_path, ["localhost"])
    trust = ssl.create_default_context(cafile=cert)
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.wrap_bio(coming, going, server_hostname="localhost")
    with listening(tls=tls_context(cert, key)) as it, it.connect() as connection:
        for _ in range(9):
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(going.read())
                coming.write(some(connection))
        client.write(post() + post(body=b"2"))
        connection.sendall(going.read())
        data = b""
        while data.count(b"HTTP/1.1 200") < 2:
            coming.write(some(connection))
            with contextlib.suppress(ssl.SSLWantReadError):
                data += client.read(1 << 16)
    assert [json.loads(body)["body"] for _, _, body in answers(data)] == ["{}", "2"]
