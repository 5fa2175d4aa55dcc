"""What a server knows of its episodes and clients; changed only by what is in the log, in its order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias, final

import msgspec

from steppe.envs.driven import Acted, Began, Dropped, Earned, Ended, Entry, Left
from steppe.envs.wire import packed, unpacked
from steppe.serving.messages import Refused
from steppe.serving.records import Write
from steppe.types import AgentID, Tree

WINDOW = 64
"""Requests of a client that are remembered, with their answers."""
_ENDED = 50_000
"""Ids of ended episodes that are remembered."""
_DIGEST = 8  # bytes
_REST = 60.0
"""Seconds of silence after which a client may be forgotten when there are too many."""


@dataclass(slots=True)
class Seat:
    """An agent in an episode; ``first`` and ``last`` are steps of its rows, ``earned`` is since the last."""

    policy: str
    first: int
    last: int
    state: Tree = None
    done: bool = False
    earned: float = 0.0


@dataclass(slots=True)
class Episode:
    """An open episode.

    Attributes:
        training: whether it is learned from.
        number: counts the episodes of the server.
        touched: when it was last heard of.
        t: its next step.
        reward: what all its agents earned so far.
        version: that acted last.
        seats: its agents.
    """

    training: bool
    number: int
    touched: float
    t: int = 0
    reward: float = 0.0
    version: int = -1
    seats: dict[AgentID, Seat] = field(default_factory=dict)


@dataclass(slots=True)
class Client:
    """Who sends: the answers to its newest requests, by ``seq``, each behind the digest of its request."""

    epoch: int
    touched: float
    newest: int = 0
    replies: dict[int, bytes] = field(default_factory=dict)


@final
class Books:
    """Episodes and clients.

    Args:
        most_clients: that are remembered.
        clock: seconds.

    Attributes:
        episodes: the open ones by id.
        begun: how many began.
        on_end: called with each episode that came to its end.
    """

    def __init__(self, most_clients: int, clock: Callable[[], float]) -> None:
        self.episodes: dict[str, Episode] = {}
        self.begun = 0
        self.on_end: Callable[[Episode], None] = lambda episode: None
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._clients: OrderedDict[str, Client] = OrderedDict()
        self._most, self._clock = most_clients, clock
        self._now = clock()

    @property
    def clients(self) -> int:
        """How many are remembered."""
        return len(self._clients)

    @property
    def open(self) -> int:
        """How many episodes are open."""
        return len(self.episodes)

    # --- what is asked before something is done ------------------------------------------------------------

    def find(self, id: str) -> Episode:
        """An open episode.

        Raises:
            Refused: there is none.
        """
        if (episode := self.episodes.get(id)) is not None:
            return episode
        if id in self._ended:
            raise Refused("episode_ended", f"episode {id!r} has ended; start another one")
        raise Refused("unknown_episode", f"there is no episode {id!r}; start it first")

    def is_known(self, id: str) -> bool:
        """Whether there is or was such an episode."""
        return id in self.episodes or id in self._ended

    def counts(self, client: str, epoch: int) -> bool:
        """Whether a client is known to be in this epoch."""
        return (known := self._clients.get(client)) is not None and known.epoch == epoch

    def repeated(self, client: str, epoch: int, seq: int, digest: bytes) -> bytes | None:
        """The stored answer, if this request was carried out before.

        Raises:
            Refused: it is too old to be known, or says something else than the first one of its number.
        """
        known = self._clients.get(client)
        if known is None:
            self._check_room()
            return None
        if epoch != known.epoch:
            if epoch > known.epoch:
                return None
            text = f"client {client!r} is in epoch {known.epoch}, got {epoch}: use a higher one"
            raise Refused("epoch_expired", text)
        if (stored := known.replies.get(seq)) is not None:
            if stored[:_DIGEST] != digest:
                text = f"seq {seq} of client {client!r} was another request: use a new number for each"
                raise Refused("seq_reused", text)
            return stored[_DIGEST:]
        if seq <= known.newest - WINDOW:
            text = f"seq {seq} of client {client!r} is older than the newest {WINDOW}, up to {known.newest}"
            raise Refused("seq_expired", f"{text}: have at most {WINDOW} requests unanswered")
        return None

    def _check_room(self) -> None:
        """Make sure that a new client can be remembered."""
        if len(self._clients) < self._most:
            return
        if self._clock() - next(iter(self._clients.values())).touched < _REST:
            text = f"there are {self._most} clients, all of them busy: send through fewer, or come back later"
            raise Refused("too_many_clients", text, 10)

    def silent(self, seconds: float) -> list[str]:
        """Ids of the open episodes that nobody touched for so long."""
        since = self._clock() - seconds
        return [id for id, episode in self.episodes.items() if episode.touched < since]

    # --- what was done --------------------------------------------------------------------------------------

    def apply(self, write: Write) -> None:
        """Note what is in the log."""
        self._now = self._clock()
        for entry in write.entries:
            self.take(entry)
        if write.client:
            self._remember(write)

    def take(self, entry: Entry) -> None:
        """Note what happened."""
        match entry:
            case Acted() | Earned() | Left():
                episode = self.episodes[entry.episode]
                episode.touched = self._now
                _advance(episode, entry)
            case Began():
                self.episodes[entry.episode] = Episode(entry.training, self.begun, self._now)
                self.begun += 1
            case Ended() | Dropped():
                episode = self.episodes.pop(entry.episode)
                self._ended[entry.episode] = None
                if len(self._ended) > _ENDED:
                    self._ended.popitem(last=False)
                if isinstance(entry, Ended):
                    self.on_end(episode)

    def _remember(self, write: Write) -> None:
        client = self._clients.get(write.client)
        if client is None or client.epoch < write.epoch:
            while client is None and len(self._clients) >= self._most:
                self._clients.popitem(last=False)
            client = self._clients[write.client] = Client(write.epoch, self._now)
        self._clients.move_to_end(write.client)
        client.touched = self._now
        client.replies[write.seq] = write.digest + write.reply
        if write.seq > client.newest:
            client.newest = write.seq
        oldest = client.newest - WINDOW
        client.replies.pop(oldest, None)  # nearly always the only one
        if len(client.replies) > WINDOW:
            for seq in [seq for seq in client.replies if seq < oldest]:
                del client.replies[seq]

    # --- as bytes -------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """All of it, for the beginning of a segment of the log."""
        episodes = [
            [
                id,
                episode.training,
                episode.number,
                episode.t,
                episode.reward,
                episode.version,
                _seats(episode),
            ]
            for id, episode in self.episodes.items()
        ]
        clients = [(name, one.epoch, one.newest, one.replies) for name, one in self._clients.items()]
        plain = msgspec.msgpack.encode([self.begun, [*self._ended], clients])
        return packed([plain, episodes])

    def restore(self, snapshot: bytes) -> None:
        """Go on from what :meth:`snapshot` gave; from nothing where it is empty."""
        if not snapshot:
            return
        now = self._clock()
        plain, episodes = unpacked(snapshot)
        self.begun, ended, clients = msgspec.msgpack.decode(
            plain, type=tuple[int, list[str], list[tuple[str, int, int, dict[int, bytes]]]]
        )
        self._ended = OrderedDict.fromkeys(ended)
        self._clients = OrderedDict(
            (name, Client(epoch, now, newest, replies)) for name, epoch, newest, replies in clients
        )
        for id, training, number, t, reward, version, seats in episodes:
            taken = {agent: Seat(*rest) for agent, *rest in seats}
            self.episodes[id] = Episode(training, number, now, t, reward, version, taken)


def _seats(episode: Episode) -> list[list[object]]:
    return [
        [agent, one.policy, one.first, one.last, one.state, one.done, one.earned]
        for agent, one in episode.seats.items()
    ]


def _advance(episode: Episode, entry: Acted | Earned | Left) -> None:
    """What happened within an open episode."""
    if isinstance(entry, Acted):
        seat = episode.seats.get(entry.agent)
        if seat is None:
            episode.seats[entry.agent] = Seat(entry.policy, entry.t, entry.t, entry.state)
        else:
            seat.last, seat.state, seat.earned = entry.t, entry.state, 0.0
        episode.t, episode.version = entry.t + 1, entry.version
    elif isinstance(entry, Earned):
        episode.reward += entry.reward
        if entry.t is None and (seat := episode.seats.get(entry.agent)) is not None:
            seat.earned += entry.reward
    else:
        episode.seats[entry.agent].done = True


@final
class Draft:
    """What the books will be after some entries that may yet be refused; the books stay as they are."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._own: dict[str, Episode | None] = {}
        self._began = 0

    @property
    def open(self) -> int:
        """As the books do; those that end here are counted still."""
        return self._books.open + self._began

    def find(self, id: str) -> Episode:
        """As the books do."""
        if id not in self._own:
            one = self._books.find(id)
            self._own[id] = replace(one, seats={agent: replace(seat) for agent, seat in one.seats.items()})
        if (episode := self._own[id]) is None:
            raise Refused("episode_ended", f"episode {id!r} has ended; start another one")
        return episode

    def is_known(self, id: str) -> bool:
        """As the books do."""
        return id in self._own or self._books.is_known(id)

    def take(self, entry: Entry) -> None:
        """As the books do."""
        if isinstance(entry, Began):
            self._own[entry.episode] = Episode(entry.training, self._books.begun + self._began, 0.0)
            self._began += 1
        elif isinstance(entry, Ended | Dropped):
            self._own[entry.episode] = None
        else:
            _advance(self.find(entry.episode), entry)


Sight: TypeAlias = Books | Draft
"""Where episodes are looked up: the books, or a draft of what they will be."""
