"""A search whose trials train side by side on Ray: Ray Tune starts, compares, stops and restarts them.

What is tried is of this library: settings are drawn here, each trial is a run in the search's folder, and a
search goes on from these runs. Needs Ray Tune, which the extra ``steppe[ray-tune]`` installs.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import ray
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

from steppe.checkpoint import load
from steppe.config import AlgorithmConfig
from steppe.errors import ConfigError, RunnerError
from steppe.processes import enter, leave, packed, unpacked
from steppe.runners.ray import packed_config, unpacked_config
from steppe.tracking.record import checkpoint_of, read_record
from steppe.tracking.run import Run
from steppe.tune.search import EARLIEST, Search, Status, Trial
from steppe.tune.space import Choice, Domain
from steppe.tune.trial import MARKS, run_trial, with_settings

if TYPE_CHECKING:
    from steppe.algorithm import Algorithm

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial's folder has all that they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a search as it ends one in this process
    "RAY_AIR_NEW_OUTPUT": "0",  # which is printed whatever is asked for
}
_RESTARTS = 2  # of a trial whose process died; it goes on from its newest checkpoint
_SCORE, _MARK, _OWN = "score", "mark", "ray"


def search_on_ray(
    found: Search,
    config: AlgorithmConfig,
    params: Mapping[str, Domain],
    record: Mapping[str, Any],
    ended: Callable[[Trial], None],
) -> None:
    """Train the trials of a search that have not ended.

    Args:
        found: what there is by now.
        config: what all trials share.
        params: by setting what to choose from.
        record: of the search.
        ended: is told each trial as it ends.

    Raises:
        ConfigError: Ray has too little for a trial, or cannot be reached.
    """
    seed, done = record["config"]["seed"], {trial.number for trial in found.trials}
    settings = {
        number: _settings(found.path, number, params, seed)
        for number in range(1, record["num_trials"] + 1)
        if number not in done
    }
    if not settings:
        return
    os.environ.update(_ENVIRONMENT)
    runners = config.num_env_runners * config.num_cpus_per_env_runner
    needs = {**record["per_trial"], "CPU": record["per_trial"].get("CPU", 1) + runners}
    # A trial asks for its runners, too: trials that wait for runners of each other would wait for ever.
    shared = config.copy(seed=seed, num_cpus_per_env_runner=0.0) if runners else config.copy(seed=seed)
    places = found.path.absolute(), Path.cwd()
    ours = enter(ray, config.ray_address)
    try:
        _check_room(needs)
        trial = partial(
            _trial, made=packed_config(shared), numbers=list(settings), places=places, record=dict(record)
        )
        told = _Told(found.path, list(settings), ended)
        # Actors are used again: most of a short trial is a process that starts.
        how = ray_tune.TuneConfig(metric=_SCORE, mode=record["mode"], reuse_actors=True)
        how.scheduler = _scheduler(record["pruner"], params)
        how.trial_dirname_creator = lambda trial: trial.trial_id
        about = ray_tune.RunConfig(
            name=_OWN, storage_path=str(places[0]), callbacks=[told], stop=told, verbose=0
        )
        about.failure_config = ray_tune.FailureConfig(max_failures=_RESTARTS)
        tried = {"settings": ray_tune.grid_search(list(settings.values()))}
        resourced = ray_tune.with_resources(trial, needs)
        ray_tune.Tuner(resourced, param_space=tried, tune_config=how, run_config=about).fit()
        if told.failed is not None:
            raise told.failed
    finally:
        if ours:
            leave(ray)
        shutil.rmtree(found.path / _OWN, ignore_errors=True)


def _check_room(needs: Mapping[str, float]) -> None:
    """Ray Tune would wait for ever."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    few = [name for name, n in needs.items() if n > there.get(name, 0)]
    if few:
        raise ConfigError(
            f"a trial needs {needs[few[0]]:g} {few[0]}, with its runners, and this Ray has "
            f"{there.get(few[0], 0):g}: give it less (per_trial), or join a larger Ray (ray_address)"
        )


def _settings(search: Path, number: int, params: Mapping[str, Domain], seed: int) -> dict[str, Any]:
    """What a trial is to try: with PBT not always what it began with."""
    run = _newest(search, number)
    if run is not None and "settings" in (record := read_record(run)):
        return dict(record["settings"])
    rng = random.Random(f"{seed} {number}")
    return {name: domain.draw(rng) for name, domain in params.items()}


def _scheduler(pruner: str, params: Mapping[str, Domain]) -> Any:
    if pruner == "asha":
        return ASHAScheduler(time_attr=_MARK, max_t=MARKS, grace_period=EARLIEST, reduction_factor=2)
    if pruner == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]

    def within(config: dict[str, Any]) -> dict[str, Any]:
        """Ray Tune takes a fifth more or less, past any end."""
        settings = {name: params[name].nearest(value) for name, value in config["settings"].items()}
        return {**config, "settings": settings}

    mutations = {
        name: list(domain.values) if isinstance(domain, Choice) else partial(domain.draw, random.Random())
        for name, domain in params.items()
    }
    return PopulationBasedTraining(
        time_attr=_MARK,
        perturbation_interval=EARLIEST,
        hyperparam_mutations={"settings": mutations},
        custom_explore_fn=within,
        log_config=False,
    )


@final
class _Told(ray_tune.Callback, ray_tune.Stopper):
    """What Ray Tune says of the trials, in the process of the search.

    Attributes:
        failed: the exception that ends the search, of an env or of a process.
    """

    def __init__(self, search: Path, numbers: list[int], ended: Callable[[Trial], None]) -> None:
        self._search, self._numbers, self._ended = search, numbers, ended
        self.failed: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune keeps a copy, which nobody asks: a search goes on from its runs

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.failed is not None

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
        if "error" in result:
            number = _number(trial.trial_id, self._numbers)
            self.failed = unpacked(bytes.fromhex(result["error"]), f"trial {number}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.failed = RunnerError(
            f"trial {_number(trial.trial_id, self._numbers)} was cut off {_RESTARTS + 1} times: its process "
            f"was ended from outside, or ran out of memory. Ray says: {trial.get_error()}"
        )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        result = trial.last_result
        if self.failed is not None or _SCORE not in result:
            return  # ended with the search
        number, why = _number(trial.trial_id, self._numbers), result.get("why")
        status: Status = "stopped early" if why is None else "failed" if why else "finished"
        path = _newest(self._search, number) or self._search / f"trial-{number}"
        score = float(result[_SCORE]) if math.isfinite(result[_SCORE]) else None
        settings, steps = trial.config["settings"], int(result["steps"])
        self._ended(Trial(number, settings, score, status, steps, path, why or ""))


def _number(trial_id: str, numbers: list[int]) -> int:
    """Ray Tune counts on its own, and names a trial ``<search>_00004``."""
    return numbers[int(trial_id.rpartition("_")[2])]


def _newest(search: Path, number: int) -> Path | None:
    """The run of a trial: ``trial-3``, and ``trial-3-2`` once it went on from another's checkpoint."""
    made = [path.parent for path in search.glob(f"trial-{number}*/run.json")]
    runs = [path for path in made if path.name.split("-")[1] == str(number)]
    return max(runs, key=lambda path: (len(path.name), path.name), default=None)


# --- in the process of a trial ----------------------------------------------------------------------------


def _trial(
    given: Mapping[str, Any],
    *,
    made: bytes,
    numbers: list[int],
    places: tuple[Path, Path],
    record: Mapping[str, Any],
) -> None:
    """Train one trial, or go on with it; the last report says how it ended."""
    # Before JAX is loaded: it takes memory of an accelerator that it sees, and all of one that is shared.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if not record["per_trial"].get("GPU"):
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # for envs that are slow to close
    logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of each checkpoint
    search, folder = places
    if folder.is_dir():
        os.chdir(folder)
    number = _number(ray_tune.get_context().get_trial_id(), numbers)
    reports = _Reports(given["settings"], lends=record["pruner"] == "pbt")
    try:
        run, begin = _place(search, number)
        config = unpacked_config(made)
        try:
            config = with_settings(config, {**given["settings"], "run_dir": str(run)})
            config.validate()
        except ConfigError as error:  # settings that do not go together: others may
            reports.set_user_attr("why", str(error))
            score = None
        else:
            begun = partial(reports.begin, begin)
            score = run_trial(reports, config, record["metric"], record["steps"], begun)
        reports.end(score)
    except Exception as error:
        reports.end(None, error=packed(error).hex())


def _place(search: Path, number: int) -> tuple[Path, Path | None]:
    """Where a trial is to write its run, and the checkpoint that it goes on from."""
    newest, given = _newest(search, number), ray_tune.get_checkpoint()
    begin = None if given is None else Path(given.path)
    run = search / f"trial-{number}"
    if newest is not None and begin is not None:
        if Path(load(begin, owners=())[1]["config"]["run_dir"]) == newest:
            return newest, begin
        times = [*newest.name.split("-"), "1"][2]
        run = search / f"trial-{number}-{int(times) + 1}"
    elif newest is not None:
        latest = checkpoint_of(newest, "latest")
        if latest is not None and read_record(newest)["status"] != "finished":
            return newest, latest
        shutil.rmtree(newest)  # nothing to go on from, or the search was not told of the end
        return _place(search, number)
    shutil.rmtree(run, ignore_errors=True)  # begun, and ended before it was a run
    return run, begin


@final
class _Reports:
    """What a trial says to Ray Tune, which may end its process, or give it another's checkpoint, then."""

    def __init__(self, settings: Mapping[str, Any], *, lends: bool) -> None:
        self._settings, self._lends = dict(settings), lends
        self._algo: Algorithm | None = None
        self._saved, self._newest = 0, Path()
        self._said: dict[str, Any] = {"steps": 0}

    def begin(self, checkpoint: Path | None, algo: Algorithm) -> int:
        """Go on from a checkpoint, in the run's folder if there is one; returns the env steps of before."""
        self._algo, steps = algo, 0
        if checkpoint is not None:
            algo.restore(checkpoint)
            steps = load(checkpoint, owners=())[1]["timesteps_total"]
            folder = Path(str(algo.config.run_dir))
            if folder.exists():
                algo.run = Run.open(folder, keep=algo.config.keep_checkpoints_num)
                algo.run.truncate_to(steps)
        assert algo.run is not None  # the search sees to it
        algo.run.note(settings=self._settings)
        return int(steps)

    def report(self, value: float, step: int) -> None:
        """Say the score at one of the marks; its end is said by :meth:`end`."""
        if step >= MARKS:
            return
        assert self._algo is not None
        run, checkpoint = self._algo.run, None
        assert run is not None
        steps = run.record["steps"]
        if steps != self._saved:
            self._saved, self._newest = steps, self._algo.save_to_run()
        if self._lends and step % EARLIEST == 0:  # Ray Tune keeps a copy, until the search ends
            checkpoint = ray_tune.Checkpoint.from_directory(self._newest)
        run.note(status="interrupted")  # for the case that this is the end
        ray_tune.report({_SCORE: value, _MARK: step, "steps": steps}, checkpoint=checkpoint)
        run.note(status="running")

    def should_prune(self) -> bool:
        """Ray Tune does."""
        return False

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep what the last report is to say."""
        self._said[key] = value

    def end(self, score: float | None, **more: str) -> None:
        """The last report."""
        known = {_SCORE: math.nan if score is None else score, _MARK: 0 if score is None else MARKS}
        ray_tune.report({**known, "why": "", **self._said, **more, "done": True})
