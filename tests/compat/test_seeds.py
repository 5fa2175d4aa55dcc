"""The seeds' programs run with only their import lines changed, and print what their pages show."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pettingzoo
import pytest

from steppe.compat.agents import ppo
from steppe.envs import registry
from tests.compat.seed_programs import (
    EDITS,
    PRINTED,
    SEEDS,
    WAITING,
    damaged,
    edited,
    program,
    repaired,
    translated,
    without_indentation,
)

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT.parent / "shared" / "seeds"
LIKE_CODE = re.compile(
    r"(import |from \w+[\w.]* import )|((class|def) \w+ ?\(.*:$)|(\w+ = \w+.*\()|(return \[?\w+$)|\w+\(.*\)$|"
    r"(for|while|if|elif) .*:$|>>>|# [A-Z]"
)


def test_every_program_is_repaired_by_its_list_of_edits_alone():
    names = {path.stem for path in (SEEDS / "damaged").iterdir()}
    assert names == {path.stem for path in (SEEDS / "repaired").iterdir()} == set(EDITS)
    for name in EDITS:
        assert edited(name) == without_indentation(repaired(name))
        assert all(edit.why and edit.damaged != edit.repaired for edit in EDITS[name])


def test_only_import_lines_are_translated():
    changed = []
    for name in EDITS:
        for before, after in zip(repaired(name).splitlines(), program(name).splitlines(), strict=True):
            if before != after:
                changed.append(before)
                assert "import" in before
                assert "steppe.compat" in after
    assert len(changed) == 16


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import gym", "from steppe.compat import gym"),
        ("import gym, ray", "from steppe.compat import gym, ray"),
        ("import ray.rllib.agents.ppo as ppo", "import steppe.compat.ray.rllib.agents.ppo as ppo"),
        ("from ray import tune", "from steppe.compat.ray import tune"),
        ("from gym.utils import seeding", "from steppe.compat.gym.utils import seeding"),
        ("import gym_example", "import gym_example"),
        ('print("import gym")', 'print("import gym")'),
    ],
)
def test_the_rule_for_import_lines(before, after):
    assert translated(before) == after


@pytest.mark.skipif(
    not PAGES.is_dir(), reason="the seeds' pages lie beside the checkout where it is developed"
)
def test_each_block_of_the_pages_runs_or_waits():
    text = "".join(without_indentation(page.read_text()) for page in sorted(PAGES.iterdir()))
    lines = text.splitlines()
    for name in EDITS:
        at = 0
        for line in damaged(name).splitlines():
            assert line in lines[at:], f"{name}: {line!r} stands nowhere on the pages"
            at = lines.index(line, at) + 1
    known = {line for name in EDITS for line in damaged(name).splitlines()}
    for block in WAITING.values():
        start = lines.index(block.first)
        known |= set(lines[start : lines.index(block.last, start) + 1])
    code = [line for line in lines if LIKE_CODE.match(line)]
    assert len(code) > 100
    assert [line for line in code if line not in known] == []


def run_script(folder, name, *, timeout=120):
    home = folder / "home"
    (home / "ray_results" / "old").mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )


def write_package(folder):
    """The layout of the tutorial: ``gym-example/gym_example/envs/example_env.py``."""
    package = folder / "gym-example" / "gym_example"
    (package / "envs").mkdir(parents=True)
    (folder / "gym-example" / "setup.py").write_text(program("setup"))
    (package / "__init__.py").write_text(program("register"))
    (package / "envs" / "__init__.py").write_text(program("envs_init"))
    (package / "envs" / "example_env.py").write_text(program("example_env"))
    return folder / "gym-example"


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """A folder in which the tutorial's scripts find its package, as after ``pip install -e gym-example``."""
    folder = tmp_path_factory.mktemp("tutorial")
    root = write_package(folder)
    (folder / "gym_example").symlink_to(root / "gym_example")
    return folder


def test_the_package_is_set_up_under_its_name(tutorial):
    done = subprocess.run(
        [sys.executable, "setup.py", "--name", "--version"],
        cwd=tutorial / "gym-example",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["gym_example", "0.0.1"]


def baseline(folder, episodes):
    assert program("sample").count("range(10000)") == 1
    (folder / "sample.py").write_text(program("sample").replace("range(10000)", f"range({episodes})"))
    out = run_script(folder, "sample.py").stdout
    PRINTED["sample"] = out.strip().splitlines()
    assert re.fullmatch(r"\nbaseline cumulative reward: {1,4}-\d\.?\d?\n", out)
    return float(out.split()[-1])


def test_the_random_baseline(tutorial):
    assert baseline(tutorial, 400) == pytest.approx(-5.16, abs=2.5)  # the mean of 400 deviates by 0.4


@pytest.mark.slow
def test_the_random_baseline_over_ten_thousand_episodes(tutorial):
    assert baseline(tutorial, 10_000) == pytest.approx(-5.16, abs=0.45)  # two digits are printed


@pytest.fixture(scope="module")
def printed(tutorial):
    """What the training script prints, with its own five iterations."""
    (tutorial / "train.py").write_text(program("train"))
    done = run_script(tutorial, "train.py")
    PRINTED["train"] = done.stdout.splitlines()
    print(done.stderr)
    return done


def test_training_prints_the_tutorial_s_lines_and_improves(printed, tutorial):
    number = r"(?=.{6}[/ ])[ ]*-?\d+\.\d\d"
    lines = printed.stdout.splitlines()[:5]
    for n, line in enumerate(lines, start=1):
        saved = f"tmp/exa/checkpoint_{n}/checkpoint-{n}"
        pattern = rf"{n:2d} reward {number}/{number}/{number} len \d+\.\d\d saved {saved}"
        assert re.fullmatch(pattern, line), line
        assert (tutorial / saved).exists()
    means = [float(line.split("/")[1]) for line in lines]
    lengths = [float(line.split(" len ")[1].split()[0]) for line in lines]
    assert all(math.isfinite(mean) for mean in means)
    assert means[4] > means[0] + 3
    assert means[4] > 3
    assert lengths[4] < lengths[0]
    assert not (tutorial / "home" / "ray_results").exists()


def test_the_restored_policy_is_rendered_as_in_the_tutorial(printed):
    rest = printed.stdout.splitlines()[5:]
    rendered = [line for line in rest if line.startswith("position")]
    rewards = [line for line in rest if line.startswith("cumulative")]
    assert len(rendered) == 20
    assert sorted(rendered + rewards) == sorted(rest)
    assert all(
        re.fullmatch(r"position: [ 1]\d  reward: (10|-1|-2)  info: \{'dist': -?\d\}", line)
        for line in rendered
    )
    assert "position:  5  reward: 10  info: {'dist': 0}" in rendered
    assert rewards
    assert all(re.fullmatch(r"cumulative reward -?\d+", line) for line in rewards)
    # An episode's reward is 10 less one for each step towards the goal and two for each away.
    assert max(int(line.split()[-1]) for line in rewards) in range(7, 11)


def test_workers_that_there_are_not_are_said_once(printed):
    told = [line for line in printed.stderr.splitlines() if "num_workers=2" in line]
    assert len(told) == 1
    assert "all envs run in this process" in told[0]


class EnoughError(Exception):
    """Ends a program that trains for ever."""


def until(results, name):
    """A ``print`` that keeps what it is given, until there is enough."""
    kept = []
    PRINTED[name] = lines = []

    def keep(value):
        kept.append(value)
        shown = ("training_iteration", "episode_reward_mean", "timesteps_total")
        lines.append(str({key: value[key] for key in shown}))
        if len(kept) == results:
            raise EnoughError

    keep.kept = kept
    return keep


def execute(name, **names):
    exec(compile(program(name), f"{name}.py", "exec"), names)
    return names


def test_simple_corridor_trains_three_times(quick):
    show = until(99, "corridor")
    names = execute("corridor", print=show)
    assert [result["training_iteration"] for result in show.kept] == [1, 2, 3]
    assert show.kept[2]["timesteps_total"] == 192
    assert -6.4 < show.kept[2]["episode_reward_mean"] <= 0.6  # five steps to the right, the last one worth 1
    assert names["trainer"].config["env_config"] == {"corridor_length": 5}
    names["trainer"].stop()


@pytest.mark.slow
def test_simple_corridor_learns_with_rllib_s_own_settings(monkeypatch):
    monkeypatch.setitem(ppo.DEFAULT_CONFIG, "seed", 0)
    show = until(99, "corridor")
    execute("corridor", print=show)["trainer"].stop()
    assert show.kept[0]["timesteps_total"] == 4000
    assert show.kept[2]["episode_reward_mean"] > show.kept[0]["episode_reward_mean"] + 1


def test_an_env_class_and_then_its_creator(quick):
    show = until(2, "my_env")
    names = {"print": show}
    with pytest.raises(EnoughError):
        exec(compile(program("my_env"), "my_env.py", "exec"), names)
    assert show.kept[1]["timesteps_total"] == 128
    names["trainer"].stop()
    exec(compile(program("env_creator"), "env_creator.py", "exec"), names)
    assert registry.is_registered("my_env")
    assert names["trainer"].train()["timesteps_total"] == 64
    names["trainer"].stop()


def test_an_ensemble_of_envs_is_chosen_by_worker_and_vector_index(quick):
    """``num_envs_per_worker`` envs, each its own kind: CartPole's two limits tell them apart."""
    asked = []

    def choose_env_for(worker_index, vector_index):
        asked.append((worker_index, vector_index))
        return ("CartPole-v0", "CartPole-v1")[vector_index % 2]

    names = {"choose_env_for": choose_env_for}
    exec(translated("import gym\nfrom ray.tune.registry import register_env"), names)
    exec(compile(program("multi_env"), "multi_env.py", "exec"), names)
    trainer = ppo.PPOTrainer(env="multienv", config={"num_envs_per_worker": 4, "rollout_fragment_length": 16})
    assert asked == [(0, 0), (0, 1), (0, 2), (0, 3)]
    result = trainer.train()
    assert result["timesteps_total"] == 64
    assert result["episodes_total"] > 0
    trainer.stop()


def test_an_env_of_pettingzoo_reads_its_config(quick, monkeypatch):
    """PettingZoo has no prison any more: another game takes its place, of as many rounds as it had floors."""
    floors = []

    def env(num_floors):
        floors.append(num_floors)
        return pettingzoo.make("aec", "classic/rps-v2", max_cycles=num_floors)

    gamma = SimpleNamespace(prison_v0=SimpleNamespace(env=env))
    monkeypatch.setitem(sys.modules, "pettingzoo.gamma", gamma)
    config = {"rollout_fragment_length": 16}
    exec(compile(program("pettingzoo"), "pettingzoo.py", "exec"), {"config": config})
    trainer = ppo.PPOTrainer(env="prison", config=config)
    result = trainer.train()
    assert floors[0] == 5
    # Five rounds of two turns each.
    assert result["episode_len_mean"] == 10
    trainer.stop()
