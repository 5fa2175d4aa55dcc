"""Each learning test is a row: what it measured goes to ``benchmarks/results/learn/<row>.json``."""

import json
from datetime import UTC, datetime

import pytest

from benchmarks import curves
from benchmarks.report import RESULTS, machine, versions

SEEDS = (0, 1, 2)

_measured = {}


@pytest.fixture
def learned(request):
    """Train a config with every seed, record the row, and ask for the bar; see ``benchmarks.curves.train``.

    The row is called as the test is, or as its parameter's id. ``enough`` seeds have to reach the bar: all,
    if it is not said. Returns what each seed did.
    """

    def learn(config, bar, steps, *, enough=None, seeds=SEEDS, **options):
        own = getattr(request.node, "callspec", None)
        row = own.id if own else request.node.name.removeprefix("test_")
        runs = [curves.train(config, seed, bar=bar, steps=steps, **options) for seed in seeds]
        curves.record(row, config, bar, steps, runs)
        reached = [run["seed"] for run in runs if run["to_bar"] is not None]
        best = {run["seed"]: run["best"] for run in runs}
        assert len(reached) >= (enough or len(seeds)), f"{row}: {bar} within {steps} steps, best {best}"
        return runs

    return learn


@pytest.fixture
def measured(request):
    """Call it with what a test found, by name."""

    def note(**values):
        row = {"scenario": request.node.originalname, **dict(request.node.callspec.params), **values}
        _measured.setdefault(request.node.path.stem.removeprefix("test_"), []).append(row)

    return note


def pytest_sessionfinish(session):
    """Write the rows of this session over those of the same scenario and seed."""
    for name, rows in _measured.items():
        path = RESULTS / f"learn-{name}.json"
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        key = {
            json.dumps([v for k, v in row.items() if k not in ("steps", "score")]): row
            for row in [*old, *rows]
        }
        about = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), "versions": versions()}
        lines = ",\n  ".join(json.dumps(key[one]) for one in sorted(key))
        path.write_text(f'{json.dumps(about, indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n')
