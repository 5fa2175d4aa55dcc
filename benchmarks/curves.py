"""Learning curves of PPO as it comes: nothing is set but the env and the seed.

``python -m benchmarks.curves train [TASK ...]`` trains three seeds and writes ``results/ppo-<task>.json``,
``draw`` makes ``docs/images/ppo_curves.svg`` of the files (needs matplotlib, steppe's extra ``plot``),
``table`` prints the table of ``docs/algorithms/ppo.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.report import RESULTS, machine, versions

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "docs" / "images" / "ppo_curves.svg"
HOT_AND_COLD = "examples/hot_and_cold/gym_example/envs/example_env.py:Example_v0"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """An env, how long it is trained, and the mean reward that counts as learned.

    Attributes:
        env: as ``PPOConfig(env=...)`` takes it, from the repository's root.
        title: for people.
        steps: env steps to train.
        bar: of ``episode_reward_mean``.
        drawn: whether it has a panel in the picture.
    """

    env: str
    title: str
    steps: int
    bar: float
    drawn: bool = False


TASKS = {
    "hot-and-cold": Task(HOT_AND_COLD, "hot and cold", 40_000, 8.3, drawn=True),
    "cartpole": Task("CartPole-v1", "CartPole-v1", 100_000, 475, drawn=True),
    "pendulum": Task("Pendulum-v1", "Pendulum-v1", 300_000, -300, drawn=True),
    "acrobot": Task("Acrobot-v1", "Acrobot-v1", 300_000, -90),
    "lunarlander": Task("LunarLander-v3", "LunarLander-v3", 700_000, 150),
}


def train(task: Task, seed: int) -> dict[str, Any]:
    """One run: after each iteration, the env steps so far and the mean reward of the last 50 episodes."""
    import steppe

    steps: list[int] = []
    rewards: list[float | None] = []
    config = steppe.PPOConfig(env=task.env, seed=seed, metrics_num_episodes_for_smoothing=50, write_run=False)
    with config.build() as algo:
        while not steps or steps[-1] < task.steps:
            result = algo.train()
            steps.append(result["timesteps_total"])
            mean = result["episode_reward_mean"]
            rewards.append(round(mean, 3) if result["episodes_total"] else None)
    return {"seed": seed, "steps": steps, "rewards": rewards}


def record(name: str) -> Path:
    """Train a task with every seed and write its file; returns the path."""
    runs = []
    for seed in SEEDS:
        run = train(TASKS[name], seed)
        print(f"{name}, seed {seed}: {run['rewards'][-1]} after {run['steps'][-1]:,} steps", flush=True)
        runs.append(run)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks.curves train {name}",
        "machine": machine(),
        "versions": versions(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"ppo-{name}.json"
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    path.write_text(f'{json.dumps(about, indent=1)[:-2]},\n "runs": [\n  {lines}\n ]\n}}\n')
    return path


def runs_of(name: str) -> list[dict[str, Any]]:
    """The recorded runs of a task; none if it was not trained yet."""
    path = RESULTS / f"ppo-{name}.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return runs


def steps_to(run: dict[str, Any], bar: float) -> int | None:
    """Env steps after which the mean first was at least ``bar``, or None."""
    pairs = zip(run["steps"], run["rewards"], strict=True)
    return next((steps for steps, mean in pairs if mean is not None and mean >= bar), None)


def table() -> str:
    """The recorded tasks as a Markdown table."""
    lines = ["| env | trained | mean at the end (lowest, highest seed) | bar | reached by the slowest seed |"]
    lines.append("|---|---|---|---|---|")
    for name, task in TASKS.items():
        runs = runs_of(name)
        if not runs:
            continue
        ends = [run["rewards"][-1] for run in runs]
        reached = [steps_to(run, task.bar) for run in runs]
        slowest = "not by all" if None in reached else f"after {max(filter(None, reached)):,}"
        end = f"{statistics.mean(ends):.1f} ({min(ends):.1f}, {max(ends):.1f})"
        lines.append(f"| {task.title} | {task.steps:,} steps | {end} | {task.bar:g} | {slowest} |")
    return "\n".join(lines)


def draw() -> None:
    """Draw mean and range over the seeds, one panel a task."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": "steppe", "svg.fonttype": "path", "font.size": 9})
    tasks = {name: task for name, task in TASKS.items() if task.drawn}
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(9, 2.8), layout="constrained")
    for panel, (name, task) in zip(panels, tasks.items(), strict=True):
        runs = runs_of(name)
        columns = zip(runs[0]["steps"], *(run["rewards"] for run in runs), strict=True)
        steps, *rewards = zip(*(column for column in columns if None not in column), strict=True)
        low, mean, high = (list(map(f, zip(*rewards, strict=True))) for f in (min, statistics.mean, max))
        panel.fill_between(steps, low, high, alpha=0.25, linewidth=0)
        panel.plot(steps, mean)
        panel.axhline(task.bar, color="0.4", linewidth=0.8, linestyle="--")
        panel.set(title=task.title, xlabel="env steps", xlim=(0, task.steps))
        panel.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean episode reward")
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, metadata={"Date": None, "Creator": None}, facecolor="white")


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["train", "draw", "table"])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default: all")
    given = parser.parse_args()
    unknown = set(given.tasks) - set(TASKS)
    if unknown:
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    if given.action == "draw":
        draw()
    elif given.action == "table":
        print(table())
    else:
        os.chdir(ROOT)  # one env is named by its file
        for name in given.tasks or TASKS:
            print(f"written to {record(name)}", flush=True)


if __name__ == "__main__":
    main()
