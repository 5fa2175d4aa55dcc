"""Each learning test is a row: what it measured goes to ``benchmarks/results/learn/<row>.json``."""

import pytest

from benchmarks import curves

SEEDS = (0, 1, 2)


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
