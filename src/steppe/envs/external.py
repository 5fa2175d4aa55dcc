"""Envs that run by themselves, in threads of their own, and ask for actions, as users write them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

from steppe.types import AgentID

if TYPE_CHECKING:
    from steppe.envs.external_rows import Desk


class About(NamedTuple):
    """How an action came about, see :meth:`ExternalEnv.get_action`; by agent, but for ``step``.

    Attributes:
        step: counts the observations of the episode from 0; for ``log_returns(..., step=)``.
        logp: log-probability of the action as the policy drew it.
        weights_version: counts the updates of the policy that acted.
    """

    step: int
    logp: Any
    weights_version: Any


class ClosedError(BaseException):
    """The run is over: ends ``run()``, also where that catches every Exception."""


class ExternalEnv(ABC):
    """Subclass it to let a simulator or a service that has its own loop ask for actions, and learn from it.

    ``run()`` is called in a thread of its own. It may have any number of episodes under way, and other
    threads of yours may take part. The spaces are given here or are attributes of the class.

    Args:
        action_space: a Gymnasium space.
        observation_space: likewise.
        max_concurrent: so many episodes may be open at a time; None: any number.

    Attributes:
        num_envs: so many objects of it a runner makes, each with a thread. ``num_envs_per_env_runner`` does
            not count here, for what runs by itself is mostly there once.
        max_backlog: while so many env steps wait to be learned from, ``start_episode`` waits; None: never.
    """

    action_space: Any = None
    observation_space: Any = None
    num_envs: int = 1
    max_concurrent: int | None = None
    max_backlog: int | None = 2000
    many: ClassVar[bool] = False
    _desk: Desk | None = None

    def __init__(
        self, action_space: Any = None, observation_space: Any = None, max_concurrent: int | None = None
    ) -> None:
        given = {"action_space": action_space, "observation_space": observation_space}
        for name, value in (given | {"max_concurrent": max_concurrent}).items():
            if value is not None:
                setattr(self, name, value)

    @abstractmethod
    def run(self) -> None:
        """Begin episodes, ask for actions and tell what they earned, for as long as there is something to do.

        What it raises ends the training with that exception. When it returns there are no more episodes.
        """

    def close(self) -> None:
        """Release everything; called when the run is over, and may be called twice."""
        return None

    @final
    def start_episode(self, episode_id: str | None = None, training_enabled: bool = True) -> str:
        """Begin an episode; waits while more than ``max_backlog`` env steps wait to be learned from.

        Args:
            episode_id: any text that no other episode has; one is made up if None.
            training_enabled: learn from it.

        Returns:
            Its id, for all other calls.

        Raises:
            ValueError: there is or was an episode of that id, or ``max_concurrent`` of them are open.
        """
        return self._connected().start(episode_id, training_enabled)

    @final
    def get_action(self, episode_id: str, obs: Any, full: bool = False) -> Any:
        """The policy's action for an observation; never waits for an update.

        Args:
            episode_id: of an open episode.
            obs: the observation; in an :class:`ExternalMultiAgentEnv` a dict by agent, of those that act now.
            full: tell how the action came about, too.

        Returns:
            The action as the space has it (by agent); with ``full`` a pair of it and an :class:`About`.

        Raises:
            ValueError: there is no such episode, or it has ended.
            EnvError: E101 to E107, the observation is not in its space, or its mask allows nothing.
        """
        actions, about = self._connected().act(episode_id, obs, None)
        return (actions, about) if full else actions

    @final
    def log_action(self, episode_id: str, obs: Any, action: Any) -> None:
        """Tell an observation and the action that you chose for it yourself.

        How probable that was is not known, so what learns on-policy (PPO) refuses it.

        Args:
            episode_id: of an open episode.
            obs: as for :meth:`get_action`.
            action: as the space has it (by agent, for the same agents).

        Raises:
            ValueError: as :meth:`get_action`.
            EnvError: E101 to E106, E305, the observation or the action is not in its space.
        """
        self._connected().act(episode_id, obs, (action,))

    @final
    def log_returns(
        self,
        episode_id: str,
        reward: Any,
        info: Any = None,
        multiagent_done_dict: Mapping[AgentID, bool] | None = None,
        step: int | None = None,
    ) -> None:
        """Tell what was earned; rewards add up until the next observation.

        Args:
            episode_id: of an open episode.
            reward: a finite number; in an :class:`ExternalMultiAgentEnv` a dict by agent.
            info: a dict for callbacks; by agent likewise.
            multiagent_done_dict: True for agents that leave the episode, terminated.
            step: credit this decision of the episode, as ``get_action(..., full=True)`` numbered it, and not
                the newest; it must be among the newest 1,000.

        Raises:
            ValueError: as :meth:`get_action`, or there is no such decision.
            EnvError: E201 no finite number, E404 or E403 an agent that never observed anything, or has left.
        """
        self._connected().earn(episode_id, reward, info, multiagent_done_dict, step)

    @final
    def end_episode(self, episode_id: str, obs: Any, truncated: bool = False) -> None:
        """End an episode.

        Args:
            episode_id: of an open episode.
            obs: the last observation (by agent); None: the last known one.
            truncated: it was cut off and would have gone on: then it is worth something still.

        Raises:
            ValueError: as :meth:`get_action`.
            EnvError: E101 to E106, the observation is not in its space.
        """
        self._connected().end(episode_id, obs, truncated)

    def _connected(self) -> Desk:
        if self._desk is None:
            raise RuntimeError(
                f"{type(self).__name__} belongs to no run yet: give the class to a config, "
                f"PPOConfig(env={type(self).__name__}), whose algorithm calls run() in a thread"
            )
        return self._desk


class ExternalMultiAgentEnv(ExternalEnv):
    """The same of many agents: observations, actions and rewards are dicts by agent.

    An agent joins with its first observation, and leaves when ``multiagent_done_dict`` names it, or with the
    end of the episode. The spaces are those of every agent, or dicts by agent.
    """

    many = True
