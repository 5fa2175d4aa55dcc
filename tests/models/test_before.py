"""What a memory is told of the row before: choices one-hot, numbers squashed, rewards shrunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from steppe.models.actions import Actions
from steppe.models.before import told, told_size
from steppe.spaces import spec_of

NESTED = spaces.Dict(
    {"a": spaces.Discrete(3, start=5), "b": spaces.Tuple((spaces.Box(-2, 2, (2,), np.float32),))}
)


def numbers(space, action, reward=None):
    """Of one row, out of numpy and out of JAX alike."""
    actions = None if space is None else Actions(spec_of(space))
    before = {"action": action, "reward": np.float32(reward or 0)}
    here = np.concatenate(told(np, actions, reward is not None, before))
    there = jnp.concatenate(told(jnp, actions, reward is not None, jax.tree.map(jnp.asarray, before)))
    np.testing.assert_allclose(here, there, atol=1e-6)
    assert here.shape == (told_size(actions, reward is not None),)
    return here.round(4).tolist()


def test_choices_are_one_hot_and_counted_from_0():
    assert numbers(spaces.Discrete(3, start=5), np.int32(1)) == [0, 1, 0]
    assert numbers(spaces.MultiDiscrete([2, 3]), np.int32([1, 0])) == [0, 1, 1, 0, 0]
    assert numbers(spaces.MultiBinary(3), np.int8([1, 0, 1])) == [1, 0, 1]


def test_numbers_are_squashed():
    assert numbers(spaces.Box(-9, 9, (2,)), np.float32([0.5, -50])) == pytest.approx([0.4621, -1])


def test_parts_stand_side_by_side_and_the_reward_last():
    action = {"a": np.int32(2), "b": (np.float32([0, 1]),)}
    assert numbers(NESTED, action, reward=-19) == pytest.approx([0, 0, 1, 0, 0.7616, -2.9957], abs=1e-4)


@pytest.mark.parametrize(("reward", "seen"), [(0, 0), (1, 0.6931), (-1, -0.6931), (1e6, 13.8155)])
def test_a_reward_is_shrunk_whatever_its_sign(reward, seen):
    assert numbers(None, None, reward) == pytest.approx([seen], abs=1e-4)


def test_columns_are_told_row_by_row():
    actions, action = Actions(spec_of(spaces.MultiDiscrete([2, 2]))), np.int32([[0, 1], [1, 1], [0, 0]])
    parts = told(np, actions, True, {"action": action, "reward": np.zeros(3, np.float32)})
    assert np.concatenate(parts, axis=1).tolist() == [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [1, 0, 1, 0, 0]]
