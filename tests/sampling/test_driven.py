"""The sampler with an env whose rows arrive decided: versions, fragments that end early, awaited episodes."""

import gymnasium
import numpy as np

from steppe import spaces
from steppe.envs.driven import Acted, Began, DrivenRows, Earned, Ended
from steppe.sampling.sampler import Sampler
from steppe.types import DEFAULT_POLICY, SINGLE_AGENT, SpacePair, Weights
from tests.fakes import CountingPolicy

ME = SINGLE_AGENT
PAIR = SpacePair(
    spaces.spec_of(gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32)),
    spaces.spec_of(gymnasium.spaces.Discrete(4)),
)


def sampler_of(env, policy=None, **how):
    sampler = Sampler(
        env,
        {DEFAULT_POLICY: policy or CountingPolicy(PAIR)},
        trained=[DEFAULT_POLICY],
        mapping=lambda info: DEFAULT_POLICY,
        rng=np.random.default_rng(0),
        **{"fragment_length": 10, **how},
    )
    sampler.driven = True
    sampler.set_weights({DEFAULT_POLICY: Weights(9, np.zeros(1))})
    return sampler


def tell(env, id, length, *, over=True, start=0, state=None):
    entries = [] if start else [Began(id)]
    for t in range(start, start + length):
        obs, action = np.array([t], np.float32), np.array([t % 4])
        entries += [Acted(id, ME, "p", t, obs, action, -float(t), 100 + t, state and state(t))]
        entries += [Earned(id, ME, 1.0)]
    env.feed(0, [*entries, Ended(id, False, {})] if over else entries)


def test_rows_keep_the_versions_that_acted_and_nobody_is_asked():
    env, policy = DrivenRows((PAIR,), {ME: 0}), CountingPolicy(PAIR)
    tell(env, "a", 10)
    sample = sampler_of(env, policy).sample()
    (one,) = sample.rollouts
    assert one.version[:10, 0].tolist() == [100 + t for t in range(10)]
    assert one.logp[:10, 0].tolist() == [-float(t) for t in range(10)]
    assert one.action[:10, 0].tolist() == [t % 4 for t in range(10)]
    assert one.reward[:11, 0].tolist() == [0.0] + [1.0] * 10
    assert (one.terminated[:, 0].nonzero()[0].tolist(), one.acted.sum()) == ([10], 10)
    assert (sample.env_steps, sample.agent_steps, policy.calls) == (10, 10, [])


def test_a_fragment_ends_early_where_nobody_comes_and_the_next_one_goes_on():
    env = DrivenRows((PAIR,), {ME: 0}, held_rows=0, idle_timeout=0.05)
    sampler = sampler_of(env)
    assert sampler.sample().env_steps == 0  # before anybody ever came
    tell(env, "a", 4, over=False)
    first = sampler.sample()
    assert first.env_steps == 3
    assert first.rollouts[0].lane_continues[0]
    assert first.rollouts[0].action[:4, 0].tolist() == [0, 1, 2, 3]
    nothing = sampler.sample()
    assert (nothing.env_steps, nothing.rollouts[0].t[0, 0]) == (0, 3)
    tell(env, "a", 3, start=4)
    (one,) = sampler.sample().rollouts
    lane = one.filled.argmax(axis=1)[0]
    assert one.t[:, lane].tolist() == [3, 4, 5, 6, 7]  # the closing row opens it, with its action
    assert one.action[:4, lane].tolist() == [3, 0, 1, 2]
    assert one.version[:4, lane].tolist() == [103, 104, 105, 106]


def test_states_that_came_along_begin_the_next_fragment():
    def state(t):
        return {"count": np.array([50 + t])}

    env = DrivenRows((PAIR,), {ME: 0}, held_rows=0)
    sampler = sampler_of(env, CountingPolicy(PAIR, recurrent=True), fragment_length=3)
    tell(env, "a", 4, over=False, state=state)
    assert sampler.sample().rollouts[0].state0["count"][0] == 1  # what a trajectory begins with
    tell(env, "a", 4, start=4, state=state)
    (one,) = sampler.sample().rollouts
    assert one.t[0, 0] == 3
    assert one.state0["count"][0] == 52  # after row 2: what row 3 was met with


def test_awaited_episodes_are_those_that_began_first():
    env = DrivenRows((PAIR,), {ME: 0}, idle_timeout=0.05)
    env.whole = env.in_order = True
    for length, id in ((5, "a"), (2, "b"), (3, "c"), (1, "d")):
        tell(env, id, length)
    sampler = sampler_of(env, complete_episodes=True)
    sample = sampler.sample_episodes([3])
    assert [(e.episode, e.length, e.reward) for e in sorted(sample.episodes, key=lambda e: e.episode)] == [
        (0, 5, 5.0),
        (1, 2, 2.0),
        (2, 3, 3.0),
    ]
    assert sampler.sample_episodes([1]).episodes == []  # the fourth was played along, and counts for nobody
    assert not sampler.cut_short


def test_whole_episodes_are_sampled_to_their_end():
    env = DrivenRows((PAIR,), {ME: 0}, idle_timeout=0.05, side_by_side=2)
    env.whole = True
    for i in range(6):
        tell(env, str(i), 4)
    sampler = sampler_of(env, complete_episodes=True)
    samples = [sampler.sample() for _ in range(3)]
    assert [sample.env_steps for sample in samples] == [16, 8, 0]
    assert [len(sample.episodes) for sample in samples] == [4, 2, 0]
    assert not any(sample.rollouts[0].lane_continues.any() for sample in samples)
