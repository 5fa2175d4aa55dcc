"""Flags made from the fields of a config, grouped by section in ``--help``."""

from __future__ import annotations

import contextlib
import itertools
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, final

import click

from steppe.algorithms import config_class
from steppe.cli.files import NOTHING, FileSettings, read_settings
from steppe.cli.text import field_value, key_and_text, key_value
from steppe.config import AlgorithmConfig, field_docs, field_specs
from steppe.config.fields import FieldSpec
from steppe.config.names import ALIASES
from steppe.errors import ConfigError

DEFAULTS: dict[str, Any] = {"checkpoint_freq": 10}
"""Where the command line's default is not the config's."""

_WORDS = ((str, "TEXT"), (int, "N"), (float, "X"))


@final
class FieldOption(click.Option):
    """The flag of one field; not given, it is None and leaves the config's default."""

    def __init__(self, spec: FieldSpec, doc: str) -> None:
        self.section = spec.section
        flag = spec.name.strip("_").replace("_", "-")
        shown = DEFAULTS.get(spec.name, spec.default())
        text = f"{doc}  [default: {shown if shown is not None else 'none'}]"
        if spec.hint is bool:
            super().__init__([f"--{flag}/--no-{flag}", spec.name], default=None, help=text)
        else:
            super().__init__(
                [f"--{flag}", spec.name],
                type=lambda given: field_value(spec.hint, given),
                metavar=_metavar(spec.hint),
                help=text,
            )


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(typing.get_args(hint))
    members = () if typing.get_origin(hint) is list else typing.get_args(hint) or (hint,)
    return next((word for kind, word in _WORDS if kind in members), "LIST")


def field_options(cls: type[AlgorithmConfig]) -> list[click.Parameter]:
    """A flag for every field that one word can set: not those that hold code, or a dict."""
    docs, specs = field_docs(cls), field_specs(cls).values()
    closed = [spec for spec in specs if spec.hint is not Any and typing.get_origin(spec.hint) is not dict]
    return [FieldOption(spec, docs[spec.name]) for spec in closed]


env_config_option = click.option(
    *("-e", "--env-config", "env_config"),
    type=key_value,
    metavar="KEY=VALUE",
    multiple=True,
    help="An argument of the env: a JSON or TOML value, else text. May be repeated.",
)
"""``-e key=value``, as often as wanted."""


def setting(text: str) -> tuple[list[str], str]:
    """The names that dots part, and the text, of one ``--set``."""
    key, value = key_and_text(text)
    path = key.split(".")
    if not all(path):
        raise click.BadParameter(f"{text!r} has a dot with no name beside it")
    return path, value


def settings_of(cls: type[AlgorithmConfig], pairs: Iterable[tuple[list[str], str]]) -> dict[str, Any]:
    """What ``--set`` gave, nested as its dots say, values read as the field's; names are not checked.

    Raises:
        ConfigError: one of them sets a whole of which another sets a part.
    """
    found: dict[str, Any] = {}
    given: dict[tuple[str, ...], Any] = {}
    for path, text in pairs:
        value = given[tuple(path)] = field_value(_hint(cls, path), text)
        for key in reversed(path):
            value = {key: value}
        found = merged(found, value)
    for path in map(list, given):
        for n in range(1, len(path)):
            whole = given.get(tuple(path[:n]), {})
            if not isinstance(whole, Mapping):
                raise ConfigError(
                    f"--set {'.'.join(path[:n])}={whole} and --set {'.'.join(path)}=... contradict each "
                    f"other: {'.'.join(path[:n])} is no dict then; keep one"
                )
    return found


def _hint(cls: type[AlgorithmConfig], path: list[str]) -> Any:
    """The type of a field under any of its names; Any for what is not one, such as an env's argument."""
    specs, key = field_specs(cls), path[-1]
    own = {spec.alias: name for name, spec in specs.items()}
    name = key if key in specs else own.get(key) or ALIASES.get(key)
    return Any if name not in specs or "env_config" in path[:-1] else specs[name].hint


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, dicts inside them key by key."""
    result = dict(below)
    for key, value in above.items():
        first = result.get(key)
        both = isinstance(first, Mapping) and isinstance(value, Mapping)
        result[key] = merged(first, value) if both else value  # type: ignore[arg-type]
    return result


@final
class ConfigCommand(click.Command):
    """A command whose flags are its own and those of the algorithm that ``--algo`` names."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Add the algorithm's flags, then parse."""
        own = [param for param in self.params if not isinstance(param, FieldOption)]
        self.params = own + field_options(config_class(_algo(args)))
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One block a section."""
        blocks: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            title = param.section.replace("_", " ") if isinstance(param, FieldOption) else "options"
            if record is not None:
                blocks.setdefault(title.capitalize(), []).append(record)
        for title, records in blocks.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _algo(args: list[str]) -> str:
    """The algorithm, needed before the flags can be parsed; what is wrong with a file is said later."""
    file, path = NOTHING, _value(args, "--config")
    if path:
        with contextlib.suppress(ConfigError):
            file = read_settings(Path(path))
    return algo_of(_value(args, "--algo"), file)


def algo_of(flag: str | None, file: FileSettings) -> str:
    """The algorithm that is meant: the flag's, else the file's, else PPO."""
    return flag or file.algo or "PPO"


def _value(args: list[str], flag: str) -> str | None:
    for word, following in itertools.pairwise([*args, ""]):
        if word == flag and following:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None
