"""The server process: the newest that it has to know survives it, and nobody waits for it for long."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.errors import ConfigError, RunnerError
from steppe.serving import process as process_module
from steppe.serving.control import (
    Beat,
    Begin,
    Configure,
    Consumed,
    Counts,
    Frames,
    Frozen,
    Map,
    Mapped,
    Opened,
    Packed,
    Publish,
    Said,
    Settings,
    Stop,
    Synced,
    framed,
)
from steppe.serving.process import ServerProcess, bound

ECHO = Path(__file__).with_name("echo_child.py")


def configured(ttl=300.0):
    settings = Settings(host="127.0.0.1", port=0, episode_ttl=ttl)
    return Configure(settings=settings, policies={}, pairs=[], agents=[])


def weights(version):
    return {"p": Packed.of(version, {"w": np.arange(3, dtype=np.float32)}, {"epsilon": 0.5})}


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(process_module, "_CHILD", (str(ECHO),))
    with contextlib.ExitStack() as ends:

        def start(ttl=300.0):
            listener, heard = bound("127.0.0.1", 0), []
            made = ServerProcess(configured(ttl), listener, heard.append)
            ends.callback(made.close)
            return made, listener.getsockname(), heard

        yield start


@contextlib.contextmanager
def talking(address):
    with socket.create_connection(address, timeout=10) as connection, connection.makefile("rw") as lines:

        def say(word):
            print(word, file=lines, flush=True)
            with contextlib.suppress(ConnectionResetError):
                return lines.readline().strip()
            return ""

        yield say


def test_a_process_that_dies_is_replaced_under_the_same_address_and_knows_the_newest(started):
    made, address, heard = started()
    made.publish(weights(1))
    with talking(address) as say:
        first = say("pid")
        until(lambda: say("weights") == "{'p': 1}")
    made.publish(weights(2))
    made.consumed(50, 20)
    for _ in range(3):  # a client that comes while nobody is there waits, and is not refused
        with talking(address) as say:
            before = say("pid")
            assert say("die") == ""
        with talking(address) as say:
            assert say("pid") != before
    with talking(address) as say:
        assert say("pid") == str(made.pid) != first
        until(lambda: say("weights") == "{'p': 2}")
        until(lambda: say("consumed") == "(50, 20)")
        until(lambda: say("beats") != "0")
    assert made.restarts == 3
    assert made.failed is None
    until(lambda: [type(one) for one in heard] == [Opened] * 4)


def test_it_is_asked_and_answered(started):
    made, address, heard = started()
    with talking(address) as say:
        say("map")
        until(lambda: heard[1:] == [Map("left", 3)])
        made.send(Mapped("left", 3, "p"))
        until(lambda: say("mapped") == "('left', 3, 'p')")


@pytest.fixture
def hasty(monkeypatch):
    assert process_module._GRACE_S + process_module._BEAT_S + 0.5 < 5  # seconds, which close() may take
    monkeypatch.setattr(process_module, "_GRACE_S", 0.2)
    monkeypatch.setattr(process_module, "_BEAT_S", 0.2)


def test_closing_ends_it_at_once_and_one_that_is_deaf_soon(started, hasty):
    for ttl in (300.0, 3.0):
        made, address, _ = started(ttl)
        with talking(address) as say:
            pid = int(say("pid"))
        began = time.monotonic()
        made.close()
        made.close()
        assert time.monotonic() - began < 2
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_one_that_cannot_begin_says_why_and_is_not_replaced(started):
    made, _, _ = started(ttl=1.0)
    until(lambda: made.failed is not None)
    assert isinstance(made.failed, ConfigError)
    assert str(made.failed) == "no"
    assert made.restarts == 0


def test_one_that_dies_again_and_again_before_it_listens_fails_the_run(started, monkeypatch):
    monkeypatch.setattr(process_module, "_MOST_STILLBORN", 3)
    made, _, _ = started(ttl=2.0)
    until(lambda: made.failed is not None)
    assert isinstance(made.failed, RunnerError)
    assert made.restarts == process_module._MOST_STILLBORN - 1


def test_a_stopped_process_holds_up_nobody(started, hasty):
    made, address, _ = started()
    with talking(address) as say:
        pid = int(say("pid"))
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    made.publish(weights(1))
    made.close()
    assert time.monotonic() - began < 2


def test_an_address_that_is_taken_is_refused():
    with bound("127.0.0.1", 0) as one, pytest.raises(ConfigError, match="the server cannot listen at"):
        bound("127.0.0.1", one.getsockname()[1])
    with pytest.raises(ConfigError, match="name another port"):
        bound("203.0.113.1", 0)


MESSAGES = [
    configured(),
    Publish(weights(7)),
    Consumed(5, 3),
    Mapped(3, 1, None),
    Beat(),
    Stop(),
    Begin(),
    Frozen(None),
    Frozen(7),
    Opened("id", 7),
    Synced(1 << 40),
    Map("left", 2),
    Said(30, "careful"),
    Counts({"stale": 2}),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_messages_arrive_whole_however_they_are_cut(messages, cuts):
    data, frames, found, turn = b"".join(map(framed, messages)), Frames(), [], 0
    while data:
        size = cuts[turn % len(cuts)]
        found += frames.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert found == messages
