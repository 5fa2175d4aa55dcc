"""``tune.run`` for one trial: a training run until a criterion is met."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, final

import numpy as np

from steppe.compat.absent import mirror, of_class, table
from steppe.compat.defaults import known_algorithms
from steppe.compat.trainer import Trainer, trainer_class
from steppe.config import say_once
from steppe.envs.registry import env_name, register_env
from steppe.errors import ConfigError
from steppe.tracking.rows import flatten

__all__ = ["ExperimentAnalysis", "Trial", "register_env", "run"]

_ONE_TRIAL = "tune.run trains one trial here: write a loop over the values, with a name for each"
_WORDS = table("words.toml")["tune"]
_KEYS, _OPEN = set(_WORDS["keys"]), set(_WORDS["open"])
Name = str | None
Stop = Mapping[str, Any] | Callable[[str, dict[str, Any]], bool]


class Checkpoint(NamedTuple):
    """A checkpoint of a trial: its path, and the result that it was written after."""

    value: str
    result: dict[str, Any]


@final
@dataclass
class Trial:
    """The trial that was run.

    Attributes:
        trial_id: its name, as functions given as ``stop`` get it.
        config: settings of its trainer.
        logdir: its folder.
        last_result: its newest result.
        checkpoints: path (``value``) and result of each, the newest last.
    """

    trial_id: str
    config: dict[str, Any]
    logdir: str | None
    last_result: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest; its path is ``checkpoint.value``. None if there is none."""
        return self.checkpoints[-1] if self.checkpoints else None


@final
class ExperimentAnalysis:
    """What :func:`run` returns: its one trial, in the words of Tune.

    Args:
        trial: the trial.
        metric: key of a result by which checkpoints are compared; the mean episode reward if None.
        mode: "max" or "min"; "max" if None.
    """

    __getattr__ = of_class("ExperimentAnalysis")

    def __init__(self, trial: Trial, metric: str | None = None, mode: str | None = None) -> None:
        self.trials, self.best_trial, self.best_config = [trial], trial, trial.config
        self.best_result, self.best_logdir = trial.last_result, trial.logdir
        self.results = {trial.trial_id: trial.last_result}
        self._metric, self._mode = metric or "episode_reward_mean", mode or "max"

    @property
    def best_checkpoint(self) -> str | None:
        """The checkpoint with the best result; None if there is none."""
        return self.get_best_checkpoint()

    def get_best_trial(self, metric: str | None = None, mode: str | None = None, *_: Any, **__: Any) -> Trial:
        """The one trial."""
        return self.best_trial

    def get_best_config(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Its settings."""
        return self.best_config

    def get_best_logdir(self, *_: Any, **__: Any) -> str | None:
        """Its folder."""
        return self.best_logdir

    def get_trial_checkpoints_paths(self, trial: Any = None, metric: Name = None) -> list[tuple[str, Any]]:
        """Each checkpoint's path with the value of ``metric`` in its result."""
        kept = self.best_trial.checkpoints
        return [(path, _value(result, metric or self._metric)) for path, result in kept]

    def dataframe(self, metric: str | None = None, mode: str | None = None) -> Any:
        """The newest result and the settings as one row of a pandas frame; nested names are joined by "/".

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            instead = f"use results, a dict; every iteration stands in {self.best_logdir}/progress.csv"
            raise ConfigError(f"dataframe() needs pandas: pip install pandas, or {instead}") from None
        settings = {"config": self.best_config, "logdir": self.best_logdir or ""}
        return pandas.DataFrame([flatten({**self.best_result, **settings})])

    def get_best_checkpoint(self, trial: Any = None, metric: Name = None, mode: Name = None) -> str | None:
        """The checkpoint whose result has the largest, or with mode "min" smallest, ``metric``."""
        sign = -1 if (mode or self._mode) == "min" else 1
        scored = [(sign * value, path) for path, value in self.get_trial_checkpoints_paths(trial, metric)]
        known = [entry for entry in scored if entry[0] == entry[0]]  # nan: no episode had ended
        return max(known or scored)[1] if scored else None

    def get_last_checkpoint(self, *_: Any, **__: Any) -> str | None:
        """The newest checkpoint; None if there is none."""
        return self.best_trial.checkpoints[-1][0] if self.best_trial.checkpoints else None


def run(
    run_or_experiment: str | type[Trainer],
    name: str | None = None,
    metric: str | None = None,
    mode: str | None = None,
    stop: Stop | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    num_samples: int = 1,
    local_dir: str | Path | None = None,
    checkpoint_freq: int = 0,
    checkpoint_at_end: bool = False,
    verbose: int = 2,
    restore: str | Path | None = None,
    **others: Any,
) -> ExperimentAnalysis:
    """Train until a criterion is met.

    Args:
        run_or_experiment: the algorithm's name, or its trainer class.
        name: of the experiment: a folder in ``local_dir``.
        metric: what checkpoints are compared by; ``episode_reward_mean`` if None.
        mode: "max" or "min".
        stop: result keys (``"info/num_steps_trained"`` reaches inside) with the value at which training
            ends, or a function of trial id and result.
        config: settings of the trainer.
        num_samples: 1.
        local_dir: where the folder of the run is made; ``runs`` if only ``name`` is given.
        checkpoint_freq: iterations between checkpoints; 0 writes none. All are kept.
        checkpoint_at_end: write one when training ends.
        verbose: 0 prints nothing, more prints a line for each iteration.
        restore: a checkpoint to begin with.
        others: what else Tune takes; it has no effect, which is said, or is refused as for several trials.

    Raises:
        ConfigError: more than one trial is asked for, or no end, or one that cannot come.
    """
    _check({"num_samples": num_samples, **others})
    _check_stop(stop, callbacks=bool(config and config.get("callbacks")))
    cls, settings = _trainer(run_or_experiment), dict(config or {})
    trial_id = f"{cls.algo}_{env_name(settings.get('env'))}"
    if name is not None or local_dir is not None:
        base = Path(local_dir or "runs").expanduser() / (name or cls.algo)
        paths = (base / f"{trial_id}_{n:05d}" for n in count())  # Tune never writes into an old one
        settings["run_dir"] = str(next(path for path in paths if not path.exists()))
    trainer = cls(settings)
    trial = Trial(f"{trial_id}_00000", trainer.config, trainer.logdir)
    try:
        if restore is not None:
            trainer.restore(restore)
        while not trial.last_result.get("done", False):
            result = trial.last_result = trainer.train()
            result["done"] = bool(result["done"]) or _ended(stop, trial.trial_id, result)
            if verbose:
                steps, reward = result["timesteps_total"], result["episode_reward_mean"]
                print(f"{trial.trial_id}: iteration {trainer.iteration}, {steps} steps, reward {reward:.2f}")
            due = checkpoint_freq and trainer.iteration % checkpoint_freq == 0
            if due or (checkpoint_at_end and result["done"]):
                trial.checkpoints.append(Checkpoint(trainer.save(trial.logdir), result))
    except BaseException as error:
        trainer.algorithm.__exit__(type(error), error, None)
        raise
    trainer.stop()
    return ExperimentAnalysis(trial, metric, mode)


def _check_stop(stop: Stop | None, *, callbacks: bool) -> None:
    """Find out before the first iteration what could never end it; only callbacks add names to a result."""
    if not stop:
        raise ConfigError('tune.run without stop never ends: give stop={"training_iteration": 10}')
    if not isinstance(stop, Mapping):
        try:
            inspect.signature(stop).bind("trial", {})
        except TypeError as error:
            raise ConfigError(
                f"{stop!r}: give a dict, or a function stop(trial_id, result): {error}"
            ) from None
        return
    for key, limit in stop.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float | np.number) or limit != limit:
            raise ConfigError(f"stop={{{key!r}: {limit!r}}}: the value is a number, at which training ends")
        if not callbacks and key not in _KEYS and key.partition("/")[0] not in _OPEN:
            raise ConfigError(_no_such_key(key, _KEYS | _OPEN))


def _check(others: Mapping[str, Any]) -> None:
    for key, value in others.items():
        if (key == "num_samples" and value != 1) or (key in _WORDS["refused"] and value):
            raise ConfigError(f"tune.run: {key}={value!r} is for several trials. {_ONE_TRIAL}")
        if near := difflib.get_close_matches(key, set(run.__annotations__) - {key}, n=1, cutoff=0.8):
            raise ConfigError(f"tune.run has no {key!r}; did you mean {near[0]!r}?")
        if key not in (*_WORDS["refused"], "num_samples"):
            say_once(f"tune.run: {key} is accepted and has no effect")


def _trainer(given: str | type[Trainer]) -> type[Trainer]:
    if isinstance(given, type) and issubclass(given, Trainer):
        return given
    if isinstance(given, str) and given.upper() in known_algorithms():
        return trainer_class(given.upper())
    raise ConfigError(f"tune.run({given!r}): give a trainer class, or its algorithm, of {known_algorithms()}")


def _ended(stop: Stop | None, trial_id: str, result: dict[str, Any]) -> bool:
    if isinstance(stop, Mapping):
        return any(not _is_awaited(result, key) and _value(result, key) >= n for key, n in stop.items())
    return bool(stop and stop(trial_id, result))


def _is_awaited(result: Mapping[str, Any], key: str) -> bool:
    """Whether a nested value is not there yet: no episode has ended, or nothing was evaluated."""
    parent = key.rpartition("/")[0]
    empty = not any(one.startswith(f"{parent}/") for one in flatten(result))
    return parent.partition("/")[0] in _OPEN and empty


def _value(result: Mapping[str, Any], key: str) -> Any:
    flat = flatten({name: value for name, value in result.items() if name != "config"})
    if key not in flat:
        raise ConfigError(_no_such_key(key, flat))
    return flat[key]


def _no_such_key(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, n=3) or sorted(known)
    return f"no {key!r} in a result; there is {', '.join(near)}"


def pretty_print(result: Mapping[str, Any]) -> str:
    """A result as indented lines ``key: value``, without the config and what is None."""
    return "\n".join(_lines({key: value for key, value in result.items() if key != "config"}, ""))


def _lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in sorted(values.items(), key=lambda item: str(item[0])):
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif value is not None:
            yield f"{indent}{key}: {value}"


def _refuse(name: str, *_: Any, **__: Any) -> NoReturn:
    raise ConfigError(f"tune.{name}: {_ONE_TRIAL}")


# Search spaces are refused where they are asked for.
globals().update({name: partial(_refuse, name) for name in _WORDS["search"]})
__getattr__ = mirror(__name__)
