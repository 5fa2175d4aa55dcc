"""Settings under any of their names, brought under today's; what is wrong is named as it was written."""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from steppe.config.fields import field_specs
from steppe.config.names import ALIASES, GROUPS, KEYS, UNSET, YIELDS, Key, is_one_of
from steppe.config.values import named, same, short
from steppe.errors import ConfigError

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig


class Reading(NamedTuple):
    """What settings say: fields with their values, and what has to be said about the rest."""

    values: dict[str, Any]
    notes: list[str]


def read(cls: type[AlgorithmConfig], settings: Any, where: str = "") -> Reading:
    """Check every setting and sort it.

    Args:
        cls: the config whose settings they are.
        settings: by name, today's or RLlib's.
        where: what stands before their names in messages.

    Raises:
        ConfigError: unknown names, illegal values, or two spellings of one field that disagree.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{cls.__name__} settings must be a dict, got {short(settings)}")
    found: dict[str, tuple[str, Any]] = {}
    schedules: dict[str, Any] = {}
    yielding: dict[str, Any] = {}
    notes: list[str] = []
    for written, path, given in _flattened(cls, settings, where):
        key = _key(cls, path, written)
        if key.kind != "maps":
            notes += _judged(cls, key, written, given)
        elif is_one_of(given, UNSET.get(path, ())) or (key.schedule and given is None):
            continue
        elif key.schedule:
            schedules[key.field] = cls.checked(key.field, given, written)
        elif path in YIELDS and given == YIELDS[path]:
            yielding[key.field] = cls.checked(key.field, given, written)
        else:
            value = cls.checked(key.field, given, written)
            first = found.setdefault(key.field, (written, value))
            if not same(first[1], value):
                raise ConfigError(
                    f"{first[0]}={short(first[1])} and {written}={short(value)} are two spellings of one "
                    f"setting ({key.field}) and disagree; keep one"
                )
    return Reading(yielding | {name: value for name, (_, value) in found.items()} | schedules, notes)


def _flattened(
    cls: type[AlgorithmConfig], settings: Mapping[Any, Any], where: str
) -> Iterator[tuple[str, str, Any]]:
    """Each setting as it is written, as the table has it, and its value; dicts of settings are opened."""
    for key, value in settings.items():
        if key not in GROUPS:
            yield f"{where}{key}", str(key), value
        elif isinstance(value, Mapping):
            for inner, item in value.items():
                yield f"{where}{key}.{inner}", f"{GROUPS[key]}.{inner}", item
        elif value is not None:
            raise ConfigError(f"{cls.__name__}: {where}{key}={short(value)} must be a dict of settings")


def _key(cls: type[AlgorithmConfig], path: str, written: str) -> Key:
    """The fate of a setting in this class: its own fields and old names come first."""
    specs = field_specs(cls)
    own = {spec.alias: name for name, spec in specs.items() if spec.alias is not None}
    if path in specs or path in own:
        return Key(path, "maps", own.get(path, path))
    key = KEYS.get(path)
    if key is None or (key.kind == "maps" and key.field not in specs):
        raise ConfigError(unknown(cls, path, written))
    return key


def _judged(cls: type[AlgorithmConfig], key: Key, written: str, value: Any) -> list[str]:
    """What is to be said about a setting that sets nothing."""
    if value is None or is_one_of(value, key.defaults):
        return []
    if key.kind == "refused":
        raise ConfigError(f"{cls.__name__}: {written}={short(named(value))}: {key.why}")
    return [f"{written} is accepted and has no effect: {key.why}"]


def unknown(cls: type[AlgorithmConfig], path: str, written: str) -> str:
    """The message about a name that is no setting, with the one that was probably meant."""
    near = _nearest(cls, path, written)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"{cls.__name__} has no setting {written!r}.{hint}"


def _nearest(cls: type[AlgorithmConfig], path: str, written: str) -> str:
    """The same word in another place, else a name like the one written in its own."""
    specs = field_specs(cls)
    known = [*specs, *(key.name for key in KEYS.values() if key.kind != "maps" or key.field in specs)]
    group, _, last = path.rpartition(".")
    elsewhere = next((name for name in known if name.rpartition(".")[2] == last), "")
    beside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group]
    close = difflib.get_close_matches(last, beside, n=1)
    if elsewhere or not close:
        return elsewhere
    # No program can write a word of Python as an argument.
    name = ALIASES[close[0]] if keyword.iskeyword(close[0]) else close[0]
    return written.removesuffix(last) + name


def not_a_keyword(cls: type[AlgorithmConfig], key: str) -> str:
    """The message about a keyword of the constructor, which takes today's names, that is none of them."""
    old = KEYS.get(key)
    if old is None or (old.kind == "maps" and old.field not in field_specs(cls)):
        return unknown(cls, key, key)
    if old.kind == "maps":
        return f"{cls.__name__}: {key} is the old name of {old.field}; write {old.field}, or use from_dict"
    if old.kind == "refused":
        return f"{cls.__name__}: {key} is no setting: {old.why}"
    return f"{cls.__name__}: {key} has no effect here, leave it out, or use from_dict: {old.why}"
