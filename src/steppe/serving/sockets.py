"""Messages of a WebSocket as requests; websockets parses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Opening
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from steppe.serving.gate import SUBPROTOCOL, Admitted, Gate
from steppe.serving.messages import PROTOCOL, Refused, frame_id, framed, refusal_body
from steppe.serving.requests import HeaderList, Line, Request, Speech

_OPENING = ("connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol")
_GOING_AWAY = 1001
_WHOLE = {0x81: "json", 0x82: "msgpack"}
"""The first byte of a message that is a single frame, and its kind."""
_FIRST = {kind: first for first, kind in _WHOLE.items()}


@final
class Socket:
    """Tells messages apart, of which several may be under way.

    Args:
        line: the connection.
        gate: counts messages.
        admitted: the request that asked for it.
        headers: of that.

    Raises:
        Refused: it was no request for a WebSocket.
    """

    def __init__(self, line: Line, gate: Gate, admitted: Admitted, headers: Mapping[bytes, bytes]) -> None:
        self._line, self._gate, self._admitted = line, gate, admitted
        self.most = line.limits.under_way
        self._owed = 0
        self._kind, self._parts = "", [b""]
        self._protocol = ServerProtocol(max_size=line.limits.body, select_subprotocol=_chosen)
        named = [
            (name, headers[name.encode()].decode("latin-1")) for name in _OPENING if name.encode() in headers
        ]
        self._protocol.receive_data(Opening("/v1/socket", Headers(named)).serialize())
        opening = self._protocol.events_received()
        answer = self._protocol.accept(opening[0]) if opening else None  # type: ignore[arg-type]
        if answer is None or answer.status_code != 101:
            raise Refused("malformed", f"no WebSocket can be opened: {self._protocol.handshake_exc}")
        answer.headers["Steppe-Protocol"] = str(PROTOCOL)
        self._protocol.send_response(answer)
        self._send()

    @property
    def unfinished(self) -> bool:
        """See :class:`Speech`."""
        return self._owed != 0 or bool(self._kind)

    def feed(self, data: bytes) -> Speech:
        """See :class:`Speech`."""
        if not self.unfinished:
            data = self._hear_short(data)
        if data:
            self._parse(data)
        return self

    def _hear_short(self, data: bytes) -> bytes:
        """Hear messages that come as nearly all do, short and whole; returns the rest, for the parser.

        It would take a good part of the time that a request takes.
        """
        while len(data) > 6 and data[0] in _WHOLE and 0x80 < data[1] < 0xFF and self._protocol.state is OPEN:
            size, start = (data[1] & 0x7F, 6) if data[1] < 0xFE else (int.from_bytes(data[2:4], "big"), 8)
            end = start + size
            if end > len(data) or size > self._line.limits.body:
                break
            self._kind = _WHOLE[data[0]]
            self._parts = [_unmasked(data[start:end], data[start - 4 : start])]
            self._message()
            data = data[end:]
        return data

    def _parse(self, data: bytes) -> None:
        protocol = self._protocol
        protocol.receive_data(data)
        self._owed += len(data)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            size = len(frame.data)
            self._owed -= size + (6 if size < 126 else 8 if size < 1 << 16 else 14)
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                self._kind = "json" if frame.opcode is Opcode.TEXT else "msgpack"
                self._parts = [bytes(frame.data)]
            elif frame.opcode is Opcode.CONT:
                if size:
                    self._parts.append(bytes(frame.data))
            else:
                continue
            if frame.fin:
                self._message()
        self._send()

    def _message(self) -> None:
        request = self._line.request()
        request.admit(self._admitted)
        request.verb, request.kind, request.accept = "", self._kind, self._kind
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._kind = ""
        try:
            self._gate.count(self._admitted.token, self._line.now())
        except Refused as refused:
            self._line.count(f"refused_{refused.code}")
            after = refused.retry_after
            body = refusal_body(request.kind, refused.code, str(refused), request.request_id, after)
            told = framed(request.kind, frame_id(request.body, request.kind), refused.status, body)
            self._line.heard(request, (refused.status, told, ()))
            return
        self._line.heard(request)

    def answer(self, request: Request, status: int, body: bytes, headers: HeaderList) -> None:
        """See :class:`Speech`."""
        if self._protocol.state is not OPEN:
            return
        if len(body) < 126:
            self._line.write(bytes((_FIRST[request.kind], len(body))) + body)
            return
        if request.kind == "json":
            self._protocol.send_text(body)
        else:
            self._protocol.send_binary(body)
        self._send()

    def leave(self) -> None:
        """See :class:`Speech`."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(_GOING_AWAY)
            self._send()

    def allowed(self) -> bool:
        """Whether its token is still one."""
        return self._admitted.token is None or self._admitted.token in self._gate.tokens

    def _send(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._line.write(data)
            else:
                self._line.end(linger=True)


def _unmasked(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def _chosen(_: ServerProtocol, offers: Sequence[Any]) -> Any:
    return SUBPROTOCOL if SUBPROTOCOL in offers else None
