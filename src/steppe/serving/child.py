"""The server process: ``python -m steppe.serving.child CONTROL LISTENER``, file descriptors of a trainer's.

It serves with what the trainer publishes, until that ends. It imports neither JAX nor Gymnasium nor Ray: it
begins in a moment, because it may have to do so often.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from steppe.errors import ConfigError, SteppeError
from steppe.policies.actors import Actors
from steppe.policies.numpy_policy import Exported, NumpyPolicy
from steppe.serving import control, security
from steppe.serving.control import Configure, Frames, framed
from steppe.serving.facts import Facts, PolicyFacts, Settings
from steppe.serving.gate import Gate
from steppe.serving.limits import Limits
from steppe.serving.log import Log
from steppe.serving.messages import Refused
from steppe.serving.security import Tokens
from steppe.serving.server import Server
from steppe.serving.transport import Transport
from steppe.spaces import from_description, leaves, zeros
from steppe.types import SpacePair

DRAIN_S = 1.5
"""How long what is under way may take when the server ends; and the connections afterwards, half of it."""
_TOLD_S = 0.005
"""Between two words to the trainer about how far the log is on disk."""
_LOCK_S = 4.0
"""How long a log may still be another process's, which is ending."""


def served(configure: Configure, *, training: bool = True, **how: Any) -> tuple[Server, Transport]:
    """A server and its transport, which does not listen yet.

    Args:
        configure: what is served, and how.
        training: whether anybody learns from it.
        how: of a :class:`Server`.

    Raises:
        ConfigError: a policy needs code of the user's own, tokens or certificate are of no use, or the server
            would be open to anybody.
    """
    policies = {id: NumpyPolicy(one.network, one.exploration) for id, one in configure.policies.items()}
    actors = Actors(policies, explore=configure.explore, rng=np.random.default_rng())
    settings, limits = _limits(configure)
    gate, warning, tls = _gate(configure.settings, limits)
    server = Server(_facts(configure, policies, training), actors, settings, **how)
    transport = Transport(server, gate, limits, tls=tls, warning=warning)
    server.gauges = lambda: transport.counts
    return server, transport


def _facts(configure: Configure, policies: Mapping[str, NumpyPolicy], training: bool) -> Facts:
    pairs = [SpacePair(*map(from_description, pair)) for pair in configure.pairs]
    told = {
        id: PolicyFacts(
            *(from_description(one.observation), from_description(one.action)),
            *(one.network, one.exploration),
            recurrent=policies[id].initial_state(1) is not None,
        )
        for id, one in configure.policies.items()
    }
    return Facts(
        {agent: pairs[index] for agent, index, _ in configure.agents},
        told,
        {agent: policy for agent, _, policy in configure.agents if policy is not None},
        everyone=None if configure.everyone is None else pairs[configure.everyone],
        multi_agent=configure.multi_agent,
        training=training,
        off_policy=configure.off_policy,
        max_weight_lag=configure.max_weight_lag,
    )


def _limits(configure: Configure) -> tuple[Settings, Limits]:
    """Limits of the server and of its connections; a body may hold an observation of everyone, four times."""
    told = configure.settings
    everyone = [configure.pairs[index] for _, index, _ in configure.agents] or configure.pairs
    columns = [zeros(from_description(observation), 1) for observation, _ in everyone]
    size = 4 * sum(leaf.nbytes for column in columns for leaf in leaves(column))
    limits = Limits(**told.limits)  # type: ignore[arg-type]  # whole numbers are numbers
    limits = dataclasses.replace(limits, body=max(limits.body, size))
    settings = Settings(
        episode_ttl=told.episode_ttl,
        queue_bytes=told.queue_bytes,
        held_rows=configure.held_rows,
        guard=told.guard,
        body_limit=limits.body,
    )
    return settings, limits


def _gate(told: control.Settings, limits: Limits) -> tuple[Gate, str | None, ssl.SSLContext | None]:
    """Who is let in, what has to be said about that, and TLS."""
    tokens = Tokens(None if told.token_file is None else Path(told.token_file), limits.rate)
    tls = None
    if told.tls_cert is not None and told.tls_key is not None:
        tls = security.tls_context(Path(told.tls_cert), Path(told.tls_key))
    warning = security.check_exposure(
        told.host, tokens=told.token_file is not None, tls=tls is not None, insecure=told.insecure
    )
    return Gate(tokens, limits, (told.host, *told.allow_hosts), told.allow_origins), warning, tls


@final
class _Told(logging.Handler):
    """Lets the trainer say what this process has to say."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        super().__init__(logging.INFO)
        self._writer, self._loop = writer, asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """From whatever thread."""
        message = framed(control.Said(record.levelno, self.format(record)))
        self._loop.call_soon_threadsafe(self._writer.write, message)


@final
class _Child:
    """A server, and its line to the trainer.

    Args:
        configure: what to serve.
        writer: to the trainer.

    Raises:
        SteppeError: something of it cannot be served, or the log is damaged.
    """

    def __init__(self, configure: Configure, writer: asyncio.StreamWriter) -> None:
        self._writer, self._synced = writer, 0
        self._telling = self.listening = False
        self._frozen: int | None = None
        self.server: Server
        assert configure.settings.log_dir is not None
        self.log = _opened(Path(configure.settings.log_dir), lambda: self.server.snapshot())
        self.server, self.transport = served(configure, log=self.log, ask=self._ask, synced=self._note)
        self.server.recover()
        self._tell(control.Opened(self.log.id, self.log.end))
        self._note(self.log.synced)

    def take(self, message: Any) -> None:
        """Do what the trainer says."""
        match message:
            case control.Publish(policies=policies):
                for id, packed in policies.items():
                    self.server.publish(id, _exported(packed))
            case control.Consumed(position=position, saved=saved):
                self.server.taken(position)
                self.server.consumed(saved)
            case control.Frozen(version=int() as version):
                with contextlib.suppress(Refused):
                    self.server.freeze(version)
                self._frozen = self.server.frozen
            case control.Mapped(agent=agent, episode=episode, policy=str() as policy):
                self.server.mapped(agent, episode, policy)
            case control.Beat():
                self.server.beat()
                self._note_frozen()
                self._tell(control.Counts(self.server.counts()))

    async def begin(self, listener: socket.socket) -> None:
        """Let clients in."""
        await self.transport.listen(sock=listener)
        self.listening = True

    async def end(self) -> None:
        """Answer what is under way, and leave the log as it should be."""
        await self.server.drain(DRAIN_S)
        await self.transport.drain(DRAIN_S / 2)
        self.log.close()
        self._synced = self.log.synced
        self._tell_synced()

    def _tell(self, message: control.ToTrainer) -> None:
        self._writer.write(framed(message))

    def _ask(self, agent: Any, number: int) -> None:
        self._tell(control.Map(agent, number))

    def _note(self, position: int) -> None:
        """The log is on disk up to here: the trainer is told often, but not thousands of times a second."""
        self._synced = position
        self._note_frozen()
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(_TOLD_S, self._tell_synced)

    def _note_frozen(self) -> None:
        """What froze, or was released, is to outlive this process."""
        if self.server.frozen != self._frozen:
            self._frozen = self.server.frozen
            self._tell(control.Frozen(self._frozen))

    def _tell_synced(self) -> None:
        """Let the trainer read what is on disk."""
        self._telling = False
        self._tell(control.Synced(self._synced))


def _exported(packed: control.Packed) -> Exported:
    """Weights as they came over the line."""
    arrays = {name: np.ndarray(shape, dtype, data) for name, (dtype, shape, data) in packed.arrays.items()}
    return Exported(packed.version, arrays, packed.scalars)


def _opened(folder: Path, snapshot: Any) -> Log:
    """The log, which a process that is ending may still have."""
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            return Log(folder, snapshot=snapshot)
        except ConfigError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


async def _serve(line: socket.socket, listener: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=line)
    logging.getLogger("steppe").addHandler(_Told(writer))
    logging.getLogger("steppe").setLevel(logging.INFO)
    said: asyncio.Queue[Any] = asyncio.Queue()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, said.put_nowait, control.Stop())
    tasks = [asyncio.create_task(_hear(reader, said))]
    if not isinstance(configure := await said.get(), Configure):
        return  # it was over before it began
    try:
        child = _Child(configure, writer)
    except SteppeError as error:
        writer.write(framed(control.Failed(str(error))))
        await writer.drain()
        return
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, child.transport.reload)
    # A third of an action's price was to look for garbage among what lives as long as the process.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    tasks.append(asyncio.create_task(child.server.run()))
    while not isinstance(message := await said.get(), control.Stop):
        child.take(message)
        if isinstance(message, control.Begin) and not child.listening:
            await child.begin(listener)
    await child.end()
    for task in tasks:
        task.cancel()
    writer.close()


async def _hear(reader: asyncio.StreamReader, said: asyncio.Queue[Any]) -> None:
    """What the trainer says; when it ends, this process has to stop."""
    frames = Frames()
    try:
        while data := await reader.read(1 << 16):
            for message in frames.feed(data):
                said.put_nowait(message)
    except OSError:
        pass  # it ended in the middle of something
    finally:  # however the line broke
        said.put_nowait(control.Stop())


def main(arguments: list[str]) -> None:
    """Serve until the trainer ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to understand
    line, listener = (socket.socket(fileno=int(number)) for number in arguments)
    asyncio.run(_serve(line, listener))


if __name__ == "__main__":
    main(sys.argv[1:])
