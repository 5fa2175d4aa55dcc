"""What happens in the process of a remote env: a Ray actor, with an adapter of one env.

Its functions are called with ``__ray_call__``, the actor first. They answer what was asked for and None, or
None and a packed exception.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import gymnasium

from steppe.envs import registry
from steppe.envs.context import EnvContext
from steppe.errors import ConfigError
from steppe.processes import packed
from steppe.types import AgentID, AsyncEnv, IntArray, SpacePair, State, TimeStep, Tree

_rows: list[AsyncEnv] = []
"""The adapter of the env that lives in this process."""


class Told(NamedTuple):
    """What the process of an env answers: rows, and what may have changed with them."""

    steps: Sequence[TimeStep]
    env_steps: int
    spaces: tuple[SpacePair, ...]
    agents: Mapping[AgentID, int]
    health: Mapping[str, int]


@final
class RemoteEnv:
    """An env in a process of its own, as callbacks have it.

    Any attribute is a method here, as those of a Ray actor are: ``ray.get(env.set_phase.remote(2))`` calls
    the env's ``set_phase(2)``, and ``ray.get(env.phase.remote())`` reads what cannot be called.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> RemoteMethod:
        if name.startswith("_") or name == "unwrapped":  # it is not an env to take apart
            raise AttributeError(f"a remote env has no attribute {name!r} here")
        return RemoteMethod(self._actor, name)


@final
class RemoteMethod:
    """A method or attribute of a :class:`RemoteEnv`."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *args: Any, **keywords: Any) -> Any:
        """A Ray reference to the result."""
        return self._actor.__ray_call__.remote(call, self._name, args, keywords)


@final
class Host:
    """The actor that an env lives in; what it does is called with ``__ray_call__``."""


def _safely(function: Callable[..., Any]) -> Callable[..., tuple[Any, bytes | None]]:
    @functools.wraps(function)
    def safe(actor: Any, *args: Any) -> tuple[Any, bytes | None]:
        try:
            return function(actor, *args), None
        except Exception as error:
            return None, packed(error)

    return safe


def _told(steps: Sequence[TimeStep]) -> Told:
    (rows,) = _rows
    return Told(steps, rows.env_steps, rows.spaces, dict(rows.agents), dict(rows.health()))


@_safely
def open_env(
    actor: Any, made_by: bytes | None, limits: Mapping[str, Any], context: EnvContext, seed: int
) -> Told | None:
    """Make the env, or take the actor itself as one; None where the creator returns an actor."""
    made = actor
    if made_by is not None:
        creator, spec = pickle.loads(made_by)
        if spec is not None:
            gymnasium.registry.setdefault(spec.id, spec)
        made = (registry.creator_of(creator) if isinstance(creator, str) else creator)(context)
        if registry.is_actor(made):
            return None
    if registry.is_vector(made) or registry.is_base(made):
        raise ConfigError(
            "remote_worker_envs=True is for envs that step one by one: a vector env or a BaseEnv steps its "
            "envs itself; leave it out"
        )
    _rows[:] = [registry.build(lambda ctx: made, num_envs=1, run_seed=0, **limits)]
    _rows[0].set_state({"started": False, "seeds": [seed]})
    return _told([])


@_safely
def poll(actor: Any, sent: Sequence[tuple[IntArray, Tree]]) -> Told:
    """Send what was answered since the last time, and poll."""
    for slots, actions in sent:
        _rows[0].send_actions(slots, actions)
    return _told(_rows[0].poll())


@_safely
def pending(actor: Any) -> Told:
    """The rows that await an action."""
    return _told(_rows[0].pending())


@_safely
def get_state(actor: Any) -> State:
    """Of the adapter."""
    return _rows[0].get_state()


@_safely
def set_state(actor: Any, state: State, begin: bool) -> tuple[Told, list[str]]:
    """Go on from a state; ``begin``: with the first rows of an episode."""
    notes = _rows[0].set_state(state)
    if begin:
        _rows[0].poll()
    return _told(_rows[0].pending()), notes


def call(actor: Any, name: str, args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """Call a method of the user's env, or read an attribute."""
    (env,) = _rows[0].get_sub_environments()
    found = getattr(registry.user_env(env), name)
    return found(*args, **keywords) if callable(found) else found


@_safely
def close(actor: Any) -> None:
    """Close the env."""
    for rows in _rows:
        rows.close()
