"""``steppe baseline``: what random actions earn."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import click

from steppe.cli.flags import env_config_option
from steppe.errors import EnvError

PATIENCE = 10.0
"""Seconds after which an episode that goes on is remarked upon."""


@click.command()
@click.argument("env")
@click.option("--episodes", type=click.IntRange(min=1), default=10_000, show_default=True, help="Episodes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the env and of the actions.")
@click.option("--max-episode-steps", type=click.IntRange(min=1), help="Stop an episode after so many steps.")
@env_config_option
def command(
    env: str, episodes: int, seed: int, max_episode_steps: int | None, env_config: Sequence[tuple[str, Any]]
) -> None:
    """Play episodes with random actions until the env says that they are over.

    Prints the mean reward with its 95 % confidence interval. A policy has learned something when it is
    above. Ctrl-C prints the episodes so far.
    """
    from steppe.envs import registry

    instance = registry.make(env, dict(env_config))
    played: list[tuple[float, int]] = []
    endless = random_episodes(instance, seed, max_episode_steps)
    try:
        with _patience():
            played.append(next(endless))
        for _, episode in zip(range(episodes - 1), endless, strict=False):
            played.append(episode)  # kept when Ctrl-C comes
    except KeyboardInterrupt:
        click.echo(f"stopped after {len(played)} of {episodes} episodes", err=True)
    finally:
        instance.close()
    if played:
        click.echo(report(played))


def random_episodes(env: Any, seed: int, max_steps: int | None) -> Iterator[tuple[float, int]]:
    """Reward and length of one episode after another."""
    env.action_space.seed(seed)
    env.reset(seed=seed)
    while True:
        total, length, over = 0.0, 0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            length += 1
            if not math.isfinite(total):
                name = type(env.unwrapped).__name__
                raise EnvError("E201", f"reward: got {reward!r}", env_class=name, step=length, seed=seed)
            over = bool(terminated or truncated or length == max_steps)
        yield total, length
        env.reset()


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Say what to do about an episode that does not end."""
    text = "the first episode has not ended yet; if none ever does, --max-episode-steps N ends them"
    timer = threading.Timer(PATIENCE, click.echo, [text], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def report(played: Sequence[tuple[float, int]]) -> str:
    """Two lines about episodes given as (reward, length)."""
    rewards, lengths = zip(*played, strict=True)
    n = len(rewards)
    mean = sum(rewards) / n
    spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1)) if n > 1 else math.inf
    interval = f" +- {1.96 * spread / math.sqrt(n):.2f} (95 %)" if n > 1 else ""
    return (
        f"baseline reward {mean:.2f}{interval} over {n} episodes of random actions\n"
        f"min {min(rewards):.2f}  max {max(rewards):.2f}  length {sum(lengths) / n:.1f}"
    )
