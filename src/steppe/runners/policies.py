"""The policies of a run: which agent acts with which, and which of them learn, by what."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

from steppe.config import AlgorithmConfig, PolicySpec, field_specs
from steppe.config.messages import say_once
from steppe.errors import ConfigError
from steppe.models.observations import has_image
from steppe.spaces import spec_of, summary
from steppe.types import DEFAULT_POLICY, AsyncEnv, Policy, SlotInfo, SpacePair

if TYPE_CHECKING:
    from steppe.learning.independent import PolicyLearner


@final
class MappedEpisode:
    """The episode that a ``policy_mapping_fn`` is asked about.

    Attributes:
        id: unique in the run, as callbacks see it.
        episode_id: the same as a whole number, of either parity by chance.
        env_index: of its env in the runner.
        number: counts the episodes of that env.
        worker_index: of the runner.
    """

    def __init__(self, worker: Any, env_index: int, number: int) -> None:
        worker_index = worker.worker_index
        self.id = f"{'e' if worker.in_evaluation else ''}{worker_index}-{env_index}-{number}"
        self.episode_id = zlib.crc32(self.id.encode())
        self.worker_index, self.env_index, self.number = worker_index, env_index, number


@final
class PolicyMapping:
    """Asks a ``policy_mapping_fn``, once per agent and episode.

    Args:
        function: takes the agent's id; the episode and the worker, too, if it has parameters for them. None
            maps every agent to the only policy or, of several, to the one that is called as the agent is.
        ids: of the policies.
        worker: the runner that asks.
    """

    def __init__(self, function: Callable[..., str] | None, ids: Iterable[str], worker: Any) -> None:
        self.ids, self._worker = list(ids), worker
        self._asked: dict[tuple[int, int, Any], str] = {}
        self.ask_by(function)

    def ask_by(self, function: Callable[..., str] | None) -> None:
        """Ask another function from now on."""
        self._function = function
        parameters = inspect.signature(function).parameters.values() if function is not None else ()
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        named = {p.name for p in parameters}
        many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self._positions = 3 if many else min(len(plain), 3)
        self._keywords = [
            name for name in ("episode", "worker") if name in named and all(p.name != name for p in plain)
        ]

    def __call__(self, info: SlotInfo) -> str:
        """Id of the policy of who lives in a slot.

        Raises:
            ConfigError: there is no such policy.
        """
        key = info.env, info.episode, info.agent
        if key in self._asked:
            return self._asked.pop(key)
        return self._ask(info)

    def ahead(self, info: SlotInfo, chosen: str = "") -> str:
        """The same before the slot is opened; the answer is kept until then, and is ``chosen`` if it can."""
        key = info.env, info.episode, info.agent
        if key not in self._asked:
            self._asked[key] = chosen if chosen in self.ids else self._ask(info)
        return self._asked[key]

    def _ask(self, info: SlotInfo) -> str:
        if self._function is None:
            answer: Any = self.ids[0] if len(self.ids) == 1 else info.agent
        else:
            episode = MappedEpisode(self._worker, info.env, info.episode)
            arguments = {"agent_id": info.agent, "episode": episode, "worker": self._worker}
            positions = list(arguments.values())[: self._positions]
            answer = self._function(*positions, **{name: arguments[name] for name in self._keywords})
        if answer not in self.ids:
            how = "no policy_mapping_fn" if self._function is None else "policy_mapping_fn"
            raise ConfigError(
                f"{how} maps agent {info.agent!r} to policy {answer!r} (env {info.env}, episode "
                f"{info.episode}); there are {', '.join(self.ids)}"
            )
        return str(answer)


def spaces_of(specs: Mapping[str, PolicySpec], env: AsyncEnv, mapping: PolicyMapping) -> dict[str, SpacePair]:
    """What each policy observes and chooses: as its spec says, or as the agents do that it acts for.

    Raises:
        ConfigError: agents of different spaces are mapped to one policy, or nothing says its spaces.
    """
    found = given_spaces(specs)
    if len(found) < len(specs) and len(env.spaces) == 1:
        found = dict.fromkeys(specs, env.spaces[0]) | found
    if len(found) == len(specs):
        return {id: found[id] for id in specs}
    first: dict[str, tuple[Any, int]] = {}
    for agent, space in env.agents.items():
        id = mapping(SlotInfo(0, 0, agent, 0, 0))
        other, known = first.setdefault(id, (agent, space))
        if known != space:
            raise ConfigError(
                f"policy {id!r} is to act for agents {other!r} and {agent!r}, whose spaces differ: "
                f"{_pair(env.spaces[known])}, and {_pair(env.spaces[space])}; map them to different policies"
            )
    for id in specs:
        if id not in found and id not in first:
            raise ConfigError(
                f"policy {id!r}: its spaces are not known, for no agent that the env names is mapped to it; "
                f"give them: PolicySpec(observation_space=..., action_space=...)"
            )
    return {id: found[id] if id in found else env.spaces[first[id][1]] for id in specs}


def given_spaces(specs: Mapping[str, PolicySpec]) -> dict[str, SpacePair]:
    """The spaces of those policies whose specs name both."""
    return {
        id: SpacePair(spec_of(spec.observation_space), spec_of(spec.action_space))
        for id, spec in specs.items()
        if spec.observation_space is not None and spec.action_space is not None
    }


def _pair(pair: SpacePair) -> str:
    return f"{summary(pair.observation)} -> {summary(pair.action)}"


def trained_ids(config: AlgorithmConfig, specs: Mapping[str, PolicySpec]) -> list[str]:
    """Policies that learn: those of ``policies_to_train``, or all that are not scripted.

    Raises:
        ConfigError: one is not there or scripted, or none is left.
    """
    asked = config.policies_to_train
    learned = [id for id, spec in specs.items() if not is_scripted(spec)]
    if asked is None:
        ids = learned
    elif callable(asked):
        more = (None,) * (len(inspect.signature(asked).parameters) - 1)  # a batch, which there is not yet
        ids = [id for id in learned if asked(id, *more)]
    else:
        for id in asked:
            if id not in learned:
                what = "is scripted" if id in specs else f"is not there; there are {', '.join(specs)}"
                raise ConfigError(f"policies_to_train names {id!r}, which {what}")
        ids = [id for id in learned if id in asked]
    if not ids:
        raise ConfigError(f"no policy learns: policies_to_train={asked!r}, policies {', '.join(specs)}")
    return ids


def is_scripted(spec: PolicySpec) -> bool:
    """Whether a policy acts by a rule of the user's."""
    if (given := spec.policy_class) is None:
        return False
    from steppe.policies.scripted import Policy

    return issubclass(given, Policy) if isinstance(given, type) else isinstance(given, Policy)


def learner_of(
    config: AlgorithmConfig, id: str, spec: PolicySpec, pair: SpacePair, seed: int
) -> PolicyLearner:
    """What one policy learns by: the run's algorithm or its own, with the settings that are its own."""
    given = spec.policy_class
    if given is not None:
        own: AlgorithmConfig = given() if isinstance(given, type) else given.copy()
        shared = field_specs(type(config))
        config = own.copy(
            **{
                name: getattr(config, name)
                for name, field in field_specs(type(own)).items()
                if field.scope == "run" and name in shared
            }
        )
    own_config = config.copy(**spec.config) if spec.config else config
    if own_config.mixed_precision and not has_image(pair.observation):
        say_once(f"mixed_precision changes nothing for policy {id!r}: no observation looks like an image")
    learner = own_config.make_learner(id, pair, seed)
    learner.postprocess = own_config.postprocess_trajectory
    return learner


def made_policies(
    config: AlgorithmConfig, spaces: Mapping[str, SpacePair]
) -> tuple[dict[str, PolicyLearner], dict[str, Policy]]:
    """The learners of a run's policies, and those policies that nothing learns."""
    specs, seed = specs_of(config), int(config.seed or 0)
    learners: dict[str, PolicyLearner] = {}
    fixed: dict[str, Policy] = {}
    for id, pair in spaces.items():
        if is_scripted(specs[id]):
            from steppe.policies.scripted import scripted

            fixed[id] = scripted(id, specs[id].policy_class, *pair)
        else:
            learners[id] = learner_of(config, id, specs[id], pair, seed + list(specs).index(id))
    return learners, fixed


def acting_policies(config: AlgorithmConfig, spaces: Mapping[str, SpacePair]) -> dict[str, Policy]:
    """What acts for each policy of a run, in a process that does not learn."""
    learners, scripted = made_policies(config, spaces)
    return {id: learners[id].policy if id in learners else scripted[id] for id in spaces}


def specs_of(config: AlgorithmConfig) -> dict[str, PolicySpec]:
    """The policies of a config, the one of a config that names none included."""
    return dict(config.policies or {DEFAULT_POLICY: PolicySpec()})
