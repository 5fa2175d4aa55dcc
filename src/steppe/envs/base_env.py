"""The low-level env: many agents in many envs, each at its own pace, as users write it; and its rows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from steppe import spaces
from steppe.envs.agent_steps import split_dones
from steppe.envs.agents import MultiAgentRows
from steppe.envs.guards import Guard, Place, is_flag, is_reward, show
from steppe.envs.multi_agent import ALL, LATER, MultiAgentEnv
from steppe.errors import EnvError
from steppe.types import AgentID, Decision, IntArray, SlotInfo, SpacePair, State, TimeStep, Tree

ASYNC_RESET_RETURN = "async_reset_return"
"""What ``try_reset`` returns where the first observations come with a later ``poll``."""

_ITEMS = ("obs", "rewards", "terminateds", "truncateds", "infos", "off_policy_actions")
_PAUSE = 0.001  # seconds between two polls when nobody was ready


class BaseEnv(ABC):
    """Subclass it to run envs that answer when they like, such as simulators in other processes.

    Everything is a dict by env, ``0`` to ``num_envs - 1``, of dicts by agent; where there is one agent it is
    called ``"agent0"``. Who is not ready is absent, and nobody waits for anybody.

    Attributes:
        num_envs: how many envs there are; None: as many as ``get_sub_environments()`` returns, or as were
            asked for.
        observation_space: of every agent, or a dict (or ``Dict`` space) by agent; ``action_space`` likewise.
    """

    num_envs: int | None = None
    observation_space: Any = None
    action_space: Any = None

    @abstractmethod
    def poll(self) -> tuple[Any, ...]:
        """What became ready since the last call; the first call resets all envs.

        Returns:
            Observations, rewards, terminated and truncated flags, infos, and off-policy actions. The flag
            ``"__all__"`` ends an episode; the first observations of one have no rewards. Who is named in the
            off-policy actions has acted already: there is no action sent for its observation. What learns
            on-policy (PPO) refuses them. The older five items, with ``dones``, are understood.
        """

    @abstractmethod
    def send_actions(self, action_dict: dict[int, dict[Any, Any]]) -> None:
        """Take actions for some of those that had an observation."""

    def try_reset(self, env_id: int | None = None) -> Any:
        """Begin the next episode of an env that has ended; of all without ``env_id``.

        Returns:
            ``(observations, infos)`` or the observations, ``{env_id: {agent: ...}}``. None (the default) and
            ``ASYNC_RESET_RETURN`` say that they come with a later ``poll``.
        """
        return None

    def try_restart(self, env_id: int | None = None) -> None:
        """Repair an env that failed, before it begins anew. Nothing calls it yet: a failure ends the run."""
        return None

    def seed(self, seeds: list[int]) -> None:
        """Take a seed for each env; called before the first ``poll``."""
        return None

    def get_sub_environments(self, as_dict: bool = False) -> Any:
        """The envs inside as a list, or a dict by env, where there are such objects."""
        return {} if as_dict else []

    def get_agent_ids(self) -> set[Any]:
        """Everyone who may ever appear; empty if that is not known."""
        return set()

    def try_render(self, env_id: int | None = None) -> Any:
        """Draw one env, if it can be drawn."""
        return None

    def stop(self) -> None:
        """Release everything; by default the envs inside are closed."""
        for env in self.get_sub_environments():
            env.close()

    @final
    def close(self) -> None:
        """The same as :meth:`stop`."""
        self.stop()


@final
class _Sub(MultiAgentEnv):
    """One env of a BaseEnv, as far as polls have told of it."""

    def __init__(self, base: BaseEnv, index: int, max_steps: int | None) -> None:
        self._base, self._index, self._max_steps = base, index, max_steps
        self.observation_space, self.action_space = base.observation_space, base.action_space
        self.possible_agents = sorted(
            base.get_agent_ids(), key=str
        )  # a set has another order in every process
        self.told: deque[list[Any]] = deque()
        self.taken: dict[Any, Any] = {}
        self.begins, self._again, self._over, self._t = True, False, False, 0

    @property
    def unwrapped(self) -> Any:
        return self._base

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The first observations of an episode, or LATER."""
        if not self.begins:
            first = self._try_reset()
            if first is not None:
                return first
        self.begins, self._t = True, 0
        obs: Any = {}
        while self.told and not obs:  # nobody is back yet
            obs, rewards, *_, infos, self.taken = self._next()
            for agent, reward in rewards.items() if self._again else ():
                if is_reward(reward) and reward:
                    text = f"rewards has {reward!r} for agent {agent!r}, whose episode is over"
                    raise EnvError("E403", f"{text}; give it with the end", agent=agent, leaf="rewards")
        self.begins = not obs
        return (obs, infos) if obs else LATER

    def _try_reset(self) -> Any:
        """What ``try_reset`` returned, by agent; None if the observations come with a poll."""
        self._again = True
        cut = not self._over and self._max_steps is not None and self._t >= self._max_steps
        if cut:
            self.told.clear()
        self._t = 0
        result, i = self._base.try_reset(self._index), self._index
        parts = list(result) if isinstance(result, tuple) else [result]
        if cut and parts[0] is None:
            fix = f"try_reset({i}) returned None: max_episode_steps needs one that begins an episode"
            raise EnvError("E304", fix, leaf="try_reset")
        if parts[0] is None or isinstance(parts[0], str):
            return None
        for at, part in enumerate(parts):
            if isinstance(part, dict) and list(part) == [i] and isinstance(part[i], dict):
                parts[at] = part[i]
        return tuple(parts) if isinstance(result, tuple) else parts[0]

    def step(self, action_dict: dict[Any, Any]) -> Any:
        """What was told; the actions have been sent long ago."""
        *five, self.taken = self._next()
        self._t += 1
        self._over = any(is_flag(flags.get(ALL)) and flags[ALL] for flags in five[2:4])
        return tuple(five)

    def _next(self) -> list[Any]:
        """The oldest of what was told."""
        told = self.told.popleft()
        for name, part in zip(_ITEMS, told, strict=True):
            if not isinstance(part, dict):
                raise EnvError("E301", f"poll: {name} are {show(part)}; return a dict by agent", leaf=name)
        for agent in told[5].keys() - told[0].keys():
            fix = f"has agent {agent!r}, which has no observation that it acted on; give both in one poll"
            raise EnvError("E404", f"{_ITEMS[5]} {fix}", agent=agent, leaf=_ITEMS[5])
        return told


@final
class BaseEnvRows:
    """The rows of a BaseEnv; what was answered goes to it in the next ``poll``, whoever else is awaited.

    An env's step counts when a poll tells something of that env. What is told of an env while one of its
    agents awaits an action is shown once that is answered. Off-policy actions become decided rows, in the
    units of the env's action space; how probable they were is not known, so their ``logp`` is NaN.

    Args:
        base: the adapter owns and stops it.
        seeds: one for each of its envs.
        limits: as :class:`~steppe.envs.agents.MultiAgentRows` takes them.

    Raises:
        ConfigError: ``max_episode_steps`` is below 1.
        SpaceError: a space cannot be handled.
    """

    steps_together = False

    def __init__(self, base: BaseEnv, *, seeds: Sequence[int], **limits: Any) -> None:
        self._base, self._kind, self._seeds = base, type(base).__name__, [int(seed) for seed in seeds]
        self._subs = [_Sub(base, i, limits.get("max_episode_steps")) for i in range(len(seeds))]
        self._runner = limits.get("runner", 0)
        self._guard = Guard(self._kind, self._runner, self._seeds)
        self._rows = MultiAgentRows(self._subs, seeds=seeds, ready=self._exchange, **limits)
        self.num_envs, self.env_steps = self._rows.num_envs, 0
        self.spaces: tuple[SpacePair, ...] = self._rows.spaces
        self.agents: Mapping[AgentID, int] = self._rows.agents
        self._who: dict[int, tuple[SlotInfo, int]] = {}
        self._sent: dict[int, dict[Any, Any]] = {}
        self._begun: set[int] = set()
        self._polled, self._closed = False, False

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Send what was answered and ask once who is ready; [] if nobody is.

        Raises:
            EnvError: the env returned something that is not in its contract.
            Exception: whatever the env raised.
        """
        steps = [step for step in self._rows.poll(timeout) if len(step.slot) or step.closed]
        self.spaces, self.env_steps = self._rows.spaces, self._rows.env_steps
        for step in steps:
            self._who |= {info.slot: (info, step.space) for info in step.opened}
            self._begun |= {info.env for info in step.opened}
            self._decide(step)
        if not steps:
            time.sleep(_PAUSE if timeout is None else min(max(timeout, 0.0), _PAUSE))
        return steps

    def _exchange(self) -> set[int]:
        """Send and poll; returns the envs of which something was told."""
        if not self._polled:
            self._called(self._base.seed, list(self._seeds))
            self._polled = True
        sent, self._sent = self._sent, {}
        if sent:
            self._called(self._base.send_actions, sent)
        told = self._six(self._called(self._base.poll))
        for i in sorted({i for part in told for i in part}):
            six = [part.get(i, {}) for part in told]
            if isinstance(six[0], Exception):
                six[0].add_note(f"steppe: poll() of {self._kind} told it of env {i}, runner {self._runner}")
                raise six[0]
            if not (six[2] or six[3]):
                six[2] = {ALL: False}
            self._subs[i].told.append(six)
        return {i for i, sub in enumerate(self._subs) if sub.told}

    def _called(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            error.add_note(f"steppe: in {method.__name__}() of {self._kind}, runner {self._runner}")
            raise

    def _six(self, result: Any) -> Any:
        """Six dicts by env out of what ``poll`` returned."""
        dicts = isinstance(result, tuple) and {*map(type, result)} == {dict}
        about: dict[str, Any] = {"env_class": self._kind, "runner": self._runner, "env": -1, "leaf": "poll"}
        if dicts and len(result) == 5:
            obs, rewards, dones, infos, taken = result
            if any(isinstance(part, dict) and ALL in part for part in infos.values()):
                got = "five items, the fourth of which are flags; with truncateds there are six"
                raise EnvError("E301", f"poll returned {got}: ({', '.join(_ITEMS)})", **about)
            split = {i: split_dones(flags, infos.get(i, {})) for i, flags in dones.items()}
            flags = [{i: both[at] for i, both in split.items()} for at in (0, 1)]
            result = (obs, rewards, *flags, infos, taken)
        if not dicts or len(result) != 6:
            fix = f"return ({', '.join(_ITEMS)}), each {{env: {{agent: value}}}}"
            got = f"{len(result)} dicts" if dicts else show(result)
            raise EnvError("E301", f"poll returned {got}; {fix}", **about)
        for i in {i for part in result for i in part} - {*range(self.num_envs)}:
            fix = f"envs are numbered 0 to {self.num_envs - 1}; set self.num_envs if there are more"
            raise EnvError("E301", f"poll tells of env {i!r}; {fix}", **about)
        return result

    def _decide(self, step: TimeStep) -> None:
        """Mark the rows whose agents have acted already."""
        values, places, decided = list[Any](), list[Place](), np.zeros(len(step.slot), np.bool_)
        for row in np.flatnonzero(~(step.terminated | step.truncated)).tolist():
            info, _ = self._who[int(step.slot[row])]
            if info.agent in self._subs[info.env].taken:
                decided[row] = True
                places.append(Place(info.env, info.episode, int(step.t[row]), None, info.agent))
                values.append(self._subs[info.env].taken.pop(info.agent))
        if not values:
            return
        try:
            column = spaces.collect(self.spaces[step.space].action, values, root="off_policy_actions")
        except spaces.BadLeaf as bad:
            text = f"{bad.leaf}: expected {bad.expected}, got {bad.got}"
            raise self._guard.error("E305", text, places[bad.row], bad.leaf) from None
        self._rows.send_actions(step.slot[decided], column)
        step.decided = decided
        step.decision = Decision(column, np.full(len(values), np.nan, np.float32))

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """Answer ``slots``, all of one space pair, with a column of actions; the column is copied.

        Raises:
            ValueError: a slot awaits no action, or is of another pair, or the column has another length.
        """
        self._rows.send_actions(slots, actions)
        if len(slots):
            _, space = self._who[int(slots[0])]
            values = spaces.rows(self.spaces[space].action, actions)
            for slot, value in zip(slots.tolist(), values, strict=True):
                info, _ = self._who[slot]
                self._sent.setdefault(info.env, {})[info.agent] = value

    def pending(self) -> Sequence[TimeStep]:
        """The rows that await an action; ``opened`` has their slots and those of silent agents."""
        return self._rows.pending()

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd but survivable, such as ``{"E101 obs[2]": 3}``."""
        return self._rows.health()

    def get_sub_environments(self) -> list[Any]:
        """The envs inside, by index, where there are such objects."""
        return list(self._base.get_sub_environments())

    def get_state(self) -> State:
        """What new episodes of these envs begin with; those under way are not in it."""
        state = self._rows.get_state()
        return {name: state[name] for name in ("started", "seeds", "health") if name in state}

    def set_state(self, state: State) -> list[str]:
        """Begin new episodes, with seeds of their own, which is said in one sentence; waits until all have.

        Raises:
            CheckpointError: the state is of another number of envs.
        """
        words = [int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1 for seed in state["seeds"]]
        seeds = words if state["started"] else list(state["seeds"])
        self._rows.set_state({"started": False, "seeds": seeds, "health": state.get("health", {})})
        self._seeds, self._sent, self._who, self._begun = seeds, {}, {}, set()
        for sub in self._subs:
            sub.told.clear()
            sub.begins = not self._polled
        self._polled = False  # seeds come first
        while state["started"] and len(self._begun) < self.num_envs:
            self.poll()
        told = f"E402 the {self.num_envs} envs of {self._kind} begin new episodes: a BaseEnv has no state"
        return [told] if state["started"] else []

    def close(self) -> None:
        """Stop the env."""
        if not self._closed:
            self._closed = True
            self._rows.close()
            self._called(self._base.close)
