"""A finished policy, served without a trainer: nothing is learned, nothing is written down."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from steppe.errors import CheckpointError
from steppe.loading import POLICIES, checkpoint_at, read_checkpoint
from steppe.policies.numpy_policy import Exported
from steppe.serving import control
from steppe.serving.child import DRAIN_S, served
from steppe.serving.control import Configure, Served
from steppe.types import DEFAULT_POLICY, SINGLE_AGENT, AgentID


def finished(
    path: Path, settings: control.Settings, *, explore: bool
) -> tuple[Configure, dict[str, Exported]]:
    """What a checkpoint says of its policies, as a server process is told of them.

    Args:
        path: a checkpoint's folder, or a run's.
        settings: of the server.
        explore: draw actions, instead of taking the likeliest.

    Raises:
        CheckpointError: damaged, or no checkpoint of steppe.
        ConfigError: a policy needs code of the user's own.
    """
    folder = checkpoint_at(path)
    owners, meta = read_checkpoint(folder, [POLICIES, "runner"])
    acting, weights = {}, {}
    for id, told in owners[POLICIES].items():
        network = told["network"]
        if network["kind"] != "scripted":
            exploration = told.get("exploration") if explore else None
            acting[id] = Served(network["observation"], network["action"], network, exploration)
            weights[id] = Exported(int(meta["training_iteration"]), told["arrays"])
    if not acting:
        raise CheckpointError(f"{folder} holds no policy that could be served")
    pairs = [(one.observation, one.action) for one in acting.values()]
    unique = [pair for i, pair in enumerate(pairs) if pair not in pairs[:i]]
    agents = owners["runner"].get("agents") or ([SINGLE_AGENT] if DEFAULT_POLICY in acting else [])
    many = agents != [SINGLE_AGENT]
    known: list[tuple[AgentID, int, str | None]] = [
        (id, unique.index(pair), id) for id, pair in zip(acting, pairs, strict=True)
    ]
    if not many:
        known = [(SINGLE_AGENT, 0, next(iter(acting)))]
    everyone = 0 if many and len(unique) == 1 else None
    configure = Configure(
        settings=settings,
        policies=acting,
        pairs=unique,
        agents=known if len(acting) > 1 or not many else [],
        everyone=everyone,
        multi_agent=many,
        explore=explore,
    )
    return configure, weights


async def serve(
    configure: Configure, weights: Mapping[str, Exported], listener: socket.socket, begun: Callable[[], None]
) -> None:
    """Answer clients until a SIGINT or SIGTERM comes.

    Args:
        configure: what is served, and how.
        weights: by policy.
        listener: listens.
        begun: called when clients are let in.

    Raises:
        ConfigError: a policy needs code of the user's own, or the server would be open to anybody.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    server, transport = served(configure, training=False)
    loop.add_signal_handler(signal.SIGHUP, transport.reload)
    for id, exported in weights.items():
        server.publish(id, exported)
    await transport.listen(sock=listener)
    running = asyncio.create_task(server.run())
    begun()
    await ended.wait()
    await server.drain(DRAIN_S)
    await transport.drain(DRAIN_S / 2)
    running.cancel()
