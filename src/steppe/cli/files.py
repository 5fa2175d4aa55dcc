"""Settings in a file: TOML, YAML or JSON, flat or as RLlib's tuned examples have them."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import click
import yaml

from steppe.cli.saved import is_run
from steppe.cli.text import count, duration, number
from steppe.errors import ConfigError
from steppe.tracking.record import read_record


class FileSettings(NamedTuple):
    """What a file says, its settings under the names that it uses.

    Attributes:
        algo: name of the algorithm; None leaves it to others.
        stop: when to stop, as arguments of :class:`~steppe.cli.train.StopWhen`.
        settings: for ``AlgorithmConfig.from_dict``, which checks them.
        run: the run folder whose own settings these are, if they are.
    """

    algo: str | None
    stop: dict[str, Any]
    settings: dict[str, Any]
    run: Path | None = None


NOTHING = FileSettings(None, {}, {})
"""What no file says."""


def read_settings(path: Path) -> FileSettings:
    """Read a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file.

    Either settings at the top, beside ``algo`` and ``stop``, or one experiment as RLlib's tuned examples
    write it, ``name: {run: PPO, env: ..., stop: {...}, config: {...}}``. A run's own ``config.toml`` is the
    run's algorithm and settings without its folder, so that the new run gets one of its own.

    Raises:
        ConfigError: no such file, not of such a kind, or one that cannot be read, with its line; several
            experiments; ``algo`` or ``stop`` that say nothing known. Settings are not checked.
    """
    content = _content(path)
    try:
        found = _flat(content) if _experiment(content) is None else _tuned(content)
        _refuse_search(found.settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if path.name in _OF_A_RUN and is_run(path.parent):
        settings = {key: value for key, value in found.settings.items() if key != "run_dir"}
        algo = found.algo or read_record(path.parent).get("algo")
        found = found._replace(algo=algo, settings=settings, run=path.parent)
    return found


_OF_A_RUN = ("config.toml", "params.json")


# --- the text of a file -----------------------------------------------------------------------------------


@final
class _YamlLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """``yaml.safe_load`` that reads ``1e-3`` and ``2.5e6`` as numbers, as YAML 1.2 does and 1.1 does not."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][+-]?\d+\Z"),
    list("+-.0123456789"),
)


def _yaml(text: str) -> Any:
    loader = _YamlLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twice(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_twice(node: Any, done: dict[int, bool]) -> None:
    """Raise YAMLError at a key that a mapping holds twice; YAML forbids it, and PyYAML takes the last.

    Likewise where a value holds itself.

    Args:
        node: is looked at with all that it holds.
        done: by node, whether all of it was seen; of a node that several aliases name, once is enough.
    """
    if isinstance(node, yaml.ScalarNode) or done.get(id(node)):
        return
    if id(node) in done:
        raise yaml.MarkedYAMLError(problem="this holds an alias of itself", problem_mark=node.start_mark)
    done[id(node)] = False
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, item) for item in node.value]
    first: dict[tuple[str, str], Any] = {}
    for key, value in pairs:
        if isinstance(key, yaml.ScalarNode):
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                said = f"{key.value!r} stands here and on line {before.start_mark.line + 1}; keep one"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
        _refuse_twice(value, done)
    done[id(node)] = True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands twice, {found[key]!r:.40} and {value!r:.40}; keep one")
        found[key] = value
    return found


_READERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": partial(json.loads, object_pairs_hook=_unique),
}


def _content(path: Path) -> dict[str, Any]:
    reader = _READERS.get(path.suffix.lower())
    if path.is_dir():
        own = f"; its settings are {path / _OF_A_RUN[0]}" if is_run(path) else ""
        raise ConfigError(f"{path} is a folder{own or '; --config takes a file'}")
    if reader is None:
        raise ConfigError(f"{path}: a file of settings ends in {', '.join(_READERS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.{_nearest_file(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from None
    try:
        content = reader(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}{_place(error, text)}") from None
    if content is None and path.suffix.lower() != ".json":  # an empty YAML file
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not settings by name")
    return content


def _nearest_file(path: Path) -> str:
    beside = [file for file in path.parent.glob("*") if file.suffix.lower() in _READERS]
    close = difflib.get_close_matches(path.name, [file.name for file in beside], n=1)
    return f" Did you mean {path.with_name(close[0])}?" if close else ""


def _place(error: Exception, text: str) -> str:
    """``:line: what is wrong`` of a reader's error."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        said = ", ".join(filter(None, [error.context, error.problem]))
        return f":{error.problem_mark.line + 1}: {said}"
    if isinstance(error, json.JSONDecodeError):
        return f":{error.lineno}: {error.msg}"
    if isinstance(error, tomllib.TOMLDecodeError):  # has its place only in its text
        said, _, place = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", place)
        return f":{line[1] if line else max(1, len(text.splitlines()))}: {said}"
    return f": {' '.join(str(error).split())}"


# --- what it holds ----------------------------------------------------------------------------------------

_SETTINGS = ("env", "checkpoint_freq", "keep_checkpoints_num")  # beside `config` and settings all the same
_EXPERIMENT = ("run", "stop", "config", *_SETTINGS, "checkpoint_at_end", "num_samples")


def _experiment(content: Mapping[str, Any]) -> str | None:
    """The name under which an experiment stands, if one does."""
    groups = {key: value for key, value in content.items() if key != "env_config"}  # may hold any key
    named = (k for k, v in groups.items() if isinstance(v, Mapping) and ("run" in v or "config" in v))
    return next(named, None)


def _flat(content: Mapping[str, Any]) -> FileSettings:
    misplaced = [key for key in ("run", "config") if key in content]
    if misplaced:
        raise ConfigError(
            f"{' and '.join(misplaced)} at the top: write the settings themselves there, beside algo and "
            "stop; or all of it under a name, as RLlib's tuned examples: my-run: {run: PPO, config: {...}}"
        )
    settings = {key: value for key, value in content.items() if key not in ("algo", "stop")}
    return FileSettings(_algo(content.get("algo")), _stop(content.get("stop")), settings)


def _tuned(content: Mapping[str, Any]) -> FileSettings:
    if len(content) > 1:
        raise ConfigError(
            f"one experiment is trained at a time, and here are {', '.join(map(str, content))}; keep one"
        )
    ((name, experiment),) = content.items()
    for key in experiment:
        if key not in _EXPERIMENT:
            raise ConfigError(f"unknown key {name}.{key}.{_nearest(str(key), _EXPERIMENT)}")
    config = experiment.get("config") or {}
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name}.config={config!r} must hold settings by name")
    if experiment.get("num_samples", 1) != 1:
        raise ConfigError(f"{name}.num_samples={experiment['num_samples']!r}: one run is trained at a time")
    beside = {k: experiment[k] for k in _SETTINGS if experiment.get(k) is not None}
    for key, value in beside.items():
        if config.get(key, value) != value:
            raise ConfigError(
                f"{name}.{key}={value!r} and {name}.config.{key}={config[key]!r} disagree; keep one"
            )
    stop = _stop(experiment.get("stop"), f"{name}.stop")
    return FileSettings(_algo(experiment.get("run"), f"{name}.run"), stop, {**config, **beside})


def _refuse_search(value: Any, path: str = "") -> None:
    """Raise ConfigError where several values are to be tried."""
    if not isinstance(value, Mapping):
        return
    if path and list(value) == ["grid_search"]:
        raise ConfigError(
            f"{path}={dict(value)!r:.60}: one run has one value; write one of them, or "
            f"search with steppe tune --param '{path}=choice(...)'"
        )
    for key, item in value.items():
        _refuse_search(item, f"{path}.{key}" if path else str(key))


def _algo(value: Any, where: str = "algo") -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}={value!r} must be the name of an algorithm")
    return value


def _reward(text: str) -> float:
    value = number(text)
    if value is None or not math.isfinite(value):
        raise click.BadParameter(f"{text!r} is not a number")
    return value


_STOP: dict[str, tuple[str, Callable[[str], Any]]] = {
    "total_steps": ("total_steps", count),
    "timesteps_total": ("total_steps", count),
    "stop_reward": ("stop_reward", _reward),
    "episode_reward_mean": ("stop_reward", _reward),
    "stop_time": ("stop_time", duration),
    "time_total_s": ("stop_time", duration),
    "stop_iters": ("stop_iters", count),
    "training_iteration": ("stop_iters", count),
}
"""What may stand under ``stop``: our flag and RLlib's name of each."""


def _stop(given: Any, where: str = "stop") -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}={given!r} must be a table such as {{timesteps_total: 100000}}")
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _STOP:
            raise ConfigError(f"unknown key {where}.{key}.{_nearest(str(key), _STOP)}")
        name, reader = _STOP[key]
        try:
            read = reader(str(value))
        except click.BadParameter as error:
            raise ConfigError(f"{where}.{key}: {error.message}") from None
        if found.setdefault(name, read) != read:
            raise ConfigError(f"{where} says two things about {name}, {found[name]} and {read}; keep one")
    return found


def _nearest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known are {', '.join(known)}."
