"""A run on screen: six lines redrawn in place, or one plain line per iteration where there is no terminal."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TextIO, final

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_SHOWN = 40
_PATIENCE = 10
_BAR = 20
_CLOCK_TICK = 1e-9
_PHASES = ("env", "inference", "learning", "other")
_LABEL = 11


class Glyphs(NamedTuple):
    """What bars and curves are made of; ``levels`` from low to high."""

    full: str
    empty: str
    levels: str
    dot: str


UNICODE = Glyphs("█", "░", "▁▂▃▄▅▆▇█", " · ")
ASCII = Glyphs("#", "-", "_.-~=+*#", " - ")


def sparkline(values: Sequence[float], levels: str = UNICODE.levels) -> str:
    """One character per finite value, from the lowest to the highest level; equal ones in the middle."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    if low == high:
        return levels[(len(levels) - 1) // 2] * len(finite)
    # In units of the largest, for the difference of two huge numbers is infinite, of two tiny ones zero.
    unit = max(abs(low), abs(high))
    bottom, span = low / unit, high / unit - low / unit
    top = len(levels) - 1
    return "".join(levels[round(top * (value / unit - bottom) / span)] for value in finite)


@final
class Display:
    """Shows results as they come; a context manager.

    Args:
        name: the first line: the run, its algorithm, env and folder.
        total_steps: env steps at which the run ends, or None.
        stream: standard output by default. A terminal is redrawn, anything else gets plain lines.
        quiet: show nothing.
    """

    def __init__(
        self, name: str, total_steps: int | None, stream: TextIO | None = None, quiet: bool = False
    ) -> None:
        self._name, self._total, self._quiet = name, total_steps, quiet
        self._stream = sys.stdout if stream is None else stream
        encoding = (self._stream.encoding or "utf-8").lower()
        self._glyphs = UNICODE if encoding.startswith("utf") else ASCII
        self._rewards: deque[float] = deque(maxlen=_SHOWN)
        self._steps, self._seconds = 0, 0.0
        self._evaluation = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, steps: int) -> None:
        """Say that it runs: the first iteration of a slow env, of ``steps`` env steps, may take long."""
        if self._quiet or not self._stream.isatty():
            return
        text = self._text({"steps": f"the first figures come after {steps:,} steps"})
        self._started().update(text, refresh=True)

    def update(self, result: Mapping[str, Any]) -> None:
        """Show the result of one training iteration."""
        self._count(result)
        if self._quiet:
            return
        if not self._stream.isatty():
            print(self.plain(result), file=self._stream, flush=True)
            return
        live = self._started()
        live.update(self.render(result, live.console.width), refresh=True)

    def message(self, text: str) -> None:
        """Show a line that stays, above what is redrawn."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the last lines standing; may be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def plain(self, result: Mapping[str, Any]) -> str:
        """``key=value`` pairs on one line; what is not known yet has no pair."""
        now, overall = self._speeds(result)
        pairs: dict[str, Any] = {
            "iteration": result["training_iteration"],
            "steps": result["timesteps_total"],
            "total_steps": self._total,
            "episodes": result["episodes_total"],
        }
        if _has_reward(result):
            pairs |= {f"reward_{kind}": result[f"episode_reward_{kind}"] for kind in ("mean", "min", "max")}
            pairs["length_mean"] = result["episode_len_mean"]
        else:
            pairs["reward_per_step"] = result["reward_per_step"]
        if "evaluation" in result:
            pairs["evaluation_reward_mean"] = result["evaluation"]["episode_reward_mean"]
        pairs |= {"steps_per_s": round(now), "steps_per_s_overall": round(overall), **_shares(result)}
        pairs["env_health"] = sum(result["env_health"].values()) or None
        known = {k: v for k, v in pairs.items() if v is not None and math.isfinite(v)}
        line = " ".join(f"{k}={f'{v:.6g}' if isinstance(v, float) else v}" for k, v in known.items())
        return f'{line} note="episodes: {_advice(result)}"' if _is_overdue(result) else line

    def render(self, result: Mapping[str, Any], width: int = 80) -> Text:
        """The lines for a terminal of ``width`` columns."""
        return self._text(self._lines(result, width))

    def _text(self, lines: Mapping[str, str]) -> Text:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis" if self._glyphs is UNICODE else "crop")
        text.append(self._name, style="bold")
        for label, content in lines.items():
            text.append(f"\n{label:<{_LABEL}}", style="cyan").append(content)
        return text

    def _lines(self, result: Mapping[str, Any], width: int) -> dict[str, str]:
        now, overall = self._speeds(result)
        dot = self._glyphs.dot
        ended = f"{result['episodes_total']:,} ended"
        if _has_reward(result):
            reward = f"{_rewards(result)}  "
            room = max(0, min(_SHOWN, width - _LABEL - len(reward)))
            reward += sparkline(list(self._rewards)[-room:] if room else [], self._glyphs.levels)
            length = _number(result["episode_len_mean"])
            episodes = f"{ended}{dot}{result['episodes_this_iter']:,} now{dot}length {length}"
        else:
            reward = f"no episode has ended yet; reward per step {_number(result['reward_per_step'])}"
            episodes = _advice(result) if _is_overdue(result) else ended
        shares = _shares(result)
        lines = {
            "steps": self._progress(result, overall),
            "reward": reward,
            "episodes": episodes,
            "speed": f"{now:,.0f} steps/s now{dot}{overall:,.0f} overall",
            "time": dot.join(f"{phase} {share}%" for phase, share in shares.items()) or "not measured",
        }
        if self._evaluation:
            lines["evaluation"] = self._evaluation
        health = result["env_health"]
        if health:
            lines["env health"] = ", ".join(f"{what}: {count:,}" for what, count in health.items())
        return lines

    def _progress(self, result: Mapping[str, Any], speed: float) -> str:
        done = result["timesteps_total"]
        if not self._total:
            return f"{done:,}"
        share = min(1.0, done / self._total)
        full = int(share * _BAR)
        bar = self._glyphs.full * full + self._glyphs.empty * (_BAR - full)
        text = f"{bar} {done:,} of {self._total:,}{self._glyphs.dot}{math.floor(100 * share)}%"
        left = self._total - done
        return f"{text}{self._glyphs.dot}{_clock(left / speed)} left" if left > 0 and speed > 0 else text

    def _count(self, result: Mapping[str, Any]) -> None:
        # Counted here, not taken from the totals: a resumed run has steps that this process never took.
        self._steps += result["timesteps_this_iter"]
        self._seconds += result["time"]["iteration_s"]
        if _has_reward(result):
            self._rewards.append(result["episode_reward_mean"])
        if "evaluation" in result:
            steps = f"{self._glyphs.dot}after {result['timesteps_total']:,} steps"
            self._evaluation = _rewards(result["evaluation"]) + steps

    def _speeds(self, result: Mapping[str, Any]) -> tuple[float, float]:
        """Env steps per second: of this iteration, and since this display began."""
        now = _rate(result["timesteps_this_iter"], result["time"]["iteration_s"])
        return now, _rate(self._steps, self._seconds)

    def _started(self) -> Live:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=self._stream),
                auto_refresh=False,
                # What envs print goes above the lines, but what goes into a file or pipe goes there still.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
        return self._live


def _has_reward(result: Mapping[str, Any]) -> bool:
    return math.isfinite(result["episode_reward_mean"])


def _is_overdue(result: Mapping[str, Any]) -> bool:
    return result["training_iteration"] >= _PATIENCE and not _has_reward(result)


def _advice(result: Mapping[str, Any]) -> str:
    return f"none in {result['training_iteration']} iterations; max_episode_steps in the config ends them"


def _shares(result: Mapping[str, Any]) -> dict[str, int]:
    """Percent of the time that went to each phase; empty where none was measured."""
    seconds = {phase: max(0.0, result["time"][phase]) for phase in _PHASES}
    total = sum(seconds.values())
    return {phase: round(100 * spent / total) for phase, spent in seconds.items()} if total > 0 else {}


def _rate(steps: int, seconds: float) -> float:
    return steps / seconds if seconds > _CLOCK_TICK else 0.0


def _rewards(result: Mapping[str, Any]) -> str:
    mean, low, high = (_number(result[f"episode_reward_{kind}"]) for kind in ("mean", "min", "max"))
    return f"{mean} (min {low}, max {high})"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
