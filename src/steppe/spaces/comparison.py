"""Whether a policy that was made for one pair of spaces can act in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from steppe.spaces.description import describe, from_description, summary
from steppe.spaces.spec import Spec

_WIDE = ("int64", "uint64")


def described(observation: Spec, action: Spec) -> dict[str, Any]:
    """A pair of spaces as :func:`misfits` takes it."""
    return {"observation": describe(observation), "action": describe(action)}


def misfits(trained: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, str]:
    """What sets an env's spaces apart from those that a policy was made for.

    Actions must mean the same, bounds included. Observations need the same kinds, shapes and sizes. How many
    bits a number has does not count, except for a Box of 64-bit integers, which is read in another way.

    Args:
        trained: descriptions (:func:`~steppe.spaces.description.describe`) under ``observation``, ``action``.
        given: those of the env, likewise.

    Returns:
        What forbids to act there, and what should only be known: bounds of observations that differ. Each is
        text such as "action space Discrete(3), here Discrete(5) (n 3, here 5)", or "".

    Raises:
        SpaceError, LookupError, TypeError, AttributeError: a description is damaged.
    """
    odd = {name: _odd(trained[name], given[name]) for name in ("observation", "action")}
    bounds = [text for path, text in odd["observation"].items() if path.endswith((".low", ".high"))]
    wrong = {"observation": [text for text in odd["observation"].values() if text not in bounds]}
    wrong["action"] = list(odd["action"].values())
    hard = [_words(name, trained, given, texts) for name, texts in wrong.items() if texts]
    soft = _words("observation", trained, given, bounds) if bounds and not wrong["observation"] else ""
    return " and ".join(hard), soft


def _words(name: str, trained: Mapping[str, Any], given: Mapping[str, Any], texts: list[str]) -> str:
    there, here = (summary(from_description(spaces[name])) for spaces in (trained, given))
    return f"{name} space {there}, here {here} ({'; '.join(texts[:3])})"


def _odd(trained: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """Where two descriptions differ, by path."""
    there, here = dict(_details(trained, "")), dict(_details(given, ""))
    return {
        path: f"{path.removeprefix('.')} {_short(there, path)}, here {_short(here, path)}"
        for path in {**there, **here}
        if path not in there or path not in here or there[path] != here[path]
    }


def _short(details: Mapping[str, Any], path: str) -> str:
    return f"{details[path]!s:.40}" if path in details else "nothing"


def _details(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Every detail of a description and its path, such as ``['a'].n``."""
    for key, value in node.items():
        if key == "items":
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            for name, part in parts:
                yield from _details(part, f"{path}[{name!r}]")
        elif key == "item":
            yield from _details(value, f"{path}[i]")
        elif key == "dtype":
            wide = node["kind"] == "Box" and value in _WIDE
            yield f"{path}.dtype", value if wide else value.rstrip("0123456789")
        else:
            yield f"{path}.{key}", value
