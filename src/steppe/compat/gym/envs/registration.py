"""Mirrors ``gym.envs.registration``: names for envs, in Gymnasium's own registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from steppe.compat.gym.core import OldInterface


def register(
    id: str,
    entry_point: str | Callable[..., Any] | None = None,
    reward_threshold: float | None = None,
    nondeterministic: bool = False,
    max_episode_steps: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **_: Any,
) -> None:
    """Make ``gym.make(id)`` and ``env=id`` mean an env; a later registration replaces an earlier one.

    Args:
        id: such as ``"example-v0"``.
        entry_point: ``"package.module:Class"``, or the class or function itself.
        reward_threshold: recorded.
        nondeterministic: recorded.
        max_episode_steps: episodes end after so many steps.
        kwargs: arguments of the constructor.
        _: options of gym that concern its own wrappers.
    """
    gymnasium.registry.pop(id, None)
    gymnasium.register(
        id=id,
        entry_point=entry_point,
        reward_threshold=reward_threshold,
        nondeterministic=nondeterministic,
        max_episode_steps=max_episode_steps,
        kwargs=dict(kwargs or {}),
        # Gymnasium's wrappers expect its own interface.
        order_enforce=False,
        disable_env_checker=True,
    )


def make(id: str, **kwargs: Any) -> Any:
    """The env registered as ``id``, with the old interface.

    An env that is written in the old interface is returned as it is, so that its own attributes can be
    reached; others, and those with a limit on their steps, are wrapped in :class:`OldInterface`.

    Args:
        id: registered here, or one of Gymnasium's.
        kwargs: arguments of the constructor, over those of the registration.
    """
    spec = gymnasium.spec(id)
    if spec.entry_point is None:
        return OldInterface(gymnasium.make(id, **kwargs))
    entry = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    env: Any = entry(**{**spec.kwargs, **kwargs})
    if isinstance(env, gymnasium.Env) and env.spec is None:
        env.spec = spec
    old = not {"seed", "kwargs"} & inspect.signature(env.reset).parameters.keys()
    if old and spec.max_episode_steps is None:
        return env
    return OldInterface(env, spec.max_episode_steps)
