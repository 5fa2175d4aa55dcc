"""Connections of a policy server: how much may arrive in which time, and in which order it is answered."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any, final

from steppe.errors import ConfigError
from steppe.serving.gate import Gate
from steppe.serving.http import Http
from steppe.serving.limits import Limits
from steppe.serving.requests import Answer, HeaderList, Request, Speech
from steppe.serving.sockets import Socket

App = Callable[[Request], None]
"""Takes a request, and answers it now or later; it never blocks."""
Say = Callable[[int, str], None]
"""Hears a level of logging and a text."""

_LINGER = 2.0
"""Seconds that a client has to read why its connection ends."""
_MINUTE = 60.0
_OTHER_FILES = 128
"""That a process has open beside its connections."""
_PIECE = 1 << 16
"""Bytes that are read at once."""


@final
class Connection(asyncio.BufferedProtocol):
    """One, from its beginning to its end. Whoever speaks on it is fed, and tells of requests."""

    def __init__(self, owner: Transport) -> None:
        self._owner, self.limits = owner, owner.limits
        self._transport: asyncio.Transport | None = None
        self.speech: Speech | None = None
        self._waiting: deque[tuple[Request, Answer | None]] = deque()
        self._out: list[bytes] = []
        self._out_size = self._thrown = 0
        self._early = b""  # what comes with the last of a handshake, before this object is told of its end
        self._under_way = 0
        self._going = self._ending = self._linger = self._paused = False
        # Since when: it rests, a request is not complete, answers are not read, its end is awaited.
        self._rests = owner.loop.time()
        self._begun: float | None = None
        self._unread: float | None = None
        self._left = 0
        self._over: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.BufferedProtocol`, here and below."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._owner.opened(self):
            return
        if self._owner.tls is None:
            self._begin(transport)
        else:
            self._owner.spawn(self._begin_tls(transport, self._owner.tls))

    async def _begin_tls(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        loop, seconds = self._owner.loop, self.limits.deadline
        try:
            inner = await loop.start_tls(
                transport, self, tls, server_side=True, ssl_handshake_timeout=seconds
            )
        except OSError:
            inner = None
        if inner is None:
            self._owner.counts["failed_tls"] += 1
            self.connection_lost(None)
        else:
            self._begin(inner)

    def _begin(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=self.limits.write_buffer)
        peer, here = (transport.get_extra_info(name) or ("",) for name in ("peername", "sockname"))
        self.speech = Http(self, self._owner.gate, str(peer[0]), str(here[0]))
        if self._early:
            self._hear(self._early)

    def get_buffer(self, sizehint: int) -> memoryview:
        """One for all connections: what is in it is taken at once, and new ones cost as much as a request."""
        return self._owner.buffer

    def buffer_updated(self, size: int) -> None:
        """Data is there; whatever comes after the end is thrown away."""
        if self.speech is None and not self._ending:
            self._early += self._owner.buffer[:size]
        elif self._ending:
            self._thrown += size
            if self._thrown > self.limits.body and self._transport is not None:
                self._transport.pause_reading()  # it costs time that others need
        else:
            self._hear(bytes(self._owner.buffer[:size]))

    def _hear(self, data: bytes) -> None:
        assert self.speech is not None
        self.speech = self.speech.feed(data)
        if not self.speech.unfinished:
            self._begun = None
        elif self._begun is None:
            self._begun = self.now()
        self._go_on()

    def eof_received(self) -> bool:
        """Who has said all it has to say may still wait for answers."""
        self.flush()  # what is written is not to be lost with the connection
        if self._over is not None or not (self._under_way or self._waiting):
            return False
        self._ending = True
        return self._owner.tls is None

    def connection_lost(self, error: Exception | None) -> None:
        """Answers that come now are for nobody."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
            self._waiting.clear()
            self._owner.closed(self)

    def pause_writing(self) -> None:
        """The client does not read its answers: no more of its requests are begun."""
        self._unread, self._left = self.now(), sys.maxsize
        self._go_on()

    def resume_writing(self) -> None:
        """The client has read."""
        self._unread = None
        self._go_on()

    def now(self) -> float:
        """See :class:`Line`, here and below."""
        return self._owner.loop.time()

    def request(self) -> Request:
        """A new one, with an id."""
        return Request(self, self._owner.request_id())

    def heard(self, request: Request, ready: Answer | None = None) -> None:
        """A request has arrived."""
        self._begun = None
        self._waiting.append((request, ready))

    def count(self, what: str) -> None:
        """Count what happens on connections."""
        self._owner.counts[what] += 1

    def write(self, data: bytes) -> None:
        """Send that at the end of this turn."""
        if not self._out:
            self._owner.flush_later(self)
        self._out.append(data)
        self._out_size += len(data)

    def encourage(self) -> None:
        """Say that the body may come."""
        if not self._under_way and not self._waiting:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def end(self, *, linger: bool = False) -> None:
        """Hear nothing more, answer what has been heard, then close."""
        self._ending, self._linger = True, self._linger or linger
        self._owner.flush_later(self)

    def answered(self, request: Request, status: int, body: bytes, headers: HeaderList) -> None:
        """An answer has been given."""
        self._under_way -= 1
        if self._transport is None or self.speech is None:
            return
        self.speech.answer(request, status, body, headers)
        if not self._under_way:
            self._rests = self.now()
            self._owner.rests(self)
            if self._ending and not self._waiting:
                self._owner.flush_later(self)
        self._go_on()

    def _go_on(self) -> None:
        """Hand over what has arrived, as much as may be under way."""
        speech, waiting = self.speech, self._waiting
        if self._going or speech is None or self._transport is None:
            return
        self._going = True
        room = self.limits.write_buffer
        while waiting and self._under_way < speech.most and self._unread is None and self._out_size <= room:
            request, ready = waiting.popleft()
            if not self._under_way:
                self._owner.works(self)
            self._under_way += 1
            self.count("requests")
            if ready is None:
                self._owner.app(request)
            else:
                request.answer(*ready)
        self._going = False
        if (pause := bool(waiting) or self._unread is not None) is not self._paused:
            self._paused = pause
            (self._transport.pause_reading if pause else self._transport.resume_reading)()
            self._begun = None if self._begun is None else self.now()

    def flush(self) -> None:
        """Send what is written, and close if that was all."""
        if (transport := self._transport) is None:
            return
        done = self._ending and not self._waiting and not self._under_way and self._over is None
        if done and self.speech is not None:
            self.speech.leave()
        if self._out:
            transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()
            self._out_size = 0
            if self._waiting:
                self._go_on()
        if done:
            self._over = self.now()
            if self._linger and transport.can_write_eof():
                try:
                    transport.write_eof()
                except OSError:  # the client has gone already
                    transport.close()
            else:  # which over TLS waits for the client by itself
                transport.close()

    def check(self, now: float) -> None:
        """Close what has taken too long."""
        limits, transport = self.limits, self._transport
        if self._unread is not None and transport is not None:
            left = transport.get_write_buffer_size()
            if self._left - left >= _PIECE:  # a large answer may take its time
                self._unread, self._left = now, left
        if self._over is not None:
            late = "ended" if now - self._over > _LINGER else ""
        elif self._unread is not None:
            late = "closed_unread" if now - self._unread > limits.deadline else ""
        elif self._begun is not None and not self._paused and now - self._begun > limits.deadline:
            late = "closed_slow"
        else:
            late = "closed_idle" if not self._under_way and now - self._rests > limits.idle else ""
        if late:
            self.drop(late)
        elif isinstance(self.speech, Socket) and not self.speech.allowed():
            self.end()

    def drop(self, why: str) -> None:
        """Close it now."""
        self.count(why)
        self.connection_lost(None)


@final
class Transport:
    """Listens, and hands requests to the application. All of it belongs to one event loop.

    Args:
        app: answers requests.
        gate: lets them in.
        limits: of connections.
        tls: for encrypted connections.
        say: hears what an operator should know.
        warning: said every minute.

    Attributes:
        counts: what happened, by name: ``connections`` is how many there are; ``requests``, those
            ``refused_*`` and connections ``closed_*`` add up.
    """

    def __init__(
        self,
        app: App,
        gate: Gate,
        limits: Limits,
        *,
        tls: ssl.SSLContext | None = None,
        say: Say = lambda level, text: logging.getLogger("steppe.serving").log(level, text),
        warning: str | None = None,
    ) -> None:
        self.app, self.gate, self.limits, self.tls = app, gate, limits, tls
        self._say, self._warning, self._warned = say, warning, float("-inf")
        self.loop = asyncio.get_running_loop()
        self.counts: Counter[str] = Counter()
        self.buffer = memoryview(bytearray(_PIECE))
        # Those without a request under way, the one that has rested longest first.
        self._resting: OrderedDict[Connection, None] = OrderedDict()
        self._all: set[Connection] = set()
        self._written: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._most = _files_for(limits.connections)
        self._start, self._requests = secrets.token_hex(4), 0

    async def listen(self, host: str = "", port: int = 0, *, sock: socket.socket | None = None) -> int:
        """Begin to accept connections.

        Args:
            host: a name or an address of this machine.
            port: 0 for one that is free.
            sock: listens already, in place of both.

        Returns:
            The port.

        Raises:
            ConfigError: that cannot be listened on.
        """
        where = "127.0.0.1" if host == "localhost" else host.strip("[]")
        at: Any = {"sock": sock} if sock is not None else {"host": where, "port": port}
        try:
            self._server = await self.loop.create_server(lambda: Connection(self), **at, backlog=1024)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        self._sweep()
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self, seconds: float = 5.0) -> None:
        """Accept nothing more, answer what is under way for some seconds, and close all connections."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._all):
            connection.end()
        until = self.loop.time() + seconds
        while self._all and self.loop.time() < until:
            await asyncio.sleep(0.01)
        for connection in list(self._all):
            connection.drop("closed_drain")
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(0)  # until then the system does not know

    def request_id(self) -> str:
        """Another one for each request."""
        self._requests += 1
        return f"{self._start}-{self._requests:x}"

    def opened(self, connection: Connection) -> bool:
        """A connection is there; if it is one too many, another goes, or it itself."""
        if len(self._all) >= self._most:
            oldest = next(iter(self._resting), connection)
            oldest.drop("closed_crowd")
            if oldest is connection:
                return False
        self._all.add(connection)
        self._resting[connection] = None
        self.counts["connections"] = len(self._all)
        return True

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        self._resting.pop(connection, None)
        self.counts["connections"] = len(self._all)

    def works(self, connection: Connection) -> None:
        """A connection has a request under way."""
        self._resting.pop(connection, None)

    def rests(self, connection: Connection) -> None:
        """A connection has none."""
        self._resting[connection] = None

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do that beside everything else."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def flush_later(self, connection: Connection) -> None:
        """Let a connection send what is written when this turn is over: one call of the system for all."""
        if not self._written:
            self.loop.call_soon(self._flush)
        self._written.append(connection)

    def _flush(self) -> None:
        written, self._written = self._written, []
        for connection in written:
            connection.flush()

    def _sweep(self) -> None:
        limits, now = self.limits, self.loop.time()
        self._sweeping = self.loop.call_later(min(1.0, limits.deadline / 4, limits.idle / 4), self._sweep)
        if self._warning is not None and now - self._warned >= _MINUTE:
            self._warned = now
            self._say(logging.WARNING, self._warning)
        if self.gate.tokens.changed():
            self.reload()
        self.gate.sweep(now)
        for connection in list(self._all):
            connection.check(now)

    def reload(self) -> None:
        """Read the tokens anew, so that they can be changed while the server runs."""
        try:
            self.gate.tokens.reload()
            self._say(logging.INFO, "the tokens have been read anew")
        except ConfigError as error:
            self._say(logging.WARNING, f"the tokens stay what they were: {error}")


def _files_for(connections: int) -> int:
    """How many of so many connections the system lets this process have; each is a file to it."""
    try:
        import resource
    except ImportError:  # there is no such limit
        return connections
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return min(connections, wanted - _OTHER_FILES)
