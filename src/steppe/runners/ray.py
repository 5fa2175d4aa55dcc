"""Runners in processes of their own, which Ray starts, on this machine or on others."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import cloudpickle
import gymnasium

from steppe.config import AlgorithmConfig
from steppe.envs import registry
from steppe.errors import ConfigError
from steppe.processes import (
    end_group,
    enter,
    imported_ray,
    leave,
    node_address,
    own_group,
    packed,
    sent_from,
    unpacked,
    versions,
)
from steppe.runners.beats import Beat, Listener, Where, beat, often
from steppe.runners.workers import Crew, Hire, Hired, LostError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

logger = logging.getLogger("steppe")

Answer = tuple[Any, bytes | None, list[dict[str, Any]]]
"""What was asked for, or what was raised instead; and what was said meanwhile."""
_PATIENCE_S = 8.0
"""How long Ray is given to find room for the runners, and the runners to close their envs."""
_SMALL = 100_000
"""Bytes that cost less to send again than to fetch."""


class Sent(NamedTuple):
    """A pickled argument."""

    data: bytes


@final
class RayCrew(Crew):
    """Workers that are Ray actors.

    Raises:
        ConfigError: Ray is missing, or has too little to give; or the config cannot be sent.
    """

    def __init__(self, config: AlgorithmConfig, hire: Hire, setting: str) -> None:
        self._kind, self._setting = hire, setting
        self._made = packed_config(config)
        self._ray = imported_ray(
            f"{setting} above 0",
            f"{setting}=0 does it in this process, and so does local_mode=True, one runner after the other",
        )
        self._ours = enter(self._ray, config.ray_address)
        self.size = getattr(config, setting)
        self._actors, self._making = list[Any](), list[Any]()
        self._standing_by: dict[int, Any] = {}
        self._room: PlacementGroup | None = None
        self._listener: Listener | None = None
        try:
            self._listener = Listener(node_address(), often(config.env_step_timeout))
            self._rooms = self._find_room(config)
            for place in range(self.size):
                self._hire(place, 0)
            for ticket in self._making:
                self.answer(ticket)
        except BaseException:
            self.close()
            raise

    def _hire(self, place: int, incarnation: int) -> None:
        """Give a place to a new actor, and let it make its worker."""
        assert self._listener is not None
        actor = self._standing_by.pop(place, None) or self._begun(self._rooms[place])
        self._actors[place : place + 1] = [actor]
        told = actor.make.remote(self._kind, place, incarnation, self._listener.where)
        self._making[place : place + 1] = [told]

    def _begun(self, options: Mapping[str, Any]) -> Any:
        actor = self._ray.remote(Process).options(**options)
        return actor.remote(str(Path.cwd()), sys.path, self._made, cpu_only=not options.get("num_gpus"))

    def _find_room(self, config: AlgorithmConfig) -> list[dict[str, Any]]:
        """By place, what Ray is told of its actor, once there is room for all of them."""
        needs = {"CPU": config.num_cpus_per_env_runner, "GPU": config.num_gpus_per_env_runner}
        bundle = {name: n for name, n in (needs | config.custom_resources_per_env_runner).items() if n}
        options = {
            "num_cpus": bundle.get("CPU", 0),
            "num_gpus": bundle.get("GPU", 0),
            "resources": {name: n for name, n in bundle.items() if name not in needs},
        }
        rooms = self._reserve(config, bundle) if bundle else [{}] * self.size
        return [options | room for room in rooms]

    def _reserve(self, config: AlgorithmConfig, bundle: dict[str, float]) -> list[dict[str, Any]]:
        """Room for all of the runners or for none, which would else wait for each other for ever."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        runners = self.size
        self._room = placement_group([dict(bundle) for _ in range(runners)])
        if not self._room.wait(_PATIENCE_S):
            free = self._ray.available_resources()
            wanted = ", ".join(
                f"{n * runners:g} {name} ({free.get(name, 0):g} free)" for name, n in bundle.items()
            )
            raise ConfigError(
                f"{config.spelt(self._setting)}: Ray has no room for so many runners, which need "
                f"{wanted}: ask for fewer, for less each (num_cpus_per_env_runner=0.5), or for a larger Ray "
                "(ray_address); local_mode=True needs none"
            )
        return [
            {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._room, index)}
            for index in range(runners)
        ]

    def shared(self, value: Any) -> Any:
        """Pickled once; what is small goes along with the call, and the rest is kept by Ray."""
        sent = Sent(cloudpickle.dumps(value))
        return sent if len(sent.data) < _SMALL else self._ray.put(sent)

    def send(self, place: int, method: str, *arguments: Any) -> Any:
        """Let one of them do something."""
        return self._actors[place].call.remote(method, *arguments)

    def wait(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """Those with an answer."""
        waiting = list(tickets)
        if not self._ray.wait(waiting, num_returns=1, timeout=timeout)[0]:
            return []
        done: list[Any] = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
        return done

    def answer(self, ticket: Any) -> Any:
        """What came of it."""
        try:
            answer, failed, said = self._ray.get(ticket)
        except self._ray.exceptions.RayTaskError:
            raise  # what it was sent could not be read there
        except self._ray.exceptions.RayError as error:
            raise LostError(
                "the process of a runner died: it was ended from outside, ran out of memory, its env ended "
                f"it, or its host lacks steppe. Ray says: {error}"
            ) from error
        for record in said:
            logger.handle(logging.makeLogRecord(record))
        if failed is not None:
            raise unpacked(failed, "a runner")
        return answer

    def progress(self) -> Mapping[int, Beat]:
        """The newest beats."""
        return {} if self._listener is None else self._listener.heard()

    def stand_by(self, place: int) -> None:
        """Begin a process in the room of another, which holds its share of the machine."""
        if place not in self._standing_by and not self._rooms[place]["num_gpus"]:
            self._standing_by[place] = self._begun(self._rooms[place] | {"num_cpus": 0, "resources": {}})

    def renew(self, place: int, incarnation: int) -> None:
        """End a process, and put another in its place."""
        self._end(self._actors[place], self._making[place])
        self._hire(place, incarnation)

    def _end(self, actor: Any, making: Any) -> None:
        """End a process, and what its envs have started, such as a simulator."""
        with contextlib.suppress(self._ray.exceptions.RayError):  # it never came so far
            group, *_ = self._ray.get(making, timeout=0)
            end_group(self._ray, group)
        self._ray.kill(actor)

    def close(self) -> None:
        """Close their envs, end their processes, and leave Ray."""
        actors = list(zip(self._actors, self._making, strict=True))
        self._actors, self._making = [], []
        room, self._room = self._room, None
        try:
            closing = [actor.call.remote("close") for actor, _ in actors]
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=_PATIENCE_S)
        finally:
            for actor, making in actors:
                self._end(actor, making)
            while self._standing_by:
                self._ray.kill(self._standing_by.popitem()[1])
            if room is not None:
                self._ray.util.remove_placement_group(room)
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            if self._ours:
                self._ours = False
                leave(self._ray)


@final
class Process:
    """What an actor is: a worker, and how its errors get out.

    Args:
        folder: that the program works in.
        path: where it looks for modules.
        made: the config, as :func:`packed_config` packed it.
        cpu_only: whether JAX is to leave accelerators alone.
    """

    def __init__(self, folder: str, path: Sequence[str], made: bytes, *, cpu_only: bool) -> None:
        if cpu_only:  # before JAX is loaded; it would take memory of an accelerator that it sees
            os.environ["JAX_PLATFORMS"] = "cpu"
        if Path(folder).is_dir():
            os.chdir(folder)
        sys.path += [place for place in path if place not in sys.path]
        self._worker: Hired | None = None
        self._failed: bytes | None = None
        self._outbox = _Outbox()
        logger.addHandler(self._outbox)
        self._group = own_group()
        with self._trying():
            from steppe.learning.startup import prepare_jax

            self._config = unpacked_config(made)
            prepare_jax()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """What fails here is the answer to whatever is asked."""
        try:
            yield
        except Exception as error:
            self._failed = self._failed or packed(error)

    def make(self, hire: Hire, place: int, incarnation: int, where: Where) -> Answer:
        """Make the worker of a place, and let it tell how far it is."""
        with self._trying():
            worker = self._worker = hire(self._config, place + 1, incarnation)
            beat(where, place, incarnation, lambda: worker.executed)
        return self._group, self._failed, self._outbox.taken()

    def call(self, method: str, *arguments: Any) -> Answer:
        """What the worker answers, or what it raised; if it could not be made, why."""
        answer, failed = None, self._failed
        try:
            if self._worker is not None:
                arguments = tuple(pickle.loads(a.data) if isinstance(a, Sent) else a for a in arguments)
                answer, failed = getattr(self._worker, method)(*arguments), None
        except Exception as error:
            failed = packed(error)
        return answer, failed, self._outbox.taken()


@final
class _Outbox(logging.Handler):
    """Keeps messages of this process until they are sent to the program that was started."""

    def __init__(self) -> None:
        super().__init__()
        self._said: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        kept = ("name", "levelno", "levelname", "created", "worker_index", "vector_index")
        own = {name: value for name, value in vars(record).items() if name in kept}
        text = self.format(record)  # with the traceback, if there is one, which cannot be sent
        self._said.append({**own, "msg": text, "args": ()})

    def taken(self) -> list[dict[str, Any]]:
        """What was said since the last time."""
        said, self._said = self._said, []
        return said


def unpacked_config(made: bytes) -> AlgorithmConfig:
    """What :func:`packed_config` packed, in a process that knows of no env yet.

    Raises:
        ConfigError: this host has other versions, or lacks the code of the env.
    """
    config: AlgorithmConfig
    theirs, inner = pickle.loads(made)
    with sent_from(theirs):
        config, creators, spec = pickle.loads(inner)
        for name, creator in creators.items():
            registry.register_env(name, pickle.loads(creator))
        if spec is not None:
            gymnasium.registry.setdefault(spec.id, spec)
        if config.env is not None:
            registry.creator_of(config.env)  # a name may say what to import
    logger.setLevel(config.log_level)
    return config


def packed_config(config: AlgorithmConfig) -> bytes:
    """The config, and what its env's name means in this process.

    Raises:
        ConfigError: it holds what cannot be sent to another process.
    """
    creators = {}
    for name, creator in registry.REGISTERED.items():
        try:
            creators[name] = cloudpickle.dumps(creator)
        except Exception as error:
            if name == config.env:
                raise _not_sent(f"the creator of env {name!r}", error) from error
    try:
        spec = gymnasium.registry.get(config.env) if isinstance(config.env, str) else None
        inner = cloudpickle.dumps((config, creators, spec))
    except Exception as error:
        raise _not_sent("the config", error) from error
    return pickle.dumps((versions(), inner))  # versions can be read in any version


def _not_sent(what: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{what} holds something that cannot be sent to the runners' processes: {error}. Make it inside the "
        "env's constructor, or use local_mode=True"
    )
