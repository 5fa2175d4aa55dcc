"""Dicts and lists inside of settings: copied whole, or made read-only. Everything else in them is shared."""

from __future__ import annotations

from typing import Any, final

from steppe.errors import ConfigError


def _refuse(self: Any, *_: Any, **__: Any) -> Any:
    raise ConfigError(
        f"{self!r}: this config was built and no longer changes; change a copy: config.copy(...)"
    )


@final
class _FrozenDict(dict[Any, Any]):
    """A dict that only reads; copies of it are dicts again."""

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


@final
class _FrozenList(list[Any]):
    """A list that only reads; copies of it are lists again."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = extend = insert = _refuse
    remove = pop = clear = sort = reverse = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


_DICTS, _LISTS = (dict, _FrozenDict), (list, _FrozenList)


def copied(value: Any) -> Any:
    """Dicts, lists, tuples and sets of its own all the way down; objects of other classes are shared."""
    kind = type(value)
    if kind in _DICTS:
        return {key: copied(item) for key, item in value.items()}
    if kind in _LISTS:
        return [copied(item) for item in value]
    if kind is tuple:
        return tuple(copied(item) for item in value)
    return set(value) if kind is set else value


def frozen(value: Any) -> Any:
    """Dicts and lists that say why they do not change any more, all the way down."""
    kind = type(value)
    if kind in _DICTS:
        return _FrozenDict({key: frozen(item) for key, item in value.items()})
    if kind in _LISTS:
        return _FrozenList(map(frozen, value))
    return tuple(map(frozen, value)) if kind is tuple else value
