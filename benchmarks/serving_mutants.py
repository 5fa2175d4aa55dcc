"""Requests that are nearly right, an oracle that knows which of them still are, and who sends them.

``python -m benchmarks.serving_mutants '{"port": 9900, "token": "...", "seed": 0, "count": 1000}'`` sends them
on sockets and prints what came of it, as JSON.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self, final

import msgspec

from benchmarks.serving_load import connected, frame, head, http_answer, socket_answer

_WORDS: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        2**53 + 1,
        2**63,
        1e308,
        -0.5,
        1.0,
        "",
        "a",
        "\u0000",
        "x" * 200,
        "../../etc",
        "\U0001f600",
    ),
    *(
        [],
        {},
        [[]],
        [1, 2],
        {"dtype": "float32", "shape": [8], "bytes": "AAAA"},
        {"action_mask": [0, 0]},
        "NaN",
        "1",
    ),
    *(["a"] * 8, [0.5] * 9, [1.5] * 8, [None] * 8, [True] * 8, [[0.1] * 8], {"0": 0.5}, "default_policy"),
]
_FIELDS = ("client", "epoch", "seq", "episode_id", "obs", "reward", "full", "verb", "id", "items", "acts")
_TEXTS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"[" * 2000,
    b'{"a":' * 500,
    b"\xff\xfe",
    b"\\ud800",
    b"0x10",
    b"//",
    b"\x00",
)
STATUSES = {200, 204, 304, 400, 401, 403, 404, 409, 412, 413, 415, 422, 426, 429, 503}
"""What docs/protocol.md allows for."""


class Sent(NamedTuple):
    """A request; without a verb, a message of a WebSocket, which names its verb itself."""

    verb: str
    kind: str
    body: bytes


# --- the oracle ---------------------------------------------------------------------------------------------


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and least <= value <= 2**53 and value == int(value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 3.4028234663852886e38


def _text(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and least <= len(value) <= most


def _obs(value: Any) -> bool:
    if type(value) is dict:
        return _array(value)
    return type(value) is list and len(value) == 8 and all(_bounded(one) for one in value)


def _bounded(value: Any) -> bool:
    return _finite(value) and abs(struct.unpack("f", struct.pack("f", value))[0]) <= 1


def _array(value: dict[str, Any]) -> bool:
    if value.keys() != {"dtype", "shape", "bytes"} or value["dtype"] != "float32" or value["shape"] != [8]:
        return False
    try:
        content = value["bytes"]
        content = content if type(content) is bytes else base64.b64decode(content, validate=True)
        return all(abs(one) <= 1 for one in struct.unpack("<8f", content))
    except (binascii.Error, struct.error, TypeError, ValueError):
        return False


def _maybe(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _truth(value: Any) -> bool:
    return type(value) is bool


def _info(value: Any) -> bool:
    return type(value) is dict


def _several(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and len(value) > 0 and all(map(check, value))


_ID, _REWARD = _text(1, 128), _maybe(_finite)
_Checks = dict[str, Callable[[Any], bool]]
_SENT: _Checks = {
    "client": lambda value: type(value) is str and re.fullmatch("[A-Za-z0-9_-]{1,64}", value) is not None,
    "epoch": _whole(0),
    "seq": _whole(1),
}
_STEP: _Checks = {"episode_id": _ID, "obs": _obs}
_START: _Checks = {"episode_id?": _maybe(_ID), "training_enabled?": _truth}
_RETURNS: _Checks = {
    **{"episode_id": _ID, "reward": _finite, "step?": _maybe(_whole(0))},
    **{"info?": _maybe(_info), "dones?": _maybe(lambda value: value == {})},
}
_END: _Checks = {"episode_id": _ID, "obs": _maybe(_obs), "truncated?": _truth, "reward?": _REWARD}
_DECIDED: _Checks = {
    **{**_STEP, "reward?": _REWARD, "sample": lambda value: _whole(0)(value) and value < 4},
    **{"logp": _finite, "weights_version": _whole(0)},
}
_ITEMS = {"start": _START, "act": _DECIDED, "log_returns": _RETURNS, "end": _END}


def _item(value: Any) -> bool:
    if type(value) is not dict or type(value.get("verb")) is not str or value["verb"] not in _ITEMS:
        return False
    return _fits(_ITEMS[value["verb"]], {key: part for key, part in value.items() if key != "verb"})


_VERBS: dict[str, _Checks] = {
    "start": _START,
    "act": {**_STEP, "reward?": _REWARD, "full?": _truth},
    "act_many": {
        "acts": _several(lambda value: _fits({**_STEP, "reward?": _REWARD}, value)),
        "full?": _truth,
    },
    "log_returns": _RETURNS,
    "end": _END,
    "report": {"items": _several(_item)},
}


def _fits(checks: _Checks, value: Any) -> bool:
    if type(value) is not dict:
        return False
    known = {name.rstrip("?"): check for name, check in checks.items()}
    needed = {name for name in checks if not name.endswith("?")}
    return needed <= value.keys() <= known.keys() and all(known[key](part) for key, part in value.items())


def judged(sent: Sent) -> tuple[Any, ...] | None:
    """Who sent it, with which number, if it is as the protocol's page and the spaces say; else None."""
    try:
        if sent.kind == "json":
            value = json.loads(sent.body.decode("utf-8"), parse_constant=_refuse)
        else:
            value = msgspec.msgpack.decode(sent.body)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    if type(value) is not dict:
        return None
    verb, checks = sent.verb, dict(_SENT)
    if not verb:
        verb = value.get("verb")
        checks |= {"verb": lambda _: True, "id": _whole(0)}
    if type(verb) is not str or verb not in _VERBS or not _fits(checks | _VERBS[verb], value):
        return None
    return value["client"], int(value["epoch"]), int(value["seq"])


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


# --- the mutants --------------------------------------------------------------------------------------------


@final
class Mutants:
    """Makes requests that are right, and then wrong.

    Args:
        seed: of all that is by chance.

    Attributes:
        name: of the client.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._epoch, self._seq, self._episode = 0, 0, ""
        self.renew()

    def renew(self) -> None:
        """Be another client: somebody has used a number of this one that is too high."""
        self.name = f"m{self.rng.randrange(10**6)}x{time.time_ns() % 10**9}"

    def sent(self, verb: str, kind: str, fields: dict[str, Any], *, framed: bool) -> Sent:
        """A request as it is sent."""
        value = ({"verb": verb, "id": self._seq} if framed else {}) | fields
        body = json.dumps(value).encode() if kind == "json" else msgspec.msgpack.encode(value)
        return Sent("" if framed else verb, kind, body)

    def number(self) -> dict[str, Any]:
        """Who sends, with a new number."""
        self._seq += 1
        return {"client": self.name, "epoch": self._epoch, "seq": self._seq}

    def start(self, *, framed: bool) -> Sent:
        """A request that is right: it begins an episode for those that follow."""
        self._epoch += 1  # whatever the numbers were by which those before it went
        who = self.number()
        self._episode = f"{self.name}-{self._seq}"
        return self.sent("start", "json", {**who, "episode_id": self._episode}, framed=framed)

    def good(self) -> tuple[str, dict[str, Any]]:
        """A verb, and what it says."""
        rng, who, id = self.rng, self.number(), self._episode
        obs: Any = [round(rng.uniform(-1, 1), 3) for _ in range(8)]
        new = f"{id}-{self._seq}"
        if rng.random() < 0.2:
            content = base64.b64encode(struct.pack("<8f", *obs)).decode()
            obs = {"dtype": "float32", "shape": [8], "bytes": content}
        step = {"episode_id": id, "obs": obs, "reward": 0.5}
        decided = {
            "verb": "act",
            "episode_id": new,
            "obs": obs,
            "sample": 1,
            "logp": -1.4,
            "weights_version": 0,
        }
        verb, fields = rng.choice(
            [
                ("act", step),
                ("act", {**step, "full": True}),
                ("act_many", {"acts": [step], "full": False}),
                ("log_returns", {"episode_id": id, "reward": 1.5, "info": {"why": [1, "a"]}, "step": 0}),
                ("report", {"items": [{"verb": "start", "episode_id": new}, decided]}),
                ("start", {"episode_id": new, "training_enabled": True}),
                ("end", {"episode_id": new, "obs": None, "truncated": True, "reward": 1}),
            ]
        )
        return verb, {**who, **fields}

    def mutant(self, *, framed: bool) -> Sent:
        """A request that was changed here and there: what it says, or its bytes."""
        verb, fields = self.good()
        kind = self.rng.choice(("json", "msgpack"))
        if self.rng.random() < 0.7:
            fields = self._twisted(copy.deepcopy(fields))
            if self.rng.random() < 0.1:
                verb = self.rng.choice([*_VERBS, "report"])
            return self.sent(verb, kind, fields, framed=framed)
        sent = self.sent(verb, kind, fields, framed=framed)
        return sent._replace(body=self.broken(sent.body))

    def _twisted(self, value: dict[str, Any]) -> dict[str, Any]:
        """Fields that are gone, swapped, of another name or another type."""
        rng, places = self.rng, [*_places(value)]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            holder, key = rng.choice(places)
            if isinstance(holder, dict) and key not in holder:
                continue
            match rng.randrange(5):
                case 0 if isinstance(holder, dict):
                    del holder[key]
                case 1 if isinstance(holder, dict):
                    holder[rng.choice(_FIELDS)] = holder.pop(key)
                case 2:
                    other, another = rng.choice(places)
                    if not isinstance(other, dict) or another in other:
                        holder[key] = copy.deepcopy(other[another])
                case 3 if isinstance(holder, dict):
                    holder[rng.choice((*_FIELDS, "x"))] = rng.choice(_WORDS)
                case _:
                    holder[key] = rng.choice(_WORDS)
        return value

    def broken(self, data: bytes) -> bytes:
        """Bytes that are flipped, gone, repeated, or others."""
        rng, made = self.rng, bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            if not made:
                break
            at, size = rng.randrange(len(made)), rng.choice((1, 2, 8, 40))
            match rng.randrange(5):
                case 0:
                    made[at] ^= 1 << rng.randrange(8)
                case 1:
                    del made[at : at + size if rng.random() < 0.7 else None]
                case 2:
                    made[at:at] = made[at : at + size]
                case 3:
                    made[at : at + size] = rng.randbytes(size)
                case _:
                    made[at:at] = rng.choice(_TEXTS)
        return bytes(made)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every key or index within ``value``."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


# --- on sockets ---------------------------------------------------------------------------------------------


@final
class Sender:
    """Sends mutants to a server, each in one of four ways, and keeps what came of them.

    Attributes:
        counts: what came of them, by name.
        approved: clients and numbers of those that were accepted, and are right.
        wrong: some that were accepted, and are not.
    """

    def __init__(self, port: int, token: str, seed: int) -> None:
        self.counts, self.approved, self.wrong = Counter[str](), set[tuple[Any, ...]](), list[str]()
        self._port, self._token, self._mutants = port, token, Mutants(seed)
        self._made: dict[bool, socket.socket] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for made in self._made.values():
            made.close()

    def send(self, count: int) -> None:
        """So many of them; every now and then a request that is right."""
        rng = self._mutants.rng
        for number in range(count):
            if number % 16 == 0:
                self._start(framed=rng.random() < 0.5)
            framed = number % 2 == 0
            if rng.random() < (0.1 if framed else 0.4):
                self._bytes(framed)
            else:
                self._message(self._mutants.mutant(framed=framed), framed=framed)

    def _start(self, *, framed: bool) -> None:
        for _ in range(2):
            if self._message(self._mutants.start(framed=framed), framed=framed) == 200:
                return
            self._mutants.renew()
        self.counts["good_refused"] += 1

    def _message(self, sent: Sent, *, framed: bool) -> int:
        """A message whose frame, or head, is right: it is answered, on a connection that stays."""
        if framed not in self._made:
            self._made[framed] = connected(self._port, self._token if framed else None)
            self._made[framed].settimeout(20.0)
        made = self._made[framed]
        try:
            made.sendall(self._whole(sent))
            data, answer = b"", None
            while answer is None:
                data += (more := made.recv(65536))
                answer = socket_answer(data) if framed else http_answer(data)
                if not more and answer is None:
                    raise ConnectionError(f"no answer to {sent}")
        except (OSError, ValueError) as error:
            self.counts["unanswered"] += 1
            self.wrong.append(repr(error)[:500])
            self._made.pop(framed).close()
            return 0
        self._note(answer[0], answer[2], [sent])
        return answer[0]

    def _whole(self, sent: Sent) -> bytes:
        if not sent.verb:
            return frame(sent.body, 0x81 if sent.kind == "json" else 0x82)
        first = head(self._port, self._token, len(sent.body), sent.verb)
        return first.replace(b"application/json", b"application/" + sent.kind.encode()) + sent.body

    def _bytes(self, framed: bool) -> None:
        """A connection whose bytes are wrong somewhere; nothing follows them."""
        verb, fields = self._mutants.good()
        sent = self._mutants.sent(verb, "json", fields, framed=framed)
        data = self._mutants.broken(self._whole(sent))
        heard = b""
        with connected(self._port, self._token if framed else None) as made:
            made.settimeout(20.0)
            try:
                made.sendall(data)
                made.shutdown(socket.SHUT_WR)
                while more := made.recv(65536):
                    heard += more
            except TimeoutError:
                self.counts["unanswered"] += 1
                self.wrong.append(f"no end after {data!r}"[:500])
            except OSError:
                self.counts["reset"] += 1
        told = [*(_frames(data) if framed else _requests(data))]
        # What was right may be carried out before the rest ends the connection, and its answer with it.
        self.approved |= {who for one in told if (who := judged(one)) is not None}
        self.counts["closed"] += not heard
        if framed:
            self._heard_frames(heard, told)
            return
        while b"\r\n\r\n" in heard:
            first, _, rest = heard.partition(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", first.lower())
            size = int(found[1]) if found else 0
            self._note(int(first[9:12]), rest[:size], told)
            heard = rest[size:]

    def _heard_frames(self, heard: bytes, sent: list[Sent]) -> None:
        while heard[:1] in (b"\x81", b"\x82") and (answer := socket_answer(heard)) is not None:
            self._note(answer[0], answer[2], sent)
            heard = heard[heard.index(answer[2]) + len(answer[2]) :]

    def _note(self, status: int, body: bytes, sent: list[Sent]) -> None:
        self.counts[str(status)] += 1
        if status not in STATUSES:
            self.counts["uncaught"] += 1
            self.wrong.append(f"{status} for {sent}"[:500])
        elif status == 200:
            found = {who for one in sent if (who := judged(one)) is not None}
            self.approved |= found
            if not found and sent:
                self.counts["wrong"] += 1
                self.wrong.append(f"accepted: {sent}"[:500])
        elif status >= 400:
            told = json.loads(body) if body[:1] == b"{" else msgspec.msgpack.decode(body or b"\xc0")
            if type(told) is not dict or not {"code", "message", "request_id"} <= told.keys():
                self.counts["unexplained"] += 1


def _requests(data: bytes) -> Iterator[Sent]:
    """The requests in these bytes, as far as they can be told apart."""
    while b"\r\n\r\n" in data:
        first, _, rest = data.partition(b"\r\n\r\n")
        lines = first.split(b"\r\n")
        found = re.search(rb"content-length:[ \t]*(\d+)", first.lower())
        verb = re.match(rb"POST +/v1/(\w+)", lines[0])  # parsers bear with further spaces
        size = int(found[1]) if found else 0
        if verb is not None:
            yield Sent(verb[1].decode(), "json", rest[:size])
        data = rest[size:]


def _frames(data: bytes) -> Iterator[Sent]:
    """The messages in these bytes, likewise."""
    while len(data) > 6:
        size, at = data[1] & 127, 2
        if size >= 126:
            size, at = (
                (int.from_bytes(data[2:4], "big"), 4)
                if size == 126
                else (int.from_bytes(data[2:10], "big"), 10)
            )
        mask, body = data[at : at + 4], data[at + 4 : at + 4 + size]
        yield Sent(
            "", "json" if data[0] & 15 == 1 else "msgpack", bytes(b ^ mask[i % 4] for i, b in enumerate(body))
        )
        data = data[at + 4 + size :]


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    count = given.pop("count")
    with Sender(**given) as sender:
        sender.send(count)
    print(json.dumps({"counts": sender.counts, "approved": [*sender.approved], "wrong": sender.wrong[:20]}))
