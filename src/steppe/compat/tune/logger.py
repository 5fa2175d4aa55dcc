"""``pretty_print``, where Tune has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def pretty_print(result: Mapping[str, Any]) -> str:
    """A result as indented lines ``key: value``, without the config and what is None."""
    return "\n".join(_lines({key: value for key, value in result.items() if key != "config"}, ""))


def _lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in sorted(values.items(), key=lambda item: str(item[0])):
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif value is not None:
            yield f"{indent}{key}: {value}"
