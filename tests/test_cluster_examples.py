"""What runs on clusters is valid: files for Slurm, ``ray up`` and KubeRay, and the program that they start.

``make test-cluster`` runs the script for Slurm.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples.cluster import train

FOLDER = Path(train.__file__).parent


def read(name):
    return yaml.safe_load((FOLDER / name).read_text())


def cpus(group):
    """Of each pod of a group, as Ray counts them."""
    (container,) = group["template"]["spec"]["containers"]
    own = group["rayStartParams"].get("num-cpus")
    assert container["resources"]["requests"] == container["resources"]["limits"]
    return int(own if own is not None else container["resources"]["limits"]["cpu"])


def test_a_job_of_kuberay_has_room_for_its_runners_in_the_cluster_that_stays_too():
    job, cluster = read("kuberay-job.yaml"), read("kuberay-cluster.yaml")
    assert (job["kind"], cluster["kind"]) == ("RayJob", "RayCluster")
    assert job["apiVersion"] == cluster["apiVersion"] == "ray.io/v1"
    spec = job["spec"]["rayClusterSpec"]
    assert spec == cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    (workers,) = spec["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    room = cpus(spec["headGroupSpec"]) + workers["replicas"] * cpus(workers)
    assert int(re.search(r"--runners (\d+)$", job["spec"]["entrypoint"])[1]) == room
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == {"RAY_ADDRESS": "auto"}


def test_all_hosts_have_the_same_ray():
    (version,) = set(
        re.findall(
            r"\b2\.\d+\.\d+\b", "".join(file.read_text() for file in FOLDER.iterdir() if file.is_file())
        )
    )
    locked = (FOLDER.parents[1] / "requirements.lock").read_text()
    assert f"ray=={version}\n" in locked


def test_ray_up_takes_its_file():
    pytest.importorskip("ray")
    code = (
        "import json, sys, yaml\n"
        "from ray.autoscaler._private.util import prepare_config, validate_config\n"
        "config = prepare_config(yaml.safe_load(open(sys.argv[1])))\n"
        "validate_config(config)\n"
        "print(json.dumps(config))\n"
    )
    command = [sys.executable, "-c", code, str(FOLDER / "ray-up.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    config = json.loads(done.stdout)
    assert config["max_workers"] == len(config["provider"]["worker_ips"]) == 2
    assert all(
        "RAY_AUTH_MODE=token" in config[f"{which}_start_ray_commands"][1] for which in ("head", "worker")
    )


def test_the_script_for_slurm_is_one():
    subprocess.run(["bash", "-n", FOLDER / "slurm.sbatch"], check=True)
    asked = re.findall(r"^#SBATCH --([a-z-]+)=", (FOLDER / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"nodes", "ntasks-per-node", "cpus-per-task", "time"} <= set(asked)


def test_the_program_trains_on_a_laptop(monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--iterations", "1", "--envs", "2"])
    train.main()
    said = capsys.readouterr().out
    assert re.search(r"^\d+ steps, reward (-\d+\.\d|nan), 1 runners, ", said)
    assert Path(said.rpartition("checkpoint ")[2].strip(), "manifest.json").is_file()
