"""What goes over the wire arrives as what it was, whole, and only from who knows the token."""

import enum
import socket
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steppe.envs import wire
from steppe.types import EpisodeEnd, SlotInfo, TimeStep

TOKEN = bytes(range(wire.TOKEN_SIZE))
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
arrays = hnp.arrays(
    hnp.scalar_dtypes().filter(lambda dtype: dtype.kind in "biuf" and dtype.itemsize <= 8),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
keys = st.text() | st.integers(-5, 5) | st.tuples(st.integers(0, 3), st.text())
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.binary() | arrays | arrays.map(lambda a: a.sum()),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple),
    max_leaves=8,
)


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


@given(values)
def test_values_arrive_as_what_they_were(value):
    same(wire.unpacked(wire.packed(value)), value)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        Colour.RED,
        object(),
        2**64,
        np.array([None]),
        np.ma.masked_array([1.0]),
        SlotInfo(0, 0, "a", 0, 0),
        {Colour.RED: 1},
        "\ud800",
    ],
    ids=["set", "enum", "object", "large", "objects", "masked", "tuple of its own", "key", "half a letter"],
)
def test_what_would_arrive_as_something_else_is_refused(value):
    with pytest.raises(wire.UnsendableError):
        wire.packed({"info": [value]})


def test_arrays_can_be_written_to_where_they_arrive():
    array = wire.unpacked(wire.packed(np.zeros((2, 3), ">f4")))
    array[0] = 1
    assert array.dtype == np.dtype(">f4")
    assert array.sum() == 3


def test_a_step_arrives_column_by_column():
    step = TimeStep(
        np.array([1, 0]),
        np.array([0, 7]),
        {"a": np.arange(4.0).reshape(2, 2), "b": (np.array([1, 2], np.int8),)},
        np.array([0.0, 1.5]),
        np.array([False, True]),
        np.array([False, False]),
        [SlotInfo(1, 0, 5, 1, 2**31 - 1)],
        [EpisodeEnd(0, 0, 7)],
        {1: {"legal": (1, 2)}},
        3,
    )
    (told,), env_steps, health = wire.unpacked_answer(wire.packed_answer([step], 9, {"E101 obs": 2}))
    assert (env_steps, health) == (9, {"E101 obs": 2})
    for name in ("slot", "t", "obs", "reward", "terminated", "truncated"):
        same(getattr(told, name), getattr(step, name))
    assert (told.opened, told.closed, told.info, told.space) == (step.opened, step.closed, step.info, 3)


def test_actions_that_others_chose_do_not_go_over_it():
    step = TimeStep(*[np.zeros(1)] * 6, decided=np.ones(1, np.bool_))
    with pytest.raises(wire.UnsendableError):
        wire.packed_answer([step], 0, {})


@pytest.fixture
def pair():
    """A wire, and the bare socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        near = socket.create_connection(door.getsockname())
        far, _ = door.accept()
    with closing(wire.Wire(near)) as line, far:
        yield line, far


def test_a_message_is_given_once_it_is_whole(pair):
    line, far = pair
    line.send(b"abc")
    framed = far.recv(100)
    for i in range(len(framed)):
        assert line.receive(wait=False) is None
        far.sendall(framed[i : i + 1])
    assert line.receive() == b"abc"
    far.sendall(framed + b"\0" * 8 + framed)
    assert [line.receive(), line.receive(), line.receive()] == [b"abc", b"", b"abc"]
    assert line.receive(wait=False) is None


def test_a_long_message_comes_in_pieces(pair):
    line, far = pair
    content = bytes(3 << 20)
    sender = threading.Thread(target=far.sendall, args=(len(content).to_bytes(8, "big") + content,))
    sender.start()
    assert line.receive() == content
    sender.join()


def test_an_end_that_is_gone_is_noticed_in_mid_message(pair):
    line, far = pair
    far.sendall(b"\0\0")
    assert line.receive(wait=False) is None
    far.close()
    with pytest.raises(ConnectionError):
        line.receive(wait=False)


def test_only_who_knows_the_token_is_let_in():
    with socket.create_server(("127.0.0.1", 0)) as door:
        strangers = [socket.create_connection(door.getsockname()) for _ in range(3)]
        strangers[0].sendall(bytes(wire.TOKEN_SIZE))
        strangers[1].close()  # the third one says nothing
        with (
            closing(wire.dial(door.getsockname(), TOKEN, 5)) as ours,
            closing(wire.pick_up(door, TOKEN, 0.2)) as theirs,
        ):
            theirs.send(b"welcome")
            assert ours.receive() == b"welcome"
        assert strangers[0].recv(1) == b""
        for stranger in strangers:
            stranger.close()


def test_nobody_is_waited_for_for_ever():
    with socket.create_server(("127.0.0.1", 0)) as door, pytest.raises(TimeoutError):
        wire.pick_up(door, TOKEN, 0.05)
