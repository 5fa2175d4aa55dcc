"""Run the benchmarks: ``python -m benchmarks.bench [GROUP ...]``; exits 1 when a bar is missed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import processes
from benchmarks.report import Row, line, write


def _sampling() -> Iterator[Row]:
    from benchmarks import sampling

    return sampling.rows()


def _training() -> Iterator[Row]:
    from benchmarks import training

    return training.rows()


# The fresh processes come first: the in-process groups leave threads and memory behind.
GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "start_up": processes.start_up,
    "tutorial": processes.tutorial,
    "cartpole": processes.cartpole,
    "sampling": _sampling,
    "training": _training,
}


def main() -> int:
    """Measure, print each row as it comes, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="default: all of them")
    groups = parser.parse_args().groups or list(GROUPS)
    measured: list[Row] = []
    for group in groups:
        for row in GROUPS[group]():
            measured.append(row)
            print(line(row), flush=True)
    print(f"written to {write(measured)}")
    return 0 if all(row.ok for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
