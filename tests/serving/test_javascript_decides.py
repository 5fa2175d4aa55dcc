"""The JavaScript client in local mode: what it decides, how likely it says that was, and what it reports."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from steppe.envs.driven import Acted
from steppe.models.numpy_forward import Network
from steppe.models.numpy_logp import logp_of
from steppe.spaces import from_description, rows
from tests.serving.conforming import SCENARIOS, check, serving
from tests.serving.test_clients_in_other_languages import Driver, node

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None, reason="no node: `make setup-serving` installs it"
)
RNG = np.random.default_rng(0)
OBSERVED = {"kind": "Box", "shape": [2, 2], "dtype": "float32", "low": -10.0, "high": 10.0}
DISCRETE = {"kind": "Discrete", "n": 3, "start": 5}
MULTI = {"kind": "MultiDiscrete", "shape": [2], "dtype": "int64", "nvec": [2, 3], "start": [0, 1]}
BOX = {"kind": "Box", "shape": [2], "dtype": "float32", "low": [-1.0, -3.0], "high": [1.0, 0.5]}
WHOLE = {"kind": "Box", "shape": [1, 2], "dtype": "int32", "low": -2, "high": 3}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """One process for all tests."""
    driver = Driver(node())
    yield driver
    driver.end()


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("lossy", [False, True])
def test_the_script_that_all_clients_pass(driver, name, lossy, tmp_path):
    scenario = SCENARIOS[name]
    with serving(scenario["server"], tmp_path, lossy=lossy) as served:
        options = {"token": scenario["server"]["token"], "inferenceMode": "local"}
        client = driver.connect(f"http://127.0.0.1:{served.port}", **options)
        for step in scenario["steps"]:
            if step.get("mode") != "remote":
                check(step, client.result(step["call"], step.get("client"), **step["with"]))
        client.gives("close")
    assert served.told() == scenario["then"]


def server_of(
    action, outputs, *, exploration="sampled", normalized=None, activation="tanh", scalars=None, **network
):
    """A server of a random network of one hidden layer."""
    options = {"squash": False, "normalize": True, "clip": True, "autoregressive": False}
    arrays = {
        "mlp.weights.0": RNG.normal(0, 0.7, (4, 5)),
        "mlp.biases.0": RNG.normal(0, 0.5, 5),
        "mlp.weights.1": RNG.normal(0, 0.7, (5, outputs)),
        "mlp.biases.1": RNG.normal(0, 0.5, outputs),
    }
    if network.get("free_log_std"):
        arrays["log_std"] = RNG.normal(-0.5, 0.3, outputs)
    if normalized is not None:
        arrays["normalizer.obs.count"] = np.array(normalized)
        arrays["normalizer.obs.mean"] = RNG.normal(0, 1, (2, 2))
        arrays["normalizer.obs.m2"] = RNG.uniform(1, 100, (2, 2))
    network["distribution"] = {**options, **network.get("distribution", {})}
    about = {"kind": "actor", "observation": OBSERVED, "action": action, "critic_only": [], "masked": False}
    about |= {"encoder": {"kind": "flat"}, "mlp": {"sizes": [4, 5, outputs], "activation": activation}}
    about |= {"normalizer": normalized is not None, "free_log_std": False, "bounded_log_std": 0, **network}
    return {
        "multi_agent": False, "observation_space": OBSERVED, "action_space": action, "token": "t" * 32,
        "network": about, "exploration": {"kind": exploration} if exploration else None,
        "arrays": arrays, "scalars": scalars or {},
    }  # fmt: skip


POLICIES = {
    "choice": lambda: server_of(DISCRETE, 3),
    "choices, of normalized numbers": lambda: server_of(MULTI, 5, normalized=40, activation="relu"),
    "the likeliest": lambda: server_of(DISCRETE, 3, exploration=None, activation="elu"),
    "values": lambda: server_of(
        DISCRETE, 3, exploration="epsilon_greedy", greedy=True, scalars={"epsilon": 0.5}, activation="swish"
    ),
    "numbers": lambda: server_of(BOX, 2, free_log_std=True),
    "squashed numbers": lambda: server_of(
        BOX, 4, distribution={"squash": True}, bounded_log_std=2, normalized=1
    ),
    "numbers as they are": lambda: server_of(BOX, 4, distribution={"normalize": False, "clip": False}),
    "whole numbers": lambda: server_of(WHOLE, 4),
}


@pytest.mark.parametrize("name", POLICIES)
def test_what_it_decides_is_what_steppe_makes_of_the_same_sample(driver, name, tmp_path):
    server = POLICIES[name]()
    observations = RNG.normal(0, 3, (60, 2, 2)).clip(-10, 10).astype(np.float32)
    with serving(server, tmp_path) as served:
        client = driver.connect(
            f"http://127.0.0.1:{served.port}", token=server["token"], inferenceMode="local"
        )
        client.gives("start_episode", episode_id="e")
        asked = [
            ("get_action", {"episode_id": "e", "obs": obs, "full": True}) for obs in observations.tolist()
        ]
        told = [answer["gives"] for answer in client.together(asked)]
        client.gives("close")
    acted = [entry for entry in served.entries() if isinstance(entry, Acted)]
    assert [entry.t for entry in acted] == [one["step"] for one in told] == list(range(60))
    arrays = {key: np.asarray(array, np.float32) for key, array in server["arrays"].items()}
    network = Network(server["network"], arrays)
    sample = np.concatenate([entry.action for entry in acted])
    np.testing.assert_array_equal(np.concatenate([entry.obs for entry in acted]), observations)
    env_actions = rows(from_description(server["action_space"]), network.actions.to_env_direct(sample))
    np.testing.assert_allclose(np.array([one["action"] for one in told]), np.array(env_actions), atol=1e-4)
    params = network.params(observations)
    logp = logp_of(network.actions, params, sample)
    if name == "values":
        logp = np.log(0.5 / 3 + 0.5 * (sample == params.argmax(-1)))
        assert 0.5 < np.mean(sample == params.argmax(-1)) < 0.85  # 2/3 are expected
    if name == "the likeliest":
        np.testing.assert_array_equal(sample, params.argmax(-1))
    np.testing.assert_allclose([entry.logp for entry in acted], logp, atol=2e-4)
    np.testing.assert_allclose([one["logp"] for one in told], logp, atol=2e-4)


def test_samples_are_as_likely_as_it_says(driver, tmp_path):
    """4,000 of them: choices as often as their probabilities, numbers with their mean and deviation."""
    for i, (action, outputs) in enumerate(((DISCRETE, 3), (BOX, 4))):
        server = server_of(action, outputs)
        (tmp_path / str(i)).mkdir()
        with serving(server, tmp_path / str(i)) as served:
            options = {"token": server["token"], "inferenceMode": "local"}
            client = driver.connect(f"http://127.0.0.1:{served.port}", **options)
            client.gives("start_episode", episode_id="e")
            obs = [[0.5, -1.0], [2.0, 0.0]]
            client.together([("get_action", {"episode_id": "e", "obs": obs})] * 4000)
            client.gives("close")
        sample = np.concatenate([entry.action for entry in served.entries() if isinstance(entry, Acted)])
        arrays = {key: np.asarray(array, np.float32) for key, array in server["arrays"].items()}
        (params,) = Network(server["network"], arrays).params(np.array([obs], np.float32))
        assert len(sample) == 4000
        if action is DISCRETE:
            p = np.exp(params) / np.exp(params).sum()
            np.testing.assert_allclose(np.bincount(sample, minlength=3) / 4000, p, atol=0.035)
        else:
            deviation = np.exp(params[2:])
            np.testing.assert_allclose((sample.mean(0) - params[:2]) / deviation, 0, atol=0.07)
            np.testing.assert_allclose(sample.std(0) / deviation, 1, atol=0.05)


def test_new_weights_are_fetched_and_steps_with_old_ones_are_done_without(driver, tmp_path):
    server = server_of(DISCRETE, 3)
    with serving(server, tmp_path, max_weight_lag=1) as served:
        options = {"token": server["token"], "inferenceMode": "local", "updateInterval": 0.05}
        client = driver.connect(f"http://127.0.0.1:{served.port}", **options)
        client.gives("start_episode", episode_id="e")
        obs = [[0.5, -1.0], [2.0, 0.0]]
        versions, acts = [], 0
        served_versions = iter((3, 9))
        while versions[-1:] != [9]:
            told = client.gives("get_action", episode_id="e", obs=obs, full=True)
            versions.append(told["weightsVersion"])
            acts += 1
            if acts in (3, 30):
                served.publish(next(served_versions))
            assert acts < 500
            time.sleep(0.005)
        client.gives("end_episode", episode_id="e", obs=None)
        client.gives("close")
        discarded = client.gives("discarded")
    assert versions == sorted(versions)
    assert versions[0] == 0
    rows_by_episode: dict[str, list[Any]] = {}
    for entry in served.entries():
        if isinstance(entry, Acted):
            rows_by_episode.setdefault(entry.episode, []).append(entry)
    assert sum(map(len, rows_by_episode.values())) + discarded == acts
    assert 3 <= discarded < acts
    for entries in rows_by_episode.values():  # without gaps: what follows one is another episode
        assert [entry.t for entry in entries] == list(range(len(entries)))
    assert all(books["end"] for books in served.told().values() if books)


def test_what_it_cannot_compute_it_says(driver, tmp_path):
    server = server_of(DISCRETE, 3, masked=True)
    server["network"]["observation"] = server["observation_space"] = {
        "kind": "Dict",
        "items": {"action_mask": {"kind": "MultiBinary", "shape": [3]}, "x": OBSERVED},
    }
    server["network"]["encoder"] = {
        "kind": "parts",
        "keys": ["action_mask", "x"],
        "parts": [{"kind": "flat"}, {"kind": "flat"}],
    }
    server["network"]["mlp"]["sizes"][0] = 7
    server["arrays"]["mlp.weights.0"] = RNG.normal(0, 1, (7, 5))
    with serving(server, tmp_path) as served:
        client = driver.connect(
            f"http://127.0.0.1:{served.port}", token=server["token"], inferenceMode="local"
        )
        client.gives("start_episode", episode_id="e")
        error = client.raises(
            "get_action", episode_id="e", obs={"action_mask": [1, 0, 1], "x": [[0, 0], [0, 0]]}
        )
    assert error["code"] == "not_local"
    assert 'use inferenceMode "remote"' in error["message"]
    assert "masked" in error["message"]
