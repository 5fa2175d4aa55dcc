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

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("seed", [0, 1, 2])]


def steps_until(config, reached, steps, count="timesteps_total"):
    """Steps when an iteration first has ``reached``; None if none has within ``steps``."""
    with config.copy(write_run=False).build() as algo:
        while True:
            result = algo.train()
            if result[count] > steps:
                return None
            if reached(result):
                return result[count]


def test_two_agents_balance_two_poles(seed, measured):
    config = multi_agent_cartpole.config().copy(seed=seed)
    steps = steps_until(config, lambda r: r["episode_reward_mean"] >= 900, 400_000, "agent_timesteps_total")
    measured(steps=steps)
    assert steps


def test_two_configs_learn_side_by_side(seed, measured):
    def both(result):
        return min(result["policy_reward_mean"].values(), default=0.0) >= 100

    steps = steps_until(two_configs.config().copy(seed=seed), both, 100_000)
    measured(steps=steps)
    assert steps


def test_the_upper_level_finds_the_goal_of_the_maze(seed, measured):
    def found(result):  # in 80 of the last 100 episodes
        return result["episodes_total"] >= 100 and result["policy_reward_mean"]["high"] >= 80

    steps = steps_until(hierarchical_maze.config().copy(seed=seed), found, 200_000)
    measured(steps=steps)
    assert steps


def test_rock_paper_scissors_is_won_over_200_episodes(seed, measured):
    config = rock_paper_scissors.config().copy(seed=seed, metrics_num_episodes_for_smoothing=200)

    def won(result):  # where an iteration has more than 200 episodes, their mean stands for the last 200
        return result["episodes_total"] >= 200 and result["policy_reward_mean"]["learned"] * 200 > 1000

    steps = steps_until(config, won, 100_000)
    measured(steps=steps)
    assert steps


def test_self_play_learns_tictactoe_against_its_own_past(seed, measured):
    """Against random moves, from both seats: a game is worth 1 if it is won and -1 if it is lost."""
    config = self_play_tictactoe.config().copy(seed=seed, write_run=False, evaluation_interval=None)
    with config.build() as algo:
        for _ in range(30):
            algo.train()
        games = algo.evaluate(num_episodes=1000)
        assert len(algo.runner.policy_ids) == self_play_tictactoe.MOST + 3
    assert set(games["policy_reward_mean"]) == {"learned", "any_move"}
    measured(score=games["policy_reward_mean"]["learned"])
    assert games["policy_reward_mean"]["learned"] >= 0.9


@pytest.mark.parametrize("way", [1, 2])
def test_agents_with_a_central_critic_trust_each_other(seed, way, measured):
    """To be reached, and to last: the best is 8, and 7 needs no trust."""
    with centralized_critic.config(way, seed=seed, write_run=False).build() as algo:
        while (result := algo.train())["timesteps_total"] < 100_000 - 512:
            pass
    measured(steps=result["timesteps_total"], score=result["episode_reward_mean"])
    assert result["timesteps_total"] <= 100_000
    assert result["episode_reward_mean"] >= 7.9
