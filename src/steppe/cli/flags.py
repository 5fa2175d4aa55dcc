"""Flags made from the fields of a config, grouped by section in ``--help``."""

from __future__ import annotations

import itertools
import typing
from typing import Any, Literal, final

import click

from steppe.algorithms import config_class
from steppe.cli.text import field_value, key_value
from steppe.config import AlgorithmConfig, FieldSpec, field_docs, field_specs

DEFAULTS: dict[str, Any] = {"checkpoint_freq": 10}
"""Where the command line's default is not the config's."""

_NO_FLAG = (
    "env",  # this and the next are written otherwise; the rest are code, or hold it
    "env_config",
    "observation_space",
    "action_space",
    "evaluation_config",
    "policies",
    "policy_mapping_fn",
    "policies_to_train",
    "callbacks_class",
)


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
            hint = spec.hint
            super().__init__(
                [f"--{flag}", spec.name],
                type=lambda v: field_value(hint, v),
                metavar=_metavar(hint),
                help=text,
            )


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(typing.get_args(hint))
    members = () if typing.get_origin(hint) is list else typing.get_args(hint) or (hint,)
    return next((word for kind, word in _WORDS if kind in members), "LIST")


def field_options(cls: type[AlgorithmConfig]) -> list[click.Parameter]:
    """A flag for every field that text can set."""
    docs = field_docs(cls)
    return [FieldOption(spec, docs[name]) for name, spec in field_specs(cls).items() if name not in _NO_FLAG]


def env_config_option() -> click.Option:
    """``-e key=value``, as often as wanted."""
    return click.Option(
        ["-e", "--env-config", "env_config"],
        type=key_value,
        metavar="KEY=VALUE",
        multiple=True,
        help="An argument of the env: a JSON or TOML value, else text. May be repeated.",
    )


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
    """The value of ``--algo``, needed before the flags can be parsed."""
    for flag, value in itertools.pairwise([*args, ""]):
        if flag == "--algo" and value:
            return value
        if flag.startswith("--algo="):
            return flag.partition("=")[2]
    return "PPO"
