"""HTTP/1.1 as a policy server speaks it; httptools parses."""

from __future__ import annotations

from http import HTTPStatus
from typing import final

import httptools

from steppe.serving.gate import CLOSING, READ, TYPES, Admitted, Gate, Head, Unwelcome, accepted, cors
from steppe.serving.messages import PROTOCOL, Refused, refusal_body
from steppe.serving.requests import Answer, HeaderList, Line, Request, Speech
from steppe.serving.sockets import Socket

_BODILESS = (204, 304)
_FIRST = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n" for one in HTTPStatus}
_ALWAYS = f"Steppe-Protocol: {PROTOCOL}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"


@final
class Http:
    """Tells requests apart; one is answered after the other.

    Args:
        line: the connection.
        gate: lets requests in.
        address: that the client has.
        here: that it has reached.
    """

    most = 1

    def __init__(self, line: Line, gate: Gate, address: str, here: str) -> None:
        self._line, self._gate, self._address, self._here = line, gate, address, here
        self._parser = httptools.HttpRequestParser(self)
        self._deaf = False
        self.on_message_begin()
        self._headless = self.unfinished = False

    def feed(self, data: bytes) -> Speech:
        """See :class:`Speech`."""
        if self._deaf:
            return self
        self.unfinished = True  # also by empty lines, which may come before a request
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as error:
            self._refuse(Refused("malformed", f"this is no HTTP/1.1: {error}"))
        if self._headless:
            self._fed += len(data)
            if self._fed - len(data) > self._line.limits.header:
                self._too_long()
        return self

    def on_message_begin(self) -> None:
        """A request begins; this and the next are called by the parser."""
        self._target, self._repeated, self._size, self._fed = b"", b"", 0, 0
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._admitted: Admitted | None = None
        self._ready: Answer | None = None
        self._headless = self.unfinished = True

    def on_url(self, part: bytes) -> None:
        """A part of what is asked for."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._size += len(name) + len(value) + 4
        if (name := name.lower()) in READ:
            if name in self._headers:
                self._repeated = name
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is there; it is judged before the body."""
        self._headless = False
        if self._deaf:
            return
        if self._size + len(self._target) > self._line.limits.header:
            self._too_long()
            return
        head = Head(self._parser.get_method().decode(), self._target, self._headers, self._repeated)
        try:
            if (allowed := self._gate.preflight(head, self._here)) is not None:
                self._ready = 204, b"", allowed
                return
            admitted = self._gate.admit(head, self._address, self._here, self._line.now())
            if (admitted.verb == "socket") != self._parser.should_upgrade():
                wrong = "opens a WebSocket" if admitted.verb == "socket" else "is asked without an Upgrade"
                raise Refused("malformed", f"{head.method} {head.target.decode('latin-1')[:200]} {wrong}")
        except Refused as refused:
            self._refuse(refused)
            return
        self._admitted = admitted
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._line.encourage()

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        if self._admitted is not None:
            self._body.append(part)

    def on_message_complete(self) -> None:
        """The request is there."""
        self.unfinished = False
        admitted = self._admitted
        if self._deaf or (self._ready is None and (admitted is None or admitted.verb == "socket")):
            return
        request = self._request()
        if admitted is not None:
            request.admit(admitted)
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._line.heard(request, self._ready)
        if request.last:
            self._deaf = True
            self._line.end()

    def _request(self) -> Request:
        """One, with what concerns its answer."""
        request = self._line.request()
        request.last = not self._parser.should_keep_alive() or self._parser.get_http_version() != "1.1"
        request.bare = not self._headless and self._parser.get_method() == b"HEAD"
        named = self._headers.get(b"content-type", b"")
        request.accept = accepted(self._headers.get(b"accept", b""), accepted(named, "json"))
        return request

    def _refuse(self, refused: Refused) -> None:
        """Answer so when it is this request's turn."""
        if self._deaf:
            return
        request = self._request()
        unwelcome = refused.code in CLOSING or isinstance(refused, Unwelcome)
        request.last |= unwelcome or self._parser.should_upgrade()
        body = refusal_body(request.accept, refused.code, str(refused), request.request_id)
        late = [("Retry-After", str(refused.retry_after))] if refused.status == 429 else []
        self._line.count(f"refused_{refused.code}")
        self._line.heard(request, (refused.status, body, late + self._gate.readers(self._headers)))
        if request.last:
            self._deaf = True
            self._line.end(linger=True)

    def _too_long(self) -> None:
        self._refuse(Refused("too_large", f"a head of more than {self._line.limits.header} bytes"))

    def _upgraded(self, rest: bytes) -> Speech:
        if self._deaf or self._admitted is None:
            self._deaf = True  # what follows is in a language that nobody speaks here
            self._line.end(linger=True)
            return self
        try:
            socket = Socket(self._line, self._gate, self._admitted, self._headers)
        except Refused as refused:
            self._refuse(refused)
            return self
        return socket.feed(rest) if rest else socket

    def answer(self, request: Request, status: int, body: bytes, headers: HeaderList) -> None:
        """See :class:`Speech`."""
        lines = [_FIRST[status], _ALWAYS, f"Steppe-Request-Id: {request.request_id}\r\n"]
        if status not in _BODILESS:
            lines.append(f"Content-Length: {len(body)}\r\n")
            if not any(name == "Content-Type" for name, _ in headers):
                lines.append(f"Content-Type: {TYPES[request.accept]}\r\n")
        lines += [f"{name}: {value}\r\n" for name, value in (*headers, *cors(request.origin))]
        lines.append("Connection: close\r\n\r\n" if request.last else "\r\n")
        self._line.write("".join(lines).encode("latin-1") + (b"" if request.bare else body))

    def leave(self) -> None:
        """See :class:`Speech`."""
