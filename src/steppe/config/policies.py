"""What a run says about its policies and about its evaluation, read into one form when it is set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from steppe.config.reading import both_names
from steppe.config.values import MismatchError, short
from steppe.containers import frozen
from steppe.errors import ConfigError

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig

EVALUATION_FIELDS: tuple[str, ...] = (
    "env",
    "env_config",
    "max_episode_steps",
    "on_out_of_space",
    "explore",
    "callbacks_class",
)
"""Fields that evaluation may set otherwise: those about envs and acting."""


@final
@dataclass(frozen=True)
class PolicySpec:
    """One policy of a run that has several.

    Attributes:
        policy_class: what the policy is, where that is not the algorithm's own; None is the algorithm's.
        observation_space: of its agents; None asks the env.
        action_space: of its agents; None asks the env.
        config: settings of its own, under today's names; the run's settings hold for the rest.
    """

    policy_class: Any = None
    observation_space: Any = None
    action_space: Any = None
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self, max_sequence_length: int | None) -> dict[str, Any]:
        """The parts, spaces as their description; :func:`parsed_policies` takes it back."""
        spaces = {
            name: described(getattr(self, name), max_sequence_length)
            for name in ("observation_space", "action_space")
        }
        return {**vars(self), **spaces}

    def frozen(self) -> PolicySpec:
        """The same with settings that only read."""
        return dataclasses.replace(self, config=frozen(self.config))


def described(space: Any, max_sequence_length: int | None) -> Any:
    """A space as plain data; None as it is."""
    if space is None:
        return None
    from steppe.spaces import describe, spec_of

    return describe(spec_of(space, max_sequence_length=max_sequence_length))


_PARTS = tuple(part.name for part in dataclasses.fields(PolicySpec))


def parsed_policies(cls: type[AlgorithmConfig], value: Any) -> dict[str, PolicySpec]:
    """``policies`` in one form: ids, or a dict of ids with None, a PolicySpec, a tuple or a dict.

    Raises:
        MismatchError: there is no id, or one that is no text.
        ConfigError: a spec is of another form, or its settings are not for one policy.
    """
    if isinstance(value, Mapping):
        specs = dict(value)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        specs = dict.fromkeys(sorted(value) if isinstance(value, set | frozenset) else value)
    else:
        specs = {}
    if not specs or not all(isinstance(id, str) and id for id in specs):
        raise MismatchError
    return {id: _spec(cls, id, spec) for id, spec in specs.items()}


def _spec(cls: type[AlgorithmConfig], id: str, given: Any) -> PolicySpec:
    where, spec = f"policies[{id!r}]", given
    if isinstance(given, Mapping) and set(given) <= set(_PARTS):
        spec = PolicySpec(**given)
    elif given is None or (isinstance(given, tuple | list) and len(given) == len(_PARTS)):
        spec = PolicySpec(*given or ())
    if not isinstance(spec, PolicySpec):
        raise ConfigError(
            f"{cls.__name__}: {where}={short(given)} must be None, a PolicySpec or ({', '.join(_PARTS)})"
        )
    legal = sorted(cls.POLICY_SCOPE)
    config = {} if spec.config is None else spec.config
    return PolicySpec(
        spec.policy_class,
        cls.checked("observation_space", spec.observation_space, f"{where}.observation_space"),
        cls.checked("action_space", spec.action_space, f"{where}.action_space"),
        _only(legal, cls, config, f"{where}.config.", "holds for the whole run; a policy may set"),
    )


def _only(
    legal: Sequence[str], cls: type[AlgorithmConfig], settings: Any, where: str, why: str
) -> dict[str, Any]:
    """Settings under today's names, each checked, once they are known to be ``legal`` here."""
    reading = cls.reading(settings.changes() if isinstance(settings, cls) else settings, where)
    for name, value in reading.values.items():
        if name not in legal:
            text = both_names(reading.written[name], name, value)
            raise ConfigError(f"{cls.__name__}: {text} {why} {', '.join(legal)}")
    return reading.values


def parsed_callbacks(_: type, value: Any) -> Any:
    """``callbacks_class``, once everything in it is known to be callbacks.

    Raises:
        ConfigError: see :func:`~steppe.sampling.callbacks.check_callbacks`.
    """
    from steppe.sampling.callbacks import check_callbacks

    check_callbacks(value)
    return value


def parsed_evaluation(cls: type[AlgorithmConfig], value: Any) -> Any:
    """``evaluation_config`` under today's names, each value checked.

    Raises:
        ConfigError: it sets what does not concern envs or acting.
    """
    if not isinstance(value, Mapping | cls):
        return value  # of a wrong type: the field says so
    why = "cannot differ while evaluating; it may set"
    return _only(EVALUATION_FIELDS, cls, value, "evaluation_config.", why)
