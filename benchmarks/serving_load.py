"""Clients of a policy server as cheap as can be, good ones and bad: raw sockets, requests that are ready.

``python -m benchmarks.serving_load '{"mode": "ask", "port": 9900, "token": "...", ...}'`` prints what it saw,
as JSON. It imports nothing of steppe, so that it begins in a moment and leaves the cores to the server.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, final

import msgspec

FIRST_SEQ = 1_000_000
"""Numbers of requests all have as many digits, so that messages are as long as each other."""
_OBS = 8
_VARIANTS = 8
_WAIT_S = 0.05
_SILENCE_S = 20.0
"""After which a request without an answer is sent again, on a new connection."""


def head(port: int, token: str, length: int, verb: str = "act") -> bytes:
    """A request up to its body."""
    return (
        f"POST /v1/{verb} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A message of a WebSocket client, a text unless ``first`` says else; its mask is of zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + payload


def connected(port: int, upgrade: str | None = None) -> socket.socket:
    """A connection; with the token in ``upgrade``, one that has become a WebSocket."""
    made = socket.create_connection(("127.0.0.1", port), timeout=30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if upgrade is not None:
        made.sendall(
            f"GET /v1/socket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {upgrade}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        answer = made.recv(65536)
        if not answer.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"no WebSocket: {answer[:200]!r}")
    return made


def asked(made: socket.socket, port: int, token: str, verb: str, **fields: Any) -> tuple[int, Any]:
    """One request over HTTP, and what it came to."""
    body = json.dumps(fields).encode()
    made.sendall(head(port, token, len(body), verb) + body)
    data = b""
    while (parsed := http_answer(data)) is None:
        if not (more := made.recv(65536)):
            raise ConnectionError(f"hung up after {data[:200]!r}")
        data += more
    return parsed[0], json.loads(parsed[2] or b"null")


def http_answer(data: bytes) -> tuple[int, float, bytes] | None:
    """Status, seconds to wait, and body of an answer that is complete; else None."""
    if data.startswith(b"HTTP/1.1 200") and data.endswith(b"}"):  # short ones come at once
        return 200, 0.0, data[data.index(b"\r\n\r\n") + 4 :]
    first, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return None
    lines = [line.split(b": ", 1) for line in first.lower().split(b"\r\n")[1:]]
    headers = {line[0]: line[1] for line in lines if len(line) == 2}
    if len(body) < int(headers.get(b"content-length", 0)):
        return None
    return int(first[9:12]), float(headers.get(b"retry-after", 0)), body


def socket_answer(data: bytes) -> tuple[int, float, bytes] | None:
    """The same of a message of a WebSocket."""
    if len(data) < 4:
        return None
    start, size = (2, data[1]) if data[1] < 126 else (4, int.from_bytes(data[2:4], "big"))
    if len(data) < start + size:
        return None
    body = data[start : start + size]
    if b'"status":200' in body:
        return 200, 0.0, body
    if data[0] not in (0x81, 0x82):  # the server hangs up
        raise ConnectionError(f"frame {data[:40]!r}")
    told = json.loads(body) if data[0] == 0x81 else msgspec.msgpack.decode(body)
    return told["status"], float(told.get("retry_after", 0)), body


def act_parts(verb: str, name: str, episode: str, rng: random.Random) -> tuple[bytes, list[bytes]]:
    """What stands before the number of a request for an action, and several things that stand after it."""
    first = f'{{{verb}"client":"{name}","epoch":0,"seq":'.encode()
    rests = []
    for _ in range(_VARIANTS):
        obs = ",".join(f"{rng.uniform(-1, 1):.6f}" for _ in range(_OBS))
        rest = f',"episode_id":"{episode}","obs":[{obs}],"reward":1.0}}'.encode()
        rests.append(rest)
    width = max(map(len, rests))
    return first, [rest[:-1] + b" " * (width - len(rest)) + b"}" for rest in rests]


@final
class Asker:
    """A client that has one request under way, always.

    Attributes:
        requests: gives the message of each number.
        episode: the client's name, and what it has begun.
        upgrade: the token, on a WebSocket.
        seq: of the request under way.
        sent: when it was sent.
    """

    __slots__ = ("buffer", "episode", "made", "port", "requests", "sent", "seq", "upgrade")

    def __init__(
        self,
        port: int,
        upgrade: str | None,
        requests: Callable[[int], bytes],
        episode: tuple[str, str] = ("", ""),
    ) -> None:
        self.port, self.upgrade, self.requests, self.episode = port, upgrade, requests, episode
        self.made = connected(port, upgrade)
        self.seq, self.sent, self.buffer = FIRST_SEQ, 0.0, b""

    def again(self) -> None:
        """The same request, on a new connection."""
        self.made.close()
        while True:
            with contextlib.suppress(OSError):  # the server has just ended once more
                self.made, self.buffer = connected(self.port, self.upgrade), b""
                return self.ask()
            time.sleep(_WAIT_S)

    def leave(self, token: str) -> None:
        """End the episode, however long it takes."""
        client, episode = self.episode
        end = {"client": client, "epoch": 0, "seq": 10 * FIRST_SEQ, "episode_id": episode, "obs": None}
        with connected(self.port) as made:
            while asked(made, self.port, token, "end", truncated=True, **end)[0] != 200:
                time.sleep(1.0)
        self.made.close()

    def ask(self) -> None:
        """Send the request that is due."""
        self.sent = time.perf_counter()
        with contextlib.suppress(ConnectionError):  # which is noticed when the answer is read
            self.made.sendall(self.requests(self.seq))


def acting(port: int, token: str, number: int, websocket: bool) -> Asker:
    """A client that has begun an episode and will ask for its actions, one after the other."""
    rng = random.Random(number)
    name, episode = (
        f"load{rng.randrange(16**6):06x}{time.time_ns() % 10**9}",
        f"e{rng.random()}{time.time_ns()}",
    )
    with connected(port) as made:
        status, told = asked(made, port, token, "start", client=name, epoch=0, seq=1, episode_id=episode)
    if status != 200:
        raise ConnectionError(f"no episode: {status} {told}")
    first, rests = act_parts('"verb":"act","id":1,' if websocket else "", name, episode, rng)
    length = len(first) + 7 + len(rests[0])
    start = (frame(bytes(length))[:-length] if websocket else head(port, token, length)) + first
    return Asker(
        port,
        token if websocket else None,
        lambda seq: b"%b%d%b" % (start, seq, rests[seq % _VARIANTS]),
        (name, episode),
    )


def reporting(port: int, token: str, client: int) -> Asker:
    """A client whose reports each have an episode; its reward is 10 ** 7 of the client, and the number."""
    obs = [0.1] * _OBS
    name = f"r{client}x{time.time_ns() % 10**9}"
    items = [
        {"verb": "start", "episode_id": "ID"},
        {"verb": "act", "episode_id": "ID", "obs": obs, "sample": 1, "logp": -1.0, "weights_version": 0},
        {"verb": "end", "episode_id": "ID", "obs": None, "reward": "REWARD"},
    ]
    text = json.dumps({"client": name, "epoch": 0, "seq": "SEQ", "items": items})

    def body(seq: int) -> bytes:
        told = text.replace('"SEQ"', str(seq)).replace('"REWARD"', str((client + 1) * 10**7 + seq))
        return told.replace("ID", f"{name}-{seq}").encode()

    start = head(port, token, len(body(FIRST_SEQ)), "report")
    return Asker(port, None, lambda seq: start + body(seq))


@final
class Load:
    """Clients that each ask again as soon as they are answered; who is told to wait waits.

    Args:
        askers: the clients.
        parse: tells whether an answer is complete, and what it is.

    Attributes:
        times: seconds of each answer since ``began``.
        refused: answers that were not 200, by status.
        lost: connections.
        acknowledged: answers that were 200.
    """

    def __init__(
        self, askers: list[Asker], parse: Callable[[bytes], tuple[int, float, bytes] | None], began: float
    ) -> None:
        self.times, self.refused, self.lost, self.acknowledged = array("d"), Counter[int](), 0, 0
        self._parse, self._began = parse, began
        self._poll, self._by_fd = select.epoll(), dict[int, Asker]()
        self._waiting: list[tuple[float, int]] = []
        for asker in askers:
            self._join(asker)
            asker.ask()

    def run(self, until: float, stop_at: int | None = None) -> None:
        """Until then, or until each has had so many requests carried out; all that was asked is answered."""
        clock, checked = time.perf_counter, 0.0
        last = sys.maxsize if stop_at is None else FIRST_SEQ + stop_at
        while self._by_fd and ((now := clock()) < until or len(self._waiting) < len(self._by_fd)):
            for fd, _ in self._poll.poll(_WAIT_S):
                self._heard(self._by_fd[fd], last if now < until else 0)
            while self._waiting and self._waiting[0][0] < now < until:
                self._by_fd[heappop(self._waiting)[1]].ask()
            if now > checked + 1.0:
                checked = now
                self._look(now)
        self._poll.close()

    def _heard(self, asker: Asker, last: int) -> None:
        try:
            got = asker.made.recv(65536)
            answer = self._parse(asker.buffer + got)
            if answer is None and not got:
                raise ConnectionError
        except OSError:
            self._again(asker)
            return
        if answer is None:
            asker.buffer += got
            return
        asker.buffer, now = b"", time.perf_counter()
        if answer[0] == 200:
            self.acknowledged += 1
            asker.seq += 1
            if now > self._began:
                self.times.append(now - asker.sent)
            if asker.seq >= last:
                self._leave(asker)
                return
        else:
            self.refused[answer[0]] += 1
            if answer[1]:
                heappush(self._waiting, (now + answer[1], asker.made.fileno()))
                return
        asker.ask()

    def _look(self, now: float) -> None:
        """Who gets no answer asks again."""
        waits = {fd for _, fd in self._waiting}
        for fd, asker in [*self._by_fd.items()]:
            if fd not in waits and now - asker.sent > _SILENCE_S:
                self._again(asker)

    def _again(self, asker: Asker) -> None:
        self.lost += 1
        self._leave(asker)
        asker.again()
        self._join(asker)

    def _leave(self, asker: Asker) -> None:
        self._poll.unregister(asker.made)
        del self._by_fd[asker.made.fileno()]

    def _join(self, asker: Asker) -> None:
        self._by_fd[asker.made.fileno()] = asker
        self._poll.register(asker.made, select.EPOLLIN)

    def told(self, seconds: float) -> dict[str, Any]:
        """What came of it: a rate, milliseconds, and what went wrong."""
        return {
            "rate": len(self.times) / seconds,
            **quantiles(self.times),
            "refused": self.refused,
            "lost": self.lost,
            "acknowledged": self.acknowledged,
        }


def ask(
    port: int,
    token: str,
    *,
    clients: int = 64,
    websocket: bool = False,
    seconds: float = 10.0,
    warm: float = 1.0,
) -> dict[str, Any]:
    """Ask for actions as fast as the answers come."""
    askers = [acting(port, token, number, websocket) for number in range(clients)]
    began = time.perf_counter() + warm
    load = Load(askers, socket_answer if websocket else http_answer, began)
    load.run(began + seconds)
    for asker in askers:
        asker.leave(token)
    return load.told(seconds)


def number(port: int, token: str, *, clients: int = 8, batches: int = 8000) -> dict[str, Any]:
    """Clients that report so many episodes each, of one step that earned the number of its report."""
    askers = [reporting(port, token, client) for client in range(clients)]
    load = Load(askers, http_answer, 0.0)
    load.run(float("inf"), batches)
    for asker in askers:
        asker.made.close()
    return load.told(1.0)


def hold(port: int, token: str, *, connections: int = 2000) -> dict[str, Any]:
    """Connections that have asked once and rest, every other one a WebSocket, until standard input ends."""
    held = []
    for number in range(connections):
        held.append(connected(port, token if number % 2 else None))
        if not number % 2:
            held[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            held[-1].recv(4096)
    print(len(held), flush=True)
    sys.stdin.read()
    return {}


def attack(
    port: int, token: str, *, seconds: float, rate: int = 1000, slow: int = 500, large: int = 100
) -> Any:
    """Requests that never end, a wrong token every millisecond, and bodies that are too large.

    Returns:
        How many answers of which status there were, and how many connections ended without one.
    """
    poll, seen, open_ones = select.epoll(), Counter[str](), dict[int, socket.socket]()
    wrong = head(port, "wrong" * 5, 2) + b"{}"
    too_large = head(port, token, 2 << 20) + bytes(1 << 16)
    drip = head(port, token, 100)
    slow_ones: deque[tuple[float, int, int]] = deque()  # when the next byte is due, whose, which
    clock = time.perf_counter

    def opened(data: bytes) -> int:
        made = connected(port)
        made.setblocking(False)
        with contextlib.suppress(OSError):
            made.send(data)
        poll.register(made, select.EPOLLIN)
        open_ones[made.fileno()] = made
        return made.fileno()

    slow_fds = {opened(drip[:1]) for _ in range(slow)}
    began = clock()
    slow_ones.extend((began + number / max(slow, 1), fd, 1) for number, fd in enumerate(slow_fds))
    sent = larges = 0
    while (now := clock()) < began + seconds:
        while sent < (now - began) * rate:
            opened(wrong)
            sent += 1
        if larges < large * (now - began) / seconds:
            opened(too_large)
            larges += 1
        while slow_ones and slow_ones[0][0] < now:
            _, fd, at = slow_ones.popleft()
            if fd not in slow_fds:  # it was closed: another one takes its place
                fd, at = opened(drip[:1]), 1
                slow_fds.add(fd)
            with contextlib.suppress(OSError):
                open_ones[fd].send(drip[at : at + 1])
            slow_ones.append((now + 1.0, fd, at + 1))
        for fd, _ in poll.poll(0.001):
            made = open_ones.pop(fd)
            slow_fds.discard(fd)
            poll.unregister(fd)
            with contextlib.suppress(OSError), made:
                seen[made.recv(4096)[9:12].decode("latin-1") or "closed"] += 1
    for made in open_ones.values():
        made.close()
    poll.close()
    return {"sent": sent, "large": larges, "slow": len(slow_fds), "seen": seen}


def quantiles(times: array[float]) -> dict[str, float]:
    """Of seconds, in milliseconds."""
    ordered = sorted(times) or [float("nan")]
    return {f"p{p}": 1e3 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 99)}


MODES: dict[str, Callable[..., Any]] = {f.__name__: f for f in (ask, hold, attack, number)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(MODES[given.pop("mode")](**given)))
