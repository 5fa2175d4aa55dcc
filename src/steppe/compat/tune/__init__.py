"""``tune.run`` for one trial: a training run until a criterion is met."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Mapping
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
_NO_EFFECT = (
    *("callbacks", "fail_fast", "global_checkpoint_period", "log_to_file", "loggers", "max_failures"),
    *("progress_reporter", "queue_trials", "raise_on_failed_trial", "ray_auto_init", "resources_per_trial"),
    *("reuse_actors", "server_port", "sync_config", "sync_to_driver", "trial_dirname_creator"),
    *("trial_name_creator", "upload_dir", "with_server"),
)
Stop = Mapping[str, Any] | Callable[[str, dict[str, Any]], bool]


@final
class Trial:
    """The trial that was run.

    Attributes:
        trial_id: its name, as functions given as ``stop`` get it.
        config: settings of its trainer.
        logdir: its folder.
        last_result: its newest result.
        checkpoints: path and result of each checkpoint that is kept, the newest last.
    """

    def __init__(self, trial_id: str, config: dict[str, Any], logdir: str | None) -> None:
        self.trial_id, self.config, self.logdir = trial_id, config, logdir
        self.last_result: dict[str, Any] = {}
        self.checkpoints: list[tuple[str, dict[str, Any]]] = []

    def __repr__(self) -> str:
        return self.trial_id


@final
class ExperimentAnalysis:
    """What :func:`run` returns: its one trial, in the words of Tune.

    Args:
        trial: the trial.
        metric: key of a result by which checkpoints are compared.
        mode: "max" or "min".
    """

    def __init__(self, trial: Trial, metric: str | None, mode: str | None) -> None:
        self.trials = [trial]
        self._metric, self._mode = metric or "episode_reward_mean", mode or "max"

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The last result by trial id."""
        return {trial.trial_id: trial.last_result for trial in self.trials}

    @property
    def best_trial(self) -> Trial:
        """The one trial."""
        return self.trials[0]

    @property
    def best_config(self) -> dict[str, Any]:
        """The trial's settings."""
        return self.best_trial.config

    @property
    def best_result(self) -> dict[str, Any]:
        """The trial's last result."""
        return self.best_trial.last_result

    @property
    def best_logdir(self) -> str | None:
        """The trial's folder."""
        return self.best_trial.logdir

    @property
    def best_checkpoint(self) -> str | None:
        """The checkpoint with the best result; None if there is none."""
        return self.get_best_checkpoint()

    def get_best_trial(
        self, metric: str | None = None, mode: str | None = None, scope: str = "last"
    ) -> Trial:
        """The one trial, whatever is asked for."""
        return self.best_trial

    def get_best_checkpoint(
        self, trial: Trial | str | None = None, metric: str | None = None, mode: str | None = None
    ) -> str | None:
        """The checkpoint whose result has the largest, or with mode "min" smallest, ``metric``."""
        metric, sign = metric or self._metric, -1 if (mode or self._mode) == "min" else 1
        scored = [(sign * _value(result, metric), path) for path, result in self.best_trial.checkpoints]
        known = [entry for entry in scored if entry[0] == entry[0]]  # nan: no episode had ended
        return max(known or scored)[1] if scored else None

    def get_last_checkpoint(
        self, trial: Trial | str | None = None, metric: str | None = None, mode: str | None = None
    ) -> str | None:
        """The newest checkpoint; None if there is none."""
        kept = self.best_trial.checkpoints
        return kept[-1][0] if kept else None


def run(
    run_or_experiment: str | type[Trainer],
    name: str | None = None,
    metric: str | None = None,
    mode: str | None = None,
    stop: Stop | None = None,
    time_budget_s: float | None = None,
    config: Mapping[str, Any] | None = None,
    num_samples: int = 1,
    local_dir: str | os.PathLike[str] | None = None,
    keep_checkpoints_num: int | None = None,
    checkpoint_score_attr: str | None = None,
    checkpoint_freq: int = 0,
    checkpoint_at_end: bool = False,
    verbose: int = 2,
    restore: str | None = None,
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
        time_budget_s: ends training too.
        config: settings of the trainer.
        num_samples: 1.
        local_dir: where the folder of the run is made; ``runs`` if only ``name`` is given.
        keep_checkpoints_num: newest checkpoints that stay; None keeps all.
        checkpoint_score_attr: accepted; the newest ones are kept.
        checkpoint_freq: iterations between checkpoints; 0 writes none.
        checkpoint_at_end: write one when training ends.
        verbose: 0 prints nothing, more prints a line for each iteration.
        restore: a checkpoint to begin with.
        others: what else Tune takes: without effect, or refused where it asks for several trials.

    Raises:
        ConfigError: more than one trial is asked for, or no end.
    """
    _check(num_samples, others)
    cls = _trainer(run_or_experiment)
    criteria = _criteria(stop, time_budget_s)
    settings = dict(config or {})
    if name is not None or local_dir is not None:
        settings.setdefault("run_dir", _folder(local_dir, name, cls.algo, settings.get("env")))
    trainer = cls(settings)
    try:
        if restore is not None:
            trainer.restore(restore)
        trial = Trial(_trial_id(cls.algo, settings.get("env")), trainer.config, trainer.logdir)
        _train(trainer, trial, criteria, checkpoint_freq, keep_checkpoints_num, verbose)
        if checkpoint_at_end and (not trial.checkpoints or trial.checkpoints[-1][1] is not trial.last_result):
            _save(trainer, trial, keep_checkpoints_num)
    except BaseException as error:
        trainer.algorithm.__exit__(type(error), error, None)
        raise
    trainer.stop()
    return ExperimentAnalysis(trial, metric, mode)


def _train(
    trainer: Trainer, trial: Trial, ended: Callable[..., bool], freq: int, keep: int | None, verbose: int
) -> None:
    while not trial.last_result.get("done", False):
        result = trial.last_result = trainer.train()
        result["done"] = ended(trial.trial_id, result)
        if verbose:
            print(
                f"{trial.trial_id}: iteration {result['training_iteration']}, "
                f"{result['timesteps_total']} steps, reward {result['episode_reward_mean']:.2f}"
            )
        if freq and trainer.iteration % freq == 0:
            _save(trainer, trial, keep)


def _save(trainer: Trainer, trial: Trial, keep: int | None) -> None:
    trial.checkpoints.append((trainer.save(trial.logdir), trial.last_result))
    while keep is not None and len(trial.checkpoints) > max(keep, 1):
        path, _ = trial.checkpoints.pop(0)  # written by this very call of run()
        shutil.rmtree(path, ignore_errors=True)
        Path(path).parent.rmdir()


def _check(num_samples: int, others: Mapping[str, Any]) -> None:
    if num_samples != 1:
        raise ConfigError(f"num_samples={num_samples}: {_ONE_TRIAL}")
    for key, value in others.items():
        if key in _REFUSED and value not in (None, False):
            raise ConfigError(f"tune.run: {key}={value!r} is for several trials. {_ONE_TRIAL}")
        if key in _NO_EFFECT:
            say_once(f"tune.run: {key} is accepted and has no effect")
        elif key not in _REFUSED:
            near = difflib.get_close_matches(key, [*run.__annotations__, *_NO_EFFECT], n=1)
            raise ConfigError(f"tune.run has no {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _trainer(given: str | type[Trainer]) -> type[Trainer]:
    if isinstance(given, type) and issubclass(given, Trainer):
        return given
    if isinstance(given, str) and given.upper() in known_algorithms():
        return trainer_class(given.upper())
    raise ConfigError(
        f"tune.run({given!r}): give the name of an algorithm ({', '.join(known_algorithms())}) or its "
        "trainer class; functions and other experiments belong to Tune itself"
    )


def _criteria(stop: Stop | None, seconds: float | None) -> Callable[[str, dict[str, Any]], bool]:
    limits = {} if stop is None or callable(stop) else dict(stop)
    if seconds is not None:
        limits["time_total_s"] = seconds
    if not limits and not callable(stop):
        raise ConfigError('tune.run without stop never ends: give stop={"training_iteration": 10}')

    def ended(trial_id: str, result: dict[str, Any]) -> bool:
        if any(_value(result, key) >= limit for key, limit in limits.items()):
            return True
        return bool(callable(stop) and stop(trial_id, result))

    return ended


def _value(result: Mapping[str, Any], key: str) -> Any:
    flat = flatten({name: value for name, value in result.items() if name != "config"})
    if key not in flat:
        near = difflib.get_close_matches(key, flat, n=3) or sorted(flat)[:8]
        raise ConfigError(f"no {key!r} in a result; there is {', '.join(near)}")
    return flat[key]


def _trial_id(algo: str, env: Any) -> str:
    return f"{algo}_{env_name(env)}_00000"


def _folder(local_dir: str | os.PathLike[str] | None, name: str | None, algo: str, env: Any) -> str:
    """A new folder for the run: counted up, as Tune never writes into an old one."""
    base = Path(local_dir or "runs").expanduser() / (name or algo)
    n = 0
    while (path := base / f"{algo}_{env_name(env)}_{n:05d}").exists():
        n += 1
    return str(path)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Search spaces are refused where they are asked for."""
    if name not in _SEARCH:
        raise AttributeError(f"steppe.compat.tune has no {name!r}; it has {', '.join(__all__)}")

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigError(f"tune.{name}: {_ONE_TRIAL}")

    return refuse
