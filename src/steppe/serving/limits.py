"""What a server bears of its clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of everything the connections of a server may take.

    Attributes:
        header: bytes of a request before its body.
        body: bytes of a body, or of a message of a WebSocket.
        deadline: seconds that a request may take to arrive, from its first byte to its last; a client that
            does not read its answers for as long is disconnected, too.
        idle: seconds that a connection may stay without a request.
        connections: at most so many; for another one, that which has rested longest goes.
        under_way: requests of one WebSocket that wait for their answers.
        write_buffer: bytes of answers that a client has not read; above, none of its requests is begun.
        rate: requests a second of one token; a second's worth may come at once.
        wrong_tokens: the same for one address and requests whose token is wrong.
    """

    header: int = 16 << 10
    body: int = 1 << 20
    deadline: float = 10.0
    idle: float = 75.0
    connections: int = 4096
    under_way: int = 64
    write_buffer: int = 1 << 20
    rate: float = 50_000.0
    wrong_tokens: float = 20.0


@final
class Bucket:
    """Holds what may come at once, a second's worth, and fills as time goes by."""

    __slots__ = ("_at", "_level", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate, self._level, self._at = rate, max(rate, 1.0), 0.0

    def take(self, now: float) -> float:
        """Take one: 0, or the seconds until there will be one.

        Args:
            now: seconds of a clock that never goes back.
        """
        self._level = min(self._level + (now - self._at) * self._rate, max(self._rate, 1.0))
        self._at = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0

    def full(self, now: float) -> bool:
        """Whether nothing has been taken for so long that it can be forgotten."""
        return self._level + (now - self._at) * self._rate >= max(self._rate, 1.0)
