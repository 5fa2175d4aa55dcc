"""Messages that were damaged at random: each is answered, and those that are refused change nothing."""

from __future__ import annotations

import asyncio
import json
import random

import msgspec
import pytest

from steppe.serving import messages
from steppe.serving.messages import Refused
from steppe.serving.rows import Job
from steppe.types import DEFAULT_POLICY
from tests.serving.live import Live, say
from tests.serving.served import MASKED, PAIR, SumPolicy, World
from tests.serving.test_verbs import FakeLog

WHO = {"client": "c", "epoch": 0, "seq": 5, "id": 1, "episode_id": "e"}
ARRAY = {"dtype": "float32", "shape": [2], "bytes": "AABAQAAAgD8="}
STEP = {"episode_id": "e", "obs": [1, 0], "sample": 1, "logp": -0.5, "weights_version": 0}
END = {"verb": "end", "episode_id": "e", "obs": None}
SINGLE = [
    {"verb": "start", **WHO, "training_enabled": False},
    {"verb": "act", **WHO, "obs": [1.5, -2], "reward": 0.5, "full": True},
    {"verb": "act", **WHO, "obs": ARRAY},
    {"verb": "log_action", **WHO, "obs": [1, 0], "action": 3, "reward": 1},
    {"verb": "log_returns", **WHO, "reward": 1.5, "step": 0, "info": {"a": [1, {"b": None}]}},
    {"verb": "end", **WHO, "obs": None, "truncated": True, "reward": 1},
    {"verb": "act_many", **WHO, "acts": [{"episode_id": "e", "obs": [1, 0], "reward": 2}], "full": True},
    {"verb": "report", **WHO, "items": [{"verb": "act", **STEP}, END]},
    {"verb": "rollback", **WHO, "version": 0},
    {"verb": "release", **WHO},
    {"verb": "delete", **WHO},
]  # fmt: skip
for _message in SINGLE:  # what is about no single episode
    if _message["verb"] in ("act_many", "report", "rollback", "release"):
        del _message["episode_id"]
MANY = [
    {
        "verb": "act",
        **WHO,
        "obs": {"left": {"x": [1, 0], "action_mask": [1, 1, 0, 1]}},
        "reward": {"left": 1},
    },
    {"verb": "log_returns", **WHO, "reward": {"left": 1.5}, "dones": {"left": True, "__all__": False}},
    {"verb": "end", **WHO, "obs": {"left": {"x": ARRAY, "action_mask": [1, 0, 0, 0]}}},
]
ODD = [
    None, True, -1, 0, 1.5, 1e308, 2**53, 2**64 - 1, "", "e", "x" * 300, "\x00", [], [[]], {}, {"a": 1},
    [None], float("nan"), float("inf"), b"\xff", ARRAY, {**ARRAY, "shape": [2**40] * 2},
    {**ARRAY, "dtype": "O"}, {**ARRAY, "dtype": "2,f4"}, {**ARRAY, "dtype": "(3,)f4"},
    {**ARRAY, "dtype": "M8[s]"}, {**ARRAY, "shape": "2"}, [[1, 2], [3]], [1, "2"], ["1", "2"], [1e39, 0],
    {"left": 1}, {1: 2},
]  # fmt: skip


def places(value, at=()):
    """Every place in a message."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def changed(value, at, rng):
    """``value`` with one place in it that is odd, missing or twice there."""
    if not at:
        return rng.choice(ODD)
    copy = value.copy()
    key = at[0]
    if len(at) > 1:
        copy[key] = changed(value[key], at[1:], rng)
    elif rng.random() < 0.2:
        del copy[key]
    elif isinstance(copy, dict) and rng.random() < 0.2:
        copy[rng.choice(["extra", "é", "id", "verb", "__all__"])] = copy.pop(key)
    else:
        copy[key] = rng.choice(ODD)
    return copy


def mutated(message, rng):
    """A damaged message, as bytes, and its kind."""
    kind = rng.choice(["json", "msgpack"])
    value = dict(message, seq=rng.choice([5, 6]))
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        if not isinstance(value, dict):
            break
        value = changed(value, rng.choice(list(places(value))), rng)
    try:
        body = msgspec.json.encode(value) if kind == "json" else msgspec.msgpack.encode(value)
    except (TypeError, OverflowError):
        body = json.dumps(str(value)).encode()
    if rng.random() < 0.4:
        body = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.choice([0, 1, 4])] = rng.randbytes(rng.choice([0, 1, 1, 3]))
        body = bytes(body)
    return body, kind


def worlds():
    yield World(log=FakeLog(), off_policy=True), SINGLE
    yield (
        World({DEFAULT_POLICY: SumPolicy(MASKED)}, pairs={"left": MASKED, 3: MASKED}, multi_agent=True),
        MANY,
    )


def bombard(world, message_list, n, seed):
    """Returns how many messages were carried out."""
    rng = random.Random(seed)
    fine, statuses = 0, set()
    before = world.books.snapshot()
    for i in range(n):
        if "e" not in world.books.episodes or i % 200 == 0:  # what was ended or filled begins anew
            world.__init__(
                world.policies, pairs=dict(world.facts.pairs), log=FakeLog(), off_policy=True,
                multi_agent=world.facts.multi_agent,
            )  # fmt: skip
            world.ask("start", episode_id="e")
            before = world.books.snapshot()
        body, kind = mutated(rng.choice(message_list), rng)
        try:
            told = messages.read_frame(body, kind)
        except Refused as refused:
            statuses.add(refused.status)
            messages.frame_id(body, kind)
            continue
        if told.verb in messages.READS:
            continue
        job = Job(told, kind)
        world.verbs.handle([job])
        after = world.books.snapshot()
        if isinstance(job.outcome, Refused):
            assert job.outcome.code != "internal", body
            assert after == before, body
        else:
            assert isinstance(job.outcome, bytes), body
            fine += 1
        before = after
    assert statuses <= {400, 404}
    return fine


@pytest.mark.parametrize("n", [1_500, pytest.param(200_000, marks=pytest.mark.slow)])
def test_damaged_messages_are_refused_and_change_nothing(n):
    for seed, (world, message_list) in enumerate(worlds()):
        assert n / 100 < bombard(world, message_list, n, seed) < n


def test_a_bystander_sees_nothing_of_damaged_messages():
    async def main():
        spaces = {"multi_agent": True, "pairs": {"left": PAIR, "right": PAIR}}
        async with Live(**spaces) as live, live.socket() as noise, live.socket() as bystander:
            who = {"client": "good", "epoch": 0, "episode_id": "mine"}
            await say(bystander, verb="start", id=1, seq=1, **who)
            rng = random.Random(0)
            for seq in range(2, 102):
                for _ in range(3):
                    body, kind = mutated(rng.choice(SINGLE + MANY), rng)
                    await noise.send(body if kind == "msgpack" else body.decode("utf-8", "replace"))
                    assert isinstance(await asyncio.wait_for(noise.recv(), 5), str | bytes)
                answer = await say(bystander, verb="act", id=seq, seq=seq, obs={"left": [seq % 4, 0]}, **who)
                assert answer == {"id": seq, "status": 200, "action": {"left": seq % 4}}
            assert live.server.counts().get("refused_internal") is None

    asyncio.run(main())
