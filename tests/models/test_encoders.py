"""Every space becomes a vector of the said size inside jit, with the right numbers in it.

Observation statistics equal numpy's, whatever the split, the mask and the nesting.
"""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.models.encoders import make_encoder, norm_merge, normalize
from steppe.models.observations import image_axis, norm_init, normalized_leaves
from steppe.spaces import collect, map_leaves, spec_of, zeros

spaces = gym.spaces


def encoder(space, **options):
    spec = spec_of(space, max_sequence_length=4)
    return make_encoder(spec, np.random.default_rng(0), **options), spec


def column(spec, *values):
    return collect(spec, list(values), None)


def encode(enc, obs):
    return np.asarray(jax.jit(jax.vmap(enc))(obs))


# ---------------------------------------------------------------- numbers by hand


def test_boxes_and_bits_are_flattened_to_float32():
    for space in (
        spaces.Box(-9, 9, (2, 2), np.float64),
        spaces.Box(0, 9, (2, 2), np.int16),
        spaces.MultiBinary((2, 2)),
    ):
        enc, spec = encoder(space)
        out = encode(enc, column(spec, np.asarray([[0, 1], [1, 0]], getattr(space, "dtype", np.int8))))
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, [[0, 1, 1, 0]])
    assert encoder(spaces.Box(-1, 1, ()))[0].size == 1


def test_discrete_is_one_hot_from_its_start():
    enc, spec = encoder(spaces.Discrete(3, start=-1))
    np.testing.assert_array_equal(encode(enc, column(spec, -1, 1)), [[1, 0, 0], [0, 0, 1]])


def test_multi_discrete_is_one_hot_by_component():
    enc, spec = encoder(spaces.MultiDiscrete([[2, 3], [1, 2]], start=[[0, 5], [0, 0]]))
    out = encode(enc, column(spec, np.asarray([[1, 7], [0, 0]])))
    np.testing.assert_array_equal(out, [[0, 1, 0, 0, 1, 1, 1, 0]])


def test_very_many_choices_become_rows_of_a_table():
    enc, spec = encoder(spaces.MultiDiscrete([2, 5000, 3], start=[0, 10, 0]))
    assert enc.size == 2 + 3 + 64
    out = encode(enc, column(spec, np.asarray([1, 5009, 2])))
    np.testing.assert_array_equal(out[0, :5], [0, 1, 0, 0, 1])
    np.testing.assert_array_equal(out[0, 5:], enc.tables[0][4999])
    assert encoder(spaces.Discrete(1024))[0].size == 1024
    assert encoder(spaces.Discrete(1025))[0].size == 64


def test_dict_and_tuple_lie_side_by_side():
    enc, spec = encoder(
        spaces.Dict(b=spaces.Discrete(2), a=spaces.Tuple([spaces.Box(-9, 9, (1,)), spaces.Discrete(2)]))
    )
    obs = column(spec, {"a": (np.asarray([7.0], np.float32), 1), "b": 0})
    np.testing.assert_array_equal(encode(enc, obs), [[7, 0, 1, 1, 0]])


def test_one_of_shows_the_chosen_part_only():
    enc, spec = encoder(spaces.OneOf([spaces.Box(-9, 9, (2,)), spaces.Discrete(2)]))
    obs = column(spec, (0, np.asarray([3.0, 4.0], np.float32)), (1, 0))
    np.testing.assert_array_equal(encode(enc, obs), [[1, 0, 3, 4, 0, 0], [0, 1, 0, 0, 1, 0]])


def test_sequence_is_mean_and_maximum_of_its_items():
    enc, spec = encoder(spaces.Sequence(spaces.Box(-9, 9, (1,))), sequence_hidden=8)
    items = [tuple(np.asarray([x], np.float32) for x in xs) for xs in ([], [2.0], [2.0, -3.0], [-3.0, 2.0])]
    none, one, two, swapped = encode(enc, column(spec, *items))
    single = {x: np.maximum(np.asarray(enc.mlp(jnp.asarray([x]))), 0) for x in (2.0, -3.0)}
    np.testing.assert_array_equal(none, np.zeros(16))
    np.testing.assert_allclose(one, np.tile(single[2.0], 2), rtol=1e-5)
    both = np.stack([single[2.0], single[-3.0]])
    np.testing.assert_allclose(two, np.concatenate([both.mean(0), both.max(0)]), rtol=1e-5)
    np.testing.assert_allclose(swapped, two, rtol=1e-5)
    assert np.abs(two).max() > 0.1


def test_padding_of_a_sequence_does_not_matter():
    enc, spec = encoder(spaces.Sequence(spaces.Box(-9, 9, (2,))))
    obs = column(spec, (np.ones(2, np.float32),) * 2)
    dirty = {"length": obs["length"], "items": obs["items"].copy()}
    dirty["items"][:, 2:] = 55.0
    np.testing.assert_array_equal(encode(enc, obs), encode(enc, dirty))


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("shape", "dtype", "axis"),
    [
        ((84, 84, 4), np.uint8, 2),
        ((4, 84, 84), np.uint8, 0),
        ((210, 160, 3), np.uint8, 2),
        ((1, 16, 16), np.float32, 0),
        ((16, 16, 16), np.uint8, 2),
        ((16, 20, 3), np.uint8, 2),
        ((15, 16, 3), np.uint8, None),
        ((84, 84, 17), np.uint8, None),
        ((84, 4, 84), np.uint8, None),
        ((84, 84), np.uint8, None),
        ((84, 84, 3), np.int32, None),
        ((84, 84, 3), np.bool_, None),
    ],
)
def test_what_looks_like_an_image(shape, dtype, axis):
    assert image_axis(spec_of(spaces.Box(0, 1, shape, dtype))) == axis


def test_images_first_or_last_give_the_same_vector():
    last, spec_last = encoder(spaces.Box(0, 255, (18, 16, 3), np.uint8))
    first, spec_first = encoder(spaces.Box(0, 255, (3, 18, 16), np.uint8))
    pixels = np.random.default_rng(0).integers(0, 256, (18, 16, 3), dtype=np.uint8)
    a = encode(last, column(spec_last, pixels))
    np.testing.assert_allclose(a, encode(first, column(spec_first, pixels.transpose(2, 0, 1))), atol=1e-6)
    np.testing.assert_allclose(a[0], last.cnn(pixels / np.float32(255)), atol=1e-5)


@pytest.mark.parametrize(
    ("high", "dtype", "scale"), [(1, np.uint8, 1), (np.inf, np.float32, 1), (255, np.float32, 255)]
)
def test_pixels_are_divided_by_their_largest_bound(high, dtype, scale):
    enc, _ = encoder(spaces.Box(0, high, (16, 16, 1), dtype), conv_filters=[[4, 4, 4]])
    assert enc.scale == 1 / scale
    assert enc.cnn.dense.shape[0] == 4 * 4 * 4


# ---------------------------------------------------------------- all spaces


LEAVES = st.sampled_from(
    [
        spaces.Box(-5, 5, (2,), np.float32),
        spaces.Box(-np.inf, np.inf, (), np.float64),
        spaces.Box(0, 200, (3,), np.int64),
        spaces.Box(0, 255, (16, 16, 1), np.uint8),
        spaces.Discrete(3, start=2),
        spaces.MultiDiscrete([2, 4]),
        spaces.MultiBinary(2),
    ]
)


def nest(children):
    pair = st.tuples(children, children)
    return (
        pair.map(spaces.Tuple)
        | pair.map(lambda p: spaces.Dict(x=p[0], y=p[1]))
        | pair.map(spaces.OneOf)
        | children.map(spaces.Sequence)
    )


@settings(max_examples=15)
@given(space=st.recursive(LEAVES, nest, max_leaves=3), seed=st.integers(0, 99))
def test_any_space_is_encoded_and_normalised(space, seed):
    enc, spec = encoder(space, conv_filters=[[2, 8, 8]])
    space.seed(seed)
    obs = collect(spec, [shorten(space, space.sample()) for _ in range(3)], None)
    stats = norm_init(spec)
    assert len(stats) == 3 * len(normalized_leaves(spec))

    @jax.jit
    def everything(obs, stats):
        stats = norm_merge(spec, stats, obs, jnp.ones(3, bool))
        return stats, jax.vmap(lambda one: enc(normalize(spec, stats, one)))(obs)

    stats, out = everything(obs, stats)
    assert out.shape == (3, enc.size)
    assert out.dtype == jnp.float32
    assert np.isfinite(out).all()
    assert all(np.isfinite(s).all() for s in stats)


def shorten(space, value, longest=4):
    """Gymnasium draws sequences of any length; ours hold so many items."""
    if isinstance(space, spaces.Sequence):
        return tuple(shorten(space.feature_space, item, longest) for item in value[:longest])
    if isinstance(space, spaces.OneOf):
        return (value[0], shorten(space.spaces[int(value[0])], value[1], longest))
    if isinstance(space, spaces.Dict):
        return {key: shorten(part, value[key], longest) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(shorten(part, item, longest) for part, item in zip(space.spaces, value, strict=True))
    return value


# ---------------------------------------------------------------- normalisation


NESTED = spec_of(
    spaces.Dict(
        pixels=spaces.Box(0, 1, (16, 16, 1)),
        speed=spaces.Box(-1, 1, (2,)),
        ram=spaces.Box(0, 255, (3,), np.uint8),
        few=spaces.Box(0, 3, (2,), np.int32),
        flag=spaces.Box(0, 1, (2,), np.bool_),
        door=spaces.Discrete(4),
    )
)


def test_which_leaves_are_normalised():
    covered = normalized_leaves(NESTED)
    assert {path: leaf.shape for path, leaf in covered.items()} == {'obs["ram"]': (3,), 'obs["speed"]': (2,)}
    assert covered['obs["ram"]'].dtype == np.uint8
    inside = spaces.Tuple((spaces.OneOf((spaces.Discrete(2), spaces.Box(-1, 1, (2,)))), spaces.Box(-1, 1)))
    assert list(normalized_leaves(spec_of(inside))) == ['obs[0]["values"][1]', "obs[1]"]
    assert norm_init(spec_of(spaces.Discrete(3))) == ()


def test_other_leaves_are_left_alone():
    obs = zeros(NESTED, 1)
    obs = map_leaves(np.ones_like, obs)
    stats = tuple(np.full_like(s, 4.0) for s in norm_init(NESTED))
    out = normalize(NESTED, stats, obs)
    assert all(out[key] is obs[key] for key in ("pixels", "few", "flag", "door"))
    np.testing.assert_allclose(out["ram"], -3.0, rtol=1e-6)
    np.testing.assert_allclose(out["speed"], -3.0, rtol=1e-6)


BOX = spec_of(spaces.Box(-np.inf, np.inf, (2,)))


def test_normalize_by_hand_and_clip():
    stats = (np.float32(4), np.asarray([1.0, 0.0], np.float32), np.asarray([16.0, 4e8], np.float32))
    obs = np.asarray([[3.0, 1e4], [1000.0, 0.0]], np.float32)
    np.testing.assert_allclose(normalize(BOX, stats, obs), [[1, 1], [10, 0]], rtol=1e-5)
    np.testing.assert_allclose(normalize(BOX, stats, obs[1], clip=5.0), [5, 0], rtol=1e-5)


def test_before_two_rows_were_seen_values_are_clipped_alone():
    obs, clipped = np.asarray([[3.0, -40.0]], np.float32), [[3, -10]]
    stats = norm_init(BOX)
    np.testing.assert_array_equal(normalize(BOX, stats, obs), clipped)
    stats = norm_merge(BOX, stats, obs, np.ones(1, bool))
    np.testing.assert_array_equal(normalize(BOX, stats, 2 * obs), [[6, -10]])
    stats = norm_merge(BOX, stats, obs + 2, np.ones(1, bool))
    np.testing.assert_allclose(normalize(BOX, stats, obs + 2), [[1, 1]], rtol=1e-5)


@jax.jit
def merge_box(stats, obs, mask):
    return norm_merge(BOX, stats, obs, mask)


@given(seed=st.integers(0, 2**16), offset=st.sampled_from([0.0, 50.0, -3000.0]), parts=st.integers(1, 4))
def test_statistics_equal_numpy_over_any_split_and_mask(seed, offset, parts):
    rng = np.random.default_rng(seed)
    obs = (offset + rng.normal(size=(parts, 5, 3, 2)) * [1, 10]).astype(np.float32)
    mask = rng.random((parts, 5, 3)) < rng.uniform(0, 1)
    stats = norm_init(BOX)
    for part in range(parts):
        stats = merge_box(stats, np.where(mask[part][..., None], obs[part], np.nan), mask[part])
    seen = obs[mask].astype(np.float64)
    assert stats[0] == len(seen)
    if len(seen):
        np.testing.assert_allclose(stats[1], seen.mean(0), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(stats[2] / len(seen), seen.var(0), rtol=1e-3, atol=1e-4)


def test_large_offsets_keep_their_variance_in_float32():
    rng = np.random.default_rng(0)
    obs = (1e4 + rng.normal(size=(8192, 2))).astype(np.float32)
    stats = norm_init(BOX)
    for _ in range(20):
        stats = merge_box(stats, obs, np.ones(8192, bool))
    exact = obs.astype(np.float64)
    np.testing.assert_allclose(stats[1], exact.mean(0), atol=2e-3)
    np.testing.assert_allclose(stats[2] / stats[0], exact.var(0), rtol=1e-3)


def test_statistics_of_enormous_numbers_stay_finite():
    box = spec_of(spaces.Box(-np.inf, np.inf, (2,), np.float64))
    obs = np.asarray([[1e30, -1e30], [1e30, 3.0], [1e300, 5.0]], np.float64)
    with np.errstate(over="ignore"):
        obs = obs.astype(np.float32)
    stats = norm_init(box)
    for _ in range(3):
        stats = norm_merge(box, stats, obs, np.ones(3, bool))
    assert all(np.isfinite(leaf).all() for leaf in stats)
    assert np.isfinite(normalize(box, stats, obs)).all()


def test_absent_items_and_unchosen_parts_do_not_count():
    box = spaces.Box(-np.inf, np.inf, (1,))
    spec = spec_of(
        spaces.Tuple([spaces.Sequence(box), spaces.OneOf([box, spaces.Discrete(2)])]), max_sequence_length=3
    )

    def one(x):
        return np.asarray([x], np.float32)

    obs = collect(spec, [((one(1), one(3)), (0, one(8))), ((), (1, 1)), ((one(50),), (0, one(50)))], None)
    stats = norm_merge(spec, norm_init(spec), obs, np.asarray([True, True, False]))
    np.testing.assert_allclose([s.item() for s in stats], [2, 2, 2, 1, 8, 0])
    out = normalize(spec, stats, obs)
    np.testing.assert_allclose(out[0]["items"][0, :2, 0], [-1, 1], rtol=1e-5)
    np.testing.assert_array_equal(out[1]["choice"], [0, 1, 0])
