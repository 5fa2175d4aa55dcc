"""A write comes out of the log as it went in, bit by bit; nothing else comes out as one."""

import contextlib
import math
import struct
import time

import msgspec
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, OneOf, Sequence, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steppe import spaces
from steppe.envs.driven import Acted, Began, Dropped, Earned, Ended, Left
from steppe.serving.log import Log, LogError, Tail
from steppe.serving.records import Write, decode_write, encode_write
from steppe.types import SINGLE_AGENT

DTYPES = st.sampled_from(["?", "u1", "i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"])
ARRAYS = DTYPES.flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
TREES = st.recursive(
    ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=4,
)
NAMES = st.text(max_size=5)
AGENTS = NAMES | st.integers(-5, 1 << 40)
COUNTS = st.integers(0, 1 << 40)
INFOS = st.none() | st.dictionaries(NAMES, st.integers(-9, 9) | NAMES | st.floats() | st.lists(st.booleans()))
ENTRIES = st.one_of(
    st.builds(Began, NAMES, st.booleans()),
    st.builds(Acted, NAMES, AGENTS, NAMES, COUNTS, TREES, TREES, st.floats(), COUNTS, st.none() | TREES),
    st.builds(Earned, NAMES, AGENTS, st.floats(), st.none() | COUNTS, INFOS),
    st.builds(Left, NAMES, AGENTS),
    st.builds(Ended, NAMES, st.booleans(), st.dictionaries(AGENTS, TREES, max_size=3)),
    st.builds(Dropped, NAMES),
)
WRITES = st.builds(
    Write, NAMES, COUNTS, COUNTS, st.binary(max_size=8), st.binary(max_size=9), st.lists(ENTRIES, max_size=4)
)
OBS = np.array([[0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]], np.float32)
ACTED = Acted("5f0c", SINGLE_AGENT, "default_policy", 7, OBS, np.array([1]), -0.69, 12)
WRITE = Write("shop-7", 1, 2, b"8 bytes.", b'{"action":1}', [ACTED])


def same(a, b):
    """Equality written without the code under test: kinds, types, shapes and bytes."""
    if isinstance(a, np.ndarray):
        return (
            type(b) is np.ndarray and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return type(b) is float and (
            struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
        )
    return type(a) is type(b) and a == b


@given(WRITES)
@settings(max_examples=150)
def test_writes_come_back_as_they_were(write):
    assert same(decode_write(encode_write(write)), write)


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (2, 3), np.uint8),
        Discrete(5, start=-1),
        Dict({"a": Discrete(3), "b": Tuple((Discrete(2), MultiDiscrete([2, 3])))}),
        Sequence(Discrete(4)),
        OneOf((Discrete(4), MultiBinary(3))),
    ],
    ids=lambda space: type(space).__name__,
)
def test_columns_of_any_space_come_back(space):
    spec = spaces.spec_of(space, max_sequence_length=20)
    space.seed(1)
    column = spaces.collect(spec, [space.sample()])
    write = WRITE._replace(entries=[ACTED._replace(obs=column, action=column, state=(column, None))])
    assert same(decode_write(encode_write(write)), write)


def test_what_comes_back_can_only_be_read():
    back = decode_write(encode_write(WRITE)).entries[0]
    with pytest.raises(ValueError, match="read-only"):
        back.obs[0, 0] = 1.0


def test_columns_may_be_views():
    """Rows of a batch are slices, which may be strided; what is kept is what they show."""
    batch = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (batch[2:3], batch[::2, ::3], batch.T[1:2], np.broadcast_to(np.float32(3), (1, 4))):
        (back,) = decode_write(encode_write(WRITE._replace(entries=[ACTED._replace(obs=view)]))).entries
        np.testing.assert_array_equal(back.obs, view)
        assert back.obs.dtype == np.float32


def test_numbers_of_numpy_are_numbers():
    entries = [
        ACTED._replace(logp=np.float32(-0.5), version=np.int64(3), t=np.int32(4)),
        Earned("e", 1, np.float64(1.5), np.int64(2), {"a": np.arange(3), "b": np.bool_(True)}),
    ]
    acted, earned = decode_write(encode_write(WRITE._replace(entries=entries))).entries
    assert (acted.logp, acted.version, acted.t) == (-0.5, 3, 4)
    assert earned == Earned("e", 1, 1.5, 2, {"a": [0, 1, 2], "b": True})
    assert list(map(type, (acted.logp, acted.version, earned.reward))) == [float, int, float]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ACTED._replace(obs=np.array([["text"]])), "a column of <U4 is nothing that a log can hold"),
        (ACTED._replace(obs=np.array([object()])), "a column of object is nothing that a log can hold"),
        (ACTED._replace(state=np.zeros(1, ">f4")), "a column of >f4 is nothing that a log can hold"),
        (Earned("e", "a", 1.0, None, {"a": object()}), "object is nothing that a log can hold"),
    ],
)
def test_what_a_record_cannot_hold_is_said(entry, message):
    with pytest.raises(TypeError, match=message):
        encode_write(WRITE._replace(entries=[entry]))
    with pytest.raises(OverflowError):
        encode_write(WRITE._replace(entries=[Earned("e", "a", 1.0, None, {"a": 1 << 70})]))


def changed(place, value):
    """The record of a write of which one part is another."""
    parts = msgspec.msgpack.decode(encode_write(WRITE))
    inner = parts
    for index in place[:-1]:
        inner = inner[index]
    inner[place[-1]] = value
    return msgspec.msgpack.encode(parts)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc1",
        encode_write(WRITE)[:-1],
        encode_write(WRITE) + b"\x00",
        msgspec.msgpack.encode([1, 2]),
        changed([0], 7),
        changed([5], None),
        changed([5, 0], []),
        changed([5, 0, 0], 99),
        changed([5, 0], [0]),
        changed([5, 0], [1, "too", "few"]),
        changed([5, 0, 5, 0], "O"),
        changed([5, 0, 5, 0], "<U4"),
        changed([5, 0, 5, 1], [-1, 8]),
        changed([5, 0, 5, 1], [1 << 40, 1 << 40]),
        changed([5, 0, 5, 2], b"short"),
        changed([5, 0, 5], []),
        changed([5, 0, 5], 3),
    ],
)
def test_nothing_else_comes_out_as_a_write(record):
    with pytest.raises(LogError, match="a record of the log is none of a write"):
        decode_write(record)


@given(st.data())
@settings(max_examples=200)
def test_no_change_of_a_record_raises_anything_else(data):
    record = bytearray(encode_write(WRITE._replace(entries=[ACTED, Ended("e", False, {"a": OBS})])))
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(LogError):
        assert isinstance(decode_write(bytes(record)), Write)


def test_writes_go_through_a_log(tmp_path):
    log = Log(tmp_path)
    writes = [WRITE._replace(seq=seq, entries=[Began("e"), ACTED, Earned("e", "a", 1.0)]) for seq in range(9)]
    for write in writes:
        log.append(encode_write(write))
    back = Tail(tmp_path).read(log.sync())
    assert all(same(decode_write(record), write) for record, write in zip(back, writes, strict=True))
    log.close()


def test_a_small_write_is_a_matter_of_microseconds(tmp_path):
    """Measured 2 µs each on a quiet core; the bounds are wide because tests share theirs."""
    log = Log(tmp_path)
    record = encode_write(WRITE)
    assert len(record) < 160

    def best(act):
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            for _ in range(300):
                act()
            times.append((time.perf_counter() - begin) / 300)
        return min(times)

    assert best(lambda: log.append(encode_write(WRITE))) < 40e-6
    assert best(lambda: decode_write(record)) < 60e-6
    log.close()
