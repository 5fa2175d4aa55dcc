"""Callbacks on the command line: named as an env is, found again by ``--resume``, not needed to evaluate."""

import json
from pathlib import Path

import steppe as library
from tests.cli.conftest import ENV, SMALL

HOOKS = """
import steppe


class Count(steppe.Callbacks):
    ends = 0

    def on_episode_end(self, *, episode):
        self.ends += 1
        episode.custom_metrics["ends"] = self.ends

    def get_state(self):
        return {"ends": self.ends}

    def set_state(self, state):
        self.ends = state["ends"]
"""


def train(steppe, *more):
    Path("walk.py").write_text(ENV)
    Path("hooks.py").write_text(HOOKS)
    return steppe("train", "walk.py:Walk", "--total-steps", "128", "--name", "a", "--quiet", *SMALL, *more)


def results():
    lines = Path("runs/Walk/a/result.jsonl").read_text().splitlines()
    return [json.loads(line)["custom_metrics"]["ends_max"] for line in lines]


def test_a_run_with_callbacks_trains_resumes_evaluates_and_rolls_out(steppe):
    done = train(steppe, "--callbacks", "hooks.py:Count")
    assert done.status == 0, done.err
    first = results()
    done = steppe("train", "--resume", "runs/Walk/a", "--total-steps", "256", "--quiet")
    assert done.status == 0, done.err
    assert "importing hooks.py, which this run names as its callbacks" in done.err
    assert results()[:2] == first
    assert len(results()) == 4
    assert results()[-1] > first[-1]  # it went on counting, and did not begin anew
    Path("hooks.py").unlink()
    assert "5 episodes" in steppe("evaluate", "runs/Walk/a", "--episodes", "5").out
    assert steppe("rollout", "runs/Walk/a", "--steps", "5").status == 0


def test_callbacks_of_a_program_are_asked_for(steppe):
    Path("walk.py").write_text(ENV)
    Path("hooks.py").write_text(HOOKS)
    small = {"train_batch_size": 64, "minibatch_size": 64, "num_epochs": 1, "fcnet_hiddens": [4]}

    class Mine(library.Callbacks):
        pass

    config = library.PPOConfig(env="walk.py:Walk", callbacks_class=Mine, run_dir="runs/Walk/a", **small)
    with config.build() as algo:
        algo.train()
        algo.save_to_run()
    done = steppe("train", "--resume", "runs/Walk/a", "--total-steps", "256", "--quiet")
    assert done.status == 2
    assert "callbacks of a program, Mine: say where they are, --callbacks file.py:Class" in done.err
    more = ("--callbacks", "hooks.py:Count", "--total-steps", "128", "--quiet")
    assert steppe("train", "--resume", "runs/Walk/a", *more).status == 0


def test_callbacks_that_are_not_there_are_named(steppe):
    done = train(steppe, "--callbacks", "hooks.py:Coun")
    assert (done.status, "callbacks 'hooks.py:Coun': 'Coun' is not in there; there is Count" in done.err) == (
        2,
        True,
    )
    done = train(steppe, "--callbacks", "hooks")
    assert (done.status, '"file.py:Class"' in done.err) == (2, True)


ONE = """
class One(Walk):
    alive = 0

    def __init__(self):
        super().__init__()
        assert One.alive == 0, "there is only one of it"
        One.alive += 1

    def close(self):
        One.alive -= 1


class Drawn(One):
    metadata = {"render_modes": ["ansi"]}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode
"""


def test_a_rollout_needs_one_env_only(steppe):
    Path("walk.py").write_text(ENV + ONE)
    more = ("--num-envs-per-env-runner", "1", "--total-steps", "64", "--quiet")
    for name in ("One", "Drawn"):
        run = f"runs/{name}/a"
        done = steppe("train", f"walk.py:{name}", "--name", "a", *SMALL, *more)
        assert done.status == 0, done.err
        for flags in ((), ("--render",)):
            done = steppe("rollout", run, "--steps", "3", *flags)
            assert done.status == 0, done.err
    assert done.out.splitlines()[0] == "t=1"
