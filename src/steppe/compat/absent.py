"""What the originals have and this package has not: said where it is asked for, with what to use instead."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib import import_module, resources
from pkgutil import iter_modules
from typing import Any, NoReturn, final

_ROOT = "steppe.compat."


def told(where: str, name: str, there: Iterable[str]) -> str:
    """The sentence about a name that there is not: the substitute, the nearest one, or all there are."""
    known = sorted({one for one in there if not one.startswith("_")})
    near = difflib.get_close_matches(name, known, n=1)
    instead = _substitutes().get(where, {}).get(name)
    if instead is None:
        instead = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'nothing'}"
    return f"{where} has no {name!r}: {instead}"


def of_module(module: str) -> Callable[[str], Any]:
    """A module's ``__getattr__``: its submodules are imported on first use, what is missing is said."""

    def find(name: str) -> Any:
        if name in _submodules(module):
            return import_module(f"{module}.{name}")
        raise AttributeError(_about(module, name))

    return find


def of_class(where: str) -> Callable[[Any, str], Any]:
    """A class's ``__getattr__``, for objects that programs know with more attributes than they have here."""

    def tell(self: Any, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # Python itself asks, and goes on without
        raise AttributeError(told(where, name, [*dir(type(self)), *vars(self)]))

    return tell


@final
class Missing:
    """The last of Python's finders: says what there is instead of a module that nobody has found."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise for modules of ours. Without a ``name``, the error also comes out of ``from ... import``."""
        module, _, name = fullname.rpartition(".")
        if fullname.startswith(_ROOT):
            raise ModuleNotFoundError(_about(module, name))


def _about(module: str, name: str) -> str:
    there = vars(sys.modules[module]).get("__all__", ())  # getattr would ask the module's __getattr__ again
    return told(module.removeprefix(_ROOT), name, [*there, *_submodules(module)])


def _submodules(module: str) -> list[str]:
    return [one.name for one in iter_modules(vars(sys.modules[module]).get("__path__", []))]


@lru_cache
def _substitutes() -> Mapping[str, Mapping[str, str]]:
    return tomllib.loads(resources.files("steppe.compat").joinpath("absent.toml").read_text(encoding="utf-8"))
