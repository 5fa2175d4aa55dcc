"""Frames: what networks see of stacked observations, by hand and against loops; acting as learning sees."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.errors import ConfigError
from steppe.models.framestack import framed
from steppe.policies.frames import FramesPolicy
from steppe.spaces import leaves, map_leaves, spec_of, zeros
from steppe.types import Decision, SpacePair

ACTION = spec_of(spaces.Discrete(2))
RNG = np.random.default_rng(0)


def frames_of(space, count, *keep):
    return framed(SpacePair(spec_of(space), ACTION), count, *keep)


def image(*shape, dtype=np.uint8):
    return spaces.Box(0, 255, shape, dtype)


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (spaces.Box(-1, 1, (3,), np.float32), (12,)),
        (spaces.Box(-1, 1, (), np.float32), (4,)),
        (spaces.Box(-1, 1, (2, 3), np.float64), (24,)),
        (image(20, 24, 3), (20, 24, 12)),
        (image(1, 20, 24), (4, 20, 24)),
        (image(84, 84), (84, 84, 4)),
        (image(8, 16, 2), (1024,)),  # no image by itself, and none when stacked
    ],
)
def test_the_space_of_what_is_seen(space, shape):
    frames, pair = frames_of(space, 4)
    assert pair.observation.shape == shape
    assert pair.observation.dtype == space.dtype
    assert pair.observation.low.min() == space.low.min()
    assert pair.observation.high.max() == space.high.max()
    column = np.zeros((5, 4, *space.shape), space.dtype)
    assert frames.joined(column, 1).shape == (5, *shape)


def test_bounds_stay_with_their_elements():
    space = spaces.Box(np.float32([0, -5]), np.float32([1, 5]))
    spec = frames_of(space, 2)[1].observation
    assert spec.low.tolist() == [0, -5, 0, -5]
    assert spec.high.tolist() == [1, 5, 1, 5]


def test_the_oldest_comes_first():
    frames, _ = frames_of(spaces.Box(-9, 9, (2,), np.float32), 3)
    assert frames.joined(np.float32([[[1, 2], [3, 4], [5, 6]]]), 1).tolist() == [[1, 2, 3, 4, 5, 6]]
    frames, _ = frames_of(image(16, 17, 2), 3)
    stack = RNG.integers(0, 255, (7, 3, 16, 17, 2), np.uint8)
    seen = frames.joined(stack, 1)
    for i in range(3):
        assert np.array_equal(seen[..., 2 * i : 2 * i + 2], stack[:, i])
    frames, _ = frames_of(image(2, 16, 17), 3)
    stack = RNG.integers(0, 255, (7, 3, 2, 16, 17), np.uint8)
    for i in range(3):
        assert np.array_equal(frames.joined(stack, 1)[:, 2 * i : 2 * i + 2], stack[:, i])
    frames, _ = frames_of(image(16, 17), 3)
    stack = RNG.integers(0, 255, (2, 5, 3, 16, 17), np.uint8)
    assert np.array_equal(frames.joined(stack, 2), np.moveaxis(stack, 2, -1))


NESTED = spaces.Dict(
    {
        "action_mask": spaces.MultiBinary(2),
        "boxes": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3))),
        "state": spaces.Box(-1, 1, (2,), np.float32),
        "items": spaces.Sequence(spaces.Box(-1, 1, (1,), np.float32), stack=False),
    }
)


def nested(count, *keep):
    pair = SpacePair(spec_of(NESTED, max_sequence_length=3), ACTION)
    return framed(pair, count, *keep)


def test_only_boxes_are_stacked_and_the_rest_is_as_it_is_now():
    frames, pair = nested(2, "state")
    parts = dict(pair.observation.items)
    assert parts["boxes"].items[0].shape == (4,)
    assert {key: parts[key] for key in ("action_mask", "state", "items")} == {
        key: part for key, part in frames.spec.items if key != "boxes"
    }
    column = zeros(frames.spec, 5, 2)
    for leaf in leaves(column):
        leaf[:, 0], leaf[:, 1] = 1, 2
    seen = frames.joined(column, 1)
    assert seen["boxes"][0].tolist() == [[1, 1, 2, 2]] * 5
    rest = [seen["boxes"][1], *leaves({k: v for k, v in seen.items() if k != "boxes"})]
    assert all((leaf == 2).all() for leaf in rest)
    shapes = map_leaves(lambda a: (a.shape, a.dtype), seen)
    assert shapes == map_leaves(lambda a: (a.shape, a.dtype), zeros(pair.observation, 5))


def test_it_is_the_same_inside_jit():
    frames, _ = nested(3)
    column = map_leaves(lambda a: RNG.integers(0, 2, a.shape).astype(a.dtype), zeros(frames.spec, 4, 3))
    compiled = jax.jit(frames.joined, static_argnums=1)(column, 1)
    for one, other in zip(leaves(frames.joined(column, 1)), jax.tree.leaves(compiled), strict=True):
        assert np.array_equal(one, other)


def test_one_frame_is_no_stack():
    pair = SpacePair(spec_of(spaces.Discrete(2)), ACTION)
    assert framed(pair, 1) == (None, pair)


@pytest.mark.parametrize(
    ("space", "count", "words"),
    [
        (spaces.Discrete(3), 4, r'stacks Boxes, and there is none in Discrete.*memory="lstm"'),
        (image(20, 20, 3), 6, r"makes images \(20, 20, 18\) of \(20, 20, 3\), more channels than .*\(16\)"),
    ],
)
def test_what_cannot_be_stacked_is_said(space, count, words):
    with pytest.raises(ConfigError, match=words):
        frames_of(space, count)


# --- acting ----------------------------------------------------------------------------------------------


class Watcher:
    """A policy that remembers what it was shown; its own state counts the rows of a trajectory."""

    noise_size, to_env, from_env, draws = 1, None, None, False

    def __init__(self, pair):
        self.observation = self.acting = pair.observation
        self.action, self.shown = pair.action, []

    def load(self, weights):
        return weights

    def act(self, weights, obs, state, noise):
        self.shown.append(obs)
        n = len(leaves(obs)[0])
        return Decision(np.zeros(n, np.int32), np.zeros(n, np.float32), {"count": state["count"] + 1})

    def initial_state(self, n):
        return {"count": np.zeros(n, np.int64)}

    def export(self, weights):
        return {"network": {"observation": "stacked"}, "arrays": {}}


@given(count=st.integers(2, 5), length=st.integers(1, 9), dtype=st.sampled_from([np.float32, np.int64]))
@settings(max_examples=30, deadline=None)
def test_a_trajectory_is_acted_on_with_its_past(count, length, dtype):
    """Against a list: the first observation stands for those that never were."""
    space = spaces.Box(-(2**40), 2**40, (2,), dtype)
    frames, pair = frames_of(space, count)
    inner = Watcher(pair)
    policy = FramesPolicy(inner, frames)
    past, state = [], policy.initial_state(3)
    for t in range(length):
        obs = (2**36 + 10 * t + np.arange(6).reshape(3, 2)).astype(dtype)
        past.append(obs.astype(np.float32))
        decision = policy.act(None, obs, state, None)
        state = decision.state
        row = [past[max(t - back, 0)] for back in range(count - 1, -1, -1)]
        assert np.array_equal(inner.shown[-1], np.concatenate(row, axis=1))
    assert state["count"].tolist() == [length] * 3
    assert set(state) == {"count", "frames", "seen"}


def test_rows_of_one_call_have_trajectories_of_their_own():
    frames, pair = frames_of(spaces.Box(-99, 99, (1,), np.float32), 3)
    inner = Watcher(pair)
    policy = FramesPolicy(inner, frames)
    old = policy.act(None, np.float32([[1]]), policy.initial_state(1), None).state
    both = map_leaves(lambda *rows: np.concatenate(rows), old, policy.initial_state(1))
    policy.act(None, np.float32([[2], [7]]), both, None)
    assert inner.shown[-1].tolist() == [[1, 1, 2], [7, 7, 7]]


def test_what_is_exported_takes_single_observations():
    frames, pair = frames_of(spaces.Box(-99, 99, (1,), np.float32), 3)
    network = FramesPolicy(Watcher(pair), frames).export(None)["network"]
    assert (network["framestack"], network["unstacked"]) == (3, ["action_mask"])
    assert network["observation"]["shape"] == [1]
