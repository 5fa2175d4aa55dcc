"""Rows of a benchmark run: measured side by side, printed as a table, kept as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("steppe", "jax", "equinox", "optax", "numpy", "gymnasium", "ray")
PACKAGES += ("httptools", "msgspec", "websockets", "stable-baselines3", "sbx-rl", "torch")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure and its bar.

    Attributes:
        name: what was measured.
        unit: of ``value`` and ``peer``.
        value: ours; the median over repeats, or the worst over seeds where ``name`` says so.
        bar: ``ratio`` is held against it where there is a peer, else ``value``.
        at_least: whether the bar is a floor (True) or a ceiling.
        peer: the same figure of what we compare with, or None.
    """

    name: str
    unit: str
    value: float
    bar: float
    at_least: bool
    peer: float | None = None

    @property
    def ratio(self) -> float | None:
        """Ours by theirs, or None without a peer."""
        return None if self.peer is None else self.value / self.peer

    @property
    def ok(self) -> bool:
        """Whether the bar is met; a figure that is not a number never meets it."""
        held = self.value if self.ratio is None else self.ratio
        return held >= self.bar if self.at_least else held <= self.bar


def against(
    ours: Callable[[], float], theirs: Mapping[str, Callable[[], float]], repeats: int
) -> tuple[float, float]:
    """Median rate of ours, and of the fastest of the peer's variants.

    All take turns, so that a slow minute of the machine hits each of them. A first turn, which compiles, is
    not counted.
    """
    measures = [ours, *theirs.values()]
    taken = [[measure() for measure in measures] for _ in range(repeats + 1)][1:]
    value, *peers = (statistics.median(rates) for rates in zip(*taken, strict=True))
    return value, max(peers)


def machine() -> dict[str, Any]:
    """The class of the machine: model and cores, nothing that names it."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count()
    return {"cpu": model, "cores": cores, "system": platform.system()}


def versions() -> dict[str, str]:
    """Installed versions of what takes part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(group: str, rows: list[Row], folder: Path = RESULTS) -> Path:
    """Write a group's rows to its file, in place of what was measured before; returns its path."""
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m benchmarks.bench {group}",
        "machine": machine(),
        "versions": versions(),
        "rows": [asdict(row) | {"ratio": row.ratio, "ok": row.ok} for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench-{group}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def updated(group: str, rows: list[Row], folder: Path = RESULTS) -> list[Row]:
    """The rows of a group's file, with these in place of those of the same name."""
    path, fields = folder / f"bench-{group}.json", Row.__dataclass_fields__
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {row["name"]: Row(**{name: row[name] for name in fields}) for row in old}
    return [*(known | {row.name: row for row in rows}).values()]


HEADER = f"{'row':<58}{'value':>9} {'unit':<8}{'peer':>9}{'ratio':>7}  {'bar':<9} ok"


def line(row: Row) -> str:
    """One row for people, under ``HEADER``."""
    peer = "" if row.peer is None else _short(row.peer)
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    bar = f"{'>=' if row.at_least else '<='} {row.bar:g}"
    verdict = "ok" if row.ok else "MISS"
    return f"{row.name:<58}{_short(row.value):>9} {row.unit:<8}{peer:>9}{ratio:>7}  {bar:<9} {verdict}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
