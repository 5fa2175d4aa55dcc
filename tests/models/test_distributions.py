"""Action distributions against hand-computed numbers, sums over all actions, and numeric integrals.

Sampling is deterministic (noise is data), so frequencies are counted on a grid of uniforms; and policy units
go into env units and back.
"""

import timeit

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.errors import SpaceError
from steppe.models.distributions import MASKED, Distribution
from steppe.spaces import BoxSpec, collect, contains, rows, spec_of, zeros

spaces = gym.spaces
SMALLEST, LARGEST = np.float32(1e-7), np.float32(1 - 6e-8)
BOX2 = spaces.Box(-1, 1, (2,), np.float32)
sample, logp_of, entropy_of, kl_of = (
    jax.jit(f, static_argnums=0)
    for f in (Distribution.sample, Distribution.logp, Distribution.entropy, Distribution.kl)
)


def distribution(space, **options):
    return Distribution(spec_of(space), **options)


def box(low, high, dtype=np.float32, **options):
    low, high = np.asarray(low), np.asarray(high)
    return distribution(spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype), **options)


def test_sizes_and_layout():
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3), c=spaces.MultiBinary(4))
    d = distribution(spaces.Tuple([space, spaces.Box(-1, 1, (2, 2)), spaces.MultiDiscrete([2, 5])]))
    assert (d.param_size, d.log_std_size, d.noise_size) == (2 + 3 + 4 + 4 + 7 + 6, 6, 2 + 1 + 4 + 4 + 2)
    params = np.arange(26, dtype=np.float32)
    mode = jax.tree.map(np.asarray, d.mode(params))
    np.testing.assert_array_equal(mode[0]["a"], [0, 1])
    np.testing.assert_array_equal(mode[0]["b"], 2)
    np.testing.assert_array_equal(mode[1], [[9, 10], [11, 12]])
    np.testing.assert_array_equal(mode[2], [1, 4])
    # the last six parameters are the log standard deviations, in the order of the Boxes
    wide = params.copy()
    wide[[20, 25]] = 0.0
    entropy = d.entropy(wide) - d.entropy(np.where(np.arange(26) < 20, wide, wide - 1.0))
    np.testing.assert_allclose(entropy, 6.0, atol=1e-3)


def test_equality_and_hash_follow_space_and_options():
    assert distribution(BOX2) == distribution(spaces.Box(-1, 1, (2,), np.float32))
    assert hash(distribution(BOX2)) == hash(distribution(BOX2))
    others = [distribution(BOX2, squash=True), distribution(BOX2, clip=False), box([-1, -1], [1, 2])]
    assert all(distribution(BOX2) != other for other in others)
    assert "squash=True" in repr(others[0])


def test_it_is_a_static_argument_of_jit():
    traces = []

    def mode(d, params):
        traces.append(d)
        return d.mode(params)

    jitted = jax.jit(mode, static_argnums=0)
    for _ in range(2):
        jitted(distribution(BOX2), jnp.zeros(4))
    assert len(traces) == 1


# ---------------------------------------------------------------- numbers by hand


def test_categorical_by_hand():
    d = distribution(spaces.Discrete(3))
    p = np.asarray([0.5, 0.3, 0.2])
    params = np.log(p).astype(np.float32) + 7.0
    np.testing.assert_allclose([logp_of(d, params, a) for a in range(3)], np.log(p), atol=1e-6)
    np.testing.assert_allclose(entropy_of(d, params), 1.0296530, atol=1e-6)
    np.testing.assert_allclose(kl_of(d, params, np.zeros(3, np.float32)), np.log(3) - 1.0296530, atol=1e-6)
    assert d.mode(params) == 0
    assert d.mode(params).dtype == jnp.int32
    picks = [int(sample(d, params, np.asarray([u], np.float32))) for u in (0.49, 0.51, 0.79, 0.81)]
    assert picks == [0, 1, 1, 2]


def test_gaussian_by_hand():
    d = distribution(BOX2)
    params = np.asarray([1.0, -2.0, 0.0, np.log(2.0)], np.float32)
    # standard normal density at 1 and half that of a standard normal at 0.5
    expected = np.log(0.24197072) + np.log(0.35206533 / 2)
    np.testing.assert_allclose(logp_of(d, params, np.asarray([2.0, -1.0], np.float32)), expected, atol=1e-6)
    np.testing.assert_allclose(entropy_of(d, params), 2 * 1.4189385 + np.log(2), atol=1e-6)
    other = np.asarray([0.0, -2.0, 0.0, 0.0], np.float32)
    np.testing.assert_allclose(kl_of(d, params, other), 0.5 + 0.5 * (4 - 1) - np.log(2), atol=1e-6)
    noise = np.asarray([0.8413447, 0.9772499], np.float32)
    np.testing.assert_allclose(sample(d, params, noise), [2.0, 2.0], atol=1e-5)


def test_bernoulli_by_hand():
    d = distribution(spaces.MultiBinary(2))
    params = np.asarray([np.log(3.0), 0.0], np.float32)  # 3/4 and 1/2
    np.testing.assert_allclose(logp_of(d, params, np.asarray([1, 0])), np.log(3 / 8), atol=1e-6)
    np.testing.assert_allclose(logp_of(d, params, np.asarray([0, 0])), np.log(1 / 8), atol=1e-6)
    np.testing.assert_allclose(entropy_of(d, params), 0.5623351 + np.log(2), atol=1e-6)
    np.testing.assert_allclose(kl_of(d, params, np.zeros(2, np.float32)), np.log(2) - 0.5623351, atol=1e-6)
    np.testing.assert_array_equal(sample(d, params, np.asarray([0.74, 0.51], np.float32)), [1, 0])
    np.testing.assert_array_equal(d.mode(params + 0.1), [1, 1])
    assert d.mode(params).dtype == jnp.int8


def test_products_add_up():
    parts = [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiBinary(2)]
    product, single = distribution(spaces.Tuple(parts)), [distribution(p) for p in parts]
    rng = np.random.default_rng(0)
    p, q = (rng.normal(size=(4, 9)).astype(np.float32) for _ in range(2))
    cuts = [[0, 1, 7, 8], [2, 3, 4], [5, 6]]
    action = sample(product, p, rng.uniform(0.01, 0.99, (4, 5)).astype(np.float32))
    logp = sum(logp_of(d, p[:, c], a) for d, c, a in zip(single, cuts, action, strict=True))
    np.testing.assert_allclose(logp_of(product, p, action), logp, rtol=1e-5)
    entropy = sum(entropy_of(d, p[:, c]) for d, c in zip(single, cuts, strict=True))
    np.testing.assert_allclose(entropy_of(product, p), entropy, rtol=1e-5)
    kl = sum(kl_of(d, p[:, c], q[:, c]) for d, c in zip(single, cuts, strict=True))
    np.testing.assert_allclose(kl_of(product, p, q), kl, rtol=1e-4)


# ---------------------------------------------------------------- all actions of discrete spaces


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4, start=-2),
        spaces.MultiDiscrete([[2, 3], [1, 4]]),
        spaces.MultiDiscrete([3, 3]),
        spaces.MultiBinary(3),
    ],
    ids=str,
)
def test_probabilities_entropy_and_kl_are_sums_over_all_actions(space):
    d = distribution(space)
    rng = np.random.default_rng(1)
    p, q = (2 * rng.normal(size=d.param_size).astype(np.float32) for _ in range(2))
    shape = d.mode(p).shape
    sizes = np.asarray(getattr(space, "nvec", getattr(space, "n", 2))).ravel()
    sizes = np.full(3, 2) if isinstance(space, spaces.MultiBinary) else sizes
    every = np.stack([m.ravel() for m in np.meshgrid(*map(np.arange, sizes), indexing="ij")], -1)
    every = every.reshape(-1, *shape)
    assert contains(spec_of(space), rows(spec_of(space), d.to_env(every))[-1])
    logp, logq = (
        np.asarray(logp_of(d, np.broadcast_to(x, (len(every), x.size)), every), float) for x in (p, q)
    )
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(entropy_of(d, p), -(np.exp(logp) * logp).sum(), rtol=1e-4)
    np.testing.assert_allclose(kl_of(d, p, q), (np.exp(logp) * (logp - logq)).sum(), rtol=1e-4)
    np.testing.assert_array_equal(d.mode(p), every[logp.argmax()])


@pytest.mark.parametrize("n", [2, 5, 300])
def test_choices_come_as_often_as_they_are_likely(n):
    d = distribution(spaces.Discrete(n))
    params = np.random.default_rng(n).normal(size=n).astype(np.float32)
    grid = 30_000
    noise = ((np.arange(grid) + 0.5) / grid).astype(np.float32)[:, None]
    picks = np.asarray(sample(d, np.broadcast_to(params, (grid, n)), noise))
    p = np.exp(params) / np.exp(params).sum()
    np.testing.assert_allclose(np.bincount(picks, minlength=n) / grid, p, atol=2 / grid + 1e-5)


def test_components_use_noise_of_their_own():
    d = distribution(spaces.MultiDiscrete([2, 2]))
    noise = np.asarray([[0.2, 0.2], [0.2, 0.8], [0.8, 0.2]], np.float32)
    picks = sample(d, np.zeros((3, 4), np.float32), noise)
    np.testing.assert_array_equal(picks, [[0, 0], [0, 1], [1, 0]])


@pytest.mark.parametrize("u", [SMALLEST, LARGEST])
@pytest.mark.parametrize("n", [2, 7, 1000])
def test_extreme_noise_never_picks_a_masked_choice(n, u):
    d = distribution(spaces.Discrete(n))
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(200, n)).astype(np.float32)
    masked = rng.random((200, n)) < 0.6
    masked[:, n // 2] = False
    masked[:, [0, -1]] |= np.arange(n)[[0, -1]] != n // 2
    params = np.where(masked, np.float32(MASKED), logits)
    picks = np.asarray(sample(d, params, np.full((200, 1), u)))
    assert not masked[np.arange(200), picks].any()
    free = np.where(masked, -1, np.arange(n)[None])
    extreme = free.max(1) if u > 0.5 else np.where(free < 0, n, free).min(1)
    probability = np.exp(logp_of(d, params, extreme.astype(np.int32)))
    likely = probability > 1e-5  # below that, rounding of the cumulative sum may step over a choice
    np.testing.assert_array_equal(picks[likely], extreme[likely])


def test_noise_on_a_wobble_of_the_cumulative_sum_picks_no_masked_choice():
    n, rng = 1000, np.random.default_rng(0)
    masked = rng.random((5, n)) < 0.5
    params = np.where(masked, np.float32(MASKED), rng.normal(size=(5, n)).astype(np.float32))
    cdf = np.asarray(jax.jit(lambda logits: jnp.cumsum(jax.nn.softmax(logits), -1))(params))
    wobbles = (np.diff(cdf) > 0) & masked[:, 1:]
    assert wobbles.any()  # else this test shows nothing
    row, choice = np.nonzero(wobbles)
    noise = (cdf[row, choice + 1] / cdf[row, -1])[:, None].clip(SMALLEST, LARGEST)
    picks = np.asarray(sample(distribution(spaces.Discrete(n)), params[row], noise))
    assert not masked[row, picks].any()


def test_masked_choices_leave_every_figure_and_gradient_finite():
    d = distribution(spaces.MultiDiscrete([3, 2]))  # of unequal sizes, so that padding is masked too
    params = np.asarray([0.3, MASKED, -0.2, MASKED, 1.0], np.float32)

    def everything(p):
        return entropy_of(d, p) + kl_of(d, p, jnp.asarray(params)) + logp_of(d, p, jnp.asarray([0, 1]))

    value, gradient = jax.value_and_grad(everything)(jnp.asarray(params))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    p = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(entropy_of(d, params), -(p * np.log(p) + (1 - p) * np.log(1 - p)), rtol=1e-5)


# ---------------------------------------------------------------- Gaussians


@pytest.mark.parametrize("u", [SMALLEST, LARGEST])
def test_extreme_noise_is_finite(u):
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3), c=spaces.MultiBinary(2))
    for squash in (False, True):
        d = distribution(space, squash=squash)
        params = np.zeros((5, d.param_size), np.float32)
        action = sample(d, params, np.full((5, d.noise_size), u, np.float32))
        assert np.isfinite(logp_of(d, params, action)).all()
        assert 5.1 < np.abs(action["a"]).max() < 5.5
        env = d.to_env(jax.tree.map(np.asarray, action))
        assert all(contains(d.spec, row) for row in rows(d.spec, env))


@pytest.mark.parametrize(("mean", "log_std"), [(0.3, -0.5), (-1.5, 0.2)])
@pytest.mark.parametrize("squash", [False, True])
def test_density_integrates_to_one_and_gives_kl_and_entropy(mean, log_std, squash):
    d = box([-3], [5], squash=squash)
    params = np.asarray([mean, log_std], np.float32)
    other = np.asarray([0.0, 0.1], np.float32)
    x = np.linspace(-12, 12, 20_001)
    density_of = np.tanh(x) if squash else x
    logp, logq = (
        np.asarray(logp_of(d, jnp.asarray(p), x[:, None].astype(np.float32)), float) for p in (params, other)
    )
    mass = np.exp(logp) * np.gradient(density_of, x)
    assert np.trapezoid(mass, x) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.trapezoid(mass * (logp - logq), x), kl_of(d, params, other), rtol=2e-3)
    entropy = -np.trapezoid(mass * logp, x)
    if squash:  # the entropy before the squash exceeds it by the mean log slope
        entropy -= np.trapezoid(mass * 2 * (np.log(2) - x - np.logaddexp(0, -2 * x)), x)
    np.testing.assert_allclose(entropy_of(d, params), entropy, rtol=2e-3)


def test_squash_correction_is_stable_far_out():
    d = box([-1], [1], squash=True)
    params = jnp.asarray([0.0, 0.0])
    logp, slope = jax.value_and_grad(lambda a: logp_of(d, params, a))(jnp.asarray([30.0]))
    np.testing.assert_allclose(logp, -450 - 0.9189385 - 2 * (np.log(2) - 30), rtol=1e-6)
    np.testing.assert_allclose(slope, -30 + 2, rtol=1e-5)


def test_elements_without_two_bounds_are_not_squashed():
    both = box([-1, -np.inf, 0], [1, np.inf, np.inf], squash=True)
    plain = box([-1, -np.inf, 0], [1, np.inf, np.inf])
    params, action = np.zeros(6, np.float32), np.asarray([0.5, 2.0, 3.0], np.float32)
    correction = np.log(1 - np.tanh(0.5) ** 2)
    np.testing.assert_allclose(
        logp_of(both, params, action), logp_of(plain, params, action) - correction, rtol=1e-5
    )
    np.testing.assert_allclose(both.to_env(action[None]), [[np.tanh(0.5), 2, 3]], rtol=1e-6)


def test_gaussian_samples_have_the_moments_of_their_parameters():
    d = distribution(BOX2)
    u = ((np.arange(10_000) + 0.5) / 10_000).astype(np.float32)
    x = np.asarray(sample(d, np.asarray([1.0, -1.0, 0.0, 1.0], np.float32), np.stack([u, u[::-1]], -1)))
    np.testing.assert_allclose(x.mean(0), [1, -1], atol=1e-3)
    np.testing.assert_allclose(x.std(0), [1, np.e], rtol=2e-3)


# ---------------------------------------------------------------- env units


@pytest.mark.parametrize(
    ("options", "given_", "expected"),
    [
        ({}, [-1, 0, 0.5, 1, 3], [-2, 1, 2.5, 4, 4]),
        ({"clip": False}, [-1, 0, 0.5, 1, 3], [-2, 1, 2.5, 4, 10]),
        ({"normalize": False}, [-3, 0, 0.5, 1, 9], [-2, 0, 0.5, 1, 4]),
        ({"squash": True}, [-np.inf, 0, 0.5493061, 1e3], [-2, 1, 2.5, 4]),
    ],
    ids=str,
)
def test_a_bounded_box_by_hand(options, given_, expected):
    d = box([-2], [4], **options)
    env = d.to_env(np.asarray(given_, np.float32)[:, None])
    np.testing.assert_allclose(env[:, 0], expected, rtol=1e-6)
    assert env.dtype == np.float32


def test_half_bounded_elements_are_clipped_and_unbounded_ones_left_alone():
    d = box([0, -np.inf, -np.inf], [np.inf, 1, np.inf])
    np.testing.assert_array_equal(d.to_env(np.asarray([[-3, 7, -9e5]], np.float32)), [[0, 1, -9e5]])


def test_bounds_as_wide_as_the_dtype_are_no_scale():
    wide = box([np.finfo(np.float32).min], [np.finfo(np.float32).max])
    np.testing.assert_array_equal(wide.to_env(np.asarray([[0.25]], np.float32)), [[0.25]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_integer_boxes_round_and_stay_inside_even_unclipped(dtype):
    d = box([0], [10], dtype, clip=False)
    env = d.to_env(np.asarray([[-1], [-0.07], [0], [1], [50]], np.float32))
    assert env.dtype == dtype
    np.testing.assert_array_equal(env[:, 0], [0, 5, 5, 10, 10])
    limits = np.iinfo(dtype)
    full = distribution(spaces.Box(limits.min, limits.max, (1,), dtype))
    extreme = full.to_env(np.asarray([[-1e30], [1e30]], np.float32))[:, 0]
    assert int(extreme[0]) == limits.min
    assert limits.max - 2048 <= int(extreme[1]) <= limits.max


def test_float64_boxes_keep_their_precision():
    d = box([0.0], [1e6 + 0.25], np.float64)
    assert d.to_env(np.asarray([[1.0]], np.float32))[0, 0] == 1e6 + 0.25


def test_a_box_of_one_point_stays_there():
    for squash in (False, True):
        d = box([2, 0], [2, 1], squash=squash)
        np.testing.assert_array_equal(d.to_env(np.asarray([[5, -9]], np.float32))[0, 0], 2)
        np.testing.assert_array_equal(d.from_env(np.asarray([[2, 0.5]], np.float32)), [[0, 0]])


SPACES = [
    spaces.Discrete(5, start=-3),
    spaces.MultiDiscrete([2, 5], start=[1, -4]),
    spaces.MultiDiscrete([2, 3], dtype=np.int32),
    spaces.MultiBinary((2, 2)),
    spaces.Box(-3, 5, (2, 3), np.float64),
    spaces.Box(np.float32([-1, 0, -np.inf]), np.float32([1, np.inf, 4])),
    spaces.Box(0, 255, (4,), np.uint8),
    spaces.Box(0, 1, (2,), np.bool_),
    spaces.Box(-1, 1, (), np.float32),
    spaces.Dict(z=spaces.Discrete(2), a=spaces.Tuple([spaces.Box(0, 9, (2,)), spaces.MultiBinary(1)])),
]


@pytest.mark.parametrize("squash", [False, True])
@given(space=st.sampled_from(SPACES), seed=st.integers(0, 10_000))
def test_env_actions_round_trip(squash, space, seed):
    d = distribution(space, squash=squash)
    space.seed(seed)
    column = collect(d.spec, [space.sample() for _ in range(3)], None, "action")
    units = d.from_env(column)
    again = d.to_env(units)
    for expected, back in zip(jax.tree.leaves(column), jax.tree.leaves(again), strict=True):
        assert back.dtype == expected.dtype
        assert not np.shares_memory(back, expected)
        np.testing.assert_allclose(back, expected, atol=2e-4)
    assert np.isfinite(logp_of(d, np.zeros(d.param_size, np.float32), units)).all()


@given(space=st.sampled_from(SPACES), seed=st.integers(0, 10_000), squash=st.booleans())
def test_every_sample_is_inside_the_space(space, seed, squash):
    d = distribution(space, squash=squash)
    rng = np.random.default_rng(seed)
    params = 3 * rng.normal(size=(2, d.param_size)).astype(np.float32)
    noise = rng.uniform(1e-6, 1 - 1e-6, (2, d.noise_size)).astype(np.float32)
    env = d.to_env(jax.tree.map(np.asarray, sample(d, params, noise)))
    assert jax.tree.structure(env) == jax.tree.structure(zeros(d.spec, 2))
    assert all(space.contains(row) or contains(d.spec, row) for row in rows(d.spec, env))


def test_leading_axes_are_free():
    d = distribution(SPACES[-1])
    rng = np.random.default_rng(0)
    params = rng.normal(size=(3, 2, d.param_size)).astype(np.float32)
    noise = rng.uniform(0.1, 0.9, (3, 2, d.noise_size)).astype(np.float32)
    action = sample(d, params, noise)
    logp, entropy = logp_of(d, params, action), entropy_of(d, params)
    assert logp.shape == entropy.shape == kl_of(d, params, params).shape == (3, 2)
    one = sample(d, params[1, 1], noise[1, 1])
    np.testing.assert_allclose(logp_of(d, params[1, 1], one), logp[1, 1], rtol=1e-6)


def test_to_env_costs_microseconds():
    d, x = box([-2], [2]), np.zeros((64, 1), np.float32)
    assert min(timeit.repeat(lambda: d.to_env(x), number=200, repeat=10)) / 200 < 40e-6  # 5 on an idle core


@pytest.mark.parametrize(
    "spec",
    [
        spec_of(spaces.Sequence(spaces.Discrete(2)), max_sequence_length=3),
        spec_of(spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)])),
    ],
    ids=["Sequence", "OneOf"],
)
def test_spaces_without_a_fixed_number_of_values_are_refused(spec):
    with pytest.raises(SpaceError, match=r"^action: .*varying number"):
        Distribution(spec)


def test_refusals_name_the_leaf_and_empty_spaces():
    inner = spaces.Dict(x=spaces.Tuple([spaces.Discrete(2), spaces.OneOf([spaces.Discrete(2)])]))
    with pytest.raises(SpaceError, match=r"action\['x'\]\[1\]"):
        distribution(inner)
    with pytest.raises(SpaceError, match="nothing to choose"):
        Distribution(BoxSpec((0,), np.float32, -1, 1))
