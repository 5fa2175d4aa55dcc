"""Which agents of multi-agent envs have which spaces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

from steppe import spaces
from steppe.envs.guards import show
from steppe.envs.multi_agent import MultiAgentEnv, misnamed
from steppe.envs.observing import Observing
from steppe.errors import CheckpointError, EnvError, SpaceError
from steppe.types import AgentID, SlotInfo, SpacePair

PairFor = Callable[[SlotInfo], SpacePair]
"""The spaces of an agent whose env does not say them."""

_MOST_KNOWN = 10_000  # agents whose spaces are remembered; ids may be new in every episode


@final
class AgentSpaces:
    """The space pairs that agents have, asked for once per agent and env.

    Args:
        envs: which say what their agents have.
        given: an observation and an action space (or None) that override that.
        maximum: for Sequence spaces that state no maximum.
        pair_for: asked whenever somebody comes whose env does not say.
        observing: what is done to what the envs return.

    Attributes:
        pairs: all pairs so far; more may come.
        agents: index of the pair of everyone who is known beforehand.

    Raises:
        SpaceError: a space cannot be handled.
    """

    def __init__(
        self,
        envs: Sequence[MultiAgentEnv],
        given: tuple[Any, Any],
        maximum: int | None,
        pair_for: PairFor | None,
        observing: Observing | None = None,
    ) -> None:
        self._envs, self._given, self._maximum, self._pair_for = envs, given, maximum, pair_for
        self._observing = observing
        self._known: list[dict[AgentID, int]] = [{} for _ in envs]
        self.pairs: tuple[SpacePair, ...] = ()
        agents: dict[AgentID, int] = {}
        for i, env in enumerate(envs):
            for agent in _announced(env, i) or list(env.observation_spaces or ()):
                space = self._stated(i, agent)
                if space is not None:
                    agents[agent] = space
        self.agents: Mapping[AgentID, int] = agents
        if not self.pairs:
            shared = (envs[0].observation_space, envs[0].action_space)
            anyone = self._specs(0, [None if isinstance(space, dict) else space for space in shared])
            if None not in anyone:
                self._index(SpacePair(*anyone))

    def of(self, info: SlotInfo) -> int:
        """Index of the space pair of somebody who has come.

        Raises:
            SpaceError: nobody says it.
        """
        found = self._stated(info.env, info.agent)
        if found is not None:
            return found
        if self._pair_for is None:
            raise SpaceError(
                f"{self._name(info.env)} has no spaces for agent {info.agent!r}: set self.observation_space "
                "and self.action_space (for all agents), or self.observation_spaces and self.action_spaces "
                "(dicts by agent) in its __init__, or name them in the policies"
            )
        own = self._asked(info.env, info.agent)
        other = self._pair_for(info)
        return self._index(SpacePair(*(b if a is None else a for a, b in zip(own, other, strict=True))))

    def save(self) -> list[list[dict[str, Any]]]:
        """Descriptions of all pairs."""
        return [[*map(spaces.describe, pair)] for pair in self.pairs]

    def load(self, saved: Sequence[Sequence[Any]]) -> None:
        """Know the pairs of :meth:`save`, by the same index.

        Raises:
            CheckpointError: what is known already is something else.
        """
        pairs = tuple(SpacePair(*map(spaces.from_description, pair)) for pair in saved)
        if pairs[: len(self.pairs)] != self.pairs:
            raise CheckpointError("the state is of envs whose agents have other spaces")
        self.pairs = pairs

    def _stated(self, i: int, agent: AgentID) -> int | None:
        """Index of the space pair that env ``i`` says for ``agent``; None if it does not."""
        known = self._known[i]
        if agent not in known:
            specs = self._asked(i, agent)
            if None in specs:
                return None
            if len(known) >= _MOST_KNOWN:
                known.clear()
            known[agent] = self._index(SpacePair(*specs))
        return known[agent]

    def _asked(self, i: int, agent: AgentID) -> list[Any]:
        env = self._envs[i]
        return self._specs(i, [env.get_observation_space(agent), env.get_action_space(agent)])

    def _specs(self, i: int, said: Sequence[Any]) -> list[Any]:
        found = [b if a is None else a for a, b in zip(self._given, said, strict=True)]
        if self._observing is not None and self._observing.policies_say:
            found[0] = None
        names = [f"{self._name(i)}.{name}_space" for name in ("observation", "action")]
        specs = [
            None if space is None else spaces.spec_of(space, max_sequence_length=self._maximum, name=name)
            for space, name in zip(found, names, strict=True)
        ]
        if self._observing is not None and specs[0] is not None:
            specs[0] = self._observing.spec(i, specs[0])
        return specs

    def _index(self, pair: SpacePair) -> int:
        if pair not in self.pairs:
            self.pairs += (pair,)
        return self.pairs.index(pair)

    def _name(self, i: int) -> str:
        return self._envs[i].shown_as


def _announced(env: MultiAgentEnv, i: int) -> Sequence[AgentID]:
    """Everyone who may ever appear.

    Raises:
        EnvError: E407, somebody has no proper name.
    """
    ids: Any = env.possible_agents
    if isinstance(ids, str) or not isinstance(ids, Collection):
        wrong = f"is {show(ids)}; give a list"
    else:
        wrong = next((f"has {text}" for text in map(misnamed, ids) if text is not None), "")
    if wrong:
        leaf = "possible_agents"
        raise EnvError("E407", f"{leaf} {wrong}", env_class=env.shown_as, env=i, leaf=leaf)
    return list(ids)
