"""When remote envs are asked, waited for and replaced: with links that do as they are told, without Ray."""

import logging
import socket
import time

import gymnasium
import numpy as np
import pytest

from steppe.envs import remote, remote_link, remote_process
from steppe.envs.context import EnvContext
from steppe.errors import EnvError
from steppe.spaces import spec_of
from steppe.types import ALONE, EpisodeEnd, SlotInfo, SpacePair, TimeStep

PAIR = (
    SpacePair(spec_of(gymnasium.spaces.Box(-1, 1, (2,), np.float64)), spec_of(gymnasium.spaces.Discrete(2))),
)


class FakeLink:
    """Steps when it is asked, if it is not held; fails where its script says so."""

    def __init__(self, script):
        self.near, self.far = socket.socketpair()
        self.script, self.steps, self.held = script, -1, script.get("held", False)
        script["alive"].add(self)

    def fileno(self):
        return self.near.fileno()

    def ask(self, sent):
        if not self.held:
            self.far.send(b"!")

    def told(self):
        self.near.recv(1)
        self.steps += 1
        if self.steps == self.script.get("fails"):
            raise OSError(f"failure {len(self.script['log'])}")
        slot, no = np.zeros(1, np.int64), np.zeros(1, np.bool_)
        opened = [SlotInfo(0, 0, "agent0", 0, 7)] if self.steps == 0 else []
        step = TimeStep(slot, slot + self.steps, np.zeros((1, 2)), np.zeros(1), no, no, opened)
        return remote_process.Told([step], self.steps, PAIR, ALONE, {"E101 obs": 1})

    def between_steps(self, function, *args):
        return None

    def user(self):
        return self

    def end(self):
        self.near.close()
        self.far.close()
        self.script["alive"].discard(self)


class FakeOpening(remote_link.Opening):
    """Is made at once."""

    def __init__(self, plan, state):
        self.script, self.near, self.far = plan.limits, *socket.socketpair()
        self.script["log"].append(state)
        self.script["alive"].add(self)
        self.far.send(b"!")

    def fileno(self):
        return self.near.fileno()

    def done(self):
        return FakeLink(self.script), remote_process.Told([], 0, PAIR, ALONE, {})

    def settled(self):
        self.near.close()
        self.far.close()
        self.script["alive"].discard(self)

    end = settled


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(remote, "Opening", FakeOpening)
    made = []

    def make(*scripts, **rules):
        full = [{"log": [], "alive": set(), **script} for script in scripts]
        plans = [
            remote_link.Plan(None, "Fake", None, None, script, EnvContext({}, vector_index=i), "")
            for i, script in enumerate(full)
        ]
        links = [FakeLink(script) for script in full]
        told = remote_process.Told([], 0, PAIR, ALONE, {})
        env = remote.RemoteRows(
            plans,
            [(link, told) for link in links],
            seed=lambda number: 100 + number,
            rules=remote.Rules(**rules),
            created=lambda *_: None,
            ours=False,
        )
        made.append(env)
        return env, links, full

    yield make
    for env in made:
        env._selector.close()
        for link in env._links:
            link.end()


def answered(env, steps):
    """Answer all that await an action; the envs and steps that were told."""
    told = []
    for step in steps:
        told += zip((step.slot % env.num_envs).tolist(), step.t.tolist(), strict=True)
        env.send_actions(step.slot, np.zeros(len(step.slot), np.int64))
    return told


def test_a_poll_takes_all_that_have_stepped_and_waits_for_nobody_else(rows):
    env, links, _ = rows({}, {}, {"held": True})
    assert answered(env, env.poll()) == [(0, 0), (1, 0)]
    assert answered(env, env.poll()) == [(0, 1), (1, 1)]
    links[2].far.send(b"!")
    assert answered(env, env.poll()) == [(0, 2), (1, 2), (2, 0)]


def test_a_poll_that_waits_takes_them_in_their_order_and_ends_with_its_time(rows):
    env, links, _ = rows({"held": True}, {}, wait_ms=50)
    began = time.monotonic()
    assert answered(env, env.poll()) == [(1, 0)]
    assert time.monotonic() - began >= 0.05
    links[0].far.send(b"!")
    assert answered(env, env.poll()) == [(0, 0), (1, 1)]
    assert answered(env, env.poll(0.0)) == [(1, 2)]
    assert list(env.poll(0.01)) or env.env_steps > 2


def test_one_that_fails_is_lost_once_and_its_successor_goes_on(rows):
    env, links, (script, _) = rows({"fails": 3}, {}, restarts=True)
    lost, opened = [], []
    for _ in range(12):
        steps = env.poll()
        lost += [end for step in steps for end in step.lost]
        opened += [info for step in steps for info in step.opened if info.env == 0]
        answered(env, steps)
    assert lost[:2] == [EpisodeEnd(0, 0, 2), EpisodeEnd(0, 1, 2)]
    assert [info.episode for info in opened] == list(range(len(opened)))
    assert [state["seeds"] for state in script["log"]] == [[102 + k] for k in range(len(lost))]
    assert {tuple(state["health"].items()) for state in script["log"]} == {(("E101 obs", 1),)}
    assert env.health()["E503 OSError"] == len(lost)
    assert links[0] not in script["alive"]
    assert env.get_sub_environments()[1] is links[1]


def test_env_steps_are_those_that_were_told(rows):
    env, _, _ = rows({"fails": 2}, {"fails": 3}, restarts=True)
    told = []
    for _ in range(30):
        told += answered(env, env.poll())
    assert env.env_steps == sum(t > 0 for _, t in told)


def test_without_restarts_the_error_comes_out_with_its_place(rows):
    env, _, _ = rows({"fails": 2}, {}, wait_ms=1000)
    answered(env, env.poll())
    answered(env, env.poll())
    with pytest.raises(OSError, match="failure 0"):
        env.poll()
    with pytest.raises(RuntimeError, match="failed before"):
        env.poll()


def test_the_first_reset_has_to_go_well(rows):
    env, _, (script,) = rows({"fails": 0}, restarts=True)
    with pytest.raises(OSError, match="failure 0"):
        env.poll()
    assert script["log"] == []


def test_too_many_restarts_end_the_run(rows):
    env, _, (script,) = rows({"fails": 2}, restarts=True, most_restarts=2)
    with pytest.raises(OSError, match="failure 2") as caught:
        [answered(env, env.poll()) for _ in range(100)]
    assert "max_env_restarts is 2" in caught.value.__notes__[-1]
    assert len(script["log"]) == 2


def test_one_that_takes_too_long_has_failed(rows):
    env, links, (script, _) = rows({}, {}, restarts=True, step_timeout=0.05)
    answered(env, env.poll())
    links[0].held = True
    answered(env, env.poll())
    began, lost = time.monotonic(), []
    while not lost:
        steps = env.poll()
        lost = [end for step in steps for end in step.lost]
        answered(env, steps)
    assert time.monotonic() - began < 5
    assert lost == [EpisodeEnd(0, 0, 0)]
    assert links[0] not in script["alive"]
    env2, links2, _ = rows({}, step_timeout=0.05)
    answered(env2, env2.poll())
    links2[0].held = True
    with pytest.raises(EnvError, match=r"env_step_timeout=0\.05 s") as caught:
        env2.poll()
    assert (caught.value.code, caught.value.env, caught.value.step) == ("E502", 0, 0)


def test_an_answer_that_waits_while_nobody_polls_is_in_time(rows):
    env, _, _ = rows({}, step_timeout=0.02)
    answered(env, env.poll())
    assert answered(env, env.poll(0.0)) == [(0, 1)]
    env.poll(0.0)
    time.sleep(0.05)
    assert env.poll(0.0) is not None


def test_who_has_not_answered_for_long_is_said_once(rows, monkeypatch, caplog):
    monkeypatch.setattr(remote, "_TELL_S", 0.01)
    env, links, _ = rows({"held": True})
    with caplog.at_level(logging.WARNING, "steppe"):
        for _ in range(3):
            assert list(env.poll(0.03)) == []
        links[0].far.send(b"!")
        assert answered(env, env.poll()) == [(0, 0)]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "Fake, runner 0, env 0 has not answered for 0.01 s and is waited for; see env_step_timeout"


def test_two_hundred_restarts_leave_nothing_behind(rows):
    env, _, (script,) = rows({"fails": 2}, restarts=True)
    while len(script["log"]) < 200:
        answered(env, env.poll())
    assert len(script["alive"]) == 1
    assert len(env._selector.get_map()) <= 1
    assert len(env._flying) <= 1
    assert env._lost == []
    assert env._sent == [[]] or len(env._sent[0]) == 1
    assert env.env_steps in (200, 201)
