"""The seed tree: nothing in a run shares a seed, and the same seed gives the same tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.seeding import EVALUATION_RUNNER, env_seed, fresh_seed, stream


@given(st.integers(0, 2**63 - 1), st.integers(0, 200), st.integers(1, 64))
def test_no_two_envs_of_a_run_share_a_seed(seed, runner, envs):
    runners = [0, runner, runner + 1, EVALUATION_RUNNER, EVALUATION_RUNNER + runner + 1]
    seeds = [env_seed(seed, r, i) for r in sorted(set(runners)) for i in range(envs)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**31 for s in seeds)


def test_a_whole_block_of_envs_is_distinct_and_another_run_differs():
    one = {env_seed(7, r, i) for r in range(16) for i in range(256)}
    assert len(one) == 16 * 256
    assert env_seed(7, 0, 0) == env_seed(7, 0, 0) != env_seed(8, 0, 0)


def test_too_many_are_refused():
    with pytest.raises(ValueError, match="at most"):
        env_seed(0, 1 << 15, 0)
    with pytest.raises(ValueError, match="at most"):
        env_seed(0, 0, 1 << 16)


def test_streams_of_other_purposes_runners_and_seeds_differ():
    draws = [
        tuple(stream(seed, purpose, index).integers(1 << 62, size=2))
        for seed in (0, 1)
        for purpose in ("noise", "minibatches")
        for index in (0, 1)
    ]
    assert len(set(draws)) == len(draws)
    assert draws[0] == tuple(stream(0, "noise", 0).integers(1 << 62, size=2))


def test_fresh_seeds_differ_and_fit():
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) == 20
    assert all(np.int64(seed) < 2**31 for seed in seeds)
