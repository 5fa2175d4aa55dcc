"""Runners in processes of their own, which Ray starts, on this machine or on others."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import cloudpickle
import gymnasium

from steppe.config import AlgorithmConfig
from steppe.config.messages import show_messages
from steppe.envs import registry
from steppe.errors import ConfigError, RunnerError
from steppe.processes import enter, imported_ray, leave, packed, unpacked
from steppe.runners.many import Crew, Worker

if TYPE_CHECKING:
    import ray
    from ray.util.placement_group import PlacementGroup

_PATIENCE_S = 8.0
"""How long Ray is given to find room for the runners, and the runners to close their envs."""


@final
class RayCrew(Crew):
    """Workers that are Ray actors.

    Raises:
        ConfigError: Ray is missing, or has too little to give; or the config cannot be sent.
    """

    def __init__(self, config: AlgorithmConfig) -> None:
        made = packed_config(config)
        self._ray = imported_ray(
            "num_env_runners above 0",
            "num_env_runners=0 samples in this process, and so does local_mode=True, one runner after "
            "the other",
        )
        self._ours = enter(self._ray, config.ray_address)
        self._actors: list[Any] = []
        self._owed: list[ray.ObjectRef[Any]] = []
        self._room: PlacementGroup | None = None
        try:
            self._hire(config)
            self.ask_each("make", [(made, i + 1) for i in range(len(self._actors))])
        except BaseException:
            self.close()
            raise

    def _hire(self, config: AlgorithmConfig) -> None:
        """Start the actors, once there is room for all of them."""
        needs = {"CPU": config.num_cpus_per_env_runner, "GPU": config.num_gpus_per_env_runner}
        needs = {name: n for name, n in (needs | config.custom_resources_per_env_runner).items() if n}
        options: dict[str, Any] = {
            "num_cpus": needs.pop("CPU", 0),
            "num_gpus": needs.pop("GPU", 0),
            "resources": needs,
        }
        bundle = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **needs}
        bundle = {name: n for name, n in bundle.items() if n}
        places: list[dict[str, Any]] = [{}] * config.num_env_runners
        if bundle:
            places = self._reserve(config, bundle)
        actor = self._ray.remote(Process)
        cpu_only = not options["num_gpus"]
        for place in places:
            made = actor.options(**options, **place).remote(str(Path.cwd()), cpu_only=cpu_only)
            self._actors.append(made)

    def _reserve(self, config: AlgorithmConfig, bundle: dict[str, float]) -> list[dict[str, Any]]:
        """Room for all of the runners or for none, which would else wait for each other for ever."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        runners = config.num_env_runners
        self._room = placement_group([dict(bundle) for _ in range(runners)])
        if not self._room.wait(_PATIENCE_S):
            free = self._ray.available_resources()
            wanted = ", ".join(
                f"{n * runners:g} {name} ({free.get(name, 0):g} free)" for name, n in bundle.items()
            )
            raise ConfigError(
                f"{config.spelt('num_env_runners')}: Ray has no room for so many runners, which need "
                f"{wanted}: ask for fewer, for less each (num_cpus_per_env_runner=0.5), or for a larger Ray "
                "(ray_address); local_mode=True needs none"
            )
        return [
            {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._room, index)}
            for index in range(runners)
        ]

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What each of them answers, in their order."""
        return self._answers(self._sent(method, arguments))

    def ask_each(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """The same, with one argument for each."""
        pairs = zip(self._actors, arguments, strict=True)
        return self._answers([actor.call.remote(method, argument) for actor, argument in pairs])

    def tell(self, method: str, *arguments: Any) -> None:
        """Let each of them do something; it is not waited for."""
        self._owed += self._sent(method, arguments)

    def _sent(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        shared = [self._ray.put(argument) for argument in arguments]  # once, for all of them
        return [actor.call.remote(method, *shared) for actor in self._actors]

    def _answers(self, refs: list[Any]) -> list[Any]:
        owed, self._owed = self._owed, []
        try:
            told = self._ray.get(owed + refs)
        except self._ray.exceptions.RayActorError as error:
            raise RunnerError(
                "the process of a runner died: it was ended from outside, ran out of memory, or its env "
                f"ended it. Build the algorithm anew, and restore a checkpoint. Ray says: {error}"
            ) from error
        for _, failed in told:
            if failed is not None:
                raise unpacked(failed, "a runner")
        return [answer for answer, _ in told[len(owed) :]]

    def close(self) -> None:
        """Close their envs, end their processes, and leave Ray."""
        actors, self._actors = self._actors, []
        room, self._room = self._room, None
        try:
            closing = [actor.call.remote("close") for actor in actors]
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=_PATIENCE_S)
        finally:
            for actor in actors:
                self._ray.kill(actor)
            if room is not None:
                self._ray.util.remove_placement_group(room)
            if self._ours:
                self._ours = False
                leave(self._ray)


@final
class Process:
    """What an actor is: a worker, and how its errors get out.

    Args:
        folder: that the program works in.
        cpu_only: whether JAX is to leave accelerators alone.
    """

    def __init__(self, folder: str, *, cpu_only: bool) -> None:
        if cpu_only:  # before JAX is loaded; it would take memory of an accelerator that it sees
            os.environ["JAX_PLATFORMS"] = "cpu"
        if Path(folder).is_dir():
            os.chdir(folder)
        self._worker: Worker | None = None

    def call(self, method: str, *arguments: Any) -> tuple[Any, bytes | None]:
        """What the worker answers, or what it raised."""
        try:
            if method == "make":
                ((made, index),) = arguments
                self._worker = _made(made, index)
                return None, None
            if self._worker is None:  # it could not be made: there is nothing to close
                return None, None
            return getattr(self._worker, method)(*arguments), None
        except Exception as error:
            return None, packed(error)


def _made(made: bytes, index: int) -> Worker:
    """The worker ``index`` of the run that :func:`packed_config` packed."""
    from steppe.learning.startup import prepare_jax

    config = unpacked_config(made)
    prepare_jax()
    return Worker(config, index)


def unpacked_config(made: bytes) -> AlgorithmConfig:
    """What :func:`packed_config` packed, in a process that knows of no env yet."""
    config: AlgorithmConfig
    config, creators, spec = pickle.loads(made)
    for name, creator in creators.items():
        registry.register_env(name, pickle.loads(creator))
    if spec is not None:
        gymnasium.registry.setdefault(spec.id, spec)
    show_messages(config.log_level)
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
        made: bytes = cloudpickle.dumps((config, creators, spec))
    except Exception as error:
        raise _not_sent("the config", error) from error
    return made


def _not_sent(what: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{what} holds something that cannot be sent to the runners' processes: {error}. Make it inside the "
        "env's constructor, or use local_mode=True"
    )
