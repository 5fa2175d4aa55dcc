"""How a field of a config is declared: its default, its legal values, where it is set."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from steppe.config.values import words


@dataclass(frozen=True, slots=True)
class Check:
    """A test of a field's value, and the words for what passes.

    Attributes:
        text: read after the type ("a whole number" + "at least 1"), or in its place.
        test: gets the value as the field stores it.
        whole: ``text`` stands for itself.
    """

    text: str
    test: Callable[[Any], bool]
    whole: bool = False


def between(low: float, high: float) -> Check:
    """From ``low`` to ``high``, both included."""
    return Check(f"from {low:g} to {high:g}", lambda value: low <= value <= high)


def at_least(low: float) -> Check:
    """At least ``low``; infinity passes."""
    return Check(f"at least {low:g}", lambda value: value >= low)


def above(low: float) -> Check:
    """More than ``low``; infinity passes."""
    return Check(f"above {low:g}", lambda value: value > low)


def each(check: Check) -> Check:
    """Every item of a list passes ``check``."""
    return Check(f"with items {check.text}", lambda value: all(map(check.test, value)))


def scheduled(check: Check) -> Check:
    """A number that passes ``check``, or ``[[step, number], ...]`` with rising steps from 0."""

    def test(value: Any) -> bool:
        if not isinstance(value, list):
            return math.isfinite(value) and check.test(value)
        if not value or any(len(point) != 2 for point in value):
            return False
        steps, numbers = zip(*value, strict=True)
        rising = all(a < b for a, b in itertools.pairwise(steps))
        return steps[0] >= 0 and rising and all(math.isfinite(x) and check.test(x) for x in numbers)

    text = f"a number {check.text}, or [[step, number], ...] with rising steps"
    return Check(text, test, whole=True)


def run_field(
    default: Any,
    *,
    section: str = "training",
    check: Check | None = None,
    alias: str | None = None,
    convert: Callable[[Any, Any], Any] | None = None,
    scope: str = "run",
) -> Any:
    """A field that holds for the whole run.

    Args:
        default: lists and dicts are copied for every config.
        section: the fluent method that sets it.
        check: tests the value after its type; None values are not tested.
        alias: an old name that is this algorithm's own.
        convert: function of the config's class and a value other than None, before its type is checked.
        scope: see :func:`policy_field`.
    """
    metadata = {"section": section, "check": check, "alias": alias, "convert": convert, "scope": scope}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


policy_field = partial(run_field, scope="policy")
"""A field that policies of one run may set differently; arguments as in :func:`run_field`."""


Schedule = float | list[list[float]]
"""A number, or ``[[step, value], ...]``: linear between the points, constant outside them."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field as flags, sections and checks need it."""

    name: str
    hint: Any
    default: Callable[[], Any]
    section: str = "training"
    scope: str = "run"
    check: Check | None = None
    alias: str | None = None
    convert: Callable[[Any, Any], Any] | None = None

    def legal(self) -> str:
        """The words for what the field accepts."""
        optional = self.hint is Any or types.NoneType in typing.get_args(self.hint)
        text = words(self.hint)
        if self.check is not None:
            text = self.check.text if self.check.whole else f"{text} {self.check.text}"
        return f"{text} or None" if optional else text


def _spec(field: dataclasses.Field[Any], hint: Any) -> FieldSpec:
    factory = field.default_factory
    default = factory if factory is not dataclasses.MISSING else lambda: field.default
    return FieldSpec(field.name, hint, default, **field.metadata)


@lru_cache
def field_specs(cls: type) -> dict[str, FieldSpec]:
    """The fields of a config class by name, in order of declaration; not to be changed."""
    hints = typing.get_type_hints(cls)
    return {f.name: _spec(f, hints[f.name]) for f in dataclasses.fields(cls)}


def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a config class, by name, read from the source."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            docs |= _docs_of(owner)
    return {name: docs.get(name, "") for name in field_specs(cls)}


def _docs_of(owner: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, below in itertools.pairwise(body.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                docs[statement.target.id] = inspect.cleandoc(text.value)
    return docs
