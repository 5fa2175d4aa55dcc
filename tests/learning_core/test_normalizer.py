"""Running statistics: rewards scaled as a naive loop does it, observations by what they were acted with."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from steppe.learning.normalizer import moments, normalized, return_scale_init, scaled_rewards
from steppe.models.observations import norm_init
from steppe.spaces import spec_of

BOX = spec_of(spaces.Box(-100, 100, (2,), np.float32))
ROWS, LANES = 7, 3


def naive(batches, gamma):
    """Discounted return so far at each outcome, per lane, over batches; the deviation after each batch."""
    carry, seen, deviations = [0.0] * LANES, [], []
    for batch, continues in batches:
        for lane in range(LANES):
            total = carry[lane] if continues[lane] else 0.0
            for row in range(ROWS):
                if row and batch["acted"][row - 1, lane]:
                    total = gamma * total + batch["reward"][row, lane]
                    seen.append(total)
                if batch["terminated"][row, lane] or batch["truncated"][row, lane]:
                    total = 0.0
            carry[lane] = total
        seen_so_far = np.array(seen or [0.0])
        deviations.append(np.sqrt(seen_so_far.var() + 1e-4 * seen_so_far.mean() ** 2 + 1e-8))
    return deviations


@st.composite
def batches(draw):
    found = []
    for _ in range(draw(st.integers(1, 3))):
        rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
        ended = rng.random((ROWS, LANES)) < 0.2
        filled = np.arange(ROWS)[:, None] < rng.integers(2, ROWS + 1, LANES)
        terminated = ended & (rng.random((ROWS, LANES)) < 0.5) & filled
        truncated = ended & ~terminated & filled
        acted = np.zeros((ROWS, LANES), bool)
        acted[:-1] = filled[:-1] & filled[1:] & ~ended[:-1]
        reward = rng.normal(size=(ROWS, LANES)).astype(np.float32)
        columns = {"reward": reward, "terminated": terminated, "truncated": truncated, "acted": acted}
        found.append((columns, rng.random(LANES) < 0.7))
    return found


@given(batches(), st.sampled_from([0.0, 0.9, 1.0]))
def test_rewards_are_divided_by_the_deviation_of_all_returns_so_far(found, gamma):
    *numbers, _ = return_scale_init()
    stats = (*numbers, np.zeros(LANES, np.float32))
    for (batch, continues), deviation in zip(found, naive(found, gamma), strict=True):
        scaled, stats = scaled_rewards(stats, batch, jnp.asarray(batch["acted"]), continues, gamma)
        np.testing.assert_allclose(scaled * deviation, batch["reward"], rtol=2e-3, atol=1e-4)


def test_moments_count_only_what_the_mask_shows():
    x = jnp.array([[1.0, np.inf], [3.0, np.nan]])
    mean, variance = moments(x, jnp.array([[True, False], [True, False]]))
    assert (float(mean), float(variance)) == (2.0, 1.0)
    assert float(moments(x, jnp.zeros((2, 2), bool))[1]) == 0.0


def test_a_first_batch_is_scaled_by_itself_and_later_ones_by_what_they_were_acted_with():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(5.0 * k, k, (50, 4, 2)).astype(np.float32) for k in (1, 3))
    acted = np.ones((50, 4), bool)
    obs, stats, is_first = normalized(BOX, norm_init(BOX), first, acted)
    assert bool(is_first)
    np.testing.assert_allclose(np.asarray(obs).reshape(-1, 2).mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.asarray(obs).reshape(-1, 2).std(0), 1, atol=1e-3)
    again, merged, is_first = normalized(BOX, stats, second, acted)
    assert not bool(is_first)
    mean, std = first.reshape(-1, 2).mean(0), first.reshape(-1, 2).std(0)
    np.testing.assert_allclose(again, np.clip((second - mean) / std, -10, 10), atol=1e-3)
    both = np.concatenate([first, second]).reshape(-1, 2)
    np.testing.assert_allclose(merged[1], both.mean(0), rtol=1e-4)
    np.testing.assert_allclose(merged[2] / merged[0], both.var(0), rtol=1e-3)


def test_without_statistics_nothing_changes():
    obs = np.full((2, 1, 2), 7, np.float32)
    same, stats, first = normalized(BOX, (), obs, np.ones((2, 1), bool))
    assert same is obs
    assert stats == ()
    assert not bool(first)


def test_rows_that_were_not_acted_do_not_count():
    obs = np.zeros((4, 1, 2), np.float32)
    obs[2:] = 1e6
    acted = np.array([[True], [True], [False], [False]])
    _, merged, _ = normalized(BOX, norm_init(BOX), obs, acted)
    assert float(merged[0]) == pytest.approx(2)
    assert np.asarray(merged[1]).tolist() == [0, 0]


def test_a_leaf_that_was_never_seen_makes_no_batch_a_first_one():
    item = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    spec = spec_of(spaces.Dict(a=spaces.Sequence(item), b=item), max_sequence_length=2)
    acted, stats, firsts = jnp.ones((3, 2), bool), norm_init(spec), []
    for batch in range(3):
        items, length = np.zeros((3, 2, 2, 1), np.float32), np.zeros((3, 2), np.int64)
        obs = {"a": {"items": items, "length": length}, "b": np.full((3, 2, 1), batch, np.float32)}
        _, stats, first = normalized(spec, stats, obs, acted)
        firsts.append(bool(first))
    assert [float(count) for count in stats[::3]] == [0, 18]
    assert firsts == [True, False, False]
