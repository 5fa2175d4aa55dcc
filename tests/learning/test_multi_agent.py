"""Several policies in one run learn what they are known to learn, with each of three seeds.

The programs are the examples; ``make learn`` runs this.
"""

import pytest

from examples import (
    centralized_critic,
    hierarchical_maze,
    multi_agent_cartpole,
    rock_paper_scissors,
    self_play_tictactoe,
    two_configs,
)

pytestmark = pytest.mark.slow


def of(policy, episodes):
    """The mean reward of a policy, once there were so many episodes."""

    def score(result):
        return result["policy_reward_mean"][policy] if result["episodes_total"] >= episodes else None

    return score


def test_multi_agent_cartpole(learned):
    """Two agents, so at best 1,000 an episode."""
    learned(multi_agent_cartpole.config(), 900, 400_000, episodes=100, count="agent_timesteps_total")


def test_two_configs(learned):
    def worse(result):
        rewards = result["policy_reward_mean"]
        return min(rewards.values()) if len(rewards) == 2 else None

    learned(two_configs.config(), 100, 100_000, score=worse, episodes=100)


def test_hierarchical_maze(learned):
    """The upper level finds the goal in 80 of 100 episodes."""
    learned(hierarchical_maze.config(), 80, 200_000, score=of("high", 100), episodes=100)


def test_rock_paper_scissors(learned):
    """Won, and clearly: more than 1,000 over 200 episodes."""
    learned(rock_paper_scissors.config(), 5.005, 100_000, score=of("learned", 200), episodes=200)


def test_self_play_tictactoe(learned):
    """Against random moves, from both seats: a game is worth 1 if it is won and -1 if it is lost."""

    def games(result):
        return result["evaluation"]["policy_reward_mean"]["learned"] if "evaluation" in result else None

    config = self_play_tictactoe.config().copy(evaluation_duration=1000)
    runs = learned(config, 0.9, 120_000, score=games, to_the_end=True)
    assert all(run["scores"][-1] >= 0.9 for run in runs)


@pytest.mark.parametrize("way", [1, 2], ids=["central_critic_1", "central_critic_2"])
def test_agents_with_a_central_critic_trust_each_other(way, learned):
    """To be reached, and to last: the best is 8, and 7 needs no trust."""
    runs = learned(centralized_critic.config(way), 7.9, 99_840, episodes=100, to_the_end=True)
    assert all(run["scores"][-1] >= 7.9 for run in runs)
