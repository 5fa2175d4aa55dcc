"""TensorBoard events, read back from the bytes with a reader and a checksum of our own."""

import math
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog

from steppe.tracking.tensorboard import EventWriter


def crc32c(data):
    """CRC-32C bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(folder):
    """Every event of every event file of a folder, in order; asserts both checksums of each record."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            length, length_crc = struct.unpack("<QI", data[:12])
            body, (body_crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
            assert (length_crc, body_crc) == (masked(data[:8]), masked(body))
            events.append(Event.FromString(body))
            data = data[16 + length :]
    return events


def test_the_checksum_of_this_test():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the standard


def test_scalars_carry_their_own_names_and_steps(tmp_path):
    writer = EventWriter(tmp_path)
    writer.scalars({"episode_reward_mean": 1.5, "info/default_policy/entropy": 0.25, "E106 obs": 3}, 4000)
    writer.scalars({"episode_reward_mean": math.nan, "x": math.inf, "note": "text", "ok": True}, 8000)
    # Not closed: what was written is there for a reader at once.
    version, first, second = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert first.step == 4000
    assert {v.tag: v.simple_value for v in first.summary.value} == {
        "episode_reward_mean": 1.5,
        "info/default_policy/entropy": 0.25,
        "E106 obs": 3.0,
    }
    assert second.step == 8000
    assert {v.tag: v.simple_value for v in second.summary.value} == {"ok": 1.0}
    assert first.wall_time <= second.wall_time
    writer.close()


def test_a_second_writer_hides_what_came_after_its_start(tmp_path):
    for purge_from in (None, 4001):
        writer = EventWriter(tmp_path, purge_from)
        writer.scalars({"x": 1.0}, 8000)
        writer.close()
    assert len(list(tmp_path.iterdir())) == 2
    events = read_events(tmp_path)
    assert [e.step for e in events] == [0, 8000, 0, 4001, 8000]
    assert events[3].session_log.status == SessionLog.START
    assert events[2].file_version == "brain.Event:2"
