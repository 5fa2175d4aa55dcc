"""The sampler keeps every transition exactly once, with its action, outcome, version, state and identity.

Random scripts of polls are sampled and compared with a naive model (``reference.py``).
"""

import itertools
from collections import Counter
from dataclasses import asdict, fields

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe import checkpoint
from steppe.envs.gym import GymEnv
from steppe.spaces import leaves
from steppe.types import Decision
from tests.fakes import CountingPolicy, LockStepEnv, Row, ScriptedEnv, row_number
from tests.sampling import reference
from tests.sampling.reference import TRAINED, closing_polls, expected, make_sampler, play, switch, transitions
from tests.states import state_hash

scripts = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "envs": st.integers(1, 4),
        "agents": st.sampled_from(["a", "abcd", "ab", "bc", "cd", "abc", "bd"]),
        "polls": st.integers(1, 40),
        "length": st.integers(1, 12),
        "decided": st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    }
)


@given(scripts)
def test_every_transition_is_there_once_and_none_is_invented(drawn):
    run = play(**drawn)
    for policy in TRAINED:
        wanted = expected(run.found, run.closing, policy)
        for rollout, fragment in zip(run.rollouts(policy), wanted, strict=True):
            assert sorted(transitions(rollout)) == sorted(fragment)


@given(scripts)
def test_lanes_hold_trajectories_in_order_and_without_holes(drawn):
    run = play(**drawn)
    place = {row.number: (one, i) for one in run.found for i, row in enumerate(one.rows)}
    for policy in TRAINED:
        before = None
        for rollout in run.rollouts(policy):
            check_lanes(rollout, before, place)
            before = rollout


def check_lanes(rollout, before, place):
    """Each lane: whole trajectories one after another, begun at their first row or by the last lane."""
    number, final = row_number(rollout.obs), rollout.terminated | rollout.truncated
    for lane, count in enumerate(rollout.filled.sum(axis=0)):
        assert rollout.filled[:count, lane].all(), "a hole"
        continued = before is not None and lane < before.filled.shape[1] and before.lane_continues[lane]
        assert count or not continued, "the lane was said to continue"
        assert count or not rollout.lane_continues[lane]
        if not count:
            continue
        if continued:
            closing = before.filled[:, lane].sum() - 1
            assert number[0, lane] == row_number(before.obs)[closing, lane]
        else:
            assert place[number[0, lane]][1] == 0
        for above, below in itertools.pairwise(range(count)):
            one, i = place[number[above, lane]]
            after = one.rows[i + 1].number if not final[above, lane] else number[below, lane]
            assert number[below, lane] == after
            assert not final[above, lane] or place[number[below, lane]][1] == 0
        assert rollout.lane_continues[lane] == (not final[count - 1, lane])


@given(scripts)
def test_unfilled_rows_are_zero_and_obs_are_whole(drawn):
    run = play(**drawn)
    for rollout in [rollout for sample in run.samples for rollout in sample.rollouts]:
        assert rollout.reward.dtype == np.float32
        columns = [*leaves(rollout.obs), rollout.logp, rollout.reward, rollout.terminated, rollout.version]
        columns += [rollout.truncated, rollout.env, rollout.agent, rollout.episode, rollout.t]
        columns += [] if rollout.action is None else leaves(rollout.action)
        for column in columns:
            assert not column[~rollout.filled].any()
        if isinstance(rollout.obs, dict):
            assert rollout.obs["x"].dtype == np.float64
            assert (rollout.obs["x"] == rollout.obs["n"][..., None] * [1, -1]).all()


@given(scripts)
def test_recurrent_state_counts_the_rows_of_its_trajectory(drawn):
    run = play(**drawn)
    place = {row.number: i for one in run.found for i, row in enumerate(one.rows)}
    for id in ("left", "right", "still"):
        assert all(count == 1 + place[number] for number, _, count, _ in run.policies[id].calls)
    for rollout in [rollout for sample in run.samples for rollout in sample.rollouts]:
        if rollout.policy == "other":
            assert rollout.state0 is None
            continue
        for lane in np.flatnonzero(rollout.filled[:1].any(axis=0)):
            assert rollout.state0["count"][lane] == 1 + place[int(rollout.obs[0, lane])]


@given(scripts)
def test_each_row_is_acted_on_once_with_the_newest_weights(drawn):
    run = play(**drawn)
    rows = [(one.policy, row) for one in run.found for row in one.rows if row.action is not None]
    for id, policy in run.policies.items():
        own = {row.number: row for p, row in rows if p == id and not row.decided}
        assert sorted(number for number, *_ in policy.calls) == sorted(own)
        for number, version, _, noise in policy.calls:
            assert version == sum(poll <= own[number].poll for poll in run.closing)
            assert len(noise) == policy.noise_size
            assert all(0.0 < draw < 1.0 for draw in noise)
    assert run.asked == Counter((one.env, one.agent, one.episode) for one in run.found)


@given(scripts)
def test_steps_rewards_and_episodes_are_counted(drawn):
    run = play(**drawn)
    starts = [0, *(poll + 1 for poll in run.closing)]
    for index, (sample, start, end) in enumerate(zip(run.samples, starts, run.closing, strict=False)):
        polls = run.script[start : end + 1]
        assert sample.env_steps == sum(len({row.env for row in rows if row.t > 0}) for rows in polls)
        assert sample.reward == sum(row.reward for rows in polls for row in rows)
        chosen = [
            row.poll + (not row.decided) for one in run.found for row in one.rows if row.action is not None
        ]
        assert sample.agent_steps == sum(start <= poll <= end for poll in chosen)
        for rollout in sample.rollouts:
            assert (rollout.env_steps, rollout.sequence, rollout.runner) == (sample.env_steps, index, 3)
        assert [(e.env, e.episode) for e in sample.episodes] == [
            (row.env, row.episode)
            for rows in polls
            for row in in_spaces(rows)
            if row.ends_episode and row.final
        ]
        for record in sample.episodes:
            check_record(record, run)


def in_spaces(rows):
    """Rows in the order of their TimeSteps."""
    order = list(dict.fromkeys(row.space for row in rows))
    return sorted(rows, key=lambda row: order.index(row.space))


def check_record(record, run):
    own = [one for one in run.found if (one.env, one.episode) == (record.env, record.episode)]
    returns = [(one, sum(row.reward for row in one.rows)) for one in own]
    assert record.length == max(one.rows[-1].t for one in own)
    assert record.reward == sum(earned for _, earned in returns)
    assert record.runner == 3
    agents = {one.agent: sum(e for o, e in returns if o.agent == one.agent) for one in own}
    assert record.agent_rewards == agents
    by_policy = {one.policy: sorted(e for o, e in returns if o.policy == one.policy) for one in own}
    assert {policy: sorted(values) for policy, values in record.policy_rewards.items()} == by_policy


# --- whole episodes ---------------------------------------------------------------------------------------


def lock_step(seed, envs, agents, slow):
    """Envs that wait for their answers, with enough episodes for every test here."""
    parts = reference.tracks(seed, envs=envs, agents=agents, polls=100)
    if slow:  # an env that takes its time, and must not be taken for one that has finished
        parts = [[poll for rows in part for poll in ([], rows)] for part in parts[:1]] + parts[1:]
    return LockStepEnv(parts, pairs=reference.PAIRS)


crowds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "envs": st.integers(1, 4),
        "agents": st.sampled_from(["a", "abcd", "bc"]),
        "slow": st.booleans(),
    }
)


@given(crowds, st.integers(1, 6))
def test_complete_episodes_are_cut_at_their_ends_and_acted_with_one_version(drawn, length):
    env = lock_step(**drawn)
    sampler, _ = make_sampler(env, fragment_length=length, complete_episodes=True)
    samples, closing, goal = [], [], []
    for version in range(3):
        switch(sampler, reference.policies(), version)
        samples.append(sampler.sample())
        closing.append(len(env.played) - 1)
        start = closing[-2] + 1 if version else 0
        goal.append(start + closing_polls(env.played[start:], length * drawn["envs"])[0])
    found = reference.trajectories(env.played, env.answers)
    for policy in TRAINED:
        for version, fragment in enumerate(expected(found, closing, policy)):
            rollout = next(r for r in samples[version].rollouts if r.policy == policy)
            wanted = [transition._replace(version=version) for transition in fragment]
            assert sorted(transitions(rollout)) == sorted(wanted)
            lane = np.flatnonzero(rollout.lane_continues)
            assert not rollout.t[rollout.filled.sum(axis=0)[lane] - 1, lane].any()
    begun = {(row.env, row.episode) for one in found for row in [Begun(one)] if row.acted}
    ended = [(e.env, e.episode) for sample in samples for e in sample.episodes]
    assert sorted(ended) == sorted(begun)
    for start, end in zip(goal, closing, strict=True):  # no episode is begun once the steps are taken
        late = [env.answers[poll].keys() for poll in range(start, end)]
        fresh = [{row.slot for row in env.played[poll] if row.t == 0} for poll in range(start, end)]
        assert not any(set(answered) & new for answered, new in zip(late, fresh, strict=True))


class Begun:
    """The episode of a trajectory, and whether anything was done in it."""

    def __init__(self, one):
        self.env, self.episode = one.env, one.episode
        self.acted = any(row.action is not None for row in one.rows)


@given(crowds, st.data())
def test_quotas_of_episodes_are_kept_per_env(drawn, data):
    env = lock_step(**drawn)
    sampler, _ = make_sampler(env, fragment_length=1)
    begun = Counter()
    for _ in range(2):
        quota = data.draw(st.lists(st.integers(0, 3), min_size=drawn["envs"], max_size=drawn["envs"]))
        sample = sampler.sample_episodes(quota)
        for index, wanted in enumerate(quota):
            ended = [record.episode for record in sample.episodes if record.env == index]
            assert ended == list(range(begun[index], begun[index] + wanted))
            begun[index] += wanted


def test_open_episodes_are_finished_before_the_quota_counts():
    def step(t, slot, **flags):
        return Row(slot, t, obs=float(10 * slot + t), reward=1.0, episode=slot, **flags)

    track = [
        [step(0, 0)],
        [step(1, 0)],
        [step(2, 0, terminated=True), step(0, 1)],
        [step(1, 1, truncated=True), step(0, 2)],
    ]
    env = LockStepEnv([track])
    sampler, _ = make_sampler(
        env, {"left": CountingPolicy(env.spaces[0])}, fragment_length=1, trained=["left"]
    )
    assert sampler.sample().episodes == []
    sample = sampler.sample_episodes([1])
    assert [(e.episode, e.length, e.reward) for e in sample.episodes] == [(0, 2, 3.0), (1, 1, 2.0)]
    # Earned in this sample: one at t = 2, one at each reset row that follows, one at the truncated row.
    assert (sample.reward, sample.env_steps, sample.agent_steps) == (4.0, 2, 2)


# --- acting -----------------------------------------------------------------------------------------------


class Extremes(np.random.Generator):
    """Draws the smallest and the largest number that a float32 stream can give."""

    def random(self, size, dtype):
        draws = np.zeros(size, dtype)
        draws[:, 1:] = 1 - 2.0**-24
        return draws


def one_agent(**options):
    script = [[Row(0, t, obs=float(t + 1), reward=1.0)] for t in range(4)]
    env = ScriptedEnv(script)
    policy = CountingPolicy(env.spaces[0])
    options = {"fragment_length": 3, "trained": ["left"], **options}
    return env, policy, make_sampler(env, {"left": policy}, **options)[0]


def test_noise_lies_in_the_open_interval():
    _, policy, sampler = one_agent(rng=Extremes(np.random.PCG64(0)))
    sampler.sample()
    assert [noise for *_, noise in policy.calls] == [(2.0**-25, 1 - 2.0**-24)] * 3


def test_greedy_acting_draws_no_noise():
    rng = np.random.default_rng(0)
    _, policy, sampler = one_agent(rng=rng, explore=False)
    before = rng.bit_generator.state
    sampler.sample()
    assert [noise for *_, noise in policy.calls] == [None] * 3
    assert rng.bit_generator.state == before


def test_own_samples_are_kept_and_env_actions_are_sent():
    env, _, sampler = one_agent(explore=False)
    (rollout,) = sampler.sample().rollouts
    assert rollout.action[:, 0].tolist() == [0, 0, 0, 0]
    assert env.answers == [{0: 1}, {0: 1}, {0: 1}, {}]


def test_untrained_policies_act_but_leave_no_rollout():
    _, policy, sampler = one_agent(trained=[])
    sample = sampler.sample()
    assert sample.rollouts == []
    assert (sample.agent_steps, sample.env_steps, sample.reward) == (3, 3, 4.0)
    assert len(policy.calls) == 3


def test_weights_are_handed_out_as_the_policy_loaded_them():
    _, _, sampler = one_agent()
    switch(sampler, ["left"], 7)
    assert sampler.weights_of("left") == 7


def test_a_decision_without_recurrent_state_is_counted_and_written():
    decision = Decision(np.array([3]), np.array([-2.0], np.float32))
    script = [[Row(0, 0, obs=1.0)], [Row(0, 1, obs=2.0, decision=decision)], [Row(0, 2, obs=3.0)]]
    env = ScriptedEnv(script)
    policies = {"left": CountingPolicy(env.spaces[0])}
    sampler, _ = make_sampler(env, policies, fragment_length=2, trained=["left"], explore=False)
    sample = sampler.sample()
    assert sample.agent_steps == 2
    assert sample.rollouts[0].action[:, 0].tolist() == [0, 3, 0]
    assert sample.rollouts[0].logp[:, 0].tolist() == [-1.0, -2.0, 0.0]
    assert env.answers == [{0: 1}, {}, {}]


# --- going on exactly -------------------------------------------------------------------------------------


def fingerprint(sample):
    """Everything in a sample but its times."""
    rollouts = [{f.name: getattr(r, f.name) for f in fields(r)} for r in sample.rollouts]
    episodes = [asdict(episode) for episode in sample.episodes]
    counts = [sample.env_steps, sample.agent_steps, sample.reward]
    return state_hash({"rollouts": rollouts, "episodes": episodes, "counts": counts})


def assert_goes_on(make, before, after, folder=None):
    """Fresh and used samplers do what the first one does: from one state, and out of a checkpoint."""
    first = make()
    for _ in range(before):
        first.sample()
    saved = loaded = first.get_state()
    if folder is not None:
        checkpoint.save(folder / "state", {"sampler": saved}, {"run_id": "test"})
        loaded = checkpoint.load(folder / "state")[0]["sampler"]
        assert state_hash(loaded) == state_hash(saved)
    wanted = [fingerprint(first.sample()) for _ in range(after)]
    end = state_hash(first.get_state())
    for again, state in ((make(), saved), (make(), loaded), (first, saved)):
        assert again.set_state(state) == []
        assert state_hash(again.get_state()) == state_hash(saved)
        assert [fingerprint(again.sample()) for _ in range(after)] == wanted
        assert state_hash(again.get_state()) == end


@settings(max_examples=25)
@given(scripts, st.data())
def test_a_restored_sampler_goes_on_bit_by_bit(drawn, data):
    length, decided = drawn.pop("length"), drawn.pop("decided")
    script = reference.interleaved(drawn["seed"], reference.tracks(**drawn, decided=decided))
    fragments = len(closing_polls(script, length * drawn["envs"]))
    before = data.draw(st.integers(0, fragments))

    def make():
        env = ScriptedEnv(script, pairs=reference.PAIRS, num_envs=drawn["envs"])
        return make_sampler(env, fragment_length=length)[0]

    assert_goes_on(make, before, fragments - before)


@settings(max_examples=10)
@given(crowds)
def test_a_restored_sampler_of_whole_episodes_goes_on_bit_by_bit(drawn):
    def make():
        return make_sampler(lock_step(**drawn), fragment_length=3, complete_episodes=True)[0]

    assert_goes_on(make, 2, 2)


@pytest.mark.parametrize("complete", [False, True])
def test_a_crowd_goes_on_bit_by_bit_out_of_a_checkpoint(tmp_path, complete):
    def make():
        env = lock_step(3, envs=3, agents="abcd", slow=True)
        return make_sampler(env, fragment_length=5, complete_episodes=complete)[0]

    assert_goes_on(make, 2, 2, tmp_path)


class Coin:
    """Goes left or right as its noise says; remembers the noise of the row before."""

    noise_size = 1

    def __init__(self, pair):
        self.observation, self.action = pair

    def load(self, weights):
        return weights.version

    def act(self, weights, obs, state, noise):
        drawn = noise[:, 0]
        return Decision((drawn > 0.5).astype(np.int64), np.log(np.float32(0.5)) + 0 * drawn, (drawn,))

    def to_env(self, action):
        return action

    def initial_state(self, n):
        return (np.full(n, 0.5, np.float32),)


def gym_sampler(envs, **options):
    env = GymEnv(envs, seeds=range(len(envs)))
    return make_sampler(env, {"left": Coin(env.spaces[0])}, trained=["left"], **options)[0]


@pytest.mark.parametrize("complete", [False, True])
def test_gym_envs_go_on_bit_by_bit(tmp_path, complete):
    def make():
        envs = [gymnasium.make("CartPole-v1") for _ in range(3)]
        return gym_sampler(envs, fragment_length=20, complete_episodes=complete)

    assert_goes_on(make, 2, 3, tmp_path)


class Walk(gymnasium.Env):
    """Ten steps, one reward each; with ``luck`` its observations come from nowhere and cannot be replayed."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, luck):
        self._luck = luck

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t = 0
        return self._observe(), {}

    def step(self, action):
        self._t += 1
        return self._observe(), 1.0, self._t == 10, False, {}

    def _observe(self):
        return np.float64(next(LUCK) if self._luck else self._t)


LUCK = itertools.count(1000)


@pytest.mark.parametrize("lost", [[True, False], [True, True]])
def test_rows_of_an_episode_that_cannot_be_replayed_are_unfilled(lost):
    first = gym_sampler([Walk(luck) for luck in lost], fragment_length=7)
    before = first.sample()
    again = gym_sampler([Walk(luck) for luck in lost], fragment_length=7)
    notes = again.set_state(first.get_state())
    assert len(notes) == sum(lost)
    assert all("E402" in note for note in notes)
    open_lanes = again.get_state()["lanes"][0]["columns"]["identity"].tolist()
    assert sorted(open_lanes) == sorted([i, 0, int(luck), 0 if luck else 7] for i, luck in enumerate(lost))

    sample = again.sample()
    (rollout,) = sample.rollouts
    assert (before.reward, sample.reward, sample.env_steps) == (14.0, 14.0, 14)
    ended = [] if all(lost) else [(1, 0, 10, 10.0)]
    assert [(e.env, e.episode, e.length, e.reward) for e in sample.episodes] == ended
    lane = {int(env): i for i, env in enumerate(rollout.env[0])}
    for env, luck in enumerate(lost):
        column = rollout.t[rollout.filled[:, lane[env]], lane[env]].tolist()
        assert column == ([*range(8)] if luck else [7, 8, 9, 10, 0, 1, 2, 3, 4])
        assert rollout.episode[:8, lane[env]].tolist() == ([1] * 8 if luck else [0, 0, 0, 0, 1, 1, 1, 1])
        assert rollout.state0[0][lane[env]] == 0.5 or not luck


def test_a_lost_episode_takes_its_silent_agents_along():
    def row(slot, t, number, env=0, agent="a", **more):
        return Row(slot, t, obs=float(number), reward=1.0, env=env, agent=agent, **more)

    begun = [
        [row(0, 0, 1), row(1, 0, 2, agent="b"), row(2, 0, 3, env=1)],
        [row(0, 1, 4), row(2, 1, 5, env=1)],  # the agent in slot 1 is silent, its action under way
    ]
    anew = [
        [row(2, 0, 3, env=1)],
        [row(0, 0, 6, episode=1), row(2, 1, 5, env=1)],
        [row(0, 1, 7, episode=1), row(1, 1, 8, agent="b", episode=1), row(2, 2, 9, env=1)],
    ]
    first, _ = make_sampler(ScriptedEnv(begun, num_envs=2), fragment_length=1, explore=False, **ONE)
    before = first.sample()
    again, _ = make_sampler(ScriptedEnv(anew, num_envs=2), fragment_length=1, explore=False, **ONE)
    again.set_state(first.get_state())
    sample = again.sample()
    (rollout,) = sample.rollouts
    assert {(t.number, t.outcome) for t in transitions(before.rollouts[0])} == {(1, 4), (3, 5)}
    assert {(t.number, t.outcome, t.episode) for t in transitions(rollout)} == {(6, 7, 1), (5, 9, 0)}
    assert sorted(row_number(rollout.obs)[rollout.filled]) == [5, 6, 7, 8, 9]
    assert not rollout.obs[~rollout.filled].any()
    # The fresh row at t = 0 counts like any other; what the lost episode earned stays counted.
    assert (before.reward, sample.reward) == (5.0, 4.0)


ONE = {
    "players": {"left": CountingPolicy(reference.PAIRS[0], recurrent=True)},
    "trained": ["left"],
    "mapping": lambda info: "left",
}


@pytest.mark.parametrize("whole_episodes", [False, True])
def test_a_fragment_that_was_cut_short_is_neither_gone_on_with_nor_saved(monkeypatch, whole_episodes):
    def interrupted(*_):
        raise KeyboardInterrupt

    sampler, twin = (
        gym_sampler([gymnasium.make("CartPole-v1") for _ in range(2)], fragment_length=5) for _ in range(2)
    )

    def go():
        return sampler.sample_episodes([1, 1]) if whole_episodes else sampler.sample()

    sampler.sample()
    state = sampler.get_state()
    twin.set_state(state)
    with monkeypatch.context() as patch:
        patch.setattr(Coin, "act", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go()
    for call in (go, sampler.get_state):
        with pytest.raises(RuntimeError, match="interrupted before"):
            call()
    sampler.set_state(state)
    assert fingerprint(sampler.sample()) == fingerprint(twin.sample())
