"""Nothing is unpickled: neither by a server, nor by a client, nor out of a checkpoint.

Python tells an audit hook of every class or function that a pickle names. The hook here is put into every
process that begins with a certain environment, those of servers and clients too, by the name that Python
looks for.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import steppe

ROOT = Path(__file__).resolve().parent.parent.parent
HOOK = """
import os, sys

def _write(line, _file=os.open(os.environ["AUDIT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
    os.write(_file, (line + "\\n").encode())

def _hook(event, args, _write=_write):
    if event == "pickle.find_class":
        _write("unpickled: " + " ".join(map(str, args)))

_write("began: " + " ".join(sys.orig_argv))
sys.addaudithook(_hook)
"""
CHECKPOINT = """
import numpy as np
import steppe
small = {"train_batch_size": 8, "minibatch_size": 8, "num_epochs": 1, "num_envs_per_env_runner": 1}
with steppe.PPOConfig(env="CartPole-v1", fcnet_hiddens=[4], **small).build() as algo:
    algo.train()
    algo.save("saved")
with steppe.load("saved", write_run=False) as algo:
    algo.train()
    algo.restore("saved")
print(steppe.load_policy("saved").act(np.zeros(4, np.float32)))
"""
FORBIDDEN = {"pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib"}
FORBIDDEN |= {"eval", "exec", "compile", "__import__"}
SUITES = ("tests/test_checkpoint.py", "tests/test_loading.py", "tests/serving")


def audited(folder, *command, fine=(0,), **options):
    """Run a program and all those that it starts; the hook's lines of what began and was unpickled."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    paths = os.pathsep.join([str(folder / "hook"), str(ROOT / "src")])
    env = {**os.environ, "PYTHONPATH": paths, "AUDIT_FILE": str(folder / "events")}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, **options)
    assert done.returncode in fine, done.stdout[-4000:] + done.stderr[-4000:]
    events = (folder / "events").read_text().splitlines()
    return [[line for line in events if line.startswith(kind)] for kind in ("began: ", "unpickled: ")]


def test_the_hook_hears_of_a_pickle_in_a_process_of_a_process(tmp_path):
    inner = "import pickle, decimal; pickle.loads(pickle.dumps(decimal.Decimal(1)))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    began, unpickled = audited(tmp_path, "-c", outer)
    assert len(began) == 2
    assert unpickled == ["unpickled: decimal Decimal"]


def test_a_checkpoint_is_written_and_read_without_pickle(tmp_path):
    began, unpickled = audited(tmp_path, "-c", CHECKPOINT, cwd=tmp_path)
    assert (tmp_path / "saved" / "manifest.json").exists()
    assert len(began) >= 1
    assert unpickled == []


@pytest.mark.slow
def test_the_suites_of_server_clients_and_checkpoints_unpickle_nothing(tmp_path):
    """Whether their tests pass, they say themselves."""
    own = f"--deselect=tests/serving/{Path(__file__).name}"
    options = ("-q", "-p", "no:cacheprovider", own)
    began, unpickled = audited(
        tmp_path, "-m", "pytest", *options, *SUITES, fine=(0, 1), cwd=ROOT, timeout=570
    )
    assert unpickled == []
    assert sum("serving" in line for line in began) > 2  # processes of the suites, not only the suites


def test_serving_has_nothing_that_could():
    """Not even by name: what is not imported is not called by mistake."""
    folder = Path(steppe.__file__).parent
    files = [*(folder / "serving").glob("*.py"), *(folder / "cli").glob("serve.py")]
    assert len(files) > 2
    found = [
        f"{file.name}:{node.lineno} {name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in named(node)
        if name.split(".")[0] in FORBIDDEN
    ]
    assert found == []


def named(node):
    """What a piece of code imports, or calls by its bare name."""
    match node:
        case ast.Import(names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module):
            return [module or ""]
        case ast.Call(ast.Name(name)):
            return [name]
    return []


def test_what_is_imported_and_called_is_found():
    text = "import a, pickle\nfrom marshal import loads\nre.compile(eval(x))"
    found = [name for node in ast.walk(ast.parse(text)) for name in named(node)]
    assert sorted(found) == ["a", "eval", "marshal", "pickle"]
