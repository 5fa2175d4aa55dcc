"""The pages on settings say what the code says, and the program that comes from RLlib runs."""

import re

import pytest

import steppe
from docs import generate
from steppe.algorithms import ALGORITHMS, config_class
from steppe.config import AlgorithmConfig, field_docs, field_specs
from steppe.config.names import KEYS

TINY = {
    "range(10)": "range(1)",
    "horizon=200": "horizon=5",
    "num_sgd_iter=10": "num_sgd_iter=1, train_batch_size=128, sgd_minibatch_size=64",
    "evaluation_interval=5": "evaluation_interval=1, evaluation_duration=1",
}


@pytest.mark.parametrize("name", generate.pages())
def test_the_files_are_what_the_generator_writes(name):
    assert (generate.DOCS / name).read_text() == generate.pages()[name], "run `make docs`"


def test_a_page_without_its_mark_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# By hand\n")
    with pytest.raises(ValueError, match="lacks the line"):
        generate.by_hand(page)


def test_every_setting_has_a_row_with_its_default_and_what_it_does():
    text = (generate.DOCS / "configuration.md").read_text()
    for cls in (AlgorithmConfig, *map(config_class, ALGORITHMS)):
        docs = field_docs(cls)
        for name, spec in field_specs(cls).items():
            row = re.search(rf"^\| `{name}` \|(.*)\|$", text, re.MULTILINE)
            assert row, name
            assert docs[name], name
            assert f"| {spec.scope} |" in row[1]
    assert "| `gamma` | a number from 0 to 1 | `0.99` | policy | Discount per step. |" in text
    assert (
        "| `batch_mode` | 'truncate_episodes' or 'complete_episodes' | `\"truncate_episodes\"` | run |"
        in text
    )


def test_every_key_has_its_row():
    text = (generate.DOCS / "from-rllib.md").read_text()
    below = text.partition(generate.MARK)[2]
    named = re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\| (`.*?) \|", below, re.MULTILINE)))
    assert sorted(named) == sorted(KEYS)
    assert "| `num_sgd_iter` | `num_epochs` |" in below
    assert "| `lr_schedule` | `lr`, as a schedule |" in below


def test_a_bar_in_a_cell_ends_no_cell():
    assert generate.table(["a", "b"], [["x|y", "z"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z |\n"


def test_the_program_runs_with_its_first_line_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before, line = re.findall(
        r"```python\n(.*?)```", (generate.DOCS / "from-rllib.md").read_text(), re.DOTALL
    )
    for old, new in TINY.items():
        assert old in before
        before = before.replace(old, new)
    program = line + before.partition("\n")[2]
    exec(compile(program, "from-rllib.md", "exec"), {"__name__": "__main__"})
    first, saved = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 \d+\.\d+", first)
    assert steppe.load_policy(saved).action_space is not None


def test_the_three_spellings_of_the_page_run():
    (program,) = re.findall(
        r"```python\n(.*?)```", (generate.DOCS / "configuration.md").read_text(), re.DOTALL
    )
    exec(compile(program, "configuration.md", "exec"), {"__name__": "__main__"})
