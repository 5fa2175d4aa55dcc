"""What a trainer and its server process say to each other: msgspec structs, framed, over a socket pair.

Nothing of a client's comes this way: what clients write is in the log, whose positions are told here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import Any, TypeAlias, final

import msgspec

from steppe.types import AgentID, Array

_LENGTH = struct.Struct("<I")
_PIECE = 1 << 16
_PATIENCE_S = 10.0
"""How long the other end may take no bytes before it counts as gone."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a :class:`~steppe.serving.env.PolicyServer` was told that its process has to know."""

    host: str
    port: int
    log_dir: str | None = None
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure: bool = False
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    episode_ttl: float = 300.0
    guard: float | None = None
    queue_bytes: int = 64 << 20
    limits: dict[str, int | float] = {}  # bytes are whole


class Served(msgspec.Struct, frozen=True):
    """One policy, without its weights, as JSON values.

    Attributes:
        observation: describes what it observes, the critic's part included.
        action: describes the env's action space.
        network: see :meth:`steppe.types.Policy.export`.
        exploration: likewise; None: there is none.
    """

    observation: dict[str, Any]
    action: dict[str, Any]
    network: dict[str, Any]
    exploration: dict[str, Any] | None = None


class Configure(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The first message: what to serve, and how.

    Attributes:
        pairs: descriptions of the spaces that agents have: of observations, of actions.
        agents: those that are known before they come, with the index of their pair, and who acts for them
            if that is known, too.
        everyone: the index of the pair of all others; None: there are no others.
        explore: whether actions are drawn.
        off_policy: whether actions are welcome that somebody else chose.
        max_weight_lag: versions that a client's row may be behind the newest; None: any number.
        held_rows: newest rows of an open episode whose decisions can still be credited.
    """

    settings: Settings
    policies: dict[str, Served]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]]
    agents: list[tuple[AgentID, int, str | None]]
    everyone: int | None = None
    multi_agent: bool = False
    explore: bool = True
    off_policy: bool = False
    max_weight_lag: int | None = None
    held_rows: int = 1000


class Packed(msgspec.Struct, frozen=True):
    """The newest weights of one policy: arrays by name as (dtype, shape, bytes)."""

    version: int
    arrays: dict[str, tuple[str, tuple[int, ...], bytes]]
    scalars: dict[str, float]

    @classmethod
    def of(cls, version: int, arrays: dict[str, Array], scalars: dict[str, float]) -> Packed:
        """Arrays of numbers, as they are sent."""
        return cls(version, {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in arrays.items()}, scalars)


class Publish(msgspec.Struct, tag=True, frozen=True):
    """Act with these from now on."""

    policies: dict[str, Packed]


class Consumed(msgspec.Struct, tag=True, frozen=True):
    """The learner has read the log up to ``position``; what is before ``saved`` is not asked for again."""

    position: int
    saved: int


class Mapped(msgspec.Struct, tag=True, frozen=True):
    """The answer to a :class:`Map`; None: the trainer's function failed, and the run with it."""

    agent: AgentID
    episode: int
    policy: str | None


class Beat(msgspec.Struct, tag=True, frozen=True):
    """The trainer lives."""


class Begin(msgspec.Struct, tag=True, frozen=True):
    """Let clients in: the weights are there."""


class Frozen(msgspec.Struct, tag=True, frozen=True):
    """This version acts whatever is published; None: the newest. Who hears it remembers it."""

    version: int | None


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Answer what is under way, write the log, and end."""


class Opened(msgspec.Struct, tag=True, frozen=True):
    """The log is open.

    Attributes:
        log: id of the log, which was recovered.
        end: where it ended then.
    """

    log: str
    end: int


class Synced(msgspec.Struct, tag=True, frozen=True):
    """The log is on disk up to here: the trainer may read so far."""

    position: int


class Map(msgspec.Struct, tag=True, frozen=True):
    """Who acts for an agent that nobody has named before."""

    agent: AgentID
    episode: int


class Said(msgspec.Struct, tag=True, frozen=True):
    """Something for the run's log, at one of logging's levels."""

    level: int
    text: str


class Counts(msgspec.Struct, tag=True, frozen=True):
    """What was odd, counted since this process began."""

    counts: dict[str, int]


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The server cannot begin; ``text`` says why, and what to do."""

    text: str


ToServer: TypeAlias = Configure | Publish | Consumed | Mapped | Beat | Begin | Frozen | Stop
ToTrainer: TypeAlias = Frozen | Opened | Synced | Map | Said | Counts | Failed

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToServer | ToTrainer).decode


def framed(message: ToServer | ToTrainer) -> bytes:
    """A message as it goes over the line."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


@final
class Frames:
    """Bytes as they come, cut into messages."""

    def __init__(self) -> None:
        self._read = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are whole now.

        Raises:
            msgspec.DecodeError: the other end is of another version.
        """
        self._read += data
        found, start = [], 0
        while len(self._read) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(self._read, start)[0]
            if len(self._read) < end:
                break
            found.append(_decode(memoryview(self._read)[start + _LENGTH.size : end].tobytes()))
            start = end
        del self._read[:start]
        return found


@final
class Line:
    """The trainer's end of the connection, which several threads may send on.

    Args:
        connection: one of a pair; the line owns it.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE_S)
        self._connection, self._frames, self._lock = connection, Frames(), threading.Lock()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, message: ToServer) -> None:
        """Send a message.

        Raises:
            OSError: nobody is there any more, or takes it.
        """
        with self._lock:
            self._connection.sendall(framed(message))

    def receive(self, timeout: float) -> list[Any] | None:
        """The messages that came; none after ``timeout`` seconds; None: the other end is gone."""
        if not self._poll.poll(1000 * timeout):
            return []
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self._connection.recv(_PIECE)
        return self._frames.feed(data) if data else None

    def close(self) -> None:
        """The other end notices."""
        self._connection.close()
