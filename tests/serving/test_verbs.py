"""Requests in, answers and entries out: no sockets, and numbers worked out by hand."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest

from steppe.envs.driven import Acted, Began, Dropped, Earned, Ended, Left
from steppe.serving.books import Books
from steppe.serving.facts import Settings
from steppe.serving.records import decode_write
from steppe.serving.values import column_of
from steppe.spaces import BoxSpec, DictSpec, TupleSpec
from steppe.types import DEFAULT_POLICY, SpacePair
from tests.serving.served import FLAT, FOUR, MASKED, PAIR, SumPolicy, World

MANY = {"multi_agent": True, "pairs": {"left": PAIR, "right": PAIR, 7: SpacePair(FLAT, FOUR)}}


class FakeLog:
    """Keeps records; full when told so."""

    def __init__(self):
        self.records, self.end, self.synced, self.full = [], 0, 0, False

    def append(self, record):
        if self.full:
            from steppe.serving.log import LogFullError

            raise LogFullError("no room")
        self.records.append(record)
        self.end += len(record)
        return self.end

    @property
    def entries(self):
        return [entry for record in self.records for entry in decode_write(record).entries]


def test_an_episode_from_start_to_end():
    log = FakeLog()
    world = World(log=log)
    assert world.ask("start", episode_id="e") == {"episode_id": "e"}
    assert world.ask("act", episode_id="e", obs=[2.5, 0]) == {"action": 2}
    assert world.ask("log_returns", episode_id="e", reward=1.5, info={"k": 1}) == {}
    full = world.ask("act", episode_id="e", obs=[3, 0.25], reward=2, full=True)
    assert full == {"action": 3, "step": 1, "logp": -0.5, "weights_version": 0}
    assert world.ask("log_returns", episode_id="e", reward=4.0, step=0) == {}
    assert world.ask("end", episode_id="e", obs=[4, 0], reward=-1) == {}

    began, first, earned, more, second, late, last, ended = log.entries
    assert began == Began("e", True)
    assert (earned, more) == (Earned("e", "agent0", 1.5, None, {"k": 1}), Earned("e", "agent0", 2.0))
    assert (late, last) == (Earned("e", "agent0", 4.0, 0), Earned("e", "agent0", -1.0))
    for acted, t, obs, action in ((first, 0, [2.5, 0], 2), (second, 1, [3, 0.25], 3)):
        assert isinstance(acted, Acted)
        assert (acted.agent, acted.policy, acted.t, acted.logp) == ("agent0", DEFAULT_POLICY, t, -0.5)
        assert (acted.version, acted.state) == (0, None)
        np.testing.assert_array_equal(acted.obs, np.array([obs], np.float32))
        np.testing.assert_array_equal(acted.action, [action])
    assert isinstance(ended, Ended)
    assert not ended.truncated
    np.testing.assert_array_equal(ended.obs["agent0"], np.array([[4, 0]], np.float32))
    assert world.refusal("act", episode_id="e", obs=[0, 0])[0] == "episode_ended"
    assert world.refusal("start", episode_id="e")[0] == "episode_exists"
    assert world.verbs.versions.told()["versions"] == [{"version": 0, "episodes": 1, "reward_mean": 6.5}]


def test_one_batch_for_all_that_comes_in_one_moment():
    world = World()
    for id in "abc":
        world.ask("start", episode_id=id)
    jobs = [world.job("act", episode_id=id, obs=[i, 0]) for i, id in enumerate("abc")]
    assert world.ask_all(*jobs) == [{"action": 0}, {"action": 1}, {"action": 2}]
    assert world.policies[DEFAULT_POLICY].batches == [3]
    many = [{"episode_id": id, "obs": [i, 0]} for i, id in enumerate("cab")]
    jobs = [world.job("act_many", acts=many[:2], full=True), world.job("act", **many[2])]
    first, second = world.ask_all(*jobs)
    assert first == {"actions": [0, 1], "steps": [1, 1], "logps": [-0.5, -0.5], "weights_versions": [0, 0]}
    assert second == {"action": 2}
    assert world.policies[DEFAULT_POLICY].batches == [3, 3]


def test_requests_about_one_episode_in_one_moment_are_carried_out_in_order():
    policy = SumPolicy(remembers=True)
    world = World({DEFAULT_POLICY: policy})
    jobs = [
        world.job("start", episode_id="e"),
        world.job("act", episode_id="e", obs=[0, 0]),
        world.job("act", episode_id="e", obs=[0, 0]),
        world.job("log_returns", episode_id="e", reward=1, step=1),
        world.job("act", episode_id="e", obs=[0, 0]),
        world.job("end", episode_id="e", obs=None),
        world.job("act", episode_id="e", obs=[0, 0]),
    ]
    answers = world.ask_all(*jobs)
    assert answers[1:] == [{"action": 0}, {"action": 1}, {}, {"action": 2}, {}, "episode_ended"]


def test_a_bad_value_refuses_its_own_request_alone():
    world = World()
    for id in "abc":
        world.ask("start", episode_id=id)
    bad = [[1, 2, 3], [1, 11], [1, float("nan")], "x", {"a": 1}, None, [True, None], [[1, 2]], [1, 1e39]]
    bad += [[1, True], [[1], [False]]]
    for obs in bad:
        jobs = [
            world.job("act", episode_id="a", obs=[1, 0]),
            world.job("act", episode_id="b", obs=obs),
            world.job("act", episode_id="c", obs=[2, 0]),
        ]
        assert world.ask_all(*jobs) == [{"action": 1}, "out_of_space", {"action": 2}], obs
    assert world.books.find("b").t == 0
    assert world.refusal("act", episode_id="b", obs=[1, 11]) == (
        "out_of_space",
        "obs[1]: expected at most 10.0, got 11.0",
    )
    acts = [{"episode_id": "a", "obs": [1, 0]}, {"episode_id": "b", "obs": [1]}]
    code, message = world.refusal("act_many", acts=acts)
    assert code == "out_of_space"
    assert message.startswith("acts[1].obs: expected float32 of shape (2,), got [1]")
    assert world.books.find("a").t == len(bad)


def test_what_was_refused_leaves_nothing_behind():
    """No circle of references, which only the garbage collector would find."""
    world = World()
    gc.collect()
    gc.disable()
    try:
        for fields in ({"episode_id": "e", "obs": [1, 0]}, {"episode_id": "e", "obs": [1]}):
            job = world.job("act", **fields)
            world.verbs.handle([job])
            seen = weakref.ref(job.outcome)
            del job
            assert seen() is None, fields
    finally:
        gc.enable()


def test_a_mask_that_allows_nothing_refuses_its_own_request_alone():
    policy = SumPolicy(MASKED)
    world = World({DEFAULT_POLICY: policy}, pairs={"agent0": MASKED})
    jobs = [world.job("start", episode_id=id) for id in "ab"]
    for id, mask in (("a", [0, 0, 0, 0]), ("b", [0, 1, 0, 0])):
        jobs.append(world.job("act", episode_id=id, obs={"x": [1, 0], "action_mask": mask}))
    assert world.ask_all(*jobs)[2:] == ["out_of_space", {"action": 1}]
    assert (world.books.find("a").t, world.books.find("b").t) == (0, 1)


def test_arrays_may_come_as_bytes():
    world = World()
    world.ask("start", episode_id="e")
    content = np.array([3, 1], "<f4").tobytes()
    array = {"dtype": "float32", "shape": [2], "bytes": content}
    assert world.ask("act", episode_id="e", obs=array) == {"action": 3}
    assert world.ask("act", episode_id="e", obs=array | {"bytes": "AABAQAAAgD8="}) == {"action": 3}
    for wrong in (
        {"bytes": b"123"},
        {"dtype": "object"},
        {"dtype": "U8"},
        {"shape": [-2]},
        {"bytes": "%"},
        {"x": 1},
    ):
        assert world.refusal("act", episode_id="e", obs=array | wrong)[0] == "out_of_space", wrong


def test_true_and_false_are_what_a_box_of_them_holds():
    flags = BoxSpec((2,), np.dtype(np.bool_), False, True)
    for spec, value, fits in (
        (flags, [True, False], True),
        (flags, [2, 0], False),
        (FLAT, [True, 1], False),
        (DictSpec((("f", flags), ("x", FLAT))), {"f": [True, True], "x": [1, 2]}, True),
        (DictSpec((("f", flags), ("x", FLAT))), {"f": [True, True], "x": [[1], False]}, False),
        (TupleSpec((FOUR, flags)), [3, [False, True]], True),
        (TupleSpec((FOUR, flags)), [False, [False, True]], False),
    ):
        assert (column_of(spec, [value], ["obs"])[1] == []) is fits, value


# --- many agents ------------------------------------------------------------------------------------------


def test_agents_join_and_leave():
    log = FakeLog()
    world = World(log=log, **MANY)
    world.ask("start", episode_id="e")
    reply = world.ask("act", episode_id="e", obs={"left": [1, 0], "7": [2, 0]}, full=True)
    assert reply == {
        "action": {"left": 1, "7": 2},
        "step": 0,
        "logp": {"left": -0.5, "7": -0.5},
        "weights_version": {"left": 0, "7": 0},
    }
    assert [entry.agent for entry in log.entries if isinstance(entry, Acted)] == ["left", 7]
    assert world.ask("log_returns", episode_id="e", reward={"left": 1, "7": 2}, dones={"left": True}) == {}
    assert Left("e", "left") in log.entries
    assert world.refusal("act", episode_id="e", obs={"left": [1, 0]})[0] == "agent_done"
    assert world.refusal("log_returns", episode_id="e", reward={"left": 1})[0] == "agent_done"
    assert world.refusal("act", episode_id="e", obs={"up": [1, 0]})[0] == "unknown_agent"
    assert (
        world.refusal("log_returns", episode_id="e", reward={}, dones={"right": True})[0] == "unknown_agent"
    )
    assert world.refusal("log_returns", episode_id="e", reward={"right": 1}, step=0)[0] == "step_unknown"
    assert world.refusal("act", episode_id="e", obs={})[0] == "malformed"
    assert world.refusal("act", episode_id="e", obs=[1, 0])[0] == "malformed"
    assert world.ask("act", episode_id="e", obs={"right": [3, 0]}) == {"action": {"right": 3}}
    world.ask("end", episode_id="e", obs={"left": [0, 0], "right": [1, 1]}, truncated=True)
    ended = log.entries[-1]
    assert (ended.truncated, [*ended.obs]) == (True, ["right"])


def test_who_acts_for_a_new_agent_is_asked_and_the_others_do_not_wait():
    asked = []
    policies = {"a": SumPolicy(), "b": SumPolicy()}
    world = World(policies, ask=lambda *what: asked.append(what), **MANY)
    jobs = [world.job("start", episode_id=id) for id in ("one", "two")]
    jobs.append(world.job("act", episode_id="one", obs={"left": [1, 0]}))
    again = world.job("act", episode_id="one", obs={"left": [1, 0]}, seq=jobs[-1].told.message.seq)
    assert world.ask_all(*jobs, again)[2:] == [None, None]
    assert asked == [("left", 0)]
    assert world.ask("delete", episode_id="two") == {}
    world.verbs.mapped("left", 0, "b")
    assert jobs[-1].outcome == again.outcome == b'{"action":{"left":1}}'
    assert policies["b"].batches == [1]
    assert world.books.find("one").t == 1

    late = world.job("act", episode_id="one", obs={"right": [1, 0], "7": [1, 0]})
    assert world.ask_all(late) == [None]
    assert asked[1:] == [("right", 0), (7, 0)]
    world.verbs.mapped("right", 0, "a")
    assert late.outcome is None
    world.clock.now += 11
    assert world.verbs.go_on() == [late]
    assert late.outcome.code == "not_ready"


def test_agents_that_nobody_has_named_before():
    world = World(pairs={}, everyone=PAIR, multi_agent=True)
    world.ask("start", episode_id="e")
    assert world.ask("act", episode_id="e", obs={"x": [1, 0], "*": [2, 0]}) == {"action": {"x": 1, "*": 2}}


# --- reports ----------------------------------------------------------------------------------------------


def step(episode="e", version=3, logp=-1.0, **more):
    return {
        "verb": "act",
        "episode_id": episode,
        "obs": [1, 0],
        "sample": 2,
        "logp": logp,
        "weights_version": version,
    } | more


def test_a_report_is_all_or_none():
    log = FakeLog()
    world = World(log=log, version=3, max_weight_lag=1)
    items = [
        {"verb": "start", "episode_id": "e"},
        step(),
        step(reward=1.5),
        {"verb": "log_returns", "episode_id": "e", "reward": 2.0, "step": 0},
        {"verb": "end", "episode_id": "e", "obs": [4, 0]},
    ]
    for bad, code in [
        (step(version=1), "weights_too_old"),
        (step(version=4), "weights_too_old"),
        (step(version=True), "malformed"),
        (step(logp=None), "out_of_space"),
        (step(sample=4), "out_of_space"),
        (step("other"), "unknown_episode"),
        ({"verb": "end", "episode_id": "e", "obs": None}, "episode_ended"),
        ({"verb": "start", "episode_id": "e"}, "episode_exists"),
        ({"verb": "log_action", "episode_id": "e", "obs": [1, 0], "action": 1}, "off_policy"),
    ]:
        at = 2 if code == "off_policy" else 5 if code.startswith("episode") else 1
        assert world.refusal("report", items=[*items[:at], bad])[0] == code
    assert (world.books.episodes, world.books.begun, log.records) == ({}, 0, [])
    assert world.verbs.counts["stale"] == 2

    assert world.ask("report", items=items) == {"weights_version": 3}
    _, first, reward, second, late, end = log.entries
    assert [first.t, second.t, late.t, reward.reward, end.truncated] == [0, 1, 0, 1.5, False]
    np.testing.assert_array_equal(second.action, [2])
    assert second.version == 3
    assert world.books.episodes == {}


def test_reports_need_a_learner_and_a_policy_that_clients_can_compute():
    world = World(training=False)
    assert world.refusal("report", items=[{"verb": "start"}])[0] == "not_training"
    world = World({DEFAULT_POLICY: SumPolicy(remembers=True)})
    items = [{"verb": "start", "episode_id": "e"}, step(version=0)]
    assert world.refusal("report", items=items)[0] == "not_local"


def test_own_actions_are_welcome_where_the_algorithm_learns_from_them():
    log = FakeLog()
    world = World(log=log, off_policy=True)
    world.ask("start", episode_id="e")
    assert world.ask("log_action", episode_id="e", obs=[1, 0], action=3) == {}
    acted = log.entries[-1]
    assert math.isnan(acted.logp)
    np.testing.assert_array_equal(acted.action, [3])
    assert world.refusal("log_action", episode_id="e", obs=[1, 0], action=True)[0] == "out_of_space"
    world = World()
    world.ask("start", episode_id="e")
    world.ask("start", episode_id="f", training_enabled=False)
    assert world.refusal("log_action", episode_id="e", obs=[1, 0], action=3)[0] == "off_policy"
    assert world.ask("log_action", episode_id="f", obs=[1, 0], action=3) == {}


# --- exactly once -----------------------------------------------------------------------------------------


def test_a_request_that_comes_again_gets_the_same_answer():
    log = FakeLog()
    world = World(log=log)
    first = world.ask("start", seq=1)
    assert world.ask("start", seq=1) == first
    assert world.ask("start", seq=1, kind="msgpack") == first
    act = {"episode_id": first["episode_id"], "obs": [1, 0]}
    assert world.ask_all(*[world.job("act", seq=2, **act)] * 3) == [{"action": 1}] * 3
    assert len(log.records) == 2
    assert world.refusal("act", seq=2, **(act | {"obs": [2, 0]}))[0] == "seq_reused"
    assert world.refusal("act", seq=2, **act, epoch=0, full=True)[0] == "seq_reused"
    assert world.ask("act", seq=2, **act, epoch=1) == {"action": 1}
    assert world.refusal("act", seq=2, **act)[0] == "epoch_expired"


def test_the_window_of_a_client():
    world = World()
    for seq in (1, 64, 65):
        world.ask("start", seq=seq)
    assert world.refusal("start", seq=1)[0] == "seq_expired"  # 65 - 64
    assert "episode_id" in world.ask("start", seq=2)
    assert world.ask("start", seq=64) == world.ask("start", seq=64)
    for seq in range(66, 400):
        world.ask("start", seq=seq)
    assert len(world.books._clients["c"].replies) == 64


def test_what_was_refused_may_be_sent_again_with_the_same_number():
    world = World()
    assert world.refusal("act", seq=1, episode_id="e", obs=[1, 0])[0] == "unknown_episode"
    world.ask("start", seq=2, episode_id="e")
    assert world.ask("act", seq=1, episode_id="e", obs=[1, 0]) == {"action": 1}


def test_a_table_of_clients_that_is_full():
    world = World(settings=Settings(most_clients=2))
    for client in "ab":
        world.ask("start", client=client, seq=1)
    assert world.refusal("start", client="c", seq=1)[0] == "too_many_clients"
    world.clock.now += 61
    world.ask("start", client="a", seq=2)
    assert "episode_id" in world.ask("start", client="c", seq=1)
    assert [*world.books._clients] == ["a", "c"]


# --- limits, time -----------------------------------------------------------------------------------------


def test_limits():
    log = FakeLog()
    world = World(log=log, settings=Settings(most_episodes=1, queue_bytes=200, held_rows=2))
    world.ask("start", episode_id="e", client="d", seq=1)
    assert world.refusal("start")[0] == "too_many_episodes"
    for _ in range(3):
        world.ask("act", episode_id="e", obs=[1, 0])
        world.verbs.taken = log.end
    assert world.refusal("log_returns", episode_id="e", reward=1, step=0)[0] == "step_learned"
    assert world.ask("log_returns", episode_id="e", reward=1, step=1) == {}
    assert world.refusal("log_returns", episode_id="e", reward=1, step=3)[0] == "step_unknown"
    world.verbs.taken = log.end - 201
    assert world.refusal("act", episode_id="e", obs=[1, 0])[0] == "busy"
    assert world.ask("start", episode_id="e", client="d", seq=1) == {"episode_id": "e"}
    world.verbs.taken, log.full, before = log.end, True, world.books.snapshot()
    assert world.refusal("act", episode_id="e", obs=[1, 0])[0] == "not_ready"
    assert world.books.snapshot() == before


@pytest.mark.parametrize("reward", [None, True, "1", math.nan, math.inf, 1e39, [1], {"agent0": 1}])
def test_rewards_are_finite_numbers(reward):
    world = World()
    world.ask("start", episode_id="e")
    assert world.refusal("log_returns", episode_id="e", reward=reward)[0] == "reward"


def test_episodes_that_nobody_touches_end_as_truncated():
    log = FakeLog()
    world = World(log=log, settings=Settings(episode_ttl=300))
    for id in "ab":
        world.ask("start", episode_id=id)
    world.clock.now += 200
    world.ask("act", episode_id="b", obs=[1, 0])
    world.clock.now += 101
    world.verbs.expire()
    assert [*world.books.episodes] == ["b"]
    assert log.entries[-1] == Ended("a", True, {})
    assert world.verbs.counts["expired"] == 1


def test_an_episode_can_be_dropped():
    log = FakeLog()
    world = World(log=log)
    world.ask("start", episode_id="e")
    assert world.ask("delete", episode_id="e") == {}
    assert log.entries[-1] == Dropped("e")
    assert world.refusal("delete", episode_id="e")[0] == "episode_ended"


def test_without_weights_there_are_no_actions_yet():
    world = World(version=None)
    world.ask("start", episode_id="e")
    assert world.refusal("act", episode_id="e", obs=[1, 0])[0] == "not_ready"
    world.publish(0)
    assert world.ask("act", episode_id="e", obs=[1, 0]) == {"action": 1}


# --- what comes back after a crash ------------------------------------------------------------------------


def test_the_books_come_back_from_a_snapshot_and_the_records_after_it():
    log = FakeLog()
    world = World({DEFAULT_POLICY: SumPolicy(remembers=True)}, log=log)
    taken, snapshot = 0, b""
    for i, (verb, fields) in enumerate(
        [
            ("start", {"episode_id": "e"}),
            ("act", {"episode_id": "e", "obs": [1, 0]}),
            ("start", {"episode_id": "f", "training_enabled": False}),
            ("log_returns", {"episode_id": "e", "reward": 2.5}),
            ("end", {"episode_id": "f", "obs": None}),
            ("act", {"episode_id": "e", "obs": [1, 0]}),
        ]
    ):
        world.ask(verb, **fields)
        if i == 2:
            taken, snapshot = len(log.records), world.books.snapshot()
    for start, records in ((snapshot, log.records[taken:]), (b"", log.records)):
        books = Books(100, world.clock)
        books.restore(start)
        for record in records:
            books.apply(decode_write(record))
        assert books.snapshot() == world.books.snapshot()
        assert books.find("e").seats["agent0"].state.tolist() == [[2]]
        assert books.repeated("c", 0, 1, world.job("start", episode_id="e", seq=1).told.digest) is not None


def test_nobody_does_what_broken_weights_say():
    class Broken(SumPolicy):
        def act(self, weights, obs, state, noise):
            decision = super().act(weights, obs, state, noise)
            return decision._replace(logp=np.where(obs[:, 0] > 1, np.nan, decision.logp))

    world = World({DEFAULT_POLICY: Broken()})
    jobs = [world.job("start", episode_id=id) for id in "ab"]
    jobs += [world.job("act", episode_id=id, obs=[x, 0]) for id, x in (("a", 1), ("b", 2))]
    assert world.ask_all(*jobs)[2:] == [{"action": 1}, "internal"]
    assert world.books.find("b").t == 0


def test_rollback_and_release():
    world = World(version=0)
    world.ask("start", episode_id="e")
    world.publish(1)
    assert world.ask("rollback", version=0)["acting"] == 0
    assert world.ask("act", episode_id="e", obs=[1, 0], full=True)["weights_version"] == 0
    assert world.refusal("rollback", version=5)[0] == "unknown_version"
    assert world.ask("release") == {
        "acting": 1,
        "frozen": False,
        "versions": [
            {"version": 0, "episodes": 0, "reward_mean": None},
            {"version": 1, "episodes": 0, "reward_mean": None},
        ],
    }


def test_the_guard_goes_back_to_the_best_version():
    said = []
    world = World(settings=Settings(guard=10.0))
    world.verbs.versions.say = said.append

    def episodes(n, reward):
        for _ in range(n):
            id = world.ask("start")["episode_id"]
            world.ask("act", episode_id=id, obs=[1, 0])
            world.ask("end", episode_id=id, obs=None, reward=reward)

    episodes(150, 5.0)  # what was never good has not become worse
    assert world.verbs.versions.frozen is None
    episodes(60, 20.0)
    world.publish(1)
    episodes(40, 30.0)
    world.publish(2)
    episodes(60, 0.0)  # the last 100 earned (40 * 30 + 60 * 0) / 100 = 12
    assert world.verbs.versions.frozen is None
    episodes(10, 0.0)  # (30 * 30 + 70 * 0) / 100 = 9
    assert world.verbs.versions.frozen == 1
    assert len(said) == 1
    assert "version 1 acts, which earned 30" in said[0]
    world.publish(3)
    world.ask("start", episode_id="e")
    assert world.ask("act", episode_id="e", obs=[1, 0], full=True)["weights_version"] == 1
    world.ask("release")
    assert world.ask("act", episode_id="e", obs=[1, 0], full=True)["weights_version"] == 3
