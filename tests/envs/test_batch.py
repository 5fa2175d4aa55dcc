"""What vector envs return is read one way only, from arrays of any library; what is at fault is named."""

import re

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.envs.vector import VectorEnv, VectorRows
from steppe.errors import ConfigError, EnvError
from steppe.spaces import leaves, map_leaves, rows

BOX = spaces.Box(-9, 9, (1,), np.float32)
PAIR = spaces.Tuple([BOX, BOX])


class Says(VectorEnv):
    """Returns what the test says; an episode of env 1 ends with the first step where ``end`` says so."""

    def __init__(self, space, n, *, first, then=None, again=None, end=False, **columns):
        super().__init__(space, spaces.Discrete(2), n)
        self.first, self.then, self.again, self.end, self.columns = first, then, again, end, columns

    def vector_reset(self, *, seeds=None, options=None):
        return self.first

    def reset_at(self, index, *, seed=None, options=None):
        return self.again

    def vector_step(self, actions):
        n, none = self.num_envs, [False] * self.num_envs
        obs = self.first[0] if self.then is None else self.then
        result = {
            "rewards": [1.0] * n,
            "terminated": [self.end and i == 1 for i in range(n)],
            "truncated": none,
        }
        return obs, *(result | self.columns).values(), [{} for _ in none]


def play(env, steps=1):
    """The newest TimeStep after some steps, and the adapter."""
    adapter = VectorRows(env, seeds=[5 + i for i in range(env.num_envs)])
    (step,) = adapter.poll()
    for _ in range(steps):
        waiting = adapter.pending()
        if waiting:
            adapter.send_actions(waiting[0].slot, np.zeros(len(waiting[0].slot), np.int64))
        (step,) = adapter.poll()
    return step, adapter


def infos(n):
    return [{} for _ in range(n)]


def column(*values, dtype=np.float32):
    return np.array([[value] for value in values], dtype)


BATCHES = [
    (column(1, 2), column(3, 4)),
    (column(1, 2, dtype=np.float64), column(3, 4, dtype=np.float64)),
    (column(1, 2).tolist(), column(3, 4).tolist()),
    (column(1, 2), column(3, 4, dtype=np.float64)),
    [column(1, 2), column(3, 4)],
    (jnp.array(column(1, 2)), jnp.array(column(3, 4))),
]


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("at", ["reset", "step"])
def test_a_tuple_of_batches_is_refused_whatever_its_dtype(batches, at):
    """With two envs and two parts nothing but luck would tell it from a list over the envs."""
    right = [(column(1)[0], column(3)[0]), (column(2)[0], column(4)[0])]
    env = Says(PAIR, 2, first=(batches if at == "reset" else right, infos(2)), then=batches)
    with pytest.raises(
        EnvError, match=r"a list of 2 tuples, one for each env.*list\(zip\(\*batches\)\)"
    ) as caught:
        play(env)
    assert (caught.value.code, caught.value.leaf, caught.value.step) == ("E105", "obs", int(at == "step"))
    again = Says(PAIR, 2, first=(list(zip(*batches, strict=True)), infos(2)))  # what the message says to do
    step, _ = play(again)
    assert [part[:, 0].tolist() for part in step.obs] == [[1, 2], [3, 4]]


def test_where_there_are_more_envs_than_parts_it_is_refused_too():
    """An env must not depend on how many of it there are."""
    batches = column(1, 2, 3), column(4, 5, 6)
    for given_as in (batches, tuple(map(tuple, batches))):
        env = Says(PAIR, 3, first=(given_as, infos(3)))
        with pytest.raises(
            EnvError, match=r"a list of 3 tuples.* 2 items that may be batches of its 2 parts"
        ):
            play(env, 0)


def test_lists_for_tuples_are_converted_where_nothing_is_ambiguous():
    values = [[column(1)[0], column(2)[0]], [column(3)[0], column(4)[0]], [column(5)[0], column(6)[0]]]
    step, adapter = play(Says(PAIR, 3, first=(values, infos(3)), again=(values[0], {}), end=True), 1)
    assert [part[:, 0].tolist() for part in step.obs] == [[1, 1, 5, 3], [2, 2, 6, 4]]
    assert adapter.health() == {"E106 obs": 7}  # of the reset, the step and the second reset of env 1
    # Of one env there is no doubt: what `reset_at` returns may be a list, with any number of envs.
    tuples = [tuple(value) for value in values[:2]]
    step, _ = play(Says(PAIR, 2, first=(tuples, infos(2)), again=(values[2], {}), end=True))
    assert [part[:, 0].tolist() for part in step.obs] == [[1, 5, 3], [2, 6, 4]]


def test_the_form_is_the_same_further_inside():
    nested = spaces.Dict({"own": BOX, "pair": PAIR})
    batches = {"own": column(7, 8), "pair": (column(1, 2), column(3, 4))}
    with pytest.raises(EnvError, match=r'obs\["pair"\]: expected a list of 2 tuples'):
        play(Says(nested, 2, first=(batches, infos(2))), 0)
    listed = batches | {"pair": [(column(1)[0], column(3)[0]), (column(2)[0], column(4)[0])]}
    step, _ = play(Says(nested, 2, first=(listed, infos(2))))
    assert step.obs["own"][:, 0].tolist() == [7, 8]
    assert [part[:, 0].tolist() for part in step.obs["pair"]] == [[1, 2], [3, 4]]
    deep = tuple((column(i, i + 1), column(i + 2, i + 3)) for i in (1, 5))
    with pytest.raises(EnvError, match="may be batches of its 2 parts"):
        play(Says(spaces.Tuple([PAIR, PAIR]), 2, first=(deep, infos(2))), 0)
    inside = spaces.Tuple([spaces.Dict({"pair": PAIR}), spaces.Discrete(3)])
    mixed = ({"pair": [column(1)[0], column(2)[0]]}, 1), ({"pair": (column(3)[0], column(4)[0])}, 2)
    with pytest.raises(EnvError, match="may be batches of its 2 parts"):
        play(Says(inside, 2, first=(mixed, infos(2))), 0)


def test_choices_and_values_of_a_one_of_are_pairs_by_env():
    space = spaces.OneOf([spaces.Discrete(2), spaces.Discrete(2)])
    with pytest.raises(EnvError, match="may be batches of its 2 parts"):
        play(Says(space, 2, first=((np.array([0, 1]), np.array([1, 0])), infos(2))), 0)
    step, _ = play(Says(space, 2, first=([(0, 1), (1, 0)], infos(2))))
    assert step.obs["choice"].tolist() == [0, 1]


@st.composite
def shapes(draw):
    """A space of parts, with the number of envs."""
    leaf = st.builds(lambda d: spaces.Box(-99, 99, (d,), np.float32), st.integers(1, 3))
    tree = st.recursive(
        leaf, lambda part: st.lists(part, min_size=1, max_size=3).map(spaces.Tuple), max_leaves=5
    )
    return draw(st.lists(tree, min_size=1, max_size=3).map(spaces.Tuple)), draw(st.integers(1, 4))


def together(space, values, dtype):
    """The values of n envs as batches of the space's parts."""
    if isinstance(space, spaces.Tuple):
        by_part = zip(space.spaces, zip(*values, strict=True), strict=True)
        return tuple(together(part, list(ones), dtype) for part, ones in by_part)
    return np.array(values, dtype)


@settings(max_examples=100, deadline=None)
@given(shapes(), st.integers(0, 2**31), st.sampled_from([np.float32, np.float64]))
def test_values_by_env_come_back_and_batches_never_do(shape, seed, dtype):
    space, n = shape
    space.seed(seed)
    values = [space.sample() for _ in range(n)]
    step, adapter = play(Says(space, n, first=(values, infos(n))))
    for found, value in zip(rows(adapter.spaces[0].observation, step.obs), values, strict=True):
        map_leaves(np.testing.assert_array_equal, found, value)
    with pytest.raises(EnvError):
        play(Says(space, n, first=(together(space, values, dtype), infos(n))), 0)


# Infos that are none.

ZERO = column(0, 0, 0)


@pytest.mark.parametrize(
    ("space", "n", "first", "text"),
    [
        (BOX, 3, (ZERO, {}), "infos: got dict; return a list of 3 dicts"),
        (BOX, 2, (ZERO[:2], {}), "infos: got dict; return a list of 2 dicts"),
        (BOX, 3, (ZERO, None), "infos: got NoneType; return a list of 3 dicts"),
        (BOX, 3, (ZERO, [{}] * 2), "infos: got 2 items; return a list of 3 dicts"),
        (BOX, 3, (ZERO, [None] * 3), r"info: got None \(NoneType\); return a dict"),
        (BOX, 3, (ZERO, []), "infos: got 0 items; return a list of 3 dicts"),
        (spaces.Dict({"a": BOX}), 2, ({"a": ZERO[:2]}, {}), "infos: got dict; return a list of 2 dicts"),
        (spaces.Dict({"a": BOX}), 3, ({"a": ZERO}, {}), "infos: got dict; return a list of 3 dicts"),
        (PAIR, 2, ([(ZERO[0], ZERO[0])] * 2, {}), "infos: got dict; return a list of 2 dicts"),
    ],
)
def test_infos_of_all_that_are_none_are_blamed(space, n, first, text):
    with pytest.raises(EnvError, match=text) as caught:
        play(Says(space, n, first=first), 0)
    assert (caught.value.code, caught.value.leaf) == ("E303", "info")


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (BOX, ZERO[0]),
        (spaces.Discrete(3), 2),
        (PAIR, (ZERO[0], ZERO[1])),
        (spaces.Dict({"a": BOX}), {"a": ZERO[0]}),
    ],
)
@pytest.mark.parametrize("bad", [None, [], "told"])
def test_the_info_of_one_that_is_none_is_blamed(space, obs, bad):
    env = Says(space, 2, first=([obs, obs], infos(2)), again=(obs, bad), end=True)
    with pytest.raises(EnvError, match=re.escape(f"reset_at(1): info: got {bad!r} (")) as caught:
        play(env)
    assert (caught.value.code, caught.value.env, caught.value.leaf) == ("E303", 1, "info")


@pytest.mark.parametrize(
    ("space", "both"),
    [
        (BOX, (column(1)[0], column(2)[0])),
        (spaces.Dict({"a": BOX}), ({"a": column(1)[0]}, {"a": column(2)[0]})),
        (spaces.Tuple([spaces.Dict({"a": BOX})] * 2), (({"a": ZERO[0]},) * 2, ({"a": ZERO[1]},) * 2)),
    ],
)
def test_two_observations_of_two_envs_are_not_taken_for_infos(space, both):
    env = Says(space, 2, first=both, then=both, again=both[0], end=True)
    step, adapter = play(env)
    found = rows(adapter.spaces[0].observation, step.obs)
    for value, expected in zip(found, [both[0], both[0], both[1]], strict=True):  # the last is a final row
        assert [leaf.tolist() for leaf in leaves(value)] == [leaf.tolist() for leaf in leaves(expected)]
    assert adapter.health() == {"E401 reset": 2}


def test_a_wrong_observation_of_two_is_not_blamed_on_infos():
    both = {"a": ZERO[0]}, {"a": np.array([np.nan], np.float32)}
    with pytest.raises(EnvError, match="E104") as caught:
        play(Says(spaces.Dict({"a": BOX}), 2, first=both), 0)
    assert caught.value.env == 1


def test_a_pair_of_choice_and_dict_is_an_observation():
    space = spaces.OneOf([spaces.Discrete(2), spaces.Dict({"a": BOX})])
    value = (1, {"a": column(3)[0]})
    step, _ = play(Says(space, 2, first=([value] * 2, infos(2)), again=value, end=True))
    assert step.obs["choice"].tolist() == [1, 1, 1]


# Arrays of other libraries.


class Tensor:
    """An array as torch has it; numpy can read it unless it is on a GPU."""

    def __init__(self, values, device="cpu"):
        self.values, self.device = np.asarray(values), device

    def __array__(self, dtype=None, copy=None):
        if self.device != "cpu":
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return self.values

    def __len__(self):
        return len(self.values)


class Capsule:
    """An array that can only be handed over by DLPack."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


@pytest.mark.parametrize("make", [jnp.asarray, Tensor, Capsule])
@pytest.mark.parametrize("listed", [False, True])
def test_arrays_of_other_libraries_are_taken(make, listed):
    def given_as(values):
        return [make(value) for value in values] if listed else make(values)

    obs = column(1, 2, 3)
    env = Says(
        BOX,
        3,
        first=(given_as(obs), infos(3)),
        again=(make(column(7)[0]), {}),
        rewards=given_as(np.array([1, 2, 3], np.float32)),
        terminated=given_as(np.array([False, True, False])),
        truncated=given_as(np.zeros(3, bool)),
    )
    step, adapter = play(env)
    assert step.obs[:, 0].tolist() == [1, 7, 3, 2]
    assert step.reward.tolist() == [1, 0, 3, 2]
    assert step.terminated.tolist() == [False, False, False, True]
    assert adapter.health() == {}


def test_they_may_stand_in_a_dict_of_batches():
    space = spaces.Dict({"a": BOX, "n": spaces.Discrete(9)})
    batches = {"a": jnp.array(column(1, 2)), "n": Tensor([3, 4])}
    step, adapter = play(Says(space, 2, first=(batches, infos(2))))
    assert (step.obs["a"][:, 0].tolist(), step.obs["n"].tolist()) == ([1, 2], [3, 4])
    assert adapter.health() == {}


def test_a_buffer_that_is_written_to_again_does_no_harm():
    buffer = column(1, 2)
    env = Says(BOX, 2, first=(Tensor(buffer), infos(2)))
    step, _ = play(env)
    buffer[:] = 9
    assert step.obs[:, 0].tolist() == [1, 2]


GPU = "cuda:0"
ON_GPU = Tensor(column(1, 2), GPU)


@pytest.mark.parametrize(
    ("bad", "code", "leaf", "env"),
    [
        ({"then": ON_GPU}, "E102", "obs", 0),
        ({"then": [column(1)[0], Tensor(column(2)[0], GPU)]}, "E102", "obs", 1),
        ({"rewards": Tensor([1, 2], GPU)}, "E301", "rewards", 0),
        ({"rewards": [1.0, Tensor(2, GPU)]}, "E301", "rewards", 1),
        ({"terminated": Tensor([False, True], GPU)}, "E301", "terminated", 0),
        ({"truncated": Tensor([False, True], GPU)}, "E301", "truncated", 0),
        ({"again": (Tensor(column(2)[0], GPU), {}), "end": True}, "E102", "obs", 1),
        ({"first": (ON_GPU, infos(2))}, "E102", "obs", 0),
    ],
)
def test_a_tensor_on_a_gpu_is_refused_with_what_to_call(bad, code, leaf, env):
    text = rf"{leaf}: expected an array .*\.detach\(\)\.cpu\(\)\.numpy\(\).* a Tensor: can't convert cuda:0"
    with pytest.raises(EnvError, match=text) as caught:
        play(Says(BOX, 2, **({"first": (column(1, 2), infos(2))} | bad)))
    assert (caught.value.code, caught.value.leaf, caught.value.env) == (code, leaf, env)


def test_the_part_on_a_gpu_is_named():
    space = spaces.Dict({"a": BOX, "b": BOX})
    batches = {"a": column(1, 2), "b": ON_GPU}
    with pytest.raises(EnvError, match=r'E102.*obs\["b"\]: expected an array that numpy can read'):
        play(Says(space, 2, first=(batches, infos(2))), 0)


def test_dones_may_be_tensors():
    class Old(Says):
        def vector_step(self, actions):
            return self.first[0], Tensor([1.0, 2.0]), self.columns["dones"], infos(2)

    good = (column(1, 2), infos(2))
    step, adapter = play(Old(BOX, 2, first=good, again=(column(5)[0], {}), dones=Tensor([True, False])))
    assert (step.obs[:, 0].tolist(), step.terminated.tolist()) == ([5, 2, 1], [False, False, True])
    assert adapter.health() == {"E401 step": 1}
    with pytest.raises(EnvError, match="dones: expected an array"):
        play(Old(BOX, 2, first=good, dones=Tensor([True, False], GPU)))


# EnvPool, where it is not installed: what it does differently.


class Pool(gymnasium.vector.VectorEnv):
    """Says no to seeds, as EnvPool does, and always plays the same."""

    __module__ = "envpool.stand_in"

    def __init__(self, n=2, batch_size=2):
        self.num_envs, self.config, self.resets = n, {"batch_size": batch_size}, []
        self.single_observation_space, self.single_action_space = BOX, spaces.Discrete(2)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, **options):
        self.resets.append(options)
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions):
        none = np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 1), np.float32), np.ones(self.num_envs), none, none, {}


def test_a_pool_is_given_no_seed_and_that_is_counted():
    pool = Pool()
    _, adapter = play(pool)
    assert pool.resets == [{}]
    assert adapter.health() == {"E401 seed": 1}
    _, again = play(Pool(), 0)
    (note,) = again.set_state(adapter.get_state())
    assert note.endswith("; they take no seed, so these may be the first ones again")


def test_a_pool_that_steps_some_of_its_envs_is_refused():
    with pytest.raises(ConfigError, match="batch_size=3 of 8 envs: EnvPool would step some of its envs"):
        VectorRows(Pool(8, 3), seeds=range(8))
