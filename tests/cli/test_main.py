"""The command line starts at once, and answers mistakes with a sentence and the right exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steppe import cli
from steppe.cli import COMMANDS, main
from tests.cli.conftest import SMALL


def test_help_imports_nothing_heavy():
    heavy = {"jax", "numpy", "gymnasium", "rich", "steppe.config", "steppe.cli.train", "equinox"}
    code = f"""
import sys
from steppe.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def _environment():
    return {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_that_begins_as_the_list_says(steppe, name):
    done = steppe(name, "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: steppe {name}")
    first = COMMANDS[name].split(",")[0].rstrip(".")
    assert first in " ".join(done.out.split())


def test_unknown_names_get_suggestions(steppe):
    done = steppe("trian")
    assert done.status == 2
    assert "No such command 'trian'. Did you mean 'train'?" in done.err
    assert "Commands: train, evaluate" in steppe("zzz").err
    done = steppe("train", "--gama", "0.9")
    assert done.status == 2
    assert "No such option '--gama'." in done.err
    assert "Did you mean one of: '--gamma'" in done.err
    done = steppe("train", "CartPole-v2222")
    assert done.status == 2
    assert "CartPole-v1" in done.err
    done = steppe("train", "CartPole-v1", "--algo", "PPPO")
    assert done.status == 2
    assert "no algorithm 'PPPO'" in done.err


def test_an_illegal_value_names_what_is_legal(steppe):
    done = steppe("train", "CartPole-v1", "--lr", "fast")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Error: PPOConfig: lr='fast' must be a number at least 0")
    assert "env is missing" in steppe("train").err
    assert "Traceback" not in steppe("train").err


def test_a_broken_contract_is_told_without_a_traceback(steppe, walk):
    done = steppe("train", f"{walk}:NotANumber", *SMALL, "--quiet")
    assert done.status == 2
    assert "E104" in done.err
    assert "Traceback" not in done.err


def test_the_users_own_exception_comes_with_its_traceback(walk):
    with pytest.raises(ZeroDivisionError, match="in my env") as caught:  # Python shows it and exits with 1
        main(["train", f"{walk}:Broken", *SMALL, "--quiet"])
    assert caught.traceback[-1].path.name == "walk.py"
