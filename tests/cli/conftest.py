"""The command line run in this process, and one short trained run that several tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from steppe.cli import main

ENV = '''
import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    """Five steps; the action is the reward."""

    observation_space = gymnasium.spaces.Box(0, 5, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, bonus=0):
        self.bonus = bonus

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        reward = float(action) + self.bonus
        return np.full(1, self.t, np.float32), reward, self.t == 5, False, {}

    def render(self):
        return f"t={self.t}"


class Broken(Walk):
    """The user's own bug, in the third step."""

    def step(self, action):
        if self.t == 2:
            raise ZeroDivisionError("in my env")
        return super().step(action)


class Endless(Walk):
    """An env without an end, which draws nothing."""

    render = gymnasium.Env.render

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


class Modes(Walk):
    """Draws text if it is told so when it is made, an array if not."""

    metadata = {"render_modes": ["rgb_array", "ansi"]}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return "as text" if self.render_mode == "ansi" else np.zeros((2, 2, 3), np.uint8)


class NotANumber(Walk):
    """An env that breaks its contract."""

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs * np.nan, 0.0, terminated, truncated, info
'''
SMALL = ("--train-batch-size", "64", "--minibatch-size", "64", "--num-epochs", "1", "--fcnet-hiddens", "4")
SMALL += ("--num-envs-per-env-runner", "2", "--seed", "0")


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def steppe(capfd):
    """Call the command line; returns exit status and output."""

    def call(*args):
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        return Outcome(int(end.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def walk(tmp_path_factory):
    """``file.py`` with the envs above; append ``:Class``."""
    path = tmp_path_factory.mktemp("home") / "walk.py"
    path.write_text(ENV)
    return path


@pytest.fixture(scope="session")
def trained(walk):
    """A run of 128 steps in two iterations, made once; tests that change it take a copy."""
    run = Path(walk.parent / "runs" / "Walk" / "first")
    args = ["train", f"{walk}:Walk", "--total-steps", "128", "--run-dir", str(run), "--quiet", *SMALL]
    args += ["--checkpoint-freq", "1"]
    with pytest.raises(SystemExit) as end:
        main(args)
    assert not end.value.code
    return run
