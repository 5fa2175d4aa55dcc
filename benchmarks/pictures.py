"""Pictures of what is not one score: ``python -m benchmarks.pictures`` trains for them, then draws.

Training writes ``results/<name>.json``; where that is there already, it is only drawn anew. Drawing needs
matplotlib (steppe's extra ``plot``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curves import ROOT, STYLE
from benchmarks.report import RESULTS, machine, versions

GAME = RESULTS / "rock_paper_scissors.json"
GAME_PICTURE = ROOT / "docs" / "images" / "rock_paper_scissors.svg"
STEPS, SEEDS = 300_000, (0, 1, 2)
OPPONENTS = {
    "always_same": "against the one that keeps to its move",
    "beat_last": "against the one that beats the last",
}
KINDS = {"lstm": ("C0", "LSTM"), "none": ("C3", "feed-forward")}


def play(memory: str, seed: int, steps: int = STEPS) -> dict[str, list[float]]:
    """Train the example's player; returns ``steps`` and what it won against each opponent, by iteration."""
    from examples import rock_paper_scissors

    own = {"memory": memory, "prev_action": memory != "none", "seed": seed, "write_run": False}
    found: dict[str, list[float]] = {"steps": [], **{opponent: [] for opponent in OPPONENTS}}
    with rock_paper_scissors.config().copy(**own).build() as algo:
        while not found["steps"] or found["steps"][-1] < steps:
            result = algo.train()
            found["steps"].append(int(result["timesteps_total"]))
            for opponent in OPPONENTS:
                found[opponent].append(round(float(result["custom_metrics"][f"{opponent}_mean"]), 2))
    return found


def record(path: Path = GAME, steps: int = STEPS, seeds: tuple[int, ...] = SEEDS) -> None:
    """Train with and without a memory, with several seeds, and write what came of it."""
    runs = {kind: [play(kind, seed, steps) for seed in seeds] for kind in KINDS}
    about = {"command": "python -m benchmarks.pictures", "machine": machine(), "versions": versions()}
    path.write_text(json.dumps({**about, "runs": runs}) + "\n")


def draw(recorded: Mapping[str, Any], path: Path = GAME_PICTURE) -> None:
    """Reward by opponent against env steps: a line a seed, with a memory and without."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3), layout="constrained")
        for axes, (opponent, title) in zip(
            figure.subplots(1, 2, sharey=True), OPPONENTS.items(), strict=True
        ):
            for kind, (colour, label) in KINDS.items():
                for run in recorded["runs"][kind]:
                    axes.plot(run["steps"], run[opponent], color=colour, linewidth=0.6, alpha=0.5)
                mean = np.mean([run[opponent] for run in recorded["runs"][kind]], axis=0)
                axes.plot(recorded["runs"][kind][0]["steps"], mean, color=colour, label=label)
            axes.set(title=title, xlabel="env steps", ylim=(-2, 15.5))
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("rounds won less lost, of 15")
        figure.axes[0].legend(loc="lower right", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    if not GAME.exists() or "--train" in sys.argv:
        record()
    draw(json.loads(GAME.read_text()))
