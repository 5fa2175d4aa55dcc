"""``tune.run`` for one trial: a training run until a criterion is met."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, final

from steppe.compat.defaults import known_algorithms
from steppe.compat.trainer import Trainer, trainer_class
from steppe.compat.tune.registry import register_env
from steppe.config import say_once
from steppe.envs.registry import env_name
from steppe.errors import ConfigError
from steppe.tracking.rows import flatten

__all__ = ["ExperimentAnalysis", "Trial", "register_env", "run"]

_SEARCH = (
    *("choice", "grid_search", "lograndint", "loguniform", "qlograndint", "qloguniform", "qrandint"),
    *("qrandn", "quniform", "randint", "randn", "sample_from", "uniform"),
)
_ONE_TRIAL = (
    "tune.run trains one trial here: write a loop over the values and call tune.run once for each, "
    "with a name of its own"
)
_REFUSED = ("scheduler", "search_alg", "resume")
Stop = Mapping[str, Any] | Callable[[str, dict[str, Any]], bool]


@final
@dataclass
class Trial:
    """The trial that was run.

    Attributes:
        trial_id: its name, as functions given as ``stop`` get it.
        config: settings of its trainer.
        logdir: its folder.
        last_result: its newest result.
        checkpoints: path and result of each checkpoint, the newest last.
    """

    trial_id: str
    config: dict[str, Any]
    logdir: str | None
    last_result: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@final
class ExperimentAnalysis:
    """What :func:`run` returns: its one trial, in the words of Tune.

    Args:
        trial: the trial.
        metric: key of a result by which checkpoints are compared; the mean episode reward if None.
        mode: "max" or "min"; "max" if None.
    """

    def __init__(self, trial: Trial, metric: str | None = None, mode: str | None = None) -> None:
        self.trials, self.best_trial, self.best_config = [trial], trial, trial.config
        self.best_result, self.best_logdir = trial.last_result, trial.logdir
        self.results = {trial.trial_id: trial.last_result}
        self._metric, self._mode = metric or "episode_reward_mean", mode or "max"

    @property
    def best_checkpoint(self) -> str | None:
        """The checkpoint with the best result; None if there is none."""
        return self.get_best_checkpoint()

    def get_best_checkpoint(
        self, trial: Any = None, metric: str | None = None, mode: str | None = None
    ) -> str | None:
        """The checkpoint whose result has the largest, or with mode "min" smallest, ``metric``."""
        metric, sign = metric or self._metric, -1 if (mode or self._mode) == "min" else 1
        scored = [(sign * _value(result, metric), path) for path, result in self.best_trial.checkpoints]
        known = [entry for entry in scored if entry[0] == entry[0]]  # nan: no episode had ended
        return max(known or scored)[1] if scored else None

    def get_last_checkpoint(self, *_: Any, **__: Any) -> str | None:
        """The newest checkpoint; None if there is none."""
        kept = self.best_trial.checkpoints
        return kept[-1][0] if kept else None


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
        ConfigError: more than one trial is asked for, or no end.
    """
    _check(stop, {"num_samples": num_samples, **others})
    cls, settings = _trainer(run_or_experiment), dict(config or {})
    trial_id = f"{cls.algo}_{env_name(settings.get('env'))}"
    if name is not None or local_dir is not None:
        settings["run_dir"] = _folder(Path(local_dir or "runs").expanduser() / (name or cls.algo), trial_id)
    trainer = cls(settings)
    trial = Trial(f"{trial_id}_00000", trainer.config, trainer.logdir)
    try:
        if restore is not None:
            trainer.restore(restore)
        while not trial.last_result.get("done", False):
            result = trial.last_result = trainer.train()
            result["done"] = _ended(stop, trial.trial_id, result)
            if verbose:
                steps, reward = result["timesteps_total"], result["episode_reward_mean"]
                print(f"{trial.trial_id}: iteration {trainer.iteration}, {steps} steps, reward {reward:.2f}")
            due = checkpoint_freq and trainer.iteration % checkpoint_freq == 0
            if due or (checkpoint_at_end and result["done"]):
                trial.checkpoints.append((trainer.save(trial.logdir), result))
    except BaseException as error:
        trainer.algorithm.__exit__(type(error), error, None)
        raise
    trainer.stop()
    return ExperimentAnalysis(trial, metric, mode)


def _check(stop: Stop | None, others: Mapping[str, Any]) -> None:
    if not stop:
        raise ConfigError('tune.run without stop never ends: give stop={"training_iteration": 10}')
    for key, value in others.items():
        if (key == "num_samples" and value != 1) or (key in _REFUSED and value):
            raise ConfigError(f"tune.run: {key}={value!r} is for several trials. {_ONE_TRIAL}")
        if near := difflib.get_close_matches(key, set(run.__annotations__) - {key}, n=1, cutoff=0.8):
            raise ConfigError(f"tune.run has no {key!r}; did you mean {near[0]!r}?")
        if key not in (*_REFUSED, "num_samples"):
            say_once(f"tune.run: {key} is accepted and has no effect")


def _trainer(given: str | type[Trainer]) -> type[Trainer]:
    if isinstance(given, type) and issubclass(given, Trainer):
        return given
    if isinstance(given, str) and given.upper() in known_algorithms():
        return trainer_class(given.upper())
    raise ConfigError(
        f"tune.run({given!r}): give the name of an algorithm ({', '.join(known_algorithms())}) or its "
        "trainer class; functions and other experiments belong to Tune itself"
    )


def _ended(stop: Stop | None, trial_id: str, result: dict[str, Any]) -> bool:
    if isinstance(stop, Mapping):
        return any(_value(result, key) >= limit for key, limit in stop.items())
    return bool(stop and stop(trial_id, result))


def _value(result: Mapping[str, Any], key: str) -> Any:
    flat = flatten({name: value for name, value in result.items() if name != "config"})
    if key not in flat:
        near = difflib.get_close_matches(key, flat, n=3) or sorted(flat)[:8]
        raise ConfigError(f"no {key!r} in a result; there is {', '.join(near)}")
    return flat[key]


def _folder(base: Path, trial_id: str) -> str:
    """A new folder for the run: counted up, as Tune never writes into an old one."""
    n = 0
    while (path := base / f"{trial_id}_{n:05d}").exists():
        n += 1
    return str(path)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Search spaces are refused where they are asked for."""
    if name not in _SEARCH:
        raise AttributeError(f"steppe.compat.tune has no {name!r}; it has {', '.join(__all__)}")

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigError(f"tune.{name}: {_ONE_TRIAL}")

    return refuse
