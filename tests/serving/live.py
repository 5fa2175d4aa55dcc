"""A server on a socket, without a trainer, and clients that say exactly what a test wants."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import msgspec
import websockets

from steppe.policies.numpy_policy import Exported
from steppe.serving.facts import Settings
from steppe.serving.gate import Gate
from steppe.serving.limits import Limits
from steppe.serving.log import Log
from steppe.serving.security import Tokens
from steppe.serving.server import Server
from steppe.serving.transport import Transport
from steppe.types import DEFAULT_POLICY
from tests.serving.served import SumPolicy, actors_of, facts_of

MSGPACK = "application/msgpack"


class Live:
    """``async with Live(...) as live``: a server that listens on ``live.port``."""

    def __init__(
        self, *, policies=None, pairs=None, settings=None, folder=None, limits=None, tokens=None, version=0,
        ask=None, **facts,
    ):  # fmt: skip
        self.policies = policies or {DEFAULT_POLICY: SumPolicy()}
        self.facts, self.settings = facts_of(self.policies, pairs, **facts), settings or Settings()
        self.folder, self.limits, self.tokens = folder, limits or Limits(), tokens
        self.version, self.ask, self.seq, self.positions = version, ask, 0, []

    async def __aenter__(self):
        self.log = None
        if self.folder is not None:
            self.log = Log(self.folder, snapshot=lambda: self.server.snapshot())
        self.server = Server(
            self.facts, actors_of(self.policies), self.settings, log=self.log, ask=self.ask,
            synced=self.positions.append,
        )  # fmt: skip
        if self.log is not None:
            self.server.recover()
        if self.version is not None:
            self.publish(self.version)
        gate = Gate(Tokens(self.tokens, self.limits.rate), self.limits)
        self.transport = Transport(self.server, gate, self.limits)
        self.port = await self.transport.listen("127.0.0.1", 0)
        self.running = asyncio.create_task(self.server.run())
        return self

    async def __aexit__(self, *_):
        await self.server.drain(2.0)
        await self.transport.drain(0.5)
        self.running.cancel()
        if self.log is not None:
            self.log.close()

    def publish(self, version):
        for name in self.policies:
            self.server.publish(name, Exported(version, {}))

    def numbered(self, fields):
        """With who sends it, unless that is told."""
        if "client" in fields:
            return fields
        self.seq += 1
        return {"client": "c", "epoch": 0, "seq": self.seq, **fields}

    async def raw(self, data):
        """What comes back for these bytes, as an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await answer_of(reader)
        finally:
            writer.close()
            await writer.wait_closed()

    async def http(self, method, path, body=None, *, kind="application/json", **headers):
        content = b"" if body is None else body if isinstance(body, bytes) else packed(kind, body)
        given = {"Host": "localhost", "Connection": "close"}
        if body is not None:
            given |= {"Content-Type": kind, "Content-Length": str(len(content))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
        return await self.raw(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)

    async def post(self, verb, /, *, kind="application/json", **fields):
        return await self.http("POST", f"/v1/{verb}", self.numbered(fields), kind=kind)

    def socket(self, **headers):
        uri = f"ws://127.0.0.1:{self.port}/v1/socket"
        return websockets.connect(uri, subprotocols=["steppe.v1"], additional_headers=headers, proxy=None)


def packed(kind, value):
    return msgspec.msgpack.encode(value) if kind == MSGPACK else json.dumps(value).encode()


async def answer_of(reader):
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    kind = headers.get("content-type", "")
    value = content
    if kind == "application/json":
        value = json.loads(content)
    elif kind == MSGPACK:
        value = msgspec.msgpack.decode(content)
    return SimpleNamespace(status=int(first.split()[1]), headers=headers, body=value)


async def say(socket, *, kind="json", **fields):
    """Send a message over a WebSocket, and return the next answer."""
    await socket.send(json.dumps(fields) if kind == "json" else msgspec.msgpack.encode(fields))
    answer = await asyncio.wait_for(socket.recv(), 5)
    return json.loads(answer) if isinstance(answer, str) else msgspec.msgpack.decode(answer)
