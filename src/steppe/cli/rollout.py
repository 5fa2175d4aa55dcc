"""``steppe rollout``: watch it act."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from steppe.cli.saved import env_of, find, settings_of
from steppe.errors import ConfigError


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
    import steppe

    saved = find(path)
    env, settings = env_of(saved, env), settings_of(saved.checkpoint)
    policy = steppe.load_policy(saved.checkpoint)
    if seed is not None:
        policy.seed(seed)
    instance = make_env(env or settings["env"], settings["env_config"], render=render)
    if settings.get("action_mask") == "info":  # older checkpoints do not say it
        from steppe.envs.masking import MaskedEnv, Masks

        instance = MaskedEnv(instance, Masks(None, None, settings.get("max_sequence_length")))
    try:
        play(instance, lambda obs, state: policy.act(obs, state, explore), steps, render, seed)
    finally:
        instance.close()


def make_env(env: Any, env_config: dict[str, Any], *, render: bool) -> Any:
    """One env; where it is to draw, it is made with a ``render_mode`` that shows something, if it takes one.

    Raises:
        ConfigError: it is to draw, and cannot.
    """
    import gymnasium

    from steppe.envs import registry

    instance = registry.make(env, env_config)
    if not render:
        return instance
    if type(instance.unwrapped).render is gymnasium.Env.render:
        raise ConfigError(f"{type(instance.unwrapped).__name__} has no render(); leave out --render")
    modes = instance.metadata.get("render_modes") or ()
    mode = next((mode for mode in ("human", "ansi") if mode in modes), None)
    if mode is None or instance.render_mode is not None:
        return instance
    instance.close()  # first: there may be only one of it
    try:
        return registry.make(env, {**env_config, "render_mode": mode})
    except ConfigError:  # its constructor takes no such argument
        return registry.make(env, env_config)


def play(
    env: Any, act: Callable[[Any, Any], tuple[Any, Any]], steps: int, render: bool, seed: int | None
) -> None:
    """Take ``steps`` env steps; prints each one, or lets the env draw it, and every episode's reward.

    ``act`` makes an action and the next state of an observation and a state, which begins as ``{}``.
    """
    obs, _ = env.reset(seed=seed)
    state: Any = {}
    total, terminated, truncated = 0.0, False, False
    for step in range(1, steps + 1):
        action, state = act(obs, state)
        obs, reward, terminated, truncated, _ = env.step(action)
        if "reward" in state:
            state["reward"] = float(reward)
        total += float(reward)
        if render:
            _draw(env)
        else:
            click.echo(f"step {step}  action {action}  reward {float(reward):g}")
        if terminated or truncated:
            click.echo(f"cumulative reward {total:g}")
            obs, _ = env.reset()
            total, state = 0.0, {}
    if not (terminated or truncated):
        click.echo(f"reward so far {total:g}, the episode goes on")


def _draw(env: Any) -> None:
    drawn = env.render()
    if isinstance(drawn, str):
        click.echo(drawn.rstrip("\n"))
    elif drawn is not None:
        raise ConfigError(
            f"render() of {type(env.unwrapped).__name__} returned {type(drawn).__name__}, which a terminal "
            "cannot show: draw in a window of its own, print, or return text; or leave out --render"
        )
