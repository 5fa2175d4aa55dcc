"""The picture of a study: env steps a second by number of runners, measured and predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COLOURS = {"sampling": "C0", "training": "C1"}
_STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "steppe",
}
_UNDATED: Any = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def draw(record: Mapping[str, Any], path: Path) -> Path:
    """Draw a record of :func:`~steppe.scaling.study`; the same one makes the same file. Needs matplotlib.

    Returns:
        ``path``, whose ending says the format.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # a Figure of its own: no window system, nothing to close
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.subplots()
        for kind, points in record["points"].items():
            _line(axes, kind, points)
            runs = [run for run in record["runs"] if run["kind"] == kind]
            places, measured = [run["runners"] for run in runs], [run["measured"] for run in runs]
            axes.scatter(places, measured, s=34, color=_COLOURS[kind], zorder=3, label=f"{kind}, measured")
        for (name, known), marker in zip(record["published"].items(), "sD", strict=True):
            steps = {int(cpus): rate for cpus, rate in known["steps_per_s"].items()}
            label = f"RLlib's documentation: {name} {known['where']}, sampling"
            axes.plot(list(steps), list(steps.values()), f"{marker}:", color="0.5", ms=4, label=label)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_yscale("log")
        axes.set(xlabel="runners (0: in this process)", ylabel="env steps a second")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
        how = "asynchronous" if record["asynchronous"] else "synchronous"
        about = f"{record['env']}, {record['algo']}, {how}, {record['num_envs_per_env_runner']} envs a runner"
        axes.set_title(f"{about}, hosts of {record['hosts']['cores']} cores")
        axes.legend(loc="lower right", fontsize=8)
        figure.savefig(path, dpi=120, metadata=_UNDATED.get(path.suffix), facecolor="white")
    return path


def _line(axes: Any, kind: str, points: list[Mapping[str, Any]]) -> None:
    """What is predicted, with the name of each new bottleneck where it begins."""
    places, steps = [point["runners"] for point in points], [point["steps_per_s"] for point in points]
    axes.plot(places, steps, "--o", color=_COLOURS[kind], mfc="white", ms=4, label=f"{kind}, predicted")
    before, below = "", (0, -12 if kind == "training" else 6)
    for place, step, point in zip(places, steps, points, strict=True):
        if point["bottleneck"] != before:
            before = point["bottleneck"]
            text = {"textcoords": "offset points", "fontsize": 7, "color": _COLOURS[kind]}
            axes.annotate(before, (place, step), below, **text)
