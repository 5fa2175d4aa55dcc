"""The budgets of the design: how much a reader has to hold in mind, asserted."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import steppe

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "steppe"
FILES = sorted(SOURCE.rglob("*.py"))
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
ABOVE_CORE = ("cli", "compat", "tune", "scaling", "algorithm.py", "resuming.py", "loading.py", "tracking")
ABOVE_CORE += ("serving", "offline", "doctor")
COLLECTION = ("algorithms", "models", "policies", "learning", "buffers", "jaxenvs")
"""Bounded by the piece: docs/decisions/0006-what-everything-is.md."""
LEAVES = {"compat": 1_100, "tune": 940, "scaling": 440, "serving": 5_000, "external": 920}
"""Bounded by themselves: docs/decisions/0008-what-a-leaf-is.md, and 0009 to 0013."""
OF_LEAVES = {"cli/tune.py": "tune", "cli/bench.py": "scaling", "cli/serve.py": "serving"}
"""The commands that are there for a leaf alone."""
OF_LEAVES |= {f"envs/{name}.py": "external" for name in ("driven", "stories", "external", "external_rows")}
ALONE = {"serving/client.py": 720}
"""Copied and installed by itself, so that it cannot be parted: docs/decisions/0012-serving-is-a-leaf.md."""


def leaf_of(file):
    """The leaf that a file is part of, if it is of one."""
    path = file.relative_to(SOURCE)
    leaf = OF_LEAVES.get(path.as_posix(), path.parts[0])
    return leaf if leaf in LEAVES else None


def docstring_lines(tree):
    lines = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


def sloc(path):
    """Lines of code: no blank ones, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    skip = docstring_lines(ast.parse(text))
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for i, line in lines if line.strip() and not line.strip().startswith("#") and i not in skip)


def test_sloc_counts_code_only(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""Doc\nmore."""\n\n# why\nx = 1\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n')
    assert sloc(file) == 4


def test_files_are_at_most_400_lines():
    limits = {SOURCE / name: limit for name, limit in ALONE.items()}
    assert {str(file): n for file in FILES if (n := sloc(file)) > limits.get(file, 400)} == {}


def test_functions_are_at_most_60_lines():
    long = {}
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        skip = docstring_lines(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = sum(1 for line in range(node.lineno, node.end_lineno + 1) if line not in skip)
                if length > 60:
                    long[f"{file.name}:{node.name}"] = length
    assert long == {}


PPO_RUN = """
import sys, steppe
small = {"train_batch_size": 8, "minibatch_size": 8, "num_epochs": 1, "num_envs_per_env_runner": 1}
with steppe.PPOConfig(env="CartPole-v1", fcnet_hiddens=[4], write_run=False, **small).build() as algo:
    algo.train()
    algo.evaluate(num_episodes=1)
    algo.save("c")
print(*(m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "steppe"), sep="\\n")
"""


def test_the_whole_and_its_core_stay_small():
    """The core is what a run of PPO on a Gymnasium env loads, up to the runners."""
    done = subprocess.run([sys.executable, "-c", PPO_RUN], capture_output=True, text=True, check=True)
    loaded = [Path(line) for line in done.stdout.splitlines()]
    core = [file for file in loaded if file.relative_to(SOURCE).parts[0] not in ABOVE_CORE]
    assert len(core) > 40
    assert sum(map(sloc, core)) <= 7_500
    rest = [file for file in FILES if file.relative_to(SOURCE).parts[0] not in COLLECTION]
    assert sum(sloc(file) for file in rest if leaf_of(file) is None) <= 14_000


@pytest.mark.parametrize(("leaf", "limit"), LEAVES.items())
def test_a_leaf_is_bounded_by_itself(leaf, limit):
    assert 0 < sum(sloc(file) for file in FILES if leaf_of(file) == leaf) <= limit


@pytest.mark.parametrize(
    "file", sorted((SOURCE / "algorithms").glob("[a-z]*.py")), ids=lambda file: file.stem
)
def test_an_algorithm_is_at_most_250_lines(file):
    assert sloc(file) <= 250


def test_there_is_at_least_as_much_test_as_code():
    tests = [file for file in (ROOT / "tests").rglob("*.py") if "__pycache__" not in file.parts]
    assert sum(map(sloc, tests)) >= sum(map(sloc, FILES))


def test_one_iteration_touches_few_files_and_functions():
    """The second PPO iteration on 8 envs: 12 files, 55 functions, depth 7, 1.5 calls per env step."""
    config = steppe.PPOConfig(
        env="CartPole-v1",
        num_envs_per_env_runner=8,
        num_epochs=1,
        fcnet_hiddens=[16],
        seed=0,
        write_run=False,
    )
    seen: Counter[tuple[str, str]] = Counter()
    depth = deepest = 0
    ours = str(SOURCE)

    def watch(frame, event, _):
        nonlocal depth, deepest
        code = frame.f_code
        # A comprehension is a part of the function around it.
        if not code.co_filename.startswith(ours) or code.co_name in COMPREHENSIONS:
            return
        if event == "call":
            seen[code.co_filename, code.co_qualname] += 1
            depth += 1
            deepest = max(deepest, depth)
        elif event == "return":
            depth -= 1

    with config.build() as algo:
        algo.train()
        sys.setprofile(watch)
        try:
            result = algo.train()
        finally:
            sys.setprofile(None)
    files = {Path(file).relative_to(SOURCE).as_posix() for file, _ in seen}
    calls = sum(seen.values()) / result["timesteps_this_iter"]
    counts = f"{len(files)} files, {len(seen)} functions, depth {deepest}, {calls:.2f} calls a step"
    report = f"{counts}: {sorted(files)}"
    most = "\n".join(f"{n:6} {Path(file).name} {name}" for (file, name), n in seen.most_common())
    print(report, most, sep="\n")
    assert len(files) <= 12, report
    assert len(seen) <= 55, f"{report}\n{most}"
    assert deepest <= 7, report
    assert calls <= 1.5, f"{report}\n{most}"
