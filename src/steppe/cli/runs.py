"""``steppe runs``: what has been trained here."""

from __future__ import annotations

import click


@click.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False), default=".")
def command(root: str) -> None:
    """List the runs under a folder (the working folder), the earliest first."""
    from rich.console import Console
    from rich.table import Table

    from steppe.tracking.record import list_runs

    runs = list_runs(root)
    if not runs:
        click.echo(f"no runs under {root}; `steppe train ENV` starts one")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "algo", "status", "steps", "best reward", "seed", "started"):
        table.add_column(name, justify="right" if name in ("steps", "best reward", "seed") else "left")
    for run in runs:
        best = "" if run.best_reward is None else f"{run.best_reward:.2f}"
        seed = "" if run.seed is None else str(run.seed)
        started = (run.started or "")[:16].replace("T", " ")
        table.add_row(str(run.path), run.algo or "", run.status, f"{run.steps:,}", best, seed, started)
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width; nothing is to be cut there
        console.width = 1000
    console.print(table)
