"""The trainer's side of the server process: it is started, heard, and started again when it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import steppe
from steppe.errors import ConfigError, RunnerError
from steppe.policies.actors import KEPT
from steppe.serving import control
from steppe.serving.control import (
    Beat,
    Begin,
    Configure,
    Consumed,
    Failed,
    Frozen,
    Line,
    Opened,
    Publish,
    Stop,
)

logger = logging.getLogger("steppe")

_BEAT_S = 1.0
_GRACE_S = 3.0
"""How long a process may take to answer what is under way, before it is killed."""
_CHILD = ("-P", "-m", "steppe.serving.child")  # -P: what lies in this folder hides no library
_MOST_STILLBORN = 10
"""Processes in a row that may fail before they open the log; the next one would, too."""
_PAUSE_S = 0.05
"""Before the process after one of these, times their number."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address, for any number of processes one after the other.

    It is the trainer's: while a server process is replaced, clients wait in the queue of this socket.

    Raises:
        ConfigError: the address is taken, or not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=4096)
    except OSError as error:
        raise ConfigError(
            f"the server cannot listen at {host}:{port}: {error.strerror or error}; name another port, or 0 "
            "for any that is free"
        ) from None


@final
class ServerProcess:
    """One server process at a time, and the newest that it has to know.

    Args:
        configure: the first message to each process.
        listener: where clients connect; it is closed by :meth:`close`.
        heard: gets every message, in a thread of its own.

    Attributes:
        failed: why there is no process any more; None while there is one, or will be.
        restarts: processes that were replaced.
        pid: of the process.
    """

    def __init__(
        self, configure: Configure, listener: socket.socket, heard: Callable[[control.ToTrainer], None]
    ) -> None:
        self._configure, self._listener, self._heard = configure, listener, heard
        self._published: list[control.Publish] = []
        self._frozen: tuple[Frozen, list[control.Publish]] | None = None
        self._consumed: Consumed | None = None
        self._line: Line | None = None
        self._lock, self._closing, self._last_word = threading.Lock(), False, float("inf")
        self.failed: Exception | None = None
        self.restarts, self.pid = 0, 0
        self._thread = threading.Thread(target=self._run, name="steppe-server", daemon=True)
        self._thread.start()

    def publish(self, weights: dict[str, control.Packed]) -> None:
        """Act with these from now on."""
        with self._lock:
            self._published.append(Publish(weights))
            self._tell(self._published[-1])
            if len(self._published) == 1:
                self._tell(Begin())
            if len(self._published) > KEPT:  # what another one does not replace stays
                older, newer = (one.policies for one in self._published[:2])
                self._published[:2] = [Publish({**older, **newer})]

    def consumed(self, position: int, saved: int) -> None:
        """The log was read up to ``position``, and nobody goes back behind ``saved``."""
        with self._lock:
            self._consumed = Consumed(position, saved)
            self._tell(self._consumed)

    def send(self, message: control.ToServer) -> None:
        """Say something that a process that dies need not know."""
        with self._lock:
            self._tell(message)

    def close(self) -> None:
        """Let the process answer what is under way, and end it; may be called twice."""
        with self._lock:
            if not self._closing:
                self._closing, self._last_word = True, time.monotonic() + _GRACE_S
                self._tell(Stop())
        self._thread.join()
        self._listener.close()

    def _tell(self, message: control.ToServer) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):  # it is gone: the next one is told what it has to know
                self._line.send(message)

    def _run(self) -> None:
        stillborn = 0
        try:
            while not self._closing:
                stillborn = 0 if self._serve() else stillborn + 1
                if self._closing or self.failed is not None:
                    return
                if stillborn >= _MOST_STILLBORN:
                    self.failed = RunnerError(
                        f"{stillborn} server processes in a row ended before they opened the log; what they "
                        "said stands above"
                    )
                    return
                self.restarts += 1
                time.sleep(_PAUSE_S * stillborn)
                logger.warning("the server process ended; another one takes its place at once")
        except Exception as error:  # poll raises it
            self.failed = error

    def _serve(self) -> bool:
        """One process, from its start to its end; whether it did not fail by itself at once."""
        ours, theirs = socket.socketpair()
        line, opened = Line(ours), False
        with theirs:
            process = _started(theirs, self._listener)
        try:
            with self._lock:
                self.pid, self._line = process.pid, line
                self._tell(self._configure)
                self._catch_up()
                if self._closing:
                    self._tell(Stop())
            for messages in self._beats(line):
                for message in messages:
                    opened = opened or isinstance(message, Opened)
                    if isinstance(message, Failed):
                        self.failed = ConfigError(message.text)
                    if isinstance(message, Frozen):
                        froze = message.version is not None
                        self._frozen = (message, list(self._published)) if froze else None
                    self._heard(message)
        finally:
            with self._lock:
                self._line = None
            line.close()
            _ended(process)
        return opened or process.returncode == -signal.SIGKILL

    def _catch_up(self) -> None:
        """Tell a new process what the one before it knew."""
        if self._consumed is not None:
            self._tell(self._consumed)
        before = [] if self._frozen is None else self._frozen[1]
        for published in before:
            self._tell(published)
        if self._frozen is not None:
            self._tell(self._frozen[0])
        for published in self._published:
            if not any(published is one for one in before):
                self._tell(published)
        if self._published:
            self._tell(Begin())

    def _beats(self, line: Line) -> Iterator[list[Any]]:
        """What comes, and a sign of life to the process every second; until nothing comes any more."""
        beat = 0.0
        while time.monotonic() < self._last_word and (messages := line.receive(_BEAT_S)) is not None:
            yield messages
            if time.monotonic() > beat + _BEAT_S:
                beat = time.monotonic()
                self.send(Beat())


def _started(theirs: socket.socket, listener: socket.socket) -> subprocess.Popen[bytes]:
    ends = theirs.fileno(), listener.fileno()
    own = str(Path(steppe.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))
    # One thread each: small products are faster so, and the learner needs the other cores.
    single = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    return subprocess.Popen(
        [sys.executable, *_CHILD, *map(str, ends)],
        stdin=subprocess.DEVNULL,
        pass_fds=ends,
        env={**os.environ, **single, "PYTHONPATH": paths},
    )


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that has hung up, and see to it."""
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
