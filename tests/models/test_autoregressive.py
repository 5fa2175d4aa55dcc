"""Actions chosen part by part: against sums over all of them, numbers worked out by hand, and in numpy."""

import itertools

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.models.actions import MASKED, Actions
from steppe.models.autoregressive import CONTEXT
from steppe.models.distributions import Distribution, legal
from steppe.spaces import leaves, spec_of

spaces = gym.spaces
MIXED = spaces.Dict(
    a=spaces.MultiDiscrete([3, 2]),
    b=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(2, start=5)]),
    c=spaces.MultiBinary(2),
)
TWO = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])
CHOICES = spaces.MultiDiscrete([[3, 2], [2, 4]])


def chain(space, **options):
    return Distribution(spec_of(space), autoregressive=True, **options)


def drawn(distribution, n, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    params = scale * rng.standard_normal((n, distribution.param_size), np.float32)
    return params, rng.random((n, distribution.noise_size), np.float32)


@pytest.mark.parametrize("space", [MIXED, TWO, CHOICES, spaces.Box(-1, 1, (2,))])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999))
def test_numpy_chooses_the_same(space, seed):
    d = chain(space)
    params, noise = drawn(d, 4, seed)
    for ours, theirs in ((d.sample(params, noise), noise), (d.mode(params), None)):
        other = d.actions.choose(params, theirs)
        for a, b in zip(leaves(ours), leaves(other), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, atol=1e-5)


def every(nvec):
    return np.array(list(itertools.product(*map(range, np.ravel(nvec)))), np.int32).reshape(
        -1, *np.shape(nvec)
    )


def test_probabilities_of_all_actions_add_up_and_entropy_is_their_mean():
    """The mean of what entropy says of each action, by how likely that is, is the true entropy."""
    d = chain(CHOICES)
    actions = every(CHOICES.nvec)
    (params,), _ = drawn(d, 1, 3, 2.0)
    rows = jnp.broadcast_to(params, (len(actions), len(params)))
    logp = np.asarray(d.logp(rows, actions), np.float64)
    p = np.exp(logp)
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    assert (p * np.asarray(d.entropy(rows, actions))).sum() == pytest.approx(-(p * logp).sum(), abs=1e-4)
    assert p.max() > 2 * p.min(), "or everything would be even"


def test_noise_draws_as_often_as_the_probabilities_say():
    d = chain(TWO)
    (params,), _ = drawn(d, 1, 1, 1.5)
    n = 20_000
    noise = np.random.default_rng(0).random((n, 2), np.float32)
    first, second = d.sample(jnp.broadcast_to(params, (n, len(params))), noise)
    for a, b in itertools.product(range(2), range(3)):
        p = float(jnp.exp(d.logp(params, (jnp.int32(a), jnp.int32(b)))))
        assert np.mean((first == a) & (second == b)) == pytest.approx(p, abs=0.015)


def test_two_choices_by_hand():
    """Heads 2 + 3, a context; weights from the first choice (one-hot), and to the second's logits."""
    d = chain(TWO)
    rng = np.random.default_rng(5)
    z1, z2, c = rng.standard_normal(2), rng.standard_normal(3), rng.standard_normal(CONTEXT)
    into, out = rng.standard_normal((2, CONTEXT)), rng.standard_normal((CONTEXT, 3))
    params = np.concatenate([z1, z2, c, into.ravel(), out.ravel()]).astype(np.float32)
    assert d.param_size == len(params) == 5 + CONTEXT * (1 + 2 + 3)
    for a, b in itertools.product(range(2), range(3)):
        logits = z2 + np.tanh(c + into[a]) @ out
        by_hand = z1[a] - np.log(np.exp(z1).sum()) + logits[b] - np.log(np.exp(logits).sum())
        assert float(d.logp(params, (np.int32(a), np.int32(b)))) == pytest.approx(by_hand, abs=1e-4)
    first, second = d.mode(params)
    assert first == z1.argmax()
    assert second == (z2 + np.tanh(c + into[int(first)]) @ out).argmax()


@pytest.mark.parametrize("space", [MIXED, CHOICES])
def test_before_training_parts_are_independent_and_learn_to_depend(space):
    d, alone = chain(space), Distribution(spec_of(space))
    free = d.weights(np.random.default_rng(0))
    heads = alone.param_size - alone.log_std_size
    rng = np.random.default_rng(1)
    own, scales = (rng.standard_normal(n).astype(np.float32) for n in (heads, alone.log_std_size))
    contexts = rng.standard_normal(d.param_size - alone.param_size - len(free)).astype(np.float32)
    params = np.concatenate([own, contexts, scales, free])
    plain = np.concatenate([own, scales])
    noise = rng.random(d.noise_size, np.float32)
    action = d.sample(params[None], noise[None])
    for a, b in zip(leaves(action), leaves(alone.sample(plain[None], noise[None])), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(d.logp(params[None], action), alone.logp(plain[None], action), atol=1e-5)
    gradient = jax.grad(lambda p: d.logp(p[None], action).sum())(params)
    assert np.any(gradient[-len(free) :]), "the weights to the heads move first"


def test_what_is_forbidden_stays_forbidden_whatever_was_chosen():
    d = chain(spaces.MultiDiscrete([3, 4]))
    params, noise = drawn(d, 200, 2, 3.0)
    mask = np.array([0, 1, 1, 1, 0, 0, 1], np.int8)
    masked = legal(params, jnp.broadcast_to(mask, (200, 7)))
    np.testing.assert_array_equal(masked[:, 7:], params[:, 7:])
    assert (masked[:, [0, 4, 5]] == MASKED).all()
    action = np.asarray(d.sample(masked, noise))
    assert set(action[:, 0].tolist()) <= {1, 2}
    assert set(action[:, 1].tolist()) == {0, 3}


def test_weights_are_the_same_for_all_rows_and_their_gradient_is_that_of_all():
    """As networks give them: a mean over rows has the gradient of the rows one by one."""
    d = chain(MIXED)
    rng = np.random.default_rng(0)
    size = len(d.weights(rng))
    heads = rng.standard_normal((5, d.param_size - size)).astype(np.float32)
    free = rng.standard_normal(size).astype(np.float32)
    noise = rng.random((5, d.noise_size), np.float32)

    def params(heads, free):
        return jnp.concatenate([heads, jnp.broadcast_to(free, (len(heads), size))], -1)

    action = d.sample(params(heads, free), noise)
    together = jax.grad(lambda free: d.logp(params(heads, free), action).sum())(free)
    alone = 0.0
    for i in range(5):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], action)
        alone += jax.grad(lambda free, i=i, one=one: d.logp(params(heads[i : i + 1], free), one).sum())(free)
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_options_are_part_of_what_it_is_and_of_its_description():
    assert chain(TWO) == chain(TWO) != Distribution(spec_of(TWO))
    assert chain(TWO).options == {"squash": False, "normalize": True, "clip": True, "autoregressive": True}
    assert Actions(spec_of(TWO), **chain(TWO).options).param_size == chain(TWO).param_size


def test_one_part_alone_needs_nothing():
    d = chain(spaces.Discrete(4))
    assert (d.param_size, len(d.weights(np.random.default_rng(0)))) == (4, 0)
    assert float(d.logp(np.zeros(4, np.float32), np.int32(2))) == pytest.approx(-np.log(4))
