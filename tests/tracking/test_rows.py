"""Files of rows: flat keys, columns that come later, numbers JSON lacks, and lines torn by a kill."""

import csv
import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steppe.tracking.rows import (
    JsonLines,
    ProgressCsv,
    flatten,
    keep_csv,
    keep_jsonl,
    read_csv,
    read_jsonl,
    to_json,
)


def test_flatten_keeps_scalars_under_joined_keys():
    result = {
        "a": 1,
        "info": {"default_policy": {"entropy": np.float32(0.5), "empty": {}}},
        "flag": np.bool_(True),
        "zero_d": np.array(3),
        "list": [1, 2],
        "array": np.zeros(2),
        "none": None,
        "text": "x",
        "nan": math.nan,
    }
    flat = flatten(result)
    assert math.isnan(flat.pop("nan"))
    assert flat == {"a": 1, "info/default_policy/entropy": 0.5, "flag": True, "zero_d": 3, "text": "x"}
    assert [type(v) for v in flat.values()] == [int, float, bool, int, str]


def test_to_json_writes_what_json_lacks_as_null_or_text():
    value = {
        1: np.float64("nan"),
        "a": (np.int64(2), np.array([1.0, math.inf])),
        "s": {3},
        "o": complex(1, 2),
    }
    assert (
        json.dumps(to_json(value), allow_nan=False)
        == '{"1": null, "a": [2, [1.0, null]], "s": [3], "o": "(1+2j)"}'
    )


def test_columns_are_fixed_by_the_first_row_and_grow(tmp_path):
    path = tmp_path / "p.csv"
    table = ProgressCsv(path)
    table.write({"a": 1, "b": math.nan})
    table.write({"b": 2.5})
    table.write({"c": "x, y\nz", "a": 3})
    table.write({"a": 4, "c": True})
    table.close()
    assert path.read_text() == 'a,b,c\n1,nan,\n,2.5,\n3,,"x, y z"\n4,,True\n'


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(), min_size=1), max_size=8),
    st.integers(0, 8),
)
def test_csv_equals_a_table_written_at_once(tmp_path_factory, rows, reopen_at):
    path = tmp_path_factory.mktemp("t") / "p.csv"
    table = ProgressCsv(path)
    for i, row in enumerate(rows):
        if i == reopen_at:
            table.close()
            table = ProgressCsv(path)
        table.write(row)
    table.close()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == ([columns] if rows else []) + [
            [str(r.get(c, "")) for c in columns] for r in rows
        ]


def test_a_torn_last_line_is_skipped_then_cut(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = JsonLines(path)
    rows.write({"n": 1}, {"n": 2})
    rows.close()
    with path.open("a") as file:
        file.write('{"n": 3, "te')
    assert [row["n"] for row in read_jsonl(path)] == [1, 2]
    rows = JsonLines(path)
    rows.write({"n": 4})
    rows.close()
    assert path.read_text() == '{"n":1}\n{"n":2}\n{"n":4}\n'


def test_a_torn_row_of_the_table_is_skipped_then_cut(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("a,b\n1,2\n3,")
    assert read_csv(path) == [{"a": "1", "b": "2"}]
    table = ProgressCsv(path)
    table.write({"a": 5, "b": 6})
    table.close()
    assert path.read_text() == "a,b\n1,2\n5,6\n"


def test_a_torn_header_is_cut(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("a,b")
    table = ProgressCsv(path)
    table.write({"c": 1})
    table.close()
    assert path.read_text() == "c\n1\n"


def test_keep_removes_rows_and_leaves_the_rest(tmp_path):
    table, lines = tmp_path / "p.csv", tmp_path / "r.jsonl"
    table.write_text('s,t\n1,"a, b"\n2,\n3,c\n')
    lines.write_text('{"s":1}\n{"s":2}\n{"s":3}\n{"s"')
    keep_csv(table, lambda row: int(row["s"]) != 2)
    keep_jsonl(lines, lambda row: row["s"] != 2)
    assert table.read_text() == 's,t\n1,"a, b"\n3,c\n'
    assert lines.read_text() == '{"s":1}\n{"s":3}\n'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "r.jsonl"]


def test_no_file_has_no_rows(tmp_path):
    assert read_csv(tmp_path / "x") == list(read_jsonl(tmp_path / "x")) == []
    keep_csv(tmp_path / "x", lambda row: True)
    keep_jsonl(tmp_path / "x", lambda row: True)
    assert list(tmp_path.iterdir()) == []
