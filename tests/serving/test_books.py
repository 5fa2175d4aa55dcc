"""Exactly once, against a naive model; and that books from a log are the books that were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.envs.driven import Acted, Began, DrivenRows, Dropped, Earned, Ended, Left
from steppe.serving.books import WINDOW, Books, Draft
from steppe.serving.messages import Refused
from steppe.serving.records import Write, decode_write, encode_write
from tests.serving.served import PAIR, Clock, World
from tests.serving.test_verbs import FakeLog

OBS = np.zeros((1, 2), np.float32)
STATE = {"memory": np.arange(3.0)[None], "reward": (np.ones((1, 1)), np.zeros((1,), np.int64))}


def acted(episode="e", agent="a", t=0, version=0, state=None):
    return Acted(episode, agent, "p", t, OBS, np.zeros(1, np.int32), -0.5, version, state)


def books_of(*entries, most=10):
    books = Books(most, Clock())
    books.apply(Write("", 0, 0, b"", b"", entries))
    return books


def test_what_entries_come_to():
    books = books_of(
        Began("e"),
        acted(t=0),
        acted(agent=7, t=0, state=STATE),
        Earned("e", "a", 2.0),
        acted(t=1, version=4),
        Left("e", 7),
        Began("f", training=False),
    )
    episode = books.find("e")
    assert (episode.t, episode.reward, episode.version, episode.number) == (2, 2.0, 4, 0)
    a, seven = episode.seats["a"], episode.seats[7]
    assert (a.first, a.last, a.done, seven.first, seven.last, seven.done) == (0, 1, False, 0, 0, True)
    assert (books.find("f").training, books.find("f").number) == (False, 1)
    ended = []
    books.on_end = ended.append
    books.apply(Write("", 0, 0, b"", b"", [Ended("e", True, {}), Dropped("f")]))
    assert ended == [episode]
    assert books.episodes == {}
    for id in "ef":
        with pytest.raises(Refused, match="has ended"):
            books.find(id)


def test_states_come_back_from_a_snapshot():
    books = books_of(Began("e"), acted(agent=7, state=STATE), acted(agent="b", t=1))
    books.apply(Write("c", 3, 9, b"digest00", b"{}", []))
    again = Books(10, Clock())
    again.restore(books.snapshot())
    assert again.snapshot() == books.snapshot()
    state = again.find("e").seats[7].state
    np.testing.assert_array_equal(state["memory"], STATE["memory"])
    assert isinstance(state["reward"], tuple)
    assert state["reward"][1].dtype == np.int64
    assert again.repeated("c", 3, 9, b"digest00") == b"{}"
    assert [*again.find("e").seats] == [7, "b"]


def test_a_draft_leaves_the_books_alone():
    books = books_of(Began("e"), acted())
    before = books.snapshot()
    draft = Draft(books)
    for entry in (
        acted(t=1),
        Earned("e", "a", 1.0),
        Left("e", "a"),
        Began("f"),
        acted("f"),
        Ended("e", False, {}),
    ):
        draft.take(entry)
    assert (draft.find("f").t, draft.find("f").number, draft.open) == (1, 1, 2)
    with pytest.raises(Refused, match="has ended"):
        draft.find("e")
    assert draft.is_known("e")
    assert books.snapshot() == before


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from("ab"),  # client
        st.integers(0, 2),  # epoch
        st.integers(1, 2 * WINDOW + 2) | st.integers(1, 6),  # seq
        st.sampled_from(["start", "act", "bad", "log_returns"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(0, 40))
def test_each_request_is_carried_out_once(requests, crash):
    """A naive model remembers everything; the server may only know less where it says so."""
    log = FakeLog()
    world = World(log=log)
    world.ask("start", client="z", epoch=0, seq=1, episode_id="e")
    done, newest, steps = {}, {}, 0
    for i, (client, epoch, seq, verb) in enumerate(requests):
        if i == crash:  # another process goes on with the log alone
            snapshot, records = world.books.snapshot(), log.records
            world = World(log=FakeLog())
            world.verbs._log.records, log = list(records), world.verbs._log
            for record in records:
                world.books.apply(decode_write(record))
            assert world.books.snapshot() == snapshot
        fields = {"start": {}, "log_returns": {"episode_id": "e", "reward": 1}}.get(
            verb, {"episode_id": "e", "obs": [11 if verb == "bad" else 1, 0]}
        )
        answer = world.ask("act" if verb == "bad" else verb, client=client, epoch=epoch, seq=seq, **fields)
        last_epoch, last = newest.get(client, (0, 0))
        key = client, epoch, seq
        if epoch < last_epoch:
            assert answer == "epoch_expired" or (verb == "bad" and answer == "out_of_space")
        elif key in done and seq > last - WINDOW:
            expected = done[key]
            assert answer == (expected[1] if expected[0] == verb else answer)
            assert expected[0] == verb or answer in ("seq_reused", "out_of_space")
        elif epoch == last_epoch and seq <= last - WINDOW:
            assert answer in ("seq_expired", "out_of_space")
        elif verb == "bad":
            assert answer == "out_of_space"
        else:
            assert isinstance(answer, dict), answer
            done[key] = verb, answer
            newest[client] = epoch, max(seq, last if epoch == last_epoch else 0)
            steps += verb == "act"
    assert sum(isinstance(entry, Acted) for entry in log.entries) == steps
    assert world.books.find("e").t == steps
    assert len(log.records) == len(done) + 1


def test_records_hold_what_the_books_need():
    entries = [Began("e"), acted(agent=7, state=STATE), Earned("e", 7, 1.0, 0, {"k": [1]}), Left("e", 7)]
    write = Write("c", 1, 2, b"12345678", b"{}", entries)
    books, again = Books(10, Clock()), Books(10, Clock())
    books.apply(write)
    again.apply(decode_write(encode_write(write)))
    assert again.snapshot() == books.snapshot()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from("ef"),
        st.sampled_from(["start", "act", "log_returns", "credit", "end", "delete", "report", "many"]),
        st.integers(-3, 3),
    ),
    max_size=60,
)


FIELDS = {
    "start": lambda x: {},
    "act": lambda x: {"obs": [0, x], "reward": x},
    "log_returns": lambda x: {"reward": x},
    "credit": lambda x: {"reward": x, "step": max(x, 0)},
    "end": lambda x: {"obs": None if x < 0 else [x, x], "reward": x, "truncated": x > 1},
    "delete": lambda x: {},
}
ROWS_OF = {"act": 1, "many": 1, "report": 2}


def asked(world, id, verb, x):
    """The answer; whatever the verb, it earned ``x``."""
    act = {"episode_id": id, "obs": [0, x]}
    if verb == "report":
        act |= {"verb": "act", "sample": 1, "logp": -1.0, "weights_version": 0}
        return world.ask("report", items=[act, act | {"reward": x}])
    if verb == "many":
        return world.ask("act_many", acts=[act | {"reward": x}])
    return world.ask({"credit": "log_returns"}.get(verb, verb), episode_id=id, **FIELDS[verb](x))


def played(entries):
    """How many rows a run makes of entries, and the sum of their rewards."""
    driven = DrivenRows([PAIR], {"agent0": 0})
    driven.feed(0, entries)
    rewards = []
    while steps := driven.poll(0.0):
        rewards += [reward for step in steps for reward in step.reward.tolist()]
    return len(rewards), sum(rewards)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_entries_are_what_the_rows_of_a_run_are_made_of(actions):
    """Whatever clients do, a run can play it back; and every reward of an ended episode is in its rows."""
    world = World(log=FakeLog())
    owed, rows, rewards = {}, 0, 0
    for id, verb, x in actions:
        answer = asked(world, id, verb, x)
        if not isinstance(answer, dict):
            assert answer in ("episode_exists", "episode_ended", "unknown_episode", "step_unknown"), answer
            continue
        n, reward = owed.get(id, (0, 0))
        owed[id] = n, reward = (
            n + ROWS_OF.get(verb, 0),
            reward + (x if verb not in ("start", "delete") else 0),
        )
        if verb == "end" and n:
            rows, rewards = rows + n + 1, rewards + reward
    assert played(world.verbs._log.entries) == (rows, rewards)
