"""What a client asks for, as the application sees it, and how requests are told apart on a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

from steppe.serving.gate import Admitted, Caller
from steppe.serving.limits import Limits

HeaderList = Sequence[tuple[str, str]]
Answer = tuple[int, bytes, HeaderList]
"""Status, body and further headers."""

_NOBODY = Caller("", frozenset(), "")


class Line(Protocol):
    """A connection, as what is said on it needs it."""

    limits: Limits

    def now(self) -> float:
        """Seconds of the event loop's clock."""

    def request(self) -> Request:
        """A new one, with an id."""

    def heard(self, request: Request, ready: Answer | None = None) -> None:
        """A request has arrived; ``ready``: the answer is known already."""

    def count(self, what: str) -> None:
        """Count what happens on connections."""

    def answered(self, request: Request, status: int, body: bytes, headers: HeaderList) -> None:
        """An answer has been given."""

    def write(self, data: bytes) -> None:
        """Send that, with what else goes out in this turn of the event loop."""

    def encourage(self) -> None:
        """Say that the body may come, if nothing else is to be said before."""

    def end(self, *, linger: bool = False) -> None:
        """Hear nothing more, answer what has been heard, then close; ``linger``: once the client has read."""


@final
class Request:
    """Something that a client asks for, and the way to answer it.

    Attributes:
        request_id: for logs.
        verb: what is asked for; empty on a WebSocket, whose messages name it themselves.
        body: as it came; on a WebSocket the whole message.
        kind: of the body and, on a WebSocket, of the answer: ``json`` or ``msgpack``.
        accept: kind of the answer.
        query: what the address says, by name.
        caller: who asks.
        etag: what ``If-None-Match`` says, or None.
        origin: of the page in a browser that asks, or empty.
        last: nothing follows it on its connection.
        bare: its answer has no body, but says how long that would be.
    """

    __slots__ = (
        *("_line", "accept", "bare", "body", "caller", "etag", "kind", "last", "origin", "query"),
        *("request_id", "verb"),
    )

    def __init__(self, line: Line, request_id: str) -> None:
        self._line: Line | None = line
        self.request_id, self.verb, self.body, self.kind, self.accept = request_id, "", b"", "json", "json"
        self.query: dict[str, str] = {}
        self.caller, self.origin, self.last, self.bare = _NOBODY, "", False, False
        self.etag: str | None = None

    def admit(self, admitted: Admitted) -> None:
        """Take over what is known by now."""
        self.verb, self.query, self.caller, self.kind, self.etag, self.origin, _ = admitted

    def answer(self, status: int, body: bytes, headers: HeaderList = ()) -> None:
        """Answer; once, now or later, in the thread of the event loop.

        Args:
            status: as HTTP has it.
            body: of the kind ``accept``, unless ``headers`` name a ``Content-Type``; on a WebSocket the whole
                message, with its id and status.
            headers: further ones, for HTTP alone.

        Raises:
            RuntimeError: it has been answered.
        """
        if (line := self._line) is None:
            raise RuntimeError(f"request {self.request_id} is answered a second time")
        self._line = None
        line.answered(self, status, body, headers)


class Speech(Protocol):
    """How requests and answers look on a connection."""

    most: int
    """Requests that may be under way at a time."""

    @property
    def unfinished(self) -> bool:
        """Whether a request has begun to arrive and is not complete."""

    def feed(self, data: bytes) -> Speech:
        """Tell the line what has been heard.

        Returns:
            Who is to be fed from now on.
        """

    def answer(self, request: Request, status: int, body: bytes, headers: HeaderList) -> None:
        """Write an answer."""

    def leave(self) -> None:
        """Write that the server closes the connection."""
