"""PPO with its default settings learns what it is known to learn, with each of three seeds.

Nothing is tuned to an env. The scores are those of ``docs/algorithms/ppo.md``; ``make learn`` runs this.
"""

import pytest

import steppe

pytestmark = pytest.mark.slow


def test_ppo_hot_and_cold(learned):
    """The tutorial's five iterations are enough, and ten do better."""
    env = "gym_example.envs.example_env:Example_v0"
    runs = learned(steppe.PPOConfig(env=env), 8.3, 40_000, to_the_end=True)
    assert all(run["scores"][4] >= 7.8 and run["scores"][9] >= 8.3 for run in runs)


@pytest.mark.parametrize(
    ("env", "bar", "steps"),
    [
        pytest.param("CartPole-v1", 475, 100_000, id="ppo_cartpole"),
        pytest.param("steppe.jaxenvs:CartPole", 475, 100_000, id="ppo_jax_cartpole"),
        pytest.param("Acrobot-v1", -85, 300_000, id="ppo_acrobot"),
        pytest.param("Pendulum-v1", -250, 200_000, id="ppo_pendulum"),
        pytest.param("LunarLander-v3", 200, 1_000_000, id="ppo_lunarlander"),
    ],
)
def test_score_within_steps(env, bar, steps, learned):
    learned(steppe.PPOConfig(env=env), bar, steps, to_the_end=steps < 300_000)
