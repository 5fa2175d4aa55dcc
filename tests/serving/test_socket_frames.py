"""Messages of a WebSocket are the same, whoever takes them apart, and however they are cut on their way."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from steppe.serving.gate import Admitted, Caller, Gate
from steppe.serving.limits import Limits
from steppe.serving.requests import Request
from steppe.serving.security import Tokens
from steppe.serving.sockets import Socket

HEADERS = {
    b"connection": b"Upgrade",
    b"upgrade": b"websocket",
    b"sec-websocket-version": b"13",
    b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
}


def opened(**limits):
    """A WebSocket and its line: what was heard, and what was written."""
    line = SimpleNamespace(limits=Limits(**limits), messages=[], out=bytearray(), over=False, now=lambda: 0.0)
    line.request = lambda: Request(line, "r")
    line.heard = lambda request, ready=None: line.messages.append((request.kind, request.body))
    line.write = lambda data: line.out.extend(data)
    line.count = lambda what: None

    def end(*, linger=False):
        line.over = True

    line.end = end
    admitted = Admitted("socket", {}, Caller("", frozenset(), ""), "json", None, "", None)
    socket = Socket(line, Gate(Tokens(None), line.limits), admitted, HEADERS)
    line.out.clear()
    return socket, line


def frame(first, payload, mask):
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xff" + size.to_bytes(8, "big")
    return bytes([first]) + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


sizes = st.sampled_from((0, 1, 5, 125, 126, 127, 300, 65_535, 65_536))
messages = st.lists(
    st.tuples(
        st.sampled_from(("json", "msgpack")),
        st.one_of(st.binary(max_size=150), sizes.map(lambda size: b"x" * size)),
        st.integers(1, 3),  # frames that it comes in
        st.binary(min_size=4, max_size=4),
        st.booleans(),  # whether a ping comes before each of them
    ),
    max_size=6,
)


@given(messages, st.lists(st.integers(1, 400), min_size=1, max_size=8))
def test_messages_come_as_they_were_sent(messages, cuts):
    data, pings = b"", 0
    for kind, body, count, mask, pinged in messages:
        size = len(body) // count + 1
        pieces = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
        for i, piece in enumerate(pieces):
            if pinged:
                data, pings = data + frame(0x89, b"p", mask), pings + 1
            opcode = 0 if i else 1 if kind == "json" else 2
            data += frame(opcode | (0x80 if i == len(pieces) - 1 else 0), piece, mask)
    socket, line = opened()
    at, turn = 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)] if len(data) < 5_000 else 10_000 * cuts[turn % len(cuts)]
        socket.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert line.messages == [(kind, body) for kind, body, *_ in messages]
    assert not socket.unfinished
    assert not line.over
    assert bytes(line.out) == pings * b"\x8a\x01p"


def test_what_is_no_whole_message_is_for_the_parser():
    whole = frame(0x81, b"{}", b"abcd")
    for broken, code in (
        (b"\x81\x02{}", b"\x03\xea"),  # without a mask
        (frame(0xC1, b"{}", b"abcd"), b"\x03\xea"),  # with a bit that nobody has asked for
        (frame(0x81, b"x" * 200, b"abcd"), b"\x03\xf1"),  # too long
    ):
        socket, line = opened(body=100)
        socket.feed(whole + broken)
        assert line.messages == [("json", b"{}")]
        assert line.out[:1] == b"\x88"
        assert line.out[2:4] == code
        assert line.over
        socket.feed(whole)
        assert len(line.messages) == 1


def test_a_message_within_another_one_is_refused():
    socket, line = opened()
    socket.feed(frame(0x01, b"{", b"abcd"))
    assert socket.unfinished
    socket.feed(frame(0x81, b"{}", b"abcd"))
    assert line.messages == []
    assert line.out[2:4] == b"\x03\xea"


@given(st.sampled_from(("json", "msgpack")), st.sampled_from((0, 2, 125, 126, 70_000)))
def test_answers_are_frames(kind, size):
    socket, line = opened()
    request, body = SimpleNamespace(kind=kind), b"y" * size
    socket.answer(request, 200, body, ())
    first = b"\x81" if kind == "json" else b"\x82"
    short, middle, long = (
        bytes([size % 256]),
        b"\x7e" + (size % 65536).to_bytes(2, "big"),
        b"\x7f" + size.to_bytes(8, "big"),
    )
    assert bytes(line.out) == first + (short if size < 126 else middle if size < 65536 else long) + body
