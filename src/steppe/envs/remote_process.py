"""What happens in the process of a remote env: a Ray actor, with an adapter of one env.

Its functions are called with ``__ray_call__``, the actor first. They answer what was asked for and None, or
None and a packed exception. One of them, :func:`serve`, goes on while the env steps, with actions and rows
over a connection of its own; what else is asked of the env waits until the other end lets it end. So all of
the env's code runs in the main thread, one call after the other.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import gymnasium

from steppe.envs import registry, wire
from steppe.envs.context import EnvContext
from steppe.envs.wire import Wire
from steppe.errors import ConfigError
from steppe.processes import Group, end_children, node_address, own_group, packed, sent_from
from steppe.types import AgentID, AsyncEnv, IntArray, SpacePair, State, TimeStep, Tree

_PATIENCE_S = 30.0
"""How long is waited for the run to connect."""

_rows: list[AsyncEnv] = []
"""The adapter of the env that lives in this process."""
_doors: list[socket.socket] = []
"""Where the run is to connect to, until it has."""
_lines: list[Wire] = []
"""The connection to the run."""


class Told(NamedTuple):
    """What the process of an env answers: rows, and what may have changed with them."""

    steps: Sequence[TimeStep]
    env_steps: int
    spaces: tuple[SpacePair, ...]
    agents: Mapping[AgentID, int]
    health: Mapping[str, int]


_unsent: list[Told | Exception] = []
"""The newest answer, where the connection could not carry it."""


@final
class RemoteEnv:
    """An env in a process of its own, as callbacks have it.

    Any attribute is a method here, as those of a Ray actor are: ``ray.get(env.set_phase.remote(2))`` calls
    the env's ``set_phase(2)``, and ``ray.get(env.phase.remote())`` reads what cannot be called.
    """

    def __init__(self, between_steps: Callable[..., Any]) -> None:
        self._between_steps = between_steps

    def __getattr__(self, name: str) -> RemoteMethod:
        if name.startswith("_") or name == "unwrapped":  # it is not an env to take apart
            raise AttributeError(f"a remote env has no attribute {name!r} here")
        return RemoteMethod(self._between_steps, name)

    def __reduce__(self) -> Any:
        raise TypeError("a remote env is called from the process that steps it: send what its methods return")


@final
class RemoteMethod:
    """A method or attribute of a :class:`RemoteEnv`."""

    def __init__(self, between_steps: Callable[..., Any], name: str) -> None:
        self._between_steps, self._name = between_steps, name

    def remote(self, *args: Any, **keywords: Any) -> Any:
        """A Ray reference to the result."""
        return self._between_steps(call, self._name, args, keywords)


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
    actor: Any, made_by: bytes | None, limits: Mapping[str, Any], context: EnvContext, state: State
) -> Told | None:
    """Make the env, or take the actor itself as one; None where the creator returns an actor."""
    made = actor
    if made_by is not None:
        theirs, inner = pickle.loads(made_by)
        with sent_from(theirs):
            creator, spec = pickle.loads(inner)
            if spec is not None:
                gymnasium.registry.setdefault(spec.id, spec)
            if isinstance(creator, str):
                creator = registry.creator_of(creator)
        made = creator(context)
        if registry.is_actor(made):
            return None
    if registry.is_vector(made) or registry.is_base(made):
        raise ConfigError(
            "remote_worker_envs=True is for envs that step one by one: a vector env or a BaseEnv steps its "
            "envs itself; leave it out"
        )
    _rows[:] = [registry.build(lambda ctx: made, num_envs=1, run_seed=0, **limits)]
    _rows[0].set_state(state)
    return _told([])


@_safely
def listen(actor: Any, host: str | None) -> tuple[tuple[str, int] | None, Group]:
    """Where the run is to connect, unless ``host``, which it is on, is None; and the env's own processes.

    It is on this host's own network if the run is on this host, too.
    """
    if host is None:
        return None, own_group()
    here = node_address()
    _doors[:] = [socket.create_server(("127.0.0.1" if here == host else here, 0))]
    return _doors[0].getsockname()[:2], own_group()


@_safely
def serve(actor: Any, token: bytes) -> None:
    """Step as often as actions come over the connection, until it says that something else is asked."""
    try:
        if _doors:
            door = _doors.pop()
            _lines[:] = [wire.pick_up(door, token, _PATIENCE_S)]
            door.close()
        for line in _lines:
            while message := line.receive():
                _step(line, wire.unpacked(message))
    except OSError:  # the run has given the env up, or is gone, and Ray ends this process
        with contextlib.suppress(Exception):
            _rows[0].close()
        end_children()


def _step(line: Wire, sent: Sequence[tuple[IntArray, Tree]]) -> None:
    """Poll with some actions, and answer."""
    rows, message = _rows[0], b""
    known = len(rows.spaces), len(rows.agents)
    try:
        for slots, actions in sent:
            rows.send_actions(slots, actions)
        told = _told(rows.poll())
        _unsent[:] = [told]
        if known == (len(told.spaces), len(told.agents)):
            message = wire.packed_answer(told.steps, told.env_steps, told.health)
    except wire.UnsendableError:
        pass
    except Exception as error:
        _unsent[:] = [error]
    line.send(message)


@_safely
def unsent(actor: Any) -> Told:
    """What the connection could not carry: an answer, or what the env raised."""
    (told,) = _unsent
    if isinstance(told, Exception):
        raise told
    return told


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
