"""``run.json``: what a run is, how far it came, whether it still runs. Reading it needs no other file."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from steppe.errors import ConfigError

RECORD = "run.json"
CHECKPOINTS = "checkpoints"
Status = Literal["running", "finished", "interrupted", "failed"]
Which = Literal["best", "latest"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of a list of runs; what ``run.json`` did not say is None.

    Attributes:
        path: the run's folder.
        env: the env as it was named.
        algo: name of the algorithm.
        status: of :data:`Status`; a run whose process is gone is "interrupted"; "unreadable" if damaged.
        steps: env steps taken.
        best_reward: the best ``episode_reward_mean`` of any result.
        seed: of the run.
        started: ISO time.
        updated: ISO time of the last result.
        error: why it failed.
    """

    path: Path
    env: str | None = None
    algo: str | None = None
    status: str = "unreadable"
    steps: int = 0
    best_reward: float | None = None
    seed: int | None = None
    started: str | None = None
    updated: str | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """The folder's name, such as ``ppo-3``."""
        return self.path.name


def list_runs(root: str | os.PathLike[str]) -> list[RunSummary]:
    """The runs below ``root``, the earliest first.

    Args:
        root: the working folder, or the ``runs`` folder in it.
    """
    folder = Path(root)
    if (folder / "runs").is_dir():
        folder = folder / "runs"
    found = (_summary(file.parent) for file in folder.glob(f"*/*/{RECORD}"))
    return sorted(found, key=lambda run: (run.started or "", str(run.path)))


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run's folder.

    Raises:
        ConfigError: the folder holds no run, or its record is damaged.
    """
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {"run_id", "status", CHECKPOINTS} <= record.keys():
            raise TypeError("run_id, status or checkpoints are missing")
        for entry in record[CHECKPOINTS]:
            _check_entry(entry)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{run} is not the folder of a run: it has no {RECORD}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{run / RECORD} is damaged: {error}") from error
    except OSError as error:
        raise ConfigError(f"{run / RECORD} cannot be read: {error.strerror}") from error
    return record


def _check_entry(entry: Any) -> None:
    """A checkpoint's line; its folder is named by the steps, so that these must be a number."""
    steps, reward = (entry.get("steps"), entry.get("reward")) if isinstance(entry, dict) else (None, None)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise TypeError(f"an entry of {CHECKPOINTS} has no number of steps: {entry!r:.80}")
    if isinstance(reward, bool) or not (reward is None or isinstance(reward, int | float)):
        raise TypeError(f"the reward of an entry of {CHECKPOINTS} is no number: {entry!r:.80}")


def linked(path: Path) -> Path:
    """Where ``best`` or ``latest`` of a run leads if it is a text file, which stands where no links can be.

    Other paths come back as they are.

    Raises:
        ConfigError: the file holds something else than the place of a checkpoint of its run.
    """
    if path.name not in get_args(Which) or not path.is_file():
        return path
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    parts = PurePosixPath(text.replace("\\", "/")).parts
    if len(parts) != 2 or parts[0] != CHECKPOINTS or parts[1] == "..":
        expected = f"the place of a checkpoint is expected, such as {CHECKPOINTS}/4000"
        raise ConfigError(f"{path} is damaged: {expected}, not {text!r:.80}")
    return path.parent.joinpath(*parts)


def checkpoint_of(run: str | os.PathLike[str], which: Which = "latest") -> Path | None:
    """The latest or best checkpoint of a run's folder, or None where there is none.

    The best is the one with the highest reward, the earlier of equals; without any reward there is no best.
    Only reads, so the run may be running.

    Raises:
        ConfigError: as :func:`read_record` does.
    """
    folder = Path(run)
    entries = [e for e in read_record(folder)[CHECKPOINTS] if checkpoint_dir(folder, e["steps"]).is_dir()]
    if which == "best":
        entries = [e for e in entries if e["reward"] is not None]
        entry = max(entries, key=lambda e: (e["reward"], -e["steps"]), default=None)
    else:
        entry = max(entries, key=lambda e: e["steps"], default=None)
    return None if entry is None else checkpoint_dir(folder, entry["steps"])


def checkpoint_dir(run: Path, steps: int) -> Path:
    """Where the checkpoint at ``steps`` env steps lies."""
    return run / CHECKPOINTS / str(steps)


def now() -> str:
    """The time as ISO text, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Versions that a result can depend on, without importing what they belong to."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("steppe", "jax", "numpy", "gymnasium"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, or None where the system does not say.

    Process ids are used again, and in a container soon; together with this they are not.
    """
    state = _proc_stat(pid)
    return int(state[19]) if state else None


def is_alive(record: dict[str, Any]) -> bool:
    """Whether the process that wrote the record still runs on this machine."""
    pid, started = record.get("pid"), record.get("pid_started")
    if not isinstance(pid, int):
        return False
    state = _proc_stat(pid)
    if state:
        return state[0] != "Z" and (started is None or int(state[19]) == started)
    if os.name == "nt":  # signal 0 would interrupt it there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _proc_stat(pid: int) -> list[str] | None:
    """Fields of Linux's ``/proc/<pid>/stat`` from the state on; the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _summary(run: Path) -> RunSummary:
    try:
        record = read_record(run)
    except ConfigError as error:
        return RunSummary(run, error=str(error))
    if record["status"] == "running" and not is_alive(record):
        record["status"] = "interrupted"
    elif record["status"] not in get_args(Status):
        record["status"] = "unreadable"
    known = {part.name for part in fields(RunSummary)} & record.keys()
    return RunSummary(run, **{name: record[name] for name in known - {"path"}})
