"""``steppe bench``: what this machine costs a run, and how far more runners would take it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from steppe.cli.flags import ConfigCommand, env_config_option, setting
from steppe.cli.text import count
from steppe.cli.train import configured, one_env
from steppe.errors import ConfigError

QUICK_S = 1.5
"""How long ``--quick`` measures each thing."""


@click.group()
def command() -> None:
    """Measure this machine, and predict how far more runners would go."""


@command.command(cls=ConfigCommand)
@click.argument("env_argument", metavar="[ENV]", required=False)
@click.option("--env", help="The env: a Gymnasium id, file.py:Class or module:Class.  [default: Pendulum-v1]")
@click.option(
    "--algo", default=None, metavar="NAME", help="The algorithm; its own flags follow.  [default: PPO]"
)
@click.option("--quick", is_flag=True, help="Measure each thing for a second or two instead of ten.")
@click.option(
    "--runners", type=count, default="1024", show_default=True, help="How many runners to predict for."
)
@click.option(
    "--gigabits", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
    help="What the network between hosts carries in a second.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", default=Path("scale.json"), show_default=True,
    help="Where to write what was found, as JSON.",
)  # fmt: skip
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE",
    help="Where to draw it: .png, .svg or .pdf.  [default: beside --out]",
)  # fmt: skip
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings in a .toml, .yaml or .json file.",
)
@click.option(
    "--set", type=setting, metavar="KEY=VALUE", multiple=True, help="A setting by its name. May be repeated."
)
@env_config_option
def scale(
    env_argument: str | None,
    env: str | None,
    algo: str | None,
    quick: bool,
    runners: int,
    gigabits: float,
    out: Path,
    picture: Path | None,
    config: Path | None,
    **flags: Any,
) -> None:
    """Predict env steps a second by number of runners, and name what limits each.

    Measures steps, inference, transfers and updates by short runs here, with 0, 1 and 2 runners, and says how
    well it would have predicted those.
    """
    from steppe.scaling import study

    given = {key: value for key, value in flags.items() if value not in (None, ())}
    env = one_env(env_argument, env)
    if env is None and config is None:
        env, given = "Pendulum-v1", {"num_envs_per_env_runner": 64, **given}  # as in RLlib's documentation
    settings, _ = configured(env, algo, None, config, given)
    picture = picture or out.with_suffix(".png")
    for flag, file in (("--out", out), ("--picture", picture)):
        if not file.parent.is_dir():
            raise ConfigError(f"{flag} {file}: there is no folder {file.parent}; make it first")
    if picture.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--picture {picture}: .png, .svg or .pdf is what can be drawn")
    load = getattr(os, "getloadavg", lambda: (0.0,))()[0]  # Windows has none
    record = study(
        settings,
        seconds=QUICK_S if quick else 10.0,
        largest=runners,
        gigabits=gigabits,
        say=lambda text: click.echo(f"measuring {text} ...", err=True),
    )
    record |= {"command": " ".join(["steppe", *sys.argv[1:]]), "load": round(load, 1)}
    if load > record["hosts"]["cores"] / 2:
        record["notes"].append(f"the load was {load:.1f} before: where others use a machine, all is too slow")
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    show(record)
    click.echo(f"written to {out}")
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no matplotlib, no picture: pip install 'steppe[plot]'")
    else:
        from steppe.scaling.picture import draw

        click.echo(f"picture: {draw(record, picture)}")


def show(record: Mapping[str, Any]) -> None:
    """Print a study."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width; nothing is to be cut there
        console.width = 1000
    costs = [f"{name} {1e6 * record['costs'][name]:.3g}" for name in ("step", "inference", "loop", "learn")]
    click.echo(f"us an env step: {', '.join(costs)}")
    if record["wire"]:
        wire = [f"{name} {1e3 * cost:.3g}" for name, cost in record["wire"].items() if "bytes" not in name]
        click.echo(f"ms a fragment of {record['costs']['fragment']:.0f}: {', '.join(wire)}")
    console.print(compared(record))
    console.print(predicted(record))
    for note in record["notes"]:
        click.echo(note)


def compared(record: Mapping[str, Any]) -> Table:
    """Real runs beside what was predicted of them."""
    table = _table("runners", "run", "measured", "predicted", "error")
    for run in record["runs"]:
        rates = [f"{run[key]:,.0f}" for key in ("measured", "predicted")]
        table.add_row(str(run["runners"]), run["kind"], *rates, f"{run['error']:+.0%}")
    return table


def predicted(record: Mapping[str, Any]) -> Table:
    """Env steps a second by number of runners, each with its bottleneck; and which were not run."""
    table = _table("runners", "hosts", "sampling", "limited by", "training", "limited by", "")
    run = {run["runners"] for run in record["runs"]}
    for points in zip(*record["points"].values(), strict=True):
        cells = [cell for point in points for cell in (f"{point['steps_per_s']:,.0f}", point["bottleneck"])]
        ran = "" if points[0]["runners"] in run else "predicted"
        table.add_row(f"{points[0]['runners']:,}", str(points[0]["hosts"]), *cells, ran)
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("run", "limited by", "") else "right")
    return table
