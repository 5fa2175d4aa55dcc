"""``evaluate``, ``rollout``, ``baseline`` and ``runs`` print what is true of a known env."""

import shutil
import time

import pytest

from steppe.cli import baseline
from steppe.cli.baseline import report
from steppe.envs.context import EnvContext
from steppe.envs.registry import creator_of
from steppe.errors import ConfigError


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


def test_what_is_no_folder_is_said(steppe, walk):
    done = steppe("evaluate", walk)
    assert (done.status, done.err) == (2, f"Error: {walk} is a file; name a run's folder or a checkpoint's\n")


def test_the_env_of_a_bare_checkpoint_is_asked_for_as_a_flag(steppe, trained, walk, tmp_path):
    bare = shutil.copytree(trained / "checkpoints" / "128", tmp_path / "elsewhere" / "128")
    done = steppe("evaluate", bare)
    assert (done.status, f"name its env, --env {walk}:Walk" in done.err) == (2, True)
    (bare / "meta.json").write_text("{")
    assert "damaged" in steppe("evaluate", bare).err


def test_the_env_of_a_run_made_with_a_class_is_asked_for(steppe, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    (run / "config.toml").write_text("env = 'Walk'")
    done = steppe("rollout", run)
    assert (done.status, "trained with Walk" in done.err, "--env file.py:Class" in done.err) == (
        2,
        True,
        True,
    )


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


def test_rollout_makes_an_env_of_the_user_in_a_mode_that_a_terminal_shows(steppe, trained, walk):
    modes = ("rollout", trained / "latest", "--steps", "1", "--render", "--env")
    assert steppe(*modes, f"{walk}:Modes").out.splitlines()[0] == "as text"


def test_rollout_says_that_nothing_can_be_drawn(steppe, trained, walk, monkeypatch):
    done = steppe("rollout", trained, "--render", "--env", f"{walk}:Endless")
    assert (done.status, done.err) == (2, "Error: Endless has no render(); leave out --render\n")
    monkeypatch.setattr("steppe.envs.registry.make", made_without_a_mode(walk))
    done = steppe("rollout", trained, "--render")
    assert done.status == 2
    assert "render() of Modes returned ndarray, which a terminal cannot show" in done.err


def made_without_a_mode(walk):
    def make(env, env_config):
        if "render_mode" in env_config:
            raise ConfigError("no such argument")
        return creator_of(f"{walk}:Modes")(EnvContext({}))

    return make


def test_evaluate_stops_long_episodes(steppe, trained, walk):
    lines = steppe("evaluate", trained, "--episodes", "2", "--max-episode-steps", "3").out.splitlines()
    assert lines[1].endswith("length 3.0")


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


def test_baseline_says_that_an_episode_does_not_end(steppe, walk, monkeypatch):
    def step(self, action, count=iter(range(100))):  # noqa: B008 - one count for the whole test
        time.sleep(0.02)
        if next(count) == 10:
            raise KeyboardInterrupt
        return 0, 1.0, False, False, {}

    monkeypatch.setattr(baseline, "PATIENCE", 0.05)
    monkeypatch.setattr("gymnasium.envs.toy_text.frozen_lake.FrozenLakeEnv.step", step)
    done = steppe("baseline", "FrozenLake-v1")
    assert "--max-episode-steps N ends them" in done.err
    assert done.err.endswith("stopped after 0 of 10000 episodes\n")


def test_baseline_refuses_a_reward_that_is_no_number(steppe, walk, tmp_path):
    (tmp_path / "nan.py").write_text(
        f"import sys; sys.path.append({str(walk.parent)!r})\n"
        "from walk import Walk\nclass Nan(Walk):\n"
        "    def step(self, action): return *super().step(action)[:1], float('nan'), True, False, {}\n"
    )
    done = steppe("baseline", f"{tmp_path}/nan.py:Nan")
    assert done.status == 2
    assert "E201 reward is not one finite number: reward: got nan" in done.err
    assert "Nan, runner 0, env 0, episode 0, step 1" in done.err


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


def test_a_rollout_remembers_until_the_episode_ends(capsys):
    """The state goes round with the reward that came; each episode begins with none."""
    from steppe.cli.rollout import play

    class Two:
        def reset(self, seed=None):
            self.t = 0
            return 0, {}

        def step(self, action):
            self.t += 1
            return self.t, 10.0 * self.t, self.t == 2, False, {}

    met = []

    def act(obs, state):
        met.append((obs, dict(state)))
        return obs, {"seen": obs, "reward": 0.0}

    play(Two(), act, 3, False, None)
    assert met == [(0, {}), (1, {"seen": 0, "reward": 10.0}), (0, {})]
    assert capsys.readouterr().out.splitlines()[2] == "cumulative reward 30"


def test_a_rollout_takes_masks_from_where_training_did(steppe, tmp_path):
    """Only what the info allows is done, though the best action is another."""
    (tmp_path / "gate.py").write_text(GATE)
    small = ("--total-steps", "32", "--train-batch-size", "32", "--minibatch-size", "32", "--num-epochs", "1")
    more = ("--fcnet-hiddens", "4", "--num-envs-per-env-runner", "2", "--quiet", "--checkpoint-freq", "1")
    run = tmp_path / "run"
    told = ("--action-mask", "info", "--run-dir", run)
    assert steppe("train", f"{tmp_path / 'gate.py'}:Gate", *small, *more, *told).status == 0
    done = steppe("rollout", run, "--steps", "4", "--explore")
    assert done.status == 0
    assert [line.split()[3] for line in done.out.splitlines()[:4]] == ["1", "2", "0", "1"]
    assert "reward mean 6" in steppe("evaluate", run, "--episodes", "1").out


GATE = '''
import gymnasium
import numpy as np


class Gate(gymnasium.Env):
    """One of three doors is open, the next one each step; the info says which."""

    observation_space = gymnasium.spaces.Box(0, 6, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def seen(self):
        self.open = (self.t + 1) % 3
        return np.full(1, self.t, np.float32), {"action_mask": np.eye(3, dtype=np.int8)[self.open]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen()

    def step(self, action):
        assert action == self.open
        self.t += 1
        obs, info = self.seen()
        return obs, 1.0, self.t == 6, False, info
'''
