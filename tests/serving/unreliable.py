"""A server that answers as tests of clients tell it to: HTTP and WebSocket on one port, faults included."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

LOST, UNHEARD = "lost", "unheard"


class Said(NamedTuple):
    """One request."""

    verb: str
    message: dict[str, Any]
    headers: dict[str, str]
    over: str
    path: str


class Answer(NamedTuple):
    """What is said to one; ``fault``: the request is LOST, or the answer UNHEARD; its connection too."""

    body: dict[str, Any] | str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    fault: str | None = None
    delay: float = 0.0


class Stub:
    """What was carried out, and how often a connection was made."""

    def __init__(self, answer: Callable[[Said, int], Answer]) -> None:
        self.answer, self.heard, self.done, self.connections = answer, [], [], 0
        self._stored: dict[tuple[str, int, int], Answer] = {}
        self.port = 0

    def handle(self, said: Said) -> Answer:
        """Carries out what has not been carried out yet, as a policy server does."""
        self.heard.append(said)
        answer = self.answer(said, len(self.heard))
        if answer.fault == LOST or answer.status != 200:
            return answer
        if "seq" in said.message:
            key = tuple(said.message[name] for name in ("client", "epoch", "seq"))
            if key in self._stored:
                return self._stored[key]._replace(fault=answer.fault, delay=answer.delay)
            self._stored[key] = answer
            self.done.append(said)
        return answer


class _Line(asyncio.Protocol):
    """A connection."""

    def __init__(self, stub: Stub) -> None:
        self._stub, self._headers, self._body, self._target = stub, {}, b"", b""
        self._parser: Any = httptools.HttpRequestParser(self)
        self._socket: ServerProtocol | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._stub.connections += 1

    def data_received(self, data: bytes) -> None:
        if self._socket is None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                self._socket = ServerProtocol(subprotocols=["steppe.v1"])
                self._socket.receive_data(data)
        else:
            self._socket.receive_data(data)
        if self._socket is not None:
            self._frames(self._socket)

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        if "upgrade" in self._headers:
            return
        target = urlsplit(self._target.decode())
        message = json.loads(self._body or b"{}")
        said = Said(target.path.partition("/v1/")[2], message, self._headers, "http", target.path)
        method = self._parser.get_method().decode()
        self._headers, self._body, self._target = {}, b"", b""
        if method == "DELETE":
            client, epoch, seq = (pair.partition("=")[2] for pair in target.query.split("&"))
            said.message.update(client=client, epoch=int(epoch), seq=int(seq))
        self._answer(said, self._over_http)

    def _over_http(self, answer: Answer) -> None:
        body = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
        lines = [f"HTTP/1.1 {answer.status} So", f"Content-Length: {len(body)}", "Steppe-Protocol: 1"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)

    def _frames(self, socket: ServerProtocol) -> None:
        for event in socket.events_received():
            if isinstance(event, Request):
                socket.send_response(socket.accept(event))
                self._headers = {name.lower(): value for name, value in event.headers.raw_items()}
                self._path = event.path
            elif event.opcode == Opcode.TEXT:
                message = json.loads(event.data)
                verb, number = message.pop("verb"), message.pop("id")

                def over_socket(answer: Answer, number: int = number) -> None:
                    assert isinstance(answer.body, dict)
                    told = {"id": number, "status": answer.status, **answer.body}
                    if (wait := dict(answer.headers).get("Retry-After")) is not None:
                        told["retry_after"] = float(wait)
                    socket.send_text(json.dumps(told).encode())
                    self._send(socket)

                self._answer(Said(verb, message, self._headers, "socket", self._path), over_socket)
        self._send(socket)

    def _send(self, socket: ServerProtocol) -> None:
        for data in socket.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def _answer(self, said: Said, tell: Callable[[Answer], None]) -> None:
        answer = self._stub.handle(said)
        if answer.fault is not None:
            self._transport.abort()
        elif answer.delay:
            asyncio.get_running_loop().call_later(answer.delay, tell, answer)
        else:
            tell(answer)


@contextmanager
def stub(answer: Callable[[Said, int], Answer], port: int = 0) -> Iterator[Stub]:
    """A stub that listens, on a thread of its own, until the context ends."""
    made, loop = Stub(answer), asyncio.new_event_loop()
    lines: list[_Line] = []

    def line() -> _Line:
        lines.append(_Line(made))
        return lines[-1]

    server = loop.run_until_complete(loop.create_server(line, "127.0.0.1", port))
    made.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        server.close()
        for each in lines:
            each._transport.abort()
        await asyncio.sleep(0)

    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
