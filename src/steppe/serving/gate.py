"""What every request passes before its body is read: token, host, origin, form, and what it asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, final
from urllib.parse import parse_qsl, unquote

from steppe.serving.limits import Bucket, Limits
from steppe.serving.messages import PROTOCOL, SCOPES, WRITES, Refused
from steppe.serving.security import SCOPES as ALL_SCOPES
from steppe.serving.security import Token, Tokens

KINDS = {"application/json": "json", "application/msgpack": "msgpack"}
TYPES = {kind: name for name, kind in KINDS.items()}
SUBPROTOCOL = f"steppe.v{PROTOCOL}"
READ = frozenset(
    b"accept authorization connection content-length content-type expect host if-none-match origin"
    b" sec-websocket-key sec-websocket-protocol sec-websocket-version steppe-protocol transfer-encoding"
    b" upgrade access-control-request-method".split()
)
"""The headers that mean something here. Each may come once."""
CLOSING = ("malformed", "body_length", "unauthorized", "host", "origin", "too_large", "protocol")
"""Refusals that end the connection: what follows on it is not wanted, or cannot be told from the rest."""

_TOKEN_OFFER = b"steppe.token."
_MOST_ADDRESSES = 10_000
_PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET, POST, DELETE"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type, Accept, If-None-Match, Steppe-Protocol"),
    ("Access-Control-Max-Age", "600"),
)


@final
class Unwelcome(Refused):
    """A refusal that ends the connection, whatever its code."""


class Route(NamedTuple):
    """What a method and a path ask for.

    Attributes:
        verb: its name; ``socket`` for the upgrade to a WebSocket.
        public: no token is needed.
        rest: under this name of ``query`` goes what follows the path, which ends with a slash.
    """

    verb: str
    public: bool = False
    rest: str = ""


ROUTES: dict[tuple[str, str], Route] = {
    **{("POST", f"/v1/{verb}"): Route(verb) for verb in WRITES if verb != "delete"},
    **{("GET", f"/v1/{verb}"): Route(verb) for verb in ("spaces", "weights", "health", "versions", "socket")},
    ("DELETE", "/v1/episodes/"): Route("delete", rest="episode_id"),
    ("GET", "/metrics"): Route("metrics"),
    ("GET", "/livez"): Route("livez", public=True),
    ("GET", "/readyz"): Route("readyz", public=True),
}


class Caller(NamedTuple):
    """Who sent a request."""

    name: str
    scopes: frozenset[str]
    address: str


class Head(NamedTuple):
    """A request before its body. Of the headers those in :data:`READ`; ``repeated`` came more than once."""

    method: str
    target: bytes
    headers: Mapping[bytes, bytes]
    repeated: bytes = b""


class Admitted(NamedTuple):
    """What is known of a request that may go on.

    Attributes:
        kind: of the body, ``json`` or ``msgpack``.
        origin: of the page in a browser that asks, or an empty text.
        token: that it came with; None where none is needed.
    """

    verb: str
    query: dict[str, str]
    caller: Caller
    kind: str
    etag: str | None
    origin: str
    token: Token | None


@final
class Gate:
    """Lets requests in.

    Args:
        tokens: who may do what.
        limits: of bodies and rates.
        hosts: names and addresses that the server is asked by, beside ``localhost`` and its kin.
        origins: of pages whose scripts may use the server, such as ``https://shop.example``.
    """

    def __init__(
        self, tokens: Tokens, limits: Limits, hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self.tokens, self._limits = tokens, limits
        self._hosts = {"localhost", "127.0.0.1", "::1", *(host.lower().strip("[]") for host in hosts)}
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._wrong: dict[str, Bucket] = {}

    def sweep(self, now: float) -> None:
        """Forget addresses that have sent no wrong token for a while."""
        self._wrong = {address: bucket for address, bucket in self._wrong.items() if not bucket.full(now)}

    def admit(self, head: Head, address: str, here: str, now: float) -> Admitted:
        """What is known of a request by its head.

        Args:
            head: of the request.
            address: it came from.
            here: address of this end of the connection, by which the server may be called, too.
            now: seconds of a clock that never goes back.

        Raises:
            Refused: it may not go on.
        """
        length = _length(head)
        path, _, query = head.target.partition(b"?")
        route, rest = _route(head.method, _text(path))
        public = route is not None and route.public
        token = None if public else self._token(head.headers, address, now)
        origin = self._place(head.headers, here)
        if length > self._limits.body:
            raise Refused("too_large", f"a body of {length} bytes; at most {self._limits.body} are taken")
        _version(head.headers)
        if route is None:
            what = f"{head.method} {_text(path)[:200]}"
            raise Refused("unknown_verb", f"{what} is not of this protocol; see docs/protocol.md")
        scopes = ALL_SCOPES if token is None else token.scopes
        if (scope := SCOPES.get(route.verb, "")) and scope not in scopes:
            raise Refused("scope", f"{route.verb} needs a token with the scope {scope!r}")
        kind = _kind(head.headers) if head.method == "POST" else "json"
        self.count(token, now)
        asked = dict(parse_qsl(_text(query), keep_blank_values=True)) if query else {}
        if route.rest:
            asked[route.rest] = rest
        etag = head.headers.get(b"if-none-match")
        caller = Caller("" if token is None else token.name, scopes, address)
        return Admitted(route.verb, asked, caller, kind, None if etag is None else _text(etag), origin, token)

    def count(self, token: Token | None, now: float) -> None:
        """Count a request of a token.

        Raises:
            Refused: there were too many of late.
        """
        if token is not None and (wait := token.bucket.take(now)):
            message = f"more than {self._limits.rate:g} requests a second with the token {token.name!r}"
            raise Refused("rate", message, math.ceil(wait))

    def preflight(self, head: Head, here: str) -> list[tuple[str, str]] | None:
        """The headers of the answer, where a browser asks whether a page may send a request.

        Raises:
            Refused: it may not.
        """
        if head.method != "OPTIONS" or b"access-control-request-method" not in head.headers:
            return None
        _length(head)
        return [*cors(self._place(head.headers, here)), *_PREFLIGHT]

    def readers(self, headers: Mapping[bytes, bytes]) -> list[tuple[str, str]]:
        """The headers that let a page read why it was refused, if it may use this server at all."""
        origin = _text(headers.get(b"origin", b""))
        return cors(origin) if origin.lower() in self._origins else []

    def _token(self, headers: Mapping[bytes, bytes], address: str, now: float) -> Token | None:
        if self.tokens.path is None:
            return None
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if not scheme:
            offers = [part.strip() for part in headers.get(b"sec-websocket-protocol", b"").split(b",")]
            secret = next((part for part in offers if part.startswith(_TOKEN_OFFER)), b"")
            secret = secret.removeprefix(_TOKEN_OFFER)
        elif scheme.lower() != b"bearer":
            secret = b""
        if (token := self.tokens.find(secret.strip())) is not None:
            return token
        if len(self._wrong) >= _MOST_ADDRESSES:
            self._wrong.clear()
        bucket = self._wrong.setdefault(address, Bucket(self._limits.wrong_tokens))
        if wait := bucket.take(now):
            raise Unwelcome("rate", "too many wrong tokens from this address", math.ceil(wait))
        raise Refused("unauthorized", "send 'Authorization: Bearer TOKEN' with a token that the server knows")

    def _place(self, headers: Mapping[bytes, bytes], here: str) -> str:
        """The origin, if it and the host are known ones."""
        host = _text(headers.get(b"host", b"")).lower()
        name = re.sub(r":\d*$", "", host).strip("[]")
        if name not in self._hosts and name != here:
            raise Refused(
                "host", f"no server for {host[:200]!r} here; if it is right, name it in allow_hosts"
            )
        origin = _text(headers.get(b"origin", b""))
        if origin and origin.lower() not in self._origins:
            message = f"pages of {origin[:200]!r} may not use this server; else, name it in allow_origins"
            raise Refused("origin", message)
        return origin


def _length(head: Head) -> int:
    """Bytes of the body, where it is certain where the request ends."""
    if head.repeated:
        raise Refused("malformed", f"the header {_text(head.repeated)} came more than once")
    if not head.target.startswith(b"/"):
        raise Refused("malformed", "what is asked for must be a path, which begins with '/'")
    length = head.headers.get(b"content-length")
    if b"transfer-encoding" in head.headers or (head.method == "POST" and length is None):
        raise Refused("body_length", "a body needs a Content-Length, and comes in no chunks")
    return int(length or 0)


def _version(headers: Mapping[bytes, bytes]) -> None:
    version = _text(headers.get(b"steppe-protocol", b"")) or str(PROTOCOL)
    offers = [part.strip() for part in _text(headers.get(b"sec-websocket-protocol", b"")).split(",")]
    if version != str(PROTOCOL) or (any(offers) and SUBPROTOCOL not in offers):
        raise Refused("protocol", f"this server speaks version {PROTOCOL} of the protocol alone")


def _route(method: str, path: str) -> tuple[Route | None, str]:
    if (route := ROUTES.get((method, path))) is not None and not route.rest:
        return route, ""
    for (way, start), route in ROUTES.items():
        if route.rest and way == method and path.startswith(start) and len(path) > len(start):
            return route, unquote(path[len(start) :])
    return None, ""


def _kind(headers: Mapping[bytes, bytes]) -> str:
    name = _text(headers.get(b"content-type", b"")).partition(";")[0].strip().lower()
    if name not in KINDS:
        raise Refused("media_type", f"Content-Type {name[:200]!r}: send {' or '.join(KINDS)}")
    return KINDS[name]


def accepted(header: bytes, otherwise: str) -> str:
    """The first kind that ``Accept`` names, or ``otherwise``."""
    for part in _text(header).lower().split(",") if header else ():
        if (kind := KINDS.get(part.partition(";")[0].strip())) is not None:
            return kind
    return otherwise


def cors(origin: str) -> list[tuple[str, str]]:
    """The headers that let a page of ``origin`` read an answer."""
    if not origin:
        return []
    read = "ETag, Retry-After, Steppe-Protocol, Steppe-Request-Id"
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", read),
        ("Vary", "Origin"),
    ]


def _text(value: bytes) -> str:
    return value.decode("latin-1")
