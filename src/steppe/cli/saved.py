"""Run folders and checkpoints on disk, as arguments of commands."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click

from steppe.errors import CheckpointError, ConfigError
from steppe.tracking.record import CHECKPOINTS, RECORD, Which, checkpoint_of, linked, read_record

if TYPE_CHECKING:
    from steppe.algorithm import Algorithm


class Saved(NamedTuple):
    """What an argument RUN|CHECKPOINT names: a checkpoint, and the run folder around it, if any."""

    checkpoint: Path
    run: Path | None


def find(path: Path) -> Saved:
    """The checkpoint that ``path`` means: itself, or the latest one of a run folder.

    Raises:
        CheckpointError: nothing there, or a run that has no checkpoint yet.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint; `steppe runs` lists the runs")
    if path.is_file():
        if path.name not in get_args(Which):
            raise CheckpointError(f"{path} is a file; name a run's folder or a checkpoint's")
        path = linked(path)
    if path.name == CHECKPOINTS and is_run(path.parent):
        path = path.parent
    if not is_run(path):
        around = path.resolve().parent.parent
        return Saved(path.resolve(), around if is_run(around) else None)
    latest = checkpoint_of(path)
    if latest is None:
        command = read_record(path).get("command")
        raise CheckpointError(f"{path}: this run has no checkpoint yet; it was started with: {command}")
    return Saved(latest, path)


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run folder."""
    return (path / RECORD).is_file()


def run_settings(run: Path) -> dict[str, Any]:
    """``config.toml`` of a run folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = run / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{run} has no {path.name}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def env_of_run(run: Path) -> str | None:
    """The env that a run's settings name, said aloud if that means importing a file.

    A relative path that leads nowhere from here is taken from the folder that the run was started in.

    Raises:
        ConfigError: the settings name something that only the program knew which made the run.
    """
    env = run_settings(run).get("env")
    if not isinstance(env, str):
        return None
    if ":" in env:
        return _found(run, env, "env")
    import gymnasium

    from steppe.envs import registry

    if env not in gymnasium.registry and not registry.is_registered(env):
        raise ConfigError(
            f"{run} was trained with {env}, a class, function or name of the program: say where it is, "
            "--env file.py:Class or --env module:Class"
        )
    return env


def callbacks_of_run(run: Path) -> str | None:
    """The callbacks that a run's settings name by file or module, said aloud if that means importing a file.

    Raises:
        ConfigError: they were code of the program which made the run.
    """
    named = run_settings(run).get("callbacks_class")
    if named is None:
        return None
    if not isinstance(named, str) or ":" not in named:
        raise ConfigError(
            f"{run} was trained with callbacks of a program, {named}: say where they are, "
            "--callbacks file.py:Class or --callbacks module:Class"
        )
    return _found(run, named, "callbacks")


def _found(run: Path, text: str, what: str) -> str:
    """``file.py:Class``, relative to where the run was started if it is not there from here."""
    file, _, name = text.rpartition(":")
    if not file.endswith(".py"):
        return text
    home = run.resolve().parent.parent.parent  # of home/runs/<Env>/<run>
    if not Path(file).exists() and (home / file).exists():
        text = f"{home / file}:{name}"
    click.echo(f"importing {text.rpartition(':')[0]}, which this run names as its {what}", err=True)
    return text


def restore(saved: Saved, env: str | None, **changes: Any) -> Algorithm:
    """The algorithm of a checkpoint; ``env`` or, without it, the run's own text names the env.

    ``changes`` are settings that differ from those it was saved with.
    """
    import steppe

    # No folder of its own: what goes on writes into the run's, and an evaluation writes none.
    return steppe.load(saved.checkpoint, env=env_of(saved, env), **{"run_dir": None, **changes})


def env_of(saved: Saved, env: str | None) -> str | None:
    """``env`` or, without it, the env that the run names; None where the checkpoint itself says it.

    Raises:
        ConfigError: it is code that nothing names.
    """
    if env is None and saved.run is not None:
        return env_of_run(saved.run)
    if env is None:
        _refuse_bare(saved.checkpoint)
    return env


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """The config that a checkpoint holds as plain data.

    Raises:
        CheckpointError: it is damaged.
    """
    from steppe.loading import read_checkpoint

    _, meta = read_checkpoint(checkpoint, [])
    settings: dict[str, Any] = meta["config"]
    return settings


def _refuse_bare(checkpoint: Path) -> None:
    """Ask for the env of a checkpoint that lies outside of a run and names its env by code."""
    meta = meta_of(checkpoint)
    if "env" in meta.get("code", ()):
        env = meta["config"]["env"]
        raise ConfigError(f"{checkpoint} is not in a run's folder: name its env, --env {env}")


def meta_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says about itself; nothing if it is damaged, which loading will say."""
    try:
        meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}
