"""The spaces of what is served: of a stub, which is never stepped, of a file, or of the policies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from steppe.containers import copied
from steppe.envs import registry
from steppe.envs.agent_spaces import AgentSpaces
from steppe.envs.context import EnvContext
from steppe.envs.multi_agent import MultiAgentEnv
from steppe.errors import ConfigError, SpaceError
from steppe.spaces import from_description, spec_of
from steppe.types import ALONE, AgentID, SpacePair

_SPACES = ("observation_space", "action_space")
ANYBODY = "*"
"""Stands for the agents that nobody has named, where a server tells its spaces."""
_OF_MANY = ("possible_agents", "observation_spaces")


class Served(NamedTuple):
    """Who comes, with which spaces.

    Attributes:
        pairs: of spaces.
        agents: index of the pair of everyone who is known beforehand.
        everyone: of all others; None: there are no others.
        multi_agent: whether observations come by agent.
    """

    pairs: tuple[SpacePair, ...]
    agents: Mapping[AgentID, int]
    everyone: int | None = None
    multi_agent: bool = False


@final
class _Agents(MultiAgentEnv):
    """Something that says the spaces of several agents, as an env of ours would."""

    def __init__(self, stub: Any, name: str) -> None:
        for attribute in (*_SPACES, "action_spaces", *_OF_MANY):
            if (value := getattr(stub, attribute, None)) is not None:
                setattr(self, attribute, value)
        self.name = name

    @property
    def shown_as(self) -> str:
        """What messages call it."""
        return self.name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Nobody calls it."""
        raise NotImplementedError

    def step(self, action_dict: dict[Any, Any]) -> Any:
        """Nobody calls it."""
        raise NotImplementedError


def served(
    env: Any,
    env_config: Mapping[str, Any] | None,
    given: tuple[Any, Any] = (None, None),
    *,
    maximum: int | None = None,
    of_policies: Iterable[SpacePair] = (),
) -> Served:
    """The spaces of a stub.

    Args:
        env: anything with an ``observation_space`` and an ``action_space``: an object, a class, a function
            that makes it, any of the texts that name an env, or a ``.json`` file of spaces; None: ``given``
            or ``of_policies`` say it all.
        env_config: for what has to be made.
        given: an observation and an action space (or None) that override the stub's.
        maximum: for Sequence spaces that state no maximum.
        of_policies: the spaces of all policies, if they name them.

    Raises:
        ConfigError: no spaces, or nothing that makes a stub.
        SpaceError: a space cannot be handled.
    """
    name, pairs = registry.env_name(env), tuple(dict.fromkeys(of_policies))
    stub = stub_of(env, env_config)
    if stub is not None and _is_of_many(stub):
        many = stub if isinstance(stub, MultiAgentEnv) else _Agents(stub, name)
        known = AgentSpaces([many], given, maximum, None)
        everyone = 0 if len(known.pairs) == 1 else None
        if known.pairs:
            return Served(known.pairs, known.agents, everyone, multi_agent=True)
    elif stub is not None or None not in given:
        said = [
            getattr(stub, space, None) if own is None else own
            for space, own in zip(_SPACES, given, strict=True)
        ]
        if None in said:
            raise ConfigError(
                f"{name} is to be served and has no {_SPACES[said.index(None)]}: a stub has an "
                "observation_space and an action_space"
            )
        specs = [
            spec_of(space, max_sequence_length=maximum, name=what)
            for space, what in zip(said, _SPACES, strict=True)
        ]
        return Served((SpacePair(*specs),), ALONE)
    if not pairs:
        raise ConfigError(
            f"nothing says the spaces of the agents of {name}: give the stub observation_spaces and "
            "action_spaces by agent, or name both spaces in each of the policies"
        )
    return Served(pairs, {}, 0 if len(pairs) == 1 else None, multi_agent=True)


def stub_of(env: Any, env_config: Mapping[str, Any] | None) -> Any:
    """What says the spaces; nothing is built that says them before.

    Raises:
        ConfigError: the spelling is unknown, or ``env_config`` does not fit.
    """
    if isinstance(env, str) and env.endswith(".json"):
        return spaces_file(env)
    made = registry.creator_of(env) if isinstance(env, str) else None
    env = env if made is None else made.creator
    if env is None and made is not None:  # an id of Gymnasium
        env = made(EnvContext(env_config))
    if env is None or _says(env) or not callable(env):
        return env
    context = EnvContext(copied(dict(env_config or {})))
    args, keywords = registry.arguments_for(env, context, registry.env_name(env))
    return env(*args, **keywords)


def _says(stub: Any) -> bool:
    """Whether it is itself what says the spaces; a class may have them as its own attributes."""
    return any(_attribute(stub, name) is not None for name in ("observation_space", "observation_spaces"))


def _attribute(stub: Any, name: str) -> Any:
    """An attribute; None where a class only says how its objects will have it."""
    value = getattr(stub, name, None)
    return None if isinstance(stub, type) and (callable(value) or isinstance(value, property)) else value


def _is_of_many(stub: Any) -> bool:
    if isinstance(stub, MultiAgentEnv) or (isinstance(stub, type) and issubclass(stub, MultiAgentEnv)):
        return True
    spaces = type(getattr(stub, "observation_space", None)) is dict
    return spaces or any(_attribute(stub, name) is not None for name in _OF_MANY)


@final
class SpacesFile:
    """The spaces that a file describes.

    Attributes:
        observation_space: a spec; with many agents, a dict of them by agent.
        action_space: likewise.
        possible_agents: None with one agent; empty where anybody may come.
    """

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        named = list(observation_space) if type(observation_space) is dict else None
        anybody = named == [ANYBODY]
        self.observation_space = observation_space[ANYBODY] if anybody else observation_space
        self.action_space = action_space[ANYBODY] if anybody else action_space
        self.possible_agents: list[str] | None = [] if anybody else named


def spaces_file(path: str) -> SpacesFile:
    """Read ``{"observation_space": ..., "action_space": ...}``, each a description or, by agent, several.

    What ``GET /v1/spaces`` of a policy server answers is such a file, too.

    Raises:
        ConfigError: it cannot be read, or describes no spaces.
    """
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = [said[name] for name in _SPACES]
        return SpacesFile(*(_described(part) for part in parts))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a file of spaces: {error}") from None
    except (KeyError, TypeError, AttributeError, SpaceError) as error:
        raise ConfigError(
            f'{path} describes no spaces: {error!r}; write {{"observation_space": {{"kind": "Box", ...}}, '
            '"action_space": {...}}, or both as objects by agent'
        ) from None


def _described(part: Any) -> Any:
    if isinstance(part.get("kind"), str):
        return from_description(part)
    known = [agent for agent in part if agent != ANYBODY] or [ANYBODY]
    return {agent: from_description(part[agent]) for agent in known}
