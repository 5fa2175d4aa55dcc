"""``steppe rollout``: watch it act."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from steppe.cli.saved import find, restore


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="CHECKPOINT|RUN")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Env steps to take.")
@click.option("--render", is_flag=True, help="Let the env draw itself after every step.")
@click.option("--explore", is_flag=True, help="Sample actions instead of taking the best one.")
@click.option("--seed", type=int, help="Seed of the first episode.")
@click.option("--env", help="The env, where the checkpoint alone does not say it.")
def command(path: Path, steps: int, render: bool, explore: bool, seed: int | None, env: str | None) -> None:
    """Step an env with a trained policy, one line a step.

    Of a run folder, the latest checkpoint is taken.
    """
    with restore(find(path), env) as algo:
        instance = make_env(algo.config.env, algo.config.env_config, render=render)
        try:
            play(instance, lambda obs: algo.compute_single_action(obs, explore=explore), steps, render, seed)
        finally:
            instance.close()


def make_env(env: Any, env_config: dict[str, Any], *, render: bool) -> Any:
    """One env; a Gymnasium id that can draw is made so that it does."""
    import gymnasium

    from steppe.envs import registry

    instance = registry.make(env, env_config)
    modes = instance.metadata.get("render_modes", ())
    if not render or instance.render_mode is not None or env not in gymnasium.registry:
        return instance
    for mode in ("human", "ansi"):
        if mode in modes:
            instance.close()
            return registry.make(env, {**env_config, "render_mode": mode})
    return instance


def play(env: Any, act: Callable[[Any], Any], steps: int, render: bool, seed: int | None) -> None:
    """Take ``steps`` env steps; prints each one, or lets the env draw it, and every episode's reward."""
    obs, _ = env.reset(seed=seed)
    total, terminated, truncated = 0.0, False, False
    for step in range(1, steps + 1):
        action = act(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if render:
            drawn = env.render()
            if isinstance(drawn, str):
                click.echo(drawn.rstrip("\n"))
        else:
            click.echo(f"step {step}  action {action}  reward {float(reward):g}")
        if terminated or truncated:
            click.echo(f"cumulative reward {total:g}")
            obs, _ = env.reset()
            total = 0.0
    if not (terminated or truncated):
        click.echo(f"reward so far {total:g}, the episode goes on")
