"""Run the benchmarks: ``python -m benchmarks.bench [GROUP ...] [--but GROUP ...]``; exits 1 on a miss.

Each group of rows replaces its file ``results/bench-<group>.json`` once all of its rows are measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import processes
from benchmarks.report import HEADER, RESULTS, Row, line, updated, write


def _sampling() -> Iterator[Row]:
    from benchmarks import sampling

    return sampling.rows()


def _training() -> Iterator[Row]:
    from benchmarks import training

    return training.rows()


def _replay() -> Iterator[Row]:
    from benchmarks import replay

    return replay.rows()


def _off_policy() -> Iterator[Row]:
    from benchmarks import off_policy

    return off_policy.rows()


def _jaxenvs() -> Iterator[Row]:
    from benchmarks import jaxenvs

    return jaxenvs.rows()


def _networks() -> Iterator[Row]:
    from benchmarks import networks

    return networks.rows()


def _scale() -> Iterator[Row]:
    from benchmarks import scale

    return scale.rows()


def _serving() -> Iterator[Row]:
    from benchmarks import serving

    return serving.rows()


def _remote_envs() -> Iterator[Row]:
    from benchmarks import remote_envs

    return remote_envs.rows()


# The fresh processes come first: the in-process groups leave threads and memory behind.
GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "start-up": processes.start_up,
    "tutorial": processes.tutorial,
    "cartpole": processes.cartpole,
    "frames": processes.frames,
    "sampling": _sampling,
    "training": _training,
    "replay": _replay,
    "off-policy": _off_policy,
    "networks": _networks,
    "jaxenvs": _jaxenvs,
    "remote-envs": _remote_envs,
    "scale": _scale,
    "serving": _serving,
}


def main() -> int:
    """Measure, print each row as it comes, write a file a group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="default: all of them")
    parser.add_argument("--but", nargs="*", choices=[*GROUPS], default=[], help="without these")
    parser.add_argument("--rows", nargs="+", default=[], help="of the group serving: these alone")
    parser.add_argument("--quick", action="store_true", help="of the same: shorter, for a look; none is kept")
    given = parser.parse_args()
    os.environ |= {"BENCH_ROWS": " ".join(given.rows)} | ({"BENCH_QUICK": "1"} if given.quick else {})
    asked = [group for group in given.groups or GROUPS if group not in given.but]
    missed = 0
    print(HEADER)
    for group in [group for group in GROUPS if group in asked]:
        rows: list[Row] = []
        for row in GROUPS[group]():
            rows.append(row)
            print(line(row), flush=True)
        if not given.quick:
            write(group, updated(group, rows) if given.rows else rows)
        missed += sum(not row.ok for row in rows)
    print(f"{missed} missed; written to {os.path.relpath(RESULTS)}/bench-*.json")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
