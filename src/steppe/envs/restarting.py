"""Envs that may fail: each has an adapter of its own, and one that fails is made anew."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from steppe.containers import copied
from steppe.envs import registry
from steppe.envs.context import EnvContext
from steppe.envs.failures import Failures, with_lost
from steppe.envs.guards import check_alive
from steppe.envs.side_by_side import SideBySide
from steppe.errors import CheckpointError, ConfigError, EnvError
from steppe.seeding import env_seed
from steppe.types import AgentID, AsyncEnv, EpisodeEnd, IntArray, SlotInfo, SpacePair, State, TimeStep, Tree


def building(most_restarts: int | None) -> Callable[..., RestartingRows]:
    """:func:`build`, for the envs of one run."""
    return functools.partial(build, most_restarts=most_restarts)


def build(
    env: Any,
    env_config: Mapping[str, Any] | None = None,
    *,
    num_envs: int,
    run_seed: int,
    most_restarts: int | None = None,
    worker_index: int = 0,
    num_workers: int = 0,
    seed_runner: int | None = None,
    created: Callable[[Any, EnvContext], None] | None = None,
    pair_for: Callable[[SlotInfo], SpacePair] | None = None,
    observing: Any = None,
    decides: Any = None,
    **limits: Any,
) -> RestartingRows:
    """What :func:`steppe.envs.registry.build` builds, of envs that are made anew where they fail.

    Args:
        env: any spelling of an env of one agent or of many.
        env_config: as there; so is all that is not named here.
        num_envs: as there.
        run_seed: as there.
        most_restarts: see :class:`RestartingRows`.
        worker_index: as there.
        num_workers: as there.
        seed_runner: as there.
        created: is called with each env that takes another's place, too.
        pair_for: as there.
        observing: None; observations are as the envs return them.
        decides: is not told of anybody.
        limits: as there.

    Raises:
        ConfigError: the env steps many envs at once, or the envs' spaces differ.
        Exception: whatever the constructor raised.
    """
    if observing is not None:
        raise ConfigError(
            "observation_fn and add_agent_id do not reach envs that are restarted one by one: change what an "
            "agent observes in the env itself, or use on_env_error='raise'"
        )
    creator, name = registry.creator_of(env), registry.env_name(env)
    place = worker_index if seed_runner is None else seed_runner

    def make(i: int, before: Sequence[int]) -> AsyncEnv:
        def pair_of(info: SlotInfo) -> SpacePair:
            return pair_for(info._replace(env=i, episode=info.episode + before[i]))  # type: ignore[misc]

        own = copied(dict(env_config or {}))
        context = EnvContext(own, worker_index, i, num_workers, num_envs=num_envs)
        made = registry.made_by(creator, context, name)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(made.close)
            if registry.is_vector(made) or registry.is_base(made):
                raise ConfigError(
                    "on_env_error='restart' is for envs that step one by one: a vector env or a BaseEnv "
                    "steps its envs itself, and has to restart them itself; leave it out"
                )
            if created is not None:
                created(registry.user_env(made), context)
            common = {"worker_index": worker_index, "pair_for": pair_for and pair_of, **limits}
            rows = registry.build(lambda _: made, num_envs=1, run_seed=0, **common)
            on_failure.pop_all()
        return rows

    seed = functools.partial(env_seed, run_seed, place)
    return RestartingRows(make, seed, num_envs=num_envs, name=name, most_restarts=most_restarts)


@final
class RestartingRows:
    """Envs side by side, of which one that raises is closed, made anew, and begins a new episode.

    Slots and the order of rows are those of :class:`~steppe.envs.side_by_side.SideBySide`. Seeds of envs that
    are made anew come from the run's tree, in the order of failures, and none was used before.

    A failure ends the run where the env fails at its very first reset, where it has failed three times in the
    same way (ten times in any) without a step between, and where it was restarted too often.

    Args:
        make: an adapter of one env: by vector index, and of how many episodes each env had before it.
        seed: by number; the first ``num_envs`` are for the envs as they are built first.
        num_envs: how many.
        name: of the envs, for messages.
        most_restarts: of one env; None: any number.

    Raises:
        ConfigError: the spaces of envs of one agent differ.
        Exception: whatever a constructor raised.
    """

    steps_together = False

    def __init__(
        self,
        make: Callable[[int, Sequence[int]], AsyncEnv],
        seed: Callable[[int], int],
        *,
        num_envs: int,
        name: str,
        most_restarts: int | None = None,
    ) -> None:
        self._make, self._name = make, name
        self._failures = Failures(seed, num_envs, most_restarts)
        self.num_envs, self.env_steps, self._closed = num_envs, 0, False
        self.spaces = tuple[SpacePair, ...]()
        self.agents: Mapping[AgentID, int] = {}
        self._side, self._rows = SideBySide(num_envs), list[AsyncEnv]()
        self._known: list[tuple[SpacePair, ...] | None] = [None] * num_envs
        try:
            for i in range(num_envs):
                self._rows.append(self._made(i, seed(i), {}))
                self._learn(i)
        except BaseException:
            self.close()
            raise
        self._rewind()

    def _rewind(self) -> None:
        """Be as before the first poll."""
        self._started, self.env_steps = False, 0
        self._failure: BaseException | None = None
        self._failures.forget()
        self._side.before[:] = [0] * self.num_envs
        self._side.forget()

    def _made(self, i: int, seed: int, health: Mapping[str, int]) -> AsyncEnv:
        """An adapter of env ``i``, which says no oddity again that was said before."""
        rows = self._make(i, self._side.before)
        rows.set_state({"started": False, "seeds": [seed], "health": dict(health)})
        return rows

    def _learn(self, i: int) -> None:
        """Keep what an adapter says of itself."""
        if (own := self._rows[i].spaces) is not self._known[i]:
            self._side.learn(i, own, self._rows[i].agents)
            self._side.check_spaces(self._name)
            self._known[i], self.spaces, self.agents = own, self._side.spaces, self._side.agents

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Step the envs that were answered, and make those anew that fail; the first call resets them.

        Raises:
            EnvError: an env returned something that is not in its contract, and is not to be made anew.
            Exception: whatever an env raised that is not to be.
        """
        check_alive(self._closed, self._failure)
        own, lost = dict[int, Sequence[TimeStep]](), list[EpisodeEnd]()
        try:
            for i in range(self.num_envs):
                if steps := self._polled(i, lost):
                    own[i] = steps
        except BaseException as error:  # a keyboard interrupt, too, leaves some envs stepped and some not
            self._failure = error
            raise
        self._started = True
        merged = self._side.received(own)
        return with_lost(merged, lost, self.spaces)

    def _polled(self, i: int, lost: list[EpisodeEnd]) -> Sequence[TimeStep]:
        """What env ``i`` has to tell, or its successor."""
        try:
            steps = self._rows[i].poll()
        except Exception as error:
            if not self._started:
                self._side.blame(i, error)
                raise
            self.env_steps += self._failures.count(i, self._rows[i].env_steps)
            lost.append(self._failures.lost(i))
            return self._begin_anew(i, error)
        if steps:
            self._learn(i)
            taken = self._failures.count(i, self._rows[i].env_steps)
            self.env_steps += taken
            self._failures.told(i, taken, steps, self._side.before[i])
        return steps

    def _begin_anew(self, i: int, error: Exception) -> Sequence[TimeStep]:
        """Put another in the place of env ``i``; returns its first rows.

        Raises:
            Exception: the error, if that is not to be done, or if it fails again and again.
        """
        health = self._rows[i].health()
        while True:
            self._side.blame(i, error)
            seed = self._failures.renew(i, error)
            with contextlib.suppress(Exception):
                self._rows[i].close()
            self._side.before[i], self._side.awaits[i] = self._failures.past[i].episode, set()
            try:
                self._rows[i] = self._made(i, seed, health)
                steps = self._rows[i].poll()
            except Exception as again:
                error = again
            else:
                self._learn(i)
                return steps

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """Answer ``slots``, all of one space pair, with a column of actions; the column is copied.

        Raises:
            ValueError: a slot awaits no action, or the column has another length.
        """
        check_alive(self._closed, self._failure)
        if not self._started:
            raise ValueError("no slot awaits an action yet: poll() first")
        for i, own, column in self._side.answered(slots, actions):
            self._rows[i].send_actions(own, column)

    def pending(self) -> Sequence[TimeStep]:
        """The rows that await an action."""
        if not self._started:
            return []
        return self._side.pending({i: rows.pending() for i, rows in enumerate(self._rows)})

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, over all envs, and of failures: ``{"E503 OSError": 2}``."""
        total = Counter(self._failures.counts)
        for rows in self._rows:
            total.update(rows.health())
        return dict(total)

    def get_sub_environments(self) -> list[Any]:
        """The envs, by vector index, as they are now."""
        return [env for rows in self._rows for env in rows.get_sub_environments()]

    def get_state(self) -> State:
        """All envs at their newest rows; only between a poll and the send that answers it.

        Raises:
            EnvError: E402, an env's own ``get_state()`` returned what cannot be saved.
            RuntimeError: an env failed for good, or all were closed.
            ValueError: actions were sent that no poll has used.
        """
        check_alive(self._closed, self._failure)
        own = list[State]()
        for i, rows in enumerate(self._rows):
            try:
                own.append(rows.get_state())
            except EnvError as error:
                self._side.blame(i, error)
                raise
        return {
            "started": self._started,
            "seeds": [seed for state in own for seed in state["seeds"]],
            "env_steps": self.env_steps,
            "envs": own,
            "before": list(self._side.before),
            **self._failures.state(),
        }

    def set_state(self, state: State) -> list[str]:
        """Bring every env back, as it would be without restarts; those to come are the same.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        if (count := len(state["seeds"])) != self.num_envs:
            raise CheckpointError(f"the state is of {count} envs, here are {self.num_envs}")
        self._rewind()
        if not state["started"]:
            for rows, seed in zip(self._rows, state["seeds"], strict=True):
                rows.set_state({"started": False, "seeds": [seed]})
            return []
        self._started, self.env_steps = True, int(state["env_steps"])
        self._failures.adopt(state)
        self._side.before[:] = state["before"]
        notes = []
        for i, (rows, own) in enumerate(zip(self._rows, state["envs"], strict=True)):
            if said := rows.set_state(own):  # it begins a new episode
                past = self._failures.past[i]
                past.episode, past.begun = past.episode + 1, rows.env_steps
                notes += [note.replace("E402 env 0 ", f"E402 env {i} ", 1) for note in said]
            self._learn(i)
            self._side.restored(i, rows.pending())
        return notes

    def close(self) -> None:
        """Close every env, even if one raises; then raise what the first one raised."""
        if self._closed:
            return
        self._closed = True
        errors: list[Exception] = []
        for i, rows in enumerate(self._rows):
            try:
                rows.close()
            except Exception as error:
                self._side.blame(i, error)
                errors.append(error)
        if errors:
            raise errors[0]
