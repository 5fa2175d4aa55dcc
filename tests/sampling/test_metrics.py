"""Summaries of episodes, and windows over them, give the means that a result promises."""

import math

import pytest

from steppe import checkpoint
from steppe.sampling.metrics import EpisodeRecord, EpisodeWindow, summarize


def record(reward, length=1):
    return EpisodeRecord(0, 0, 0, length, reward, {"a": reward}, {"p": [reward]})


def test_a_summary_of_two_episodes():
    first = EpisodeRecord(0, 0, 0, 10, 3.0, {"red": 1.0, "blue": 2.0}, {"p": [1.0], "q": [2.0]})
    second = EpisodeRecord(0, 1, 0, 20, 1.0, {"red": 5.0, "green": -4.0}, {"p": [5.0, -4.0]})
    assert summarize(iter([first, second])) == {
        "episode_reward_mean": 2.0,
        "episode_reward_min": 1.0,
        "episode_reward_max": 3.0,
        "episode_len_mean": 15.0,
        "policy_reward_mean": {"p": pytest.approx(2 / 3), "q": 2.0},
        "policy_reward_min": {"p": -4.0, "q": 2.0},
        "policy_reward_max": {"p": 5.0, "q": 2.0},
        "agent_reward_mean": {"red": 3.0, "blue": 2.0, "green": -4.0},
        "custom_metrics": {},
    }


def test_before_the_first_episode_there_are_no_numbers():
    result = EpisodeWindow(100).summarize([])
    assert (result["episodes_this_iter"], result["episodes_total"]) == (0, 0)
    for key in ("episode_reward_mean", "episode_reward_min", "episode_reward_max", "episode_len_mean"):
        assert math.isnan(result[key])
    assert math.isnan(EpisodeWindow(100).mean_reward)
    assert result["policy_reward_mean"] == result["agent_reward_mean"] == {}


def test_a_window_tells_which_episodes_its_newest_means_are_over():
    window, later = EpisodeWindow(2), EpisodeWindow(2)
    assert window.summarized == []
    for new, over in (
        ([1.0], [1.0]),
        ([2.0, 3.0], [2.0, 3.0]),
        ([], [2.0, 3.0]),
        ([4.0, 5.0, 6.0], [4.0, 5.0, 6.0]),
    ):
        result = window.summarize([record(reward) for reward in new])
        assert [episode.reward for episode in window.summarized] == over
        assert result["episode_reward_mean"] == sum(over) / len(over)
    later.set_state(window.get_state())
    assert [episode.reward for episode in later.summarized] == [5.0, 6.0]


def test_a_window_holds_the_last_episodes_and_counts_all():
    window = EpisodeWindow(3)
    assert window.summarize([record(1.0), record(2.0)])["episode_reward_mean"] == 1.5
    result = window.summarize([record(6.0), record(10.0)])
    assert result["episode_reward_mean"] == window.mean_reward == 6.0  # 2, 6, 10
    assert (result["episodes_this_iter"], result["episodes_total"]) == (2, 4)
    assert window.summarize([])["episode_reward_mean"] == 6.0


def test_an_iteration_with_more_episodes_than_the_window_is_taken_whole():
    window = EpisodeWindow(2)
    assert window.summarize([record(float(i)) for i in range(5)])["episode_reward_mean"] == 2.0
    assert window.summarize([])["episode_reward_mean"] == 3.5  # 3, 4


def test_a_window_goes_on_from_its_state(tmp_path):
    window = EpisodeWindow(3)
    window.summarize([record(1.0, 4), record(2.0), record(3.0), record(4.0)])
    checkpoint.save(tmp_path / "state", {"window": window.get_state()}, {"run_id": "test"})
    again = EpisodeWindow(3)
    again.summarize([record(100.0)])
    again.set_state(checkpoint.load(tmp_path / "state")[0]["window"])
    assert again.get_state() == window.get_state()
    assert again.summarize([record(8.0)]) == window.summarize([record(8.0)])
    assert again.total == 5
