"""What a run says about its policies and about its evaluation, read into one form when it is set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
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
    parts: tuple[Any, ...] = ()
    if isinstance(given, PolicySpec):
        parts = tuple(getattr(given, part) for part in _PARTS)
    elif isinstance(given, Mapping) and set(given) <= set(_PARTS):
        parts = tuple(given.get(part) for part in _PARTS)
    elif isinstance(given, tuple | list) and len(given) == len(_PARTS):
        parts = tuple(given)
    elif given is not None:
        raise ConfigError(
            f"{cls.__name__}: policies[{id!r}]={short(given)} must be None, a PolicySpec or "
            f"({', '.join(_PARTS)})"
        )
    policy_class, observation, action, config = parts or (None,) * len(_PARTS)
    return PolicySpec(
        policy_class,
        cls.checked("observation_space", observation, f"policies[{id!r}].observation_space"),
        cls.checked("action_space", action, f"policies[{id!r}].action_space"),
        _overrides(cls, id, config),
    )


def _overrides(cls: type[AlgorithmConfig], id: str, given: Any) -> dict[str, Any]:
    if isinstance(given, cls):
        given = given.changes()
    reading = cls.reading({} if given is None else given, f"policies[{id!r}].config.")
    for name, value in reading.values.items():
        if name not in cls.POLICY_SCOPE:
            raise ConfigError(
                f"{cls.__name__}: {both_names(reading.written[name], name, value)} holds for the whole run; "
                f"a policy may set {', '.join(sorted(cls.POLICY_SCOPE))}"
            )
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
    if isinstance(value, cls):
        value = value.changes()
    if not isinstance(value, Mapping):
        return value  # of a wrong type: the field says so
    reading = cls.reading(value, "evaluation_config.")
    for name, item in reading.values.items():
        if name not in EVALUATION_FIELDS:
            raise ConfigError(
                f"{cls.__name__}: {both_names(reading.written[name], name, item)} cannot differ while "
                f"evaluating; it may set {', '.join(EVALUATION_FIELDS)}"
            )
    return reading.values
