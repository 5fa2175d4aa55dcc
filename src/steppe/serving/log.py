"""The write-ahead log: what a server has acknowledged is on disk, and the trainer reads it from there.

A log is a folder. ``log.json`` has its id; ``<position>.log`` are its segments, one after the other, each
named by the position of its first byte. Positions count the bytes of all segments since the log began. A
segment is a sequence of frames: length and CRC32 of the payload (u32 each, little end first), payload. The
CRC starts from that of the log's id, so that no frame of another log is taken for one of this. The first byte
of a payload is its kind:

- *record*: what was appended.
- *snapshot*: what all records before this position came to; the first frame of a segment, or none.
- *mark*: its own position. It begins each group that is written at once, unless a snapshot does.

A group is written after the one before it was synced. So what is broken behind the last mark was never
acknowledged, and is cut off; what is broken before a mark is damage, and is said.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final
from zlib import crc32

from steppe.errors import ConfigError, SteppeError

VERSION = 1
"""Of the format of logs, records included."""

_HEAD = struct.Struct("<II")
_POSITION = struct.Struct("<Q")
_RECORD, _SNAPSHOT, _MARK = b"\x01", b"\x02", b"\x03"
_MARK_LENGTH = struct.pack("<I", 1 + _POSITION.size)
_MARK_SIZE = _HEAD.size + 1 + _POSITION.size
_PIECE = 1 << 18
"""Bytes that a reader asks for at once."""
_NEW = "segment.new"
_fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class LogError(SteppeError):
    """Something is wrong with a server's log."""


@final
class LogFullError(LogError):
    """The log has reached its bound, because the learner has not consumed it; nothing was appended."""


@final
class LogWriteError(LogError):
    """The disk takes nothing. What was appended still waits for a sync that succeeds."""


@final
class LogGoneError(LogError):
    """A position whose records were deleted, because they had been consumed."""


@final
class LogDamagedError(LogError):
    """A file of the log is not as it was written.

    Attributes:
        file: which.
        offset: of its first frame that is broken.
    """

    def __init__(self, file: Path, offset: int, what: str) -> None:
        self.file, self.offset = file, offset
        super().__init__(
            f"{file}, byte {offset}: {what}. Everything before it can be read. Bring this file back from a "
            "backup, or move the folder away: a new log begins, without what was not learned yet"
        )


@final
class Log:
    """The writer of a log, one at a time. One thread appends, another may sync.

    Args:
        folder: made where it is not there, readable for its owner alone.
        segment_bytes: a segment ends when its records, and no less than its snapshot, have these.
        most_bytes: bound of the whole log.
        snapshot: asked for what all records came to that were appended so far, inside of an ``append`` and
            before its own record is added.

    Attributes:
        id: of this log, for life.
        end: position after what was appended.
        synced: position up to which everything is on disk.
        cut: bytes of a group that was never finished, which were cut off when the log was opened.

    Raises:
        ConfigError: another process writes this log, or the folder holds something else.
        LogWriteError: the folder cannot be written.
        LogDamagedError: the log cannot go on where it ended.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int = 64 << 20,
        most_bytes: int = 4 << 30,
        snapshot: Callable[[], bytes] | None = None,
    ) -> None:
        self._folder, self._snapshot = folder, snapshot
        self._segment_bytes, self._most_bytes = min(segment_bytes, most_bytes // 4), most_bytes
        self._file = -1
        self._waiting: deque[_Group] = deque()
        self._open: _Group | None = None
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        with contextlib.ExitStack() as undo, _told(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._locked = _lock(folder)
            undo.callback(os.close, self._locked)
            (folder / _NEW).unlink(missing_ok=True)
            self.id = _begin(folder) or _id_of(folder)
            self._salt = crc32(self.id.encode())
            self._starts = _starts(folder)
            self.end = self.synced = self._go_on(undo)
            undo.pop_all()

    def append(self, record: bytes) -> int:
        """Add a record; returns the position after it. It is on disk when ``synced`` has come that far.

        Raises:
            LogFullError: there is no room; the log is as it was.
        """
        self._check_room(len(record) + _HEAD.size + 1 + _MARK_SIZE)
        if self.end >= self._turn:
            self._turn_over()
        framed = _framed(_RECORD, record, self._salt)
        with self._lock:
            self._add(framed)
            return self.end

    def touch(self) -> None:
        """Append what is no record, if nothing waits, so that the next ``sync()`` tries the disk."""
        with self._lock:
            if not self._waiting:
                self._add(b"")

    def sync(self) -> int:
        """Write all that was appended before this call; returns ``synced``. Any thread, one at a time.

        Raises:
            LogWriteError: the disk did not take it. It is kept, and written by the next call that can.
        """
        with self._syncing:
            with self._lock:
                groups, self._open = list(self._waiting), None
            for group in groups:
                with _told(self._folder):
                    self._write(group)
                with self._lock:
                    self._waiting.popleft()
                    self.synced = group.end
            return self.synced

    def consumed(self, position: int) -> None:
        """Delete the segments that end before ``position``, but never the newest one.

        Raises:
            LogWriteError: they cannot be deleted.
        """
        with self._lock, _told(self._folder):
            while len(self._starts) > 1 and self._starts[1] <= position:
                _segment(self._folder, self._starts[0]).unlink(missing_ok=True)
                del self._starts[0]

    def recover(self) -> Iterator[bytes]:
        """The newest snapshot (empty if there is none), then all records after it that are on disk.

        Raises:
            LogDamagedError: after everything that is before the damage.
        """
        start, snapshot = self._starts[0], b""
        for one in reversed(self._starts):
            if (found := self._snapshot_of(one)) is not None:
                start, snapshot = one, found
                break
        yield snapshot
        with contextlib.closing(Tail(self._folder, start)) as tail:
            while records := tail.read(self.synced):
                yield from records

    def close(self) -> None:
        """Sync, and let another writer in; may be called twice.

        Raises:
            LogWriteError: the disk did not take the rest.
        """
        if self._locked < 0:
            return
        try:
            self.sync()
            self.touch()  # before a mark, no later damage looks like a group that was never finished
            self.sync()
        finally:
            os.close(self._file)
            os.close(self._locked)
            self._file = self._locked = -1

    def _check_room(self, size: int) -> None:
        used = self.end - self._starts[0]
        if used + size > self._most_bytes:
            raise LogFullError(
                f"the log in {self._folder} has {used:,} of at most {self._most_bytes:,} bytes, which the "
                "learner has not consumed: wait for it, or give the log a larger bound"
            )

    def _add(self, framed: bytes) -> None:
        """Into the group that is not being written; a new one begins with a mark. The lock is held."""
        if self._open is None:
            self._open = _Group(self.end, _mark(self.end, self._salt), opens=False)
            self._waiting.append(self._open)
        self._open.data += framed
        self.end = self._open.end

    def _turn_over(self) -> None:
        """What is appended from here on goes into a new segment."""
        first = _mark(self.end, self._salt)
        if self._snapshot is not None:
            first = _framed(_SNAPSHOT, self._snapshot(), self._salt)
            self._check_room(len(first) + _MARK_SIZE)
        with self._lock:
            self._open = _Group(self.end, first, opens=True)
            self._waiting.append(self._open)
            self.end = self._open.end
            self._turn = self.end + max(self._segment_bytes, len(first))

    def _write(self, group: _Group) -> None:
        """At its place, whatever an earlier try has left there."""
        if not group.opens:
            _write_at(self._file, group.data, group.start - self._starts[-1])
            _fdatasync(self._file)
            return
        file = _write_new(_segment(self._folder, group.start), group.data)
        os.close(self._file)
        self._file = file
        with self._lock:
            self._starts.append(group.start)

    def _go_on(self, undo: contextlib.ExitStack) -> int:
        """Open the newest segment, without what was never finished in it; returns where it ends."""
        for start, following in zip(self._starts, self._starts[1:], strict=False):
            path = _segment(self._folder, start)
            if (size := path.stat().st_size) != following - start:
                raise LogDamagedError(path, size, f"it ends here, not at byte {following - start}")
        start = self._starts[-1]
        path = _segment(self._folder, start)
        self._file = os.open(path, os.O_RDWR)
        undo.callback(os.close, self._file)
        intact, first = _intact(self._file, path, start, self._salt)
        self.cut = os.fstat(self._file).st_size - intact
        if self.cut:
            os.ftruncate(self._file, intact)
            _fdatasync(self._file)
        self._turn = start + first + max(self._segment_bytes, first)
        return start + intact

    def _snapshot_of(self, start: int) -> bytes | None:
        """What the segment at ``start`` begins with, if that is a snapshot."""
        path = _segment(self._folder, start)
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            file.seek(0)
            size = _HEAD.unpack(head)[0] if len(head) == _HEAD.size else 0
            payload = _payload(file.read(_HEAD.size + size), 0, self._salt)
        if not isinstance(payload, bytes):
            raise LogDamagedError(path, 0, "what it begins with is not as it was written")
        return payload[1:] if payload[:1] == _SNAPSHOT else None


@final
class Tail:
    """The reader of a log, usually in another process than its writer.

    Args:
        folder: of the log.
        position: where to begin: 0, or what :attr:`position` once was.

    Attributes:
        id: of the log.
        position: after the last record that was read.

    Raises:
        LogDamagedError: there is no log.
    """

    def __init__(self, folder: Path, position: int = 0) -> None:
        self.id = _id_of(folder)
        self.position = position
        self._folder, self._salt = folder, crc32(self.id.encode())
        self._start, self._file = -1, -1
        self._data, self._at = b"", 0

    def read(self, upto: int, most: int = 4096) -> list[bytes]:
        """The next records, at most so many, and none behind ``upto``: a position that is synced.

        Raises:
            LogGoneError: the records at ``position`` were deleted.
            LogDamagedError: the next record is damaged; everything before it was given by earlier calls.
        """
        found: list[bytes] = []
        while self.position < upto and len(found) < most:
            payload = _payload(self._data, self._at, self._salt)
            try:
                if not isinstance(payload, bytes):
                    self._fetch(payload, upto)
                    continue
            except LogError:
                if found:
                    break  # the next call comes to the same place
                raise
            self._at += _HEAD.size + len(payload)
            self.position += _HEAD.size + len(payload)
            if payload[:1] == _RECORD:
                found.append(payload[1:])
        return found

    def close(self) -> None:
        """Close its file; may be called twice."""
        if self._file >= 0:
            os.close(self._file)
        self._start = self._file = -1
        self._data, self._at = b"", 0

    def _fetch(self, need: int | None, upto: int) -> None:
        """Have ``need`` bytes from ``position`` on; None: those that are there are wrong."""
        left, data, what = upto - self.position, b"", "a record is not as it was written"
        if need is not None and need > left:
            what = f"a record of {need:,} bytes begins here, where {left:,} were written"
        elif need is not None:
            if self._file >= 0:
                data = os.pread(self._file, min(max(need, _PIECE), left), self.position - self._start)
            if len(data) >= need:
                self._data, self._at = data, 0
                return
            if not data and self._follow():
                return
            what = f"it ends {need - len(data):,} bytes too early"
        raise LogDamagedError(_segment(self._folder, self._start), self.position - self._start, what)

    def _follow(self) -> bool:
        """Open the segment that ``position`` is in, if it is another than before."""
        starts = _starts(self._folder)
        start = max((one for one in starts if one <= self.position), default=None)
        if start is None:
            raise self._gone(starts)
        if start == self._start:
            return False
        try:
            file = os.open(_segment(self._folder, start), os.O_RDONLY)
        except FileNotFoundError:
            raise self._gone(_starts(self._folder)) from None
        self.close()
        self._start, self._file = start, file
        return True

    def _gone(self, starts: list[int]) -> LogGoneError:
        return LogGoneError(
            f"position {self.position} of the log in {self._folder} was deleted, because it had been "
            f"consumed: the log begins at {min(starts, default=0)}. Go on from a newer checkpoint, or give "
            "the server a new log_dir"
        )


@final
class _Group:
    """What is written and synced at once; ``opens``: as the beginning of a new segment."""

    __slots__ = ("data", "opens", "start")

    def __init__(self, start: int, first: bytes, *, opens: bool) -> None:
        self.start, self.data, self.opens = start, bytearray(first), opens

    @property
    def end(self) -> int:
        """The position after it."""
        return self.start + len(self.data)


# --- frames -----------------------------------------------------------------------------------------------


def _framed(kind: bytes, content: bytes, salt: int) -> bytes:
    return _HEAD.pack(len(content) + 1, crc32(content, crc32(kind, salt))) + kind + content


def _mark(position: int, salt: int) -> bytes:
    return _framed(_MARK, _POSITION.pack(position), salt)


def _payload(data: bytes | mmap.mmap, at: int, salt: int) -> bytes | int | None:
    """The payload of the frame at ``at``; how many bytes are needed, if they are not there; None: broken."""
    if len(data) < at + _HEAD.size:
        return _HEAD.size
    size, crc = _HEAD.unpack_from(data, at)
    begin, end = at + _HEAD.size, at + _HEAD.size + size
    if len(data) < end:
        return _HEAD.size + int(size)
    payload = data[begin:end]
    return payload if size and crc32(payload, salt) == crc else None


def _intact(file: int, path: Path, start: int, salt: int) -> tuple[int, int]:
    """How many bytes of a segment are whole frames, and how many its first one has.

    Raises:
        LogDamagedError: a frame is broken that was acknowledged.
    """
    if not os.fstat(file).st_size:
        raise LogDamagedError(path, 0, "it is empty")
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        at = first = 0
        while isinstance(payload := _payload(data, at, salt), bytes):
            at += _HEAD.size + len(payload)
            first = first or at
        if at < len(data) and (not first or _is_marked_behind(data, at, start, salt)):
            raise LogDamagedError(path, at, "a record is not as it was written")
        return at, first


def _is_marked_behind(data: mmap.mmap, at: int, start: int, salt: int) -> bool:
    """Whether a mark says that everything before it was on disk when it was written."""
    while (at := data.find(_MARK_LENGTH, at + 1)) >= 0:
        if data[at : at + _MARK_SIZE] == _mark(start + at, salt):
            return True
    return False


# --- files ------------------------------------------------------------------------------------------------


def _segment(folder: Path, start: int) -> Path:
    return folder / f"{start:020}.log"


def _starts(folder: Path) -> list[int]:
    """Of all segments, in order."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]" * 20 + ".log"))


def _begin(folder: Path) -> str | None:
    """The id of a log that is begun now, or None where there is one."""
    if (folder / "log.json").exists():
        return None
    # A crash between the two files leaves a segment that has nothing but its mark.
    if any(start or _segment(folder, 0).stat().st_size > _MARK_SIZE for start in _starts(folder)):
        raise LogDamagedError(folder / "log.json", 0, "it is missing, and there are segments")
    identity = uuid.uuid4().hex
    os.close(_write_new(_segment(folder, 0), _mark(0, crc32(identity.encode()))))
    about = json.dumps({"format": "steppe-log", "version": VERSION, "id": identity}) + "\n"
    os.close(_write_new(folder / "log.json", about.encode()))
    return identity


def _id_of(folder: Path) -> str:
    path = folder / "log.json"
    try:
        about = json.loads(path.read_bytes())
        if about["format"] != "steppe-log":
            raise KeyError
        version, identity = about["version"], str(about["id"])
    except (OSError, ValueError, LookupError, TypeError):
        raise LogDamagedError(path, 0, "a description of a server's log was expected") from None
    if version != VERSION:
        raise ConfigError(
            f"{path}: the log is of version {version}, and this steppe writes version {VERSION}: go on with "
            "the steppe that began it, or give the server a new log_dir"
        )
    if not _starts(folder):
        raise LogDamagedError(path, 0, "its segments are missing")
    return identity


def _lock(folder: Path) -> int:
    """A file that only one process holds; its end, however it comes, lets go."""
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ConfigError(
            f"another server writes the log in {folder}: end it first, or give this one a log_dir of its own"
        ) from None
    return file


def _write_new(path: Path, data: bytes | bytearray) -> int:
    """A file that is there as a whole, or not at all; returns it open."""
    with contextlib.ExitStack() as undo:
        file = os.open(path.with_name(_NEW), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        undo.callback(os.close, file)
        _write_at(file, data, 0)
        os.fsync(file)
        os.rename(path.with_name(_NEW), path)
        entry = os.open(path.parent, os.O_RDONLY)
        undo.callback(os.close, entry)
        os.fsync(entry)
        return os.dup(file)


def _write_at(file: int, data: bytes | bytearray, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(file, view[done:], offset + done)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the system says is wrong, as what is wrong with the log."""
    try:
        yield
    except OSError as error:
        raise LogWriteError(
            f"the log in {folder} cannot be written: {error.strerror or error}. Make room there or make it "
            "writable; what waits is written then"
        ) from error
