"""Numbers about a server, as Prometheus reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import final

_BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


@final
class Histogram:
    """Seconds that something took."""

    def __init__(self) -> None:
        self._counts, self.total = [0] * (len(_BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, about: str) -> list[str]:
        """As text."""
        lines, sum_ = [f"# HELP {name} {about}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._counts, strict=True):
            sum_ += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {sum_}')
        return [*lines, f"{name}_sum {self.total:.9g}", f"{name}_count {sum_}"]


@final
class Metrics:
    """Counts requests.

    Attributes:
        answered: by verb and status.
        refused: by code.
        seconds: from a request's arrival to its answer.
        syncs: that the disk took.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        self.refused: Counter[str] = Counter()
        self.seconds, self.syncs = Histogram(), Histogram()

    def text(self, gauges: Mapping[str, float]) -> bytes:
        """All of it; of ``gauges``, further numbers by name, those that end in ``_total`` only grow."""
        lines = _head("requests_total", "Requests that were answered.", "counter")
        lines += [
            f'steppe_requests_total{{verb="{verb}",status="{status}"}} {count}'
            for (verb, status), count in sorted(self.answered.items())
        ]
        lines += _head("refused_total", "Requests that were refused.", "counter")
        lines += [f'steppe_refused_total{{code="{code}"}} {n}' for code, n in sorted(self.refused.items())]
        lines += self.seconds.lines("steppe_request_seconds", "From a request's arrival to its answer.")
        lines += self.syncs.lines("steppe_fsync_seconds", "Writing a group of requests to the disk.")
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [
                *_head(name, name.replace("_", " ").capitalize() + ".", kind),
                f"steppe_{name} {value:g}",
            ]
        return ("\n".join(lines) + "\n").encode()


def _head(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP steppe_{name} {about}", f"# TYPE steppe_{name} {kind}"]
