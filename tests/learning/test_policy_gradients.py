"""PG, A2C, IMPALA and APPO with their default settings balance the pole, with each of three seeds."""

import pytest

import steppe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ["pg_cartpole", "a2c_cartpole", "impala_cartpole", "appo_cartpole"])
def test_cartpole_within_500_thousand_steps(row, learned):
    config = getattr(steppe, f"{row.partition('_')[0].upper()}Config")
    learned(config(env="CartPole-v1"), 450, 500_000)
