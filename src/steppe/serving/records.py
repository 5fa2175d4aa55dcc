"""What one write of a client came to, as a record of the log: MessagePack, in which arrays are raw bytes.

An array is ``[dtype, shape, bytes]``, a tuple of columns ``[nil, part, ...]``, a dict of them a map. So a
record describes itself: it can be read without the spaces of the env.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import msgspec
import numpy as np

from steppe.envs.driven import Acted, Began, Dropped, Earned, Ended, Entry, Left
from steppe.serving.log import LogError
from steppe.types import Array, Tree

_NAMES = {np.dtype(name): name for name in ("?", "<f2", "<f4", "<f8")} | {
    np.dtype(f"<{kind}{size}"): f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_BEGAN, _ACTED, _EARNED, _LEFT, _ENDED, _DROPPED = range(6)


@final
class Write(NamedTuple):
    """A request that changed something.

    Attributes:
        client: who sent it.
        epoch: of the client's counting.
        seq: its number.
        digest: 8 bytes of the hash of its body.
        reply: the body of the answer, which is given again when the request comes again.
        entries: what happened.
    """

    client: str
    epoch: int
    seq: int
    digest: bytes
    reply: bytes
    entries: Sequence[Entry]


def encode_write(write: Write) -> bytes:
    """A record.

    Raises:
        TypeError: an array is of no dtype that spaces have, or an ``info`` holds what MessagePack has not.
        OverflowError: an ``info`` has an integer of more than 64 bits.
    """
    client, epoch, seq, digest, reply, entries = write
    return _encode((client, epoch, seq, digest, reply, [_PACK[type(entry)](entry) for entry in entries]))


def decode_write(record: bytes) -> Write:
    """What :func:`encode_write` was given; its arrays can only be read.

    Raises:
        LogError: it is no such record.
    """
    try:
        client, epoch, seq, digest, reply, entries = _decode(record)
        happened = [_UNPACK[code](*fields) for code, *fields in entries]
    except (msgspec.DecodeError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LogError(f"a record of the log is none of a write: {error}") from None
    return Write(client, epoch, seq, digest, reply, happened)


def _plain(value: Any) -> Any:
    """Numpy's numbers and arrays, where they may be any."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(
        f"{type(value).__name__} is nothing that a log can hold: use numbers, texts, lists and dicts"
    )


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
_decode = msgspec.msgpack.Decoder(tuple[str, int, int, bytes, bytes, list[list[Any]]]).decode


def _packed(tree: Tree) -> Any:
    if isinstance(tree, np.ndarray):
        if (name := _NAMES.get(tree.dtype)) is None:
            raise TypeError(
                f"a column of {tree.dtype} is nothing that a log can hold: use {', '.join(_DTYPES)}"
            )
        return name, tree.shape, tree.tobytes()
    if isinstance(tree, dict):
        return {key: _packed(part) for key, part in tree.items()}
    return None if tree is None else (None, *map(_packed, tree))


def _unpacked(parts: Any) -> Tree:
    if isinstance(parts, list):
        if parts[0] is None:
            return tuple(map(_unpacked, parts[1:]))
        name, shape, content = parts
        array: Array = np.ndarray(shape, _DTYPES[name], content)
        return array
    return None if parts is None else {key: _unpacked(part) for key, part in parts.items()}


def _pack_acted(entry: Acted) -> Any:
    episode, agent, policy, t, obs, action, logp, version, state = entry
    columns = _packed(obs), _packed(action), _packed(state)
    return _ACTED, episode, agent, policy, t, *columns, logp, version


def _unpack_acted(*fields: Any) -> Acted:
    episode, agent, policy, t, obs, action, state, logp, version = fields
    columns = _unpacked(obs), _unpacked(action)
    return Acted(episode, agent, policy, t, *columns, logp, version, _unpacked(state))


def _pack_ended(entry: Ended) -> Any:
    return _ENDED, entry.episode, entry.truncated, {agent: _packed(obs) for agent, obs in entry.obs.items()}


def _unpack_ended(episode: str, truncated: bool, obs: Any) -> Ended:
    return Ended(episode, truncated, {agent: _unpacked(column) for agent, column in obs.items()})


_PACK: dict[type, Callable[[Any], Any]] = {
    Began: lambda entry: (_BEGAN, *entry),
    Acted: _pack_acted,
    Earned: lambda entry: (_EARNED, *entry),
    Left: lambda entry: (_LEFT, *entry),
    Ended: _pack_ended,
    Dropped: lambda entry: (_DROPPED, *entry),
}
_UNPACK: dict[int, Callable[..., Entry]] = {
    _BEGAN: Began,
    _ACTED: _unpack_acted,
    _EARNED: Earned,
    _LEFT: Left,
    _ENDED: _unpack_ended,
    _DROPPED: Dropped,
}
