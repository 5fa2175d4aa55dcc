"""Settings under any of their names, brought under today's; what is wrong is named as it was written."""

from __future__ import annotations

import dataclasses
import difflib
import keyword
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from steppe.config.fields import field_specs
from steppe.config.names import ALIASES, GROUPS, KEYS, MEANS, UNSET, YIELDS, Key, is_one_of
from steppe.config.values import named, same, short
from steppe.errors import ConfigError

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig


class Reading(NamedTuple):
    """What settings say.

    Attributes:
        values: by field.
        notes: what has to be said about keys that set nothing.
        written: the names under which the fields stood.
    """

    values: dict[str, Any]
    notes: list[str]
    written: dict[str, str]


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
    constants: _Found = {}
    schedules: _Found = {}
    yielding: _Found = {}
    notes: list[str] = []
    for written, path, given in _flattened(cls, settings, where):
        key = _key(cls, path, written)
        if key.kind != "maps":
            notes += _judged(cls, key, written, given)
        elif is_one_of(given, UNSET.get(path, ())) or (key.schedule and given is None):
            continue
        else:
            yields = is_one_of(given, YIELDS.get(path, ()))
            found = schedules if key.schedule else yielding if yields else constants
            value = cls.checked(key.field, MEANS.get(path, given) if given is True else given, written)
            _agree(key.field, found.setdefault(key.field, (written, value)), (written, value))
    for name, scheduled in schedules.items():  # RLlib lets them win over a constant
        constant = constants.get(name, scheduled)
        if isinstance(constant[1], list):
            _agree(name, constant, scheduled)
    merged = yielding | constants | schedules
    values = {name: value for name, (_, value) in merged.items()}
    return Reading(values, notes, {name: written for name, (written, _) in merged.items()})


_Found: TypeAlias = dict[str, tuple[str, Any]]
"""By field: the name that it stood under, and its value."""


def _agree(name: str, a: tuple[str, Any], b: tuple[str, Any]) -> None:
    if not same(a[1], b[1]):
        raise ConfigError(
            f"{a[0]}={short(a[1])} and {b[0]}={short(b[1])} are two spellings of one "
            f"setting ({name}) and disagree; keep one"
        )


def both_names(written: str, name: str, *value: Any) -> str:
    """A setting as it was written, with today's name where that is another: ``num_workers=2 (...)``."""
    text = f"{written}={short(value[0])}" if value else written
    return text if written.rpartition(".")[2] == name else f"{text} ({name})"


def _flattened(
    cls: type[AlgorithmConfig], settings: Mapping[Any, Any], where: str
) -> Iterator[tuple[str, str, Any]]:
    """Each setting as it is written, as the table has it, and its value; dicts of settings are opened."""
    for key, given in settings.items():
        value = _opened(given) if key in GROUPS else given
        if key not in GROUPS:
            yield f"{where}{key}", str(key), value
        elif isinstance(value, Mapping):
            for inner, item in value.items():
                yield f"{where}{key}.{inner}", f"{GROUPS[key]}.{inner}", item
        elif value is not None:
            raise ConfigError(
                f"{cls.__name__}: {where}{key}={short(value)} must be a dict of settings, or a dataclass "
                "of them such as RLlib's DefaultModelConfig"
            )


def _opened(group: Any) -> Any:
    """A dataclass of settings as a dict."""
    if not dataclasses.is_dataclass(group) or isinstance(group, type):
        return group
    return {part.name: getattr(group, part.name) for part in dataclasses.fields(group)}


def _key(cls: type[AlgorithmConfig], path: str, written: str) -> Key:
    """The fate of a setting in this class: its own fields and old names come first."""
    specs = field_specs(cls)
    own = {spec.alias: name for name, spec in specs.items() if spec.alias is not None}
    if path in specs or path in own:
        return Key(path, "maps", own.get(path, path))
    key = KEYS.get(path)
    if key is None or (key.kind == "maps" and key.field not in specs):
        raise ConfigError(_unknown(cls, written, _nearest(cls, path, written)))
    return key


def _judged(cls: type[AlgorithmConfig], key: Key, written: str, value: Any) -> list[str]:
    """What is to be said about a setting that sets nothing."""
    if value is None or is_one_of(value, key.defaults):
        return []
    if key.kind == "refused":
        raise ConfigError(f"{cls.__name__}: {written}={short(named(value))}: {key.why}")
    return [f"{written} is accepted and has no effect: {key.why}"]


def _unknown(cls: type[AlgorithmConfig], written: str, near: str) -> str:
    """The message about a name that is no setting, with the one that was probably meant."""
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
    specs = field_specs(cls)
    if key in GROUPS:
        return _not_a_group(cls, key)
    old = KEYS.get(key)
    if old is None or (old.kind == "maps" and old.field not in specs):
        near = _nearest(cls, key, key)
        own = {spec.alias: name for name, spec in specs.items()} | ALIASES
        return _unknown(cls, key, own.get(near, near) if near not in specs else near)
    if old.kind == "maps":
        return f"{cls.__name__}: {key} is the old name of {old.field}; write {old.field}, or use from_dict"
    if old.kind == "refused":
        return f"{cls.__name__}: {key} is no setting: {old.why}"
    return f"{cls.__name__}: {key} has no effect here, leave it out, or use from_dict: {old.why}"


def _not_a_group(cls: type[AlgorithmConfig], key: str) -> str:
    group, specs = GROUPS[key], field_specs(cls)
    fields = [k.field for k in KEYS.values() if k.kind == "maps" and k.name.startswith(f"{group}.")]
    method = {"multiagent": "multi_agent"}.get(group, "training")
    name = cls.__name__
    return (
        f"{name}: {key} is a dict of RLlib's, whose settings stand for themselves here: write "
        f"{', '.join(field for field in dict.fromkeys(fields) if field in specs)}, or give the dict to "
        f"{name}.from_dict({{{key!r}: {{...}}}}) or {name}().{method}({key}={{...}})"
    )
