"""GymEnv: row order, seeding, limits, every kind of bad value with its message, copies.

The shared rules of all adapters are in `test_contract`; here are those that only Gymnasium envs have.
"""

import logging

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.envs.gym import GymEnv
from steppe.errors import ConfigError, EnvError, SpaceError


class Corridor(gymnasium.Env):
    """Walks one field a step; `bad` maps a step number (0: reset) to what is returned or raised there."""

    def __init__(self, end=3, bad=None, space=None):
        self.end, self.bad, self.resets, self.closed = end, bad or {}, [], 0
        self.observation_space = space or spaces.Box(0, 10, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.resets.append(seed)
        self.t = 0
        return self.give((self.look(), {}))

    def step(self, action):
        self.t += 1
        return self.give((self.look(), 1.0, self.t == self.end, False, {}))

    def look(self):
        return np.array([self.t, self.end], np.float32)

    def give(self, result):
        wrong = self.bad.get(self.t, {})
        if isinstance(wrong, Exception):
            raise wrong
        if not isinstance(wrong, dict):
            return wrong
        names = ("obs", "info") if self.t == 0 else ("obs", "reward", "terminated", "truncated", "info")
        return tuple(wrong.get(name, value) for name, value in zip(names, result, strict=True))

    def close(self):
        self.closed += 1


def of(*envs, **options):
    return GymEnv(envs, seeds=[7 + i for i in range(len(envs))], **options)


def act(env, actions=None):
    """Answer every row that awaits an action, and poll."""
    (pending,) = env.pending()
    if actions is None:
        actions = np.zeros(len(pending.slot), np.int64)
    env.send_actions(pending.slot, actions)
    (step,) = env.poll()
    return step


def test_rows_that_await_an_action_come_first_then_the_final_ones():
    env = of(Corridor(2), Corridor(9), Corridor(1))
    (first,) = env.poll()
    assert first.slot.tolist() == [0, 1, 2]
    assert first.t.tolist() == [0, 0, 0]
    step = act(env)
    assert step.slot.tolist() == [0, 1, 5, 2]
    assert step.t.tolist() == [1, 1, 0, 1]
    assert step.reward.tolist() == [1, 1, 0, 1]
    assert step.terminated.tolist() == [False, False, False, True]
    assert step.obs.tolist() == [[1, 2], [1, 9], [0, 1], [1, 1]]
    assert [info[:4] for info in step.opened] == [(5, 2, "agent0", 1)]
    assert step.closed == [(2, 0, 1)]
    step = act(env)
    assert step.slot.tolist() == [3, 1, 2, 0, 5]
    assert step.closed == [(0, 0, 2), (2, 1, 1)]
    assert step.obs.dtype == np.float32


def test_only_the_answered_envs_step_in_env_order():
    env = of(*[Corridor(9) for _ in range(4)])
    env.poll()
    env.send_actions(np.array([3]), np.array([1]))
    env.send_actions(np.array([2, 0]), np.array([0, 0]))
    (step,) = env.poll()
    assert step.slot.tolist() == [0, 2, 3]
    assert env.env_steps == 3
    env.send_actions(np.array([1]), np.array([0]))
    (step,) = env.poll()
    assert (step.slot.tolist(), step.t.tolist()) == ([1], [1])
    assert env.pending()[0].t.tolist() == [1, 1, 1, 1]


def test_each_env_is_seeded_once_with_its_own_seed():
    envs = [Corridor(1), Corridor(2)]
    env = of(*envs)
    assert [info.seed for info in env.poll()[0].opened] == [7, 8]
    for _ in range(4):
        act(env)
    assert [one.resets for one in envs] == [[7, None, None, None, None], [8, None, None]]


def test_an_env_that_samples_from_its_spaces_is_reproducible():
    class Sampler(Corridor):
        def look(self):
            return self.observation_space.sample()

    def obs(seed):
        env = GymEnv([Sampler(), Sampler()], seeds=[seed, 9])
        return env.poll()[0].obs

    np.testing.assert_array_equal(obs(1), obs(1))
    assert (obs(1)[0] != obs(2)[0]).all()
    assert (obs(1)[0] != obs(1)[1]).all()


def test_max_episode_steps_truncates_but_termination_wins():
    env = of(Corridor(2), Corridor(3), max_episode_steps=2)
    env.poll()
    act(env)
    step = act(env)
    assert step.terminated.tolist() == [False, False, True, False]
    assert step.truncated.tolist() == [False, False, False, True]
    with pytest.raises(ConfigError, match="max_episode_steps"):
        of(Corridor(), max_episode_steps=0)


def test_infos_come_by_slot_and_empty_ones_not_at_all():
    env = of(Corridor(1, {0: {"info": {"a": 1}}, 1: {"info": {"b": 2}}}), Corridor(9))
    assert env.poll()[0].info == {0: {"a": 1}}
    assert act(env).info == {0: {"b": 2}, 2: {"a": 1}}


def test_an_info_that_the_env_reuses_is_copied_before_the_reset():
    shared = {}

    class Reuser(Corridor):
        def give(self, result):
            shared["t"] = self.t
            return (*result[:-1], shared)

    env = of(Reuser(1))
    env.poll()
    assert act(env).info == {0: {"t": 1}, 1: {"t": 0}}


NAN, INF = float("nan"), float("inf")
BAD_STEPS = [
    ("E104", {"obs": np.array([0, NAN], np.float32)}, "obs[1]"),
    ("E104", {"obs": np.array([-INF, 0], np.float32)}, "obs[0]"),
    ("E103", {"obs": np.zeros(3, np.float32)}, "obs"),
    ("E103", {"obs": np.zeros((1, 2), np.float32)}, "obs"),
    ("E103", {"obs": 1.0}, "obs"),
    ("E102", {"obs": ["1", "2"]}, "obs"),
    ("E102", {"obs": None}, "obs"),
    ("E102", {"obs": np.array([object(), 1])}, "obs"),
    ("E201", {"reward": NAN}, "reward"),
    ("E201", {"reward": -INF}, "reward"),
    ("E201", {"reward": None}, "reward"),
    ("E201", {"reward": "1.0"}, "reward"),
    ("E201", {"reward": 1j}, "reward"),
    ("E201", {"reward": 10**400}, "reward"),
    ("E201", {"reward": np.ones(1)}, "reward"),
    ("E201", {"reward": [1.0]}, "reward"),
    ("E301", ((0, 0), 1.0), "step"),
    ("E301", (np.zeros(2, np.float32), 1.0, False), "step"),
    ("E301", (np.zeros(2, np.float32), 1.0, False, {}), "step"),
    ("E301", (np.zeros(2, np.float32), 1.0, False, False, {}, 0), "step"),
    ("E301", "abcde", "step"),
    ("E301", None, "step"),
    ("E302", {"terminated": "False"}, "terminated"),
    ("E302", {"truncated": None}, "truncated"),
    ("E302", {"truncated": 2}, "truncated"),
    ("E302", {"terminated": 0.0}, "terminated"),
    ("E302", {"terminated": np.array([False])}, "terminated"),
    ("E303", {"info": None}, "info"),
    ("E303", {"info": [1]}, "info"),
]


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize(("code", "bad", "leaf"), BAD_STEPS)
def test_a_bad_step_is_an_error_that_names_everything(code, bad, leaf, others):
    bad = {2: dict(bad) if isinstance(bad, dict) else bad}
    env = of(*[Corridor() for _ in range(others)], Corridor(9, bad), runner=3)
    env.poll()
    act(env)
    with pytest.raises(EnvError) as caught:
        act(env, np.ones(others + 1, np.int64))
    error = caught.value
    assert (error.code, error.leaf) == (code, leaf)
    assert (error.env_class, error.runner, error.env, error.episode, error.step) == (
        "Corridor",
        3,
        others,
        0,
        2,
    )
    assert (error.seed, error.action) == (7 + others, 1)
    assert "got" in str(error) or "returned" in str(error)


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("E304", {0: np.zeros(2, np.float32)}),
        ("E304", {0: (np.zeros(2, np.float32),)}),
        ("E304", {0: {"info": None}}),
        ("E304", {0: 7}),
        ("E103", {0: {"obs": np.zeros(5, np.float32)}}),
    ],
)
def test_a_bad_reset(code, bad):
    with pytest.raises(EnvError) as caught:
        of(Corridor(bad=bad)).poll()
    assert (caught.value.code, caught.value.step, caught.value.action) == (code, 0, None)


def test_a_bad_reset_after_an_episode_names_the_new_episode():
    class Fails(Corridor):
        def give(self, result):
            return 7 if len(self.resets) == 2 and self.t == 0 else super().give(result)

    class Shapeless(Corridor):
        def look(self):
            return np.zeros(2 + (len(self.resets) == 2 and self.t == 0), np.float32)

    for kind, code in ((Fails, "E304"), (Shapeless, "E103")):
        env = of(Corridor(), kind(1))
        env.poll()
        with pytest.raises(EnvError) as caught:
            act(env)
        error = caught.value
        assert (error.code, error.env, error.episode, error.step, error.action) == (code, 1, 1, 0, None)


@pytest.mark.parametrize("space", [spaces.Discrete(5), spaces.Discrete(5, start=-1)])
@pytest.mark.parametrize(("code", "obs"), [("E102", 1.0), ("E101", 5), ("E102", "1"), ("E102", None)])
def test_a_bad_discrete_observation(space, code, obs):
    env = of(Corridor(9, {0: {"obs": 1}, 1: {"obs": obs}}, space))
    env.poll()
    with pytest.raises(EnvError) as caught:
        act(env)
    assert caught.value.code == code


def test_a_bad_leaf_of_a_dict_is_named_like_python():
    space = spaces.Dict({"cars": spaces.Box(0, 1, (4,)), "me": spaces.Discrete(2)})
    good = {"cars": np.zeros(4, np.float32), "me": 0}
    bad = {"cars": np.array([0, 0, 0, NAN], np.float32), "me": 0}
    env = of(
        Corridor(9, {0: {"obs": good}, 1: {"obs": good}}, space),
        Corridor(9, {0: {"obs": good}, 1: {"obs": bad}}, space),
    )
    env.poll()
    with pytest.raises(EnvError, match=r'obs\["cars"\]\[3\]') as caught:
        act(env)
    assert caught.value.env == 1


def test_what_the_env_raises_comes_out_as_it_is_with_a_note():
    mistake = KeyError("speed")
    env = of(Corridor(), Corridor(bad={1: mistake}), runner=2)
    env.poll()
    with pytest.raises(KeyError) as caught:
        act(env, np.array([0, 1]))
    assert caught.value is mistake
    note = "steppe: Corridor, runner 2, env 1, episode 0, step 1, seed 8, after action 1"
    assert caught.value.__notes__ == [note]
    with pytest.raises(RuntimeError, match="failed before") as again:
        env.poll()
    assert again.value.__cause__ is mistake


def test_what_reset_raises_comes_out_as_it_is():
    mistake = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        of(Corridor(bad={0: mistake})).poll()
    assert caught.value is mistake
    assert caught.value.__notes__ == ["steppe: Corridor, runner 0, env 0, episode 0, step 0, seed 7"]


def test_safe_conversions_are_made_and_said_once(caplog):
    odd = {"obs": [1, 2.5], "reward": 2, "terminated": 0, "truncated": np.bool_(False)}
    env = of(Corridor(9, dict.fromkeys(range(1, 5), odd)), Corridor(9))
    env.poll()
    with caplog.at_level(logging.WARNING, "steppe.envs"):
        for _ in range(3):
            step = act(env)
    assert step.obs.dtype == np.float32
    assert step.obs.tolist() == [[1, 2.5], [3, 9]]
    assert step.reward.tolist() == [2, 1]
    assert not step.terminated.any()
    assert env.health() == {"E106 obs": 3, "E302 terminated": 3}
    assert len(caplog.records) == 2
    assert all("Corridor, runner 0, env 0" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("value", [True, np.float32(1), np.int8(1), np.array(1.0), np.bool_(True), 1])
def test_rewards_of_every_number_type(value):
    env = of(Corridor(9, {1: {"reward": value}}), Corridor(9, {1: {"reward": 0.5}}))
    env.poll()
    step = act(env)
    assert step.reward.tolist() == [1.0, 0.5]
    assert step.reward.dtype == np.float64


def test_rewards_that_cancel_or_overflow_are_judged_one_by_one():
    large = float(np.finfo(np.float32).max)
    env = of(Corridor(9, {1: {"reward": large}}), Corridor(9, {1: {"reward": large}, 2: {"reward": INF}}))
    env.poll()
    assert act(env).reward.tolist() == [large, large]
    with pytest.raises(EnvError, match="E201"):
        act(env)


@pytest.mark.parametrize("reward", [1e39, -1e39, 10**39, np.float64(1e300)])
@pytest.mark.parametrize("terminated", [False, 0])  # plain results, and such as are judged one by one
def test_a_reward_too_large_for_float32_would_be_infinite_where_it_is_learned_from(reward, terminated):
    env = of(Corridor(9, {1: {"reward": reward, "terminated": terminated}}))
    env.poll()
    with pytest.raises(EnvError, match=r"E201.*within the range of float32"):
        act(env)


def test_a_reward_too_large_for_int64_is_a_number_too():
    env = of(Corridor(9, {1: {"reward": 10**30}}))
    env.poll()
    assert act(env).reward.tolist() == [1e30]


def outside(mode, caplog):
    bad = {"obs": np.array([1, 11], np.float32)}
    env = of(Corridor(9), Corridor(9, {1: bad, 2: bad}), on_out_of_space=mode)
    env.poll()
    with caplog.at_level(logging.WARNING, "steppe.envs"):
        act(env)
        step = act(env)
    return env, step


def test_a_value_outside_its_box_is_counted_and_said_once(caplog):
    env, step = outside("warn", caplog)
    assert step.obs.tolist() == [[2, 9], [1, 11]]
    assert env.health() == {"E101 obs[1]": 2}
    (record,) = caplog.records
    assert "obs[1] is 11.0, its bound is 10.0" in record.getMessage()


def test_a_value_outside_its_box_can_be_clipped(caplog):
    env, step = outside("clip", caplog)
    assert step.obs.tolist() == [[2, 9], [1, 10]]
    assert env.health() == {"E101 obs[1]": 2}


def test_a_value_outside_its_box_can_be_refused(caplog):
    with pytest.raises(EnvError, match="on_out_of_space") as caught:
        outside("raise", caplog)
    assert (caught.value.code, caught.value.env, caught.value.step) == ("E101", 1, 1)
    with pytest.raises(ConfigError, match="on_out_of_space"):
        outside("ignore", caplog)


def test_the_counts_of_a_large_image_stay_few():
    space = spaces.Box(0, 0, (200,), np.float32)

    class Roaming(Corridor):
        def look(self):
            return np.eye(200, dtype=np.float32)[self.t]

    env = of(Roaming(999, space=space))
    env.poll()
    for _ in range(150):
        act(env)
    counts = env.health()
    assert len(counts) == 101
    assert sum(counts.values()) == 151
    assert counts["E101 elsewhere"] == 51


def test_an_observation_that_the_env_reuses_is_copied():
    class Reuser(Corridor):
        buffer = np.zeros(2, np.float32)

        def look(self):
            self.buffer[:] = self.t, self.end
            return self.buffer

    env = of(Reuser(1))
    (first,) = env.poll()
    step = act(env)
    assert first.obs.tolist() == [[0, 1]]
    assert step.obs.tolist() == [[0, 1], [1, 1]]


def test_an_action_that_the_env_writes_to_is_its_own():
    class Writer(Corridor):
        def __init__(self):
            super().__init__(9)
            self.action_space = spaces.Box(-1, 1, (2,), np.float32)
            self.got = []

        def step(self, action):
            self.got.append(action.tolist())
            action[:] = 99
            return super().step(action)

    inner = Writer()
    env = of(inner)
    env.poll()
    actions = np.array([[0.25, 0.5]])
    env.send_actions(np.array([0]), actions)
    actions[:] = 7
    env.poll()
    assert inner.got == [[0.25, 0.5]]
    assert env.get_state()["envs"][0]["actions"][0].tolist() == [[0.25, 0.5]]


def test_missing_and_differing_spaces_are_named():
    class Bare(gymnasium.Env):
        pass

    with pytest.raises(SpaceError, match="Bare has no observation_space: set self"):
        of(Bare())
    other = Corridor(space=spaces.Box(0, 9, (2,), np.float32))
    with pytest.raises(ConfigError, match=r"env 1 .* share their spaces"):
        of(Corridor(), other)
    same = spaces.Box(0, 10, (2,), np.float32)
    assert of(Corridor(), other, observation_space=same).num_envs == 2
    with pytest.raises(ValueError, match="1 envs and 2 seeds"):
        GymEnv([Corridor()], seeds=[1, 2])


def test_close_closes_every_env_and_then_raises():
    class Stuck(Corridor):
        def close(self):
            super().close()
            raise OSError("port in use")

    envs = [Stuck(), Corridor(), Stuck()]
    env = of(*envs)
    with pytest.raises(OSError, match="port in use"):
        env.close()
    env.close()
    assert [one.closed for one in envs] == [1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    answered=st.lists(st.sets(st.integers(0, 3)), max_size=12),
)
def test_any_pattern_of_answers_equals_a_loop_over_single_envs(lengths, answered):
    env = of(*[Corridor(end) for end in lengths])
    env.poll()
    t, episode = [0] * len(lengths), [0] * len(lengths)
    n = len(lengths)
    for some in answered:
        chosen = sorted(i for i in some if i < n)
        expected, finals = [], []
        for i in chosen:
            slot = i + n * (episode[i] % 2)
            t[i] += 1
            if t[i] == lengths[i]:
                finals.append((slot, t[i], 1.0, True, t[i]))
                t[i], episode[i] = 0, episode[i] + 1
                expected.append((i + n * (episode[i] % 2), 0, 0.0, False, 0))
            else:
                expected.append((slot, t[i], 1.0, False, t[i]))
        (pending,) = env.pending()
        env.send_actions(pending.slot[chosen], np.zeros(len(chosen), np.int64))
        steps = env.poll()
        got = [
            row
            for step in steps
            for row in zip(step.slot, step.t, step.reward, step.terminated, step.obs[:, 0], strict=True)
        ]
        assert got == expected + finals


def test_envs_that_write_to_one_buffer_are_told_apart():
    class Shared(gymnasium.Env):
        buffer = np.zeros(2, np.float32)

        def __init__(self, number):
            self.number, self.t = number, 0
            self.action_space = gymnasium.spaces.Discrete(2)
            self.observation_space = gymnasium.spaces.Box(-100, 100, (2,), np.float32)

        def look(self):
            self.buffer[:] = self.number, self.t
            return self.buffer

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self.look(), {}

        def step(self, action):
            self.t += 1
            return self.look(), 1.0, self.t >= 2 + self.number, False, {}

    env = GymEnv([Shared(i) for i in range(3)], seeds=[0, 1, 2])
    (step,) = env.poll()
    assert step.obs.tolist() == [[0, 0], [1, 0], [2, 0]]
    for _ in range(2):
        env.send_actions(step.slot[:3], np.zeros(3, np.int64))
        (step,) = env.poll()
    assert step.obs.tolist() == [[0, 0], [1, 2], [2, 2], [0, 2]]
    again = GymEnv([Shared(i) for i in range(3)], seeds=[0, 1, 2])
    assert again.set_state(env.get_state()) == []
    for one in (env, again):
        one.send_actions(step.slot[:3], np.zeros(3, np.int64))
        (after,) = one.poll()
        assert after.obs.tolist() == [[0, 1], [1, 0], [2, 3], [1, 3]]
