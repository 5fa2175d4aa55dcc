"""Envs in processes of their own, each in a Ray actor, as an :class:`~steppe.types.AsyncEnv`."""

from __future__ import annotations

import contextlib
import functools
import math
import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import cloudpickle
import gymnasium
import numpy as np

from steppe.containers import copied
from steppe.envs import registry
from steppe.envs import remote_process as process
from steppe.envs.context import EnvContext
from steppe.envs.guards import check_alive
from steppe.envs.remote_link import CallLink, Link, WireLink, answer_of
from steppe.envs.side_by_side import SideBySide
from steppe.errors import CheckpointError, ConfigError
from steppe.processes import enter, imported_ray, leave
from steppe.seeding import env_seed
from steppe.types import IntArray, State, TimeStep, Tree

_PATIENCE_S = 8.0
"""How long envs are given to close."""


def building(wait_ms: float, ray_address: str | None) -> Callable[..., RemoteRows]:
    """:func:`build`, for the envs of one run."""
    return functools.partial(build, wait_ms=wait_ms, ray_address=ray_address)


def build(
    env: Any,
    env_config: Mapping[str, Any] | None = None,
    *,
    num_envs: int,
    run_seed: int,
    wait_ms: float = 0.0,
    ray_address: str | None = None,
    worker_index: int = 0,
    num_workers: int = 0,
    seed_runner: int | None = None,
    created: Callable[[Any, EnvContext], None] | None = None,
    pair_for: Any = None,
    observing: Any = None,
    **limits: Any,
) -> RemoteRows:
    """What :func:`steppe.envs.registry.build` builds, with each env in a process of its own.

    Args:
        env: any spelling of an env of one agent or of many. A creator may return the handle of a Ray actor
            with ``reset`` and ``step``, which is used as it is.
        env_config: as there; so is all that is not named here.
        num_envs: as there.
        run_seed: as there.
        wait_ms: see :class:`RemoteRows`.
        ray_address: the Ray to join; None: that of RAY_ADDRESS or, without, one started here.
        worker_index: as there.
        num_workers: as there.
        seed_runner: as there.
        created: is called with what users have of each env: a ``RemoteEnv``, or their own handle.
        pair_for: is not asked: the envs say their spaces, or the config does.
        observing: None; observations are as the envs return them.
        limits: as there.

    Raises:
        ConfigError: Ray is not installed, the env cannot be sent to another process, it steps many envs at
            once, or the envs' spaces differ.
        Exception: whatever the constructor raised.
    """
    if observing is not None:
        raise ConfigError(
            "observation_fn and add_agent_id do not reach envs in processes of their own: change what an "
            "agent observes in the env itself, or leave out remote_worker_envs"
        )
    ray, name = _ray(), registry.env_name(env)
    place = worker_index if seed_runner is None else seed_runner
    limits |= {"worker_index": worker_index}
    contexts = [
        EnvContext(copied(dict(env_config or {})), worker_index, i, num_workers, True, num_envs)
        for i in range(num_envs)
    ]
    seeds = [env_seed(run_seed, place, i) for i in range(num_envs)]
    plans = list(zip(contexts, seeds, strict=True))
    ours, actors = enter(ray, ray_address), list[Any]()
    try:
        packed, host = _packed_creator(env, name), ray.remote(num_cpus=0)(process.Host)
        actors += [host.remote() for _ in plans]
        told = _asked(ray, name, process.open_env, zip(actors, plans, strict=True), packed, limits)
        if None in told:  # the creator makes actors itself, and they would end with those that made them
            _end(ray, actors, ours=False)
            creator: Any = registry.creator_of(env)
            actors = [creator(context) for context in contexts]
            users: list[Any] = list(actors)
            told = _asked(ray, name, process.open_env, zip(actors, plans, strict=True), None, limits)
            links: list[Link] = [CallLink(ray, actor, name, i) for i, actor in enumerate(actors)]
        else:
            doors = _asked(ray, name, process.listen, [(one, ()) for one in actors], process.node_address())
            lines = zip(actors, told, doors, strict=True)
            links = [WireLink(ray, actor, name, i, *own) for i, (actor, *own) in enumerate(lines)]
            users = [process.RemoteEnv(link.between_steps) for link in links]
        if created is not None:
            for user, context in zip(users, contexts, strict=True):
                created(user, context)
        return RemoteRows(links, users, told, name=name, seeds=seeds, wait_ms=wait_ms, ours=ours)
    except BaseException:
        _end(ray, actors, ours)
        raise


@final
class RemoteRows:
    """Envs in Ray actors; each steps by itself, from the poll after an answer on.

    Slots and the order of rows are those of :class:`~steppe.envs.side_by_side.SideBySide`.

    Args:
        links: to the envs; the adapter owns and ends them.
        users: what users have of them.
        told: what they said when they were made.
        name: of the envs, for messages.
        seeds: one per env.
        wait_ms: 0: a poll ends as soon as one env has stepped, and takes all that have. Above: it waits for
            all, but no longer than this if one has stepped.
        ours: whether Ray is to be left when the envs are closed.

    Raises:
        ConfigError: the spaces of envs of one agent differ.
    """

    steps_together = False

    def __init__(
        self,
        links: Sequence[Link],
        users: Sequence[Any],
        told: Sequence[process.Told],
        *,
        name: str,
        seeds: Sequence[int],
        wait_ms: float,
        ours: bool,
    ) -> None:
        self._ray, self._links, self._users = _ray(), list(links), list(users)
        self._name, self._seeds, self._wait_s, self._ours = name, list(seeds), wait_ms / 1000, ours
        self.num_envs, self.env_steps, self._closed = len(links), 0, False
        self._newest, self._side = list(told), SideBySide(len(links))
        self._selector = selectors.DefaultSelector()
        for i, link in enumerate(links):
            self._selector.register(link, selectors.EVENT_READ, i)
        self._rewind()
        for i, one in enumerate(told):
            self._learn(i, one)
        self._side.check_spaces(name)

    def _rewind(self) -> None:
        """Nothing was asked of any env, and nobody awaits an action."""
        self._failure: BaseException | None = None
        self._started = False
        self._flying = set[int]()  # the envs that were asked, and have not answered yet
        self._side.forget()
        self._sent: list[list[tuple[IntArray, Tree]]] = [[] for _ in self._links]

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Let the envs that were answered step, and wait for one or for all; the first call resets them.

        Raises:
            EnvError: an env returned something that is not in its contract, or its process ended.
            Exception: whatever an env raised, with its traceback as a note.
        """
        check_alive(self._closed, self._failure)
        self._started = True
        try:
            for i, link in enumerate(self._links):
                if i not in self._flying and (self._sent[i] or not self._side.awaits[i]):
                    sent, self._sent[i] = self._sent[i], []
                    self._flying.add(i)
                    link.ask(sent)
            told = self._answered(timeout)
        except BaseException as error:  # a keyboard interrupt, too, leaves answers that nobody took
            self._failure = error
            raise
        for i in sorted(told):
            self._learn(i, told[i])
        return self._side.received({i: told[i].steps for i in sorted(told)})

    def _answered(self, timeout: float | None) -> dict[int, process.Told]:
        """Who has stepped by now: waits for one, or for a while for all."""
        patience = math.inf if timeout is None else timeout
        began, left, told = time.monotonic(), patience, dict[int, process.Told]()
        while self._flying:
            for key, _ in self._selector.select(None if left == math.inf else left):
                if (answer := self._links[key.data].told()) is not None:
                    told[key.data] = answer
                    self._flying.remove(key.data)
            left = min(patience, self._wait_s if told else math.inf) - (time.monotonic() - began)
            if left <= 0:
                break
        return told

    def _learn(self, i: int, told: process.Told) -> None:
        """Keep what an env said of itself."""
        self._side.learn(i, told.spaces, told.agents)
        self.spaces, self.agents = self._side.spaces, self._side.agents
        self.env_steps += max(told.env_steps - self._newest[i].env_steps, 0)
        self._newest[i] = told

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """Answer ``slots``, all of one space pair, with a column of actions; the column is copied.

        Raises:
            ValueError: a slot awaits no action, or the column has another length.
        """
        check_alive(self._closed, self._failure)
        if not self._started:
            raise ValueError("no slot awaits an action yet: poll() first")
        for i, own, column in self._side.answered(slots, actions):
            self._sent[i].append((own, column))

    def pending(self) -> Sequence[TimeStep]:
        """The rows that await an action; envs that are stepping have none."""
        idle = [i for i in range(self.num_envs) if i not in self._flying]
        if not self._started or not idle:
            return []
        told = dict(zip(idle, self._each(process.pending, [()] * len(idle), idle), strict=True))
        return self._side.pending({i: one.steps for i, one in told.items()})

    def _each(self, function: Callable[..., Any], args: Iterable[Any], envs: Sequence[int]) -> list[Any]:
        """What ``function`` answers in the processes of some envs, with the arguments for each."""
        calls = zip(envs, args, strict=True)
        refs = [self._links[i].between_steps(function, *own) for i, own in calls]
        return [answer_of(self._ray, self._name, i, ref) for i, ref in zip(envs, refs, strict=True)]

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``, over all envs."""
        total: Counter[str] = Counter()
        for told in self._newest:
            total.update(told.health)
        return dict(total)

    def get_sub_environments(self) -> list[Any]:
        """By vector index, a ``RemoteEnv``, or the handle that the creator returned."""
        return list(self._users)

    def get_state(self) -> State:
        """All envs at their newest rows; those that are stepping will begin new episodes.

        Raises:
            EnvError: E402, an env's own ``get_state()`` returned what cannot be saved.
            RuntimeError: an env failed, or all were closed.
            ValueError: actions were sent that no poll has used.
        """
        check_alive(self._closed, self._failure)
        if any(self._sent):
            raise ValueError("actions were sent: take the state between a poll and the send that answers it")
        if not self._started:
            return {"started": False, "seeds": list(self._seeds)}
        idle = [i for i in range(self.num_envs) if i not in self._flying]
        states = dict(zip(idle, self._each(process.get_state, [()] * len(idle), idle), strict=True))
        return {
            "started": True,
            "seeds": list(self._seeds),
            "env_steps": self.env_steps,
            "health": [dict(told.health) for told in self._newest],
            "envs": [states.get(i) for i in range(self.num_envs)],
            "awaits": [sorted(slots) for slots in self._side.awaits],
        }

    def set_state(self, state: State) -> list[str]:
        """Bring every env back, as it would be in this process; those that were stepping begin anew.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        if (count := len(state["seeds"])) != self.num_envs:
            raise CheckpointError(f"the state is of {count} envs, here are {self.num_envs}")
        while self._flying:
            with contextlib.suppress(Exception):  # what they were at is of no interest any more
                self._answered(None)
        self._rewind()
        self._seeds, every = list(state["seeds"]), range(self.num_envs)
        if not state["started"]:
            before = [({"started": False, "seeds": [seed]}, False) for seed in self._seeds]
            self._each(process.set_state, before, every)
            return []
        plans, notes = [], []
        for i, own in enumerate(state["envs"]):
            if own is None:
                self._seeds[i] = int(np.random.SeedSequence(self._seeds[i]).generate_state(1)[0]) >> 1
                anew = {"started": False, "seeds": [self._seeds[i]], "health": state["health"][i]}
                notes.append(f"E402 env {i} ({self._name}) begins a new episode: it was stepping")
            plans.append((own or anew, own is None))
        for i, (told, own_notes) in enumerate(self._each(process.set_state, plans, every)):
            self._learn(i, told)
            self._side.restored(i, told.steps)
            notes += [note.replace("E402 env 0 ", f"E402 env {i} ", 1) for note in own_notes]
        self._started, self.env_steps = True, int(state["env_steps"])
        return notes

    def close(self) -> None:
        """Close the envs and end their processes; raise what the first one raised."""
        if self._closed:
            return
        self._closed = True
        try:
            calls = [link.between_steps(process.close) for link in self._links]
            done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=_PATIENCE_S)
            for i, call in enumerate(calls):
                if call in done and self._failure is None:
                    answer_of(self._ray, self._name, i, call)
        finally:
            self._selector.close()
            for link in self._links:
                link.end()
            _end(self._ray, [], self._ours)


def _ray() -> Any:
    return imported_ray("remote_worker_envs=True", "without it envs are stepped in this process")


def _end(ray: Any, actors: Sequence[Any], ours: bool) -> None:
    """End the processes of envs, and leave a Ray that is ours."""
    for actor in actors:
        ray.kill(actor)
    if ours:
        leave(ray)


def _packed_creator(env: Any, name: str) -> bytes:
    """What makes an env of this spelling in another process.

    Raises:
        ConfigError: the spelling is unknown, or the env cannot be sent.
    """
    creator: Any = registry.creator_of(env)
    spec = gymnasium.registry.get(env) if isinstance(env, str) else None
    if isinstance(env, str) and ":" in env and not registry.is_registered(env):
        creator, spec = env, None  # code in files is found there as it is here
    try:
        packed: bytes = cloudpickle.dumps((creator, spec))
    except Exception as error:
        raise ConfigError(
            f"{name} holds something that cannot be sent to a process of its own: {error}. Make it inside "
            "the env's constructor, or leave out remote_worker_envs"
        ) from error
    return packed


def _asked(
    ray: Any, name: str, function: Callable[..., Any], calls: Iterable[tuple[Any, Any]], *common: Any
) -> list[Any]:
    """What ``function`` answers in the processes of envs, which all work at it at once."""
    refs = [actor.__ray_call__.remote(function, *common, *args) for actor, args in calls]
    return [answer_of(ray, name, i, ref) for i, ref in enumerate(refs)]
