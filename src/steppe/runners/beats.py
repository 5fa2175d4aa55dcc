"""Runners tell how far they are while they sample, in datagrams: a process that hangs cannot be asked."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, final

EVERY_S = 0.25
_BEAT = struct.Struct("!16sIIQQ")


def often(timeout: float | None) -> float:
    """Seconds between beats, and between looks at them, where ``timeout`` without a step is too long."""
    return EVERY_S if timeout is None else min(EVERY_S, timeout / 20)


class Beat(NamedTuple):
    """What a runner tells: its incarnation, env steps executed, and the memory it has, in bytes."""

    incarnation: int
    executed: int
    memory: int


class Where(NamedTuple):
    """Where beats go: an address, what shows that they belong there, and how often in seconds."""

    host: str
    port: int
    token: bytes
    every_s: float


@final
class Listener:
    """Hears beats.

    Args:
        host: the address of this machine that the runners reach.
        every_s: seconds between the beats of a runner.
    """

    def __init__(self, host: str, every_s: float = EVERY_S) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self._socket.setblocking(False)
        self.where = Where(host, self._socket.getsockname()[1], os.urandom(16), every_s)

    def heard(self) -> dict[int, Beat]:
        """By place the newest beat since it was asked last."""
        newest: dict[int, Beat] = {}
        with contextlib.suppress(BlockingIOError):
            while True:
                beat = self._socket.recv(_BEAT.size + 1)
                if len(beat) == _BEAT.size and beat.startswith(self.where.token):
                    _, place, *told = _BEAT.unpack(beat)
                    newest[place] = max(newest.get(place, Beat(0, 0, 0)), Beat(*told))
        return newest

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def beat(where: Where, place: int, incarnation: int, executed: Callable[[], int]) -> None:
    """Tell ``where`` from now on, until this process ends, how many env steps were executed."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def forever() -> None:
        while True:
            with contextlib.suppress(OSError):  # nobody listens, or the network is away for a moment
                told = _BEAT.pack(where.token, place, incarnation, executed(), resident())
                sender.sendto(told, where[:2])
            time.sleep(where.every_s)

    threading.Thread(target=forever, name="steppe-beats", daemon=True).start()


def resident() -> int:
    """Memory of this process alone, without what it shares, in bytes; 0 where it is not known."""
    with contextlib.suppress(OSError), open("/proc/self/statm", "rb") as told:
        whole, shared = map(int, told.read().split()[1:3])
        return (whole - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0
