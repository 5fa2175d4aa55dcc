"""Pictures: PPO and DQN learn to catch a ball that they see as 40 x 40 bytes, with each of three seeds."""

import gymnasium.utils.env_checker
import numpy as np
import pytest

import steppe
from tests.learning.envs import Catch

# The board is seen square by square; the stack that is chosen by size is for richer pictures, and slower.
EYES = {"conv_filters": [[16, 4, 4], [16, 4, 3]]}


@pytest.mark.slow
def test_ppo_catch(learned):
    """The entropy bonus keeps a policy that misses always the same balls from being sure of it."""
    small = {"train_batch_size": 1024, "min_sample_timesteps_per_iteration": 4096}
    learned(steppe.PPOConfig(env=Catch, **EYES, **small, lr=1e-3, entropy_coeff=0.03), 0.9, 100_000)


@pytest.mark.slow
def test_dqn_catch(learned):
    learned(steppe.DQNConfig(env=Catch, **EYES, training_intensity=32, tau=0.01), 0.9, 100_000)


def test_the_ball_is_caught_by_going_where_it_falls_and_missed_elsewhere():
    env = Catch()
    gymnasium.utils.env_checker.check_env(env, skip_render_check=True)
    for seed in range(20):
        picture, _ = env.reset(seed=seed)
        ball = env.ball
        assert sorted(np.unique(picture)) == [0, 128, 255]
        assert (picture == 255).sum() == 16
        assert (picture[:4, 4 * ball : 4 * ball + 4] == 255).all()
        for step in range(1, 10):
            action = 1 + np.sign(ball - env.paddle) if seed % 2 else 0
            picture, reward, over, cut, _ = env.step(action)
            assert over == (step == 9)
            assert not cut
        assert reward == (1 if seed % 2 or ball == 0 else -1)
