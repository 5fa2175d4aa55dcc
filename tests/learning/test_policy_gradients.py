"""PG, A2C, IMPALA and APPO with their default settings balance the pole, with each of three seeds."""

import pytest

import steppe

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("seed", [0, 1, 2])]


@pytest.mark.parametrize("algo", ["PG", "A2C", "IMPALA", "APPO"])
def test_cartpole_within_500_thousand_steps(algo, seed, measured):
    config = getattr(steppe, f"{algo}Config")(env="CartPole-v1", seed=seed, write_run=False)
    best, steps = 0.0, 0
    with config.copy(metrics_num_episodes_for_smoothing=50).build() as run:
        while best < 450 and steps < 500_000:
            result = run.train()
            steps = result["timesteps_total"]
            if result["episodes_total"] >= 50:
                best = max(best, result["episode_reward_mean"])
    measured(score=best, steps=steps)
    assert best >= 450
    assert steps <= 500_000 + 4096
