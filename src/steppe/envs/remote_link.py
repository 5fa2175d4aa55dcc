"""An env in a Ray actor, as the run sees it: it is asked for a step, and answers some time later."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from steppe.containers import copied
from steppe.envs import remote_process as process
from steppe.envs import wire
from steppe.envs.context import EnvContext
from steppe.errors import EnvError
from steppe.processes import Group, end_group, unpacked
from steppe.types import IntArray, State, Tree

_PATIENCE_S = 10.0
"""How long an env's process is given to connect, and Ray to say why one has ended."""

_OR = "build the algorithm anew, and restore a checkpoint, or set on_env_error='restart'"
_CUT = f"the connection to it was lost: {{}}; {_OR}"
_ENDED = (
    f"it was ended from outside, ran out of memory, or the env's own code ended it; {_OR}. Ray says: {{}}"
)
_LATE = (
    "a step or reset takes longer than env_step_timeout={:g} s, and its process was ended; "
    f"give it more time, or {_OR.partition('or ')[2]}"
)

Sent = Sequence[tuple[IntArray, Tree]]
"""Actions, and the env's own slots that they are for."""


@final
class Bell:
    """Readable, for selectors, once any of some Ray references are there."""

    def __init__(self) -> None:
        self._end, self._rope = socket.socketpair()

    def fileno(self) -> int:
        """For selectors."""
        return self._end.fileno()

    def wait_for(self, ref: Any) -> None:
        """Ring once ``ref`` is there."""
        ref.future().add_done_callback(self._ring)

    def _ring(self, _: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            self._rope.send(b"!")

    def heard(self) -> None:
        """Be quiet until it rings again."""
        self._end.recv(1)

    def close(self) -> None:
        """Nobody listens any more."""
        self._end.close()
        self._rope.close()


@dataclass(frozen=True, slots=True)
class Plan:
    """How one env is made in an actor.

    Attributes:
        ray: the module.
        name: of the env, for messages.
        actor: makes the actor.
        creator: packed; None: the actor is the env.
        limits: of :func:`steppe.envs.registry.build`.
        context: of the env.
        host: that the run is on.
    """

    ray: Any
    name: str
    actor: Callable[[EnvContext], Any]
    creator: bytes | None
    limits: Mapping[str, Any]
    context: EnvContext
    host: str

    @property
    def env(self) -> int:
        """Its vector index."""
        return self.context.vector_index


@final
class Opening:
    """An env that is being made.

    Args:
        plan: how.
        state: that its adapter begins with.
    """

    def __init__(self, plan: Plan, state: State) -> None:
        self._plan, self._bell = plan, Bell()
        self._actor = plan.actor(plan.context.copy_with_overrides(copied(dict(plan.context))))
        ask = self._actor.__ray_call__.remote
        self._made = ask(process.open_env, plan.creator, plan.limits, plan.context, state)
        self._door = ask(process.listen, None if plan.creator is None else plan.host)
        self._bell.wait_for(self._door)

    def fileno(self) -> int:
        """Readable once it is made, or was not."""
        return self._bell.fileno()

    def done(self) -> tuple[Link, process.Told] | None:
        """The env, which is waited for; None where the creator returns an actor.

        Raises:
            EnvError: its process ended.
            Exception: whatever the constructor raised.
        """
        plan = self._plan
        told = answer_of(plan, self._made)
        address, group = answer_of(plan, self._door)
        if told is None:
            return None
        if address is None:
            return CallLink(plan, self._actor, group), told
        return WireLink(plan, self._actor, group, told, address), told

    def settled(self) -> None:
        """Nobody waits for it any more."""
        self._bell.close()

    def end(self) -> None:
        """End its process."""
        self.settled()
        self._plan.ray.kill(self._actor)


@final
class WireLink:
    """An env whose rows come over a connection of their own, past Ray.

    Args:
        plan: of the env.
        actor: that it lives in.
        group: of the env's processes.
        told: what it said when it was made.
        address: where its process listens.
    """

    def __init__(
        self, plan: Plan, actor: Any, group: Group, told: process.Told, address: tuple[str, int]
    ) -> None:
        self._plan, self._actor, self._group, self._newest = plan, actor, group, told
        self._user = process.RemoteEnv(self.between_steps)
        self._token, self._lock = secrets.token_bytes(wire.TOKEN_SIZE), threading.Lock()
        self._line = wire.dial(address, self._token, _PATIENCE_S)
        self._actor.__ray_call__.remote(process.serve, self._token)

    def fileno(self) -> int:
        """Of the connection."""
        return self._line.fileno()

    def ask(self, sent: Sent) -> None:
        """Send actions, and poll."""
        message = wire.packed(list(sent))
        with self._lock, contextlib.suppress(OSError):  # told() says why it is gone
            self._line.send(message)

    def told(self) -> process.Told | None:
        """What was asked for; None if it has not come as a whole yet.

        Raises:
            EnvError: the env's process ended, or the env broke its contract.
            Exception: whatever the env raised.
        """
        try:
            message = self._line.receive(wait=False)
        except OSError as error:
            self._answer(process.unsent)  # Ray's word on why its process ended
            raise failure(self._plan, "E501", _CUT.format(error)) from None
        if message is None:
            return None
        if message:
            steps, env_steps, health = wire.unpacked_answer(message)
            self._newest = self._newest._replace(steps=steps, env_steps=env_steps, health=health)
        else:
            self._newest = self._answer(process.unsent)
        return self._newest

    def _answer(self, function: Callable[..., Any]) -> Any:
        return answer_of(self._plan, self.between_steps(function), _PATIENCE_S)

    def between_steps(self, function: Callable[..., Any], *args: Any) -> Any:
        """Let the env's process leave the connection for one call; a Ray reference to its result."""
        with self._lock:
            with contextlib.suppress(OSError):
                self._line.send(b"")
            result = self._actor.__ray_call__.remote(function, *args)
            self._actor.__ray_call__.remote(process.serve, self._token)
        return result

    def user(self) -> process.RemoteEnv:
        """Its methods are called between steps."""
        return self._user

    def end(self) -> None:
        """End the env's process, and those that it has started."""
        self._line.close()
        self._plan.ray.kill(self._actor)
        end_group(self._plan.ray, self._group)


@final
class CallLink:
    """An env in an actor of the user's own, whose methods they call when they like: Ray's calls step it.

    Args:
        plan: of the env.
        actor: that is the env.
        group: of the env's processes.
    """

    def __init__(self, plan: Plan, actor: Any, group: Group) -> None:
        self._plan, self._actor, self._group = plan, actor, group
        self._bell, self._owed = Bell(), None

    def fileno(self) -> int:
        """Readable once a call has ended."""
        return self._bell.fileno()

    def ask(self, sent: Sent) -> None:
        """Send actions, and poll."""
        self._owed = self._actor.__ray_call__.remote(process.poll, sent)
        self._bell.wait_for(self._owed)

    def told(self) -> Any:
        """What was asked for; errors are those of a :class:`WireLink`."""
        self._bell.heard()
        return answer_of(self._plan, self._owed)

    def between_steps(self, function: Callable[..., Any], *args: Any) -> Any:
        """The actor does one thing at a time."""
        return self._actor.__ray_call__.remote(function, *args)

    def user(self) -> Any:
        """The handle that they have made."""
        return self._actor

    def end(self) -> None:
        """End the env's process, and those that it has started."""
        self._bell.close()
        self._plan.ray.kill(self._actor)
        end_group(self._plan.ray, self._group)


Link = WireLink | CallLink
"""What a run has of one env; readable, for selectors, once ``told`` has something to do."""


def answer_of(plan: Plan, ref: Any, timeout: float | None = None) -> Any:
    """What the process of an env answered.

    Raises:
        EnvError: it ended, or does not answer, or the env broke its contract.
        Exception: whatever the env raised.
    """
    try:
        answer, failed = plan.ray.get(ref, timeout=timeout)
    except (plan.ray.exceptions.RayActorError, plan.ray.exceptions.GetTimeoutError) as error:
        word = str(error).strip().rpartition("\n")[2].partition(" Some common causes")[0]
        raise failure(plan, "E501", _ENDED.format(word)) from None
    if failed is not None:
        raise unpacked(failed, f"env {plan.env}")
    return answer


def late(plan: Plan, timeout: float) -> EnvError:
    """The error about an env that has not stepped in time."""
    return failure(plan, "E502", _LATE.format(timeout))


def failure(plan: Plan, code: str, text: str) -> EnvError:
    """An error about the process of an env; whoever owns it says at which episode."""
    return EnvError(code, text, env_class=plan.name, runner=plan.context.worker_index, env=plan.env)
