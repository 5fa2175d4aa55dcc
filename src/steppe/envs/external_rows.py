"""External envs as an AsyncEnv: who answers them in their threads, and what becomes of it."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from steppe import spaces
from steppe.envs.agent_spaces import AgentSpaces, PairFor
from steppe.envs.driven import HELD_ROWS, Acted, Began, DrivenRows, Dropped, Earned, Ended, Entry, Left
from steppe.envs.external import About, ClosedError, ExternalEnv
from steppe.envs.guards import Guard, Limits, Place, show
from steppe.envs.multi_agent import ALL, MultiAgentEnv, misnamed
from steppe.envs.stories import Open
from steppe.errors import ConfigError, IdleError
from steppe.seeding import SMALLEST_NOISE
from steppe.types import (
    SINGLE_AGENT,
    AgentID,
    IntArray,
    Policy,
    SlotInfo,
    SpacePair,
    State,
    TimeStep,
    Tree,
    Weights,
)

logger = logging.getLogger("steppe")

_LOOK = 0.05  # seconds between two looks of a thread that waits
_ENDED = 10_000  # ids of ended episodes that are remembered
_PATIENCE = 2.0  # seconds that closing waits for threads; those that sleep longer end with the process


@final
class _Spaces(MultiAgentEnv):
    """The spaces of an external env, as those of agents are asked for."""

    def __init__(self, env: ExternalEnv) -> None:
        self._env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.possible_agents = [] if env.many else [SINGLE_AGENT]

    @property
    def unwrapped(self) -> Any:
        return self._env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Nobody resets it."""
        raise NotImplementedError

    def step(self, action_dict: dict[AgentID, Any]) -> Any:
        """Nobody steps it."""
        raise NotImplementedError


@final
class Desk:
    """Judges and answers what one external env asks and tells, in the threads of the user."""

    def __init__(self, rows: ExternalRows, index: int, env: ExternalEnv) -> None:
        self._rows, self._index, self._env = rows, index, env
        self._lock = threading.Lock()
        self._open: dict[str, Open] = {}
        self._ended: dict[str, None] = {}

    def start(self, id: str | None, training: bool) -> str:
        """See :meth:`ExternalEnv.start_episode`."""
        rows, most = self._rows, self._env.max_concurrent
        rows.check_open()
        if id is not None and (not isinstance(id, str) or not id):
            raise ValueError(f"start_episode: an episode id is a non-empty text, not {show(id)}")
        while self._env.max_backlog is not None and rows.driven.backlog >= self._env.max_backlog:
            rows.pause()
        rows.wait_for_weights()
        with self._lock:
            id = uuid.uuid4().hex if id is None else id
            if id in self._open or id in self._ended:
                state = "is open" if id in self._open else "was there before"
                raise ValueError(f"start_episode: an episode {id!r} {state}; each has an id of its own")
            if most is not None and len(self._open) >= most:
                raise ValueError(
                    f"start_episode: {most} episodes are open, which is max_concurrent; end one first"
                )
            self._open[id] = Open(
                id, rows.driven.numbers[self._index], bool(training), deque(maxlen=HELD_ROWS)
            )
            self._tell([Began(id, bool(training))])
        return id

    def _tell(self, entries: Sequence[Entry]) -> None:
        self._rows.driven.feed(self._index, entries)

    def _episode(self, id: str, what: str) -> Open:
        self._rows.check_open()
        if (episode := self._open.get(id)) is None:
            why = "has ended" if id in self._ended else "was not begun"
            raise ValueError(f"{what}: episode {id!r} {why}; start_episode() gives an id")
        return episode

    def _by_agent(self, value: Any, what: str, episode: Open) -> dict[AgentID, Any]:
        if not self._env.many:
            return {SINGLE_AGENT: value}
        if not isinstance(value, Mapping):
            raise self._error("E301", f"{what}: got {show(value)}; give a dict by agent", episode)
        return dict(value)

    def _error(self, code: str, text: str, episode: Open, agent: AgentID | None = None) -> Exception:
        return self._rows.guard.error(code, text, self._place(episode, agent))

    def _place(self, episode: Open, agent: AgentID | None = None) -> Place:
        return Place(self._index, episode.number, episode.t + 1, None, agent if self._env.many else None)

    def act(self, id: str, obs: Any, logged: tuple[Any] | None) -> tuple[Any, About]:
        """Choose, or take what was chosen, for everyone in ``obs``."""
        episode, rows = self._episode(id, "get_action" if logged is None else "log_action"), self._rows
        by = self._by_agent(obs, "obs", episode)
        given = None if logged is None else self._by_agent(logged[0], "action", episode)
        if given is not None and given.keys() != by.keys():
            raise self._error(
                "E404", f"action has {[*given]}, obs has {[*by]}: give the same agents", episode
            )
        for agent in by:
            self._enter(episode, agent)
        columns = {agent: self._column(episode, agent, value) for agent, value in by.items()}
        actions, acted = dict[AgentID, Any](), list[Acted]()
        for agent, column in columns.items():
            policy, state = episode.policies[agent], self._state(episode, agent)
            if given is None:
                chosen = self._chosen(episode, agent, column, state)
                actions[agent] = chosen[0]
            else:
                spec = rows.pairs[episode.spaces[agent]].action
                chosen = None, *self._logged(episode, agent, column, state, given[agent], spec)
            acted.append(Acted(id, agent, policy, episode.t + 1, column, *chosen[1:]))
        episode.t += 1
        episode.turns.append(frozenset(by))
        for row in acted:
            episode.states[row.agent], episode.earned[row.agent] = row.state, 0.0
        if episode.training:
            self._tell(acted)
        logps = {row.agent: row.logp for row in acted}
        versions = {row.agent: row.version for row in acted}
        if self._env.many:
            return actions, About(episode.t, logps, versions)
        return actions.get(SINGLE_AGENT), About(episode.t, logps[SINGLE_AGENT], versions[SINGLE_AGENT])

    def _enter(self, episode: Open, agent: AgentID) -> None:
        """Somebody observes something, maybe for the first time."""
        if agent in episode.left:
            text = f"obs has agent {agent!r}, which has left; who comes back needs another id"
            raise self._error("E405", text, episode, agent)
        if episode.policies.get(agent) in self._rows.mapping.ids:  # else it may have left the run
            return
        if (wrong := misnamed(agent)) is not None:
            raise self._error("E407", f"obs has the agent {wrong}", episode)
        info = SlotInfo(-1, self._index, agent, episode.number, 0)
        episode.policies[agent], episode.spaces[agent] = self._rows.who(info)
        episode.states.pop(agent, None)
        episode.earned.setdefault(agent, 0.0)

    def _column(self, episode: Open, agent: AgentID, obs: Any) -> Tree:
        spec = self._rows.pairs[episode.spaces[agent]].observation
        return self._rows.guard.observations(spec, [obs], lambda _: self._place(episode, agent))

    def _state(self, episode: Open, agent: AgentID) -> Tree:
        if agent in episode.states:
            state = episode.states[agent]
        else:
            state = self._rows.policies[episode.policies[agent]].initial_state(1)
        if isinstance(state, dict) and "reward" in state:  # it remembers what it earned
            state = {**state, "reward": np.full_like(state["reward"], episode.earned[agent])}
        return state

    def _chosen(self, episode: Open, agent: AgentID, column: Tree, state: Tree) -> tuple[Any, ...]:
        """Env action, and the rest of an :class:`Acted` row."""
        try:
            action, choice = self._rows.choose(episode.policies[agent], column, state)
        except spaces.BadLeaf as bad:
            text = f"{bad.leaf}: expected {bad.expected}, got {bad.got}"
            raise self._error(bad.code, text, episode, agent) from None
        return action, *choice

    def _logged(
        self, episode: Open, agent: AgentID, column: Tree, state: Tree, action: Any, spec: Any
    ) -> tuple[Any, ...]:
        """The rest of an :class:`Acted` row whose action is the user's."""
        try:
            taken = spaces.collect(spec, [action], root="action")
        except spaces.BadLeaf as bad:
            text = f"{bad.leaf}: expected {bad.expected}, got {bad.got}"
            raise self._error("E305", text, episode, agent) from None
        return taken, float("nan"), *self._rows.after(episode.policies[agent], column, state, taken)

    def earn(self, id: str, reward: Any, info: Any, dones: Any, step: int | None) -> None:
        """See :meth:`ExternalEnv.log_returns`."""
        episode = self._episode(id, "log_returns")
        rewards, infos = self._by_agent(reward, "reward", episode), dict[AgentID, Any]()
        if info is not None:
            infos = self._by_agent(info, "info", episode)
        values = self._rows.guard.rewards(
            [*rewards.values()], lambda row: self._place(episode, [*rewards][row])
        )
        entries = list[Entry]()
        for agent, value in zip(rewards, values.tolist(), strict=True):
            self._check_credit(episode, agent, step)
            if infos.get(agent) is not None and not isinstance(infos[agent], dict):
                raise self._error("E303", f"info: got {show(infos[agent])}; give a dict", episode, agent)
            entries.append(Earned(id, agent, value, step, infos.get(agent)))
        flags = dict(dones or {})
        gone = [*episode.policies] if flags.pop(ALL, False) else [agent for agent in flags if flags[agent]]
        gone = [agent for agent in gone if agent not in episode.left]
        for agent in gone:
            self._check_credit(episode, agent, None)
        for agent, value in zip(rewards, values.tolist(), strict=True):
            if step is None:
                episode.earned[agent] += value
        episode.left.update(gone)
        if episode.training:
            self._tell([*entries, *(Left(id, agent) for agent in gone)])

    def _check_credit(self, episode: Open, agent: AgentID, step: int | None) -> None:
        """Raise if an agent, or a decision of it, cannot be credited."""
        if agent not in episode.policies:
            known = ", ".join(map(repr, episode.policies)) or "nobody yet"
            text = f"agent {agent!r} has had no observation in this episode; there is {known}"
            raise self._error("E404", text, episode, agent)
        if step is None:
            if agent in episode.left:
                text = f"agent {agent!r} has left; give what it earned before its end, or with it"
                raise self._error("E403", text, episode, agent)
            return
        at = step - (episode.t - len(episode.turns) + 1)
        if not 0 <= at < len(episode.turns):
            raise ValueError(
                f"log_returns: step {step} of episode {episode.id!r} cannot be credited: there are "
                f"{episode.t + 1} decisions by now, of which the newest {HELD_ROWS:,} can be"
            )
        if agent not in episode.turns[at]:
            raise ValueError(f"log_returns: agent {agent!r} did not act in step {step} of {episode.id!r}")

    def end(self, id: str, obs: Any, truncated: bool) -> None:
        """See :meth:`ExternalEnv.end_episode`."""
        episode = self._episode(id, "end_episode")
        by = {} if obs is None else self._by_agent(obs, "obs", episode)
        known = {agent: value for agent, value in by.items() if agent in episode.policies}
        last = {agent: self._column(episode, agent, value) for agent, value in known.items()}
        with self._lock:
            del self._open[id]
            self._ended[id] = None
            if len(self._ended) > _ENDED:
                del self._ended[next(iter(self._ended))]
        self._tell([Ended(id, bool(truncated), last)])

    def leave(self) -> None:
        """``run()`` has returned: what is still open never ends."""
        with self._lock:
            gone, self._open = list(self._open), {}
        if gone:
            logger.warning(
                "run() of %s returned with %d episodes open: what was not learned from yet is lost; call "
                "end_episode for each",
                *(type(self._env).__name__, len(gone)),
            )
        self._tell([Dropped(id) for id in gone])


@final
class ExternalRows:
    """The rows of envs that run by themselves: decided by the run's policies, in the threads of the envs.

    Args:
        envs: of one class; the adapter closes them.
        seeds: one for each.
        decides: is given this object, which wants policies and weights.
        pair_for: the spaces of an agent whose env does not say them.
        observing: None; observations are as the envs give them.
        limits: see :class:`~steppe.envs.guards.Limits`.

    Raises:
        ConfigError: ``max_episode_steps`` is given, or agents' observations are to be changed.
        SpaceError: a space is missing or cannot be handled.
    """

    steps_together = False

    def __init__(
        self,
        envs: Sequence[ExternalEnv],
        *,
        seeds: Sequence[int],
        decides: Callable[[Any], None] | None = None,
        pair_for: PairFor | None = None,
        observing: Any = None,
        **limits: Any,
    ) -> None:
        told = Limits(**limits)
        self._envs, self._kind, self._runner = list(envs), type(envs[0]).__name__, told.runner
        if told.max_episode_steps is not None or observing is not None:
            what = "observation_fn, add_agent_id" if observing is not None else "max_episode_steps"
            fix = (
                "end_episode(..., truncated=True) cuts one off" if observing is None else "change them there"
            )
            raise ConfigError(f"{what}: {self._kind} runs its episodes by itself; {fix}")
        if decides is None:
            raise ConfigError(
                f"{self._kind} acts with the policies of a run in its own process: give it to a config as "
                "env=, without remote_worker_envs=True or on_env_error='restart'"
            )
        given = (told.observation_space, told.action_space)
        self._spaces = AgentSpaces([_Spaces(env) for env in envs], given, told.max_sequence_length, pair_for)
        if not (envs[0].many or self._spaces.agents):
            self._spaces.of(SlotInfo(0, 0, SINGLE_AGENT, 0, 0))  # raises
        self.guard = Guard(self._kind, told.runner, [int(seed) for seed in seeds], told.on_out_of_space)
        self.agents: Mapping[AgentID, int] = self._spaces.agents
        waiting = f"waiting for {self._kind} to end an episode, or to have 1,000 decisions in one"
        self.driven = DrivenRows(self._spaces.pairs, self.agents, len(envs), waiting=waiting)
        self.num_envs, self.env_steps, self.spaces = len(envs), 0, self._spaces.pairs
        self.policies: Mapping[str, Policy] = {}
        self._all: Mapping[str, Policy] = {}
        self.mapping: Any = None
        self._weights: dict[str, tuple[int, Any]] = {}
        self._explore, self._evaluation, self._closed = True, False, False
        self._desks = [Desk(self, i, env) for i, env in enumerate(envs)]
        self._threads = list[threading.Thread]()
        self._running, self._idle = len(envs), 0
        self._lock = threading.Lock()
        decides(self)

    @property
    def pairs(self) -> tuple[SpacePair, ...]:
        """All space pairs so far."""
        return self._spaces.pairs

    def begin(
        self,
        policies: Mapping[str, Policy],
        mapping: Any,
        rng: np.random.Generator,
        *,
        whole: bool,
        evaluation: bool,
    ) -> None:
        """See :class:`~steppe.envs.driven.Decider`."""
        self._all, self.mapping, self._rng = policies, mapping, rng
        self.policies = {**policies}
        self.driven.whole, self.driven.in_order, self._evaluation = (
            whole or evaluation,
            evaluation,
            evaluation,
        )
        self.driven.opened = self._opened

    def set_weights(self, weights: Mapping[str, Weights], explore: bool) -> None:
        """See :class:`~steppe.envs.driven.Decider`."""
        self.policies = {**self.policies, **self._all}  # who leaves the run may be acting just now
        loaded = {id: (new.version, self.policies[id].load(new)) for id, new in weights.items()}
        self._explore, self._weights = explore, {**self._weights, **loaded}
        if self._evaluation:
            self.driven.forget()

    def _opened(self, info: SlotInfo, policy: str) -> None:
        if len(self.mapping.ids) > 1:
            self.mapping.ahead(info, policy)

    def who(self, info: SlotInfo) -> tuple[str, int]:
        """Policy and space pair of somebody who comes."""
        with self._lock:
            space = self._spaces.of(info)
            self.driven.know(info.agent, space, self._spaces.pairs)
        return self.mapping(info), space

    def choose(self, policy: str, column: Tree, state: Tree) -> tuple[Any, tuple[Any, ...]]:
        """An action for the env, and sample, logp, version and state."""
        (version, weights), actor, noise = self._weights[policy], self.policies[policy], None
        if self._explore or actor.draws:
            noise = np.maximum(self._rng.random((1, actor.noise_size), np.float32), SMALLEST_NOISE)
        decision = actor.act(weights, column, state, noise)
        (action,) = spaces.rows(actor.action, actor.to_env(decision.action))
        return action, (decision.action, float(decision.logp[0]), version, decision.state)

    def after(self, policy: str, column: Tree, state: Tree, action: Tree) -> tuple[int, Tree]:
        """Version and state after an action of the user's; the policy remembers it as if it were its own."""
        (version, weights), actor = self._weights[policy], self.policies[policy]
        if state is None:
            return version, None
        after = actor.act(weights, column, state, None).state
        return version, {**after, "action": actor.from_env(action)} if "action" in after else after

    def check_open(self) -> None:
        """Raise ClosedError if the run is over."""
        if self._closed:
            raise ClosedError

    def pause(self) -> None:
        """A thread of the user waits for a moment."""
        self.check_open()
        time.sleep(_LOOK)

    def wait_for_weights(self) -> None:
        """Wait until there is something to act with."""
        while not self._weights:
            self.pause()

    def _run(self, index: int) -> None:
        """The thread of an env."""
        try:
            self._envs[index].run()
        except ClosedError:
            return
        except BaseException as error:
            if not self._closed:
                error.add_note(f"steppe: in run() of {self._kind}, runner {self._runner}, env {index}")
                self.driven.fail(error)
            return
        self._desks[index].leave()
        with self._lock:
            self._running -= 1
            if not self._running:
                self.driven.finish()

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """The next rows; the first call lets the envs run.

        Raises:
            Exception: whatever ``run()`` raised.
            IdleError: every ``run()`` has returned, and all rows were handed over.
            RuntimeError: that was said, and nothing else can be any more.
        """
        if not self._threads and not self._closed:
            for i, (env, desk) in enumerate(zip(self._envs, self._desks, strict=True)):
                env._desk = desk
                name = f"{self._kind} {self._runner}-{i}"
                self._threads.append(threading.Thread(target=self._run, args=(i,), name=name, daemon=True))
            for thread in self._threads:
                thread.start()
        try:
            steps = self.driven.poll(timeout)
        except IdleError:
            self._idle += 1
            text = f"run() of all {self.num_envs} envs of {self._kind} has returned: no more episodes come"
            if self._idle > 2:
                raise RuntimeError(f"{text}; end the training, or let run() go on") from None
            logger.warning(text)
            raise
        self.env_steps, self.spaces = self.driven.env_steps, self.driven.spaces
        return steps

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """No row awaits an action, see :meth:`~steppe.envs.driven.DrivenRows.send_actions`."""
        self.driven.send_actions(slots, actions)

    def pending(self) -> Sequence[TimeStep]:
        """No rows; ``opened`` has all who have a slot."""
        return self.driven.pending()

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``."""
        return dict(self.guard.counts)

    def get_sub_environments(self) -> list[Any]:
        """The envs."""
        return list(self._envs)

    def get_state(self) -> State:
        """What is to be handed over yet; no env has a state."""
        about = {"health": self.health(), "pairs": self._spaces.save(), "started": bool(self._threads)}
        return {**about, "driven": self.driven.get_state()}

    def set_state(self, state: State) -> list[str]:
        """Hand over what was over then; episodes that were open are cut off, which is said.

        Raises:
            CheckpointError: the state is of another number of envs, or of other spaces.
        """
        self._spaces.load(state["pairs"])
        self.spaces = self.driven.spaces = self._spaces.pairs
        self.driven.set_state(state["driven"])
        self.env_steps = self.driven.env_steps
        self.driven.forget(only_open=True)
        self.guard.counts = dict(state["health"])
        told = f"E402 {self._kind} begins new episodes, those that were open are cut off: it runs by itself"
        return [told] if state["started"] else []

    def close(self) -> None:
        """End ``run()`` where it asks or tells something, and close the envs."""
        if self._closed:
            return
        self._closed = True
        self.driven.close()
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for env in self._envs:
            env.close()
