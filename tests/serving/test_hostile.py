"""What a client with a fault, or with bad intent, may try: each of these once went wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.envs.driven import Acted, Began, DrivenRows, Earned, Ended
from steppe.errors import ConfigError
from steppe.policies.numpy_policy import Exported
from steppe.serving import messages
from steppe.serving.books import Books
from steppe.serving.child import _Told
from steppe.serving.control import Frames
from steppe.serving.env import PolicyServer
from steppe.serving.facts import Settings
from steppe.serving.log import Log
from steppe.serving.messages import Refused
from steppe.serving.records import Write, decode_write, encode_write
from steppe.serving.rows import Job
from steppe.types import DEFAULT_POLICY
from tests.serving.live import Live
from tests.serving.served import PAIR, Clock, SumPolicy, World
from tests.serving.test_policy_server import asking, ended, running, served  # noqa: F401 - fixtures
from tests.serving.test_verbs import FakeLog

# --- exactly once -----------------------------------------------------------------------------------------


def test_a_late_request_of_an_older_epoch_leaves_no_reply_in_the_new_one():
    world = World()
    for seq, id in enumerate("ef", start=1):
        world.ask("start", client="c", epoch=1, seq=seq, episode_id=id)
    new = world.job("act", client="c", epoch=2, seq=1, episode_id="e", obs=[1, 0])
    late = world.job("act", client="c", epoch=1, seq=5, episode_id="f", obs=[2, 0])
    assert world.ask_all(new, late) == [{"action": 1}, "epoch_expired"]
    assert world.ask("act", client="c", epoch=2, seq=5, episode_id="f", obs=[3, 0]) == {"action": 3}


def test_clients_that_come_in_one_moment_drive_nobody_out():
    world = World(settings=Settings(most_clients=2))
    for seq, id in enumerate("ef", start=1):
        world.ask("start", client="a", seq=seq, episode_id=id)
    jobs = [world.job("act", client=f"new{id}", seq=1, episode_id=id, obs=[1, 0]) for id in "ef"]
    assert world.ask_all(*jobs) == [{"action": 1}, "too_many_clients"]
    assert world.ask("start", client="a", seq=1, episode_id="e") == {"episode_id": "e"}


HAPPENED = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["begin", "act", "earn", "end", "sync", "crash"])),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(HAPPENED)
def test_books_from_the_log_are_the_books_wherever_the_server_died(tmp_path_factory, happened):
    """Segments of a few records, so that there are many snapshots; a crash forgets what no sync wrote."""
    folder, seq = tmp_path_factory.mktemp("log"), 0

    def opened():
        books = Books(3, Clock())
        log = Log(folder, segment_bytes=300, snapshot=books.snapshot)
        records = log.recover()
        books.restore(next(records))
        for record in records:
            books.apply(decode_write(record))
        return log, books

    log, books = opened()
    durable = books.snapshot()
    try:
        for id, what in happened:
            seq += 1
            entries = {
                "begin": [Began(id)] if not books.is_known(id) else [],
                "act": [
                    Acted(id, "x", "p", 0, np.ones((1, 2), np.float32), np.ones(1), -1.0, 3, np.ones((1, 2)))
                ],
                "earn": [Earned(id, "x", 0.1)],
                "end": [Ended(id, True, {})],
            }.get(what, [])
            if entries and (what == "begin" or id in books.episodes):
                write = Write(id * 3, 1, seq, b"8 bytes.", b"{}", entries)
                log.append(encode_write(write))
                books.apply(write)
            elif what in ("sync", "crash"):
                if what == "sync":
                    log.sync()
                    durable = books.snapshot()
                    continue
                # The process is gone: what was appended and not written with it.
                log._waiting.clear()
                log._open, log.end = None, log.synced
                log.close()
                log, books = opened()
                assert books.snapshot() == durable
    finally:
        log.close()


def test_a_run_that_begins_behind_a_long_log_keeps_nobody_waiting(running, asking, tmp_path):  # noqa: F811
    """What is before its beginning is nothing that its learner has yet to take."""
    about = {"port": 0, "log_dir": tmp_path, "queue_bytes": 1000}
    run = running(PolicyServer(**about))
    client = asking(served(run))
    for _ in range(6):
        client.play([[1, 1]], [1.0])
        run.rows(until=ended(1))
    run.env.close()
    run = running(PolicyServer(**about))
    asking(served(run), "d").play([[1, 1]], [2.0])
    assert [row[4] for row in run.rows(until=ended(1))] == [0.0, 2.0]


# --- what costs much ----------------------------------------------------------------------------------------


def test_a_shape_of_a_hundred_thousand_axes_is_not_multiplied():
    world = World()
    world.ask("start", episode_id="e")
    began = time.perf_counter()
    array = {"dtype": "float32", "shape": [2**63 - 1] * 100_000, "bytes": b""}
    code, message = world.refusal("act", episode_id="e", obs=array)
    assert (code, len(message) < 300) == ("out_of_space", True)
    assert "at most 32 whole numbers" in message
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("verb", "name"),
    [("act", "obs"), ("act", "reward"), ("log_returns", "reward"), ("log_returns", "info"), ("end", "obs")],
)
def test_nothing_is_nested_so_deeply_that_it_is_a_fault_of_the_server(verb, name):
    world, seq, seen = World(), 1, set()
    world.ask("start", seq=1, episode_id="e")
    for depth in range(sys.getrecursionlimit() - 120, sys.getrecursionlimit() + 10):
        for left, right in ("[]", ('{"a":', "}")):
            seq += 1
            fields = {"client": "c", "epoch": 0, "seq": seq, "episode_id": "e", "obs": [0, 0], "reward": 1}
            if verb == "log_returns":
                del fields["obs"]
            value = left * depth + "1" + right * depth
            text = json.dumps(fields | {name: "HERE"}).replace(
                '"HERE"', f'{{"a":{value}}}' if name == "info" else value
            )
            try:
                job = Job(messages.read_body(verb, text.encode(), "json"), "json")
                world.verbs.handle([job])
                seen.add(job.outcome.code if isinstance(job.outcome, Refused) else "ok")
            except Refused as refused:
                seen.add(refused.code)
    assert "malformed" in seen
    assert seen <= {"malformed", "ok" if name == "info" else "reward" if name == "reward" else "out_of_space"}


# --- what is said to whom -----------------------------------------------------------------------------------


def test_an_episode_that_a_report_begins_has_an_id_that_its_client_knows():
    world = World(log=FakeLog())
    assert world.refusal("report", items=[{"verb": "start"}])[0] == "malformed"
    assert world.books.open == 0


@pytest.mark.parametrize("name", ["id", "verb"])
def test_what_a_delete_does_not_have_is_refused(name):
    told = {"client": "c", "epoch": "0", "seq": "1", "episode_id": "e", name: {"id": "5"}.get(name, "delete")}
    with pytest.raises(Refused, match=f"no parameter `{name}`") as caught:
        messages.read_query("delete", told)
    assert caught.value.code == "unknown_field"


def test_weights_are_the_new_ones_where_a_run_that_went_back_counts_again():
    async def main():
        async with Live(version=None) as live:
            tags = []
            for bias in (1.0, 2.0):
                live.server.publish(DEFAULT_POLICY, Exported(7, {"b": np.full(1, bias)}))
                answer = await live.http("GET", "/v1/weights")
                tags.append(answer.headers["etag"])
                assert answer.body[-4:] == np.float32(bias).tobytes()
            assert tags[0] != tags[1]

    asyncio.run(main())


def test_a_fault_is_told_to_the_trainer_with_its_place():
    async def main():
        said = []

        class Writer:
            write = said.append

        handler = _Told(Writer())
        try:
            raise ArithmeticError("the place of it")
        except ArithmeticError as error:
            exc = (type(error), error, error.__traceback__)
        handler.emit(logging.LogRecord("steppe", logging.ERROR, __file__, 1, "a request failed", (), exc))
        await asyncio.sleep(0)
        (message,) = Frames().feed(said[0])
        assert message.text.startswith("a request failed\nTraceback")
        assert "the place of it" in message.text

    asyncio.run(main())


# --- what a policy is told, and what its decisions earned ---------------------------------------------------


class Reminded(SumPolicy):
    """Its action says what it earned last: its memory is that, and how often it was asked."""

    def initial_state(self, n):
        return {
            "memory": np.zeros((n, 1)),
            "action": np.zeros(n, np.int32),
            "reward": np.zeros(n, np.float32),
        }

    def act(self, weights, obs, state, noise):
        decision = super().act(weights, obs, None, noise)
        after = {
            "memory": state["memory"] + 1,
            "action": decision.action,
            "reward": np.zeros_like(state["reward"]),
        }
        return decision._replace(action=state["reward"].astype(np.int32), state=after)


def test_a_policy_remembers_what_it_earned():
    world = World({DEFAULT_POLICY: Reminded()}, log=FakeLog(), off_policy=True)
    for id in "ef":
        world.ask("start", episode_id=id)
    world.ask("log_returns", episode_id="e", reward=3)  # before it did anything
    assert world.ask("act", episode_id="e", obs=[0, 0]) == {"action": 0}
    world.ask("log_returns", episode_id="e", reward=1)
    world.ask("act", episode_id="f", obs=[0, 0])
    both = [{"episode_id": "e", "obs": [0, 0], "reward": 1}, {"episode_id": "f", "obs": [0, 0]}]
    assert world.ask("act_many", acts=both) == {"actions": [2, 0]}
    world.ask("log_returns", episode_id="e", reward=3, step=0)  # late: it was told something else then
    assert world.ask("act", episode_id="e", obs=[0, 0]) == {"action": 0}
    # An action of the client's own is remembered as if it were the policy's.
    world.ask("log_action", episode_id="e", obs=[0, 0], action=3, reward=1)
    state = world.books.find("e").seats["agent0"].state
    assert (state["memory"].tolist(), state["action"].tolist()) == ([[4.0]], [3])


def test_a_step_that_an_agent_left_out_credits_its_decision_before():
    def acted(agent, t):
        return Acted("e", agent, "p", t, np.zeros((1, 2), np.float32), np.zeros(1, np.int32), -0.5, 0)

    rows = DrivenRows([PAIR], {"a": 0, "b": 0})
    did = [
        acted("a", 0),
        acted("b", 0),
        acted("a", 1),
        acted("a", 2),
        acted("b", 2),
        acted("a", 3),
        acted("b", 3),
    ]
    rows.feed(
        0, [Began("e"), *did, Earned("e", "b", 7.0, 1), Earned("e", "b", 5.0, 3), Ended("e", False, {})]
    )
    earned = {}
    while steps := rows.poll(0):
        for step in steps:
            earned |= {
                (s, t): r
                for s, t, r in zip(step.slot.tolist(), step.t.tolist(), step.reward.tolist(), strict=True)
            }
    assert {at: reward for at, reward in earned.items() if reward} == {(1, 2): 7.0, (1, 4): 5.0}


# --- what an operator may write -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"idle_timeout": -1}, "idle_timeout=-1: give a number from 0 on or None"),
        ({"episode_ttl": "5"}, "episode_ttl='5': give a number from 0 on"),
        ({"guard": float("nan")}, "guard=nan: give a number or None"),
        ({"queue_bytes": 0}, "queue_bytes=0: give a whole number from 1 on"),
        ({"queue_bytes": 1.5}, "whole number"),
        ({"held_rows": True}, "held_rows=True"),
        ({"max_weight_lag": -1}, "max_weight_lag=-1"),
        ({"limits": {}}, r"give Limits\(...\)"),
        ({"allow_hosts": ["http://shop.example"]}, "must look like 'shop.example'"),
        ({"allow_hosts": ["shop.example:9900"]}, "must look like 'shop.example'"),
        ({"allow_origins": ["*"]}, "must look like 'https://shop.example'"),
        ({"allow_origins": "https://shop.example/page"}, "must look like 'https://shop.example'"),
    ],
)
def test_settings_that_would_do_something_else_than_they_say(given, said):
    with pytest.raises(ConfigError, match=said):
        PolicyServer(**given)


def test_one_name_may_be_written_without_a_list():
    made = PolicyServer(allow_hosts="shop.example", allow_origins=iter(["https://shop.example:8443"]))
    assert made._settings.allow_hosts == ("shop.example",)
    assert made._settings.allow_origins == ("https://shop.example:8443",)
    assert PolicyServer(allow_hosts=["[2001:db8::1]", "10.0.0.7"])._settings.allow_hosts[0] == "[2001:db8::1]"
