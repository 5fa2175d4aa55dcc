"""Messages between a run and the process of an env: MessagePack, in which columns are raw bytes.

There is no pickle on this wire: what it cannot carry as it is, is refused, and goes through Ray.
"""

from __future__ import annotations

import hmac
import socket
import struct
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, final

import msgspec
import numpy as np

from steppe.types import Array, EpisodeEnd, SlotInfo, TimeStep

_LENGTH = struct.Struct(">Q")
_ARRAY, _NUMBER, _TUPLE, _DICT = 1, 2, 3, 4
_PLAIN = (NoneType, bool, int, float, str, bytes)
_encode = msgspec.msgpack.encode
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A host that went away without a word is noticed within half a minute."""

_PIECE = 1 << 16
"""Bytes that are read at once: for more, Python would ask the system for memory each time."""

TOKEN_SIZE = 32
"""Bytes that a connection begins with, which only the run and its env know."""


class UnsendableError(Exception):
    """A value that the wire cannot carry so that it arrives as it was."""


def sendable(value: Any) -> Any:
    """``value`` as MessagePack has it; arrays, numpy's numbers and tuples arrive as what they were.

    Raises:
        UnsendableError: something in it would arrive as something else, or not at all.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return _ext(_ARRAY, [value.dtype.str, value.shape, value.tobytes()])
    if kind is dict:
        return _ext(_DICT, [[sendable(key), sendable(part)] for key, part in value.items()])
    if kind is list:
        return [sendable(part) for part in value]
    if kind is tuple:
        return _ext(_TUPLE, [sendable(part) for part in value])
    if isinstance(value, np.number | np.bool_):
        return _ext(_NUMBER, [value.dtype.str, (), value.tobytes()])
    raise UnsendableError(kind.__name__)


def _ext(code: int, parts: list[Any]) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, _encode(parts))


def _of_ext(code: int, data: memoryview) -> Any:
    parts = _decode(data)
    if code == _TUPLE:
        return tuple(parts)
    if code == _DICT:
        return dict(parts)
    dtype, shape, content = parts
    array: Array = np.frombuffer(content, dtype).reshape(shape)
    return array.copy() if code == _ARRAY else array[()]


_decode = msgspec.msgpack.Decoder(ext_hook=_of_ext).decode


def packed(value: Any) -> bytes:
    """A message.

    Raises:
        UnsendableError: see :func:`sendable`.
    """
    try:
        return _encode(sendable(value))
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise UnsendableError(str(error)) from None


def unpacked(message: bytes) -> Any:
    """What :func:`packed` was given."""
    return _decode(message)


def packed_answer(steps: Sequence[TimeStep], env_steps: int, health: Mapping[str, int]) -> bytes:
    """What an env's process says after a step, as a message.

    Raises:
        UnsendableError: see :func:`sendable`; an ``info`` may hold anything.
    """
    if any(one.decided is not None for one in steps):
        raise UnsendableError("decided")
    columns = [
        (
            *(one.slot, one.t, one.obs, one.reward, one.terminated, one.truncated),
            [tuple(info) for info in one.opened],
            [tuple(end) for end in one.closed],
            *(dict(one.info), one.space),
        )
        for one in steps
    ]
    return packed((columns, env_steps, dict(health)))


def unpacked_answer(message: bytes) -> tuple[list[TimeStep], int, dict[str, int]]:
    """What :func:`packed_answer` was given."""
    steps, env_steps, health = unpacked(message)
    return [_step(*columns) for columns in steps], env_steps, health


def _step(slot: Any, t: Any, obs: Any, reward: Any, terminated: Any, truncated: Any, *rest: Any) -> TimeStep:
    opened, closed, info, space = rest
    slots, ends = [SlotInfo(*one) for one in opened], [EpisodeEnd(*one) for one in closed]
    return TimeStep(slot, t, obs, reward, terminated, truncated, slots, ends, info, space)


@final
class Wire:
    """One end of a connection, over which whole messages go.

    Args:
        connection: that is open; the wire owns it.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection, self._read = connection, bytearray()

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def send(self, message: bytes) -> None:
        """Send a message, which may be empty.

        Raises:
            OSError: the other end is gone.
        """
        self._connection.sendall(_LENGTH.pack(len(message)) + message)

    def receive(self, *, wait: bool = True) -> bytes | None:
        """The next message; None: it has not come as a whole yet, and is not waited for.

        Raises:
            OSError: the other end is gone.
        """
        while (message := self._whole()) is None:
            try:
                some = self._connection.recv(_PIECE, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if not some:
                raise ConnectionResetError("the other end has closed the connection")
            self._read += some
        return message

    def _whole(self) -> bytes | None:
        """The message that was read, if it is all here."""
        size = _LENGTH.size
        if len(self._read) < size:
            return None
        end = size + _LENGTH.unpack_from(self._read)[0]
        if len(self._read) < end:
            return None
        message = bytes(self._read[size:end])
        del self._read[:end]
        return message

    def close(self) -> None:
        """The other end notices."""
        self._connection.close()


def dial(address: tuple[str, int], token: bytes, timeout: float) -> Wire:
    """Connect to who listens at ``address`` and knows ``token``.

    Raises:
        OSError: nobody does.
    """
    connection = socket.create_connection(address, timeout)
    connection.sendall(token)
    connection.settimeout(None)
    return Wire(connection)


def pick_up(listener: socket.socket, token: bytes, timeout: float) -> Wire:
    """The first connection that begins with ``token``; others are closed.

    Raises:
        TimeoutError: none came.
    """
    listener.settimeout(timeout)
    while True:
        connection, _ = listener.accept()
        connection.settimeout(timeout)
        try:
            known = hmac.compare_digest(connection.recv(TOKEN_SIZE, socket.MSG_WAITALL), token)
        except OSError:
            known = False
        if known:
            connection.settimeout(None)
            return Wire(connection)
        connection.close()
