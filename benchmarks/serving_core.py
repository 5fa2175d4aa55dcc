"""Mutants for the server itself, without sockets: what it answers, and what comes into its log."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from benchmarks.serving_mutants import STATUSES, Mutants, Sent, judged
from steppe.envs.driven import Acted
from steppe.serving.gate import Caller
from steppe.serving.limits import Limits
from steppe.serving.log import Log, Tail
from steppe.serving.records import decode_write
from steppe.serving.requests import Request
from steppe.serving.security import SCOPES
from steppe.serving.server import Server

_TOGETHER = 16


@final
class Ear:
    """Hears the answers of a server, where a connection would be.

    Attributes:
        counts: what came of the requests, by name.
        approved: clients and numbers of those that were accepted, and are right.
        wrong: some that were not answered as they should be.
    """

    limits = Limits()

    def __init__(self) -> None:
        self.counts, self.approved, self.wrong = Counter[str](), set[tuple[Any, ...]](), list[str]()
        self.awaited = 0

    def request(self, sent: Sent) -> Request:
        """As it comes from a connection."""
        made = Request(self, str(self.awaited))  # type: ignore[arg-type]  # it is no whole line
        made.verb, made.kind, made.accept, made.body = sent.verb, sent.kind, sent.kind, sent.body
        made.caller = Caller("mutants", SCOPES, "")
        self.awaited += 1
        return made

    def answered(self, request: Request, status: int, body: bytes, headers: Any) -> None:
        """An answer has been given."""
        self.awaited -= 1
        self.counts[str(status)] += 1
        if status not in STATUSES:
            self.counts["uncaught"] += 1
            self.wrong.append(f"{status} for {request.body!r}"[:500])
        elif status == 200:
            sent = Sent(request.verb, request.kind, request.body)
            if (who := judged(sent)) is not None:
                self.approved.add(who)
            else:
                self.counts["wrong"] += 1
                self.wrong.append(f"accepted: {sent}"[:500])


def run(make: Callable[[Log], Server], count: int, seed: int = 0) -> Ear:
    """Send so many mutants, some of them together, to a server that ``make`` makes around a log."""
    return asyncio.run(_run(make, count, seed))


async def _run(make: Callable[[Log], Server], count: int, seed: int) -> Ear:
    ear, mutants = Ear(), Mutants(seed)

    def uncaught(loop: Any, context: dict[str, Any]) -> None:
        ear.counts["uncaught"] += 1
        ear.wrong.append(str(context)[:500])

    asyncio.get_running_loop().set_exception_handler(uncaught)
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder), snapshot=lambda: server.snapshot())
        server = make(log)
        server.recover()
        ticks = asyncio.create_task(server.run())
        gc.freeze()
        for _ in range(0, count, _TOGETHER):
            framed = mutants.rng.random() < 0.5
            if not await _started(ear, server, mutants, framed):
                ear.counts["good_refused"] += 1
            server.taken(log.synced)
            await _asked(ear, server, [mutants.mutant(framed=framed) for _ in range(_TOGETHER)])
        await server.drain(5.0)
        await ticks
        gc.unfreeze()
        log.close()
        tail = Tail(Path(folder))
        for record in _records(tail, log.synced):
            write = decode_write(record)
            rows = sum(isinstance(entry, Acted) for entry in write.entries)
            ear.counts["rows"] += rows
            if (write.client, write.epoch, write.seq) not in ear.approved:
                ear.counts["unapproved"] += rows
        tail.close()
    return ear


def _records(tail: Tail, end: int) -> Any:
    while records := tail.read(end):
        yield from records


async def _started(ear: Ear, server: Server, mutants: Mutants, framed: bool) -> bool:
    """Begin an episode, perhaps as another client."""
    for _ in range(2):
        before = ear.counts["200"]
        await _asked(ear, server, [mutants.start(framed=framed)])
        if ear.counts["200"] > before:
            return True
        mutants.renew()
    return False


async def _asked(ear: Ear, server: Server, several: list[Sent]) -> None:
    """Send requests, and wait until all of them are answered."""
    for sent in several:
        server(ear.request(sent))
    for _ in range(10_000):
        if not ear.awaited:
            return
        await asyncio.sleep(0 if _ < 5 else 0.001)
    ear.counts["unanswered"] += ear.awaited
    ear.awaited = 0
