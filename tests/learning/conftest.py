"""What the learning tests measured goes to ``benchmarks/results/learn-*.json``, one file a test file."""

import json
from datetime import UTC, datetime

import pytest

from benchmarks.report import RESULTS, machine, versions

_measured = {}


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
