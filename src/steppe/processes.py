"""Processes that Ray starts: entering it and leaving it, and errors that come out of them."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
import warnings
from types import FunctionType
from typing import Any

from steppe.errors import ConfigError, RunnerError

_users = 0
"""Who in this process shares a Ray that was started, or joined, for them."""


def imported_ray(setting: str, without: str) -> Any:
    """Ray, if it is there.

    Raises:
        ConfigError: it is not; the message says what wants it, and what there is ``without`` it.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs Ray, which is not installed: pip install 'steppe[ray]'; {without}"
        ) from error
    return ray


def enter(ray: Any, address: str | None) -> bool:
    """Start a Ray, or join one, unless the program has done so; returns whether it is ours to leave.

    Raises:
        ConfigError: there is none at ``address``.
    """
    global _users
    if ray.is_initialized() and not _users:
        return False
    if not _users:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        options = {"include_dashboard": False} if address == "local" else {}
        host, _, port = address.rpartition("://")[2].rpartition(":")
        try:
            if port.isdigit():  # Ray itself would wait for minutes where nobody listens
                socket.create_connection((host, int(port)), timeout=5).close()
            with warnings.catch_warnings():
                # A fork that another program follows at once cannot hang.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(address, logging_level="error", log_to_driver=True, **options)
        except OSError as error:
            raise ConfigError(
                f"no Ray answers at ray_address={address!r}: start one there (ray start --head), or leave "
                f"the setting, and RAY_ADDRESS, out, to have one on this machine: {error}"
            ) from error
    _users += 1
    return True


def leave(ray: Any) -> None:
    """The Ray of ours is ended by the last who leaves it; one that was joined goes on without us."""
    global _users
    _users -= 1
    if not _users:
        ray.shutdown()


def packed(error: Exception) -> bytes:
    """An exception for another process, with the text of its traceback; if it cannot be sent, its words."""
    import cloudpickle  # few processes raise into another

    text = "".join(traceback.format_exception(error))
    try:
        made: tuple[Any, ...] = tuple(error.__reduce__())  # what makes it, of what, perhaps its attributes
        result: bytes = cloudpickle.dumps((text, *made))
        unpacked(result, "")
    except Exception:
        result = cloudpickle.dumps((text, RunnerError, (f"{type(error).__name__}: {error}",)))
    return result


def unpacked(failed: bytes, whose: str) -> BaseException:
    """What :func:`packed` packed; a note says in whose process it was raised, and where in the code."""
    text, make, arguments, *attributes = pickle.loads(failed)
    if isinstance(make, type) and isinstance(make.__init__, FunctionType):  # type: ignore[misc]
        error: BaseException = make.__new__(make, *arguments)  # __init__ may ask for more than it kept
    else:
        error = make(*arguments)
    for own in attributes:
        vars(error).update(own)
    error.add_note(f"steppe: raised in the process of {whose}:\n{text.rstrip()}")
    return error
