"""An env in a Ray actor, as the run sees it: it is asked for a step, and answers some time later."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

from steppe.envs import remote_process as process
from steppe.envs import wire
from steppe.errors import EnvError
from steppe.processes import unpacked
from steppe.types import IntArray, Tree

_PATIENCE_S = 10.0
"""How long an env's process is given to connect, and Ray to say why one has ended."""

_CUT = "the connection to it was lost: {}; build the algorithm anew, and restore a checkpoint"

Sent = Sequence[tuple[IntArray, Tree]]
"""Actions, and the env's own slots that they are for."""


class Link(ABC):
    """What a run has of one env; readable, for selectors, once :meth:`told` has something to do."""

    @abstractmethod
    def fileno(self) -> int:
        """For selectors."""

    @abstractmethod
    def ask(self, sent: Sent) -> None:
        """Send actions, and poll."""

    @abstractmethod
    def told(self) -> process.Told | None:
        """What was asked for; None if it has not come as a whole yet.

        Raises:
            EnvError: the env's process ended, or the env broke its contract.
            Exception: whatever the env raised.
        """

    @abstractmethod
    def between_steps(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the env's process while the env does not step; a Ray reference to the result."""

    @abstractmethod
    def end(self) -> None:
        """End the env's process, which answers nobody any more."""


@final
class WireLink(Link):
    """An env whose rows come over a connection of their own, past Ray.

    Args:
        ray: the module.
        actor: that the env lives in.
        name: of the env, for messages.
        env: its vector index.
        told: what it said when it was made.
        address: where its process listens.
    """

    def __init__(
        self, ray: Any, actor: Any, name: str, env: int, told: process.Told, address: tuple[str, int]
    ) -> None:
        self._ray, self._actor, self._name, self._env, self._newest = ray, actor, name, env, told
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
        """What was asked for; None if it has not come as a whole yet."""
        try:
            message = self._line.receive(wait=False)
        except OSError as error:
            self._answer(process.unsent)  # the env's own exception, or Ray's word on why its process ended
            raise EnvError("E501", _CUT.format(error), env_class=self._name, env=self._env) from None
        if message is None:
            return None
        if message:
            self._newest = self._newest._replace(**wire.unpacked_answer(message)._asdict())
        else:
            self._newest = self._answer(process.unsent)
        return self._newest

    def _answer(self, function: Callable[..., Any]) -> Any:
        return answer_of(self._ray, self._name, self._env, self.between_steps(function), _PATIENCE_S)

    def between_steps(self, function: Callable[..., Any], *args: Any) -> Any:
        """Let the env's process leave the connection for one call."""
        with self._lock:
            with contextlib.suppress(OSError):
                self._line.send(b"")
            result = self._actor.__ray_call__.remote(function, *args)
            self._actor.__ray_call__.remote(process.serve, self._token)
        return result

    def end(self) -> None:
        """End the env's process."""
        self._line.close()
        self._ray.kill(self._actor)


@final
class CallLink(Link):
    """An env in an actor of the user's own, whose methods they call when they like: Ray's calls step it.

    Args:
        ray: the module.
        actor: that is the env.
        name: of the env, for messages.
        env: its vector index.
    """

    def __init__(self, ray: Any, actor: Any, name: str, env: int) -> None:
        self._ray, self._actor, self._name, self._env = ray, actor, name, env
        self._bell, self._rope = socket.socketpair()
        self._owed: Any = None

    def fileno(self) -> int:
        """Readable once a call has ended."""
        return self._bell.fileno()

    def ask(self, sent: Sent) -> None:
        """Send actions, and poll."""
        self._owed = self._actor.__ray_call__.remote(process.poll, sent)
        self._owed.future().add_done_callback(self._ring)

    def _ring(self, _: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            self._rope.send(b"!")

    def told(self) -> process.Told | None:
        """What was asked for; None if it has not come yet."""
        self._bell.recv(1)
        told: process.Told = answer_of(self._ray, self._name, self._env, self._owed)
        return told

    def between_steps(self, function: Callable[..., Any], *args: Any) -> Any:
        """The actor does one thing at a time."""
        return self._actor.__ray_call__.remote(function, *args)

    def end(self) -> None:
        """End the env's process."""
        self._bell.close()
        self._rope.close()
        self._ray.kill(self._actor)


def answer_of(ray: Any, name: str, env: int, ref: Any, timeout: float | None = None) -> Any:
    """What the process of an env answered.

    Raises:
        EnvError: it ended, or does not answer, or the env broke its contract.
        Exception: whatever the env raised.
    """
    try:
        answer, failed = ray.get(ref, timeout=timeout)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        text = (
            "it was ended from outside, ran out of memory, or the env's own code ended it; build the "
            f"algorithm anew, and restore a checkpoint. Ray says: {error}"
        )
        raise EnvError("E501", text, env_class=name, env=env) from None
    if failed is not None:
        raise _of_env(unpacked(failed, f"env {env}"), env)
    return answer


def _of_env(error: BaseException, env: int) -> BaseException:
    """An error about env ``env``, which was called 0 in its process."""
    told = [note.replace(", env 0, episode ", f", env {env}, episode ") for note in error.__notes__]
    if isinstance(error, EnvError):
        own = ("code", "text", "__notes__")
        about = {name: value for name, value in vars(error).items() if name not in own}
        error = EnvError(error.code, error.text, **about | {"env": env})
    error.__notes__ = told
    return error
