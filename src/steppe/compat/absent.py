"""The originals' names: where this package has them, and what to use instead of those that it has not."""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib import import_module, resources
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pkgutil import iter_modules, resolve_name
from types import ModuleType
from typing import Any, NoReturn, final

_ROOT = "steppe.compat."


@lru_cache
def table(file: str) -> Mapping[str, Any]:
    """One of this package's files of data."""
    text = resources.files("steppe.compat").joinpath(file).read_text(encoding="utf-8")
    return tomllib.loads(text) if file.endswith(".toml") else json.loads(text)


def told(where: str, name: str, there: Iterable[str]) -> str:
    """The sentence about a name that there is not: the substitute, the nearest one, or all there are."""
    known = sorted({one for one in there if not one.startswith("_")})
    near = difflib.get_close_matches(name, known, n=1)
    nearest = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'nothing'}"
    return f"{where} has no {name!r}: {table('absent.toml').get(where, {}).get(name, nearest)}"


def mirror(module: str, **names: str) -> Callable[[str], Any]:
    """Make a module a package with the ``names``, ``"module:object"``, that it has here and in present.toml.

    Returns:
        Its ``__getattr__``: objects and submodules are imported on first use, what is missing is said.
    """
    names |= table("present.toml").get(module.removeprefix(_ROOT), {})
    own = vars(sys.modules[module])
    own.setdefault("__path__", [])
    if names:
        own["__all__"] = [*own.get("__all__", ()), *names]

    def find(name: str) -> Any:
        if name in names:
            return resolve_name(names[name])
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
class Mirror(Loader):
    """Fills a module that is no file, only names in present.toml."""

    def exec_module(self, module: ModuleType) -> None:
        """Give it all it has."""
        name = module.__name__
        vars(module).update(__doc__=f"Mirrors ``{name.removeprefix(_ROOT)}``.", __getattr__=mirror(name))


@final
class Missing:
    """The last of Python's finders: knows the modules of present.toml, and what to use instead of others."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Raise for unknown modules of ours; without a ``name``, the error also comes out of ``from``."""
        module, _, name = fullname.rpartition(".")
        if not fullname.startswith(_ROOT):
            return None
        if fullname.removeprefix(_ROOT) not in table("present.toml"):
            raise ModuleNotFoundError(_about(module, name))
        return ModuleSpec(fullname, Mirror(), is_package=True)


def _about(module: str, name: str) -> str:
    there = vars(sys.modules[module]).get("__all__", ())  # getattr would ask the module's __getattr__ again
    return told(module.removeprefix(_ROOT), name, [*there, *_submodules(module)])


def _submodules(module: str) -> set[str]:
    start = f"{module}.".removeprefix(_ROOT)
    here = {
        one.removeprefix(start).partition(".")[0] for one in table("present.toml") if one.startswith(start)
    }
    return here | {one.name for one in iter_modules(vars(sys.modules[module])["__path__"])}
