"""Files of rows, readable at any moment: each row is written at once, a torn last one is skipped."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

Scalar = bool | int | float | str
Row = dict[str, Any]


def flatten(result: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """The scalars of nested dicts, under keys joined by ``/``; lists, larger arrays and None are left out."""
    flat: dict[str, Scalar] = {}
    for key, value in result.items():
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        elif isinstance(value, Scalar):
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinities are null, what is unknown is its text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step: a reader, or a crash, sees the old or the new text."""
    _replace(path, json.dumps(to_json(value), indent=2) + "\n")


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a ``.jsonl`` file; a last line without its end is skipped, no file has no rows."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a progress file as text; a last line without its end is skipped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def keep_jsonl(path: Path, keep: Callable[[Row], bool]) -> None:
    """Remove the rows for which ``keep`` is false."""
    if path.exists():
        _replace(path, "".join(_line(row) for row in read_jsonl(path) if keep(row)))


def keep_csv(path: Path, keep: Callable[[dict[str, str]], bool]) -> None:
    """Remove the rows for which ``keep`` is false; the columns stay."""
    rows = read_csv(path)
    if rows:
        _replace(path, _csv_text(list(rows[0]), [list(rows[0]), *(r.values() for r in rows if keep(r))]))


@final
class JsonLines:
    """One JSON object a line, appended and flushed at once."""

    def __init__(self, path: Path) -> None:
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Append rows."""
        self._file.write("".join(map(_line, rows)))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@final
class ProgressCsv:
    """A table with one row per result. The first row fixes the columns; later ones may add to their end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8", newline="")
        with path.open(encoding="utf-8", newline="") as file:
            self._columns: list[str] = next(csv.reader(file), [])

    def write(self, row: Mapping[str, Scalar]) -> None:
        """Append a row; what it lacks stays empty."""
        fresh = [key for key in row if key not in self._columns]
        if fresh:
            self._widen(fresh)
        self._file.write(_csv_text(self._columns, [[row.get(key) for key in self._columns]]))
        self._file.flush()

    def _widen(self, fresh: list[str]) -> None:
        rows = [row.values() for row in read_csv(self._path)]
        self._columns += fresh
        self._file.close()
        _replace(self._path, _csv_text(self._columns, [self._columns, *rows]))
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(to_json(row), separators=(",", ":")) + "\n"


def _csv_text(columns: list[str], rows: list[Any]) -> str:
    """Rows as lines, filled up with empty cells; line breaks inside a cell would look like torn rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = [" ".join(cell.splitlines()) if isinstance(cell, str) else cell for cell in row]
        writer.writerow(cells + [None] * (len(columns) - len(cells)))
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8", newline="\n")
    os.replace(fresh, path)


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed process left after the last line end, or the next row would be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        file.truncate(end)
