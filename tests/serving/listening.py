"""A transport in a thread, an application that tells what it heard, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

from steppe.serving.gate import Gate
from steppe.serving.limits import Limits
from steppe.serving.security import Tokens
from steppe.serving.transport import Transport


class Listening:
    """What runs: its port, what its application heard, and what it is holding back."""

    def __init__(self, loop):
        self.loop, self.heard, self.held, self.said = loop, [], [], []
        self.sockets, self.hold, self.size = [], False, 0

    def app(self, request):
        self.heard.append(request)
        if self.hold:
            self.held.append(request)
        else:
            self.answer(request)

    def answer(self, request):
        if request.verb == "":
            request.answer(200, request.body)
        elif request.verb == "weights":
            known = request.etag == '"7"'
            headers = [("ETag", '"7"'), ("Content-Type", "application/octet-stream")]
            request.answer(304 if known else 200, b"" if known else b"w" * self.size, headers)
        else:
            facts = {"verb": request.verb, "body": request.body.decode("latin-1"), "query": request.query}
            request.answer(200, json.dumps(facts | {"name": request.caller.name}).encode())

    def release(self, request=None):
        """Answer one that is held, the newest if none is named."""
        request = request or self.held[-1]
        self.held.remove(request)
        self.loop.call_soon_threadsafe(self.answer, request)

    def connect(self):
        self.sockets.append(socket.create_connection(("127.0.0.1", self.port), timeout=5))
        return self.sockets[-1]

    def listen(self, port):
        return asyncio.run_coroutine_threadsafe(self.transport.listen("127.0.0.1", port), self.loop).result(5)

    def drain(self, seconds=2.0):
        asyncio.run_coroutine_threadsafe(self.transport.drain(seconds), self.loop).result(5)


@contextlib.contextmanager
def listening(*, tokens=None, limits=None, hosts=(), origins=(), tls=None, warning=None):
    loop, limits = asyncio.new_event_loop(), limits or Limits()
    it = Listening(loop)

    async def begin():
        gate = Gate(Tokens(tokens, limits.rate), limits, hosts, origins)
        it.transport = Transport(
            it.app, gate, limits, tls=tls, say=lambda *words: it.said.append(words), warning=warning
        )
        it.port = await it.transport.listen("127.0.0.1", 0)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(begin(), loop).result(5)
        yield it
    finally:
        for connection in it.sockets:
            connection.close()
        it.drain(0.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def post(path="/v1/act", body=b"{}", *lines, host="localhost", kind="application/json"):
    head = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join((*head, *lines, "\r\n")).encode("latin-1") + body


def get(path="/v1/spaces", *lines, method="GET", host="localhost"):
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "\r\n")).encode("latin-1")


def everything(connection):
    """All that comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def answers(data, bare=False):
    """Status, headers and body of each answer in ``data``."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        size = 0 if bare else int(headers.get("Content-Length", 0))
        body, data = data[:size], data[size:]
        assert len(body) == size
        found.append((int(first.split()[1]), headers, body))
    return found


def ask(it, data):
    """The answers to what is said all at once on a connection of its own."""
    with it.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return answers(everything(connection), bare=data.startswith(b"HEAD"))


def some(connection, most=1 << 16):
    part = connection.recv(most)
    assert part, "closed"
    return part


def one(connection):
    """The next answer on a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += some(connection)
    head = data.partition(b"\r\n\r\n")[0].decode("latin-1")
    sizes = [int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length")]
    while len(data) < len(head) + 4 + sum(sizes):
        data += some(connection)
    return answers(data)[0]


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.005)
