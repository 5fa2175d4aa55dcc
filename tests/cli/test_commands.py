"""``evaluate``, ``rollout``, ``baseline`` and ``runs`` print what is true of a known env."""

import shutil

import pytest

from steppe.cli.baseline import report


def test_evaluate_takes_a_run_or_a_checkpoint(steppe, trained):
    for path in (trained, trained / "latest", trained / "checkpoints" / "128"):
        done = steppe("evaluate", path, "--episodes", "3")
        assert done.status == 0, done.err
        assert done.out.splitlines()[0].endswith("128: 3 episodes")
        assert done.out.splitlines()[1].endswith("length 5.0")
        assert "importing" in done.err


def test_a_bare_checkpoint_takes_its_env_from_the_flag(steppe, trained, walk, tmp_path):
    bare = shutil.copytree(trained / "checkpoints" / "128", tmp_path / "elsewhere" / "128")
    done = steppe("evaluate", bare, "--episodes", "2", "--env", f"{walk}:Walk")
    assert done.status == 0, done.err
    assert "2 episodes" in done.out


def test_what_is_no_run_is_said(steppe, tmp_path):
    assert "no such run or checkpoint" in steppe("evaluate", "nowhere").err
    done = steppe("rollout", tmp_path)
    assert done.status == 2
    assert "Traceback" not in done.err


def test_rollout_prints_steps_and_episode_rewards(steppe, trained):
    lines = steppe("rollout", trained, "--steps", "7").out.splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [["step", str(n)] for n in range(1, 6)]
    earned = [float(line.split()[-1]) for line in lines if line.startswith("step")]
    assert lines[5] == f"cumulative reward {sum(earned[:5]):g}"
    assert lines[8] == f"reward so far {sum(earned[5:]):g}, the episode goes on"
    assert len(lines) == 9


def test_rollout_renders(steppe, trained):
    lines = steppe("rollout", trained, "--steps", "5", "--render").out.splitlines()
    assert lines[:5] == ["t=1", "t=2", "t=3", "t=4", "t=5"]
    assert lines[5].startswith("cumulative reward ")


def test_rollout_draws_a_gymnasium_env_in_a_mode_it_has():
    from steppe.cli.rollout import make_env

    env = make_env("FrozenLake-v1", {}, render=False)
    assert env.render_mode is None
    env = make_env("FrozenLake-v1", {"render_mode": "ansi"}, render=True)
    assert env.render_mode == "ansi"


def test_baseline_of_a_known_env(steppe, walk):
    done = steppe("baseline", f"{walk}:Walk", "-e", "bonus=1", "--episodes", "400", "--seed", "1")
    first, second = done.out.splitlines()
    words = first.split()
    # Each of five steps earns 1 or 2 with equal chance: mean 7.5, deviation sqrt(5)/2 = 1.118.
    mean, interval = float(words[2]), float(words[4])
    assert mean == pytest.approx(7.5, abs=4 * 1.118 / 20)
    assert interval == pytest.approx(1.96 * 1.118 / 20, abs=0.015)
    assert words[5:] == ["(95", "%)", "over", "400", "episodes", "of", "random", "actions"]
    assert second == "min 5.00  max 10.00  length 5.0"
    assert (
        done.out
        == steppe("baseline", f"{walk}:Walk", "-e", "bonus=1", "--episodes", "400", "--seed", "1").out
    )


def test_baseline_stops_long_episodes(steppe, walk):
    done = steppe("baseline", f"{walk}:Walk", "--episodes", "3", "--max-episode-steps", "2")
    assert done.out.endswith("length 2.0\n")


def test_baseline_report():
    # mean 2, variance ((1)^2 + (1)^2) / 1 = 2, interval 1.96 * sqrt(2) / sqrt(2)
    assert report([(1.0, 3), (3.0, 4)]).splitlines() == [
        "baseline reward 2.00 +- 1.96 (95 %) over 2 episodes of random actions",
        "min 1.00  max 3.00  length 3.5",
    ]
    assert report([(1.0, 3)]).startswith("baseline reward 1.00 over 1 episodes")


def test_runs_lists_what_is_there(steppe, trained, tmp_path):
    assert "no runs under" in steppe("runs").out
    header, line = steppe("runs", trained.parents[2]).out.splitlines()
    assert header.split()[:4] == ["run", "algo", "status", "steps"]
    assert line.split()[:4] == [str(trained), "ppo", "finished", "128"]
    broken = tmp_path / "runs" / "Env" / "ppo-1"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    assert "unreadable" in steppe("runs", tmp_path).out
