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

from steppe.cli import train
from steppe.cli.flags import ConfigCommand
from steppe.cli.text import count
from steppe.errors import ConfigError

QUICK_S = 1.5
"""How long ``--quick`` measures each thing."""
_SHARED = ("env_argument", "env", "algo", "config", "set", "env_config")
"""Parameters that mean what they mean to ``steppe train``."""


@click.group()
def command() -> None:
    """Measure this machine, and predict how far more runners would go."""


@command.command(cls=ConfigCommand, params=[one for one in train.command.params if one.name in _SHARED])
@click.option("--quick", is_flag=True, help="Measure each thing for a second or two instead of ten.")
@click.option("--runners", type=count, default="1024", show_default=True, help="How many to predict for.")
@click.option("--gigabits", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
              help="What the network between hosts carries in a second.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", default="scale.json",
              show_default=True, help="Where to write it, as JSON; a picture is beside it.")  # fmt: skip
def scale(
    env_argument: str | None, env: str | None, algo: str | None, config: Path | None, out: Path, **flags: Any
) -> None:
    """Predict env steps a second by number of runners, and name what limits each.

    Measures steps, inference, transfers and updates by short runs here, with 0, 1 and 2 runners, and says how
    well it would have predicted those. Without an env, it is Pendulum-v1 with 64 envs a runner.
    """
    from steppe.scaling import study

    given = {key: value for key, value in flags.items() if value not in (None, ())}
    seconds, options = QUICK_S if given.pop("quick") else 10.0, (given.pop("runners"), given.pop("gigabits"))
    env = train.one_env(env_argument, env)
    if env is None and config is None:
        env, given = "Pendulum-v1", {"num_envs_per_env_runner": 64, **given}  # as in RLlib's documentation
    settings, _ = train.configured(env, algo, None, config, given)
    if out.suffix != ".json" or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: must be a file that ends in .json, in a folder that is there")
    load = getattr(os, "getloadavg", lambda: (0.0,))()[0]  # Windows has none
    record = study(settings, seconds, *options, say=lambda it: click.echo(f"measuring {it} ...", err=True))
    record |= {"command": " ".join(["steppe", *sys.argv[1:]]), "load": round(load, 1)}
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    show(record)
    click.echo(f"written to {out}")
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("no matplotlib, no picture: pip install 'steppe[plot]'")
    else:
        from steppe.scaling.picture import draw

        click.echo(f"picture: {draw(record, out.with_suffix('.png'))}")


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
    if record["load"] > record["hosts"]["cores"] / 2:
        click.echo(f"the load was {record['load']} before: where others use a machine, all is too slow")


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
        n = points[0]["runners"]
        table.add_row(f"{n:,}", str(points[0]["hosts"]), *cells, "" if n in run else "predicted")
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("run", "limited by", "") else "right")
    return table
