"""``steppe new``: an env package to begin with."""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
import shlex
import sys
from pathlib import Path
from string import Template
from typing import NamedTuple

import click

from steppe.errors import ConfigError

TEMPLATES = Path(__file__).with_name("templates")
"""One folder for every kind of env and one for each kind; ``PACKAGE`` in a path stands for the package."""

TAKEN = frozenset({"build", "dist", "runs", "tests", "train"})
"""Packages that the layout has another use for."""

_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\s_-]+")


@click.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["single", "vector"]),
    default="single",
    show_default=True,
    help="An env of Gymnasium's, or one that steps many copies at once in numpy arrays.",
)
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where to write the package's folder.  [default: here]",
)
def command(name: str, kind: str, path: Path) -> None:
    """Write an env package that installs, is tested and trains.

    NAME may be written as my-env, my_env, MyEnv or "my env": the folder becomes my-env, the package my_env,
    the class MyEnv and the env's id MyEnv-v0.
    """
    names = names_of(name)
    folder = write(names, kind, path)
    click.echo(f"wrote {folder}; next:")
    click.echo(f"  pip install -e {shlex.quote(f'{folder}[test]')}")
    click.echo(f"  pytest {shlex.quote(str(folder))}")
    click.echo(f"  python {shlex.quote(str(folder / 'train.py'))}")
    click.echo(f"or, once it is installed: steppe train {names.module}:{names.env_id} --total-steps 20k")


class Names(NamedTuple):
    """What one env is called by pip, by Python's import, in code, and by Gymnasium."""

    folder: str
    module: str
    cls: str
    env_id: str
    title: str


def names_of(text: str) -> Names:
    """All names of an env, from any spelling of one of them.

    Raises:
        ConfigError: no package can have this name, or something else has it already.
    """
    words = [word.lower() for word in _WORD_ENDS.split(text) if word]
    module, cls = "_".join(words), "".join(word.capitalize() for word in words)
    names = Names("-".join(words), module, cls, f"{cls}-v0", " ".join(words).capitalize())
    if version := re.search(r"-v\d+$", text):
        raise ConfigError(
            f"{text!r} has a version; give {text[: version.start()]!r}, the id gets one by itself"
        )
    if not module.isidentifier() or not module.isascii():
        raise ConfigError(
            f"{text!r} cannot be a package's name: begin with a letter and use only a-z, digits, dashes and "
            f"underscores, such as {_nearest(text)!r}"
        )
    if owner := _owner(module, cls):
        raise ConfigError(f"{text!r} is taken: {owner}; choose another, such as '{names.folder}-env'")
    return names


def _nearest(text: str) -> str:
    """A name that is legal and looks like ``text``."""
    words = re.findall(r"[a-z0-9]+", _WORD_ENDS.sub(" ", text).lower())
    return re.sub(r"^[\d-]+", "", "-".join(words)) or "my-env"


def _owner(module: str, cls: str) -> str:
    """What has the name of the package or of the class already, or ""."""
    if keyword.iskeyword(module) or cls in vars(builtins):
        return "it is a word of Python's own"
    if module in TAKEN:
        return f"{module!r} has another use in the package's folder"
    if module in sys.stdlib_module_names or module == "test":  # the latter is not in the former
        return f"{module!r} is a module of Python's own"
    spec = importlib.util.find_spec(module)
    # Without an origin it is a mere folder on the path, which a package of that name would win over.
    return "" if spec is None or spec.origin is None else f"{module!r} is imported from {spec.origin}"


def write(names: Names, kind: str, where: Path) -> Path:
    """Write a package and return its folder.

    Raises:
        ConfigError: the folder exists or cannot be made.
    """
    folder = where / names.folder
    try:
        folder.mkdir()
    except FileExistsError:
        raise ConfigError(f"{folder} exists and is left as it is; choose another name or --path") from None
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be made: {error.strerror}; choose another name or --path"
        ) from None
    for source in (TEMPLATES / "shared", TEMPLATES / kind):
        for template in sorted(source.rglob("*.txt")):
            place = str(template.relative_to(source)).removesuffix(".txt").replace("PACKAGE", names.module)
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            text = template.read_text(encoding="utf-8")
            target.write_text(Template(text).substitute(names._asdict()), encoding="utf-8")
    return folder
