"""Mirrors ``gym.envs.registration``: names for envs, in Gymnasium's own registry."""

from __future__ import annotations

import inspect
from collections import UserDict
from importlib import import_module
from typing import Any, final

import gymnasium
from gymnasium import spec
from gymnasium.envs.registration import EnvSpec, load_env_creator

from steppe.compat.gym import OldInterface

_OPTIONS = ("max_episode_steps", "nondeterministic", "reward_threshold")


def register(id: str, entry_point: Any = None, *, kwargs: Any = None, **options: Any) -> None:
    """Make ``gym.make(id)`` and ``env=id`` mean an env; a later registration replaces an earlier one.

    Args:
        id: such as ``"example-v0"``.
        entry_point: ``"package.module:Class"``, or the class or function itself.
        kwargs: arguments of the constructor.
        options: ``max_episode_steps`` ends episodes; ``reward_threshold`` and ``nondeterministic`` are
            recorded; others concern wrappers of gym's own.
    """
    known = {name: options[name] for name in _OPTIONS if name in options}
    # Gymnasium's wrappers expect its own interface.
    known |= {"order_enforce": False, "disable_env_checker": True}
    gymnasium.registry.pop(id, None)
    gymnasium.register(id=id, entry_point=entry_point, kwargs=dict(kwargs or {}), **known)


def make(id: str, **kwargs: Any) -> Any:
    """The env registered as ``id``, with the old interface.

    An env that is written in the old interface is returned as it is, so that its own attributes can be
    reached; others, and those with a limit on their steps, are wrapped in :class:`OldInterface`.

    Args:
        id: registered here, or one of Gymnasium's; ``"module:id"`` imports the module first.
        kwargs: arguments of the constructor, over those of the registration.
    """
    module, _, id = id.rpartition(":")
    if module:
        import_module(module)
    spec = gymnasium.spec(id)
    if spec.entry_point is None:
        return OldInterface(gymnasium.make(id, **kwargs))
    entry = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    env: Any = entry(**{**spec.kwargs, **kwargs})
    if isinstance(env, gymnasium.Env) and env.spec is None:
        env.spec = spec
    takes = inspect.signature(env.reset).parameters.values()
    old = not any(one.name == "seed" or one.kind is one.VAR_KEYWORD for one in takes)
    if old and spec.max_episode_steps is None:
        return env
    return OldInterface(env, spec.max_episode_steps)


@final
class Registry(UserDict[str, EnvSpec]):
    """All names for envs: Gymnasium's own registry, with the words that gym had for it.

    Attributes:
        env_specs: the registry itself, by name.
    """

    def __init__(self) -> None:
        self.data = self.env_specs = gymnasium.registry

    def all(self) -> list[EnvSpec]:
        """What is registered."""
        return list(self.data.values())

    spec = staticmethod(spec)


registry = Registry()
"""As ``gym.envs.registry`` was used: ``registry.all()``, ``del registry.env_specs[id]``."""
