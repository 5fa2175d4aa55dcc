"""Processes that Ray starts: entering it and leaving it, and errors that come out of them."""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import steppe
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
        ConfigError: there is none at ``address``, or it does not let this program in.
    """
    global _users
    if ray.is_initialized() and not _users:
        return False
    if not _users:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
        # Its processes do this program's work, and are not to wait for others on this machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Fragments of a megabyte come 2 ms sooner past Ray's store.
        os.environ.setdefault("RAY_max_direct_call_object_size", "1000000")
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        with warnings.catch_warnings():
            # A fork that another program follows at once cannot hang.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            _init(ray, address)
    _users += 1
    return True


def _init(ray: Any, address: str) -> None:
    if address == "local":
        ray.init(address, logging_level="error", log_to_driver=True, include_dashboard=False)
        return
    _check_reachable(ray, address)
    patience = "RAY_gcs_server_port_wait_time_s"
    hurries = patience not in os.environ
    os.environ.setdefault(patience, "5")  # not 20, for one that keeps refusing us
    try:
        ray.init(address, logging_level="error", log_to_driver=True)
    except (OSError, RuntimeError, ValueError) as error:  # another token, Python or Ray, or none at all
        reason = str(error.__cause__ or error).strip().rpartition("Error: ")[2]
        raise ConfigError(
            f"the Ray at ray_address={address!r} cannot be joined: {' '.join(reason.split())}"
        ) from error
    finally:
        if hurries:
            del os.environ[patience]


def _check_reachable(ray: Any, address: str) -> None:
    """Say at once what Ray itself would wait for, a minute or several."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray answers at ray_address={address!r}: start one there (ray start --head), or leave "
            f"the setting, and RAY_ADDRESS, out, to have one on this machine: {error}"
        ) from error
    with contextlib.suppress(AttributeError):  # Ray does not promise to keep that name
        if "://" not in address and not ray._private.services.find_node_ids():
            raise ConfigError(
                f"ray_address={address!r}: host {platform.node()!r} is not one of that Ray's: join it (ray "
                f"start --address={address}), or run the program on one that has"
            )


def leave(ray: Any) -> None:
    """The Ray of ours is ended by the last who leaves it; one that was joined goes on without us."""
    global _users
    _users -= 1
    if not _users:
        ray.shutdown()


def node_address() -> str:
    """Of this host, as Ray's others know it."""
    import ray

    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


class Group(NamedTuple):
    """A process on a node of Ray, and all that it has started; number 0 stands for nothing."""

    node: str
    number: int


def own_group() -> Group:
    """Let this process, an actor's, be the first of a group of its own, which can be ended as one."""
    import ray

    with contextlib.suppress(OSError):  # it is so already
        os.setpgid(0, 0)
    leads = os.getpgid(0) == os.getpid()
    return Group(ray.get_runtime_context().get_node_id(), os.getpid() if leads else 0)


def end_group(ray: Any, group: Group) -> None:
    """End what the process of an actor has started, also if that is gone; it is not waited for.

    The process itself is left to ``ray.kill``: Ray takes another end for an accident, and says so.
    """
    if group.node == ray.get_runtime_context().get_node_id():
        _end_members(group.number)
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(group.node, soft=False)
    ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_end_members).remote(group.number)


def end_children() -> None:
    """End what this process has started since :func:`own_group`."""
    if os.getpgid(0) == os.getpid():
        _end_members(os.getpid())


def _end_members(group: int) -> None:
    """End the processes of a group of this host, but not its first one."""
    if not group:
        return
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended by itself, or is somebody else's
            own = int(stat.read_text().rpartition(")")[2].split()[2])
            if own == group and stat.parent.name != str(group):
                os.kill(int(stat.parent.name), signal.SIGKILL)


def versions() -> dict[str, str]:
    """The host of this process, and what has to be the same on all hosts of a run."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"host": platform.node(), "Python": python, "steppe": steppe.__version__}


@contextlib.contextmanager
def sent_from(theirs: Mapping[str, str]) -> Iterator[None]:
    """Around code that another process, whose :func:`versions` are ``theirs``, has sent to this one.

    Raises:
        ConfigError: a version is another one here, or the code asks for what only the other host has.
    """
    ours = versions()
    host = ours["host"]
    for name, here in ours.items():
        if name != "host" and here != theirs.get(name):
            raise ConfigError(
                f"host {host!r} has {name} {here}, and {theirs['host']!r}, where the run was started, has "
                f"{theirs.get(name)}: install the same version of {name} on all hosts"
            )
    try:
        yield
    except (ImportError, ConfigError) as error:
        if host == theirs["host"]:
            raise
        raise ConfigError(
            f"host {host!r} lacks what is on {theirs['host']!r}: {error}. Install that "
            "code as a package on all hosts, keep it at the same path on all of them, or let Ray carry the "
            "program's folder: ray.init(address=..., runtime_env={'working_dir': '.'}) before build()"
        ) from error


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
