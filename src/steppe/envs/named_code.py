"""Code that text names: ``"path/to/file.py:Class"`` and ``"package.module:Class"``."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from steppe.errors import ConfigError


def code_named(name: str, what: str) -> Callable[..., Any]:
    """The class or function that ``name`` means; its file or module is imported.

    Args:
        name: ``"path/to/file.py:Class"`` or ``"package.module:Class"``.
        what: it is, for messages, such as ``callbacks``.

    Raises:
        ConfigError: it is not there, or of another form.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ConfigError(f'{what} {name!r}: write "path/to/file.py:Class" or "package.module:Class"')
    whole = f"{what} {name!r}"
    module = module_of_file(place) if place.endswith(".py") else module_named(place, whole)
    return attribute_of(module, attribute, whole)


def module_named(place: str, what: str) -> ModuleType:
    """Import ``package.module``."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise ConfigError(f"{what}: there is no module {error.name!r} to import") from None


def module_of_file(place: str) -> ModuleType:
    """Import a file, once for each time that it was changed."""
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {place!r} (looked for {path})")
    digest = hashlib.sha256(f"{path}:{path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{place!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Let siblings of a file be imported while it is."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def attribute_of(module: ModuleType, attribute: str, what: str) -> Callable[..., Any]:
    """The class or function ``attribute`` of a module."""
    found = getattr(module, attribute, None)
    if found is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(attribute, own, n=3) or sorted(own)[:8]
        raise ConfigError(f"{what}: {attribute!r} is not in there; there is {', '.join(near) or 'nothing'}")
    if not callable(found) or (not isinstance(found, type) and callable(getattr(found, "step", None))):
        raise ConfigError(f"{what} is {found!r:.60}: name a class or a function")
    creator: Callable[..., Any] = found
    return creator
