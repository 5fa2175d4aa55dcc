"""``steppe new`` writes a package that is formatted, passes its own tests, trains, and installs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium
import pytest
from gymnasium.envs.registration import ENV_ID_RE
from hypothesis import given
from hypothesis import strategies as st

from steppe.cli import new
from steppe.cli.new import names_of, write
from steppe.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sea-breeze", "sea_breeze", "SeaBreeze", "sea breeze", "seaBreeze", " Sea  Breeze ", "SEA_BREEZE")
KINDS = ("single", "vector")
LAYOUT = {
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "sea_breeze/__init__.py",
    "sea_breeze/envs/__init__.py",
    "sea_breeze/envs/sea_breeze.py",
    "tests/test_sea_breeze.py",
    "train.py",
}
words = st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), min_size=1, max_size=4)


@pytest.mark.parametrize("text", NAMES)
def test_every_spelling_leads_to_the_same_names(text):
    assert names_of(text) == ("sea-breeze", "sea_breeze", "SeaBreeze", "SeaBreeze-v0", "Sea breeze")


@pytest.mark.parametrize(
    ("text", "module", "cls"),
    [
        ("corridor", "corridor", "Corridor"),
        ("HTTPServer", "http_server", "HttpServer"),
        ("grid2d-env", "grid2d_env", "Grid2dEnv"),
        ("x-ray", "x_ray", "XRay"),
        ("XRay", "x_ray", "XRay"),
    ],
)
def test_words_begin_at_capitals_dashes_and_underscores(text, module, cls):
    assert names_of(text)[1:3] == (module, cls)


@given(words)
def test_names_are_legal_and_lead_to_themselves(parts):
    names = names_of("-".join([*parts, "zz"]))
    assert names.module.isidentifier()
    assert names.cls.isidentifier()
    assert ENV_ID_RE.fullmatch(names.env_id)
    assert names == names_of(names.folder) == names_of(names.module) == names_of(names.cls)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2048", "'2048' cannot be a package's name: begin with a letter"),
        ("my.env!", "such as 'my-env'"),
        ("9 men morris", "such as 'men-morris'"),
        ("größe", "use only a-z"),
        ("", "such as 'my-env'"),
        ("../up", "such as 'up'"),
        ("class", "it is a word of Python's own; choose another, such as 'class-env'"),
        ("None", "word of Python's own"),
        ("ValueError", "word of Python's own"),
        ("random", "'random' is a module of Python's own"),
        ("test", "'test' is a module of Python's own"),
        ("Gymnasium", "'gymnasium' is imported from .*__init__.py; choose another, such as 'gymnasium-env'"),
        ("steppe", "'steppe' is imported from"),
        ("tests", "'tests' has another use in the package's folder"),
        ("MyEnv-v0", "has a version; give 'MyEnv'"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(text, says):
    with pytest.raises(ConfigError, match=says):
        names_of(text)


def test_what_a_refusal_suggests_is_accepted():
    for text in ("2048", "my.env!", "größe", "class", "random", "numpy", "tests", "../up"):
        with pytest.raises(ConfigError) as caught:
            names_of(text)
        names_of(re.search(r"such as '([^']+)'", str(caught.value))[1])


def test_a_folder_on_the_path_takes_no_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sea_breeze").mkdir()
    assert names_of("sea-breeze").module == "sea_breeze"
    (tmp_path / "land_breeze.py").touch()
    with pytest.raises(ConfigError, match=r"imported from .*land_breeze\.py"):
        names_of("land-breeze")


@pytest.mark.parametrize("made", ["folder", "file", "dangling"])
def test_what_exists_is_left_as_it_is(steppe, tmp_path, made):
    there = tmp_path / "sea-breeze"
    if made == "folder":
        there.mkdir()
        (there / "train.py").write_text("mine")
    elif made == "file":
        there.write_text("mine")
    else:
        there.symlink_to("nowhere")
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    done = steppe("new", "SeaBreeze")
    assert (done.status, done.out) == (2, "")
    assert done.err == "Error: sea-breeze exists and is left as it is; choose another name or --path\n"
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == before


def test_where_nothing_can_be_written_is_said(steppe, tmp_path):
    done = steppe("new", "SeaBreeze", "--path", "nowhere")
    assert (done.status, "'nowhere' does not exist" in done.err) == (2, True)
    done = steppe("new", "a" * 300)
    assert (done.status, "cannot be made: File name too long; choose" in done.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_the_next_commands_are_printed_ready_to_be_pasted(steppe, tmp_path):
    (tmp_path / "my work").mkdir()
    done = steppe("new", "sea_breeze", "--path", "my work")
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        "wrote my work/sea-breeze; next:",
        "  pip install -e 'my work/sea-breeze[test]'",
        "  pytest 'my work/sea-breeze'",
        "  python 'my work/sea-breeze/train.py'",
        "or, once it is installed: steppe train sea_breeze:SeaBreeze-v0 --total-steps 20k",
    ]
    assert files_of(tmp_path / "my work" / "sea-breeze") == LAYOUT


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=KINDS)
def package(request, tmp_path_factory):
    """A package that was written; nobody changes it."""
    return write(names_of("sea-breeze"), request.param, tmp_path_factory.mktemp(request.param))


def test_nothing_of_a_template_is_left(package):
    assert files_of(package) == LAYOUT
    for name in LAYOUT:
        text = (package / name).read_text()
        assert text.endswith("\n"), name
        assert "$" not in text, name
        assert "PACKAGE" not in text, name


def test_the_readme_tells_every_file_and_every_name(package):
    text = (package / "README.md").read_text()
    told = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert set(told) - LAYOUT == {
        "sea-breeze",
        "sea_breeze",
        "SeaBreeze",
        "SeaBreeze-v0",
        "sea_breeze:SeaBreeze-v0",
    }
    assert LAYOUT - set(told) == {"README.md"}


def test_the_page_tells_every_file():
    told = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "scaffold.md").read_text(), re.MULTILINE)
    assert {name.replace("sea_breeze", "my_env") for name in LAYOUT} <= set(told)


def test_it_depends_on_what_steppe_itself_depends_on(package):
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())
    written = tomllib.loads((package / "pyproject.toml").read_text())
    assert written["build-system"] == own["build-system"]
    assert written["project"]["name"] == "sea-breeze"
    assert written["project"]["requires-python"] == own["project"]["requires-python"]
    others = [line for line in written["project"]["dependencies"] if not line.startswith("steppe")]
    assert set(others) < set(own["project"]["dependencies"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ab", "sea-breeze", "a-name-of-thirty-letters-or-so"])
def test_what_is_written_is_formatted_and_free_of_lint(name, kind, tmp_path):
    folder = write(names_of(name), kind, tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--diff"], ["check", "--extend-select", "I,B,UP"]):
        done = subprocess.run([*ruff, *command, "--isolated"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def run(words, folder, **extra):
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **extra}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rewards(printed):
    """(random, trained) of the last line that train.py prints."""
    last = re.fullmatch(r"mean reward: random (\S+), trained (\S+)", printed.splitlines()[-1])
    return float(last[1]), float(last[2])


def test_it_passes_its_own_tests(package, tmp_path):
    copy = shutil.copytree(package, tmp_path / "copy")
    path = os.pathsep.join([str(copy), str(ROOT / "src")])
    printed = run([sys.executable, "-m", "pytest", "-q", "-W", "error"], copy, PYTHONPATH=path)
    assert re.search(r"^\d+ passed", printed, re.MULTILINE), printed


def test_it_trains_and_acts_from_its_checkpoint(package, tmp_path):
    path = os.pathsep.join([str(package), str(ROOT / "src")])
    words = [sys.executable, "-W", "error", str(package / "train.py"), "--steps", "10000"]
    printed = run(words, tmp_path, PYTHONPATH=path)
    saved = re.search(r"^saved (\S+)$", printed, re.MULTILINE)[1]
    assert saved == "runs/SeaBreeze-v0/ppo-1/checkpoints/10240"
    assert (tmp_path / saved).is_dir()
    assert re.search(r"^[.GA]( [.GA]){4}$", printed, re.MULTILINE), "an episode is drawn"
    chance, trained = rewards(printed)
    assert chance == pytest.approx(-1.24, abs=0.25)
    assert trained > 0.5
    assert "runs" not in {item.name for item in package.iterdir()}


def test_writing_imports_nothing_heavy(tmp_path):
    code = """
import sys
from steppe.cli import main
try:
    main(["new", "sea-breeze"])
except SystemExit as end:
    assert not end.code
print({"jax", "numpy", "gymnasium", "rich"} & set(sys.modules))
"""
    printed = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(ROOT / "src"))
    assert printed.splitlines()[-1] == "set()"


def test_every_template_is_a_template():
    names = [path.name for path in new.TEMPLATES.rglob("*") if path.is_file()]
    assert names
    assert all(name.endswith(".txt") for name in names), "ruff, mypy and pytest would take it for ours"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_commands_work_in_a_fresh_environment(kind, tmp_path):
    """As a stranger would: a new venv, steppe from this checkout as a wheel, then what is printed."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / "bin"
    fresh = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    run(["pip", "install", "--quiet", "-c", str(ROOT / "requirements.lock"), str(ROOT)], tmp_path, **fresh)
    lines = run(["steppe", "new", "sea-breeze", "--kind", kind], tmp_path, **fresh).splitlines()
    assert files_of(tmp_path / "sea-breeze") == LAYOUT, "the wheel holds every template"
    install, test, train = (line.strip() for line in lines[1:4])
    run(["bash", "-c", install], tmp_path, **fresh)
    assert " passed" in run(["bash", "-c", test], tmp_path, **fresh)
    chance, trained = rewards(run(["bash", "-c", train], tmp_path, **fresh))
    assert chance < 0
    assert trained > 0.7
    by_hand = lines[4].partition(": ")[2]
    assert "reached 20,000 steps" in run(["bash", "-c", f"{by_hand} --seed 0"], tmp_path, **fresh)
    played = run(["steppe", "evaluate", "runs/SeaBreeze-v0/ppo-2"], tmp_path, **fresh)
    assert float(re.search(r"reward mean (\S+)", played)[1]) > 0.5
    if kind == "vector":  # a vector env is no Gymnasium env, which `rollout` plays in
        return
    drawn = run(["steppe", "rollout", "runs/SeaBreeze-v0/ppo-2", "--render"], tmp_path, **fresh)
    assert re.search(r"^[.GA]( [.GA]){4}$", drawn, re.MULTILINE)
    assert gymnasium.registry.get("SeaBreeze-v0") is None, "the venv's env is not this process's"
