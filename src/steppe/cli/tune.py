"""``steppe tune``: a search for settings, its table and its picture."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from steppe.algorithms import config_class
from steppe.cli import INTERRUPTED
from steppe.cli.flags import ConfigCommand, env_config_option, setting
from steppe.cli.text import count, key_and_text
from steppe.cli.train import configured, one_env, refuse_changes
from steppe.errors import ConfigError
from steppe.tune import PRUNERS, Search, Trial, parse, read_search, tune

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig


@click.command(cls=ConfigCommand)
@click.argument("env_argument", metavar="[ENV]", required=False)
@click.option("--env", help="The env: a Gymnasium id, file.py:Class or module:Class.")
@click.option(
    "--algo", default=None, metavar="NAME", help="The algorithm; its own flags follow.  [default: PPO]"
)
@click.option(
    "--param",
    "params",
    type=key_and_text,
    metavar="NAME=CHOICE",
    multiple=True,
    help="A setting, and what to choose from: lr=loguniform(1e-5,1e-2), uniform, randint, lograndint, or "
    "choice(0.95,0.99); dotted inside of a group: env_config.size=choice(5,10). May be repeated.",
)
@click.option("--trials", type=count, metavar="COUNT", help="Trainings in all.  [default: 20]")
@click.option("--steps", type=count, metavar="COUNT", help="Env steps of each.  [default: 100000]")
@click.option(
    "--metric", metavar="KEY", help="What is compared, a key of the results.  [default: episode_reward_mean]"
)
@click.option("--mode", type=click.Choice(["max", "min"]), help="Which is better.  [default: max]")
@click.option(
    "--pruner",
    type=click.Choice(["median", "asha", "pbt", "none"]),
    help="Ends trials early: below the median of others, by successive halving, or none; with pbt, on Ray, "
    "bad trials go on from good ones.  [default: median; on Ray asha]",
)
@click.option(
    "--on",
    type=click.Choice(list(PRUNERS)),
    help="One trial after the other, or side by side on Ray, see --ray-address.  [default: here]",
)
@click.option(
    "--per-trial",
    type=key_and_text,
    metavar="NAME=COUNT",
    multiple=True,
    help="What a trial needs of Ray: CPU=2, GPU=0.5. May be repeated.  [default: CPU=1]",
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="FOLDER", help="Go on with this search.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings that all trials share, in a .toml, .yaml or .json file.",
)
@click.option(
    "--set",
    type=setting,
    metavar="KEY=VALUE",
    multiple=True,
    help="A setting that all trials share, by its name or an old one. May be repeated.",
)
@env_config_option
def command(
    env_argument: str | None,
    env: str | None,
    algo: str | None,
    params: tuple[tuple[str, str], ...],
    trials: int | None,
    resume: Path | None,
    config: Path | None,
    **flags: Any,
) -> int:
    """Search for good settings: many short trainings, each told what those before it found.

    All trials share the seed and the settings that are given as with `steppe train`. Ctrl-C stops the search,
    which then goes on with --resume.
    """
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    env = one_env(env_argument, env)
    if resume is not None:
        refuse_changes({**given, **({"param": params} if params else {})}, env=env, algo=algo, config=config)
        settings, searched, options = _reopened(resume)
    else:
        if not params:
            raise ConfigError("say what to search: --param 'lr=loguniform(1e-5, 1e-2)'")
        searched = dict(params)
        if len(searched) < len(params):
            raise ConfigError("two --param are about one setting; keep one")
        options = {key: given.pop(key) for key in ("steps", "metric", "mode", "pruner", "on") if key in given}
        if "per_trial" in given:
            options["per_trial"] = _numbers(given.pop("per_trial"))
        settings, stop = configured(env, algo, None, config, given)
        options = {"steps": stop["total_steps"], **options} if "total_steps" in stop else options
    if trials is not None:
        options["trials"] = trials
    return _search(settings, searched, {**options, "resume": resume})


def _numbers(pairs: tuple[tuple[str, str], ...]) -> dict[str, float]:
    try:
        return {name: float(text) for name, text in pairs}
    except ValueError as error:
        raise ConfigError(f"--per-trial: {error}; write CPU=2 or GPU=0.5") from None


def _reopened(path: Path) -> tuple[AlgorithmConfig, dict[str, str], dict[str, Any]]:
    """What a search was told: the shared settings, what it searches, and how."""
    record = read_search(path)
    code = [name for name in record["code"] if ":" not in str(record["config"].get(name))]
    code += ["params"] if record["params"] is None else []
    if code:
        raise ConfigError(
            f"{path} was begun by a program that gave code as {', '.join(code)}: go on there, "
            f"tune(..., resume={str(path)!r})"
        )
    for name in record["code"]:
        click.echo(f"importing {record['config'][name]}, which this search names as its {name}", err=True)
    cls = config_class(record["algo"])
    options = {key: record[key] for key in ("steps", "metric", "mode", "pruner", "on")}
    options["per_trial"] = record.get("per_trial")
    options["trials"] = record["num_trials"]
    return cls(**cls.resolved(record["config"])), record["params"], options


def _search(config: AlgorithmConfig, params: Mapping[str, str], options: Mapping[str, Any]) -> int:
    begun: list[Path] = []

    def show(found: Search) -> None:
        so_far = f"search in {found.path}, {len(found.trials)} trials so far"
        click.echo(line(found.trials[-1]) if begun else so_far)
        begun.append(found.path)

    try:
        found = tune(config, {name: parse(text) for name, text in params.items()}, progress=show, **options)
    except KeyboardInterrupt:
        if not begun:
            raise
        click.echo(f"stopped; go on with: steppe tune --resume {shlex.quote(str(begun[0]))}")
        return INTERRUPTED
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width; nothing is to be cut there
        console.width = 1000
    console.print(table(found))
    config_file = found.best.path / "config.toml"
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no matplotlib, no picture: pip install 'steppe[plot]'")
    else:
        from steppe.tune.picture import draw

        click.echo(f"picture: {draw(found)}")
    click.echo(f"train on with the best settings: steppe train --config {shlex.quote(str(config_file))}")
    return 0


def line(trial: Trial) -> str:
    """A trial that ended, such as ``trial 3: lr=0.001: 12.5 (finished, 5,000 steps)``."""
    settings = ", ".join(f"{name}={short(value)}" for name, value in trial.settings.items())
    why = f": {trial.why}" if trial.why else ""
    return f"trial {trial.number}: {settings}: {_score(trial)} ({trial.status}, {trial.steps:,} steps{why})"


def table(found: Search) -> Table:
    """All trials, the best first."""
    shown = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for trial in found.trials for name in trial.settings))
    for name in ("trial", *names, found.metric, "steps", "status"):
        shown.add_column(name, justify="left" if name == "status" else "right")
    for trial in found.ranked():
        settings = [short(trial.settings[name]) if name in trial.settings else "" for name in names]
        shown.add_row(str(trial.number), *settings, _score(trial), f"{trial.steps:,}", trial.status)
    return shown


def short(value: Any) -> str:
    """A setting in few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _score(trial: Trial) -> str:
    return "none" if trial.score is None else f"{trial.score:.2f}"
