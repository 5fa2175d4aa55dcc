"""`DrivenRows`: entries become rows. Rows worked out by hand, and a naive reference under Hypothesis."""

import json
import math
import threading
import time
from collections import defaultdict

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe import spaces
from steppe.envs.driven import Acted, Began, DrivenRows, Dropped, Earned, Ended, Left
from steppe.errors import CheckpointError, IdleError
from steppe.types import SINGLE_AGENT, EpisodeEnd, SlotInfo, SpacePair

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32)
PAIR = SpacePair(spaces.spec_of(BOX), spaces.spec_of(gymnasium.spaces.Discrete(4)))
ME = SINGLE_AGENT


def rows_of(**how):
    return DrivenRows((PAIR,), {ME: 0}, **how)


def number(value):
    return np.array([value], np.float32)


def acted(id, t, obs, agent=ME, *, action=0, logp=-1.0, version=3, policy="p", state=None):
    return Acted(id, agent, policy, t, number(obs), np.array([action]), logp, version, state)


def ended(id, obs=None, truncated=False, agent=ME):
    return Ended(id, truncated, {} if obs is None else {agent: number(obs)})


class Reader:
    """Follows rows as a sampler would; gathers the trajectory of every (env, episode, agent)."""

    def __init__(self, env):
        self.env, self.live, self.shown = env, {}, {}
        self.paths, self.closed, self.polls, self.slots = defaultdict(list), [], [], set()

    def poll(self, timeout=0.0):
        steps = self.env.poll(timeout)
        assert steps or timeout is not None
        self.polls.append([])
        for step in steps:
            self.follow(step)
        for end in [end for step in steps for end in step.closed]:
            self.closed.append(end)
            assert not [info for info in self.live.values() if (info.env, info.episode) == end[:2]]
        slots = [slot for step in steps for slot in step.slot.tolist()]
        assert len(set(slots)) == len(slots)
        self.slots |= set(slots)
        return steps

    def follow(self, step):
        for info in step.opened:
            assert info.slot not in self.live
            assert info.slot in step.slot
            self.live[info.slot] = info
        final = step.terminated | step.truncated
        assert not (step.terminated & step.truncated).any()
        assert (step.decided is None) == bool(final.all())
        if step.decided is not None:
            np.testing.assert_array_equal(step.decided, ~final)
        at = 0
        for row, slot in enumerate(step.slot.tolist()):
            info = self.live[slot]
            key = info.env, info.episode, info.agent
            self.polls[-1].append((info.episode, info.agent, int(step.t[row])))
            end = "T" if step.terminated[row] else "L" if step.truncated[row] else ""
            chosen = None
            if not end:
                assert step.decision.logp.shape == step.decision.version.shape
                chosen = int(step.decision.action[at]), float(step.decision.logp[at])
                at += 1
            path = self.paths[key]
            assert not path or path[-1][0] < step.t[row]
            path.append((int(step.t[row]), float(step.obs[row]), float(step.reward[row]), end, chosen))
            if end:
                del self.live[slot]

    def all(self):
        while self.poll():
            pass
        return self


def path(reader, episode=0, agent=ME, env=0):
    """(t, obs, reward, end) of each row."""
    return [row[:4] for row in reader.paths[env, episode, agent]]


def test_rewards_between_rows_belong_to_the_next_one():
    env = rows_of()
    env.feed(0, [Began("a"), acted("a", 0, 10.0), Earned("a", ME, 1.0), Earned("a", ME, 0.5)])
    reader = Reader(env)
    assert reader.poll() == []  # can still be credited
    env.feed(0, [acted("a", 1, 11.0, action=2, logp=-0.25, version=4), Earned("a", ME, 2.0)])
    env.feed(0, [ended("a", 12.0)])
    reader.all()
    assert path(reader) == [(0, 10.0, 0.0, ""), (1, 11.0, 1.5, ""), (2, 12.0, 2.0, "T")]
    assert [row[4] for row in reader.paths[0, 0, ME]] == [(0, -1.0), (2, -0.25), None]
    assert reader.closed == [EpisodeEnd(0, 0, 2)]
    assert env.env_steps == 2


def test_what_is_decided_comes_along():
    env = rows_of()
    state = {"memory": np.ones((1, 3), np.float32)}
    env.feed(0, [Began("a"), acted("a", 0, 1.0, action=3, logp=-2.0, version=7, state=state), ended("a")])
    (step,) = env.poll()
    (info,) = step.opened
    assert info == SlotInfo(0, 0, ME, 0, 0)
    assert step.decision.action.tolist() == [3]
    assert step.decision.logp.tolist() == [-2.0]
    assert step.decision.version.tolist() == [7]
    assert step.decision.state["memory"].tolist() == [[1.0, 1.0, 1.0]]
    (last,) = env.poll()
    assert (last.decided, last.decision, last.obs.tolist()) == (None, None, [1.0])  # the last known one


def test_an_earlier_decision_is_credited_while_the_episode_is_open():
    env = rows_of()
    env.feed(0, [Began("a"), *(acted("a", t, float(t)) for t in range(4))])
    env.feed(0, [Earned("a", ME, 5.0, t=1), Earned("a", ME, 1.0), Earned("a", ME, 7.0, t=1, info={"c": 1})])
    env.feed(0, [Earned("a", ME, 2.0, t=3), ended("a", 4.0)])  # of the newest one: that waits for its next
    reader = Reader(env)
    steps = [reader.poll() for _ in range(5)]
    assert [row[2] for row in path(reader)] == [0.0, 0.0, 12.0, 0.0, 3.0]
    assert [step.info for (step,) in steps] == [{}, {}, {0: {"c": 1}}, {}, {}]


def test_rows_are_held_as_long_as_they_can_be_credited():
    env, reader = rows_of(), None
    env.feed(0, [Began("a"), *(acted("a", t, float(t)) for t in range(1000))])
    reader = Reader(env)
    assert reader.poll() == []
    env.feed(0, [acted("a", 1000, 1000.0)])
    reader.all()
    assert path(reader) == [(0, 0.0, 0.0, "")]
    env.feed(0, [Earned("a", ME, 9.0, t=1), acted("a", 1001, 1001.0), acted("a", 1002, 1002.0)])
    reader.all()
    assert path(reader)[1:] == [(1, 1.0, 0.0, ""), (2, 2.0, 9.0, "")]
    assert env.env_steps == 2
    env.feed(0, [ended("a", 0.0, truncated=True)])
    reader.all()
    assert len(path(reader)) == 1004
    assert path(reader)[-1] == (1003, 0.0, 0.0, "L")
    assert env.env_steps == 1003


def test_what_came_too_late_is_owed_to_the_next_row():
    env = rows_of(held_rows=0)
    env.feed(0, [Began("a"), *(acted("a", t, float(t)) for t in range(3))])
    reader = Reader(env).all()
    env.feed(0, [Earned("a", ME, 9.0, t=0), ended("a")])
    assert path(reader.all()) == [(0, 0.0, 0.0, ""), (1, 1.0, 0.0, ""), (2, 2.0, 0.0, ""), (3, 2.0, 9.0, "T")]


def test_what_is_not_for_training_leaves_no_row():
    env, reader = rows_of(), None
    env.feed(0, [Began("a", training=False), Began("b"), acted("a", 0, 1.0), acted("b", 0, 2.0)])
    env.feed(0, [Earned("a", ME, 1.0), Left("a", ME), ended("a"), ended("b"), acted("c", 0, 0.0)])
    reader = Reader(env).all()
    assert list(reader.paths) == [(0, 1, ME)]  # the first one has its number all the same
    assert env.env_steps == 1


def test_an_episode_in_which_nobody_acted_is_none():
    env = rows_of()
    env.feed(0, [Began("a"), Earned("a", ME, 1.0), ended("a", 3.0), Began("b"), Dropped("b")])
    assert list(env.poll(0.0)) == []


def test_agents_join_and_leave():
    env = DrivenRows((PAIR,), {})
    env.feed(0, [Began("a"), acted("a", 0, 1.0, "x"), acted("a", 0, 2.0, "y")])
    env.feed(0, [Earned("a", "x", 1.0), Earned("a", "y", 2.0), Left("a", "x")])
    env.feed(0, [acted("a", 1, 3.0, "y"), acted("a", 1, 4.0, "z"), Earned("a", "y", 4.0)])
    env.feed(0, [acted("a", 2, 5.0, "z"), Ended("a", True, {"z": number(6.0)})])
    reader = Reader(env).all()
    assert path(reader, agent="x") == [(0, 1.0, 0.0, ""), (1, 1.0, 1.0, "T")]
    assert path(reader, agent="y") == [(0, 2.0, 0.0, ""), (1, 3.0, 2.0, ""), (3, 3.0, 4.0, "L")]
    assert path(reader, agent="z") == [(1, 4.0, 0.0, ""), (2, 5.0, 0.0, ""), (3, 6.0, 0.0, "L")]
    assert [len(poll) for poll in reader.polls if poll] == [2, 3, 1, 2]  # all agents of a step in one poll
    assert reader.closed == [EpisodeEnd(0, 0, 3)]
    assert env.env_steps == 3


def test_all_agents_have_left_when_the_episode_ends():
    env = DrivenRows((PAIR,), {}, held_rows=0)
    env.feed(0, [Began("a"), acted("a", 0, 1.0, "x"), Left("a", "x"), Left("a", "x")])
    reader = Reader(env).all()
    assert reader.closed == []
    env.feed(0, [Ended("a", False, {})])
    assert path(reader.all(), agent="x") == [(0, 1.0, 0.0, ""), (1, 1.0, 0.0, "T")]
    assert reader.closed == [EpisodeEnd(0, 0, 1)]


def test_a_dropped_episode_ends_where_it_was_seen_last():
    env = rows_of(held_rows=1)
    env.feed(0, [Began("a"), *(acted("a", t, float(t)) for t in range(3)), Earned("a", ME, 1.0)])
    reader = Reader(env)
    reader.poll(), reader.poll()
    env.feed(0, [Dropped("a"), acted("a", 3, 3.0), ended("a")])
    assert path(reader.all()) == [(0, 0.0, 0.0, ""), (1, 1.0, 0.0, ""), (2, 1.0, 0.0, "L")]
    assert reader.closed == [EpisodeEnd(0, 0, 2)]
    assert env.env_steps == 2


def test_forget_drops_what_is_held_and_what_is_open():
    env = rows_of()
    env.feed(0, [Began("a"), acted("a", 0, 0.0), ended("a"), Began("b"), acted("b", 0, 0.0)])
    assert env.backlog == 2
    env.forget()
    env.feed(0, [ended("b"), Began("c"), acted("c", 0, 8.0), ended("c")])
    reader = Reader(env).all()
    assert list(reader.paths) == [(0, 2, ME)]


def test_many_episodes_are_played_back_side_by_side():
    env = rows_of(num_envs=2, side_by_side=3)
    for i in range(5):
        id = f"e{i}"
        entries = [Began(id), *(acted(id, t, 10.0 * i + t) for t in range(i + 1)), ended(id, -1.0)]
        env.feed(i % 2, entries)
    reader = Reader(env).all()
    assert [len(poll) for poll in reader.polls[:-1]] == [3, 3, 3, 3, 2, 2, 2, 1, 1]
    assert [len(path(reader, i // 2, env=i % 2)) for i in range(5)] == [2, 3, 4, 5, 6]
    assert env.env_steps == 1 + 2 + 3 + 4 + 5
    assert sorted(reader.slots) == [0, 1, 2]


def test_whole_episodes_are_played_in_batches():
    env = rows_of(held_rows=0, side_by_side=2)
    env.whole = True
    for id in "abc":
        env.feed(0, [Began(id), acted(id, 0, 0.0), acted(id, 1, 1.0)])
    reader = Reader(env)
    assert reader.poll() == []
    for id in "cab":
        env.feed(0, [ended(id)])
    reader.all()
    assert [{row[0] for row in poll} for poll in reader.polls if poll] == [{2, 0}] * 3 + [{1}] * 3


def test_in_order_waits_for_what_began_first():
    env = rows_of()
    env.whole = env.in_order = True
    env.feed(0, [Began("a"), Began("b"), acted("a", 0, 0.0), acted("b", 0, 0.0), ended("b")])
    reader = Reader(env)
    assert reader.poll() == []
    env.feed(0, [ended("a")])
    assert [info.episode for step in reader.poll() for info in step.opened] == [0, 1]


def test_rows_of_different_kinds_come_apart():
    other = SpacePair(PAIR.observation, spaces.spec_of(gymnasium.spaces.Discrete(2)))
    env, state = DrivenRows((PAIR, other), {"x": 0, "y": 1, "z": 0}), {"m": np.zeros((1, 2), np.float32)}
    env.feed(0, [Began("a"), acted("a", 0, 1.0, "x"), acted("a", 0, 2.0, "y", policy="q")])
    env.feed(0, [acted("a", 0, 3.0, "z", logp=math.nan), acted("a", 0, 4.0, "w", state=state), ended("a")])
    steps = env.poll()
    assert [(step.space, step.obs.tolist()) for step in steps] == [
        (0, [1.0]),
        (1, [2.0]),
        (0, [3.0]),
        (0, [4.0]),
    ]
    assert [step.decision.state is None for step in steps] == [True, True, True, False]
    assert [np.isnan(step.decision.logp).all() for step in steps] == [False, False, True, False]
    finals = env.poll()
    assert [len(step.slot) for step in finals] == [1, 1, 1, 1]
    assert [len(step.closed) for step in finals] == [0, 0, 0, 1]


def test_it_says_who_gets_a_slot():
    env, told = rows_of(), []
    env.opened = lambda info, policy: told.append((info.slot, info.episode, policy))
    env.feed(0, [Began("a"), acted("a", 0, 1.0, policy="q"), ended("a")])
    Reader(env).all()
    assert told == [(0, 0, "q")]


def test_pending_has_no_rows_but_all_who_live():
    env = rows_of(held_rows=1)
    assert list(env.pending()) == []
    env.feed(0, [Began("a"), *(acted("a", t, 0.0) for t in range(2))])
    env.poll()
    (step,) = env.pending()
    assert (len(step.slot), step.obs.shape, [info.slot for info in step.opened]) == (0, (0,), [0])
    env.send_actions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="slot 0 awaits no action"):
        env.send_actions(np.zeros(1, np.int64), np.zeros(1, np.int64))


def test_waiting_ends_with_entries_with_failure_and_with_close():
    env = rows_of()

    def soon(what):
        thread = threading.Timer(0.05, what)
        thread.start()
        return thread

    began = time.monotonic()
    assert list(env.poll(0.1)) == []
    assert 0.1 <= time.monotonic() - began < 1.0
    thread = soon(lambda: env.feed(0, [Began("a"), acted("a", 0, 5.0), ended("a")]))
    assert [step.obs.tolist() for step in env.poll()] == [[5.0]]
    thread.join()
    Reader(env).live, _ = {}, env.poll()
    thread = soon(lambda: env.fail(KeyError("mine")))
    with pytest.raises(KeyError, match="mine"):
        env.poll()
    thread.join()
    other = rows_of()
    thread = soon(other.close)
    with pytest.raises(RuntimeError, match="closed"):
        other.poll()
    thread.join()


def test_idle_is_when_nobody_feeds():
    env = rows_of(idle_timeout=0.15)
    env.feed(0, [Began("a")])
    began = time.monotonic()
    with pytest.raises(IdleError, match=r"nothing came for 0\.\d s"):
        env.poll()
    assert time.monotonic() - began >= 0.15


def test_waiting_is_said(monkeypatch, caplog):
    monkeypatch.setattr("steppe.envs.driven._SAY", 0.05)
    env = rows_of(waiting="waiting for clients at x")
    list(env.poll(0.5))
    assert 1 <= caplog.messages.count("waiting for clients at x") <= 8


def test_a_state_is_of_as_many_envs():
    with pytest.raises(CheckpointError, match="of 2 envs, here are 1"):
        rows_of().set_state(rows_of(num_envs=2).get_state())


def through_a_file(state):
    """As a checkpoint gives it back: tuples are lists."""
    if isinstance(state, dict):
        return {key: through_a_file(part) for key, part in state.items()}
    if isinstance(state, list | tuple):
        return [through_a_file(part) for part in state]
    assert state is None or isinstance(state, bool | int | float | str | np.ndarray), state
    return state


AGENTS = ("x", "y")


@st.composite
def scripts(draw):
    """Entries of several episodes, in an order in which they may come."""
    held = draw(st.integers(1, 4))
    entries, books, count = [], {}, 0
    for _ in range(draw(st.integers(0, 60))):
        what = draw(st.integers(0, 9))
        if what == 0 or not books:
            id = f"e{count}"
            count += 1
            books[id] = {"t": -1, "live": {}, "gone": set(), "acted": []}
            entries.append(Began(id, training=draw(st.integers(0, 5)) > 0))
            continue
        id = draw(st.sampled_from(sorted(books)))
        book = books[id]
        live, agents = book["live"], [a for a in AGENTS if a not in book["gone"]]
        if what <= 4 and agents:
            book["t"] += 1
            chosen = draw(st.sets(st.sampled_from(agents), min_size=1))
            for agent in sorted(chosen):
                live[agent] = book["t"]
                book["acted"].append((agent, book["t"]))
                odd = draw(st.booleans())
                entries.append(
                    acted(id, book["t"], float(len(entries)), agent, logp=math.nan if odd else -1.0)
                )
        elif what <= 6 and live:
            agent = draw(st.sampled_from(sorted(live)))
            credit = [t for a, t in book["acted"] if a == agent and book["t"] - t < held]
            t = draw(st.sampled_from([None, *credit]))
            entries.append(Earned(id, agent, float(draw(st.integers(-9, 9))), t=t))
        elif what == 7 and live:
            agent = draw(st.sampled_from(sorted(live)))
            del live[agent]
            book["gone"].add(agent)
            entries.append(Left(id, agent))
        elif what == 8:
            shown = draw(st.sets(st.sampled_from(AGENTS)))
            obs = {agent: number(float(len(entries))) for agent in shown}
            entries.append(Ended(id, draw(st.booleans()), obs))
            del books[id]
    entries += [Ended(id, False, {}) for id in sorted(books)]
    return held, entries


def reference(entries):
    """Trajectories, as one would write them down with everything known."""
    told, where = defaultdict(list), {}
    for at, entry in enumerate(entries):
        told[entry.episode].append((at, entry))
        if isinstance(entry, Began):
            where[entry.episode] = len(where)
    found = {}
    for id, mine in told.items():
        if mine[0][1].training:
            for agent in AGENTS:
                path = trajectory(agent, mine)
                if path:
                    found[where[id], agent] = path
    return found


def trajectory(agent, told):
    """``(t, obs, reward, end)`` of each row of an agent; ``told`` has all entries of the episode."""
    path, newest = [], -1
    for at, entry in told:
        if isinstance(entry, Acted):
            newest = entry.t
            if entry.agent == agent:
                path.append([entry.t, float(entry.obs[0]), 0.0, "", at])
        over = isinstance(entry, Ended) or (isinstance(entry, Left) and entry.agent == agent)
        if over and path and not path[-1][3]:
            obs = float(entry.obs[agent][0]) if agent in getattr(entry, "obs", {}) else path[-1][1]
            path.append([newest + 1, obs, 0.0, "L" if getattr(entry, "truncated", False) else "T", at])
    for at, entry in told:
        if isinstance(entry, Earned) and entry.agent == agent:
            rows = [row for row in path if (row[4] > at if entry.t is None else row[0] > entry.t)]
            rows[0][2] += entry.reward
    return [tuple(row[:4]) for row in path]


@settings(max_examples=60, deadline=None)
@given(scripts(), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_rows_are_what_a_naive_reference_says(script, random, whole, saved):
    held, entries = script
    env = DrivenRows((PAIR,), {}, held_rows=held, side_by_side=random.randint(1, 4))
    env.whole = whole
    reader, at = Reader(env), 0
    while at < len(entries):
        more = random.randint(1, 8)
        env.feed(0, entries[at : at + more])
        at += more
        for _ in range(random.randint(0, 3)):
            reader.poll()
        if saved and random.random() < 0.3:
            state = through_a_file(env.get_state())
            assert json.dumps(state, default=np.ndarray.tolist)
            env = DrivenRows((PAIR,), {}, held_rows=held, side_by_side=env._side_by_side)
            env.whole = whole
            assert env.set_state(state) == []
            assert sorted(i.slot for s in env.pending() for i in s.opened) == sorted(reader.live)
            reader.env = env
    reader.all()
    want = reference(entries)
    assert {(episode, agent): path(reader, episode, agent) for _, episode, agent in reader.paths} == want
    assert env.env_steps == sum(end.length for end in reader.closed)
    assert not reader.live
    assert env.backlog == 0


def test_twenty_thousand_rows_a_second():
    env, n, length = rows_of(), 64, 60
    obs, action = np.zeros((1, 4), np.float32), np.zeros(1, np.int64)
    for i in range(n):
        id = str(i)
        steps = [Acted(id, ME, "p", t, obs, action, -1.0, 0) for t in range(length)]
        env.feed(0, [Began(id), *steps, Ended(id, False, {ME: obs})])
    best = min(_seconds_of_ten(env) for _ in range(6))
    assert 10 * n / best > 20_000


def _seconds_of_ten(env):
    began = time.perf_counter()
    for _ in range(10):
        (step,) = env.poll()
        assert len(step.slot) == 64
    return time.perf_counter() - began
