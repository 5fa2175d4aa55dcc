"""Writes the parts of the docs that are made from the code: ``python docs/generate.py``, or ``make docs``.

A page is written by hand down to its line ``MARK``; what stands below is made anew. The schema of the
protocol is made as a whole.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from steppe.algorithms import ALGORITHMS, config_class
from steppe.config import AlgorithmConfig, field_docs, field_specs
from steppe.config.fields import FieldSpec
from steppe.config.names import GROUPS, KEYS, Key
from steppe.serving.messages import schema

DOCS = Path(__file__).resolve().parent
MARK = "<!-- From here on made by docs/generate.py: make docs -->"


def pages() -> dict[str, str]:
    """The text of every page that is made in part, by file name."""
    parts = {
        "configuration.md": configuration(),
        "features.md": feature_table(),
        "from-rllib.md": keys_of_rllib(),
    }
    made = {name: f"{by_hand(DOCS / name)}{MARK}\n\n{part}" for name, part in parts.items()}
    return made | {"protocol.schema.json": json.dumps(schema(), indent=2) + "\n"}


def by_hand(page: Path) -> str:
    """What stands above the mark."""
    above, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{page} lacks the line {MARK}")
    return above


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(list(header)), *map(list, rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


# --- every setting ----------------------------------------------------------------------------------------


def configuration() -> str:
    """One table a section, the algorithms' own settings last."""
    shared = field_specs(AlgorithmConfig)
    docs = field_docs(AlgorithmConfig)
    parts = [
        f"## {section}\n\n{setting_table(specs, docs)}" for section, specs in by_section(shared.values())
    ]
    for cls in map(config_class, ALGORITHMS):
        changed = {name: spec for name, spec in field_specs(cls).items() if differs(spec, shared.get(name))}
        text = setting_table(list(changed.values()), field_docs(cls))
        parts.append(f"## training, of {cls.algo_name} alone\n\n{text}")
    return "\n".join(parts)


def differs(spec: FieldSpec, shared: FieldSpec | None) -> bool:
    """Whether an algorithm has a field, or its default, for itself."""
    return shared is None or spec.default() != shared.default()


def by_section(specs: Iterable[FieldSpec]) -> Iterator[tuple[str, list[FieldSpec]]]:
    """Fields by the method that sets them, in order of declaration."""
    for section, group in groupby(specs, key=lambda spec: spec.section):
        yield section, list(group)


def setting_table(specs: list[FieldSpec], docs: dict[str, str]) -> str:
    """Name, legal values, default and scope of some fields, with what they are for."""
    rows = (
        (f"`{s.name}`", legal(s), f"`{shown(s.default())}`", s.scope, " ".join(docs[s.name].split()))
        for s in specs
    )
    return table(("setting", "value", "default", "scope", "what it does"), rows)


def legal(spec: FieldSpec) -> str:
    """The words for a field's values; where they are no words, the last column has them."""
    return "see there" if spec.hint is Any and spec.check is None else spec.legal()


def shown(value: Any) -> str:
    """A default as a program writes it."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


# --- RLlib's keys -----------------------------------------------------------------------------------------


def keys_of_rllib() -> str:
    """Three tables: keys with another name, those that change nothing, those that are refused."""
    maps = sorted((key for key in KEYS.values() if key.kind == "maps"), key=lambda key: key.name)
    renamed = ((f"`{key.name}`", f"`{key.field}`{', as a schedule' * key.schedule}") for key in maps)
    aliases = ", ".join(f"`{name}` is read as `{group}`" for name, group in GROUPS.items() if name != group)
    return (
        "## Keys with another name\n\n"
        f"{table(('RLlib', 'steppe'), renamed)}\n"
        f"A dict {aliases}.\n\n"
        "## Keys that are accepted and change nothing\n\n"
        f"{by_reason('no effect', 'because')}\n"
        "## Keys that are refused, unless they have RLlib's default\n\n"
        f"{by_reason('refused', 'what to do')}"
    )


def by_reason(kind: str, title: str) -> str:
    """Keys of one fate, those with one reason in a row."""
    found = (key for key in KEYS.values() if key.kind == kind)
    rows = ((names(keys), why) for why, keys in groupby(found, key=lambda key: key.why))
    return table(("RLlib", title), rows)


def names(keys: Iterable[Key]) -> str:
    """Names as code, in their order in the table."""
    return ", ".join(f"`{key.name}`" for key in keys)


# --- what each algorithm can do -----------------------------------------------------------------------------


def features() -> dict[str, dict[str, str]]:
    """By algorithm and feature: yes, no or planned."""
    table = tomllib.loads((DOCS / "features.toml").read_text(encoding="utf-8"))
    return {algo: dict(zip(table["features"], row, strict=True)) for algo, row in table["cells"].items()}


def feature_table() -> str:
    """A row a feature, a column an algorithm."""
    cells = features()
    rows = ([feature, *(row[feature] for row in cells.values())] for feature in next(iter(cells.values())))
    return table(["", *cells], rows)


if __name__ == "__main__":
    for page, text in pages().items():
        (DOCS / page).write_text(text, encoding="utf-8")
