"""Random episodes of many agents, an env that plays them, and a naive model of the rows that must come."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import gymnasium
import numpy as np

from steppe.envs.agents import MultiAgentRows
from steppe.envs.multi_agent import MultiAgentEnv

ALL = "__all__"
SMALL = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
LARGE = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
POOL = ["a", "b", 0, 1, "e"]


@dataclass
class Turn:
    """What one step tells: agents that observe (with a number), who earned what, who ends."""

    obs: dict = field(default_factory=dict)
    rewards: dict = field(default_factory=dict)
    terminated: list = field(default_factory=list)
    truncated: list = field(default_factory=list)
    said: bool = True  # whether "__all__" is in the flags


def episode(rng, *, steady):
    """Turns of one episode, the first of which is its reset."""
    pool = [*POOL]
    numbers = iter(range(int(rng.integers(1000)) * 100, 10**6))
    said = bool(rng.random() < 0.8)
    turns = [Turn({agent: next(numbers) for agent in pick(rng, pool, 0.6)})]
    seen, ended = set(turns[0].obs), set()
    for _ in range(int(rng.integers(1, 12))):
        if rng.random() < steady and turns[-1].obs.keys() - ended:
            obs = [agent for agent in turns[-1].obs if agent not in ended]
            turn = Turn({a: next(numbers) for a in obs}, {a: quarter(rng) for a in obs}, said=said)
        else:
            free = [agent for agent in pool if agent not in ended]
            obs = {agent: next(numbers) for agent in pick(rng, free, 0.5)}
            turn = Turn(obs, {a: quarter(rng) for a in pick(rng, free, 0.5)}, said=said)
            seen |= set(obs)
            gone = pick(rng, [a for a in pool if a in seen - ended], 0.2)
            cut = int(rng.integers(len(gone) + 1))
            turn.terminated, turn.truncated = gone[:cut], gone[cut:]
            ended |= set(gone)
        turns.append(turn)
    last = turns[-1]
    rest = [agent for agent in POOL if agent in seen - ended]
    if said:
        last.terminated += [ALL] * bool(rng.random() < 0.5)
        last.truncated += [ALL] * (ALL not in last.terminated or bool(rng.random() < 0.2))
    elif rng.random() < 0.5:
        last.terminated += rest
    else:
        last.truncated += rest
    return turns


def pick(rng, pool, share):
    some = [agent for agent in pool if rng.random() < share]
    rng.shuffle(order := np.arange(len(some)))
    return [some[i] for i in order]


def quarter(rng):
    return float(rng.integers(-8, 9)) / 4


class Scripted(MultiAgentEnv):
    """Plays scripts one after another, again and again; reuses one buffer for each agent's observations."""

    possible_agents = POOL

    def __init__(self, script, kind=tuple):
        self.script, self.kind, self.number = script, kind, -1
        self.observation_spaces = {a: SMALL if isinstance(a, str) else LARGE for a in POOL}
        self.action_spaces = dict.fromkeys(POOL, gymnasium.spaces.Discrete(10**6))
        self.buffers = {a: np.zeros(space.shape, np.float32) for a, space in self.observation_spaces.items()}
        self.received = []

    def reset(self, *, seed=None, options=None):
        self.number, self.t = self.number + 1, 0
        return self.look(), {}

    def look(self):
        turn = self.script[self.number % len(self.script)][self.t]
        for agent, number in turn.obs.items():
            self.buffers[agent][:] = number
        return {agent: self.buffers[agent] for agent in turn.obs}

    def step(self, action_dict):
        self.received.append((self.number, self.t, dict(action_dict)))
        self.t += 1
        turn = self.script[self.number % len(self.script)][self.t]
        flags = [{agent: True for agent in names} for names in (turn.terminated, turn.truncated)]
        if turn.said:
            flags[0].setdefault(ALL, False)
        for agent in turn.obs:
            flags[0].setdefault(agent, False)
        return self.kind((self.look(), dict(turn.rewards), *flags, {}))


def told(script, steps, limit=None):
    """Naive: for the reset and each env step of one env, the rows that act next, the final rows, what closes.

    A row is ``(agent, episode, t, number, reward, end)``.
    """
    number, t = 0, 0
    last, owed, ended = dict(script[0][0].obs), defaultdict(float), set()
    found = [([(agent, 0, 0, seen, 0.0, "") for agent, seen in last.items()], [], [])]
    for _ in range(steps):
        t += 1
        turn = script[number % len(script)][t]
        for agent, reward in turn.rewards.items():
            owed[agent] += reward
        last |= turn.obs
        over = ALL in turn.terminated or ALL in turn.truncated or t == limit
        ends = {}
        for agent in last:
            if agent not in ended:
                if agent in turn.terminated or ALL in turn.terminated:
                    ends[agent] = "terminated"
                elif agent in turn.truncated or over:
                    ends[agent] = "truncated"
        ended |= set(ends) | {agent for agent in turn.terminated + turn.truncated if agent != ALL}
        over = over or (not turn.said and bool(last) and not last.keys() - ended)
        gone = [a for a in turn.obs if a in ends] + [a for a in last if a in ends and a not in turn.obs]
        acting = [a for a in turn.obs if a not in ends]
        rows, finals = (
            [(a, number, t, last[a], owed.pop(a, 0.0), ends.get(a, "")) for a in some]
            for some in (acting, gone)
        )
        closed = [(number, t)] if over else []
        if over:
            number, t = number + 1, 0
            last, owed, ended = dict(script[number % len(script)][0].obs), defaultdict(float), set()
            rows += [(agent, number, 0, seen, 0.0, "") for agent, seen in last.items()]
        found.append((rows, finals, closed))
    return found


class Driver:
    """Answers rows as they come and writes down, env by env, what was told at each of its steps."""

    def __init__(self, env, seed=0, share=1.0):
        self.env, self.rng, self.share = env, np.random.default_rng(seed), share
        self.live, self.awaiting = {}, {}
        self.found = [[] for _ in range(env.num_envs)]
        self.sent = [{} for _ in range(env.num_envs)]
        self.polls = []

    def poll(self):
        steps = self.env.poll()
        rows = [{"acting": [], "final": [], "closed": []} for _ in self.found]
        for step in steps:
            assert not {info.slot for info in step.opened} & set(self.live)
            self.live |= {info.slot: info for info in step.opened}
            for end in step.closed:
                rows[end.env]["closed"].append((end.episode, end.length))
        order = [self.follow(step, rows) for step in steps]
        stepped = [i for i, one in enumerate(rows) if any(one.values())]
        for i in stepped:
            self.found[i].append(tuple(rows[i].values()))
        self.polls.append(order)
        return steps

    def follow(self, step, rows):
        ends = np.where(step.terminated, "terminated", np.where(step.truncated, "truncated", ""))
        assert not (step.terminated & step.truncated).any()
        assert step.space == (step.obs.shape[1] == 2)
        assert (step.obs == step.obs[:, :1]).all()
        columns = (step.slot, step.t, step.obs[:, 0], step.reward, ends)
        order = []
        for slot, t, number, reward, end in zip(*(column.tolist() for column in columns), strict=True):
            info = self.live[slot]
            row = (info.agent, info.episode, t, int(number), reward, end)
            rows[info.env]["final" if end else "acting"].append(row)
            order.append((bool(end), info.env))
            if end:
                del self.live[slot]
            else:
                self.awaiting[slot] = (info.env, info.agent, info.episode, t, step.space)
        assert order == sorted(order), "env order, final rows last"
        return order

    def answer(self):
        for space in range(len(self.env.spaces)):
            slots = [slot for slot, who in self.awaiting.items() if who[-1] == space]
            slots = [slot for slot in slots if self.rng.random() < self.share]
            self.rng.shuffle(slots)
            actions = self.rng.integers(0, 10**6, len(slots))
            self.env.send_actions(np.array(slots, np.int64), actions)
            for slot, action in zip(slots, actions.tolist(), strict=True):
                env, agent, number, t, _ = self.awaiting.pop(slot)
                self.sent[env].setdefault((number, t), {})[agent] = action

    def run(self, polls):
        self.poll()
        for _ in range(polls):
            self.answer()
            self.poll()
        return self


def scripts_of(seed, envs=2, episodes=3, steady=0.5):
    rng = np.random.default_rng(seed)
    return [[episode(rng, steady=steady) for _ in range(episodes)] for _ in range(envs)]


def rows_of(scripts, kind=tuple, **options):
    return MultiAgentRows([Scripted(s, kind) for s in scripts], seeds=range(len(scripts)), **options)


def merged(turns):
    """Turns by space, as rows of several pairs come in several columns."""
    return [
        (
            *(
                [row for row in rows if isinstance(row[0], kind)]
                for rows in (acting, final)
                for kind in (str, int)
            ),
            closed,
        )
        for acting, final, closed in turns
    ]
