"""What a sync has returned stays, whatever happens; what is broken is cut off or said, never passed over."""

import contextlib
import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.errors import ConfigError, SteppeError
from steppe.serving import log as module
from steppe.serving.log import (
    Log,
    LogDamagedError,
    LogError,
    LogFullError,
    LogGoneError,
    LogWriteError,
    Tail,
)

MARK = 8 + 1 + 8
"""Bytes of a mark: length, CRC, kind, position."""
RECORDS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=4)


def written(folder, groups, *, close=True, **settings):
    """A log with these records, synced by the group; the positions after each group."""
    log = Log(folder, **settings)
    positions = []
    for group in groups:
        for record in group:
            log.append(record)
        positions.append(log.sync())
    if close:
        log.close()
    else:
        let_go(log)
    return positions


def let_go(log):
    """End as a killed process does: without a last word."""
    os.close(log._file)
    os.close(log._locked)
    log._file = log._locked = -1


def recovered(folder, **settings):
    with closing(Log(folder, **settings)) as log:
        return list(log.recover())


def tailed(folder, upto, position=0):
    with closing(Tail(folder, position)) as tail:
        return tail.read(upto)


def segments(folder):
    return sorted(folder.glob("*.log"))


def flat(groups):
    return [record for group in groups for record in group]


def test_positions_count_every_byte(tmp_path):
    log = Log(tmp_path / "log")
    assert log.end == log.synced == MARK  # of the segment itself
    assert log.append(b"abc") == 2 * MARK + 8 + 1 + 3
    assert log.append(b"") == log.end == 2 * MARK + 12 + 9
    assert log.synced == MARK
    assert log.sync() == log.synced == log.end
    assert log.sync() == log.end
    log.close()
    log.close()
    (only,) = segments(tmp_path / "log")
    assert only.name == "0" * 20 + ".log"
    assert only.stat().st_size == 3 * MARK + 12 + 9
    data = only.read_bytes()
    assert struct.unpack_from("<I", data, 2 * MARK) == (4,)
    assert data[2 * MARK + 8 : 2 * MARK + 12] == b"\x01abc"


def test_what_was_appended_is_recovered_and_goes_on(tmp_path):
    folder = tmp_path / "deep" / "log"
    log = Log(folder)
    assert list(log.recover()) == [b""]
    log.append(b"one")
    log.append(b"two")
    assert list(log.recover()) == [b""]  # nothing is on disk yet
    log.close()
    again = Log(folder)
    assert again.id == log.id
    assert again.cut == 0
    assert list(again.recover()) == [b"", b"one", b"two"]
    again.append(b"three")
    again.close()
    assert recovered(folder) == [b"", b"one", b"two", b"three"]


def test_files_are_for_their_owner_alone(tmp_path):
    folder = tmp_path / "log"
    written(folder, [[b"x" * 50]] * 8, segment_bytes=100)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(names) > 4
    assert set(names.values()) == {0o600}
    about = json.loads((folder / "log.json").read_text())
    assert about == {"format": "steppe-log", "version": 1, "id": Tail(folder).id}


def test_records_may_be_large(tmp_path):
    big = [
        bytes([i]) * size for i, size in enumerate((module._PIECE - 9, module._PIECE, 3 * module._PIECE, 1))
    ]
    (end,) = written(tmp_path / "log", [big])
    assert tailed(tmp_path / "log", end) == big
    assert recovered(tmp_path / "log") == [b"", *big]


# --- what a crash leaves ----------------------------------------------------------------------------------


@given(groups=RECORDS, garbage=st.binary(max_size=30) | st.integers(1, 40).map(bytes))
@settings(max_examples=15)
def test_a_torn_tail_is_cut_off_at_any_byte(groups, garbage):
    """Cut anywhere after what was synced, with or without rubbish behind: every synced group is there."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        positions = written(folder, groups, close=False)
        (file,) = segments(folder)
        whole = file.read_bytes()
        before = positions[-2] if len(groups) > 1 else MARK
        for length in {before, before + 1, (before + len(whole)) // 2, len(whole) - 1}:
            for rest in (b"", garbage):
                file.write_bytes(whole[:length] + rest)
                log = Log(folder)
                records = list(log.recover())[1:]
                assert records == flat(groups)[: len(records)]
                assert len(records) >= len(flat(groups[:-1]))
                assert log.cut == length + len(rest) - log.end
                log.append(b"more")
                log.close()
                assert recovered(folder) == [b"", *records, b"more"]


def test_a_torn_tail_at_every_byte(tmp_path):
    groups = [[b"first", b"second"], [b"third", b"fourth"]]
    first, last = written(tmp_path, groups, close=False)
    (file,) = segments(tmp_path)
    whole = file.read_bytes()
    assert len(whole) == last
    third = first + MARK + 9 + len(b"third")
    for length in range(first, last + 1):
        file.write_bytes(whole[:length])
        expected = 2 + (length >= third) + (length == last)
        with contextlib.closing(Log(tmp_path)) as log:
            assert list(log.recover())[1:] == flat(groups)[:expected]
            whole_frames = max(end for end in (first, first + MARK, third, last) if end <= length)
            assert (log.end, log.cut) == (whole_frames, length - whole_frames)
            assert file.stat().st_size == log.end  # else a shorter group would have old frames behind it


def test_a_tail_that_was_written_in_another_order_is_cut_off(tmp_path):
    """A group's pages may reach the disk last ones first; what is whole behind a hole was not told."""
    first, _ = written(tmp_path, [[b"kept"], [b"a" * 20, b"b" * 20]], close=False)
    (file,) = segments(tmp_path)
    whole = bytearray(file.read_bytes())
    whole[first : first + MARK + 10] = bytes(MARK + 10)
    file.write_bytes(whole)
    assert recovered(tmp_path) == [b"", b"kept"]


@given(st.data())
@settings(max_examples=60)
def test_a_flipped_bit_is_told_by_file_and_offset(data):
    """Everything before it can be read; nothing behind it is given."""
    groups = [[b"first", b"second"], [b"third"], [b"fourth", b"fifth"]]
    with TemporaryDirectory() as name:
        folder = Path(name)
        positions = written(folder, groups)
        (file,) = segments(folder)
        whole = bytearray(file.read_bytes())
        frames = [(0, MARK)]
        for group in groups:
            frames.append((frames[-1][1], frames[-1][1] + MARK))
            for record in group:
                frames.append((frames[-1][1], frames[-1][1] + 9 + len(record)))
        begin, end = data.draw(st.sampled_from(frames))
        bit = data.draw(st.integers(begin * 8, end * 8 - 1))
        whole[bit // 8] ^= 1 << bit % 8
        file.write_bytes(whole)
        with pytest.raises(LogDamagedError) as refused:
            Log(folder)
        assert (refused.value.file, refused.value.offset) == (file, begin)
        assert f"{file.name}, byte {begin}" in str(refused.value)
        intact = [
            record for (_, stop), record in zip(spans(groups), flat(groups), strict=True) if stop <= begin
        ]
        with closing(Tail(folder)) as tail:
            assert (tail.read(positions[-1]) if intact else []) == intact
            with pytest.raises(LogDamagedError) as again:
                tail.read(positions[-1])
        assert (again.value.file, again.value.offset) == (file, begin)


def spans(groups):
    """Begin and end of every record's frame."""
    at = MARK
    for group in groups:
        at += MARK
        for record in group:
            yield at, at + 9 + len(record)
            at += 9 + len(record)


def test_damage_in_an_older_segment_is_told_when_it_is_read(tmp_path):
    groups = [[bytes([i]) * 60] for i in range(8)]
    end = written(tmp_path, groups, segment_bytes=150)[-1]
    second = segments(tmp_path)[1]
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    log = Log(tmp_path)  # it can go on: the newest segment is well
    records = []
    with pytest.raises(LogDamagedError, match=second.name):
        records.extend(log.recover())
    told = []
    with closing(Tail(tmp_path)) as tail, pytest.raises(LogDamagedError) as refused:
        told.extend(record for _ in groups for record in tail.read(end, most=2))
    assert told == flat(groups)[: len(told)]
    assert len(told) >= 2
    assert refused.value.offset == data.rindex(struct.pack("<I", 61), 0)
    log.close()


@pytest.mark.parametrize("which", [0, 1])
def test_a_segment_that_is_too_short_or_gone_is_told(tmp_path, which):
    written(tmp_path, [[b"x" * 60]] * 8, segment_bytes=150)
    file = segments(tmp_path)[1]
    if which:
        file.unlink()
        file = segments(tmp_path)[0]
    else:
        file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(LogDamagedError, match=f"{file.name}, byte"):
        Log(tmp_path)


def test_an_empty_newest_segment_is_told(tmp_path):
    written(tmp_path, [[b"x"]])
    segments(tmp_path)[0].write_bytes(b"")
    with pytest.raises(LogDamagedError, match="it is empty"):
        Log(tmp_path)


def test_frames_of_another_log_are_not_taken_for_its_own(tmp_path):
    written(tmp_path / "one", [[b"x"]])
    written(tmp_path / "other", [[b"y"]])
    segments(tmp_path / "one")[0].write_bytes(segments(tmp_path / "other")[0].read_bytes())
    with pytest.raises(LogDamagedError, match="byte 0"):
        Log(tmp_path / "one")


def test_a_crash_while_a_log_was_begun_leaves_nothing_in_the_way(tmp_path):
    written(tmp_path, [])
    (file,) = segments(tmp_path)
    file.write_bytes(file.read_bytes()[:MARK])
    (tmp_path / "log.json").unlink()
    (tmp_path / "segment.new").write_bytes(b"half")
    with closing(Log(tmp_path)) as log:
        log.append(b"x")
    assert recovered(tmp_path) == [b"", b"x"]
    assert not (tmp_path / "segment.new").exists()


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(LogDamagedError, match="description"):
        Tail(tmp_path)
    written(tmp_path, [[b"x"]])
    about = (tmp_path / "log.json").read_text()
    (tmp_path / "log.json").write_text(about.replace('"version": 1', '"version": 2'))
    with pytest.raises(ConfigError, match="of version 2, and this steppe writes version 1"):
        Log(tmp_path)
    for text in ("", "[]", "{}", '{"format": "other"}'):
        (tmp_path / "log.json").write_text(text)
        with pytest.raises(LogDamagedError, match="description"):
            Log(tmp_path)
    (tmp_path / "log.json").unlink()
    with pytest.raises(LogDamagedError, match="it is missing, and there are segments"):
        Log(tmp_path)
    (tmp_path / "log.json").write_text(about)
    segments(tmp_path)[0].unlink()
    with pytest.raises(LogDamagedError, match="its segments are missing"):
        Log(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LogWriteError, match="cannot be written"):
        Log(tmp_path / "file")


WRITER = """
import sys
from pathlib import Path
from steppe.serving.log import Log
log = Log(Path(sys.argv[1]), segment_bytes=20_000, snapshot=lambda: b"%d" % n)
snapshot, *records = log.recover()
n = int(snapshot or 0) + len(records)
while True:
    for _ in range(1 + n % 7):
        log.append(b"%d " % n + b"x" * (n % 90))
        n += 1
    log.sync()
    print(n, log.synced, flush=True)
"""


def killed_writers(folder, kills, seconds):
    """Records that were acknowledged are there after each kill, in order, none of them twice."""
    acknowledged, position = 0, 0
    tail = None
    read = []
    for i in range(kills):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        first = child.stdout.readline()
        time.sleep(seconds * (i % 5) / 5)
        child.kill()
        lines = [
            line for line in [first, *child.stdout.read().splitlines(keepends=True)] if line[-1:] == b"\n"
        ]
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        acknowledged, position = map(int, lines[-1].split())
        tail = tail or Tail(folder)
        while some := tail.read(position):
            read += some
        assert [int(record.split()[0]) for record in read] == list(range(acknowledged))
    tail.close()
    snapshot, *records = recovered(folder)
    assert [int(record.split()[0]) for record in records] == [
        *range(int(snapshot or 0), len(records) + int(snapshot))
    ]
    assert int(snapshot) + len(records) >= acknowledged
    return acknowledged


def test_what_was_acknowledged_outlives_a_kill(tmp_path):
    assert killed_writers(tmp_path / "log", 5, 0.1) > 100


@pytest.mark.slow
def test_what_was_acknowledged_outlives_many_kills(tmp_path):
    assert killed_writers(tmp_path / "log", 60, 0.2) > 10_000


# --- segments ---------------------------------------------------------------------------------------------


def test_segments_begin_with_what_came_before(tmp_path):
    """The snapshot is asked for before the record is added that opens the segment."""
    held = []
    log = Log(tmp_path, segment_bytes=200, snapshot=lambda: b",".join(held))
    for i in range(20):
        record = b"%03d" % i * 10
        log.append(record)
        held.append(record[:3])
        if i % 3 == 2:
            log.sync()
    log.close()
    assert len(segments(tmp_path)) > 2
    snapshot, *records = recovered(tmp_path)
    assert snapshot.split(b",") + [record[:3] for record in records] == held
    assert len(records) < 10
    assert tailed(tmp_path, log.end) == [one * 10 for one in held]  # a reader sees no snapshots


def test_a_segment_has_at_least_as_much_as_its_snapshot(tmp_path):
    log = Log(tmp_path, segment_bytes=100, snapshot=lambda: bytes(1000))
    for _ in range(100):
        log.append(bytes(50))
        log.sync()
    log.close()
    snapshots = len(segments(tmp_path)) - 1
    assert 2 <= snapshots <= 100 * (50 + 9 + MARK) // 1009 + 1


def test_consumed_segments_go_but_never_the_newest(tmp_path):
    log = Log(tmp_path, segment_bytes=150)
    ends = [log.append(b"x" * 60) for _ in range(9) if log.sync()]
    log.sync()
    starts = [int(path.stem) for path in segments(tmp_path)]
    assert len(starts) >= 4
    log.consumed(starts[2] - 1)
    assert [int(path.stem) for path in segments(tmp_path)] == starts[1:]
    log.consumed(starts[2] - 1)
    log.consumed(ends[-1] + 1000)
    assert [int(path.stem) for path in segments(tmp_path)] == starts[-1:]
    log.close()
    with closing(Tail(tmp_path)) as tail, pytest.raises(LogGoneError, match=f"begins at {starts[-1]}"):
        tail.read(ends[-1])
    assert len(tailed(tmp_path, ends[-1], starts[-1])) == sum(end > starts[-1] for end in ends)
    assert recovered(tmp_path)[0] == b""


def test_a_record_that_waits_for_its_segment_is_not_consumed(tmp_path):
    log = Log(tmp_path, segment_bytes=100)
    for _ in range(10):
        log.append(b"x" * 60)
    log.consumed(log.end)
    assert len(segments(tmp_path)) == 1
    log.close()
    assert len(recovered(tmp_path)) == 11


def filled(log, message):
    """Append until it is refused; how many there was room for."""
    taken = []
    with pytest.raises(LogFullError, match=message):
        taken.extend(log.append(b"x" * 60) for _ in range(1000) if log.sync())
    return len(taken)


def test_a_full_log_takes_nothing_and_loses_nothing(tmp_path):
    log = Log(tmp_path, most_bytes=2000)
    count = filled(log, "of at most 2,000 bytes")
    assert 15 < count < 30
    end = log.end
    with pytest.raises(LogFullError):
        log.append(b"x" * 60)
    assert log.end == end
    assert len(tailed(tmp_path, log.sync())) == count
    for _ in range(100):  # who consumes goes on for ever
        log.consumed(log.synced)
        log.append(b"y" * 60)
        log.sync()
        assert sum(path.stat().st_size for path in segments(tmp_path)) <= 2000
    log.close()


def test_a_snapshot_that_does_not_fit_leaves_the_log_as_it_was(tmp_path):
    log = Log(tmp_path, most_bytes=2000, snapshot=lambda: bytes(1900))
    count = filled(log, "which the learner has not consumed")
    log.close()
    assert recovered(tmp_path) == [b"", *[b"x" * 60] * count]


def test_two_writers_are_refused(tmp_path):
    log = Log(tmp_path)
    with pytest.raises(ConfigError, match="another server writes the log"):
        Log(tmp_path)
    log.append(b"x")
    log.close()
    assert recovered(tmp_path) == [b"", b"x"]


# --- a disk that takes nothing ----------------------------------------------------------------------------


def test_what_a_full_disk_did_not_take_is_written_later(tmp_path):
    log = Log(tmp_path)
    log.append(b"before")
    synced = log.sync()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i in range(20):
        log.append(b"%d" % i * 30)
    resource.setrlimit(resource.RLIMIT_FSIZE, (synced + 100, hard))
    try:
        for _ in range(2):
            with pytest.raises(LogWriteError, match=r"cannot be written: File too large\. Make room"):
                log.sync()
            assert log.synced == synced
            log.append(b"meanwhile")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tailed(tmp_path, log.synced) == [b"before"]
    assert log.sync() == log.end
    everything = [b"before", *[b"%d" % i * 30 for i in range(20)], b"meanwhile", b"meanwhile"]
    assert tailed(tmp_path, log.end) == everything
    log.close()
    assert recovered(tmp_path) == [b"", *everything]


def test_a_segment_that_cannot_be_opened_is_opened_later(tmp_path, monkeypatch):
    log = Log(tmp_path, segment_bytes=50, snapshot=lambda: b"before")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    log.append(b"x" * 60)
    log.append(b"y" * 60)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "rename", refuse)
        with pytest.raises(LogWriteError, match="No space left"):
            log.sync()
        assert tailed(tmp_path, log.synced) == [b"x" * 60]
        assert len(segments(tmp_path)) == 1
    log.sync()
    assert recovered_of(log) == [b"before", b"y" * 60]
    log.close()


def recovered_of(log):
    return list(log.recover())


def test_a_sync_that_fails_is_tried_from_its_beginning(tmp_path, monkeypatch):
    """After a failed fsync a system may forget what it was given: it is written once more."""
    log = Log(tmp_path)
    log.append(b"x" * 60)
    calls = []

    def fail(file):
        calls.append(os.fstat(file).st_size)
        os.ftruncate(file, MARK)  # forgotten
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_fdatasync", fail)
        with pytest.raises(LogWriteError, match="Input/output error"):
            log.sync()
    assert calls == [log.end]
    assert log.sync() == log.end
    assert tailed(tmp_path, log.end) == [b"x" * 60]
    log.close()


def test_a_touch_tries_the_disk_and_leaves_no_record(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.append(b"x")
    log.sync()
    log.touch()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_fdatasync", lambda _: os.fdatasync(99_999))
        with pytest.raises(LogWriteError, match="Bad file descriptor"):
            log.sync()
    end = log.end
    log.touch()
    assert log.sync() == log.end == end  # one try at a time
    log.close()
    assert recovered(tmp_path) == [b"", b"x"]


def test_a_close_that_fails_lets_go(tmp_path, monkeypatch):
    log = Log(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_fdatasync", lambda _: os.fdatasync(99_999))
        with pytest.raises(LogWriteError):
            log.close()
    log.close()
    assert recovered(tmp_path) == [b""]


def test_errors_are_of_one_family():
    assert issubclass(LogError, SteppeError)
    for one in (LogFullError, LogWriteError, LogGoneError, LogDamagedError):
        assert issubclass(one, LogError)


# --- readers ----------------------------------------------------------------------------------------------


def test_a_reader_stops_at_what_it_may_read(tmp_path):
    log = Log(tmp_path)
    ends = [log.append(b"%d" % i) for i in range(5)]
    log.sync()
    with closing(Tail(tmp_path)) as tail:
        assert tail.id == log.id
        assert tail.read(0) == []
        assert tail.read(ends[1]) == [b"0", b"1"]
        assert tail.position == ends[1]
        assert tail.read(ends[1]) == []
        assert tail.read(ends[4], most=2) == [b"2", b"3"]
        log.append(b"5")
        assert tail.read(log.sync()) == [b"4", b"5"]
        tail.close()
        log.append(b"6")
        assert tail.read(log.sync()) == [b"6"]
    assert tailed(tmp_path, log.end, ends[2]) == [b"3", b"4", b"5", b"6"]
    log.close()


def test_a_reader_does_not_look_at_what_is_being_written(tmp_path):
    first, last = written(tmp_path, [[b"first"], [b"last"]], close=False)
    (file,) = segments(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:first] + bytes(last - first))
    with closing(Tail(tmp_path)) as tail:
        assert tail.read(first) == [b"first"]
        file.write_bytes(whole)
        assert tail.read(last) == [b"last"]


def test_a_reader_that_is_told_too_much_says_where_the_log_ends(tmp_path):
    (end,) = written(tmp_path, [[b"x"]], close=False)
    with closing(Tail(tmp_path)) as tail:
        assert tail.read(end + 100) == [b"x"]
        with pytest.raises(LogDamagedError, match=f"byte {end}: it ends 8 bytes too early"):
            tail.read(end + 100)
    with closing(Tail(tmp_path, MARK + 3)) as tail, pytest.raises(LogDamagedError):
        tail.read(end)


def test_readers_follow_while_a_writer_goes_on(tmp_path):
    """One appends, one syncs, one reads across some hundred segments and has them deleted behind it."""
    log = Log(tmp_path, segment_bytes=2000, snapshot=lambda: b"s" * 300)
    count, done = 6000, threading.Event()
    failures = []

    def sync():
        try:
            while not done.is_set():
                log.sync()
        except BaseException as error:
            failures.append(error)

    syncing = threading.Thread(target=sync)
    syncing.start()
    read = []
    try:
        with closing(Tail(tmp_path)) as tail:
            for i in range(count):
                log.append(b"%d" % i)
                if i % 50 == 49:
                    read += tail.read(log.synced)
                    log.consumed(tail.position)
                while log.end > log.synced + 5000:
                    time.sleep(0.0002)
            done.set()
            syncing.join()
            while some := tail.read(log.sync(), most=100):
                read += some
    finally:
        done.set()
        syncing.join()
    log.close()
    assert failures == []
    assert [int(one) for one in read] == list(range(count))
    assert len(segments(tmp_path)) < 20 < log.end // 2000


@given(RECORDS, st.integers(1, 300), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_any_records_in_any_segments_are_read_from_any_position(groups, segment_bytes, most, random):
    with TemporaryDirectory() as name:
        folder = Path(name)
        log = Log(folder, segment_bytes=segment_bytes)
        ends = []
        for group in groups:
            ends += [log.append(record) for record in group]
            if random.random() < 0.7:
                log.sync()
        end = log.sync()
        records = flat(groups)
        for i in range(-1, len(ends)):
            read = []
            with closing(Tail(folder, ends[i] if i >= 0 else 0)) as tail:
                while some := tail.read(end, most):
                    assert len(some) <= most
                    read += some
            assert read == records[i + 1 :]
        assert list(log.recover()) == [b"", *records]
        log.close()
