"""ES with its default settings balances the pole, with each of three seeds."""

import pytest

import steppe

pytestmark = pytest.mark.slow


def test_es_cartpole(learned):
    learned(steppe.ESConfig(env="CartPole-v1"), 450, 2_000_000)
