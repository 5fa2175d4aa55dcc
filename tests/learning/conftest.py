"""Each learning test is a row: what it measured goes to ``benchmarks/results/learn/<row>.json``."""

import pytest

from benchmarks import curves

SEEDS = (0, 1, 2)


def pytest_addoption(parser):
    parser.addoption("--row", help="the only row to run, by its whole name")


def pytest_collection_modifyitems(config, items):
    """Keep one row alone, where one is asked for."""
    asked = config.getoption("--row", None)
    if asked is not None:
        known = {row_of(item): item for item in items if item.get_closest_marker("slow")}
        if asked not in known:
            raise pytest.UsageError(f"no row {asked!r}; there are {', '.join(sorted(known))}")
        items[:] = [known[asked]]


def row_of(item):
    """A row is called as its test is, or as the parameter's id."""
    own = getattr(item, "callspec", None)
    return own.id if own else item.name.removeprefix("test_")


@pytest.fixture
def learned(request):
    """Train a config with every seed, record the row, and ask for the bar; see ``benchmarks.curves.train``.

    ``enough`` seeds have to reach the bar: all, if it is not said. Returns what each seed did.
    """

    def learn(config, bar, steps, *, enough=None, seeds=SEEDS, **options):
        row = row_of(request.node)
        runs = [curves.train(config, seed, bar=bar, steps=steps, **options) for seed in seeds]
        curves.record(row, config, bar, steps, runs)
        reached = [run["seed"] for run in runs if run["to_bar"] is not None]
        best = {run["seed"]: run["best"] for run in runs}
        assert len(reached) >= (enough or len(seeds)), f"{row}: {bar} within {steps} steps, best {best}"
        return runs

    return learn
