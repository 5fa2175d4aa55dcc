"""Learning curves: what the learning tests found, as files, pictures and last sections of the docs' pages.

Each test in ``tests/learning`` is a row. ``make learn ROW=ppo_cartpole`` trains its seeds, writes
``results/learn/ppo_cartpole.json``, and draws ``docs/images/learn/ppo_cartpole.svg`` where matplotlib is
(steppe's extra ``plot``). ``python -m benchmarks.curves``, which it ends with, draws all rows and writes the
section "Learning curves" of every page in ``docs/algorithms``.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from benchmarks.report import RESULTS, machine, versions

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig

ROOT = Path(__file__).resolve().parent.parent
LEARNED = RESULTS / "learn"
IMAGES = ROOT / "docs" / "images" / "learn"
FRONT = ROOT / "docs" / "images" / "ppo_curves.svg"
ON_THE_FRONT = ("ppo_hot_and_cold", "ppo_cartpole", "ppo_pendulum")
MARK = "<!-- From here on made by benchmarks/curves.py: make pictures -->"
STYLE = {"svg.hashsalt": "steppe", "svg.fonttype": "none", "font.size": 9, "path.simplify_threshold": 0.5}

Run = dict[str, Any]
"""One seed: ``steps`` and ``scores`` after each iteration, the ``best`` one, and steps ``to_bar`` or None."""
Score = Callable[[Mapping[str, Any]], float | None]
"""What an iteration's result is worth; None where it says nothing yet."""


def train(
    config: AlgorithmConfig,
    seed: int,
    *,
    bar: float,
    steps: int,
    score: Score | None = None,
    episodes: int = 50,
    count: str = "timesteps_total",
    to_the_end: bool = False,
) -> Run:
    """Train until ``score`` reaches ``bar``, or ``steps`` are over.

    Args:
        config: the row's.
        seed: of this run.
        bar: the score that counts as learned.
        steps: iterations that end later do not count.
        score: of an iteration's result; by default the mean reward, once there were ``episodes``.
        episodes: that mean rewards are over.
        count: the key of the result that ``steps`` are counted by.
        to_the_end: go on once the bar is reached.
    """
    run: Run = {"seed": seed, "to_bar": None, "best": None, "steps": [], "scores": []}
    window = {"metrics_num_episodes_for_smoothing": episodes, "write_run": False}
    with config.copy(seed=seed, **window).build() as algo:
        while not run["steps"] or run["steps"][-1] < steps:
            result = algo.train()
            if score is None:
                value = result["episode_reward_mean"] if result["episodes_total"] >= episodes else None
            else:
                value = score(result)
            now = int(result[count])
            run["steps"].append(now)
            run["scores"].append(None if value is None else round(float(value), 3))
            if value is None or now > steps:
                continue
            run["best"] = max(value, value if run["best"] is None else run["best"])
            if run["to_bar"] is None and value >= bar:
                run["to_bar"] = now
                if not to_the_end:
                    break
    return run


def settings(config: AlgorithmConfig) -> dict[str, Any]:
    """What a config changes of its defaults, as plain values."""
    plain = config.to_dict()
    own = {name: said(plain[name]) for name in config.changes() if name not in ("seed", "write_run")}
    return own | ({"env": Path(own["env"]).name} if os.path.isabs(str(own.get("env"))) else {})


def said(value: Any) -> Any:
    """A value without those parts of dicts in it that say nothing."""
    if not isinstance(value, dict):
        return value
    return {key: said(part) for key, part in value.items() if part is not None and part != {}}


def record(
    row: str, config: AlgorithmConfig, bar: float, steps: int, runs: Sequence[Run], folder: Path = LEARNED
) -> Path:
    """Write a row's file, in place of what was measured before; returns its path."""
    about = {
        "row": row,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"make learn ROW={row}",
        "machine": machine(),
        "versions": versions(),
        "algorithm": config.algo_name,
        "config": settings(config),
        "bar": bar,
        "limit": steps,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row}.json"
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    path.write_text(f'{json.dumps(about, indent=1)[:-2]},\n "runs": [\n  {lines}\n ]\n}}\n')
    return path


def rows(folder: Path = LEARNED) -> dict[str, dict[str, Any]]:
    """Every recorded row, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


# --- pictures -----------------------------------------------------------------------------------------------


def together(runs: Sequence[Run]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Steps at which every seed has a score, and the scores there, ``(seeds, steps)``, interpolated."""
    known = [[(x, y) for x, y in zip(r["steps"], r["scores"], strict=True) if y is not None] for r in runs]
    curves = [np.array(pairs, float).reshape(-1, 2).T for pairs in known]
    if any(curve.shape[1] == 0 for curve in curves):
        return np.zeros(0), np.zeros((len(runs), 0))
    first, last = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    steps = np.unique(np.concatenate([curve[0] for curve in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, *curve) for curve in curves])


def interval(scores: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """The 95 % bootstrap interval of the mean over seeds, at each step."""
    from scipy.stats import bootstrap  # JAX brings it

    found = bootstrap((scores,), np.mean, axis=0, method="percentile", rng=np.random.default_rng(0))
    return found.confidence_interval.low, found.confidence_interval.high


def panel(axes: Any, row: Mapping[str, Any]) -> None:
    """One row: a thin line a seed, their mean and its interval where all have a score, and the bar."""
    for run in row["runs"]:
        pairs = [pair for pair in zip(run["steps"], run["scores"], strict=True) if pair[1] is not None]
        axes.plot(*zip(*pairs, strict=True) if pairs else ([], []), color="C0", linewidth=0.6, alpha=0.5)
    steps, scores = together(row["runs"])
    if len(scores) > 1 and len(steps):
        axes.fill_between(steps, *interval(scores), color="C0", alpha=0.25, linewidth=0)
        axes.plot(steps, scores.mean(0), color="C0")
    axes.axhline(row["bar"], color="0.4", linewidth=0.8, linestyle="--")
    axes.set(title=row["row"], xlabel="steps")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
    axes.spines[["top", "right"]].set_visible(False)


def draw(drawn: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw some rows side by side; the same rows make the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # a Figure of its own: no window system, nothing to close
        figure = Figure(figsize=(9, 2.8) if len(drawn) > 1 else (4.5, 2.8), layout="constrained")
        for axes, row in zip(np.ravel(figure.subplots(1, len(drawn))), drawn, strict=True):
            panel(axes, row)
        figure.axes[0].set_ylabel("score")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")


# --- pages --------------------------------------------------------------------------------------------------


def line(row: Mapping[str, Any]) -> str:
    """A row as a line of a table."""
    own = {name: value for name, value in row["config"].items() if name != "env"}
    changed = ", ".join(f"`{name}={json.dumps(value)}`" for name, value in own.items()) or "defaults"
    reached = [run["to_bar"] for run in row["runs"]]
    found = ", ".join("not" if steps is None else f"{steps:,}" for steps in reached)
    bar = f"{row['bar']:g} within {row['limit']:,}"
    env = str(row["config"].get("env")).rpartition(":")[2].rpartition(".")[2]
    return f"| `{row['row']}` | {env} | {changed.replace('|', chr(92) + '|')} | {bar} | {found} |"


def section(algorithm: str, recorded: Mapping[str, Mapping[str, Any]]) -> str:
    """What an algorithm's page says about its rows; empty without any."""
    own = [row for row in recorded.values() if row["algorithm"] == algorithm]
    if not own:
        return ""
    pictures = [f"![Score against steps of {row['row']}](../images/learn/{row['row']}.svg)" for row in own]
    about = (
        "Thin lines are seeds; the thick one is their mean, as far as all were trained, in its 95 %\n"
        "bootstrap interval; the dashed one is the bar. Most runs end where they reach it.\n"
        "`make learn ROW=<row>` repeats a row, and `benchmarks/results/learn/<row>.json` has its figures,\n"
        "settings and versions.\n"
    )
    header = ["| row | env | settings | bar, steps | reached by each seed after |", "|---|---|---|---|---|"]
    return "\n".join(["## Learning curves\n", about, *header, *map(line, own), "", *pictures, ""])


def page(path: Path, recorded: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of an algorithm's page, with what is recorded by now below the mark."""
    by_hand = path.read_text(encoding="utf-8").partition(MARK)[0].rstrip("\n")
    own = section(path.stem.upper(), recorded)
    return f"{by_hand}\n\n{MARK}\n\n{own}" if own else f"{by_hand}\n"


def main() -> None:
    """Draw every row, where matplotlib is there, and write every page."""
    recorded = rows()
    if importlib.util.find_spec("matplotlib") is None:
        print("no matplotlib, no pictures: pip install '.[plot]'")
    else:
        for name, row in recorded.items():
            draw([row], IMAGES / f"{name}.svg")
        if all(name in recorded for name in ON_THE_FRONT):
            draw([recorded[name] for name in ON_THE_FRONT], FRONT)
    for path in sorted((ROOT / "docs" / "algorithms").glob("*.md")):
        path.write_text(page(path, recorded), encoding="utf-8")


if __name__ == "__main__":
    main()
