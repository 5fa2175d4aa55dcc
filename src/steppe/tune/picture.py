"""The picture of a search: its scores in time, and against each setting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from steppe.tune.search import Search, Trial

_COLOURS = {"finished": "C0", "stopped early": "C1", "failed": "C3"}
_STYLE: Any = {
    "svg.hashsalt": "steppe",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def draw(found: Search) -> Path:
    """Write ``tune.svg`` into the search's folder; the same search makes the same file. Needs matplotlib.

    Returns:
        Where it is.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    scored = [trial for trial in found.trials if trial.score is not None]
    names = list(dict.fromkeys(name for trial in scored for name in trial.settings))
    with mpl.rc_context(_STYLE):  # a Figure of its own: no window system, nothing to close
        figure = Figure(figsize=(3.2 * (len(names) + 1), 2.8), layout="constrained")
        first, *others = figure.subplots(1, len(names) + 1, sharey=True, squeeze=False)[0]
        _points(first, [trial.number for trial in scored], scored)
        finished = [trial for trial in scored if trial.status == "finished"]
        best = accumulate([trial.score or 0.0 for trial in finished], max if found.mode == "max" else min)
        first.step([trial.number for trial in finished], list(best), where="post", color="0.4")
        first.set(xlabel="trial", ylabel=found.metric)
        for axes, name in zip(others, names, strict=True):
            having = [trial for trial in scored if name in trial.settings]
            values = [trial.settings[name] for trial in having]
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
            _points(axes, values if numbers else [str(value) for value in values], having)
            axes.set_xlabel(name)
            if found.params.get(name, "").startswith("log"):
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(
                    LogLocator(subs=(1,) if max(values) > 30 * min(values) else (1, 2, 5))
                )
                axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
                axes.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(*first.get_legend_handles_labels(), loc="outside upper right", ncols=3)
        path = found.path / "tune.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    return path


def _points(axes: Any, places: Sequence[Any], trials: Sequence[Trial]) -> None:
    """One point a trial, coloured by how it ended."""
    for status, colour in _COLOURS.items():
        own = [(x, trial.score) for x, trial in zip(places, trials, strict=True) if trial.status == status]
        if own:
            axes.scatter(*zip(*own, strict=True), s=18, color=colour, label=status)
