"""What becomes of the keys of RLlib's configs: one table, read from ``rllib.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from steppe.config.values import named, plain


@final
@dataclass(frozen=True, slots=True)
class Key:
    """A key and its fate.

    Attributes:
        name: dotted where it stands in a dict of its own, such as ``model.fcnet_hiddens``.
        kind: it sets a field, is accepted without effect, or refused.
        field: that it sets.
        schedule: it sets the field as a schedule and wins over the constant.
        why: it has no effect or is refused.
        defaults: RLlib's own values, which are accepted in silence.
    """

    name: str
    kind: Literal["maps", "no effect", "refused"]
    field: str = ""
    schedule: bool = False
    why: str = ""
    defaults: tuple[Any, ...] = ()


def is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value, classes by their name, is among plain ones."""
    flat = plain(named(value))
    return any(flat == one and isinstance(flat, bool) == isinstance(one, bool) for one in values)


def _values(items: list[Any]) -> tuple[Any, ...]:
    return tuple(None if item == "None" else item for item in items)


_TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("rllib.toml").read_text(encoding="utf-8")
)


def _keys() -> dict[str, Key]:
    found = [Key(name, "maps", field) for name, field in _TABLE["maps"].items()]
    found += [Key(name, "maps", field, schedule=True) for name, field in _TABLE["schedules"].items()]
    for why, group in _TABLE["no_effect"].items():
        found += [Key(name, "no effect", why=why, defaults=_values(items)) for name, items in group.items()]
    for why, group in _TABLE["refused"].items():
        found += [Key(name, "refused", why=why, defaults=_values(items)) for name, items in group.items()]
    return {key.name: key for key in found}


KEYS: dict[str, Key] = _keys()
"""Every key that is not simply a field, by name."""

NONE: dict[str, Any] = _TABLE["none"]
"""What None means for a field that does not hold it."""

MEANS: dict[str, Any] = _TABLE["means"]
"""What true means, said under a key, for its field."""

UNSET: dict[str, tuple[Any, ...]] = {name: _values(items) for name, items in _TABLE["unset"].items()}
"""Values with which a key says nothing."""

YIELDS: dict[str, tuple[Any, ...]] = {name: _values(items) for name, items in _TABLE["yields"].items()}
"""Values that give way to another spelling of the same field."""

ALIASES: dict[str, str] = {
    key.name: key.field for key in KEYS.values() if key.kind == "maps" and "." not in key.name
}
"""Old names of fields, in every algorithm that has the field."""

GROUPS: dict[str, str] = {
    "model": "model",
    "model_config": "model",
    "model_config_dict": "model",
    "multiagent": "multiagent",
    "Q_model": "Q_model",
    "q_model_config": "Q_model",
    "policy_model": "policy_model",
    "policy_model_config": "policy_model",
    "optimization": "optimization",
    "optimization_config": "optimization",
}
"""Keys that hold a dict of settings, and the name under which the table has what is in it."""
