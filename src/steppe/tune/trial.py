"""One trial: a run whose score is told to Optuna as it trains."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steppe.config import AlgorithmConfig, field_specs
from steppe.containers import copied
from steppe.errors import ConfigError, LearningError
from steppe.tracking.rows import flatten

if TYPE_CHECKING:
    from steppe.algorithm import Algorithm

MARKS = 20
"""Scores are compared after so many equal parts of a trial's steps: iterations may differ in length."""


class Listener(Protocol):
    """Who compares a trial with others, and may end it: Optuna's trial, or what speaks to Ray Tune."""

    def report(self, value: float, step: int) -> None:
        """Be told the score at a mark."""

    def should_prune(self) -> bool:
        """Whether the trial is to end."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Be told something else of the trial."""


def with_settings(config: AlgorithmConfig, settings: Mapping[str, Any]) -> AlgorithmConfig:
    """A copy of ``config`` with settings whose names may have dots: ``env_config.size`` leaves the rest.

    Raises:
        ConfigError: one is unknown, or not legal.
    """
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        field, *inner = name.split(".")
        if not inner:
            changes[field] = value
            continue
        own = getattr(config, field) if field in field_specs(type(config)) else {}
        group = changes.setdefault(field, copied(dict(own) if isinstance(own, Mapping) else {}))
        for key in inner[:-1]:
            group = group.setdefault(key, {})
        group[inner[-1]] = value
    return config.copy(**changes)


def run_trial(
    trial: Listener,
    config: AlgorithmConfig,
    metric: str,
    steps: int,
    begun: Callable[[Algorithm], int] = lambda algo: 0,
) -> float | None:
    """Train for ``steps`` env steps, or until the trial's pruner has seen enough.

    ``steps`` taken, and ``why`` it failed if it did, are kept as attributes of the trial. ``begun`` may let
    the algorithm go on from a checkpoint, and says at how many steps it is.

    Returns:
        The score; None where it ended early or failed.

    Raises:
        ConfigError: no result has the metric.
    """
    _make_room()
    with config.build() as algo:
        before = begun(algo)
        run = algo.run
        assert run is not None  # the search sees to it
        run.note(stop={"total_steps": steps})  # for `steppe train --resume`
        try:
            score = _train(trial, algo, metric, steps, MARKS * before // steps)
        except LearningError as error:  # settings that teach nothing are an answer, too
            trial.set_user_attr("why", str(error))
            run.finish("failed", str(error))
            score = None
        else:
            algo.save_to_run()
            run.finish("interrupted" if score is None else "finished")
        trial.set_user_attr("steps", run.record["steps"])
    if score is None or math.isfinite(score):
        return score
    why = f"{metric} was never a number in {steps:,} steps: train longer, until episodes have ended"
    trial.set_user_attr("why", why)
    return None


def _make_room() -> None:
    """Let the programs of earlier trials go before their memory maps are more than a process may have."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MAPS:
        import jax

        jax.clear_caches()  # type: ignore[no-untyped-call]


_MAPS = 20_000  # Linux allows 65,530; a trial that shares no program with others adds 400


def _train(trial: Listener, algo: Algorithm, metric: str, steps: int, told: int) -> float | None:
    """The newest score at the end, NaN if there never was one; None where the pruner ended it."""
    score = math.nan
    while True:
        result = algo.train()
        newest = score_of(result, metric, algo.config)
        score = newest if math.isfinite(newest) else score
        done = result["timesteps_total"]
        marks = min(MARKS, MARKS * done // steps)
        if math.isfinite(score):
            for mark in range(told + 1, marks + 1):
                trial.report(score, mark)
            told = marks
        if done >= steps:
            return score
        if told and trial.should_prune():
            return None


def score_of(result: Mapping[str, Any], metric: str, config: AlgorithmConfig) -> float:
    """The metric of a result; NaN where it was not evaluated.

    Raises:
        ConfigError: results have no such key, with the nearest one.
    """
    flat = flatten(result)
    if metric in flat:
        return float(flat[metric])
    if metric.startswith("evaluation/") and "evaluation" not in result:
        if config.evaluation_interval:
            return math.nan
        raise ConfigError(f"metric {metric!r}: nothing is evaluated; set evaluation_interval")
    near = difflib.get_close_matches(metric, flat, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(flat)}"
    raise ConfigError(f"results have no {metric!r}; {hint}")
