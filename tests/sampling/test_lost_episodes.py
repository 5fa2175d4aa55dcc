"""Episodes of envs that fail: what is kept of them, what is unfilled, and that every step is counted once.

Envs of random lives keep a journal of what they gave; a naive model says from that what must come of it.
"""

import itertools
from collections import defaultdict

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.buffers.replay import Replay
from steppe.envs import restarting
from steppe.learning.minibatches import stitch
from steppe.spaces import spec_of
from steppe.types import SpacePair
from tests.fakes import CountingPolicy, row_number
from tests.sampling.reference import make_sampler, switch

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32)
PAIR = SpacePair(spec_of(BOX), spec_of(gymnasium.spaces.Discrete(5)))


class Journal:
    """What the envs of a run gave, by their own account.

    Attributes:
        rows: by number: (env, life, episode), env step, and the fragment it fell into.
        steps: by fragment and episode, steps that returned.
        lost: by episode, the fragment in which it was lost.
        over: episodes that came to their end.
    """

    def __init__(self, seed, failing):
        self.rng, self.failing = np.random.default_rng(seed), failing
        self.fragment, self.rows = 0, {}
        self.steps, self.lost, self.over = defaultdict(int), {}, set()
        self.lives = defaultdict(int)

    def write(self, key, t):
        number = len(self.rows) + 1
        self.rows[number] = key, t, self.fragment
        return np.float32(number)

    def episodes(self):
        """Numbers of the rows of each episode."""
        found = defaultdict(list)
        for number, (key, _, _) in self.rows.items():
            found[key].append(number)
        return found

    def fails(self, share=1.0):
        return self.rng.random() < self.failing * share


class Mortal(gymnasium.Env):
    """Raises, or returns bad data, at random; never twice in the same way without a step between."""

    def __init__(self, ctx, journal):
        self.journal, self.index = journal, ctx.vector_index
        self.life = journal.lives[self.index]
        journal.lives[self.index] += 1
        self.observation_space, self.action_space = BOX, gymnasium.spaces.Discrete(5)
        self.episode, self.key, self.t = -1, None, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.key is not None and self.journal.fails(0.3):
            self.journal.over.discard(self.key)  # its last row never came
            self.journal.lost[self.key] = self.journal.fragment
            raise OSError(f"no reset {self.index} {self.life}")
        self.episode, self.t = self.episode + 1, 0
        self.key, self.length = (self.index, self.life, self.episode), int(self.journal.rng.integers(1, 12))
        return self.journal.write(self.key, 0), {}

    def step(self, action):
        journal = self.journal
        self.t += 1
        if self.t > 1 and journal.fails():
            journal.lost[self.key] = journal.fragment
            raise OSError(f"no step {self.index} {self.life}")
        journal.steps[journal.fragment, self.key] += 1
        if self.t > 1 and journal.fails(0.5):
            journal.lost[self.key] = journal.fragment
            return np.float32(np.nan), 1.0, False, False, {}
        over = self.t >= self.length
        if over:
            journal.over.add(self.key)
        return journal.write(self.key, self.t), 1.0, over, False, {}


def sampled(seed, envs, length, fragments, failing, recurrent=True):
    journal = Journal(seed, failing)
    env = restarting.build(lambda ctx: Mortal(ctx, journal), num_envs=envs, run_seed=seed)
    policy = CountingPolicy(PAIR, recurrent=recurrent)
    sampler, _ = make_sampler(env, {"left": policy}, fragment_length=length, trained=["left"])
    samples = []
    for version in range(fragments):
        journal.fragment = version
        switch(sampler, {"left": policy}, version)
        samples.append(sampler.sample())
    return journal, samples, policy, sampler


def delivered(journal):
    """By episode, the rows that are kept by fragments: those of an episode before it was lost, or all."""
    kept = {}
    for key, numbers in journal.episodes().items():
        lost = journal.lost.get(key, 10**9)
        kept[key] = [number for number in numbers if journal.rows[number][2] < lost]
    return kept


runs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "envs": st.integers(1, 4),
        "length": st.integers(1, 9),
        "fragments": st.integers(1, 6),
        "failing": st.sampled_from([0.0, 0.05, 0.2]),
    }
)


@given(runs)
def test_every_step_is_counted_once_and_lost_rows_are_unfilled(drawn):
    journal, samples, _, _ = sampled(**drawn)
    kept = delivered(journal)
    for fragment, sample in enumerate(samples):
        (rollout,) = sample.rollouts
        assert sample.env_steps == sum(n for (f, _), n in journal.steps.items() if f == fragment)
        lost = sum(n for (f, key), n in journal.steps.items() if f == journal.lost.get(key) == fragment)
        assert sample.discarded == ({"env_error": lost} if fragment in journal.lost.values() else {})
        wanted = [
            (above, below)
            for numbers in kept.values()
            for above, below in itertools.pairwise(numbers)
            if journal.rows[below][2] == fragment
        ]
        number = row_number(rollout.obs)
        found = [
            (number[at], number[at[0] + 1, at[1]]) for at in zip(*np.nonzero(rollout.acted), strict=True)
        ]
        assert sorted(found) == sorted(wanted)
        assert len(found) == sample.env_steps - lost  # of one agent
        counts = rollout.filled.sum(axis=0)
        for lane, count in enumerate(counts):
            assert rollout.filled[:count, lane].all(), "a hole"
            assert rollout.lane_continues[lane] <= (count > 0)
        ended = [r.env for r in sample.episodes]
        assert len(ended) == sum(
            journal.rows[numbers[-1]][2] == fragment for key, numbers in kept.items() if key in journal.over
        )


@given(runs)
def test_memories_begin_anew(drawn):
    journal, samples, policy, _ = sampled(**drawn)
    for number, _, count, _ in policy.calls:
        assert count == journal.rows[number][1] + 1
    for sample in samples:
        (rollout,) = sample.rollouts
        for lane in np.flatnonzero(rollout.filled[:1].any(axis=0)):
            number = int(row_number(rollout.obs)[0, lane])
            assert rollout.state0["count"][lane] == journal.rows[number][1] + 1


@given(runs)
def test_what_was_cut_off_is_truncated_where_fragments_are_joined(drawn):
    journal, samples, _, _ = sampled(**drawn, recurrent=False)
    joined = stitch([sample.rollouts[0] for sample in samples])
    number, final = row_number(joined["obs"]), joined["terminated"] | joined["truncated"]
    acted = joined["filled"][:-1] & joined["filled"][1:] & ~final[:-1]
    pairs = {(int(number[at]), int(number[at[0] + 1, at[1]])) for at in zip(*np.nonzero(acted), strict=True)}
    kept = delivered(journal)
    assert pairs == {pair for numbers in kept.values() for pair in itertools.pairwise(numbers)}
    cut = {int(n) for n in number[joined["truncated"]]}
    assert cut == {kept[key][-1] for key in journal.lost if kept[key]}


@given(runs, st.sampled_from([1, 3]))
def test_replay_knows_where_a_lost_episode_was_cut_off(drawn, n_step):
    journal, samples, _, _ = sampled(**drawn, recurrent=False)
    replay = Replay(10_000, n_step=n_step, gamma=0.5)
    for sample in samples:
        replay.add(sample.rollouts[0])
    wanted = set()
    for key, numbers in delivered(journal).items():
        whole, last = key in journal.over or key in journal.lost, len(numbers) - 1
        for at in range(last):
            end = min(at + n_step, last)
            if end == at + n_step or whole:
                steps = end - at
                ends = key in journal.over and end == last
                discount = 0.0 if ends else 0.5**steps
                wanted.add((numbers[at], numbers[end], sum(0.5**k for k in range(steps)), discount))
    assert len(replay) == len(wanted)
    if wanted:
        index = np.array(sorted(replay.get_state()["ready"]))
        rows = replay.columns(index)
        columns = [rows[name].tolist() for name in ("obs", "next_obs", "reward", "discount")]
        assert set(zip(*columns, strict=True)) == wanted


@pytest.mark.parametrize("seed", range(6))
def test_others_are_played_for_awaited_episodes_that_are_lost(seed):
    journal, _, _, sampler = sampled(seed, envs=3, length=4, fragments=1, failing=0.1)
    journal.fragment, before = 1, set(journal.over)
    sample = sampler.sample_episodes([2, 0, 5])
    assert journal.lost
    played = [(record.env, record.length) for record in sample.episodes]
    open_before = [
        key[0] for key in journal.over - before if journal.rows[journal.episodes()[key][0]][2] == 0
    ]
    whole = [
        (key[0], len(numbers) - 1)
        for key, numbers in journal.episodes().items()
        if key in journal.over - before
    ]
    assert sorted(played) == sorted(whole)
    ends = [env for env, _ in played]
    assert [ends.count(i) - open_before.count(i) for i in range(3)] == [2, 0, 5]


def test_complete_episodes_do_without_those_that_are_lost():
    journal = Journal(3, 0.1)
    env = restarting.build(lambda ctx: Mortal(ctx, journal), num_envs=3, run_seed=0)
    policy = CountingPolicy(PAIR)
    sampler, _ = make_sampler(
        env, {"left": policy}, fragment_length=5, trained=["left"], complete_episodes=True
    )
    for fragment in range(12):
        journal.fragment = fragment
        sample = sampler.sample()
        (rollout,) = sample.rollouts
        acted = int(rollout.acted.sum())
        assert acted == sum(record.length for record in sample.episodes)
        assert sample.env_steps == acted + sample.discarded.get("env_error", 0)
    assert len(journal.lost) > 5


class Crowd(steppe.MultiAgentEnv):
    """Agents by turns, one or two at a time, one of whom may end early; somebody always observes."""

    def __init__(self, ctx, journal):
        self.inner = Mortal(ctx, journal)
        self.observation_space, self.action_space = BOX, gymnasium.spaces.Discrete(5)
        self.possible_agents = ["a", "b", "c"]

    def reset(self, *, seed=None, options=None):
        obs, _ = self.inner.reset(seed=seed)
        self.gone = False
        return {"a": obs, "b": obs}, {}

    def step(self, actions):
        obs, reward, over, _, _ = self.inner.step(0)
        turn = self.inner.t % 3
        who = ["a"] if turn == 1 else ["a", "b"] if turn == 2 and not self.gone else ["c"]
        ends = {"__all__": over}
        if turn == 2 and not self.gone:
            self.gone = ends["b"] = True
        return dict.fromkeys(who, obs), dict.fromkeys(who, reward), ends, {"__all__": False}, {}


@given(runs)
def test_env_steps_are_counted_and_not_rows(drawn):
    drawn = dict(drawn)
    journal = Journal(drawn["seed"], drawn["failing"])
    env = restarting.build(lambda ctx: Crowd(ctx, journal), num_envs=drawn["envs"], run_seed=0)
    policy = CountingPolicy(PAIR, recurrent=True)
    sampler, _ = make_sampler(env, {"left": policy}, fragment_length=drawn["length"], trained=["left"])
    for fragment in range(drawn["fragments"]):
        journal.fragment = fragment
        sample = sampler.sample()
        (rollout,) = sample.rollouts
        assert sample.env_steps == sum(n for (f, _), n in journal.steps.items() if f == fragment)
        lost = sum(n for (f, key), n in journal.steps.items() if f == journal.lost.get(key) == fragment)
        assert sample.discarded.get("env_error", 0) == lost
        # Of an episode that was lost, only "b" is there, and only if it had ended.
        gone = {key for key, at in journal.lost.items() if at == fragment}
        for row, lane in zip(*np.nonzero(rollout.filled), strict=True):
            key = journal.rows[int(row_number(rollout.obs)[row, lane])][0]
            assert key not in gone or rollout.agents[rollout.agent[row, lane]] == "b"
