"""What a policy server is told and answers: the shape of every verb, both encodings, and refusals.

``docs/protocol.md`` is the contract; ``docs/protocol.schema.json`` is made from the structs of this file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union

import msgspec
from msgspec import Meta, Struct

PROTOCOL = 1
Kind: TypeAlias = Literal["json", "msgpack"]

# JSON's numbers are exact as far as 2**53 in every language.
_Whole = Annotated[int, Meta(ge=0, le=1 << 53)]
_Client = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$")]
_EpisodeID = Annotated[str, Meta(min_length=1, max_length=128)]


class Start(Struct, kw_only=True):
    """Begins an episode."""

    episode_id: _EpisodeID | None = None
    training_enabled: bool = True


class One(Struct, kw_only=True, forbid_unknown_fields=True):
    """An observation of an episode, to be acted upon."""

    episode_id: _EpisodeID
    obs: Any
    reward: Any = None


class Act(One, kw_only=True):
    """Asks for an action."""

    full: bool = False


class ActMany(Struct, kw_only=True):
    """Asks for the actions of several episodes."""

    acts: Annotated[list[One], Meta(min_length=1)]
    full: bool = False


class LogAction(One, kw_only=True):
    """Says what was done about an observation."""

    action: Any


class Decided(One, kw_only=True):
    """A step that a client decided itself, with the policy's weights."""

    sample: Any
    logp: Any
    weights_version: Any


class LogReturns(Struct, kw_only=True):
    """Says what was earned, and who is done."""

    episode_id: _EpisodeID
    reward: Any
    step: _Whole | None = None
    info: dict[str, Any] | None = None
    dones: dict[str, bool] | None = None


class End(Struct, kw_only=True):
    """Ends an episode."""

    episode_id: _EpisodeID
    obs: Any
    truncated: bool = False
    reward: Any = None


class Delete(Struct, kw_only=True):
    """Drops an open episode."""

    episode_id: _EpisodeID


class Rollback(Struct, kw_only=True):
    """Acts with an older version from now on."""

    version: _Whole


class Nothing(Struct, kw_only=True):
    """Needs no words."""


def _tagged(content: Any, verb: str, fields: Sequence[Any], suffix: str = "") -> Any:
    """``content`` with further fields, which says by its ``verb`` what it is."""
    return msgspec.defstruct(
        content.__name__ + suffix, fields, bases=(content,), kw_only=True, forbid_unknown_fields=True,
        tag_field="verb", tag=verb,
    )  # fmt: skip


_OF_REPORT = {"start": Start, "act": Decided, "log_action": LogAction, "log_returns": LogReturns, "end": End}
_items: Any = tuple(_tagged(content, verb, (), "Item") for verb, content in _OF_REPORT.items())
_ITEMS: list[Any] = [("items", Annotated[list[Union[_items]], Meta(min_length=1)])]  # noqa: UP007
Report = msgspec.defstruct("Report", _ITEMS, kw_only=True)

WRITES: dict[str, type[Struct]] = {
    "start": Start,
    "act": Act,
    "act_many": ActMany,
    "log_action": LogAction,
    "log_returns": LogReturns,
    "end": End,
    "report": Report,
    "delete": Delete,
    "rollback": Rollback,
    "release": Nothing,
}
"""What each verb that changes something says, but for who says it."""
READS = ("spaces", "health", "versions")
"""What only asks, as a message of a WebSocket has it; weights are too large for a message."""
SCOPES: dict[str, str] = {
    **dict.fromkeys(("start", "act", "act_many", "log_action", "log_returns", "end", "delete"), "act"),
    **dict.fromkeys(("versions", "rollback", "release"), "admin"),
    "report": "submit",
    "weights": "weights",
}
"""Which scope a verb needs; verbs that are not here need none."""
STATUS: dict[str, int] = {
    **dict.fromkeys(("malformed", "unknown_field", "body_length"), 400),
    "unauthorized": 401,
    **dict.fromkeys(("scope", "host", "origin"), 403),
    **dict.fromkeys(
        ("unknown_verb", "unknown_episode", "unknown_policy", "unknown_version", "not_local"), 404
    ),
    **dict.fromkeys(("episode_exists", "episode_ended", "agent_done", "step_unknown", "step_learned"), 409),
    **dict.fromkeys(("seq_expired", "epoch_expired", "seq_reused"), 409),
    "weights_too_old": 412,
    "too_large": 413,
    "media_type": 415,
    **dict.fromkeys(("out_of_space", "reward", "unknown_agent", "off_policy", "not_training"), 422),
    "protocol": 426,
    **dict.fromkeys(("busy", "rate", "too_many_episodes", "too_many_clients"), 429),
    "internal": 500,
    "not_ready": 503,
}
"""The codes of all refusals, and the status that each comes with."""
WAITING = (429, 503)
"""Statuses after which the same request may be sent again a little later."""

_ID: list[Any] = [("id", _Whole | None, None)]
_SENT: list[Any] = [("client", _Client), ("epoch", _Whole), ("seq", Annotated[int, Meta(ge=1, le=1 << 53)])]
_STRUCTS = {verb: _tagged(content, verb, [*_SENT, *_ID]) for verb, content in WRITES.items()}
_ASKED = {verb: _tagged(Nothing, verb, _ID, f"_{verb}") for verb in READS}
_ANY: Any = Union[(*_STRUCTS.values(), *_ASKED.values())]
_FRAME: dict[str, Any] = {"json": msgspec.json.Decoder(_ANY), "msgpack": msgspec.msgpack.Decoder(_ANY)}
_BODY: dict[tuple[str, str], Any] = {
    **{(verb, "json"): msgspec.json.Decoder(struct) for verb, struct in _STRUCTS.items()},
    **{(verb, "msgpack"): msgspec.msgpack.Decoder(struct) for verb, struct in _STRUCTS.items()},
}
_LOOSE: dict[str, Any] = {"json": msgspec.json.Decoder(), "msgpack": msgspec.msgpack.Decoder()}
_PACK, _TEXT = msgspec.msgpack.encode, msgspec.json.encode


class Refused(Exception):  # noqa: N818 - it is an answer
    """A request that is not carried out, and why.

    Attributes:
        code: a key of :data:`STATUS`.
        message: which value, what was expected, what came, and what to do.
        retry_after: seconds after which it may be sent again, for some statuses.
    """

    def __init__(self, code: str, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after

    def bare(self) -> Refused:
        """Without how it came about, which holds the request, which holds its answer."""
        self.__traceback__ = self.__context__ = None
        return self

    @property
    def status(self) -> int:
        """Of the answer."""
        return STATUS[self.code]


class Told(NamedTuple):
    """A request that could be read.

    Attributes:
        verb: what is asked for.
        id: of a WebSocket's message, or None.
        message: the struct of the verb; None where it has no body.
        digest: 8 bytes that two requests share that say the same, whatever they were encoded as.
    """

    verb: str
    id: int | None
    message: Any
    digest: bytes


def read_frame(body: bytes, kind: str) -> Told:
    """Read a message of a WebSocket, which names its verb itself.

    Raises:
        Refused: it cannot be read. Its ``id`` is what :func:`frame_id` finds.
    """
    message = _decoded(_FRAME[kind], body)
    id, message.id = message.id, None
    if id is None:
        raise Refused("malformed", 'a message of a WebSocket needs "id", a whole number that you choose')
    return Told(message.__struct_config__.tag, id, message, _digest(message))


def read_body(verb: str, body: bytes, kind: str) -> Told:
    """Read the body of an HTTP request of one of :data:`WRITES`.

    Raises:
        Refused: it cannot be read.
    """
    message = _decoded(_BODY[verb, kind], body)
    if message.id is not None or b"verb" in body or b'"id"' in body or b"\xa2id" in body:
        for name in _LOOSE[kind].decode(body).keys() & {"id", "verb"}:
            raise Refused(
                "unknown_field", f"{verb} has no field `{name}`; leave it out: the path says the verb"
            )
    return Told(verb, None, message, _digest(message))


def read_query(verb: str, query: dict[str, str]) -> Told:
    """Read the parameters of a request without a body, such as ``DELETE``.

    Raises:
        Refused: they are not those of the verb.
    """
    if odd := sorted(query.keys() & {"id", "verb"}):
        raise Refused("unknown_field", f"{verb} has no parameter `{odd[0]}`: leave it out")
    try:
        message = msgspec.convert(query, _STRUCTS[verb], strict=False)
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    return Told(verb, None, message, digest_of(message))


def frame_id(body: bytes, kind: str) -> int | None:
    """The id of a message that could not be read as a whole, if it can be told."""
    try:
        id = _LOOSE[kind].decode(body)["id"]
    except (msgspec.MsgspecError, RecursionError, LookupError, TypeError, ValueError):
        return None
    return id if type(id) is int and 0 <= id <= 1 << 53 else None


def digest_of(message: Any) -> bytes:
    """8 bytes of what a message says."""
    return hashlib.blake2b(_PACK(message), digest_size=8).digest()


def _digest(message: Any) -> bytes:
    try:
        return digest_of(message)
    except RecursionError:
        raise Refused("malformed", "the body is nested too deeply to be read") from None
    except (OverflowError, TypeError, ValueError) as error:
        raise Refused("malformed", f"the body holds what MessagePack cannot: {error}") from None


def _decoded(decoder: Any, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise Refused("malformed", f"the body cannot be read: {error}") from None
    except RecursionError:
        raise Refused("malformed", "the body is nested too deeply to be read") from None


def _refusal(error: msgspec.ValidationError) -> Refused:
    text = str(error)
    if "unknown field" in text:
        return Refused("unknown_field", f"{text}; see docs/protocol.md for the fields of each verb")
    if text.startswith("Invalid value") and text.endswith("`$.verb`"):
        return Refused("unknown_verb", f"{text}; there are {', '.join((*WRITES, *READS))}")
    return Refused("malformed", f"{text}; see docs/protocol.md for the fields of each verb")


def encoded(kind: str, value: Any) -> bytes:
    """``value`` as the body of an answer."""
    return _TEXT(value) if kind == "json" else _PACK(value)


def as_kind(kind: str, body: bytes) -> bytes:
    """A stored body, in the encoding that this request wants."""
    stored = "json" if body[:1] == b"{" else "msgpack"
    return body if stored == kind else encoded(kind, _LOOSE[stored].decode(body))


def framed(kind: str, id: int | None, status: int, body: bytes) -> bytes:
    """The body of an answer as a message of a WebSocket: with its ``id`` and ``status``."""
    if kind == "json":
        head = b'{"id":%s,"status":%d' % (b"null" if id is None else b"%d" % id, status)
        return head + (b"}" if body == b"{}" else b"," + body[1:])
    # All answers are maps of fewer than 14 fields, whose number is in the first byte.
    return bytes([body[0] + 2]) + b"\xa2id" + _PACK(id) + b"\xa6status" + _PACK(status) + body[1:]


def refusal_body(
    kind: str, code: str, message: str, request_id: str, retry_after: int | None = None
) -> bytes:
    """The body of a refusal; ``retry_after`` is for messages of a WebSocket."""
    value: dict[str, Any] = {"code": code, "message": message, "request_id": request_id}
    return encoded(kind, value if retry_after is None else value | {"retry_after": retry_after})


def schema() -> dict[str, Any]:
    """JSON schema of what every verb takes, as ``docs/protocol.schema.json`` has it."""
    structs = [*_STRUCTS.values(), *_ASKED.values()]
    found, parts = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    verbs = dict(zip((*_STRUCTS, *_ASKED), found, strict=True))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Requests of the protocol of a policy server, version {PROTOCOL}",
        "description": "By verb. Over HTTP a body has neither verb nor id.",
        "properties": verbs,
        "$defs": parts,
    }
