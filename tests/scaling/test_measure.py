"""What is measured: of fragments and runs made up here, and once of real ones."""

from __future__ import annotations

import math
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
import steppe.jaxenvs
from steppe.errors import ConfigError
from steppe.sampling.metrics import Sample
from steppe.scaling import measure as measuring
from steppe.scaling import study, studying
from steppe.scaling.measure import Measured, _costs, _rate, with_runners
from steppe.scaling.model import Costs

TINY = {"num_envs_per_env_runner": 2, "train_batch_size": 16, "minibatch_size": 16, "num_epochs": 1}
TINY |= {"fcnet_hiddens": [4], "seed": 0}


class Still(gymnasium.Env):
    """Nothing moves, for five steps."""

    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(3, np.float32), 1.0, self.t == 5, False, {}


def config(**changes):
    return steppe.PPOConfig(**{"env": Still, **TINY, **changes})


def fragment(steps, env, inference):
    return Sample([], [], steps, steps, 0.0, env_time=env, inference_time=inference)


def test_costs_are_medians_over_fragments():
    """The fourth fragment was disturbed, and changes nothing."""
    taken = [(seconds, [fragment(10, 0.04, 0.02)]) for seconds in (0.1, 0.1, 0.1)]
    taken.append((9.0, [fragment(10, 5.0, 3.0)]))
    found = _costs([*taken, (0.1, [fragment(10, 0.04, 0.02)])], learn=0.5)
    assert found[:5] == pytest.approx((0.004, 0.002, 0.004, 0.5, 10))


def test_costs_of_several_fragments_at_a_time_and_how_they_vary():
    several = [fragment(10, 0.1, 0.1), fragment(30, 0.3, 0.1)]
    found = _costs([(seconds, several) for seconds in (0.8, 1.2) * 50], learn=0.0)
    assert found[:5] == pytest.approx((0.01, 0.005, 0.01, 0.0, 40))
    assert found.spread == pytest.approx(0.4 / 1.349)  # the middle half of them is 0.4 wide
    drawn = np.random.default_rng(0).normal(1, 0.1, 4000)
    assert _costs([(s, several) for s in drawn], 0.0).spread == pytest.approx(0.1, rel=0.05)


def test_costs_are_never_below_nothing():
    """Clocks that overlap a little: the parts of a fragment may be more than the whole."""
    assert _costs([(0.1, [fragment(10, 0.09, 0.02)])] * 3, 0.0).loop == 0


def test_rates_are_medians_of_at_least_three_and_of_no_more_than_asked(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))
    assert _rate(lambda: 5.0, -1) == 5  # a second between any two looks at this clock
    counted = []
    assert _rate(lambda: counted.append(0) or len(counted) ** 2, 1e9, most=5) == 9
    assert len(counted) == 5


def test_each_runner_brings_the_same_fragment():
    found = Measured(Costs(0, 0, 0, 0, fragment=16), [], {}, fragment_length=8, in_steps=True)
    several = with_runners(config(evaluation_interval=5, local_mode=True), 3, found)
    assert (several.num_env_runners, several.rollout_fragment_length, several.train_batch_size) == (3, 8, 48)
    assert (several.evaluation_interval, several.local_mode, several.write_run) == (0, False, False)
    alone = with_runners(config(), 0, found)
    assert (alone.num_env_runners, alone.fragment_length, alone.train_batch_size) == (0, 8, 16)
    own = with_runners(config(rollout_fragment_length=4), 3, found)
    assert (own.rollout_fragment_length, own.train_batch_size) == (4, 16)


def test_a_study_without_ray_predicts_this_process_and_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)  # as if it were not installed
    said = []
    record = study(config(num_env_runners=4), seconds=0.01, say=said.append)
    assert said == ["a run in this process", "a run with no runner"]
    assert "pip install 'steppe[ray]'; this process alone is predicted" in record["notes"][0]
    assert record["wire"] is None
    assert {kind: [p["runners"] for p in points] for kind, points in record["points"].items()} == {
        "sampling": [0],
        "training": [0],
    }
    costs = Costs(**record["costs"])
    assert costs.fragment == 16
    assert all(0 < value < 1 for value in (costs.step, costs.inference, costs.learn))
    sampling, training = (points[0]["steps_per_s"] for points in record["points"].values())
    assert (sampling, training) == pytest.approx((1 / sum(costs[:3]), 1 / sum(costs[:4])))
    assert [(run["runners"], run["kind"], run["predicted"]) for run in record["runs"]] == [
        (0, "sampling", sampling),
        (0, "training", training),
    ]
    for run in record["runs"]:
        assert run["error"] == pytest.approx(run["predicted"] / run["measured"] - 1)


@pytest.mark.slow
def test_envs_in_jax_have_no_runners_to_predict():
    record = study(config(env=steppe.jaxenvs.CartPole), seconds=0.01)
    assert record["notes"][0].startswith("envs in JAX are stepped inside of jit")
    assert [point["runners"] for point in record["points"]["sampling"]] == [0]


def test_a_study_with_runners(monkeypatch):
    """All of it, once, with Ray."""
    monkeypatch.setattr(studying, "COMPARED", (1, 4 * studying._cores()))  # so many have no room here
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'steppe[ray]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        record = study(config(env="CartPole-v1", num_cpus_per_env_runner=0.5), seconds=0.05, largest=10)
        assert ray.is_initialized()  # it was the program's
    finally:
        ray.shutdown()
    assert record["notes"] == []
    wire = record["wire"]
    assert all(value >= 0 and math.isfinite(value) for value in wire.values())
    assert 0 < wire["call"] < wire["latency"] < 1
    assert wire["receive"] > 0
    assert 16 * 4 * 4 < wire["fragment_bytes"] < 100_000  # the observations alone
    assert 4 * (4 * 4 + 4 + 4 * 2 + 2) < wire["weights_bytes"] < 10_000  # the actor alone
    assert [(run["runners"], run["kind"]) for run in record["runs"]] == [(1, "sampling"), (1, "training")]
    assert all(run["measured"] > 0 for run in record["runs"])
    for points in record["points"].values():
        assert [point["runners"] for point in points] == [0, 1, 2, 4, 8, 10]
        assert all(point["bottleneck"] in point["busy"] for point in points)


def test_a_bad_config_is_said_before_anything_is_measured():
    with pytest.raises(ConfigError, match="NoEnv-v7"):
        study(config(env="NoEnv-v7"), seconds=0.01)
