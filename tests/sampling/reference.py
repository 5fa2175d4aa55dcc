"""Random scripts of polls, and a naive model of what a sampler has to make of them."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from steppe import spaces
from steppe.sampling.sampler import Sample, Sampler
from steppe.types import AsyncEnv, Decision, Policy, Rollout, SlotInfo, SpacePair, Weights
from tests.fakes import CountingPolicy, Row, ScriptedEnv, default_spaces, row_number

_DICT = gymnasium.spaces.Dict(
    {
        "n": gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32),
        "x": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
    }
)
_BOX = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
PAIRS = (*default_spaces(), SpacePair(spaces.spec_of(_DICT), spaces.spec_of(_BOX)))
SPACE_OF = {"a": 0, "b": 0, "c": 1, "d": 0}
TRAINED = ("left", "right", "other")
SLOTS_PER_ENV = 2 * len(SPACE_OF)


def policies() -> dict[str, CountingPolicy]:
    """Space 0 has two trained recurrent policies and an untrained one, space 1 has one without state."""
    return {
        "left": CountingPolicy(PAIRS[0], recurrent=True),
        "still": CountingPolicy(PAIRS[0], recurrent=True, noise_size=1),
        "other": CountingPolicy(PAIRS[1]),
        "right": CountingPolicy(PAIRS[0], recurrent=True, noise_size=3),
    }


def mapping(info: SlotInfo) -> str:
    """Agent ``b`` plays for two policies by turns."""
    if info.agent == "b":
        return "right" if (info.env + info.episode) % 2 else "left"
    return {"c": "other", "d": "still"}.get(info.agent, "left")


# --- random scripts ---------------------------------------------------------------------------------------


@dataclass
class _Track:
    """One env: agents join, act, skip turns, leave and come back, until their episode ends."""

    rng: random.Random
    env: int
    agents: str
    numbers: Iterator[int]
    decided: float
    t: int = 0
    episode: int = 0
    live: dict[str, tuple[int, int]] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)

    def row(self, agent: str, slot: int, count: int, **flags: bool) -> Row:
        number, space, rng = next(self.numbers), SPACE_OF[agent], self.rng
        obs: Any = {"n": float(number), "x": [number, -number]} if space else float(number)
        decision = None
        if not flags and rng.random() < self.decided:
            own = (
                np.full((1, 2), rng.randint(0, 4) / 4, np.float32) if space else np.array([rng.randint(0, 3)])
            )
            state = None if space else {"count": np.array([count + 2])}
            decision = Decision(own, np.array([-number], np.float32), state)
        reward = float(rng.randint(-5, 5))
        about = {"env": self.env, "agent": agent, "episode": self.episode, "space": space}
        ends = {"decision": decision, "ends_episode": False}
        return Row(slot, self.t, obs, reward, **flags, **about, **ends)  # type: ignore[arg-type]

    def join(self, agent: str) -> Row:
        slot = self.free.pop(0)
        self.live[agent] = slot, 1
        return self.row(agent, slot, 0)

    def step(self) -> list[Row]:
        """The rows of the next poll that this env takes part in."""
        rng, ending, freed, rows = self.rng, False, [], []
        if self.t:
            ending = bool(self.live) and rng.random() < 0.2
            absent = [agent for agent in self.agents if agent not in self.live]
            for agent, (slot, count) in list(self.live.items()):
                if ending or rng.random() < 0.15:
                    rows.append(
                        self.row(agent, slot, count, **{rng.choice(["terminated", "truncated"]): True})
                    )
                    del self.live[agent]
                    freed.append(slot)
                elif rng.random() < 0.75:
                    rows.append(self.row(agent, slot, count))
                    self.live[agent] = slot, count + 1
            for agent in absent if not ending else []:
                if rng.random() < 0.2:
                    rows.append(self.join(agent))
                elif rng.random() < 0.1:  # comes and goes with one row
                    rows.append(self.row(agent, self.free[-1], 0, terminated=True))
                    freed.append(self.free.pop())
        if ending:
            rows[-1].ends_episode = True
            self.t, self.episode = 0, self.episode + 1
        if not self.t and (not ending or rng.random() < 0.7):
            rows += [
                self.join(agent) for agent in self.agents if rng.random() < 0.7 or agent == self.agents[0]
            ]
        self.t += bool(self.live) or self.t > 0
        self.free += freed
        rng.shuffle(rows)
        return rows or self.step()


def tracks(
    seed: int, *, envs: int, agents: str, polls: int, decided: float = 0.0, first: int = 1
) -> list[list[list[Row]]]:
    """What each env yields, for as many polls; rows are numbered from ``first``."""
    rng, numbers = random.Random(seed), itertools.count(first)
    made = []
    for env in range(envs):
        free = list(range(env * SLOTS_PER_ENV, (env + 1) * SLOTS_PER_ENV))
        track = _Track(rng, env, agents, numbers, decided, free=free)
        made.append([track.step() for _ in range(polls)])
    return made


def interleaved(seed: int, parts: Sequence[Sequence[list[Row]]]) -> list[list[Row]]:
    """One script in which each env takes part in some polls only."""
    rng, rest, script = random.Random(seed), [list(part) for part in parts], []
    while any(rest):
        script.append([row for part in rest if part and rng.random() < 0.7 for row in part.pop(0)])
    return script


# --- the model --------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One row as the env gave it, with the policy's own sample for it (None: never answered)."""

    number: int
    reward: float
    terminated: bool
    truncated: bool
    t: int
    poll: int
    action: Any
    decided: bool


@dataclass
class Trajectory:
    """The rows of one slot from its first to its last."""

    policy: str
    env: int
    agent: str
    episode: int
    rows: list[Seen] = field(default_factory=list)


class Transition(NamedTuple):
    """One acted row and its outcome."""

    number: int
    action: Any
    reward: float
    outcome: int
    terminated: bool
    truncated: bool
    version: int
    env: int
    agent: str
    episode: int
    t: int


def trajectories(script: Sequence[Sequence[Row]], answers: Sequence[dict[int, Any]]) -> list[Trajectory]:
    """Every trajectory of a script, also those of a single final row."""
    found: list[Trajectory] = []
    live: dict[int, Trajectory] = {}
    for poll, (rows, sent) in enumerate(zip(script, answers, strict=False)):
        for row in rows:
            if row.slot not in live:
                info = SlotInfo(row.slot, row.env, row.agent, row.episode, row.seed)
                live[row.slot] = Trajectory(mapping(info), row.env, row.agent, row.episode)
                found.append(live[row.slot])
            action = None if row.decision is None else _plain(row.decision.action[0])
            number = int(row_number(row.obs))
            seen = Seen(
                number, row.reward, row.terminated, row.truncated, row.t, poll, action, bool(row.decision)
            )
            live[row.slot].rows.append(seen)
            if row.final:
                del live[row.slot]
        for slot, answer in sent.items():
            own = tuple(x / 2 for x in answer) if isinstance(answer, list) else answer - 1
            live[slot].rows[-1] = live[slot].rows[-1]._replace(action=own)
    return found


def closing_polls(script: Sequence[Sequence[Row]], env_steps: int) -> list[int]:
    """The poll that ends each whole fragment."""
    closing, taken = [], 0
    for poll, rows in enumerate(script):
        taken += len({row.env for row in rows if row.t > 0})
        if taken >= env_steps:
            closing.append(poll)
            taken = 0
    return closing


def expected(found: Sequence[Trajectory], closing: Sequence[int], policy: str) -> list[list[Transition]]:
    """The transitions of ``policy`` per fragment: each is in the fragment that its outcome falls into."""
    fragments: list[list[Transition]] = [[] for _ in closing]
    for one in found:
        for row, outcome in itertools.pairwise(one.rows if one.policy == policy else []):
            fragment = sum(poll < outcome.poll for poll in closing)
            version = sum(poll < row.poll or (poll == row.poll and not row.decided) for poll in closing)
            result = outcome.reward, outcome.number, outcome.terminated, outcome.truncated
            who = one.env, one.agent, one.episode, row.t
            if fragment < len(closing):
                fragments[fragment].append(Transition(row.number, row.action, *result, version, *who))
    return fragments


def transitions(rollout: Rollout) -> list[Transition]:
    """What a rollout says was acted, lane by lane."""
    number, read = row_number(rollout.obs), []
    for lane, row in np.argwhere(rollout.acted.T):
        at, below = (row, lane), (row + 1, lane)
        assert rollout.logp[at] == -number[at], "logp belongs to another row"
        outcome = (
            float(rollout.reward[below]),
            int(number[below]),
            bool(rollout.terminated[below]),
            bool(rollout.truncated[below]),
        )
        agent = rollout.agents[rollout.agent[at]]
        who = int(rollout.env[at]), agent, int(rollout.episode[at]), int(rollout.t[at])
        action = _plain(rollout.action[at])
        read.append(Transition(int(number[at]), action, *outcome, int(rollout.version[at]), *who))
    return read


def _plain(action: Any) -> Any:
    plain = np.asarray(action).tolist()
    return tuple(plain) if isinstance(plain, list) else plain


# --- sampling a script ------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What came of sampling a random script."""

    script: list[list[Row]]
    closing: list[int]
    samples: list[Sample]
    found: list[Trajectory]
    policies: dict[str, CountingPolicy]
    asked: Counter[Any]

    def rollouts(self, policy: str) -> list[Rollout]:
        """The fragments of one policy."""
        return [next(r for r in sample.rollouts if r.policy == policy) for sample in self.samples]


def switch(sampler: Sampler, ids: Iterable[str], version: int) -> None:
    """New weights for all."""
    sampler.set_weights({id: Weights(version, np.zeros(0, np.float32)) for id in ids})


def make_sampler(
    env: AsyncEnv, players: Mapping[str, Policy] | None = None, **options: Any
) -> tuple[Sampler, Counter[Any]]:
    """A sampler, and how often it asked for the policy of an (env, agent, episode)."""
    asked: Counter[Any] = Counter()
    players = players or policies()

    def ask(info: SlotInfo) -> str:
        asked[info[1:4]] += 1
        return mapping(info)

    options = {"trained": TRAINED, "mapping": ask, "rng": np.random.default_rng(0), **options}
    sampler = Sampler(env, players, **options)
    switch(sampler, players, 0)
    return sampler, asked


def play(
    seed: int, envs: int, agents: str, polls: int, length: int, decided: float = 0.0, runner: int = 3
) -> Run:
    """Sample every whole fragment of a random script."""
    first = 1 + 10**5 * runner
    parts = tracks(seed, envs=envs, agents=agents, polls=polls, decided=decided, first=first)
    script = interleaved(seed, parts)
    env, players = ScriptedEnv(script, pairs=PAIRS, num_envs=envs), policies()
    sampler, asked = make_sampler(env, players, fragment_length=length, runner=runner)
    samples, closing = [], closing_polls(script, length * envs)
    for version in range(len(closing)):
        switch(sampler, players, version)
        samples.append(sampler.sample())
    played = script[: closing[-1] + 1] if closing else []
    found = trajectories(played, env.answers)
    return Run(played, closing, samples, found, players, asked)
