"""The command line: ``steppe COMMAND``. Each command lives in its own file and is imported when it is run."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import final

import click

from steppe.errors import SteppeError

COMMANDS: dict[str, str] = {
    "train": "Train in an env and write a run folder.",
    "evaluate": "Play episodes with a trained policy and print their rewards.",
    "rollout": "Step an env with a trained policy, one line a step.",
    "baseline": "Play episodes with random actions, to know what is no success.",
    "serve": "Serve a policy over a network, and let it learn from what its clients do.",
    "tune": "Search for good settings: many short trainings.",
    "bench": "Measure this machine, and predict how far more runners would go.",
    "runs": "List the runs under a folder.",
    "new": "Write an env package that installs, is tested and trains.",
}
"""What ``steppe --help`` shows without importing the commands; ``steppe.cli.<name>.command`` is each."""

INTERRUPTED = 130
"""Exit status of a command that was stopped by Ctrl-C."""


@final
class _LazyGroup(click.Group):
    """A group that imports a command's file only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"steppe.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="steppe")
def cli() -> None:
    """Reinforcement learning in the environments that you write."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit status: 0 done, 1 the user's own exception (its traceback is shown), 2 a mistake in what was asked
    for or in an env (its text is shown), 130 stopped by Ctrl-C.
    """
    if os.getcwd() not in sys.path:  # for module:Class; last, so that no file here hides a library
        sys.path.append(os.getcwd())
    try:
        status = cli.main(args, prog_name="steppe", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except SteppeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
