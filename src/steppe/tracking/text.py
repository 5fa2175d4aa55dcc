"""A result as a block of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def block(values: Mapping[str, Any], indent: str = "") -> str:
    """One line a key, sorted; what is nested stands below its key, further in. Empty dicts are left out.

    The form is that of RLlib's printed results.
    """
    lines = []
    for key in sorted(values, key=str):
        value = values[key]
        if not isinstance(value, Mapping):
            lines.append(f"{indent}{key}: {value}")
        elif value:
            lines.append(f"{indent}{key}:\n{block(value, indent + '  ')}")
    return "\n".join(lines)
