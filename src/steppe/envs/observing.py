"""What agents observe where it is not what their env returns: by a user's function, and who they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, final

from steppe.envs.guards import Guard, Place, show
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.errors import ConfigError, EnvError
from steppe.spaces import DictSpec, DiscreteSpec, Spec
from steppe.types import AgentID, State

AGENT_ID, OBSERVATION = "agent_id", "observation"
_HINT = (
    "observation_fn returned it; declare the space of what it returns as config.observation_space, or in the "
    "PolicySpec of every policy"
)


class Moment(NamedTuple):
    """When observations came: vector index, episode, env step; and the slots of agents that live on."""

    env: int
    episode: int
    t: int
    slots: Mapping[AgentID, int]


class ObservationFunction(Protocol):
    """Rewrites the observations of one moment; its state goes into checkpoints.

    Attributes:
        runner: whose sampler answers the agents.
    """

    runner: Any

    def __call__(self, moment: Moment, obs: dict[AgentID, Any]) -> dict[AgentID, Any]:
        """The observations that agents get."""

    def get_state(self, envs: Sequence[int]) -> list[State]:
        """What it remembers of the episodes that run in ``envs``."""

    def set_state(self, state: Sequence[State]) -> None:
        """Go on from :meth:`get_state`."""


@final
class Observing:
    """What is done to the observations of envs of many agents.

    Args:
        function: rewrites them; None leaves them as they are.
        add_agent_id: each gets the key ``"agent_id"`` afterwards, the place of its agent in the env's
            ``possible_agents``; one that is no dict becomes ``{"observation": ..., "agent_id": ...}``.
        policies_say: the policies name the spaces of what agents observe, the ids included, not the envs.
    """

    def __init__(
        self, function: ObservationFunction | None, *, add_agent_id: bool, policies_say: bool
    ) -> None:
        self.function, self._add_id = function, add_agent_id
        self.policies_say = policies_say and function is not None
        self._numbers: list[dict[AgentID, int]] = []

    def meet(self, envs: Sequence[MultiAgentEnv]) -> None:
        """Look who there is.

        Raises:
            ConfigError: the ids are wanted, and an env does not say who may appear.
        """
        if not self._add_id:
            return
        self._numbers = [{agent: n for n, agent in enumerate(env.possible_agents)} for env in envs]
        for env, numbers in zip(envs, self._numbers, strict=True):
            if not numbers:
                raise ConfigError(
                    f"add_agent_id=True: {type(env.unwrapped).__name__} does not say who its agents are; set "
                    "self.possible_agents in its __init__, a list of all ids"
                )

    def spec(self, env: int, spec: Spec) -> Spec:
        """What an agent of ``env`` gets to observe whose env says ``spec``.

        Raises:
            ConfigError: the ids are wanted, and their key is taken.
        """
        if not self._add_id:
            return spec
        parts = spec.items if isinstance(spec, DictSpec) else ((OBSERVATION, spec),)
        if AGENT_ID in dict(parts):
            raise ConfigError(
                f"add_agent_id=True: observations have the key {AGENT_ID!r} already; rename it in the env"
            )
        return DictSpec((*parts, (AGENT_ID, DiscreteSpec(len(self._numbers[env])))))

    def observed(self, moment: Moment, obs: Mapping[AgentID, Any]) -> dict[AgentID, Any]:
        """The observations that agents get.

        Raises:
            EnvError: E404, an agent is none of the ``possible_agents`` by which they are numbered.
            Exception: what the function raised.
        """
        own = dict(obs)  # the env may keep its dict
        if self.function is not None:
            own = self.function(moment, own)
        if not self._add_id:
            return own
        numbers = self._numbers[moment.env]
        return {agent: _identified(value, agent, numbers) for agent, value in own.items()}

    def get_state(self, native: Sequence[bool]) -> list[State]:
        """What the function remembers; episodes that are played again are not in it."""
        envs = [i for i, own in enumerate(native) if own]
        return [] if self.function is None else self.function.get_state(envs)

    def set_state(self, state: Sequence[State]) -> None:
        """Go on from :meth:`get_state`."""
        if self.function is not None:
            self.function.set_state(state)

    def blame(self, error: EnvError, guard: Guard) -> EnvError:
        """The same error; it says where to declare a space if the function may have made the observation."""
        if self.function is None:
            return error
        place = Place(error.env, error.episode, error.step, error.action, error.agent)
        return guard.error(error.code, f"{error.text}; {_HINT}", place, error.leaf)


def _identified(value: Any, agent: AgentID, numbers: Mapping[AgentID, int]) -> dict[str, Any]:
    if agent not in numbers:
        raise EnvError(
            "E404",
            f"add_agent_id=True: obs has {show(agent)}, which is not in possible_agents, by which agents are "
            "numbered; name it there",
            agent=agent,
        )
    own = value if isinstance(value, Mapping) else {OBSERVATION: value}
    return {**own, AGENT_ID: numbers[agent]}
