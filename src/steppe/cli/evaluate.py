"""``steppe evaluate``: how good is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from steppe.cli.saved import find, restore, settings_of


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="CHECKPOINT|RUN")
@click.option(
    "--episodes", type=click.IntRange(min=1), default=20, show_default=True, help="Episodes to play."
)
@click.option("--env", help="The env, where the checkpoint alone does not say it.")
@click.option("--max-episode-steps", type=click.IntRange(min=1), help="Stop an episode after so many steps.")
def command(path: Path, episodes: int, env: str | None, max_episode_steps: int | None) -> None:
    """Play episodes with a trained policy and print their rewards.

    Of a run folder, the latest checkpoint is taken.
    """
    saved = find(path)
    changes: dict[str, Any] = {"callbacks_class": None, "input": None}  # of the training
    if max_episode_steps is not None:
        changes["max_episode_steps"] = max_episode_steps
    own = settings_of(saved.checkpoint).get("evaluation_config", {})
    if "callbacks_class" in own:
        changes["evaluation_config"] = {key: own[key] for key in own if key != "callbacks_class"}
    with restore(saved, env, **changes, resume=False) as algo:
        result = algo.evaluate(num_episodes=episodes)
    click.echo(f"{saved.checkpoint}: {episodes} episodes")
    click.echo(
        f"reward mean {result['episode_reward_mean']:.2f}  "
        f"min {result['episode_reward_min']:.2f}  max {result['episode_reward_max']:.2f}  "
        f"length {result['episode_len_mean']:.1f}"
    )
