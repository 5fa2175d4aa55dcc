"""Vector envs give the same rows as the same envs one by one, in every mode, and say what is wrong.

The rules that all adapters share are in `test_contract`.
"""

import logging

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe.envs import registry
from steppe.envs.batch_values import batched, filler
from steppe.envs.gym import GymEnv
from steppe.envs.registry import build
from steppe.envs.vector import VectorEnv, VectorRows
from steppe.errors import CheckpointError, ConfigError, EnvError, SpaceError
from steppe.sampling.sampler import Sampler
from steppe.spaces import contains, rows, spec_of, take
from steppe.types import DEFAULT_POLICY, Decision, Weights
from tests.states import diff

MODES = list(AutoresetMode)


class Scripted(gymnasium.Env):
    """Plays episodes of given lengths and ends by turns; its observation says where it is and what was done.

    ``infos`` are given at every third step and every second reset only; one buffer holds all observations.
    """

    def __init__(self, index, episodes):
        self.index, self.episodes, self.at = index, episodes, -1
        self.observation_space = spaces.Box(-1e6, 1e6, (4,), np.float32)
        self.action_space = spaces.Discrete(3, start=1)
        self.buffer, self.resets, self.closed = np.zeros(4, np.float32), [], 0

    def reset(self, *, seed=None, options=None):
        self.resets.append(seed)
        self.at, self.t = self.at + 1, 0
        return self.look(0), ({"begun": self.at} if self.at % 2 else {})

    def step(self, action):
        assert self.action_space.contains(int(action))
        self.t += 1
        length, terminates = self.episodes[self.at % len(self.episodes)]
        over = self.t >= length
        info = {"t": self.t, "deep": {"at": self.at}} if self.t % 3 == 0 else {}
        return self.look(action), self.t + action / 8, over and terminates, over and not terminates, info

    def look(self, action):
        self.buffer[:] = self.index, self.at, self.t, action
        return self.buffer

    def close(self):
        self.closed += 1


class Fleet(VectorEnv):
    """Any envs in one object, in today's spelling."""

    def __init__(self, envs):
        super().__init__(envs[0].observation_space, envs[0].action_space, len(envs))
        self.envs, self.seeds, self.restarted = envs, None, []

    def vector_reset(self, *, seeds=None, options=None):
        self.seeds = seeds
        both = [env.reset(seed=seed) for env, seed in zip(self.envs, seeds, strict=True)]
        return [obs for obs, _ in both], [info for _, info in both]

    def reset_at(self, index, *, seed=None, options=None):
        return self.envs[index].reset(seed=seed)

    def restart_at(self, index):
        self.restarted.append(index)

    def vector_step(self, actions):
        return tuple(zip(*[env.step(a) for env, a in zip(self.envs, actions, strict=True)], strict=True))

    def get_sub_environments(self):
        return self.envs


class OldFleet(Fleet):
    """The same in the older spelling, with arrays where there may be arrays."""

    def vector_reset(self):
        return [env.reset()[0] for env in self.envs]

    def reset_at(self, index):
        return self.envs[index].reset()[0]

    def vector_step(self, actions):
        obs, rewards, terminated, truncated, infos = super().vector_step(actions)
        for info, cut in zip(infos, truncated, strict=True):
            info.update({"TimeLimit.truncated": True} if cut else {})
        return np.array(obs), np.array(rewards), np.array(terminated) | np.array(truncated), list(infos)


def sync(envs, mode, **options):
    return SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=mode, **options)


def vector_of(env, **options):
    return VectorRows(env, seeds=[7 + i for i in range(env.num_envs)], **options)


def act(env, choose=lambda info, t: 1 + (info.env + info.episode + t) % 3):
    """Answer every row that awaits an action, by who lives there, and poll."""
    waiting = env.pending()
    if waiting:
        (now,) = waiting
        who = {info.slot: info for info in now.opened}
        actions = [choose(who[slot], t) for slot, t in zip(now.slot.tolist(), now.t.tolist(), strict=True)]
        env.send_actions(now.slot, np.array(actions))
    (step,) = env.poll()
    return step


def visible(step):
    columns = (step.slot, step.t, step.obs, step.reward, step.terminated, step.truncated)
    return [column.tolist() for column in columns], list(step.opened), list(step.closed), dict(step.info)


def trajectories(env, polls):
    """Every row by (env, episode), in order; ends and beginnings are checked on the way."""
    live, found, lengths = {}, {}, {}
    steps = [env.poll()[0]] + [act(env) for _ in range(polls)]
    for step in steps:
        live |= {info.slot: (info.env, info.episode) for info in step.opened}
        for row, slot in enumerate(step.slot.tolist()):
            final = bool(step.terminated[row]), bool(step.truncated[row])
            told = dict(step.info.get(slot, {}))
            values = int(step.t[row]), step.obs[row].tolist(), float(step.reward[row]), final, told
            found.setdefault(live[slot], []).append(values)
            if any(final):
                del live[slot]
        lengths |= {(end.env, end.episode): end.length for end in step.closed}
    for key, length in lengths.items():
        assert [values[0] for values in found[key]] == list(range(length + 1))
        assert any(found[key][-1][3])
    return found, lengths


scripts = st.lists(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(scripts, st.sampled_from([*MODES, "own"]), st.sampled_from([None, 1, 3]), st.booleans())
def test_same_episodes_same_rows(script, kind, limit, copy):
    """Poll by poll; by trajectory where an env is reset in the step after its episode's end."""

    def made():
        return [Scripted(i, episodes) for i, episodes in enumerate(script)]

    one_by_one = GymEnv(made(), seeds=range(7, 7 + len(script)), max_episode_steps=limit)
    env = Fleet(made()) if kind == "own" else sync(made(), kind, copy=copy)
    together = vector_of(env, max_episode_steps=limit)
    if kind is not AutoresetMode.NEXT_STEP:
        assert visible(together.poll()[0]) == visible(one_by_one.poll()[0])
        for _ in range(14):
            assert visible(act(together)) == visible(act(one_by_one))
        assert together.env_steps == one_by_one.env_steps == 14 * len(script)
        return
    expected, _ = trajectories(one_by_one, 30)
    found, ended = trajectories(together, 30)
    assert ended
    assert together.env_steps == sum(len(rows) - 1 for rows in found.values())
    for key, rows_found in found.items():
        assert rows_found == expected[key][: len(rows_found)]
        assert len(rows_found) == len(expected[key]) or key not in ended


def test_the_older_spelling_gives_the_same_rows():
    script = [[(2, True), (4, False)], [(3, False)], [(1, True)]]
    today = vector_of(Fleet([Scripted(i, e) for i, e in enumerate(script)]))
    older = vector_of(OldFleet([Scripted(i, e) for i, e in enumerate(script)]))
    expected, _ = trajectories(today, 12)
    found, _ = trajectories(older, 12)
    assert [[v[:4] for v in rows] for rows in found.values()] == [
        [v[:4] for v in rows] for rows in expected.values()
    ]
    assert older.health()["E401 step"] == 12
    assert {"E401 reset", "E401 step"} == set(older.health())
    assert today.health() == {}


def test_where_all_end_at_once_the_next_poll_begins_without_an_answer():
    env = vector_of(sync([Scripted(i, [(2, True)]) for i in range(3)], AutoresetMode.NEXT_STEP))
    env.poll()
    act(env)
    step = act(env)
    assert step.slot.tolist() == [0, 1, 2]
    assert step.terminated.all()
    assert list(env.pending()) == []
    (step,) = env.poll()
    assert (step.slot.tolist(), step.t.tolist(), step.reward.tolist()) == ([3, 4, 5], [0] * 3, [0.0] * 3)
    assert [info.episode for info in step.opened] == [1, 1, 1]
    assert env.env_steps == 6
    assert list(env.poll()) == []


def test_cartpole_s_own_vector_env_loses_and_invents_nothing():
    env = vector_of(gymnasium.make_vec("CartPole-v1", num_envs=16, vectorization_mode="vector_entry_point"))
    rng = np.random.default_rng(0)
    (step,) = env.poll()
    rows_seen, opened, earned, finals = 16, 16, 0.0, []
    for _ in range(300):
        waiting = env.pending()
        if waiting:
            env.send_actions(waiting[0].slot, rng.integers(0, 2, len(waiting[0].slot)))
        (step,) = env.poll()
        rows_seen += len(step.slot)
        opened += len(step.opened)
        earned += step.reward.sum()
        finals.append(step.obs[step.terminated])
        assert (np.abs(step.obs[step.t == 0]) <= 0.05).all()
        assert (step.reward == (step.t > 0)).all()
    assert earned == env.env_steps == rows_seen - opened
    last = np.concatenate(finals)
    assert len(last) > 100
    assert ((np.abs(last[:, 0]) > 2.4) | (np.abs(last[:, 2]) > 12 * np.pi / 180)).all()
    assert env.health() == {}


@pytest.mark.parametrize("mode", MODES)
def test_dict_and_tuple_spaces_come_batched(mode):
    class Nested(Scripted):
        def __init__(self, index):
            super().__init__(index, [(3, True)])
            self.observation_space = spaces.Dict(
                {
                    "pair": spaces.Tuple([spaces.Discrete(9, start=-4), spaces.Box(-9, 9, (), np.float32)]),
                    "bits": spaces.MultiBinary(2),
                    "image": spaces.Box(0, 255, (2, 2), np.uint8),
                }
            )
            self.action_space = spaces.Dict(
                {
                    "move": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]),
                    "aim": spaces.MultiDiscrete([3, 4]),
                }
            )
            self.got = []

        def look(self, action):
            bits, image = np.array([self.t % 2, 1], np.int8), np.full((2, 2), self.t, np.uint8)
            return {"pair": (self.index - self.t, np.float32(self.t)), "bits": bits, "image": image}

        def step(self, action):
            assert self.action_space.contains(action)
            self.got.append(action["move"][0])
            self.t += 1
            return self.look(0), 1.0, self.t == 3, False, {}

    envs, plain = [Nested(i) for i in range(3)], GymEnv([Nested(i) for i in range(3)], seeds=[7, 8, 9])
    env = vector_of(sync(envs, mode))
    action = plain.spaces[0].action

    def answered(one):
        waiting = one.pending()
        if waiting:
            column = batched(action, take(COLUMN, slice(0, len(waiting[0].slot))))
            one.send_actions(waiting[0].slot, column)
        return one.poll()[0]

    aim, first = np.array([[1, 2], [0, 3], [2, 0]]), np.array([0, 1, 2])
    COLUMN = {"aim": aim, "move": (first, np.array([[0.5, -1], [0, 0], [1, 1]], np.float32))}  # noqa: N806
    env.poll(), plain.poll()
    for _ in range(2):
        got, expected = answered(env), answered(plain)
        assert rows(env.spaces[0].observation, got.obs)[2]["pair"] == (2 - got.t[2], float(got.t[2]))
        for a, b in zip(got.obs.values(), expected.obs.values(), strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
    got = answered(env)
    last = take(got.obs, np.flatnonzero(got.terminated))
    assert last["pair"][0].tolist() == [-3, -2, -1]
    assert last["pair"][1].tolist() == [3.0] * 3
    assert last["image"].dtype == np.uint8
    assert [one.got for one in envs] == [[0] * 3, [1] * 3, [2] * 3]


def test_infos_are_split_when_somebody_looks():
    class Told(Scripted):
        def step(self, action):
            return (*super().step(action)[:4], {"index": self.index} if self.index else {})

    env = vector_of(sync([Told(i, [(9, True)]) for i in range(3)], AutoresetMode.NEXT_STEP))
    env.poll()
    step = act(env)
    assert step.info == {1: {"index": 1}, 2: {"index": 2}}
    assert 0 not in step.info
    assert len(step.info) == 2
    assert repr(step.info).startswith("{1:")
    own = vector_of(Fleet([Told(i, [(9, True)]) for i in range(3)]))
    own.poll()
    assert act(own).info == step.info


def test_every_env_is_seeded_once():
    fleet = Fleet([Scripted(i, [(1, True)]) for i in range(2)])
    synced = sync([Scripted(i, [(1, True)]) for i in range(2)], AutoresetMode.DISABLED)
    older = OldFleet([Scripted(i, [(1, True)]) for i in range(2)])
    older.reset_at = lambda i, seed=None: older.envs[i].reset(seed=seed)  # then it seeds, one by one
    for env, inner in ((fleet, fleet.envs), (synced, synced.envs), (older, older.envs)):
        for one in inner:
            one.resets.clear()
        together = vector_of(env)
        assert [info.seed for info in together.poll()[0].opened] == [7, 8]
        act(together), act(together)
        assert [one.resets for one in inner] == [[7, None, None], [8, None, None]]


def test_a_fleet_that_takes_no_seed_says_so(caplog):
    class Deaf(OldFleet):
        def get_sub_environments(self):
            return []

    with caplog.at_level(logging.WARNING, "steppe.envs"):
        env = vector_of(Deaf([Scripted(0, [(1, True)])]))
        env.poll()
    assert "its envs are not seeded" in caplog.text
    assert env.health()["E401 seed"] == 1


def test_old_envs_inside_get_their_seed():
    class Old(Scripted):
        def seed(self, seed):
            self.resets.append(("seed", seed))

    fleet = OldFleet([Old(i, [(1, True)]) for i in range(2)])
    vector_of(fleet).poll()
    assert [env.resets for env in fleet.envs] == [[("seed", 7), None], [("seed", 8), None]]


class Says(VectorEnv):
    """Two envs whose step returns what the test says, item by item."""

    GOOD = (np.zeros((2, 2), np.float32), [1.0, 2.0], [False, False], [False, False], [{}, {}])

    def __init__(self, **bad):
        super().__init__(spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2), 2)
        self.bad = bad

    def vector_reset(self, *, seeds=None, options=None):
        return self.bad.get("first", np.zeros((2, 2), np.float32)), [{}, {}]

    def reset_at(self, index, *, seed=None, options=None):
        return self.bad.get("again", (np.zeros(2, np.float32), {}))

    def vector_step(self, actions):
        names = ("obs", "rewards", "terminated", "truncated", "infos")
        result = tuple(self.bad.get(name, value) for name, value in zip(names, self.GOOD, strict=True))
        return self.bad.get("step", result)


NAN = np.array([[0, 0], [0, np.nan]], np.float32)
ENDS = {"terminated": [False, True]}


@pytest.mark.parametrize(
    ("bad", "code", "place", "text"),
    [
        ({"obs": NAN}, "E104", (1, 1), r"(?s)obs\[1\].*after action 1"),
        ({"obs": list(NAN)}, "E104", (1, 1), r"obs\[1\]"),
        ({"obs": np.zeros((3, 2), np.float32)}, "E103", (0, 1), "2 values, one for each env, got 3"),
        ({"obs": [np.zeros(2, np.float32), np.zeros(3, np.float32)]}, "E103", (1, 1), "shape"),
        ({"obs": None}, "E103", (0, 1), "got NoneType"),
        ({"obs": [np.zeros(2, np.float32), "x"]}, "E102", (1, 1), "'x'"),
        ({"rewards": [0.0, np.inf]}, "E201", (1, 1), "finite"),
        ({"rewards": np.zeros((2, 1))}, "E201", (0, 1), "finite"),
        ({"rewards": [1.0]}, "E301", (0, 1), "rewards: got 1 of them; return one for each of the 2 envs"),
        ({"rewards": 1.0}, "E301", (0, 1), "rewards: got a float"),
        ({"terminated": [False, "no"]}, "E302", (1, 1), "'no'"),
        ({"truncated": [False, 2]}, "E302", (1, 1), "bool"),
        ({"infos": [{}, None]}, "E303", (1, 1), "return a dict"),
        ({"infos": {}}, "E303", (0, 1), "return a list of 2 dicts"),
        ({"step": (1, 2, 3)}, "E301", (0, 1), "vector_step returned 3 items"),
        ({"step": None}, "E301", (0, 1), "vector_step returned NoneType"),
        (ENDS | {"again": None}, "E304", (1, 1), r"reset_at\(1\) returned None"),
        (ENDS | {"again": (NAN[1], {})}, "E104", (1, 0), r"obs\[1\]"),
        ({"first": NAN}, "E104", (1, 0), r"obs\[1\]"),
    ],
)
def test_bad_values_name_the_env(bad, code, place, text):
    env = vector_of(Says(**bad), runner=3)

    def play():
        env.poll()
        env.send_actions(np.array([0, 1]), np.array([0, 1]))
        env.poll()

    with pytest.raises(EnvError, match=text) as caught:
        play()
    error = caught.value
    assert (error.code, error.env_class, error.runner) == (code, "Says", 3)
    assert (error.env, error.step) == place
    with pytest.raises(RuntimeError, match="failed before"):
        env.poll()


def test_what_it_raises_comes_out_with_a_note():
    class Breaks(Fleet):
        def reset_at(self, index, *, seed=None, options=None):
            raise KeyError("part")

    env = vector_of(Breaks([Scripted(i, [(1 + i, True)]) for i in range(2)]), runner=2)
    env.poll()
    with pytest.raises(KeyError) as caught:
        act(env)
    assert caught.value.__notes__ == [
        "steppe: in reset_at(0)",
        "steppe: Breaks, runner 2, its 2 envs, after 2 env steps",
    ]


class Batched(gymnasium.vector.VectorEnv):
    """Three envs that step in one array; an episode is as long as the test says."""

    def __init__(self, mode=None, ends=(2, 3, 9), n=3, **items):
        self.num_envs, self.ends, self.items = n, np.array(ends), items
        self.single_observation_space = spaces.Box(-5, 5, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(-5, 5, (n, 1), np.float32)
        self.action_space = spaces.MultiDiscrete([2] * n)
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.state, self.calls = np.zeros((n, 1), np.float32), []

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.calls.append((seed, mask.tolist()))
        self.state[mask] = 0
        return self.state, {}

    def step(self, actions):
        assert actions.dtype == np.int64
        self.state += 1
        over = self.state[:, 0] >= self.ends
        none = np.zeros(self.num_envs, bool)
        infos = self.items.get("infos", {})
        return self.items.get("obs", self.state), np.ones(self.num_envs), over, none, infos


def test_an_env_of_arrays_is_seeded_with_one_number_and_asked_by_mask():
    inner = Batched(AutoresetMode.DISABLED)
    env = vector_of(inner, max_episode_steps=4)
    env.poll()
    kept = [act(env, choose=lambda *_: 1) for _ in range(4)]
    assert inner.calls == [
        (7, [True] * 3),
        (None, [True, False, False]),
        (None, [False, True, False]),
        (None, [True, False, True]),
    ]
    # The env writes to one array all the time; what was given out keeps its values.
    assert [step.obs[:, 0].tolist() for step in kept] == [
        [1, 1, 1],
        [0, 2, 2, 2],
        [1, 0, 3, 3],
        [0, 1, 0, 2, 4],
    ]
    assert kept[3].truncated.tolist() == [False] * 4 + [True]
    assert kept[3].terminated.tolist() == [False] * 3 + [True, False]


def test_a_limit_needs_an_env_that_can_be_asked(caplog):
    with pytest.raises(ConfigError, match="Batched cannot be asked to reset one of its envs; give the limit"):
        vector_of(Batched(AutoresetMode.NEXT_STEP), max_episode_steps=4)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        vector_of(Batched(AutoresetMode.DISABLED), max_episode_steps=0)
    with caplog.at_level(logging.WARNING, "steppe.envs"):
        vector_of(Batched())
    assert "metadata of Batched has no autoreset_mode: NEXT_STEP is assumed" in caplog.text


@pytest.mark.parametrize(
    ("items", "code", "text"),
    [
        ({"infos": {}}, "E301", r'puts its last observation into infos\["final_obs"\]'),
        ({"infos": None}, "E303", "return a dict"),
        ({"infos": {"final_obs": np.zeros(2, np.float32)}}, "E103", "final_obs: expected 3 values"),
        ({"infos": {"final_obs": np.full(3, None)}}, "E102", "None"),
        ({"obs": np.zeros(3, np.float32)}, "E103", "shape"),
        ({"obs": [np.zeros(1, np.float32)] * 2}, "E103", "2 of them"),
        ({"obs": np.full((3, 1), np.nan, np.float32)}, "E104", "nan"),
    ],
)
def test_bad_batches(items, code, text):
    env = vector_of(Batched(AutoresetMode.SAME_STEP, ends=(1, 1, 1), **items))
    env.poll()
    with pytest.raises(EnvError, match=text) as caught:
        act(env, choose=lambda *_: 0)
    assert (caught.value.code, caught.value.env_class) == (code, "Batched")


def test_last_observations_may_be_one_array():
    last = np.array([[4.0], [5.0], [0.0]], np.float32)
    infos = {"final_obs": last, "_final_obs": np.array([True, True, False])}
    env = vector_of(Batched(AutoresetMode.SAME_STEP, ends=(1, 1, 9), infos=infos))
    env.poll()
    step = act(env, choose=lambda *_: 0)
    assert step.obs[:, 0].tolist() == [1, 1, 1, 4, 5]
    assert step.info == {}


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,), np.float32), spaces.Box(0, 1, (2,), np.float64)])
def test_values_outside_the_space_are_treated_as_told(space):
    obs = np.array([[0.5, 0.5], [0.5, 2.0]], space.dtype)

    def stepped(mode):
        fleet = Says(obs=obs)
        fleet.observation_space = space
        fleet.bad["first"] = obs * 0
        env = vector_of(fleet, on_out_of_space=mode)
        env.poll()
        return env, act(env, choose=lambda *_: 0)

    env, step = stepped("warn")
    assert (step.obs[1, 1], env.health()) == (2.0, {"E101 obs[1]": 1})
    env, step = stepped("clip")
    assert (step.obs[1, 1], env.health()) == (1.0, {"E101 obs[1]": 1})
    with pytest.raises(EnvError, match=r"obs\[1\] is 2.0, its bound is 1.0"):
        stepped("raise")


def test_a_missing_or_strange_space_is_named():
    fleet = Says()
    del fleet.action_space
    with pytest.raises(SpaceError, match=r"Says.action_space"):
        vector_of(fleet)
    env = vector_of(fleet, action_space=spaces.Discrete(2), observation_space=spaces.Box(-2, 2, (2,)))
    assert env.spaces[0].observation == spec_of(spaces.Box(-2, 2, (2,)))
    with pytest.raises(ValueError, match="2 envs and 1 seeds"):
        VectorRows(Says(), seeds=[1])


def test_fillers_are_valid_actions():
    space = spaces.Dict(
        {
            "a": spaces.Discrete(3, start=5),
            "b": spaces.Tuple([spaces.Box(2, 3, (2,)), spaces.MultiDiscrete([2, 2], start=[4, 4])]),
            "c": spaces.OneOf([spaces.Discrete(2), spaces.MultiBinary(3)]),
        }
    )
    spec = spec_of(space)
    for value in rows(spec, filler(spec, 2)):
        assert contains(spec, value)
    whole = batched(spec, filler(spec, 2))
    assert whole["a"].tolist() == [5, 5]
    assert whole["b"][0].dtype == np.float32
    assert [choice for choice, _ in whole["c"]] == [0, 0]


@pytest.mark.parametrize("kind", [*MODES, "own"])
def test_without_a_state_of_its_own_it_begins_anew(kind):
    def made():
        envs = [Scripted(i, [(3, True)]) for i in range(2)]
        return envs, Fleet(envs) if kind == "own" else sync(envs, kind)

    env = vector_of(made()[1])
    env.poll()
    for _ in range(4):
        step = act(env)
    state, before = env.get_state(), {info.slot: info for info in env.pending()[0].opened}
    envs, inner = made()
    again = vector_of(inner)
    (note,) = again.set_state(state)
    assert note.startswith("E402 the 2 envs of ")
    assert "begin new episodes: it has no get_state() and set_state(state)" in note
    (now,) = again.pending()
    assert now.t.tolist() == [0, 0]
    assert not set(before.values()) & set(now.opened)
    assert [info.episode for info in now.opened] == [2, 2]
    given = [one.resets[0] for one in envs]
    assert len({*given, 7, 8}) == 4  # neither their first episodes again nor each other's
    assert again.env_steps == env.env_steps
    assert act(again).t.tolist() == [1, 1]
    if kind == "own":
        assert inner.restarted == [0, 1]
    with pytest.raises(CheckpointError, match="of 2 envs, here are 3"):
        vector_of(Batched(AutoresetMode.DISABLED)).set_state(state)
    assert step is not None


def test_a_state_is_taken_between_a_poll_and_its_answer():
    env = vector_of(Fleet([Scripted(i, [(3, True)]) for i in range(2)]))
    env.poll()
    env.send_actions(np.array([1]), np.array([1]))
    assert env.pending()[0].slot.tolist() == [0]
    with pytest.raises(ValueError, match="actions were sent"):
        env.get_state()


def test_an_action_of_another_kind_is_refused():
    env = vector_of(Fleet([Scripted(0, [(3, True)])]))
    env.poll()
    with pytest.raises(TypeError, match="an action column of float64, the space is of int64"):
        env.send_actions(np.array([0]), np.array([0.7]))


def test_a_state_that_no_file_can_hold_is_refused():
    class Odd(Fleet):
        def get_state(self):
            return {"x": object()}

        def set_state(self, state):
            pass

    env = vector_of(Odd([Scripted(0, [(3, True)])]))
    env.poll()
    with pytest.raises(EnvError, match=r"E402.*get_state\(\)\['x'\] is a object"):
        env.get_state()


def test_close_closes_what_is_inside():
    envs = [Scripted(i, [(3, True)]) for i in range(2)]
    env = vector_of(Fleet(envs))
    env.close(), env.close()
    assert [one.closed for one in envs] == [1, 1]
    assert env.get_sub_environments() == envs
    synced = vector_of(sync(envs, AutoresetMode.SAME_STEP))
    assert synced.get_sub_environments() == envs
    synced.close()
    assert [one.closed for one in envs] == [2, 2]
    assert Says().try_render_at(0) is None


# From here on: through `build`, the sampler and the public surface.


def fleet_of(lengths):
    made = []

    def create(ctx):
        made.append(ctx)
        n = ctx.get("n", ctx.num_envs)
        return Fleet([Scripted(i, lengths[i % len(lengths)]) for i in range(n)])

    return create, made


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(registry, "_told", set())


def test_one_object_a_runner_and_its_own_number_counts(caplog):
    create, made = fleet_of([[(3, True)]])
    created = []
    with caplog.at_level(logging.WARNING, "steppe"):
        env = build(create, num_envs=4, run_seed=0, worker_index=2, created=lambda *a: created.append(a))
        assert (env.num_envs, len(made), made[0].num_envs, made[0].vector_index) == (4, 1, 4, 0)
        assert not caplog.records
        for _ in range(2):
            env = build(create, {"n": 3}, num_envs=4, run_seed=0)
            assert env.num_envs == 3
    assert len(made) == 3
    (record,) = caplog.records
    assert record.name == "steppe"
    assert "steps 3 envs, 4 were asked for" in record.getMessage()
    assert len({info.seed for info in env.poll()[0].opened}) == 3
    assert [ctx.num_envs for _, ctx in created] == [4]
    assert isinstance(created[0][0], Fleet)


def test_the_seeds_are_those_that_single_envs_would_get():
    create, _ = fleet_of([[(3, True)]])
    one_by_one = build(lambda ctx: Scripted(ctx.vector_index, [(3, True)]), num_envs=3, run_seed=5)
    together = build(create, num_envs=3, run_seed=5)
    assert together.poll()[0].opened == one_by_one.poll()[0].opened


def test_what_cannot_be_built_says_why():
    create, _ = fleet_of([[(3, True)]])
    with pytest.raises(ConfigError, match="makes a vector env, which cannot be used as one env"):
        steppe.make(create)
    with pytest.raises(ConfigError, match="make one kind only"):
        build(
            lambda ctx: create(ctx) if ctx.vector_index else Scripted(0, [(1, True)]), num_envs=2, run_seed=0
        )
    with pytest.raises(ConfigError, match="give the class or a function"):
        build(Says(), num_envs=2, run_seed=0)

    class Forgot(Says):
        def __init__(self):
            self.observation_space = self.action_space = spaces.Discrete(2)

    with pytest.raises(ConfigError, match=r"num_envs of a vector env is at least 1, not None.*super\(\)"):
        build(Forgot, num_envs=2, run_seed=0)


def test_a_registered_name_may_make_gymnasium_s(monkeypatch):
    monkeypatch.setattr(registry, "REGISTERED", {})
    steppe.register_env("poles", lambda ctx: gymnasium.make_vec("CartPole-v1", num_envs=ctx.num_envs))
    env = build("poles", num_envs=5, run_seed=0)
    assert (env.num_envs, env.poll()[0].obs.shape) == (5, (5, 4))
    env.close()


def config_of(create, **settings):
    fields = {"num_envs_per_env_runner": 4, "train_batch_size": 48, "minibatch_size": 48, "num_epochs": 1}
    fields |= {"fcnet_hiddens": [8], "seed": 0, "write_run": False}
    return steppe.PPOConfig(env=create, **(fields | settings))


def test_training_and_evaluation_in_a_vector_env():
    create, made = fleet_of([[(1, True)], [(9, True)], [(2, False)]])
    with config_of(create, env_config={"n": 3}).build() as algo:
        result = algo.train()
        assert algo._fragment_length() == 16  # 48 steps over the 3 envs that there are, not the 4 asked for
        assert result["timesteps_this_iter"] == 48
        assert len(made) == 1
        # Rewards depend on t and on the action; lengths alone tell the episodes apart.
        for count, lengths in ((4, [1, 1, 9, 2]), (2, [1, 9]), (7, [1] * 3 + [9] * 2 + [2] * 2)):
            evaluated = algo.evaluate(count)
            assert evaluated["episodes_this_iter"] == count
            assert evaluated["episode_len_mean"] == pytest.approx(np.mean(lengths))
        assert len(made) == 2
    with pytest.raises(ConfigError, match="use 'truncate_episodes'"):
        config_of(create, batch_mode="complete_episodes").build()
    with pytest.raises(ConfigError, match="leave episodes half played to training; use 'separate'"):
        config_of(create, evaluation_envs="shared").build()


class Saved(Fleet):
    def get_state(self):
        return [[env.at, env.t] for env in self.envs]

    def set_state(self, state):
        for env, saved in zip(self.envs, state, strict=True):
            env.at, env.t = saved


class OldSaved(OldFleet):
    """With a state of its own, and nowhere to give a seed to."""

    def get_state(self):
        return [[env.at, env.t] for env in self.envs]

    def set_state(self, state):
        for env, saved in zip(self.envs, state, strict=True):
            env.at, env.t = saved

    def get_sub_environments(self):
        return []


@pytest.mark.parametrize("kind", [Saved, OldSaved, Fleet])
def test_a_run_goes_on(tmp_path, caplog, kind):
    def create(ctx):
        return kind([Scripted(i, [(4, True), (7, False)]) for i in range(ctx.num_envs)])

    with config_of(create, evaluation_interval=1, evaluation_duration=2).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "saved")
        expected = algo.train()
        state = algo.get_state()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "steppe"), steppe.load(path, env=create) as again:
        found = again.train()
        different = diff(state, again.get_state())
    said = [record.getMessage() for record in caplog.records if "not exact" in record.getMessage()]
    if kind is Fleet:
        why = "E402 the 4 envs of Fleet begin new episodes: it has no get_state() and set_state(state)"
        assert said == [f"resume is not exact: {whose} envs: {why}" for whose in ("training", "evaluation")]
    else:
        assert found["info"] == expected["info"]
        assert different == said == []
        # Two iterations of 12 steps of the 4 envs; the reset within `set_state` counts nothing.
        health = {"E401 seed": 1, "E401 step": 24} if kind is OldSaved else {}
        assert {key: n for key, n in found["env_health"].items() if key != "E401 reset"} == health
    assert found["timesteps_total"] == expected["timesteps_total"]


def test_the_processes_of_an_async_one_may_be_started_anew():
    """The way around a fork of the threads of JAX that `env-contract.md` names."""
    made = gymnasium.make_vec("CartPole-v1", 2, "async", vector_kwargs={"context": "spawn"})
    env = vector_of(made)
    env.poll()
    step = act(env, choose=lambda *_: 1)
    assert (step.t.tolist(), step.reward.tolist()) == ([1, 1], [1, 1])
    env.close()


class Cycling:
    """Draws one of three actions from its noise."""

    noise_size = 1

    def __init__(self, pair):
        self.observation, self.action = pair

    def load(self, weights):
        return weights

    def initial_state(self, n):
        return None

    def to_env(self, action):
        return action + 1

    def act(self, weights, obs, state, noise):
        chosen = (noise[:, 0] * 3).astype(np.int64)
        return Decision(chosen, np.zeros(len(chosen), np.float32))


def sampler_of(env, trained=(DEFAULT_POLICY,), **options):
    policies = {DEFAULT_POLICY: Cycling(env.spaces[0])}
    rng = np.random.default_rng(0)
    sampler = Sampler(env, policies, trained=trained, mapping=lambda _: DEFAULT_POLICY, rng=rng, **options)
    sampler.set_weights({DEFAULT_POLICY: Weights(0, np.zeros(0))})
    return sampler


@pytest.mark.parametrize("mode", MODES)
def test_the_sampler_counts_and_joins_rows_in_every_mode(mode):
    """Each row's action, written by the sampler, is what the env says in the row below."""
    env = vector_of(sync([Scripted(i, [(2, True), (5, False)]) for i in range(3)], mode))

    sampler = sampler_of(env, fragment_length=12)
    total = 0
    for _ in range(4):
        sample = sampler.sample()
        (rollout,) = sample.rollouts
        assert 36 <= sample.env_steps <= 38
        total += sample.env_steps
        acted = np.argwhere(rollout.acted)
        assert len(acted) == sample.env_steps
        for row, lane in acted.tolist():
            assert rollout.obs[row + 1, lane, 3] == rollout.action[row, lane] + 1
            assert rollout.t[row + 1, lane] == rollout.t[row, lane] + 1
            assert rollout.episode[row + 1, lane] == rollout.episode[row, lane]
        assert {e.length for e in sample.episodes} == {2, 5}
    assert env.env_steps == total
    # Whole episodes: all envs go on while some are awaited, and only those that were asked for count.
    for quota in ([2, 1, 3], [0, 0, 1], [4, 0, 0]):
        counted = [0, 0, 0]
        for episode in sampler.sample_episodes(quota).episodes:
            counted[episode.env] += 1
            assert episode.length in (2, 5)
        assert counted == quota


@pytest.mark.parametrize("mode", MODES)
def test_episodes_that_others_had_to_wait_for_are_not_counted(mode):
    """A number of env steps, and the episodes that began within them: not those that began while waiting."""
    env = vector_of(sync([Scripted(0, [(4, True)]), Scripted(1, [(11, True)])], mode))
    sampler = sampler_of(env, trained=(), fragment_length=3, complete_episodes=True)
    first = sampler.sample().episodes
    # Six env steps leave both in their first episodes. Until that of env 1 is over, env 0 ends a second one,
    # which is not counted, and is in the midst of a third, which the next sample does not count.
    assert sorted((e.env, e.episode, e.length) for e in first) == [(0, 0, 4), (1, 0, 11)]
    second = sampler.sample().episodes
    # Where resets take a step of their own, env 0 only just begins its fourth within the second six steps.
    within = [] if mode is AutoresetMode.NEXT_STEP else [(0, 3, 4)]
    assert sorted((e.env, e.episode, e.length) for e in second) == [*within, (1, 1, 11)]
    for e in first + second:  # rewards are of the whole episode: t + action / 8, the action 1 to 3
        assert 1 / 8 <= (e.reward - e.length * (e.length + 1) / 2) / e.length <= 3 / 8
