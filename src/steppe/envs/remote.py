"""Envs in processes of their own, each in a Ray actor, as an :class:`~steppe.types.AsyncEnv`."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import pickle
import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import cloudpickle
import gymnasium
import numpy as np

from steppe.containers import copied
from steppe.envs import registry
from steppe.envs import remote_process as process
from steppe.envs.context import EnvContext
from steppe.envs.failures import Failures, with_lost
from steppe.envs.guards import check_alive
from steppe.envs.remote_link import Link, Opening, Plan, answer_of, late
from steppe.envs.side_by_side import SideBySide
from steppe.errors import CheckpointError, ConfigError, EnvError
from steppe.processes import enter, imported_ray, leave, node_address, versions
from steppe.seeding import env_seed
from steppe.types import EpisodeEnd, IntArray, State, TimeStep, Tree

logger = logging.getLogger("steppe")

_PATIENCE_S = 8.0
"""How long envs are given to close."""
_TELL_S = 60.0
"""How long an env is waited for in silence."""
_SLOW = "%s, runner %d, env %d has not answered for %g s and is waited for; see env_step_timeout"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How long remote envs are waited for, and what happens where one fails.

    Attributes:
        wait_ms: 0: a poll ends as soon as one env has stepped, and takes all that have. Above: it waits for
            all, but no longer than this if one has stepped.
        step_timeout: seconds of a step or reset after which an env has failed; None: any number.
        restarts: an env that fails is made anew; otherwise its error comes out of a poll.
        most_restarts: of one env; None: any number.
    """

    wait_ms: float = 0.0
    step_timeout: float | None = None
    restarts: bool = False
    most_restarts: int | None = None


def building(rules: Rules, ray_address: str | None) -> Callable[..., RemoteRows]:
    """:func:`build`, for the envs of one run."""
    return functools.partial(build, rules=rules, ray_address=ray_address)


def build(
    env: Any,
    env_config: Mapping[str, Any] | None = None,
    *,
    num_envs: int,
    run_seed: int,
    rules: Rules | None = None,
    ray_address: str | None = None,
    worker_index: int = 0,
    num_workers: int = 0,
    seed_runner: int | None = None,
    created: Callable[[Any, EnvContext], None] | None = None,
    pair_for: Any = None,
    observing: Any = None,
    decides: Any = None,
    **limits: Any,
) -> RemoteRows:
    """What :func:`steppe.envs.registry.build` builds, with each env in a process of its own.

    Args:
        env: any spelling of an env of one agent or of many. A creator may return the handle of a Ray actor
            with ``reset`` and ``step``, which is used as it is.
        env_config: as there; so is all that is not named here.
        num_envs: as there.
        run_seed: as there.
        rules: see :class:`Rules`.
        ray_address: the Ray to join; None: that of RAY_ADDRESS or, without, one started here.
        worker_index: as there.
        num_workers: as there.
        seed_runner: as there.
        created: is called with what users have of each env, a ``RemoteEnv`` or their own handle; also of one
            that takes another's place.
        pair_for: is not asked: the envs say their spaces, or the config does.
        observing: None; observations are as the envs return them.
        decides: is not told of anybody.
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
    seed = functools.partial(env_seed, run_seed, place)
    ours, openings = enter(ray, ray_address), list[Opening]()
    try:
        packed, host = _packed_creator(env, name), ray.remote(num_cpus=0)(process.Host)
        here = node_address()
        plans = [Plan(ray, name, lambda _: host.remote(), packed, limits, one, here) for one in contexts]
        openings += [Opening(plan, _fresh(seed(i))) for i, plan in enumerate(plans)]
        made = _opened(openings)
        if None in made:  # the creator makes actors itself, and they would end with those that made them
            for opening in openings:
                opening.end()
            creator: Any = registry.creator_of(env)
            plans = [replace(plan, actor=creator, creator=None) for plan in plans]
            openings[:] = [Opening(plan, _fresh(seed(i))) for i, plan in enumerate(plans)]
            made = _opened(openings)
        envs = [one for one in made if one is not None]
        return RemoteRows(plans, envs, seed=seed, rules=rules or Rules(), created=created, ours=ours)
    except BaseException:
        for opening in openings:
            opening.end()
        if ours:
            leave(ray)
        raise


def _opened(openings: Sequence[Opening]) -> list[tuple[Link, process.Told] | None]:
    """What they have come to, once all of them are done."""
    made = [one.done() for one in openings]
    for one in openings:
        one.settled()
    return made


def _fresh(seed: int, health: Mapping[str, int] | None = None) -> State:
    """What an adapter begins with."""
    return {"started": False, "seeds": [seed], "health": dict(health or {})}


@final
class RemoteRows:
    """Envs in Ray actors; each steps by itself, from the poll after an answer on.

    Slots and the order of rows are those of :class:`~steppe.envs.side_by_side.SideBySide`. Where an env is
    made anew, the others go on meanwhile; see :class:`~steppe.envs.failures.Failures`.

    Args:
        plans: how the envs are made.
        made: the envs, and what they said when they were made; the adapter owns and ends them.
        seed: by number; the first ones are those of the envs as they are.
        rules: for those that are slow, or fail.
        created: is called with what users have of an env; None: nobody is.
        ours: whether Ray is to be left when the envs are closed.

    Raises:
        ConfigError: the spaces of envs of one agent differ.
    """

    steps_together = False

    def __init__(
        self,
        plans: Sequence[Plan],
        made: Sequence[tuple[Link, process.Told]],
        *,
        seed: Callable[[int], int],
        rules: Rules,
        created: Callable[[Any, EnvContext], None] | None,
        ours: bool,
    ) -> None:
        self._plans, self._rules, self._ours = list(plans), rules, ours
        self._created = created or (lambda env, context: None)
        self._ray, self._name = plans[0].ray, plans[0].name
        self.num_envs, self.env_steps, self._closed = len(plans), 0, False
        self._seeds = [seed(i) for i in range(self.num_envs)]
        self._links: list[Link | Opening] = [link for link, _ in made]
        self._newest = [told._replace(spaces=()) for _, told in made]
        self._side = SideBySide(self.num_envs)
        self.spaces, self.agents = self._side.spaces, self._side.agents
        self._failures = Failures(seed, self.num_envs, rules.most_restarts)
        self._selector = selectors.DefaultSelector()
        self._rewind()
        for i, (link, told) in enumerate(made):
            self._learn(i, told)
            self._created(link.user(), plans[i].context)
        self._side.check_spaces(self._name)

    def _rewind(self) -> None:
        """Nothing was asked of any env, and nobody awaits an action."""
        self._failure: BaseException | None = None
        self._started, self._lost = False, list[EpisodeEnd]()
        self._flying = dict[int, float]()  # the envs that have not answered yet, and when that is too late
        self._new = {*range(self.num_envs)}  # those that have told nothing yet
        self._sent: list[list[tuple[IntArray, Tree]]] = [[] for _ in self._links]
        self._failures.forget()
        self._side.before[:] = [0] * self.num_envs
        self._side.forget()

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Let the envs that were answered step, and wait for one or for all; the first call resets them.

        Raises:
            EnvError: an env returned something that is not in its contract, its process ended, or it took too
                long; and it is not to be made anew.
            Exception: whatever an env raised that is not to be, with its traceback as a note.
        """
        check_alive(self._closed, self._failure)
        self._started = True
        try:
            for i in range(self.num_envs):
                if i not in self._flying and (self._sent[i] or not self._side.awaits[i]):
                    self._ask(i)
            told = self._answered(timeout)
        except BaseException as error:  # a keyboard interrupt, too, leaves answers that nobody took
            self._failure = error
            raise
        for i in sorted(told):
            self._learn(i, told[i])
        steps = self._side.received({i: told[i].steps for i in sorted(told)})
        lost, self._lost = self._lost, []
        return with_lost(steps, lost, self.spaces)

    def _ask(self, i: int) -> None:
        """Send env ``i`` what it was answered, and listen to it until it has stepped."""
        link, sent, self._sent[i] = self._links[i], self._sent[i], []
        limit = None
        if not isinstance(link, Opening):
            link.ask(sent)
            limit = self._rules.step_timeout
        self._flying[i] = time.monotonic() + (limit or _TELL_S)
        self._selector.register(link, selectors.EVENT_READ, i)

    def _answered(self, timeout: float | None) -> dict[int, process.Told]:
        """Who has stepped by now: waits for one, or for a while for all."""
        patience, wait = math.inf if timeout is None else timeout, self._rules.wait_ms / 1000
        began, left, told = time.monotonic(), patience, dict[int, process.Told]()
        while self._flying:
            soon = min(left, min(self._flying.values()) - time.monotonic())
            for key, _ in self._selector.select(None if soon == math.inf else max(soon, 0)):
                self._hear(key.data, told)
            now = time.monotonic()
            for i in [i for i, end in self._flying.items() if now >= end]:
                self._overdue(i)
            left = min(patience, wait if told else math.inf) - (now - began)
            if left <= 0:
                break
        return told

    def _hear(self, i: int, told: dict[int, process.Told]) -> None:
        """Take what env ``i`` has to tell."""
        link = self._links[i]
        try:
            if isinstance(link, Opening):
                self._settle(i, link)
            elif (answer := link.told()) is not None:
                told[i] = answer
                self._unlisten(i)
                self._new.discard(i)
        except Exception as error:
            self._fail(i, error)

    def _unlisten(self, i: int) -> None:
        del self._flying[i]
        self._selector.unregister(self._links[i])

    def _settle(self, i: int, opening: Opening) -> None:
        """Env ``i`` has been made anew; let it reset."""
        made = opening.done()
        assert made is not None
        self._unlisten(i)
        opening.settled()
        self._links[i], self._newest[i] = made[0], made[1]._replace(spaces=())
        self._created(made[0].user(), self._plans[i].context)
        self._ask(i)

    def _overdue(self, i: int) -> None:
        """Env ``i`` has not answered in time."""
        link, limit = self._links[i], self._rules.step_timeout
        if limit is None or isinstance(link, Opening):
            self._flying[i] = math.inf  # it is said once
            logger.warning(_SLOW, self._name, self._plans[i].context.worker_index, i, _TELL_S)
        else:
            self._fail(i, late(self._plans[i], limit))

    def _fail(self, i: int, error: Exception) -> None:
        """Put another in the place of env ``i``, which has failed.

        Raises:
            Exception: the error, if that is not to be done.
        """
        past, plan = self._failures.past[i], self._plans[i]
        process_failed = isinstance(error, EnvError) and error.code in ("E501", "E502")
        if isinstance(error, EnvError) and process_failed:  # it told no place
            error.episode, error.step = past.episode - self._side.before[i], past.steps - past.begun
        self._side.blame(i, error)
        self._unlisten(i)
        if process_failed or self._rules.restarts:
            self._links[i].end()
        if not self._rules.restarts or (i in self._new and not past.restarts):
            raise error
        if i not in self._new:
            self._lost.append(self._failures.lost(i))
            self._new.add(i)
        while True:
            seed = self._failures.renew(i, error)
            self._side.before[i], self._side.awaits[i] = past.episode, set()
            try:
                self._links[i] = Opening(plan, _fresh(seed, self._newest[i].health))
                break
            except Exception as again:  # creators of actors work here
                error = again
        self._ask(i)

    def _learn(self, i: int, told: process.Told) -> None:
        """Keep what an env said of itself."""
        if told.spaces is not self._newest[i].spaces:
            self._side.learn(i, told.spaces, told.agents)
            self.spaces, self.agents = self._side.spaces, self._side.agents
        self._newest[i] = told
        taken = self._failures.count(i, told.env_steps)
        self.env_steps += taken
        self._failures.told(i, taken, told.steps, self._side.before[i])

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
        refs = [(i, self._link(i).between_steps(function, *own)) for i, own in calls]
        return [self._own_answer(i, ref) for i, ref in refs]

    def _link(self, i: int) -> Link:
        link = self._links[i]
        assert not isinstance(link, Opening)
        return link

    def _own_answer(self, i: int, ref: Any) -> Any:
        """What env ``i`` answered."""
        try:
            return answer_of(self._plans[i], ref)
        except Exception as error:
            self._side.blame(i, error)
            raise

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``, over all envs."""
        total = Counter(self._failures.counts)
        for told in self._newest:
            total.update(told.health)
        return dict(total)

    def get_sub_environments(self) -> list[Any]:
        """By vector index, a ``RemoteEnv``, the handle that the creator returned, or None: not made yet."""
        return [None if isinstance(link, Opening) else link.user() for link in self._links]

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
        states = {i: self._link(i).between_steps(process.get_state) for i in idle}
        return {
            "started": True,
            "seeds": list(self._seeds),
            "env_steps": self.env_steps,
            "health": [dict(told.health) for told in self._newest],
            "envs": [self._state_of(i, states[i]) if i in states else None for i in range(self.num_envs)],
            "awaits": [sorted(slots) for slots in self._side.awaits],
            "before": list(self._side.before),
            **self._failures.state(),
        }

    def _state_of(self, i: int, ref: Any) -> Any:
        """Of env ``i``; None if it has died meanwhile, and will be made anew when it is to step."""
        try:
            return self._own_answer(i, ref)
        except EnvError as error:
            if error.code != "E501" or not self._rules.restarts:
                raise
        return None

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
            before = [(_fresh(seed), False) for seed in self._seeds]
            self._each(process.set_state, before, every)
            return []
        plans, notes = [], []
        self._failures.adopt(state)
        self._side.before[:], self._new = state["before"], set()
        for i, own in enumerate(state["envs"]):
            if own is None:
                self._side.before[i] = self._failures.begin_anew(i)
                self._seeds[i] = int(np.random.SeedSequence(self._seeds[i]).generate_state(1)[0]) >> 1
                anew = _fresh(self._seeds[i], state["health"][i])
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
            open_ones = [i for i, link in enumerate(self._links) if not isinstance(link, Opening)]
            calls = {self._link(i).between_steps(process.close): i for i in open_ones}
            done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=_PATIENCE_S)
            for call in calls:
                if call in done and self._failure is None:
                    with contextlib.suppress(EnvError):  # its process has ended before
                        self._own_answer(calls[call], call)
        finally:
            self._selector.close()
            for link in self._links:
                link.end()
            if self._ours:
                leave(self._ray)


def _ray() -> Any:
    return imported_ray("remote_worker_envs=True", "without it envs are stepped in this process")


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
        inner = cloudpickle.dumps((creator, spec))
    except Exception as error:
        raise ConfigError(
            f"{name} holds something that cannot be sent to a process of its own: {error}. Make it inside "
            "the env's constructor, or leave out remote_worker_envs"
        ) from error
    return pickle.dumps((versions(), inner))
