"""The search: one trial after the other, or side by side on Ray, each a run with a folder of its own.

==================== ==================================================================================
``tune.json``        what is searched, status, every trial's settings and score
``study.jsonl``      Optuna's journal, from which a search goes on
``trial-<k>/``       the run of a trial
==================== ==================================================================================
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from steppe.config import AlgorithmConfig
from steppe.envs.registry import env_name
from steppe.errors import ConfigError
from steppe.resuming import SHAPING
from steppe.seeding import fresh_seed
from steppe.tracking import record as records
from steppe.tracking.rows import to_json, write_json
from steppe.tracking.run import claim_folder
from steppe.tune.space import Choice, Domain, Range
from steppe.tune.trial import run_trial, with_settings

if TYPE_CHECKING:
    import optuna

RECORD = "tune.json"
PRUNERS = {"here": ("median", "asha", "none"), "ray": ("asha", "pbt", "none")}
"""What ends a trial early, by where trials are, the first one if none is named: a score below the median of
others, successive halving, or nothing; with ``pbt`` a low one goes on from the checkpoint of a better one."""

Params: TypeAlias = Mapping[str, Domain] | Callable[["optuna.Trial"], Mapping[str, Any]]
"""By setting what to choose from, or a function that asks Optuna's trial and returns settings."""

Status: TypeAlias = Literal["finished", "stopped early", "failed"]
"""How a trial ended; one failed that learned nothing, or had no score."""

EARLIEST = 4  # trials, and of a trial 20ths of its steps, before one may end early
_JOURNAL = "study.jsonl"


@final
@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        number: counts from 1, and names the folder.
        settings: that differ from the others'.
        score: the metric when it ended; None if it never was a number.
        status: of :data:`Status`.
        steps: env steps taken.
        path: the run's folder.
        why: it failed.
    """

    number: int
    settings: dict[str, Any]
    score: float | None
    status: Status
    steps: int
    path: Path
    why: str = ""


@final
@dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
        path: its folder.
        metric: by which trials were compared.
        mode: "max" or "min".
        params: by setting the text of what was chosen from; empty where a function chose.
        trials: in the order of their numbers.
    """

    path: Path
    metric: str
    mode: str
    params: dict[str, str]
    trials: list[Trial]

    def ranked(self) -> list[Trial]:
        """The finished trials, the best first, then the others by score; equal ones by number."""
        sign = -1 if self.mode == "max" else 1

        def key(trial: Trial) -> tuple[bool, float, int]:
            score = math.inf if trial.score is None else sign * trial.score
            return trial.status != "finished", score, trial.number

        return sorted(self.trials, key=key)

    @property
    def best(self) -> Trial:
        """The finished trial with the best score.

        Raises:
            ConfigError: none has one.
        """
        for trial in self.ranked():
            if trial.status != "finished":
                raise ConfigError(f"{self.path}: no trial has a score: {trial.why}")
            return trial
        raise ConfigError(f"{self.path}: no trial has a score: none has ended")


def tune(
    config: AlgorithmConfig,
    params: Params,
    *,
    trials: int = 20,
    steps: int = 100_000,
    metric: str = "episode_reward_mean",
    mode: str = "max",
    pruner: str | None = None,
    on: str = "here",
    per_trial: Mapping[str, float] | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Callable[[Search], None] | None = None,
) -> Search:
    """Train ``trials`` times with settings that Optuna's TPE sampler chooses, and compare the scores.

    Every trial trains with the seed of ``config``; what was chosen in one follows from that seed and the
    trials before it. Interrupted, a search goes on with ``resume``; the trial that was cut off starts again.

    Args:
        config: the settings that all trials share; ``run_dir`` names the folder of the search, which else
            counts up under ``runs/<Env>/tune-<n>``.
        params: by setting, dotted inside of a dict (``env_config.size``), what to choose from; or a function
            that is given each trial of Optuna's and returns settings.
        trials: that the search ends with, those of before a ``resume`` among them.
        steps: env steps of one trial.
        metric: a key of the results, ``/`` between nested ones: ``evaluation/episode_reward_mean``.
        mode: "max" where more is better, else "min".
        pruner: one of :data:`PRUNERS`.
        on: "here", one trial after the other, or "ray": side by side, on the Ray of ``ray_address`` or one of
            this machine, with settings that are drawn by chance.
        per_trial: what a trial needs of Ray, ``{"CPU": 2, "GPU": 0.5}``; one CPU if None. Its env runners
            come on top.
        resume: folder of a search to go on with; everything but ``trials`` must be as it was.
        progress: is called as the search begins and after each trial, with what there is by then.

    Raises:
        ConfigError: an argument or setting makes no sense, or Optuna, or Ray Tune, is not installed.
    """
    asked = {"steps": steps, "metric": metric, "mode": mode, "pruner": pruner, "on": on}
    record = _record(config, params, trials, {**asked, "per_trial": dict(per_trial or {"CPU": 1})})
    config.validate()
    _check_installed(on)
    if resume is None:
        path = _new_folder(config)
    else:
        path = Path(resume)
        record = _continued(path, record, config.seed)
    record["num_trials"] = trials
    found = Search(path, metric, mode, record["params"] or {}, [])

    def ended(trials: list[Trial]) -> None:
        found.trials[:] = trials
        _write(found, record, "running")
        if progress is not None:
            progress(found)

    try:
        if on == "ray":
            from steppe.tune.ray import search_on_ray

            assert not callable(params)
            ended([Trial(**{**trial, "path": Path(trial["path"])}) for trial in record.get("trials", ())])
            search_on_ray(found, config, params, record, lambda trial: ended([*found.trials, trial]))
            found.trials.sort(key=lambda trial: trial.number)  # by now they are as they ended
        else:
            study = _study(path, record)
            ended(_ended(study, path))
            while len(found.trials) < trials:
                _next(study, config, params, record, found)
                ended(_ended(study, path))
    except BaseException as error:
        _write(found, record, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    _write(found, record, "finished")
    return found


def read_search(path: Path) -> dict[str, Any]:
    """What ``tune.json`` of a search's folder holds.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {*_FIXED, "config", "status"} <= record.keys() | {"on"}:
            raise ValueError("it lacks some of its entries")
        record.setdefault("on", "here")  # there was no other place once
    except OSError:
        raise ConfigError(f"{path} is not the folder of a search: it has no {RECORD}") from None
    except ValueError as error:
        raise ConfigError(f"{path / RECORD} is damaged: {error}") from None
    return record


def _check_installed(on: str) -> None:
    # Ray Tune is a part of Ray that does not load without these.
    for name in ("ray", "pandas", "pyarrow") if on == "ray" else ("optuna",):
        if importlib.util.find_spec(name) is None:
            who, extra = ("on Ray needs Ray Tune", "ray-tune") if on == "ray" else ("needs Optuna", "tune")
            raise ConfigError(f"a search {who}, and {name} is missing: pip install 'steppe[{extra}]'")


def _record(config: AlgorithmConfig, params: Params, trials: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What is searched, checked, as ``tune.json`` keeps it."""
    for name, known in _KNOWN.items():
        if asked[name] not in known:
            raise ConfigError(f"{name}={asked[name]!r} must be one of {', '.join(known)}")
    on, steps, pruners = asked["on"], asked["steps"], PRUNERS[asked["on"]]
    asked["pruner"] = asked["pruner"] or pruners[0]
    if asked["pruner"] not in pruners:
        raise ConfigError(f"pruner={asked['pruner']!r} must be one of {', '.join(pruners)} where on={on!r}")
    for name, number in (("trials", trials), ("steps", steps)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name}={number!r} must be a whole number above 0")
    if not config.write_run:
        raise ConfigError("write_run=False: the trials of a search are runs with folders; leave it out")
    if not callable(params):
        _check_params(config, params, asked["pruner"])
    elif on == "ray":
        raise ConfigError(
            "params is a function, which asks Optuna; on Ray give by setting what to choose from"
        )
    settings = {name: value for name, value in config.to_dict().items() if name != "run_dir"}
    return {
        "algo": config.algo_name,
        "params": None if callable(params) else {name: str(domain) for name, domain in params.items()},
        **asked,
        "config": {**settings, "seed": fresh_seed() if config.seed is None else config.seed},
        "code": config.code_fields(),
        "command": shlex.join(sys.argv),
        "started": records.now(),
    }


def _check_params(config: AlgorithmConfig, params: Mapping[str, Domain], pruner: str) -> None:
    """Refuse what would fail in some later trial."""
    if not params:
        raise ConfigError('params are empty: say what to search, {"lr": loguniform(1e-5, 1e-2)}')
    for name, domain in params.items():
        if not isinstance(domain, Choice | Range):
            raise ConfigError(
                f"params[{name!r}]={domain!r:.80} is nothing to choose from: write choice(...), "
                "uniform(low, high), loguniform, randint or lograndint of steppe.tune"
            )
        for value in domain.ends():
            with_settings(config, {name: value})
        if pruner == "pbt" and name.split(".")[0] in SHAPING:
            raise ConfigError(
                f"pruner='pbt' goes on from the checkpoints of other trials, whose networks {name} shapes: "
                "search it with 'asha', or leave it out"
            )


_KNOWN = {"mode": ("max", "min"), "on": tuple(PRUNERS)}
_FIXED = ("algo", "params", "steps", "metric", "mode", "pruner", "on")


def _new_folder(config: AlgorithmConfig) -> Path:
    if config.run_dir is not None and (Path(config.run_dir) / RECORD).exists():
        raise ConfigError(
            f"{config.run_dir} holds a search: go on with it, resume={config.run_dir!r} "
            f"(steppe tune --resume {config.run_dir}), or name another run_dir"
        )
    return claim_folder(Path("runs") / env_name(config.env), "tune", config.run_dir)


def _continued(path: Path, asked: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """The record of a search that goes on, which must be the one that is asked for."""
    before = read_search(path)
    if before["status"] == "running" and before.get("pid") != os.getpid() and records.is_alive(before):
        raise ConfigError(f"{path} is being written by process {before['pid']}: stop it before resuming")
    asked = to_json(asked)
    other = [key for key in _FIXED if before[key] != asked[key]]
    if seed is None:  # that of before goes on
        asked["config"]["seed"] = before["config"].get("seed")
    other += [key for key, value in asked["config"].items() if before["config"].get(key, value) != value]
    if other:
        raise ConfigError(
            f"{path} was searched with another {other[0]}: a search that goes on keeps all but its trials; "
            "start a new one without resume"
        )
    return before


def _study(path: Path, record: Mapping[str, Any]) -> optuna.Study:
    """Optuna's study of the folder; a trial that was cut off is to start again."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = path / _JOURNAL
    if journal.exists():  # a killed process may have left half a line
        text = journal.read_bytes()
        journal.write_bytes(text[: text.rfind(b"\n") + 1])
    pruners: dict[str, optuna.pruners.BasePruner] = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=EARLIEST, n_warmup_steps=EARLIEST),
        "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=EARLIEST, reduction_factor=2),
        "none": optuna.pruners.NopPruner(),
    }
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        pruner=pruners[record["pruner"]],
        study_name="steppe",
        direction="maximize" if record["mode"] == "max" else "minimize",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _next(
    study: optuna.Study, config: AlgorithmConfig, params: Params, record: Mapping[str, Any], found: Search
) -> None:
    """Run the next trial, chosen by the seed and by the trials before."""
    import optuna

    seed = record["config"]["seed"]
    # Seeded anew for each: a search that went on chooses as one that was never cut off.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(found.trials))
    trial = study.ask()
    if callable(params):
        settings = dict(params(trial))
    else:
        settings = {name: domain.suggest(trial, name) for name, domain in params.items()}
    trial.set_user_attr("settings", to_json(settings))
    own = {"run_dir": str(_folder(found.path, trial.number)), "seed": seed}
    try:
        changed = with_settings(config, {**own, **settings})
        changed.validate()
    except ConfigError as error:  # settings that do not go together: others may
        trial.set_user_attr("why", str(error))
        score = None
    else:
        score = run_trial(trial, changed, record["metric"], record["steps"])
    state = optuna.trial.TrialState.PRUNED if score is None else optuna.trial.TrialState.COMPLETE
    study.tell(trial, score, state=state)


def _ended(study: optuna.Study, path: Path) -> list[Trial]:
    """The trials that came to an end of their own."""
    import optuna

    state = optuna.trial.TrialState
    found = []
    for trial in study.get_trials(deepcopy=False, states=[state.COMPLETE, state.PRUNED]):
        why = trial.user_attrs.get("why", "")
        status: Status = "failed" if why else "finished" if trial.state == state.COMPLETE else "stopped early"
        settings, steps = trial.user_attrs["settings"], trial.user_attrs.get("steps", 0)
        where = _folder(path, trial.number)
        found.append(Trial(trial.number + 1, settings, trial.value, status, steps, where, why))
    return found


def _folder(path: Path, number: int) -> Path:
    return path / f"trial-{number + 1}"


def _write(found: Search, record: dict[str, Any], status: str) -> None:
    pid = os.getpid()
    process = {"pid": pid, "pid_started": records.process_start(pid), "updated": records.now()}
    trials = [asdict(trial) for trial in found.trials]
    write_json(found.path / RECORD, {**record, **process, "status": status, "trials": trials})
