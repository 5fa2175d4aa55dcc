"""Every adapter keeps the rules of `types.AsyncEnv`: slots, final rows, rewards, counting, subsets, state.

The env under test says in each observation who it is (env, a token of the episode, step) and what it has
earned, reuses one buffer for all of them, and keeps books of its own. A new kind of env is one line in
`ADAPTERS`.
"""

import json
import sys
from dataclasses import replace
from typing import ClassVar

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pettingzoo import AECEnv, ParallelEnv

from steppe.envs import remote, restarting
from steppe.envs.agents import MultiAgentRows
from steppe.envs.base_env import BaseEnvRows
from steppe.envs.base_view import RowsView
from steppe.envs.copies import make_multi_agent
from steppe.envs.driven import Acted, Began, DrivenRows, Earned, Ended
from steppe.envs.guards import check_answers
from steppe.envs.gym import GymEnv
from steppe.envs.legacy_gym import modern_step, modernize
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.envs.pettingzoo import ParallelPettingZooEnv, PettingZooEnv
from steppe.envs.registry import build
from steppe.envs.vector import VectorEnv, VectorRows
from steppe.spaces import spec_of
from steppe.types import SINGLE_AGENT, EpisodeEnd, SpacePair


class Books:
    """What the envs of one run did, by their own account."""

    def __init__(self):
        self.steps = 0
        self.earned = 0.0


class Counter(gymnasium.Env):
    """Ends at random after 1 to 7 steps, by termination or truncation; earns a random reward per step."""

    def __init__(self, books, index):
        self.books, self.index = books, index
        self.observation_space = gymnasium.spaces.Box(-1e7, 1e7, (4,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.buffer = np.zeros(4, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.token = 0, int(self.np_random.integers(1 << 20))
        self.length = int(self.np_random.integers(1, 8))
        return self.look(0.0), {}

    def step(self, action):
        self.t += 1
        reward = float(self.np_random.normal()) + action
        self.books.steps += 1
        self.books.earned += reward
        over = self.t >= self.length
        return self.look(reward), reward, over and self.length % 2 == 0, over and self.length % 2 == 1, {}

    def look(self, reward):
        self.buffer[:] = self.index, self.token, self.t, reward
        return self.buffer


class OldCounter:
    """The same with the interface of old gym, no base class, lists and ints."""

    def __init__(self, books, index):
        self.inner = Counter(books, index)
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    def seed(self, seed=None):
        gymnasium.Env.reset(self.inner, seed=seed)

    def reset(self):
        return self.inner.reset()[0]

    def step(self, action):
        obs, reward, terminated, truncated, _ = self.inner.step(action)
        return [obs, reward, int(terminated or truncated), {"TimeLimit.truncated": truncated}]

    @property
    def np_random(self):
        return self.inner.np_random


class Known(Counter):
    """Gives and takes its own state."""

    def get_state(self):
        names = ("token", "t", "length")
        return {name: getattr(self, name) for name in names} | {"rng": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.np_random.bit_generator.state = state["rng"]
        self.token, self.t, self.length = state["token"], state["t"], state["length"]


def seeds(n):
    return [100 + i for i in range(n)]


def gym_of(n, books, kind=Counter):
    return GymEnv([kind(books, i) for i in range(n)], seeds=seeds(n))


def legacy_of(n, books):
    old = [modernize(OldCounter(books, i)) for i in range(n)]
    return GymEnv(old, seeds=seeds(n), modern_step=modern_step)


def built_of(n, books):
    return build(lambda ctx: Counter(books, ctx.vector_index), num_envs=n, run_seed=3)


def restarting_of(n, books):
    return restarting.build(lambda ctx: Counter(books, ctx.vector_index), num_envs=n, run_seed=3)


class Fleet(VectorEnv):
    """Counters in one object, which gives and takes its own state."""

    def __init__(self, envs):
        super().__init__(envs[0].observation_space, envs[0].action_space, len(envs))
        self.envs = envs

    def vector_reset(self, *, seeds=None, options=None):
        results = [(env.reset(seed=seed)[0].copy(), {}) for env, seed in zip(self.envs, seeds, strict=True)]
        return [obs for obs, _ in results], [info for _, info in results]

    def reset_at(self, index, *, seed=None, options=None):
        return self.envs[index].reset(seed=seed)

    def vector_step(self, actions):
        return tuple(zip(*[env.step(a) for env, a in zip(self.envs, actions, strict=True)], strict=True))

    def get_state(self):
        return [env.get_state() for env in self.envs]

    def set_state(self, state):
        for env, one in zip(self.envs, state, strict=True):
            env.set_state(one)


class Sync(SyncVectorEnv):
    """Gymnasium's own, with a state: that of its envs, and which of them it resets in the next step."""

    def get_state(self):
        return {"envs": [env.unwrapped.get_state() for env in self.envs], "resets": self._autoreset_envs}

    def set_state(self, state):
        self._autoreset_envs = np.array(state["resets"])
        for env, one in zip(self.envs, state["envs"], strict=True):
            env.unwrapped.set_state(one)


def fleet_of(n, books):
    return VectorRows(Fleet([Known(books, i) for i in range(n)]), seeds=seeds(n))


def wrap_of(n, books):
    return VectorRows(VectorEnv.wrap(lambda i: Known(books, i), num_envs=n), seeds=seeds(n))


def sync_of(mode):
    def factory(n, books):
        makers = [lambda i=i: Known(books, i) for i in range(n)]
        return VectorRows(Sync(makers, copy=False, autoreset_mode=mode), seeds=seeds(n))

    return factory


class Solo(MultiAgentEnv):
    """A counter whose only agent has another name in every env."""

    def __init__(self, inner):
        self.inner, self.agent = inner, f"solo_{inner.index}"
        self.observation_space, self.action_space = inner.observation_space, inner.action_space

    def reset(self, *, seed=None, options=None):
        obs, info = self.inner.reset(seed=seed)
        return {self.agent: obs}, {self.agent: info}

    def step(self, action_dict):
        obs, reward, terminated, truncated, info = self.inner.step(action_dict[self.agent])
        flags = [{"__all__": flag, self.agent: flag} for flag in (terminated, truncated)]
        return {self.agent: obs}, {self.agent: reward}, *flags, {self.agent: info}


class OldSolo(MultiAgentEnv):
    """The same in the older spelling."""

    def __init__(self, inner):
        self.inner, self.agent = inner, f"solo_{inner.index}"
        self.observation_space, self.action_space = inner.observation_space, inner.action_space

    def seed(self, seed=None):
        gymnasium.Env.reset(self.inner, seed=seed)

    def reset(self):
        return {self.agent: self.inner.reset()[0]}

    def step(self, action_dict):
        obs, reward, terminated, truncated, _ = self.inner.step(action_dict[self.agent])
        infos = {self.agent: {"TimeLimit.truncated": truncated}}
        return {self.agent: obs}, {self.agent: reward}, {"__all__": terminated or truncated}, infos


class Together(ParallelEnv):
    """A counter as a PettingZoo env of one."""

    metadata, render_mode = {"name": "together_v0"}, None

    def __init__(self, inner):
        self.inner, self.possible_agents = inner, [f"solo_{inner.index}"]

    def observation_space(self, agent):
        return self.inner.observation_space

    def action_space(self, agent):
        return self.inner.action_space

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        obs, info = self.inner.reset(seed=seed)
        return {self.agents[0]: obs}, {self.agents[0]: info}

    def step(self, actions):
        ((agent, action),) = actions.items()
        five = self.inner.step(action)
        self.agents = [] if five[2] or five[3] else self.agents
        return tuple({agent: part} for part in five)


class Turns(AECEnv):
    """A counter as a game by turns, in which one agent has them all."""

    metadata = {"name": "turns_v0", "render_modes": []}  # noqa: RUF012 - as PettingZoo has it

    def __init__(self, inner):
        super().__init__()
        self.inner, self.possible_agents, self.render_mode = inner, [f"solo_{inner.index}"], None

    def observation_space(self, agent):
        return self.inner.observation_space

    def action_space(self, agent):
        return self.inner.action_space

    def reset(self, seed=None, options=None):
        self.agents, self.agent_selection = list(self.possible_agents), self.possible_agents[0]
        self.seen, info = self.inner.reset(seed=seed)
        self.infos = {self.agent_selection: info}
        zero = {self.agent_selection: 0.0}
        self.rewards, self._cumulative_rewards = dict(zero), dict(zero)
        self.terminations, self.truncations = ({self.agent_selection: False} for _ in range(2))

    def observe(self, agent):
        return self.seen

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self.seen, self.rewards[agent], *flags, self.infos[agent] = self.inner.step(action)
        self.terminations[agent], self.truncations[agent] = flags
        self._accumulate_rewards()


class Parts:
    """Takes the one member out of each group's tuple, so that its rows read like all others."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)

    def poll(self):
        return [replace(step, obs=step.obs[0]) for step in self.env.poll()]

    def pending(self):
        return [replace(step, obs=step.obs[0]) for step in self.env.pending()]

    def send_actions(self, slots, actions):
        self.env.send_actions(slots, (actions,))


def agents_of(n, books):
    return MultiAgentRows([Solo(Counter(books, i)) for i in range(n)], seeds=seeds(n))


def old_agents_of(n, books):
    return MultiAgentRows([OldSolo(Counter(books, i)) for i in range(n)], seeds=seeds(n))


def groups_of(n, books):
    grouped = [Solo(Counter(books, i)).with_agent_groups({"alone": [f"solo_{i}"]}) for i in range(n)]
    return Parts(MultiAgentRows(grouped, seeds=seeds(n)))


def copies_of(n, books):
    made = iter(range(n))
    creator = make_multi_agent(lambda config: Counter(books, next(made)))
    return build(lambda ctx: creator({"num_agents": 1}), num_envs=n, run_seed=3)


def parallel_of(n, books):
    envs = [ParallelPettingZooEnv(Together(Counter(books, i))) for i in range(n)]
    return MultiAgentRows(envs, seeds=seeds(n))


def turns_of(n, books):
    return MultiAgentRows([PettingZooEnv(Turns(Counter(books, i))) for i in range(n)], seeds=seeds(n))


def base_of(n, books):
    return BaseEnvRows(RowsView(gym_of(n, books)), seeds=seeds(n))


class Told:
    """Tells DrivenRows of counters, each of which goes on when its newest row was answered."""

    def __init__(self, envs):
        self.envs, self.begun, self.whose = envs, [0] * len(envs), {}
        self.awaits, self.sent = set(), [(i, None) for i in range(len(envs))]
        pair = SpacePair(spec_of(envs[0].observation_space), spec_of(envs[0].action_space))
        self.rows = DrivenRows((pair,), {}, len(envs), held_rows=0)

    def __getattr__(self, name):
        return getattr(self.rows, name)

    def goes_on(self, i, action):
        """Entries of a counter that begins (None), or takes a step."""
        env, me = self.envs[i], SINGLE_AGENT
        self.begun[i] += action is None
        id, over, entries = f"{i}-{self.begun[i]}", False, []
        if action is None:
            obs, entries = env.reset(seed=i if self.begun[i] == 1 else None)[0], [Began(id)]
        else:
            obs, reward, terminated, truncated, _ = env.step(action)
            over, entries = terminated or truncated, [Earned(id, me, reward)]
        column = obs[None].copy()
        if over:
            return [*entries, Ended(id, truncated, {me: column}), *self.goes_on(i, None)]
        return [*entries, Acted(id, me, "p", env.t, column, np.zeros(1, np.int64), 0.0, 0)]

    def poll(self):
        sent, self.sent = self.sent, []
        for i, action in sent:
            self.rows.feed(i, self.goes_on(i, action))
        steps = self.rows.poll(0.0)
        for step in steps:
            step.opened = [info._replace(seed=info.env) for info in step.opened]
            self.whose |= {info.slot: info.env for info in step.opened}
            np.testing.assert_array_equal(step.decided, ~(step.terminated | step.truncated))
            self.awaits |= set(step.slot[step.decided].tolist())
        return steps

    def send_actions(self, slots, actions):
        if len(actions) != len(slots):
            raise ValueError("another length than the action column")
        check_answers(slots, np.array([slot not in self.awaits for slot in slots.tolist()], np.bool_))
        self.sent += [(self.whose[slot], int(a)) for slot, a in zip(slots.tolist(), actions, strict=True)]
        self.awaits -= set(slots.tolist())

    def set_state(self, state):
        return self.rows.set_state(state)


def told_of(n, books):
    return Told([Counter(books, i) for i in range(n)])


class Far:
    """Envs in processes of their own, whose books are read there after each poll."""

    made: ClassVar = []

    def __init__(self, env, books):
        self.env, self.books = env, books
        self.made.append(env)

    def __getattr__(self, name):
        return getattr(self.env, name)

    def poll(self):
        ray = pytest.importorskip("ray")
        steps = self.env.poll()
        own = ray.get([one.books.remote() for one in self.env.get_sub_environments()])
        self.books.steps, self.books.earned = sum(b.steps for b in own), sum(b.earned for b in own)
        return steps


def remote_of(n, books):
    pytest.importorskip("ray", reason="envs in processes of their own need Ray")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tests are no modules of the processes
    created = remote.build(
        lambda ctx: Counter(Books(), ctx.vector_index),
        num_envs=n,
        run_seed=3,
        rules=remote.Rules(wait_ms=60_000),
    )
    return Far(created, books)


@pytest.fixture(autouse=True)
def _processes_end():
    yield
    while Far.made:
        Far.made.pop().close()


ADAPTERS = [
    ("gym", gym_of),
    ("legacy", legacy_of),
    ("built", built_of),
    ("restarting", restarting_of),
    ("own state", lambda n, books: gym_of(n, books, Known)),
    ("vector", fleet_of),
    ("VectorEnv.wrap", wrap_of),
    ("agents", agents_of),
    ("agents of old", old_agents_of),
    ("groups", groups_of),
    ("make_multi_agent", copies_of),
    ("PettingZoo, together", parallel_of),
    ("PettingZoo, by turns", turns_of),
    ("base env", base_of),
    ("driven", told_of),
    ("remote", remote_of),
    *[(f"gymnasium vector, {mode.value}", sync_of(mode)) for mode in AutoresetMode],
]


def each(adapters):
    """The factories; those that start processes are slow."""
    slow = {remote_of: pytest.mark.slow}
    return [pytest.param(f, id=name, marks=slow.get(f, ())) for name, f in adapters]


adapters = pytest.mark.parametrize("factory", each(ADAPTERS))
exact = [
    (name, f) for name, f in ADAPTERS if f not in (base_of, wrap_of, told_of)
]  # they begin anew, and say so


class Follower:
    """Follows rows as a sampler would, and fails at the first one that breaks a rule."""

    def __init__(self, env):
        self.env = env
        self.live = {}
        self.last_t = {}
        self.awaiting = set()
        self.rewards = 0.0
        self.tokens = {}

    def poll(self):
        steps = self.env.poll()
        for step in steps:
            self.follow(step)
        return steps

    def follow(self, step):
        n = len(step.slot)
        columns = (step.t, step.obs, step.reward, step.terminated, step.truncated)
        assert [len(column) for column in columns] == [n] * 5
        assert len(set(step.slot.tolist())) == n
        opened = {info.slot: info for info in step.opened}
        assert len(opened) == len(step.opened)
        assert not set(opened) & set(self.live)
        self.live |= opened
        ended = []
        for row, slot in enumerate(step.slot.tolist()):
            info = self.live[slot]
            assert step.obs[row, 0] == info.env
            token = self.tokens.setdefault((info.env, info.episode), step.obs[row, 1])
            assert step.obs[row, 1] == token
            assert step.obs[row, 2] == step.t[row]
            assert step.obs[row, 3] == np.float32(step.reward[row])
            assert step.t[row] == (0 if slot in opened else self.last_t[slot] + 1)
            self.last_t[slot] = step.t[row]
            self.awaiting.add(slot)
            if step.terminated[row] or step.truncated[row]:
                assert slot not in opened
                ended.append(EpisodeEnd(info.env, info.episode, int(step.t[row])))
                self.awaiting.remove(slot)
                del self.live[slot]
        assert sorted(ended) == sorted(step.closed)
        living = {info.env for info in self.live.values()}
        if self.env.steps_together:  # some reset an env in the step after its episode's end
            living |= {end.env for end in step.closed}
        assert len(living) == self.env.num_envs
        self.rewards += step.reward.sum()

    def answer(self, rng, share=1.0):
        slots = np.array([slot for slot in sorted(self.awaiting) if rng.random() < share], dtype=np.int64)
        rng.shuffle(slots)
        self.env.send_actions(slots, rng.integers(0, 3, len(slots)))
        self.awaiting -= set(slots.tolist())
        return len(slots)


@adapters
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rows_keep_the_rules_and_the_books(factory, share):
    books, rng = Books(), np.random.default_rng(0)
    env = factory(5, books)
    follower = Follower(env)
    (first,) = follower.poll()
    assert sorted(first.slot) == [0, 1, 2, 3, 4]
    assert len({info.seed for info in first.opened}) == 5
    answered = 0
    for _ in range(300):
        answered += follower.answer(rng, share)
        before = env.env_steps
        waits = env.steps_together and len(follower.awaiting) > 0
        polled = follower.poll()
        assert env.env_steps - before == (0 if waits else answered)
        assert not (waits and polled)
        answered = answered if waits else 0
    assert env.env_steps == books.steps > 300
    assert follower.rewards == pytest.approx(books.earned, abs=1e-9)
    assert len(set(follower.tokens.values())) == len(follower.tokens)
    assert len({info.seed for info in first.opened}) == len(first.opened)


@adapters
def test_a_poll_without_an_answer_is_empty(factory):
    env = factory(2, Books())
    env.poll()
    assert list(env.poll()) == []
    env.send_actions(np.array([], dtype=np.int64), np.array([], dtype=np.int64))
    assert list(env.poll()) == []
    assert env.env_steps == 0


@adapters
def test_a_slot_is_answered_once_and_only_when_it_awaits(factory):
    env, zero = factory(2, Books()), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="poll"):
        env.send_actions(zero, zero)
    env.poll()
    env.send_actions(zero, zero)
    with pytest.raises(ValueError, match="slot 0 awaits no action"):
        env.send_actions(zero, zero)
    with pytest.raises(ValueError, match="slot 1 awaits no action"):
        env.send_actions(zero + 1 + np.zeros(2, np.int64), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="slot 3 awaits no action"):
        env.send_actions(zero + 3, zero)
    with pytest.raises(ValueError, match="action column"):
        env.send_actions(zero, np.zeros(2, np.int64))
    env.send_actions(zero + 1, zero)
    (step,) = env.poll()
    assert len(step.opened) + 2 == len(step.slot)


@adapters
def test_columns_stay_valid_until_the_next_poll(factory):
    env, rng = factory(4, Books()), np.random.default_rng(1)
    follower = Follower(env)
    for _ in range(20):
        (step,) = follower.poll()
        before = [column.copy() for column in (step.slot, step.t, step.obs, step.reward, step.terminated)]
        follower.answer(rng)
        after = (step.slot, step.t, step.obs, step.reward, step.terminated)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)


def visible(step):
    """All of a step, in a form that `==` compares."""
    columns = (step.slot, step.t, step.obs, step.reward, step.terminated, step.truncated)
    return [column.tolist() for column in columns], list(step.opened), list(step.closed), dict(step.info)


@pytest.mark.parametrize("factory", each(exact))
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_a_restored_run_goes_on_bit_by_bit(factory, share):
    env, rng = factory(3, Books()), np.random.default_rng(2)
    follower = Follower(env)
    follower.poll()
    for _ in range(25):
        follower.answer(rng, share)
        follower.poll()
    if env.steps_together:  # is saved when all await an answer
        follower.answer(rng)
        follower.poll()
    state = env.get_state()
    assert json.dumps(state, default=np.ndarray.tolist)  # JSON values and arrays, nothing else
    for _ in range(2):  # a restored run can be saved and restored in its turn
        again = factory(3, Books())
        assert again.set_state(state) == []
        state = again.get_state()
    copy = Follower(again)
    (pending,) = again.pending()
    assert list(again.poll()) == []
    copy.live = {info.slot: info for info in pending.opened}
    assert copy.live == follower.live
    copy.last_t, copy.awaiting, copy.tokens = (
        dict(follower.last_t),
        set(follower.awaiting),
        follower.tokens.copy(),
    )
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(60):
        follower.answer(one, share)
        copy.answer(two, share)
        for a, b in zip(follower.poll(), copy.poll(), strict=True):
            assert visible(a) == visible(b)
    assert again.env_steps == env.env_steps
    assert again.health() == env.health()


@adapters
def test_a_state_from_before_the_first_poll(factory):
    env = factory(2, Books())
    assert env.set_state(factory(2, Books()).get_state()) == []
    assert list(env.pending()) == []
    assert len(env.poll()[0].opened) == 2


@adapters
def test_close_twice(factory):
    env = factory(2, Books())
    env.poll()
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.poll()
