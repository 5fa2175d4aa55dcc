"""The folder of a run: everything that is needed to read, resume, evaluate and copy it, and nothing else.

==================== ==================================================================================
``run.json``         status, versions, command, seed, times, steps, best reward, kept checkpoints
``config.toml``      the settings; ``params.json`` the same for other tools
``progress.csv``     one row per result, nested keys joined by ``/``
``result.jsonl``     one result a line, whole
``episodes.jsonl``   one finished episode a line
``events.out...``    TensorBoard
``log.txt``          what the ``steppe`` logger said
``checkpoints/<n>/`` after ``n`` env steps; ``best`` and ``latest`` beside it are links to two of them
==================== ==================================================================================
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final, get_args

from steppe.errors import ConfigError
from steppe.tracking import record as records
from steppe.tracking import toml
from steppe.tracking.record import CHECKPOINTS, RECORD, RunSummary, Status, checkpoint_of, list_runs
from steppe.tracking.rows import JsonLines, ProgressCsv, flatten, keep_csv, keep_jsonl, read_jsonl, write_json
from steppe.tracking.tensorboard import EventWriter

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig

__all__ = ["Run", "RunSummary", "Status", "checkpoint_of", "list_runs", "new_run"]

_LOGGER = logging.getLogger("steppe")
_PROGRESS, _RESULTS, _EPISODES = "progress.csv", "result.jsonl", "episodes.jsonl"
_STEPS = "timesteps_total"
_UNWRITABLE = (
    "the run's folder cannot be made, {path}: {reason}. Work in a folder that can be written to, name "
    "another with run_dir (--run-dir), or write none with write_run=False (--no-write-run)"
)


@final
class Run:
    """A run being written. Made by :meth:`create` or :meth:`open`; rows are on disk when a call returns.

    Attributes:
        run_id: names this run in its checkpoints, whatever its folder is called.
    """

    def __init__(self, path: Path, record: dict[str, Any], keep: int) -> None:
        self._asked, self._folder = path, path.absolute()
        self.run_id: str = record["run_id"]
        self._record = record
        self._keep = keep
        self._events: EventWriter | None = None
        self._purge_from: int | None = None
        self._open_rows()
        self._log = _attach_log(path / "log.txt")
        self._write_record()

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        env_name: str,
        algo: str,
        *,
        directory: str | os.PathLike[str] | None = None,
        info: Mapping[str, Any],
        config: Mapping[str, Any],
        keep: int = 3,
    ) -> Self:
        """Start a run in a folder of its own, ``<root>/runs/<env_name>/<algo>-<n>``.

        ``n`` counts up and is never used again, also when folders were deleted or processes start at once.

        Args:
            root: the working folder.
            env_name: short name of the env.
            algo: short name of the algorithm.
            directory: this very folder instead, new or empty.
            info: further entries of ``run.json``: ``seed``, ``env`` (as the user wrote it), ``command`` ...
            config: plain settings for ``config.toml`` and ``params.json``.
            keep: newest checkpoints that stay; the best one stays too.

        Raises:
            ConfigError: the folder is taken, or a setting cannot be written.
        """
        try:
            settings = toml.dumps(config)
        except TypeError as error:
            raise ConfigError(f"config.toml cannot hold this setting: {error}") from error
        path = claim_folder(Path(root) / "runs" / _folder_name(env_name), _folder_name(algo), directory)
        (path / "config.toml").write_text(settings, encoding="utf-8", newline="\n")
        write_json(path / "params.json", config)
        record = {
            "run_id": uuid.uuid4().hex,
            "env": env_name,
            "algo": algo,
            "seed": None,
            "command": shlex.join(sys.argv),
            **info,
            **_running(),
            "started": records.now(),
            "steps": 0,
            "best_reward": None,
            CHECKPOINTS: [],
        }
        return cls(path, record, keep)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, keep: int = 3) -> Self:
        """Go on with the run in a folder; new rows are appended (see :meth:`truncate_to`).

        Raises:
            ConfigError: the folder holds no run, or another process is writing it.
        """
        folder = Path(path)
        record = records.read_record(folder)
        if record["status"] == "running" and record["pid"] != os.getpid() and records.is_alive(record):
            raise ConfigError(
                f"{folder} is being written by process {record['pid']}: stop it before resuming"
            )
        for leftover in (folder / CHECKPOINTS).glob(".*.new-*"):  # of a save that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        return cls(folder, {**record, **_running()}, keep)

    @property
    def path(self) -> Path:
        """The folder as it was asked for or, once the program changed its working folder, from the root."""
        return self._asked if self._asked.absolute() == self._folder else self._folder

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` holds; a copy."""
        return dict(self._record)

    def note(self, **entries: Any) -> None:
        """Add entries to ``run.json``, such as when the training is to stop; equal names are replaced."""
        self._record.update(entries)
        self._write_record()

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Write one training result to every file that holds results."""
        flat = flatten(result)
        steps = int(flat[_STEPS])
        self._results.write(result)
        self._progress.write(flat)
        if self._events is None:
            self._events = EventWriter(self.path, self._purge_from)
        self._events.scalars(flat, steps)
        self._record.update(steps=steps, updated=records.now())
        self._record["best_reward"] = _better(self._record["best_reward"], flat.get("episode_reward_mean"))
        self._write_record()

    def log_episodes(self, episodes: Sequence[Mapping[str, Any]]) -> None:
        """Write finished episodes: ``reward, length, env, episode`` and the run's env ``steps`` then."""
        self._episodes.write(*episodes)

    def truncate_to(self, steps: int) -> None:
        """Forget what came after ``steps`` env steps, so that going on from there repeats nothing.

        Rows are removed; TensorBoard hides its own; later checkpoints stay on disk but are no longer counted.
        """
        self._close_rows()
        keep_csv(self.path / _PROGRESS, lambda row: float(row.get(_STEPS) or 0) <= steps)
        keep_jsonl(self.path / _RESULTS, lambda row: (row.get(_STEPS) or 0) <= steps)
        keep_jsonl(self.path / _EPISODES, lambda row: (row.get("steps") or 0) <= steps)
        self._open_rows()
        self._purge_from = steps + 1
        best = None
        for row in read_jsonl(self.path / _RESULTS):
            best = _better(best, row.get("episode_reward_mean"))
        kept = [entry for entry in self._record[CHECKPOINTS] if entry["steps"] <= steps]
        self._record.update(steps=min(steps, self._record["steps"]), best_reward=best)
        self._record[CHECKPOINTS] = kept
        self._write_record()
        self._write_links()

    def checkpoint_dir(self, steps: int) -> Path:
        """The folder for a checkpoint after ``steps`` env steps; saving makes it."""
        return records.checkpoint_dir(self.path, steps)

    def register_checkpoint(self, path: str | os.PathLike[str], steps: int, reward: float | None) -> None:
        """Count a checkpoint that was saved to :meth:`checkpoint_dir`, and delete those that are past.

        Args:
            path: where it was saved.
            steps: env steps at that moment.
            reward: mean episode reward at that moment; NaN or None where no episode had ended.

        Raises:
            ValueError: it was saved elsewhere.
        """
        if Path(path).resolve() != self.checkpoint_dir(steps).resolve():
            raise ValueError(f"checkpoint {path} belongs into {self.checkpoint_dir(steps)}")
        entries = [entry for entry in self._record[CHECKPOINTS] if entry["steps"] != steps]
        entries.append({"steps": steps, "reward": _better(None, reward)})
        entries.sort(key=lambda entry: entry["steps"])
        self._record[CHECKPOINTS] = entries
        self._write_record()
        best, newest = self.best(), entries[-self._keep :]
        kept = [e for e in entries if e in newest or self.checkpoint_dir(e["steps"]) == best]
        self._record[CHECKPOINTS] = kept
        self._write_record()
        self._write_links()
        for entry in entries:
            if entry not in kept:
                shutil.rmtree(self.checkpoint_dir(entry["steps"]), ignore_errors=True)

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return checkpoint_of(self.path, "latest")

    def best(self) -> Path | None:
        """The checkpoint with the highest reward, or None while none has a reward."""
        return checkpoint_of(self.path, "best")

    def finish(self, status: Status, error: str | None = None) -> None:
        """Write how the run ended; :meth:`close` it afterwards.

        Raises:
            ValueError: "running" is no end.
        """
        if status == "running" or status not in get_args(Status):
            raise ValueError(f"status {status!r}: a run ends finished, interrupted or failed")
        self._record.update(status=status, error=error, finished=records.now())
        self._write_record()

    def close(self) -> None:
        """Close the files; a run that did not finish is interrupted. May be called twice."""
        if self._record["status"] == "running":
            self.finish("interrupted")
        self._close_rows()
        _LOGGER.removeHandler(self._log)
        self._log.close()

    def _open_rows(self) -> None:
        self._progress = ProgressCsv(self.path / _PROGRESS)
        self._results = JsonLines(self.path / _RESULTS)
        self._episodes = JsonLines(self.path / _EPISODES)

    def _close_rows(self) -> None:
        for file in (self._progress, self._results, self._episodes):
            file.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _write_record(self) -> None:
        write_json(self.path / RECORD, self._record)

    def _write_links(self) -> None:
        for name, target in (("latest", self.latest()), ("best", self.best())):
            _point(self.path / name, target)


def _running() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "status": "running",
        "error": None,
        "finished": None,
        "updated": records.now(),
        "versions": records.versions(),
        "pid": pid,
        "pid_started": records.process_start(pid),
    }


def _better(best: float | None, reward: Any) -> float | None:
    """The higher reward; NaN and None are none."""
    if reward is None or not math.isfinite(reward):
        return best
    return float(reward) if best is None else max(best, float(reward))


def _folder_name(name: str) -> str:
    """A name that any file system takes; of ``path/to/file.py:Class`` the class."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name.rpartition(":")[2]).strip("-.") or "env"


def claim_folder(base: Path, algo: str, directory: str | os.PathLike[str] | None) -> Path:
    """A folder for a run, ``<base>/<algo>-<n>``, or ``directory`` if it is new or empty.

    Raises:
        ConfigError: it is taken, or cannot be made.
    """
    if directory is not None:
        path = Path(directory)
        _make(path)
        if any(path.iterdir()):
            raise ConfigError(
                f"the run's folder is taken, {path} is not empty: name another with run_dir, leave run_dir "
                f"out to count up under runs/, or go on with the run in it: steppe train --resume {path}"
            )
        return path
    _make(base)
    return _claim_number(base, algo)


def _make(path: Path) -> None:
    """A folder that can be written to, with those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(_UNWRITABLE.format(path=path, reason=error.strerror)) from error
    if not writable:
        raise ConfigError(_UNWRITABLE.format(path=path, reason="permission denied"))


def _claim_number(base: Path, algo: str) -> Path:
    counter = base / ".counter"
    used = [entry.name for entry in base.iterdir()]
    if counter.exists():
        used += counter.read_text(encoding="utf-8").split()
    numbers = [int(m[1]) for name in used if (m := re.fullmatch(rf"{re.escape(algo)}-(\d+)", name))]
    n = max(numbers, default=0) + 1
    while True:
        path = base / f"{algo}-{n}"
        # Noted before it is made: whoever comes second finds the folder taken, and the note stays.
        with counter.open("a", encoding="utf-8") as file:
            file.write(f"{path.name}\n")
        try:
            path.mkdir()
        except FileExistsError:
            n += 1
        else:
            return path


def new_run(config: AlgorithmConfig, run_id: str) -> Run:
    """The folder of a training that begins; see :meth:`Run.create`."""
    from steppe.envs import registry  # who reads runs needs no envs

    return Run.create(
        Path(),
        registry.env_name(config.env),
        config.algo_name.lower(),
        directory=config.run_dir,
        info={"seed": config.seed, "run_id": run_id},
        config=config.to_toml_dict(),
        keep=config.keep_checkpoints_num,
    )


def _point(link: Path, target: Path | None) -> None:
    """Make ``link`` lead to a checkpoint: a relative link, or a text file with the path where none can be."""
    if target is None:
        link.unlink(missing_ok=True)
        return
    relative = os.path.relpath(target, link.parent)
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(relative, target_is_directory=True)
    except (OSError, NotImplementedError):
        fresh.write_text(relative + "\n", encoding="utf-8")
    os.replace(fresh, link)


def _attach_log(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _LOGGER.addHandler(handler)
    return handler
