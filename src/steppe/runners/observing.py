"""Asks the ``observation_fn`` of a run what agents observe."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, final

from steppe.envs.guards import show
from steppe.envs.observing import Moment, Observing
from steppe.errors import ConfigError
from steppe.runners.policies import MappedEpisode
from steppe.sampling.episodes import Episode
from steppe.types import AgentID, SlotInfo, State

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig
    from steppe.runners.local import LocalRunner

_ARGUMENTS = ("agent_obs", "worker", "base_env", "policies", "episode")


@final
class ObservedEpisode:
    """The running episode that an ``observation_fn`` is asked about.

    Attributes:
        id: unique in the run, as callbacks see it.
        env_index: of its env in the runner.
        worker_index: of the runner.
        number: counts the episodes of that env.
        length: env steps so far.
        user_data: yours: what one call wants to tell the next one.
    """

    def __init__(self, runner: LocalRunner, env_index: int, number: int) -> None:
        self.id = MappedEpisode(runner, env_index, number).id
        self.worker_index, self.env_index, self.number = runner.worker_index, env_index, number
        self.length = 0
        self.user_data: dict[str, Any] = {}
        self._runner, self._slots = runner, dict[AgentID, int]()

    def policy_for(self, agent_id: AgentID) -> str:
        """Id of the policy that acts for an agent, or would if it had an observation."""
        mapping = self._runner.mapping
        if len(mapping.ids) == 1:
            return mapping.ids[0]
        if agent_id in self._slots:
            return self._runner.sampler.policy_of(self._slots[agent_id])
        return mapping.ahead(SlotInfo(-1, self.env_index, agent_id, self.number, 0))

    def goes_on(self, moment: Moment, runner: LocalRunner) -> None:
        """Observations have come to ``runner``, which another one may have lent its envs."""
        self.length, self._slots, self._runner = moment.t, dict(moment.slots), runner

    def kept(self) -> State:
        """``user_data``, as far as a checkpoint can hold it; the rest is said."""
        seen = Episode(self.worker_index, self.env_index, self.number)
        seen.user_data = self.user_data
        return {name: seen.get_state()[name] for name in ("env", "episode", "user_data")}


@final
class AskedFunction:
    """An ``observation_fn``, called with those of its arguments that it takes.

    Args:
        function: of the user.
        runner: whose envs it is asked about.

    Attributes:
        runner: who samples; another one while it borrows the envs.

    Raises:
        ConfigError: the function takes what it is not given.
    """

    def __init__(self, function: Callable[..., Any], runner: LocalRunner) -> None:
        self._function, self.runner = function, runner
        self._name = getattr(function, "__name__", type(function).__name__)
        self._takes = _taken(function, self._name)
        self._episodes: dict[int, ObservedEpisode] = {}
        self._kept: dict[tuple[int, int], dict[str, Any]] = {}

    def __call__(self, moment: Moment, obs: dict[AgentID, Any]) -> dict[AgentID, Any]:
        """The observations that agents get.

        Raises:
            ConfigError: it returned no dict.
            Exception: what it raised.
        """
        runner, episode = self.runner, self._episodes.get(moment.env)
        if episode is None or moment.t == 0 or episode.number != moment.episode:
            episode = self._episodes[moment.env] = ObservedEpisode(runner, moment.env, moment.episode)
            if moment.t > 0:  # its env was brought back to the middle of it
                episode.user_data = deepcopy(self._kept.get((moment.env, moment.episode), {}))
        episode.goes_on(moment, runner)
        told = {"agent_obs": obs, "episode": episode, **runner.around._asdict()}
        result = self._function(**{name: told[name] for name in self._takes})
        if not isinstance(result, dict):
            raise ConfigError(
                f"observation_fn {self._name} returned {show(result)}; return a dict of observations by agent"
            )
        return result

    def get_state(self, envs: Sequence[int]) -> list[State]:
        """The ``user_data`` of the episodes that run in ``envs``."""
        return [self._episodes[i].kept() for i in envs if i in self._episodes]

    def set_state(self, state: Sequence[State]) -> None:
        """Go on from :meth:`get_state`: with an empty memory where an episode is played again."""
        self._episodes = {}
        self._kept = {(saved["env"], saved["episode"]): saved["user_data"] for saved in state}


def made_observing(runner: LocalRunner, config: AlgorithmConfig, *, policies_say: bool) -> Observing:
    """What ``config`` wants done to the observations of ``runner``.

    Raises:
        ConfigError: ``observation_fn`` takes what it is not given.
    """
    function = None if config.observation_fn is None else AskedFunction(config.observation_fn, runner)
    return Observing(function, add_agent_id=config.add_agent_id, policies_say=policies_say)


def _taken(function: Callable[..., Any], name: str) -> Sequence[str]:
    """Which arguments a function is to be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins say nothing
        return _ARGUMENTS
    for one in parameters:
        known = one.name in _ARGUMENTS and one.kind is not one.POSITIONAL_ONLY
        if known or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) or one.default is not one.empty:
            continue
        near = difflib.get_close_matches(one.name, _ARGUMENTS, n=1)
        meant = f"; did you mean {near[0]}?" if near and near[0] != one.name else "."
        raise ConfigError(
            f"observation_fn {name} takes {one.name!r}, which it is not given{meant} It gets by keyword "
            f"those that it takes of {', '.join(_ARGUMENTS)}"
        )
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return _ARGUMENTS
    return [one.name for one in parameters if one.name in _ARGUMENTS]
