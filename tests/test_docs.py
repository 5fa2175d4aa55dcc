"""The docs are true: their programs and commands run, and what they name exists.

The Python blocks of a page run one after the other in a fresh folder; a block that begins with ``# name.py``
is saved under that name (or path) instead, as is one of settings under ``# name.toml`` or ``# name.yaml``.
``TINY`` shows what is made smaller, so that a page takes seconds.
"""

import contextlib
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

import steppe
import steppe.config
from steppe.cli import cli
from steppe.config import field_specs
from steppe.envs import registry
from steppe.errors import CODES
from steppe.sampling.callbacks import HOOKS, SYNONYMS
from steppe.sampling.episodes import Episode

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted(DOCS.rglob("*.md")),
]
SMALL = "train_batch_size=64, minibatch_size=32, num_epochs=1"
SMALL_FLAGS = "--train-batch-size 64 --minibatch-size 32 --num-epochs 1"
TINY = {
    "README.md": {
        "seed=0)": f"seed=0, max_episode_steps=20, {SMALL})",
        "range(10)": "range(2)",
        "--total-steps 40k": f"--total-steps 128 --max-episode-steps 20 {SMALL_FLAGS}",
    },
    "docs/quickstart.md": {
        "seed=0)": f"seed=0, {SMALL})",
        "range(25)": "range(2)",
        '"sgd_minibatch_size": 128,': '"sgd_minibatch_size": 32, "train_batch_size": 64, "num_sgd_iter": 1,',
        "--episodes 1000": "--episodes 3",
        "--total-steps 100k": f"--total-steps 128 {SMALL_FLAGS}",
        "--total-steps 120k": "--total-steps 192",
        "--evaluation-interval 5 --set": "--evaluation-interval 1 --set",
        "num_epochs = 5": "num_epochs = 1\ntrain_batch_size = 64\nminibatch_size = 32",
        "total_steps = 100_000": "total_steps = 128",
        "timesteps_total: 100000": "timesteps_total: 128",
        "num_sgd_iter: 5": "num_sgd_iter: 1\n        train_batch_size: 64\n        sgd_minibatch_size: 32",
    },
    "docs/scale.md": {"num_env_runners=2,": "num_env_runners=2, local_mode=True,"},
    "docs/memory.md": {"train_batch_size=2000,": f"{SMALL},", "range(10)": "range(1)"},
    "docs/env-contract.md": {"seed=0)": f"seed=0, {SMALL})"},
    "docs/pettingzoo.md": {"seed=0)": f"seed=0, {SMALL})", "seed=0,\n": f"seed=0, {SMALL},\n"},
    "docs/environments.md": {
        '"corridor_length": 5}, seed=0)': f'"corridor_length": 5}}, seed=0, {SMALL})',
        "_fn=policy_of, seed=0)": f"_fn=policy_of, seed=0, {SMALL})",
        "seed=0,\n)": f"seed=0, {SMALL},\n)",
        '"rounds": 5}, seed=0)': f'"rounds": 5}}, seed=0, {SMALL})',
    },
    "docs/models.md": {"seed=0)": f"seed=0, {SMALL})"},
    "docs/actions.md": {"seed=0)": f"seed=0, {SMALL})", "range(5)": "range(2)"},
    "docs/scaffold.md": {
        '{"size": 8}, seed=0)': f'{{"size": 8}}, seed=0, {SMALL})',
        "--total-steps 20k": f"--total-steps 128 {SMALL_FLAGS}",
    },
    "docs/jax-envs.md": {"seed=0)": f"seed=0, {SMALL})", "range(10)": "range(2)"},
    "docs/external.md": {"seed=0)": f"seed=0, {SMALL})", "range(10)": "range(1)"},
    "docs/devices.md": {"seed=0)": f"seed=0, {SMALL})"},
    "docs/callbacks.md": {
        '"CartPole-v1", seed=0)': f'"CartPole-v1", seed=0, max_episode_steps=3, {SMALL})',
        "Calm, seed=0)": f"Calm, seed=0, max_episode_steps=3, {SMALL})",
        "seed=0\n)": f"seed=0, {SMALL}\n)",
        "Rewards], seed=0)": f"Rewards], seed=0, {SMALL})",
        "train_batch_size=512": SMALL,
        "range(12)": "range(2)",
    },
    "docs/tuning.md": {
        "--trials 20 --steps 50k": f"--trials 2 --steps 64 --max-episode-steps 3 {SMALL_FLAGS}",
        "--trials 25": "--trials 3",
        "40 --steps 50k --on ray": f"2 --steps 64 --max-episode-steps 3 --on here {SMALL_FLAGS}",
        "seed=0)": f"seed=0, max_episode_steps=3, {SMALL})",
        "trials=20, steps=50_000": "trials=2, steps=64",
        "[64, 64], [256, 256])}": "[4], [8])}",
        "1000, 8000": "32, 64",
    },
    "docs/algorithms/mappo.md": {},
    "docs/tutorial.md": {
        "--episodes 10000": "--episodes 3",
        "seed=0)\nwith": f"seed=0, {SMALL})\nwith",
        "range(5)": "range(2)",
        "--stop-iters 5": f"--stop-iters 2 {SMALL_FLAGS}",
        "--episodes 100": "--episodes 3",
        'config["log_level"] = "WARN"': 'config |= {"train_batch_size": 64, "num_sgd_iter": 1}',
    },
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(language, first line, text) of each fenced block."""
    text = page.read_text()
    return [(m[1], text.count("\n", 0, m.start(2)), m[2]) for m in FENCE.finditer(text)]


def command_lines(page):
    """What a page says to type: whole lines that begin with ``steppe``."""
    lines = [line for language, _, text in blocks(page) if not language for line in text.splitlines()]
    return [line for line in lines if line.startswith("steppe ")]


def smaller(name, text, used):
    for old, new in TINY[name].items():
        if old in text:
            used.add(old)
            text = text.replace(old, new)
    return text


def run_program(page, line, code, namespace):
    first = code.partition("\n")[0]
    if re.fullmatch(r"# [\w/-]+\.py", first):
        Path(first[2:]).write_text(code)
    else:
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


def run_command(line, monkeypatch):
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", words)
    assert cli.main(words[1:], prog_name="steppe", standalone_mode=False) in (None, 0)


@pytest.fixture
def _as_in_a_new_process(monkeypatch, tmp_path):
    """Modules of the pages are importable, and forgotten afterwards; so are names registered, words said."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "REGISTERED", {})
    monkeypatch.setattr(steppe.config.messages, "_said", set())
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.usefixtures("_as_in_a_new_process")
@pytest.mark.parametrize("name", TINY)
def test_programs_and_commands_of_a_page_run_from_top_to_bottom(name, monkeypatch):
    page, used, namespace, ran = ROOT / name, set(), {"__name__": "__main__"}, 0
    for language, line, text in blocks(page):
        text = smaller(name, text, used)
        if language == "python":
            run_program(page, line, text, namespace)
            ran += 1
        elif language in ("toml", "yaml"):
            Path(text.partition("\n")[0].removeprefix("# ")).write_text(text)
        elif not language:
            for command in text.splitlines():
                if command.startswith("steppe "):
                    run_command(command, monkeypatch)
                elif command.startswith("pip install -e "):  # what it does that matters here
                    folder = shlex.split(command)[-1].partition("[")[0]
                    monkeypatch.syspath_prepend(Path(folder).resolve())
    assert ran >= 2
    assert used == set(TINY[name]), "a substitution that changes nothing hides a full-size run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_links_lead_somewhere(page):
    text = page.read_text()
    for line in command_lines(page):
        name, *rest = shlex.split(line)[1:]
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, line
        with contextlib.suppress(click.exceptions.Exit):  # --help
            command.make_context(name, rest)
    for name in re.findall(r"`steppe ([a-z-]+)[^`|]*`", text):
        assert name.startswith("-") or cli.get_command(click.Context(cli), name) is not None, name
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_a_wrong_command_line_is_noticed():
    command = cli.get_command(click.Context(cli), "train")
    with pytest.raises(click.NoSuchOption):
        command.make_context("train", ["CartPole-v1", "--total-step", "5"])
    assert cli.get_command(click.Context(cli), "trian") is None


def test_every_code_is_explained():
    rows = re.findall(r"^\| (E\d+) \| ([^|]+) \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert dict(rows) == CODES
    assert len(rows) == len(CODES)


def keys_of_table(text, title):
    """What the first column names, of the table under a title."""
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", section, re.MULTILINE)
    return sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell))


def rows_below(text, header):
    """The names in the first and in the last cell of each row of the table whose header begins so."""
    table = text.partition(f"\n{header}")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in table]
    return [tuple(re.findall(r"`(\w+)[`(]", cell) for cell in (row[0], row[-1])) for row in cells]


def test_the_page_on_callbacks_lists_every_hook_with_its_arguments():
    text = (DOCS / "callbacks.md").read_text()
    hooks = [(hook, tuple(arguments)) for (hook,), arguments in rows_below(text, "| hook |")]
    assert hooks == list(HOOKS.items())
    explained = [name for names, _ in rows_below(text, "| argument |") for name in names]
    assert sorted(explained) == sorted({name for arguments in HOOKS.values() for name in arguments})
    assert all(f"`{name}`" in text for name in SYNONYMS)


def test_the_page_on_callbacks_names_what_an_episode_and_a_trajectory_have():
    text = (DOCS / "callbacks.md").read_text()
    named = {name for names, _ in rows_below(text, "| attribute |") for name in names}
    public = {name for name in dir(Episode(0, 0, 0)) if not name.startswith("_")}
    assert named == public - {"enter", "see", "get_state", "set_state"}  # those are the sampler's
    columns = {name for names, _ in rows_below(text, "| column |") for name in names}
    seen = set()

    class Watch(steppe.Callbacks):
        def on_postprocess_trajectory(self, *, postprocessed_batch):
            seen.update(postprocessed_batch)

    config = steppe.PPOConfig(
        env="CartPole-v1", callbacks_class=Watch, train_batch_size=64, num_epochs=1, write_run=False, seed=0
    )
    with config.build() as algo:
        algo.train()
    assert columns == seen


def test_ppo_explains_exactly_the_keys_of_a_result():
    config = steppe.PPOConfig(env="CartPole-v1", seed=0, train_batch_size=64, num_epochs=1, write_run=False)
    with config.build() as algo:
        result = algo.train()
    text = (DOCS / "algorithms" / "ppo.md").read_text()
    assert keys_of_table(text, "What a result holds") == sorted(result)
    assert keys_of_table(text, "What learning measures") == sorted(result["info"]["default_policy"])
    assert all(f"`{part}`" in text for part in result["time"])


def test_ppo_names_every_setting_of_its_own_with_its_default():
    text = (DOCS / "algorithms" / "ppo.md").read_text()
    shared = field_specs(steppe.config.AlgorithmConfig)
    own = {name: spec.default() for name, spec in field_specs(steppe.PPOConfig).items() if name not in shared}
    assert len(own) > 5
    for name, default in own.items():
        assert re.search(rf"`{name}(`|=)", text), name
        stated = re.findall(rf"`{name}` \(([\d.,e-]+)", text)
        assert all(float(value.replace(",", "")) == default for value in stated), name


def test_code_that_ppo_points_to_is_there():
    pointers = re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "algorithms" / "ppo.md").read_text())
    assert len(pointers) > 20
    for file, name in pointers:
        source = (ROOT / "src" / "steppe" / file).read_text()
        assert re.search(rf"^(?:def|class) {name}\b", source, re.MULTILINE), f"{file}::{name}"
