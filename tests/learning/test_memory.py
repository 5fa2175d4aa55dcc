"""PPO with a memory learns what no policy without one can, with each of three seeds.

Nothing is tuned to an env, but that the bits are repeated for rewards that come at once, and that the game's
player is told its own last move. The scores are those of ``docs/memory.md``; ``make learn ROW=ppo_lstm`` runs
this.
"""

import pytest

import steppe
from examples import rock_paper_scissors
from tests.learning.envs import RepeatAfter, StillCartPole

pytestmark = pytest.mark.slow

REPEAT = {"env": RepeatAfter, "env_config": {"delay": 2}, "train_batch_size": 2000, "gamma": 0.5}


def test_ppo_lstm_repeat(learned):
    """A bit, two steps later: 100 scored steps of 1 or -1, of which chance makes 0."""
    learned(steppe.PPOConfig(**REPEAT, memory="lstm"), 70, 100_000)


def test_ppo_attention_repeat(learned):
    learned(steppe.PPOConfig(**REPEAT, memory="attention"), 60, 300_000)


def test_ppo_lstm_cartpole_without_velocities(learned):
    learned(steppe.PPOConfig(env=StillCartPole, memory="lstm"), 400, 1_000_000)


def against_each(result):
    """What is won of 15 rounds, on average over the opponents, if it is more than 5 against each."""
    won = result["custom_metrics"]
    means = [won.get(f"{opponent}_mean") for opponent in ("always_same", "beat_last")]
    if result["episodes_total"] < 200 or None in means:
        return None
    return sum(means) / 2 if min(means) > 5 else -15.0


def test_ppo_lstm_rock_paper_scissors(learned):
    """Both opponents are found out: the best is 13.5, and 7 without a memory."""
    config = rock_paper_scissors.config().copy(memory="lstm", prev_action=True)
    learned(config, 10, 500_000, score=against_each, episodes=200)
