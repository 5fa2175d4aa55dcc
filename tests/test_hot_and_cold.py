"""The hot-and-cold tutorial: its rules, its two baselines, and its programs from start to end."""

import math
import re
import runpy
from collections import defaultdict
from pathlib import Path

import pytest

from gym_example.envs import Example_v0

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "hot_and_cold"
LEFT, RIGHT = 0, 1


def at(position):
    env = Example_v0()
    env.reset()
    env.position = position
    return env


def expected_return(calls):
    """Exact mean return of random actions over ``calls`` calls, by following every probability."""
    mass = {(start, 0.0): 1 / 8 for start in (1, 2, 3, 4, 6, 7, 8, 9)}
    total = 0.0
    for call in range(calls):
        after = defaultdict(float)
        for (position, last), p in mass.items():
            if call == 10:
                total += p * last
                continue
            for direction in (-1, 1):
                new = min(max(position + direction, 1), 10)
                nearer = abs(5 - new) < abs(5 - position)
                reward = 10.0 if new == 5 else -1.0 if nearer else -2.0
                total += p / 2 * reward
                if new != 5:
                    after[new, reward] += p / 2
        mass = after
    return total


@pytest.mark.parametrize(
    ("position", "action", "new_position", "reward", "done"),
    [
        (3, RIGHT, 4, -1, False),
        (3, LEFT, 2, -2, False),
        (7, LEFT, 6, -1, False),
        (7, RIGHT, 8, -2, False),
        (4, RIGHT, 5, 10, True),
        (6, LEFT, 5, 10, True),
        (1, LEFT, 1, -2, False),
        (10, RIGHT, 10, -2, False),
        (10, LEFT, 9, -1, False),
    ],
)
def test_one_move(position, action, new_position, reward, done):
    result = at(position).step(action)
    assert type(result) is list
    assert result == [new_position, reward, done, {"dist": 5 - new_position}]


def test_starts_cover_every_cell_but_the_goal_and_the_last():
    env = Example_v0()
    env.seed(0)
    counts = defaultdict(int)
    for _ in range(8000):
        counts[env.reset()] += 1
    assert sorted(counts) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert all(abs(n - 1000) < 150 for n in counts.values())


def test_the_call_after_the_tenth_move_ends_the_episode_without_moving():
    env = at(1)
    for _ in range(10):
        _, reward, done, _ = env.step(LEFT)
        assert (reward, done) == (-2, False)
    assert env.step(RIGHT) == [1, -2, True, {"dist": 4}]


def test_seed_repeats_the_starts():
    starts = []
    for _ in range(2):
        env = Example_v0()
        assert env.seed(7) == [7]
        starts.append([env.reset() for _ in range(20)])
    assert starts[0] == starts[1]


def test_render_prints_plain_numbers(capsys):
    env = at(4)
    env.step(RIGHT)
    env.render()
    env.position = 10
    env.render()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "position:  5  reward: 10  info: {'dist': 0}"
    assert second.startswith("position: 10  reward: 10")


def test_render_keeps_numpy_out_of_info(capsys):
    env = Example_v0()
    env.seed(3)
    env.reset()
    env.step(LEFT)
    env.render()
    assert re.fullmatch(
        r"position: [ 1]\d  reward: (10|-1|-2)  info: \{'dist': -?\d\}\n", capsys.readouterr().out
    )


def test_sample_measures_ten_calls_an_episode(capsys):
    mean = runpy.run_path(str(EXAMPLE / "sample.py"))["main"](episodes=10_000, seed=0)
    exact = expected_return(10)
    assert exact == pytest.approx(-5.16, abs=0.05)
    assert mean == pytest.approx(exact, abs=0.35)
    assert capsys.readouterr().out == f"\nbaseline cumulative reward: {mean:6.2f}\n"


def test_playing_until_done_costs_one_reward_more():
    env = Example_v0()
    env.seed(0)
    env.action_space.seed(0)
    total = 0
    for _ in range(10_000):
        env.reset()
        done = False
        while not done:
            _, reward, done, _ = env.step(env.action_space.sample())
            total += reward
    exact = expected_return(11)
    assert exact == pytest.approx(-5.93, abs=0.05)
    assert total / 10_000 == pytest.approx(exact, abs=0.35)


def test_train_learns_saves_and_plays_the_restored_policy(capsys):
    runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    status = [line for line in lines if " reward " in line and "saved" in line]
    number = r"[ \d.-]{6,}"
    for n, line in enumerate(status, 1):
        assert re.fullmatch(rf"{n:2d} reward {number}/{number}/{number} len [\d.]+ saved \S+", line)
        assert Path(line.split()[-1]).is_dir()
        assert Path(line.split()[-1]).name == f"checkpoint_{n}"
    assert len(status) == 5
    means = [float(line.split("/")[1]) for line in status]
    assert all(math.isfinite(m) for m in means)
    assert means[4] > means[0]
    assert means[4] >= 7.0
    rendered = [line for line in lines if line.startswith("position: ")]
    assert len(rendered) == 20
    assert any(line.startswith("cumulative reward") for line in lines)
