"""A Ray over three hosts, which namespaces of Linux make of one machine: programs run, and hosts are lost."""

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import steppe
from tests.cluster.hosts import ENVIRONMENT, Cluster, Host, NotPermittedError, Switch

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster

PROGRAM = """
import json, platform, sys, time
from pathlib import Path

import gymnasium, ray, steppe, steppe.errors

config = steppe.PPOConfig(
    env="CartPole-v1",
    ray_address={address!r},
    num_env_runners=4,
    num_envs_per_env_runner=1,
    train_batch_size=64,
    minibatch_size=32,
    num_epochs=1,
    fcnet_hiddens=[4],
    write_run=False,
    seed=0,
)

def where(runner):
    return platform.node()

def tried(**changes):
    # where it was trained, or what was said instead; and after how many seconds
    began = time.monotonic()
    try:
        with config.copy(**changes).build() as algo:
            assert algo.train()["timesteps_total"] > 0
            said = sorted(algo.foreach_runner(where))
    except steppe.errors.SteppeError as error:
        said = str(error)
    return said, time.monotonic() - began

def tell(*what):
    print(json.dumps(what), flush=True)
"""
RUNNERS_S = 20
"""What processes of runners say takes less than ten seconds, where not all hosts share a few busy cores."""
MAZE = """
import gymnasium

class Maze(gymnasium.Wrapper):
    def __init__(self, env_config):
        super().__init__(gymnasium.make("CartPole-v1"))
"""


@pytest.fixture(scope="module")
def cluster():
    try:
        made = Cluster()
    except NotPermittedError as error:
        pytest.skip(str(error))
    with made:
        for name in ("b", "c"):
            made.join(name)
        yield made


@contextlib.contextmanager
def started(cluster, code, host=None, **environment):
    """A program on a host, in a folder of its own, beside a file with an env."""
    host = host or cluster.head
    folder = host.files / "tmp/program"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "maze.py").write_text(MAZE)
    (folder / "program.py").write_text(PROGRAM.format(address=cluster.address) + code)
    with open(folder / "complaints", "w") as complaints:
        options = {"cwd": "/tmp/program", "env": {**ENVIRONMENT, **environment}, "stderr": complaints}
        program = host.start([sys.executable, "program.py"], **options)
    limit = threading.Timer(150, program.kill)
    limit.start()
    try:
        yield program
        assert program.wait() == 0, (folder / "complaints").read_text()
    finally:
        limit.cancel()
        program.kill()
        program.communicate()


def lines(program):
    """What a program tells, line by line."""
    return (json.loads(line) for line in program.stdout if line.startswith("["))


def told(cluster, code, **where):
    """All that a program tells."""
    with started(cluster, code, **where) as program:
        return list(lines(program))


# ---------------------------------------------------------------- code, and where it is


def test_runners_are_on_several_hosts_and_a_class_of_the_program_is_sent_to_them(cluster):
    code = f"{MAZE}\ntell(*tried(env=Maze))\ntell(*tried(num_env_runners=2, env=lambda config: Maze(config)))"
    every, two = (said for said, _ in told(cluster, code))
    assert len(every) == 4
    assert {"b", "c"} <= set(every)
    assert len(two) == 2


def test_code_that_only_one_host_has_is_said_and_ray_carries_it(cluster):
    code = """
import maze
for env in (maze.Maze, "maze.py:Maze", "maze:Maze"):
    tell(*tried(env=env, num_env_runners=2))
ray.init(config.ray_address, runtime_env={"working_dir": "."}, logging_level="error")
for env in (maze.Maze, "maze.py:Maze"):
    tell(*tried(env=env, num_env_runners=2))
"""
    *refused, carried, named = told(cluster, code)
    assert max(seconds for _, seconds in refused) < RUNNERS_S
    for said, _ in refused:
        assert " lacks what is on 'head'" in said
        assert "ray.init(address=..., runtime_env={'working_dir': '.'}) before build()" in said
    assert "No module named 'maze'" in refused[0][0]
    assert "there is no file 'maze.py'" in refused[1][0]
    assert "there is no module 'maze'" in refused[2][0]
    assert all(len(where) == 2 and "head" not in where for where, _ in (carried, named))


def test_runners_on_other_hosts_tell_how_far_they_are_within_a_fragment(cluster):
    """A fragment takes longer than ``env_step_timeout``; nobody is replaced, for the envs do take steps."""
    code = f"""{MAZE}
    def step(self, action):
        time.sleep(0.2)
        return super().step(action)

slow = dict(num_env_runners=2, train_batch_size=50, minibatch_size=50, env_step_timeout=3)
with config.copy(env=Maze, **slow).build() as algo:
    hosts, began = algo.foreach_runner(where), time.monotonic()
    tell(hosts, algo.train()["num_worker_restarts"], time.monotonic() - began)
"""
    ((hosts, restarts, seconds),) = told(cluster, code)
    assert len(hosts) == 2
    assert "head" not in hosts
    assert restarts == 0
    assert seconds > 5


def test_remote_envs_are_on_several_hosts_and_say_what_one_lacks(cluster):
    code = f"""{MAZE}
    host = property(lambda self: platform.node())

remote = dict(num_env_runners=0, num_envs_per_env_runner=6, remote_worker_envs=True)
with config.copy(env=Maze, **remote).build() as algo:
    assert algo.train()["timesteps_total"] > 0
    tell(algo.foreach_env(lambda env: ray.get(env.host.remote())))
import maze
tell(*tried(env=maze.Maze, **remote))
"""
    (hosts,), (said, _) = told(cluster, code)
    assert len(hosts) == 6
    assert len(set(hosts)) > 1
    assert re.match(r"host '[bc]' lacks what is on 'head': No module named 'maze'", said)


def test_another_version_on_one_host_is_said(cluster):
    own = Path(steppe.__file__)
    other = cluster.workers["c"].files / "tmp/other.py"
    other.write_text(own.read_text().replace(f'"{steppe.__version__}"', '"0.0.7"'))
    cluster.workers["c"].run(["mount", "--bind", "/tmp/other.py", str(own)])
    try:
        ((said, seconds),) = told(cluster, "tell(*tried())")
    finally:
        cluster.workers["c"].run(["umount", str(own)])
    assert seconds < RUNNERS_S
    assert said.startswith(
        f"host 'c' has steppe 0.0.7, and 'head', where the run was started, has {steppe.__version__}"
    )


def test_a_host_without_steppe_is_said(cluster):
    folder = str(Path(steppe.__file__).parent)
    cluster.workers["b"].run(["mount", "-t", "tmpfs", "tmpfs", folder])
    try:
        ((said, seconds),) = told(cluster, "tell(*tried())")
    finally:
        cluster.workers["b"].run(["umount", folder])
    assert seconds < RUNNERS_S
    assert "or its host lacks steppe. Ray says: " in said
    assert "No module named 'steppe" in said
    assert "ip=10.77.0.2" in said


# ---------------------------------------------------------------- what cannot be


def test_an_address_that_nobody_has_and_too_few_cpus_are_said_within_ten_seconds(cluster):
    code = 'tell(*tried(ray_address="10.77.0.99:6379"))\ntell(*tried(num_env_runners=6))'
    (nobody, first), (few, second) = told(cluster, code)
    assert nobody.startswith("no Ray answers at ray_address='10.77.0.99:6379': start one there")
    assert "num_env_runners=6: Ray has no room for so many runners, which need 6 CPU (5 free)" in few
    assert max(first, second) < 10


def test_a_host_that_has_not_joined_is_told_how(cluster):
    stranger, _ = cluster.plugged_in("stranger")
    ((said, seconds),) = told(cluster, "tell(*tried())", host=stranger)
    assert "host 'stranger' is not one of that Ray's: join it (ray start --address=10.77.0.1:6379)" in said
    assert seconds < 10


@pytest.mark.parametrize("environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "f" * 64}])
def test_a_program_without_the_token_is_refused_within_ten_seconds(cluster, environment):
    ((said, seconds),) = told(cluster, "tell(*tried())", **environment)
    assert said.startswith("the Ray at ray_address='10.77.0.1:6379' cannot be joined: ")
    assert "Authentication token is missing or incorrect" in said
    assert seconds < 10


# ---------------------------------------------------------------- hosts that are lost

LONG = """
with config.build() as algo:
    tell(algo.foreach_runner(where))
    while not Path("stop").exists():
        result = algo.train()
        gone = sum(result["discarded"].values())
        assert result["executed"] == result["trained"] + gone + result["in_flight"]
        tell(result["num_healthy_workers"], result["timesteps_total"])
    tell(algo.foreach_runner(where))
"""


LOSSES = {
    "its processes end": lambda cluster, host: host.run(["bash", "-c", "kill -9 -1"], check=False),
    "it is switched off": lambda cluster, host: host.switch_off(),
    "its link is cut": lambda cluster, host: cluster.cut(host),
}


@pytest.mark.parametrize("how", LOSSES)
def test_training_goes_on_without_a_host_and_with_one_that_comes_later(cluster, how):
    with started(cluster, LONG) as program:
        said = lines(program)
        (before,) = next(said)
        first = list(itertools.islice(said, 3))
        assert [healthy for healthy, _ in first] == [4] * 3
        lost = next(name for name in before if name in cluster.workers)
        host = cluster.workers.pop(lost)
        LOSSES[how](cluster, host)
        fewer = next(line for line in said if line[0] < 4)
        assert fewer[0] >= 4 - before.count(lost)
        assert len(list(itertools.islice(said, 3))) == 3
        cluster.join(f"{lost}-2")
        whole = next(line for line in said if line[0] == 4)
        assert whole[1] > fewer[1] > first[-1][1]
        (cluster.head.files / "tmp/program/stop").touch()
        *_, (after,) = said
        assert f"{lost}-2" in after
        assert lost not in after
    host.switch_off()


# ---------------------------------------------------------------- what schedulers run

SRUN = """#!/bin/bash
# Runs what follows the options on the node that --nodelist names.
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && node=${{1#*=}}
    shift
done
declare -A nodes=({nodes})
exec nsenter --target "${{nodes[$node]}}" --mount --net --uts --pid env --chdir=/tmp "$@"
"""


def test_the_script_for_slurm_trains_on_all_of_its_nodes(tmp_path):
    """With a srun and a scontrol that do what those of Slurm do, as far as the script asks for it."""
    examples, names = Path(__file__).parents[2] / "examples/cluster", ("n1", "n2", "n3")
    with contextlib.ExitStack() as on:
        try:
            switch = on.enter_context(Switch())
        except NotPermittedError as error:
            pytest.skip(str(error))
        nodes = [on.enter_context(Host(name)) for name in names]
        for node in nodes:
            switch.plug_in(node)
            shutil.copy(examples / "train.py", node.files / "tmp")
        pids = " ".join(f"[{node.name}]={node.pid}" for node in nodes)
        for name, text in (
            ("srun", SRUN.format(nodes=pids)),
            ("scontrol", "#!/bin/sh\n" + "".join(f"echo {name}\n" for name in names)),
        ):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "2"}
        path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        with open("log", "w+") as log:
            script = subprocess.Popen(
                ["bash", examples / "slurm.sbatch", "--iterations", "2", "--envs", "2"],
                env={**os.environ, **job, "PATH": path, "HOME": "/tmp"},
                stdout=log,
                stderr=log,
            )
            try:
                assert script.wait(150) == 0, Path("log").read_text()
            finally:
                script.kill()
        said = Path("log").read_text()
        assert len(re.findall(r"^\d+ steps, reward .*, 4 runners, ", said, re.MULTILINE)) == 2, said
        assert re.search(r"^checkpoint runs/Pendulum-v1/appo-1/checkpoints/\d+$", said, re.MULTILINE), said
        assert (nodes[0].files / "tmp/runs/Pendulum-v1/appo-1/run.json").is_file()
