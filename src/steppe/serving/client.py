"""The client of a policy server, all in this file: it is copied, or installed, without anything else.

The standard library suffices; numpy is needed where the client decides itself (``inference_mode="local"``).
What goes over the wire, and what the numbers of a policy mean, is told in ``docs/protocol.md``::

    client = PolicyClient("http://localhost:9900", inference_mode="remote")
    episode = client.start_episode()
    action = client.get_action(episode, obs)
    client.log_returns(episode, reward)
    client.end_episode(episode, obs)
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import http.client
import itertools
import json
import logging
import math
import os
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar, final
from urllib.parse import quote, urlsplit

_log = logging.getLogger("steppe.client")
_P = ParamSpec("_P")
_T = TypeVar("_T")
_FULL = ("action", "step", "logp", "weights_version")
_LATER = (429, 502, 503, 504)  # said by a server, or a proxy before it, that cannot answer just now
_BATCH = 1_000
_SMALL = 16  # numbers; larger arrays travel as bytes
_GONE = ("weights_too_old", "episode_ended", "unknown_episode")
_MASKED, _EDGE, _LEAST = -1e9, 1.0 - 1e-6, 2.0**-25
_NOTHING = 'obs["action_mask"] allows nothing'
_HELP: dict[Any, str] = {
    401: "; give the server's token: token='env:NAME', 'file:PATH' or the token itself",
    426: "; take client and server from the same release",
    "not_local": "; set inference_mode='remote'",
}


class PolicyClientError(Exception):
    """What a call comes to, if not to its result: one of those below, or an argument makes no sense.

    Attributes:
        status: of the answer, as HTTP has it; 0 where there was none.
        code: what the server calls it, such as ``"unknown_episode"``; see ``docs/protocol.md``.
        request_id: finds the request in the server's log.
        unsent: in words, what the server has not taken, or may not have.
    """

    def __init__(self, message: str, status: int = 0, code: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.request_id, self.unsent = status, code, request_id, ""

    def __str__(self) -> str:
        """The message, and what is unsent."""
        return f"{self.args[0]}. Unsent: {self.unsent}" if self.unsent else str(self.args[0])


class RefusedError(PolicyClientError):
    """The server answered that it does not do this; nothing has changed there."""


@final
class UnauthorizedError(RefusedError):
    """No token, an unknown one, or one that may not do this."""


class UnreachableError(PolicyClientError):
    """No answer within the client's ``timeout``. The server has done it or not, and does it once at most.

    The client keeps the request, and its next call sends it first; one with the same arguments is the same.
    """


@final
class BusyError(UnreachableError):
    """The server asked to wait for longer than the client's ``timeout``."""


# --- over the wire -----------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    status: int
    value: Any
    wait: float
    etag: str = ""


def _answer(response: http.client.HTTPResponse) -> _Answer:
    data: Any = response.read()
    if "octet-stream" not in response.getheader("Content-Type", ""):
        told = response.status == 200 or data[:1] == b"{"  # else it is a proxy's
        data = json.loads(data) if told else {"message": repr(data[:200])}
        if not isinstance(data, dict):
            raise ValueError("that is no policy server")
    wait = response.getheader("Retry-After", "")
    return _Answer(response.status, data, int(wait) if wait.isdigit() else 0, response.getheader("ETag", ""))


@final
class _Socket:
    """A WebSocket (RFC 6455) on a connection."""

    def __init__(self, connection: http.client.HTTPConnection, prefix: str, head: Mapping[str, str]) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        upgrade |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Protocol": "steppe.v1"}
        connection.request("GET", f"{prefix}/v1/socket", None, {**head, **upgrade})
        self._response, self._socket = connection.getresponse(), connection.sock
        self.refusal = None if self._response.status == 101 else _answer(self._response)
        proof = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        told = self._response.getheader("Sec-WebSocket-Accept")
        if self.refusal is None and told != base64.b64encode(proof).decode():
            raise ConnectionError("what answers is no WebSocket")

    def ask(self, verb: str, body: bytes) -> _Answer:
        if self.refusal is not None:
            return self.refusal
        self._send(0x81, f'{{"id":1,"verb":"{verb}",'.encode() + body[1:])
        value = json.loads(self._message())
        del value["id"]
        return _Answer(value.pop("status"), value, value.pop("retry_after", None) or 0)

    def _send(self, first: int, data: bytes) -> None:
        n, mask = len(data), os.urandom(4)
        short, width = (n, 0) if n < 126 else (126, 2) if n < 1 << 16 else (127, 8)
        head = bytes([first, 0x80 | short]) + (n.to_bytes(width, "big") if width else b"") + mask
        key = int.from_bytes((mask * (n // 4 + 1))[:n], "big")
        self._socket.sendall(head + (int.from_bytes(data, "big") ^ key).to_bytes(n, "big"))

    def _message(self) -> bytes:
        message = b""
        while True:
            first, size = self._read(2)
            if size > 125:
                size = int.from_bytes(self._read({126: 2, 127: 8}[size]), "big")
            data = self._read(size)
            if first & 15 == 8:
                raise ConnectionError(f"the server closed: {data[2:].decode(errors='replace')}")
            if first & 15 == 9:
                self._send(0x8A, data)
            elif first & 15 != 10:
                message += data
                if first & 0x80:
                    return message

    def _read(self, n: int) -> bytes:
        data: bytes = self._response.fp.read(n)
        if len(data) < n:
            raise ConnectionError("the connection ended in the middle of a message")
        return data


@final
class _Wire:
    """Asks until there is an answer. ``kept`` are the connections, by whether they are for WebSockets."""

    def __init__(
        self, address: str, token: str | None, ca: str | None, timeout: float, retries: float
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
            raise PolicyClientError(f"address {address!r}: expected http://HOST:PORT, or https, ws, wss")
        self._address, self._host, self._port, self._token = address, parts.hostname, parts.port, token
        self._prefix, self._timeout, self._retries = parts.path.rstrip("/"), timeout, retries
        self._sockets, self._kept = parts.scheme in ("ws", "wss"), dict[bool, Any]()
        try:
            self._tls = ssl.create_default_context(cafile=ca) if parts.scheme in ("https", "wss") else None
        except OSError as error:
            raise PolicyClientError(f"ca={ca!r} is no certificate that can be read: {error}") from None

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1][0].close()

    def ask(self, method: str, path: str, body: bytes = b"", etag: str = "") -> _Answer:
        """The answer, 200 or 304.

        Raises:
            RefusedError, UnreachableError: see there.
        """
        end, pause, answer, said = time.monotonic() + self._timeout, 0.02, None, ""
        for attempt in itertools.count():
            limit = max((end - time.monotonic()) / (2 if self._retries else 1), 0.05)
            try:
                answer = self._once(method, path, body, etag, limit)
            except ssl.SSLCertVerificationError as error:
                why = f"is not trusted ({error.verify_message}): give its certificate, ca=PATH"
                raise UnreachableError(f"{self._address} {why}") from None
            except (OSError, http.client.HTTPException, ValueError, LookupError, AttributeError) as error:
                answer, said = None, f"{type(error).__name__}: {error}"
            except BaseException:
                self.close()  # the answer may come yet, and belongs to no other question
                raise
            if answer is None or answer.status not in (200, 304):
                self.close()  # the token is read anew, too
            if answer is not None and answer.status not in _LATER:
                if answer.status not in (200, 304):
                    raise _refused(UnauthorizedError if answer.status in (401, 403) else RefusedError, answer)
                return answer
            wait = max(answer.wait if answer else 0.0, pause * random.uniform(0.5, 1.0))
            if attempt >= self._retries or time.monotonic() + wait > end:
                break
            time.sleep(wait)
            pause = min(2 * pause, 2.0)
        if answer is not None:
            raise _refused(BusyError, answer)
        where = f"{self._address} within {self._timeout:g} s ({said})"
        raise UnreachableError(f"no answer of {where}: is the server running there?")

    def _once(self, method: str, path: str, body: bytes, etag: str, limit: float) -> _Answer:
        socketed = self._sockets and method == "POST"
        if socketed not in self._kept:
            connection, head = self._connect(limit)
            self._kept[socketed] = connection, head, None
            if socketed:
                self._kept[socketed] = connection, head, _Socket(connection, self._prefix, head)
        connection, head, socket = self._kept[socketed]
        connection.timeout = limit
        if connection.sock is not None:
            connection.sock.settimeout(limit)
        if socket is not None:
            return socket.ask(path, body)  # type: ignore[no-any-return]
        headers = {**head, "If-None-Match": etag} if etag else head
        connection.request(method, f"{self._prefix}/v1/{path}", body or None, headers)
        return _answer(connection.getresponse())

    def _connect(self, limit: float) -> tuple[http.client.HTTPConnection, dict[str, str]]:
        head, token = {"Steppe-Protocol": "1", "Content-Type": "application/json"}, _token(self._token)
        if token is not None:
            head["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection(self._host, self._port, timeout=limit)
        if self._tls is not None:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=limit, context=self._tls)
        return connection, head


def _refused(kind: type[PolicyClientError], answer: _Answer) -> PolicyClientError:
    told = answer.value
    code, id = str(told.get("code", "")), str(told.get("request_id", ""))
    help = _HELP.get(code, _HELP.get(answer.status, ""))
    text = f"{told.get('message')}{help} ({answer.status} {code}, request {id})"
    return kind(text, answer.status, code, id)


def _token(given: str | None) -> str | None:
    """The token that ``env:NAME`` or ``file:PATH`` stands for."""
    kind, _, name = (given or "").partition(":")
    if kind not in ("env", "file"):
        return given and given.strip()
    try:
        text = os.environ[name] if kind == "env" else Path(name).read_text(encoding="utf-8")
        lines = map(str.split, text.splitlines())
        return next(words[0] for words in lines if words and words[0][0] != "#")
    except (OSError, KeyError, StopIteration) as error:
        raise PolicyClientError(f"token={given!r} names no token: {type(error).__name__} {error}") from None


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays and numbers of numpy, and of what is like it."""
    if not hasattr(value, "tolist"):
        text = f"a {type(value).__name__} cannot be sent: give numbers, lists, dicts or arrays"
        raise PolicyClientError(text)
    size, kind = getattr(value, "size", 0), str(getattr(getattr(value, "dtype", ""), "str", "?"))
    if isinstance(size, int) and size > _SMALL and kind[0] in "<|" and kind[1] in "fiub":
        data = base64.b64encode(value.tobytes()).decode()
        return {"dtype": value.dtype.name, "shape": [*value.shape], "bytes": data}
    return value.tolist()


_encode = json.JSONEncoder(default=_plain, separators=(",", ":"), allow_nan=False).encode


def _text(value: Any) -> str:
    try:
        return _encode(value)
    except ValueError:
        raise PolicyClientError("NaN and infinity cannot be sent", 422, "out_of_space") from None


# --- the client --------------------------------------------------------------------------------------------


class _Request(NamedTuple):
    verb: str
    text: str
    shown: str
    body: bytes
    refused: Callable[[PolicyClientError], bool]
    """Hears that it was; whether that is all right."""


@final
class PolicyClient:
    """Asks a policy server for actions and tells it what they earned.

    In *remote* mode each action is a call. In *local* mode the policy's weights are fetched every
    ``update_interval`` seconds, actions are computed here with numpy, and what happened is sent in batches:
    of 1,000 steps, at the interval, and by :meth:`close`; an episode stays with the client that began it.

    Every request is carried out once, however often it is sent because the network, or the server, failed.
    Actions are numbers, nested lists and, of Dict spaces, dicts. With many agents observations, actions and
    rewards are dicts by agent. Threads may share a client; their calls wait for each other.

    Args:
        address: ``http://HOST:PORT``, or ``ws://HOST:PORT`` for a WebSocket, which is faster; with TLS
            ``https`` and ``wss``.
        inference_mode: ``"local"`` or ``"remote"``.
        update_interval: seconds, in local mode.
        token: the server's token, ``"env:NAME"`` of a variable or ``"file:PATH"`` of a file that hold it.
        ca: path of the certificate that the server's is signed with, where the system does not know it.
        timeout: seconds that a call tries for; reconnecting and waiting that the server asked for included.
        retries: how often it tries again within these.
        policy: which policy to act with in local mode, where the server does not say it by itself.

    Attributes:
        discarded: steps that the server did not want, in local mode; each time is said in the log.

    Raises:
        PolicyClientError: an argument makes no sense. All methods raise one: see :class:`RefusedError`,
            :class:`UnauthorizedError`, :class:`UnreachableError`, :class:`BusyError`.
    """

    def __init__(
        self,
        address: str,
        inference_mode: str = "local",
        update_interval: float = 10.0,
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout: float = 30.0,
        retries: float = math.inf,
        policy: str | None = None,
    ) -> None:
        if inference_mode not in ("local", "remote"):
            raise PolicyClientError(f"inference_mode={inference_mode!r}: expected 'local' or 'remote'")
        self._name, self._seq, self._lock = secrets.token_hex(8), 0, threading.RLock()
        self._wire, self.discarded = _Wire(address, token, ca, timeout, retries), 0
        self._owed: dict[str, Any] = {}
        self._doubt: _Request | None = None
        self._local = _Local(self, update_interval, policy) if inference_mode == "local" else None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close it; where the server is known to be gone, without asking it for anything."""
        if kind is None or not issubclass(kind, UnreachableError):
            self.close()
        self._wire.close()

    def start_episode(self, episode_id: str | None = None, training_enabled: bool = True) -> str:
        """Begin an episode and return its id; without ``training_enabled`` nothing is learned from it."""
        id = secrets.token_hex(16) if episode_id is None else episode_id
        with self._lock:
            if self._local is None or episode_id is not None:  # only the server knows what others have begun
                self._do("start", {"episode_id": id, "training_enabled": training_enabled})
            if self._local is not None:
                self._local.start(id, training_enabled, told=episode_id is not None)
        return id

    def get_action(self, episode_id: str, obs: Any, full: bool = False) -> Any:
        """The action for an observation; with ``full`` the pair of it and :class:`About`."""
        with self._lock:
            if self._local is not None:
                found = self._local.act(episode_id, obs)
            else:
                told = self._do("act", {"episode_id": episode_id, "obs": obs, "full": full})
                found = _found(obs, [told.get(key) for key in _FULL])
        return found if full else found[0]

    def get_actions(self, obs: Mapping[str, Any], full: bool = False) -> dict[str, Any]:
        """The same of many episodes by id, in one call."""
        if self._local is not None:
            return {id: self.get_action(id, one, full) for id, one in obs.items()}
        acts = [{"episode_id": id, "obs": one} for id, one in obs.items()]
        with self._lock:
            told = self._do("act_many", {"acts": acts, "full": full})
        columns = [told.get(f"{key}s", itertools.repeat(None)) for key in _FULL]
        rows = [_found(one, row) for one, row in zip(obs.values(), zip(*columns, strict=False), strict=True)]
        return dict(zip(obs, rows if full else [action for action, _ in rows], strict=True))

    def log_action(self, episode_id: str, obs: Any, action: Any) -> None:
        """Say what was done about an observation by someone else than the policy."""
        self._note("log_action", {"episode_id": episode_id, "obs": obs, "action": action})

    def log_returns(
        self,
        episode_id: str,
        reward: Any,
        info: Mapping[str, Any] | None = None,
        multiagent_done_dict: Mapping[Any, bool] | None = None,
        step: int | None = None,
    ) -> None:
        """Say what was earned since the last observation, or by the decision ``step`` of the episode.

        Rewards add up. Without further arguments they travel with the next observation, or :meth:`close`.
        ``multiagent_done_dict`` says which agents are done; of all, :meth:`end_episode` says it.
        """
        many = isinstance(reward, Mapping)
        earned = {str(key): float(one) for key, one in reward.items()} if many else float(reward)
        dones = {key: done for key, done in (multiagent_done_dict or {}).items() if key != "__all__"}
        rest = {"info": info, "dones": dones, "step": step}
        asked = {key: value for key, value in rest.items() if value is not None and value != {}}
        _text(earned)  # which is finite
        if asked:
            self._note("log_returns", {"episode_id": episode_id, "reward": earned, **asked})
        else:
            if self._local is not None:
                self._local.episode(episode_id)  # must be its own
            self._owe(episode_id, earned)

    def end_episode(self, episode_id: str, obs: Any, truncated: bool = False) -> None:
        """End an episode with its last observation (None: the last known one).

        ``truncated`` says that it was cut off, and would have gone on.
        """
        self._note("end", {"episode_id": episode_id, "obs": obs, "truncated": bool(truncated)})

    def close(self) -> None:
        """Send what is left, and hang up; open episodes stay open, for this client or another."""
        refused = None
        with self._lock:
            try:
                for id in list(self._owed):
                    try:
                        self._note("log_returns", {"episode_id": id})
                    except RefusedError as error:
                        refused, _ = error, self._owed.pop(id, None)
                if self._local is not None:
                    self._local.flush()
                self._settle()
            finally:
                self._wire.close()
        if refused is not None:
            raise refused

    def _note(self, verb: str, asked: dict[str, Any]) -> None:
        with self._lock:
            if self._local is None:
                self._do(verb, asked)
            else:
                self._local.note(verb, asked)

    def _owe(self, id: str, reward: Any) -> None:
        """Keep a reward until it can travel with something."""
        with self._lock:
            owed = self._owed.setdefault(id, {})
            for agent, earned in reward.items() if isinstance(reward, dict) else [("", reward)]:
                owed[agent] = owed.get(agent, 0.0) + earned

    def _with_owed(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Give what is sent the rewards that are owed; returns these."""
        taken = {}
        for item in items:
            if "reward" not in item and (owed := self._owed.pop(id := item["episode_id"], None)) is not None:
                item["reward"] = taken[id] = owed.get("", owed)
        return taken

    def _do(self, verb: str, asked: dict[str, Any]) -> Any:
        """Have a request carried out."""
        text = _text(asked)
        known = self._settle(verb, text)
        if known is not None:
            return known
        owed = self._with_owed(asked.get("acts", [asked])) if verb != "start" else {}

        def refused(error: PolicyClientError) -> bool:
            for id, reward in owed.items():
                self._owe(id, reward)  # goes with the next observation
            return False

        return self._send(verb, text, _text(asked) if owed else text, refused)

    def _send(self, verb: str, text: str, fields: str, refused: Callable[[PolicyClientError], bool]) -> Any:
        """Carry out a new request; ``refused`` hears if it is not, and says whether that is all right."""
        self._seq += 1
        body = f'{{"client":"{self._name}","epoch":0,"seq":{self._seq},{fields[1:]}'.encode()
        self._doubt = _Request(verb, text, text if verb == "report" else fields, body, refused)
        return self._settle(verb, text)

    def _settle(self, verb: str = "", text: str = "") -> Any:
        """Carry out the request of which nobody knows whether it was; its answer, if this is the same one."""
        if self._doubt is None:
            return None
        doubt = self._doubt
        try:
            told = self._wire.ask("POST", doubt.verb, doubt.body).value
        except PolicyClientError as error:
            error.unsent, told = f"{doubt.verb} {doubt.shown[:200]}", {}
            late = isinstance(error, UnauthorizedError) and doubt.verb == "report"
            if late or isinstance(error, UnreachableError):
                error.unsent += "; the next call sends it first"
                raise
            self._doubt = None
            if not doubt.refused(error):
                raise
        self._doubt = None
        return told if (doubt.verb, doubt.text) == (verb, text) else None


@final
class About(NamedTuple):
    """What is known of a decision; with many agents the last two are by agent."""

    step: int
    logp: Any
    weights_version: Any


def _found(obs: Any, row: Sequence[Any]) -> tuple[Any, About]:
    """An action and what is known of it, with agents named as the caller does: JSON knows texts alone."""
    names: dict[Any, Any] = {str(key): key for key in obs} if isinstance(obs, Mapping) else {}
    row = [
        {names[name]: one for name, one in value.items()}
        if isinstance(value, dict) and value.keys() <= names.keys()
        else value
        for value in row
    ]
    return row[0], About(*row[1:])


def _later(
    call: Callable[Concatenate[PolicyClient, _P], _T],
) -> Callable[Concatenate[AsyncPolicyClient, _P], Coroutine[Any, Any, _T]]:
    @functools.wraps(call)
    async def later(self: AsyncPolicyClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        run = functools.partial(call, self._client, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    return later


@final
class AsyncPolicyClient:
    """A :class:`PolicyClient` whose methods are awaited; it takes the same arguments.

    The calls run one after the other in a thread; one that is cancelled is carried out all the same.
    """

    def __init__(self, address: str, *args: Any, **options: Any) -> None:
        self._client = PolicyClient(address, *args, **options)
        self._thread = ThreadPoolExecutor(1, "steppe-client")

    start_episode = _later(PolicyClient.start_episode)
    get_action = _later(PolicyClient.get_action)
    get_actions = _later(PolicyClient.get_actions)
    log_action = _later(PolicyClient.log_action)
    log_returns = _later(PolicyClient.log_returns)
    end_episode = _later(PolicyClient.end_episode)
    close = _later(PolicyClient.close)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()
        self._thread.shutdown(wait=False)


# --- local mode --------------------------------------------------------------------------------------------


@final
class _Local:
    """Decides here, and reports in batches."""

    def __init__(self, client: PolicyClient, interval: float, policy: str | None) -> None:
        if find_spec("numpy") is None:
            raise PolicyClientError("inference_mode='local' needs numpy: pip install numpy, or use 'remote'")
        self._client, self._interval, self._policy, self._asked = client, interval, policy, -math.inf
        self._spaces: dict[str, Any] = {}
        self._networks: dict[str, tuple[Any, str, int]] = {}
        self._episodes: dict[str, SimpleNamespace] = {}
        self._limit = 1 << 20
        self._clear()

    def _clear(self) -> None:
        self._items, self._size, self._steps, self._touched = list[str](), 0, 0, dict[str, Any]()

    def start(self, id: str, training: bool, told: bool) -> None:
        # `id` of an episode is the server's, and becomes another one where rows were discarded.
        self._episodes[id] = episode = SimpleNamespace(id=id, training=training, told=told, steps=0, begun=0)
        if not told:
            self._add(episode, {"verb": "start", "training_enabled": training, "episode_id": id})

    def act(self, id: str, obs: Any) -> tuple[Any, About]:
        episode = self.episode(id)
        self._renew()
        many = self._spaces["multi_agent"]
        chosen = {agent: self._network(agent)(one) for agent, one in (obs.items() if many else [("", obs)])}
        action, sample, logp, version = (
            {agent: row[i] for agent, row in chosen.items()} if many else chosen[""][i] for i in range(4)
        )
        item = {"verb": "act", "episode_id": id, "obs": obs, "sample": sample, "logp": logp}
        self._add(episode, {**item, "weights_version": version}, 1)
        return action, About(episode.steps - 1, logp, version)

    def note(self, verb: str, asked: dict[str, Any]) -> None:
        episode = self.episode(asked["episode_id"])
        if "step" in asked:
            asked["step"] -= episode.begun  # of one before that, the server has nothing any more
        if asked.get("step", 0) >= 0:
            self._add(episode, {"verb": verb, **asked}, int(verb == "log_action"))
        if verb == "end":
            del self._episodes[asked["episode_id"]]
        if self._steps >= _BATCH or 2 * self._size > self._limit:
            self.flush()

    def episode(self, id: str) -> SimpleNamespace:
        if id not in self._episodes:
            text = f"this client has not begun {id!r}, or has ended it; in local mode episodes are its own"
            raise RefusedError(text, 404, "unknown_episode")
        return self._episodes[id]

    def _add(self, episode: SimpleNamespace, item: dict[str, Any], steps: int = 0) -> None:
        id, text = item["episode_id"], _text({**item, "episode_id": episode.id})
        owed = {} if item["verb"] == "start" else self._client._with_owed([item])
        self._items.append(f'{text[:-1]},"reward":{_text(owed[id])}}}' if owed else text)
        self._size += len(self._items[-1])
        self._steps, episode.steps = self._steps + steps, episode.steps + steps
        self._touched[id] = episode

    def _renew(self) -> None:
        """Send and fetch what is due."""
        self._client._settle()
        due = time.monotonic() - self._asked >= self._interval
        if (due and self._steps) or self._steps >= _BATCH or 2 * self._size > self._limit:
            self.flush()
        if due or self._asked == -math.inf:
            _log.info("Querying server for new policy weights.")
            self._spaces = self._spaces or self._client._wire.ask("GET", "spaces").value
            self._limit = self._spaces["body_limit"]
            for name in self._networks:
                self._load(name)
            self._asked = time.monotonic()
        if not self._steps:
            _log.info("Generating new batch of experiences.")

    def flush(self) -> None:
        """Send what there is, if anybody learns there."""
        self._client._settle()
        items, steps, touched = self._items, self._steps, self._touched
        if not items or not self._spaces.get("training", True):
            self._clear()
            return
        _log.info("Sending batch of %d steps back to server.", steps)
        refused = functools.partial(self._discard, steps, touched)
        text = f'{{"items":[{",".join(items)}]}}'
        self._clear()  # now, as late as can be: who is interrupted before loses nothing
        told = self._client._send("report", f"of {steps} steps", text, refused)
        for episode in touched.values():
            episode.told = episode.told or bool(told)
        newest, lag = told.get("weights_version", 0), self._spaces.get("max_weight_lag")
        oldest = min((version for *_, version in self._networks.values()), default=newest)
        if lag is not None and newest - oldest >= max(lag, 1):
            self._asked = -math.inf  # what is decided by these would soon be refused

    def _discard(self, steps: int, touched: dict[str, Any], error: PolicyClientError) -> bool:
        """Do without what was refused; open episodes, which have a gap now, go on as others."""
        self._client.discarded += steps + self._steps
        _log.warning("Discarded %d steps, and what they may earn yet: %s", steps + self._steps, error.args[0])
        touched, self._asked = {**touched, **self._touched}, -math.inf
        known = [one.id for one in touched.values() if one.told]
        self._clear()
        self._client._with_owed([{"episode_id": id} for id in touched])  # by what is discarded
        for id in touched.keys() & self._episodes.keys():
            episode = touched[id]
            episode.id, episode.told, episode.begun = secrets.token_hex(16), False, episode.steps
            self._add(episode, {"verb": "start", "training_enabled": episode.training, "episode_id": id})
        for id in known:
            end = _text({"episode_id": id, "obs": None, "truncated": True})
            self._client._send("end", end, end, lambda _: True)  # somebody may have ended it
        return error.code in _GONE

    def _network(self, agent: Any) -> Any:
        """What decides for an agent."""
        names, acts = list(self._spaces["policies"]), self._spaces["policy_of"]
        told = acts.get(str(agent)) if self._spaces["multi_agent"] else next(iter(acts.values()), None)
        if self._policy is None and told is None and len(names) > 1:
            text = f"which of {', '.join(names)} decides for {agent!r}? Give policy=, or use 'remote'"
            raise PolicyClientError(text)
        name = self._policy or told or names[0]
        if name not in self._networks:
            self._load(name)
        return self._networks[name][0]

    def _load(self, name: str) -> None:
        known = self._networks.get(name, (None, "", 0))
        answer = self._client._wire.ask("GET", f"weights?policy={quote(name, safe='')}", etag=known[1])
        if answer.status == 200:
            decide, version = _decider(name, answer.value)
            self._networks[name] = decide, answer.etag, version


def _decider(name: str, data: bytes) -> tuple[Any, int]:
    """What decides with the weights of a safetensors file: observation to action, sample, logp, version."""
    import numpy as np

    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    texts = header.pop("__metadata__")
    about = {key: json.loads(texts[key]) for key in ("network", "exploration", "scalars", "version")}
    arrays = {}
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[key] = np.frombuffer(data[start + begin : start + end], "<f4").reshape(entry["shape"])
    try:
        return _Network(about, arrays).decide, about["version"]
    except LookupError as unknown:
        try:
            return _in_steppe(about, arrays), about["version"]
        except Exception as error:
            text = f"policy {name!r} cannot be computed here ({unknown}; {error})"
            raise PolicyClientError(f"{text}: use inference_mode='remote'") from error


def _in_steppe(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What decides by the whole of steppe's numpy, where that is installed."""
    from steppe.policies.numpy_policy import Exported, NumpyPolicy
    from steppe.spaces import collect, rows, take

    policy = NumpyPolicy(about["network"], about["exploration"])
    if policy.initial_state(1) is not None:
        raise LookupError("it remembers what it saw")
    weights = policy.load(Exported(about["version"], arrays, about["scalars"]))

    def decide(obs: Any) -> Any:
        import numpy as np

        noise = np.array([[max(random.random(), _LEAST) for _ in range(policy.noise_size)]], np.float32)
        found = policy.act(weights, collect(policy.acting, [obs]), None, noise)
        action = rows(policy.action, policy.to_env(found.action))[0]
        return _listed(action), _listed(take(found.action, 0)), float(found.logp[0]), about["version"]

    return decide


def _listed(tree: Any) -> Any:
    """Arrays as lists, and numbers of numpy as numbers."""
    if isinstance(tree, dict):
        return {key: _listed(part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return [_listed(part) for part in tree]
    return tree.tolist() if hasattr(tree, "tolist") else tree


def _leaves(spec: Any) -> list[Any]:
    """The leaves of a space, in order."""
    items = spec.get("items")
    if items is None:
        return [spec]
    return [leaf for part in (items.values() if isinstance(items, dict) else items) for leaf in _leaves(part)]


def _formed(spec: Any, leaves: Iterator[Any]) -> Any:
    """The leaves in the form of the space."""
    items = spec.get("items")
    if isinstance(items, dict):
        return {key: _formed(part, leaves) for key, part in items.items()}
    return next(leaves) if items is None else [_formed(part, leaves) for part in items]


class _Leaf(NamedTuple):
    """How many heads, log standard deviations and uniforms a leaf of the actions has, and who uses them."""

    heads: int
    scales: int
    noise: int
    choose: Callable[[Any, Any, Any], tuple[Any, Any, Any]]
    """Gives the env's action, the sample and its logp."""


@final
class _Network:
    """Decides for one observation at a time: "Computing actions" of ``docs/protocol.md``, in its order.

    Raises:
        LookupError: it has what is not told of there.
    """

    def __init__(self, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        import numpy as np

        self._np, self._arrays, self._about, self._network = np, arrays, about, about["network"]
        options, how = self._network["distribution"], about["exploration"] or {"kind": "likeliest"}
        known = ("likeliest", "sampled", "epsilon_greedy", "added_noise")
        odd = {how["kind"]: how["kind"] not in known, "framestack": self._network.get("framestack", 1) > 1}
        odd |= {key: self._network.get(key) for key in ("torso", "scores")}
        odd |= {key: options.get(key) for key in ("own", "autoregressive")}
        odd |= {key: how.get(key) for key in ("correlation", "draws")}
        if self._network["kind"] != "actor" or any(odd.values()):
            raise LookupError(f"it has {', '.join(key for key, value in odd.items() if value)}")
        self._how, self._options = how, {"squash": False, "normalize": True, "clip": True, **options}
        self._encode = self._encoder(self._network["encoder"], self._network["observation"], "obs", "encoder")
        layers = range(len(self._network["mlp"]["sizes"]) - 1)
        self._layers = [(arrays[f"mlp.weights.{i}"], arrays[f"mlp.biases.{i}"]) for i in layers]
        activations: dict[str, Any] = {
            "tanh": np.tanh,
            "relu": lambda x: np.maximum(x, 0),
            "swish": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),
            "silu": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),
            "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
            "linear": lambda x: x,
        }
        self._activation = activations[self._network["mlp"]["activation"]]
        specs = _leaves(self._network["action"])
        self._parts = [self._numbers(s) if s["kind"] == "Box" else self._choices(s) for s in specs]
        self.noise_size = 2 if how["kind"] == "epsilon_greedy" else sum(part.noise for part in self._parts)

    def _encoder(self, encoder: Any, spec: Any, path: str, name: str) -> Callable[[Any], Any]:
        np, arrays, shape = self._np, self._arrays, tuple(spec.get("shape", ()))
        if encoder["kind"] == "parts":
            keys, parts = encoder["keys"] or range(len(encoder["parts"])), []
            for i, (key, part) in enumerate(zip(keys, encoder["parts"], strict=True)):
                at = f"{path}[{json.dumps(key, ensure_ascii=False)}]"
                parts.append((key, self._encoder(part, spec["items"][key], at, f"{name}.parts.{i}")))
            return lambda obs: np.concatenate([part(obs[key]) for key, part in parts])

        def flat(obs: Any) -> Any:
            x = np.asarray(obs)
            if x.shape != shape or x.dtype.kind not in "fiub" or not np.isfinite(x).all():
                raise ValueError(f"{path}: expected finite numbers of shape {shape}, got {obs!r:.80}")
            return x.reshape(-1).astype(np.float32)

        def normalized(obs: Any) -> Any:
            return ((flat(obs).clip(-1e14, 1e14) - mean) * scale).clip(-10, 10)

        if encoder["kind"] == "flat":
            if f"normalizer.{path}.count" not in arrays:
                return flat
            count, mean, m2 = (arrays[f"normalizer.{path}.{key}"] for key in ("count", "mean", "m2"))
            mean, scale = (mean.ravel(), 1 / np.sqrt(m2.ravel() / count + 1e-8)) if count >= 2 else (0, 1)
            return normalized
        if encoder["kind"] != "choices":
            raise LookupError(f"it has an encoder {encoder['kind']!r}")
        return self._one_hot(encoder, path, name)

    def _one_hot(self, encoder: Any, path: str, name: str) -> Callable[[Any], Any]:
        np, arrays = self._np, self._arrays
        counts, large = np.array(encoder["counts"]), encoder["large"]
        order = sorted(range(len(counts)), key=lambda i: i in large)
        rows = {i: np.eye(counts[i], dtype=np.float32) for i in order if i not in large}
        rows |= {i: arrays[f"{name}.tables.{place}"] for place, i in enumerate(large)}

        def choices(obs: Any) -> Any:
            chosen = np.asarray(obs).reshape(-1) - encoder["starts"]
            if ((chosen < 0) | (chosen >= counts)).any():
                raise ValueError(f"{path}: {obs!r:.80} is outside its space")
            return np.concatenate([rows[i][chosen[i]] for i in order])

        return choices

    def _choices(self, spec: Any) -> _Leaf:
        """Of a Discrete, a MultiDiscrete or a MultiBinary; a bit is a choice between its logit and 0."""
        np, shape, bits = self._np, tuple(spec.get("shape", ())), spec["kind"] == "MultiBinary"
        counts = np.broadcast_to(1 if bits else spec.get("nvec", spec.get("n")), shape).ravel().tolist()
        start, cuts = np.array(spec.get("start", 0)), np.cumsum(counts)[:-1]
        sampled = self._how["kind"] == "sampled"

        def choose(head: Any, _: Any, u: Any) -> tuple[Any, Any, float]:
            chosen, logp = [], 0.0
            for logits, uniform in zip(np.split(head, cuts), u, strict=True):
                if bits:
                    logits = np.array([logits[0], 0.0], np.float32)  # 1 comes first, as `uniform < p` says
                top = logits.max()
                if top <= _MASKED:
                    raise ValueError(_NOTHING)
                p = np.exp(logits - top)
                reached = p.cumsum()
                drawn = (reached >= uniform * reached[-1]) & (p > 0)
                i = int(drawn.argmax() if sampled else logits.argmax())
                chosen.append(1 - i if bits else i)
                logp += float(logits[i] - top - np.log(reached[-1]))
            sample = np.array(chosen).reshape(shape)
            return (sample + start).tolist(), sample.tolist(), logp

        return _Leaf(sum(counts), 0, len(counts), choose)

    def _numbers(self, spec: Any) -> _Leaf:
        np, shape, size, options = self._np, tuple(spec["shape"]), math.prod(spec["shape"]), self._options
        bounds = (np.array(spec[key], object).astype(float) for key in ("low", "high"))
        low, high = (np.broadcast_to(bound, shape).ravel() for bound in bounds)
        bounded = (abs(low) < 1e9) & (abs(high) < 1e9)
        squashed, scaled = bounded & options["squash"], bounded & (options["squash"] or options["normalize"])
        top, bottom = np.where(scaled, high, 1.0), np.where(scaled, low, -1.0)
        half, middle = (top - bottom) / 2, (top + bottom) / 2
        integer, noise = np.dtype(spec["dtype"]).kind in "iub", self._how["kind"] == "added_noise"
        clipped = options["clip"] or options["squash"] or integer

        def choose(mean: Any, log_std: Any, u: Any) -> tuple[Any, Any, float]:
            z = np.array([*map(NormalDist().inv_cdf, u)], np.float32)
            own = z if self._how["kind"] == "sampled" else np.zeros_like(z)
            sample = mean + np.exp(log_std) * own
            logp = -0.5 * (own * own + math.log(2 * math.pi)) - log_std
            logp -= np.where(squashed, 2 * (math.log(2) - sample - np.logaddexp(0, -2 * sample)), 0)
            if noise:
                moved = np.tanh(mean) + self._how["deviation"] * z
                moved = 2 * u - 1 if self._about["scalars"].get("random") else moved
                sample = np.arctanh(moved.clip(-_EDGE, _EDGE)).astype(np.float32)
            action = np.where(squashed, np.tanh(sample), sample) * half + middle
            action = action.clip(low, high) if clipped else action
            action = np.rint(action).astype(spec["dtype"]) if integer else action
            return action.reshape(shape).tolist(), sample.reshape(shape).tolist(), float(logp.sum())

        return _Leaf(size, size, size, choose)

    def _params(self, obs: Any) -> Any:
        np, network, x = self._np, self._network, self._encode(obs)
        for i, (weights, biases) in enumerate(self._layers):
            x = (self._activation(x) if i else x) @ weights + biases
        if network.get("support"):
            low, high, n = network["support"]
            x = x.reshape(-1, n)
            p = np.exp(x - x.max(-1, keepdims=True))
            x = p @ np.linspace(low, high, n, dtype=np.float32) / p.sum(-1)
        if network.get("masked"):
            n = self._parts[0].heads
            x[:n] = np.where(np.asarray(obs["action_mask"]).reshape(n) != 0, x[:n], _MASKED)
        if k := network.get("bounded_log_std"):
            x[-k:] = x[-k:].clip(-20, 2)
        return np.concatenate([x, self._arrays["log_std"]]) if network["free_log_std"] else x

    def decide(self, obs: Any, noise: Any = None) -> tuple[Any, Any, float, int]:
        """The env's action, the sample, its logp and the version; ``noise`` are the uniforms to use."""
        drawn = [max(random.random(), _LEAST) for _ in range(self.noise_size)] if noise is None else noise
        try:
            with self._np.errstate(all="ignore"):  # the numbers say it
                found = self._decided(self._params(obs), self._np.asarray(drawn))
        except (LookupError, TypeError, ValueError) as error:
            raise RefusedError(f"{obs!r:.80} cannot be acted on: {error}", 422, "out_of_space") from error
        return *found, self._about["version"]

    def _decided(self, x: Any, u: Any) -> tuple[Any, Any, float]:
        if self._how["kind"] == "epsilon_greedy":
            return self._greedily(x, u)
        found, a, b, c = [], 0, sum(part.heads for part in self._parts), 0
        for heads, scales, noise, choose in self._parts:
            found.append(choose(x[a : a + heads], x[b : b + scales], u[c : c + noise]))
            a, b, c = a + heads, b + scales, c + noise
        actions, samples, logps = zip(*found, strict=True)
        space = self._network["action"]
        return _formed(space, iter(actions)), _formed(space, iter(samples)), sum(logps)

    def _greedily(self, values: Any, u: Any) -> tuple[int, int, float]:
        np, epsilon = self._np, self._about["scalars"].get("epsilon", 0.0)
        legal, best = (values > _MASKED).cumsum(), int(values.argmax())
        if not legal[-1]:
            raise ValueError(_NOTHING)
        i = int(np.argmax(legal > u[1] * legal[-1])) if u[0] < epsilon else best
        chance = epsilon / legal[-1] + (1 - epsilon) * (i == best)
        return i + self._network["action"]["start"], i, math.log(chance)
