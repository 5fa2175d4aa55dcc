"""Callbacks: the moments of a run at which code of the user's is called.

A hook that is not overridden costs nothing: which ones are is looked up once, when the run is built.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, final

import numpy as np

from steppe.errors import ConfigError
from steppe.sampling.metrics import EpisodeRecord, Sample
from steppe.spaces import map_leaves, take
from steppe.types import SINGLE_AGENT, AgentID, AsyncEnv, Policy, Rollout, SlotInfo, State, TimeStep, Tree

logger = logging.getLogger("steppe")

Hook = Callable[..., None]
"""Takes the arguments that :data:`HOOKS` lists for it, by keyword."""

_EPISODE = ("worker", "base_env", "policies", "episode", "env_index")
HOOKS: dict[str, tuple[str, ...]] = {
    "on_algorithm_init": ("algorithm",),
    "on_sub_environment_created": ("worker", "sub_environment", "env_context", "env_index"),
    "on_episode_start": _EPISODE,
    "on_episode_step": _EPISODE,
    "on_episode_end": _EPISODE,
    "on_sample_end": ("worker", "samples"),
    "on_postprocess_trajectory": (
        *("worker", "episode", "agent_id", "policy_id", "policies"),
        *("postprocessed_batch", "original_batches"),
    ),
    "on_learn_on_batch": ("policy", "train_batch", "result"),
    "on_train_result": ("algorithm", "result"),
    "on_evaluate_start": ("algorithm",),
    "on_evaluate_end": ("algorithm", "evaluation_metrics"),
    "on_checkpoint": ("algorithm", "path"),
}
"""Every hook with the arguments that it may take; an override names those that it wants."""
SYNONYMS = {"trainer": "algorithm", "env_runner": "worker", "env": "base_env"}
"""Further names of arguments, as other programs write them."""


class Callbacks:
    """Subclass it and override what you want; give the class to ``config.callbacks(...)``.

    Every hook is called with keyword arguments, of which an override takes those that it names, or all of
    them with ``**kwargs``. An exception in a hook stops the run and comes out as it is. Where runners are
    processes of their own, each has its own object: hooks of episodes and samples run there.
    """

    def on_algorithm_init(self, *, algorithm: Any) -> None:
        """The run is built; nothing was sampled yet."""

    def on_sub_environment_created(
        self, *, worker: Any, sub_environment: Any, env_context: Any, env_index: int
    ) -> None:
        """One env was made by its constructor; it was not reset yet."""

    def on_episode_start(
        self, *, worker: Any, base_env: AsyncEnv, policies: Any, episode: Episode, env_index: int
    ) -> None:
        """The first observations of an episode are there."""

    def on_episode_step(
        self, *, worker: Any, base_env: AsyncEnv, policies: Any, episode: Episode, env_index: int
    ) -> None:
        """An env step was taken, the last one of the episode included."""

    def on_episode_end(
        self, *, worker: Any, base_env: AsyncEnv, policies: Any, episode: Episode, env_index: int
    ) -> None:
        """The episode is over; what ``episode.custom_metrics`` holds is averaged into the result."""

    def on_sample_end(self, *, worker: Any, samples: Any) -> None:
        """A fragment is complete, see :class:`~steppe.sampling.sampler.Sample`."""

    def on_postprocess_trajectory(
        self,
        *,
        worker: Any,
        episode: Episode,
        agent_id: AgentID,
        policy_id: str,
        policies: Any,
        postprocessed_batch: dict[str, Any],
        original_batches: dict[AgentID, Any],
    ) -> None:
        """One agent's rows of one episode in a fragment; changed columns are learned from.

        Called when the fragment is complete, so the episode may be over. ``original_batches`` holds this
        fragment's rows of all agents of the episode, ``{agent: (policy, batch)}``.
        """

    def on_learn_on_batch(self, *, policy: Policy, train_batch: dict[str, Any], result: Any) -> None:
        """A batch ``(rows, lanes, ...)`` is about to be learned from.

        Changed columns are what is learned from; numbers put into ``result`` go to the statistics.
        """

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any]) -> None:
        """An iteration is over; ``result`` can be changed and added to before anybody sees it."""

    def on_evaluate_start(self, *, algorithm: Any) -> None:
        """An evaluation begins."""

    def on_evaluate_end(self, *, algorithm: Any, evaluation_metrics: dict[str, Any]) -> None:
        """An evaluation is over; ``evaluation_metrics`` can be changed and added to."""

    def on_checkpoint(self, *, algorithm: Any, path: Any) -> None:
        """A checkpoint was written to the folder ``path``."""

    def get_state(self) -> State:
        """What of this object goes into checkpoints: JSON values and numpy arrays."""
        return {}

    def set_state(self, state: State) -> None:
        """Go on from what :meth:`get_state` gave; not called where it gave nothing."""


def _named(text: str) -> Any:
    from steppe.envs.named_code import code_named  # most callbacks are classes

    return code_named(text, "callbacks")


def check_callbacks(given: Any) -> list[Any]:
    """The callbacks of a config: subclasses, objects, and texts that name a class, one or a list, as a list.

    Raises:
        ConfigError: it is something else, a hook is misspelt, or takes an argument that there is not.
    """
    parts = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    found = [_named(one) if isinstance(one, str) and ":" in one else one for one in parts]
    for one in found:
        cls = one if isinstance(one, type) else type(one)
        if not issubclass(cls, Callbacks):
            raise ConfigError(
                f"callbacks={one!r}: give a subclass of steppe.Callbacks, an object of one, a list of them, "
                'or "file.py:Class"'
            )
        _check(one)
    return found


def make_callbacks(given: Any) -> tuple[Callbacks, ...]:
    """The callbacks of a config, which :func:`check_callbacks` passes, as objects."""
    found = check_callbacks(given)
    for one in found:
        needed = inspect.signature(one).parameters.values() if isinstance(one, type) else ()
        if any(p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in needed):
            raise ConfigError(
                f"callbacks {one.__name__} takes arguments: give an object, {one.__name__}(...)"
            )
    return tuple(one() if isinstance(one, type) else one for one in found)


def get_callbacks_state(callbacks: Sequence[Callbacks]) -> State:
    """What each of them keeps, by its place."""
    return {str(i): one.get_state() for i, one in enumerate(callbacks)}


def set_callbacks_state(callbacks: Sequence[Callbacks], state: State) -> None:
    """Hand each of them back what it kept, if it kept anything."""
    for i, one in enumerate(callbacks):
        if state.get(str(i)):
            one.set_state(state[str(i)])


def hook_of(callbacks: Sequence[Callbacks], name: str) -> Hook | None:
    """One function for all overrides of a hook, in their order; None if there is none."""
    own = getattr(Callbacks, name)
    overrides = [
        _fitted(getattr(one, name))
        for one in callbacks
        if getattr(getattr(one, name), "__func__", None) is not own
    ]
    if len(overrides) <= 1:
        return overrides[0] if overrides else None

    def every(**arguments: Any) -> None:
        for override in overrides:
            override(**arguments)

    return every


def _check(one: Any) -> None:
    """Look at everything that is named like a hook, of a class or of an object."""
    cls = one if isinstance(one, type) else type(one)
    own = (
        {} if isinstance(one, type) else {k: v for k, v in getattr(one, "__dict__", {}).items() if k in HOOKS}
    )
    for name, value in [(name, inspect.getattr_static(cls, name)) for name in dir(cls)] + list(own.items()):
        where = f"{cls.__name__}.{name}"
        if not name.startswith("on_") or value is vars(Callbacks).get(name):
            continue
        if name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(HOOKS)}"
            raise ConfigError(f"{where} is no hook; {meant} A method of your own needs a name without on_")
        function = getattr(value, "__func__", value)
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise ConfigError(f"{where} must be a function, and not an async one; it is {value!r:.60}")
        parameters = list(inspect.signature(function).parameters.values())
        if name not in own and not isinstance(value, staticmethod):
            if not parameters or parameters[0].name in HOOKS[name]:
                raise ConfigError(f"{where} is a method: its first parameter is self")
            del parameters[0]
        _check_arguments(where, name, parameters)


def _check_arguments(where: str, name: str, parameters: Sequence[inspect.Parameter]) -> None:
    legal = [*HOOKS[name], *(new for new, old in SYNONYMS.items() if old in HOOKS[name])]
    for one in parameters:
        if one.kind is one.POSITIONAL_ONLY:
            raise ConfigError(f"{where} takes {one.name!r} by position; hooks get their arguments by keyword")
        if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) or one.name in legal:
            continue
        near = difflib.get_close_matches(one.name, legal, n=1)
        if near or one.default is one.empty:  # what has a default can do without
            meant = f"did you mean {near[0]!r}?" if near else f"it may take {', '.join(HOOKS[name])}"
            raise ConfigError(f"{where} takes {one.name!r}, which this hook is not given; {meant}")


def _fitted(method: Hook) -> Hook:
    """``method``, called with those arguments that it names."""
    parameters = inspect.signature(method).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()) and not SYNONYMS.keys() & parameters:
        return method
    everything = any(one.kind is one.VAR_KEYWORD for one in parameters.values())

    def fitted(**arguments: Any) -> None:
        for other, name in SYNONYMS.items():
            if other in parameters and name in arguments:
                arguments[other] = arguments[name]
        method(**{key: value for key, value in arguments.items() if everything or key in parameters})

    return fitted


@final
class Episode:
    """A running episode, or one that just ended, as hooks see it.

    Attributes:
        id: unique in the run; those of evaluations begin with "e".
        env_index: of its env in the runner.
        worker_index: of the runner.
        number: counts the episodes of that env.
        length: env steps so far.
        total_reward: of all agents so far.
        agent_rewards: by agent id.
        user_data: yours: what one hook wants to tell another.
        custom_metrics: numbers by name; at the end of the episode they go into the result.
    """

    def __init__(self, worker: int, env: int, episode: int, place: str = "") -> None:
        self.id = f"{place}{worker}-{env}-{episode}"
        self.env_index, self.worker_index, self.number = env, worker, episode
        self.length, self.total_reward = 0, 0.0
        self.agent_rewards: dict[AgentID, float] = {}
        self.user_data: dict[str, Any] = {}
        self.custom_metrics: dict[str, float] = {}
        self._rows: dict[AgentID, tuple[Tree, int]] = {}
        self._infos: dict[AgentID, dict[str, Any]] = {}
        self._policies: dict[AgentID, str] = {}

    def get_agents(self) -> list[AgentID]:
        """Agents that have appeared so far."""
        return list(self._policies)

    def policy_for(self, agent_id: AgentID = SINGLE_AGENT) -> str:
        """Id of the policy that acts for an agent."""
        return self._policies[self._known(agent_id)]

    def last_info_for(self, agent_id: AgentID = SINGLE_AGENT) -> dict[str, Any]:
        """What the env told with the agent's newest observation; empty if nothing."""
        return self._infos.get(self._known(agent_id), {})

    def last_observation_for(self, agent_id: AgentID = SINGLE_AGENT) -> Tree:
        """The agent's newest observation, as the env's spaces lay it out in arrays."""
        if self._known(agent_id) not in self._rows:
            raise KeyError(f"agent {agent_id!r} was not observed since the run was resumed")
        return take(*self._rows[agent_id])

    def enter(self, agent: AgentID, policy: str) -> None:
        """Somebody appears."""
        self._policies[agent] = policy

    def see(self, info: SlotInfo, step: TimeStep, row: int, obs: Tree) -> None:
        """Take in one row of one agent; ``obs`` is the step's column, which nobody writes to."""
        agent, reward = info.agent, float(step.reward[row])
        self.length = max(self.length, int(step.t[row]))
        self.total_reward += reward
        self.agent_rewards[agent] = self.agent_rewards.get(agent, 0.0) + reward
        self._rows[agent] = obs, row
        self._infos[agent] = step.info.get(info.slot, {})

    def get_state(self) -> State:
        """What was counted, and of ``user_data`` what can be stored; the rest is said."""
        kept = {key: value for key, value in self.user_data.items() if _storable({key: value})}
        for key in self.user_data.keys() - kept.keys():
            logger.warning("episode.user_data[%r] is nothing that a checkpoint can hold: left out", key)
        counted: State = {"length": self.length, "total_reward": self.total_reward}
        counted["agent_rewards"] = [[agent, reward] for agent, reward in self.agent_rewards.items()]
        about = {"env": self.env_index, "episode": self.number, "custom_metrics": self.custom_metrics}
        return deepcopy({**counted, **about, "user_data": kept})

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`; rows and infos come with the next poll."""
        for name in ("length", "total_reward", "custom_metrics", "user_data"):
            setattr(self, name, deepcopy(state[name]))
        self.agent_rewards = {agent: reward for agent, reward in state["agent_rewards"]}

    def _known(self, agent_id: AgentID) -> AgentID:
        if agent_id not in self._policies:
            raise KeyError(f"no agent {agent_id!r} in episode {self.id}; there are {list(self._policies)}")
        return agent_id


class Surroundings(NamedTuple):
    """What hooks of one sampler are given beside the episode."""

    worker: Any
    base_env: AsyncEnv
    policies: Mapping[str, Policy]


@final
class EpisodeHooks:
    """Follows the rows of one sampler and calls the hooks of its episodes.

    Args:
        callbacks: whose overrides are called.
        around: what they are given.
        worker_index: of the runner.
    """

    def __init__(self, callbacks: Sequence[Callbacks], around: Surroundings, worker_index: int) -> None:
        self._around, self._index = around, worker_index
        self._start, self._step, self._end, self._fragment, self._trajectory = (
            hook_of(callbacks, name)
            for name in (
                *("on_episode_start", "on_episode_step", "on_episode_end"),
                *("on_sample_end", "on_postprocess_trajectory"),
            )
        )
        self._place = "e" if around.worker.in_evaluation else ""
        self._live: dict[int, SlotInfo] = {}
        # None: it was under way before anybody looked, so nobody is told of it.
        self._open: dict[tuple[int, int], Episode | None] = {}
        self._ended: dict[tuple[int, int], Episode] = {}

    @property
    def wanted(self) -> bool:
        """Whether any hook of episodes and samples is set."""
        return any((self._start, self._step, self._end, self._fragment, self._trajectory))

    def received(
        self, steps: Sequence[TimeStep], policy_of: Callable[[int], str], records: Sequence[EpisodeRecord]
    ) -> None:
        """Call what the rows of one poll make due: steps first, then ends, then starts.

        Args:
            steps: of the poll.
            policy_of: id of the policy that acts for a slot.
            records: of ended episodes, which get their metrics; this poll's are the last ones.
        """
        begun: dict[tuple[int, int], Episode] = {}
        for info in [info for step in steps for info in step.opened]:
            key = info.env, info.episode
            if key not in self._open:
                self._open[key] = begun[key] = Episode(self._index, *key, self._place)
            self._live[info.slot] = info
            if (episode := self._open[key]) is not None:
                episode.enter(info.agent, policy_of(info.slot))
        stepped: dict[tuple[int, int], Episode] = {}
        for step in steps:
            self._see(step, begun, stepped)
        for episode in stepped.values():
            self._call(self._step, episode)
        for key in [(end.env, end.episode) for step in steps for end in step.closed]:
            if (ended := self._open.pop(key, None)) is not None:
                record = next(r for r in reversed(records) if (r.env, r.episode) == key)
                record.custom_metrics = ended.custom_metrics  # the same dict: hooks may still add to it
                self._ended[key] = ended
                ended.length = record.length
                self._call(self._end, ended)
        for episode in begun.values():
            self._call(self._start, episode)

    def _see(
        self,
        step: TimeStep,
        begun: Mapping[tuple[int, int], Episode],
        stepped: dict[tuple[int, int], Episode],
    ) -> None:
        """Take in the rows of one TimeStep; ``stepped`` gets the episodes that they belong to."""
        obs, final = map_leaves(np.copy, step.obs), step.terminated | step.truncated
        for row, slot in enumerate(step.slot.tolist()):
            info = self._live.pop(slot) if final[row] else self._live[slot]
            key = info.env, info.episode
            if (episode := self._open[key]) is not None:
                episode.see(info, step, row, obs)
                if key not in begun:
                    stepped[key] = episode

    def sampled(self, sample: Sample) -> None:
        """Call the hooks of a complete fragment."""
        if self._trajectory is not None:
            self._postprocess(sample.rollouts, self._trajectory)
        if self._fragment is not None:
            self._fragment(worker=self._around.worker, samples=sample)
        self._ended = {}

    def moved(self, infos: Sequence[SlotInfo], policy_of: Callable[[int], str]) -> None:
        """Other policies act for some agents from now on."""
        for info in infos:
            if (episode := self._open.get((info.env, info.episode))) is not None:
                episode.enter(info.agent, policy_of(info.slot))

    def lost(self, info: SlotInfo) -> None:
        """An episode will not come to its end."""
        self._live.pop(info.slot, None)
        self._open.pop((info.env, info.episode), None)

    def get_state(self) -> list[State]:
        """The open episodes; of ``user_data`` what a checkpoint can hold."""
        return [episode.get_state() for episode in self._open.values() if episode is not None]

    def set_state(
        self, state: Sequence[State], live: Sequence[SlotInfo], policy_of: Callable[[int], str]
    ) -> None:
        """Go on from :meth:`get_state`, with the slots that are live."""
        self._live, self._ended = {info.slot: info for info in live}, {}
        self._open = dict.fromkeys((info.env, info.episode) for info in live)
        for saved in state:
            key = saved["env"], saved["episode"]
            self._open[key] = episode = Episode(self._index, *key, self._place)
            episode.set_state(saved)
            for info in live:
                if (info.env, info.episode) == key:
                    episode.enter(info.agent, policy_of(info.slot))

    def _call(self, hook: Hook | None, episode: Episode) -> None:
        if hook is not None:
            hook(**self._around._asdict(), episode=episode, env_index=episode.env_index)

    def _postprocess(self, rollouts: Sequence[Rollout], hook: Hook) -> None:
        from steppe.sampling.trajectories import batch_of, trajectories, write_back  # for this one hook

        found = [(rollout, part) for rollout in rollouts for part in trajectories(rollout)]
        batches = [batch_of(rollout, part) for rollout, part in found]
        together: dict[tuple[int, int], dict[AgentID, Any]] = {}
        for (rollout, part), batch in zip(found, batches, strict=True):
            everyone = together.setdefault((part.env, part.episode), {})
            policy = self._around.policies[rollout.policy]
            everyone[part.agent] = (
                policy,
                {name: map_leaves(np.copy, column) for name, column in batch.items()},
            )
        for (rollout, part), batch in zip(found, batches, strict=True):
            key = part.env, part.episode
            episode = self._ended.get(key) or self._open.get(key)
            if episode is None:
                continue
            hook(
                worker=self._around.worker,
                episode=episode,
                agent_id=part.agent,
                policy_id=rollout.policy,
                policies=self._around.policies,
                postprocessed_batch=batch,
                original_batches=together[key],
            )
            write_back(rollout, part, batch, self._around.policies[rollout.policy])


def _storable(value: Any, depth: int = 0) -> bool:
    """Whether a checkpoint can hold it; what is nested deeper than 20 may go in circles."""
    if type(value) is dict:
        items = value.items()
        return depth < 20 and all(type(key) is str and _storable(item, depth + 1) for key, item in items)
    if type(value) in (list, tuple):
        return depth < 20 and all(_storable(item, depth + 1) for item in value)
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return value.dtype.kind in "biuf"
    return value is None or type(value) in (bool, int, float, str)
