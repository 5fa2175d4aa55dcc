"""Runners whose processes die, hang or are slow: others take their places, and no step goes uncounted."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import RunnerError
from steppe.runners.many import ManyRunners
from steppe.runners.ray import RayCrew

pytestmark = pytest.mark.usefixtures("ray")

TINY = {
    "num_env_runners": 2,
    "num_envs_per_env_runner": 2,
    "train_batch_size": 24,
    "minibatch_size": 12,
    "num_epochs": 1,
    "fcnet_hiddens": [4],
    "write_run": False,
    "seed": 3,
}


class Frail(gymnasium.Env):
    """Seven steps long; what befalls runner ``whose`` once, at its step ``at``, is said in its config."""

    observation_space, action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(3)

    def __init__(self, env_config):
        self.config, self.steps = env_config, 0
        self.mine = env_config.worker_index == env_config.get("whose") and env_config.vector_index == 0
        self.once = Path(env_config.get("once", os.devnull))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.mine and self.config.get("how") == "at reset" and self.once.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t, self.steps = self.t + 1, self.steps + 1
        time.sleep(self.config.get("nap", 0) if self.mine else 0)
        if self.mine and self.steps == self.config.get("at", 0) and not self.once.exists():
            self.once.touch()
            befall(self.config["how"])
        return np.zeros(2, np.float32), 1.0, self.t == 7, False, {}


HELD = []


def befall(how):
    """What happens to a process."""
    if how == "hangs":
        time.sleep(1000)
    if how == "grows":
        HELD.append(np.ones(40_000_000))
        time.sleep(0.6)
        return
    if how == "hangs in C":  # and gives no other thread a chance
        ctypes.PyDLL(None).sleep(1000)
    time.sleep(0.6)  # until it is known to have taken steps
    os.kill(os.getpid(), signal.SIGKILL)


def frail(how, tmp_path, at=20, whose=2, **changes):
    env_config = {"how": how, "whose": whose, "at": at, "once": str(tmp_path / "once")}
    return steppe.PPOConfig(**{"env": Frail, "env_config": env_config, **TINY, **changes})


def adds_up(result):
    gone = sum(result["discarded"].values())
    assert result["executed"] == result["trained"] + gone + result["in_flight"]
    assert result["trained"] <= result["timesteps_total"]
    return result


def train_until(algo, met, seconds=30.0):
    """Iterations until one's result is as it is to be."""
    results, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        results.append(adds_up(algo.train()))
        if met(results[-1]):
            return results
    raise AssertionError([{k: r[k] for k in ("num_healthy_workers", "discarded")} for r in results[-3:]])


SLOW = pytest.mark.slow


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=SLOW), "hangs in C"])
def test_another_takes_the_place_of_a_runner(how, tmp_path, caplog):
    config = frail(how, tmp_path, env_step_timeout=0.6 if "hangs" in how else None)
    with caplog.at_level(logging.WARNING, "steppe"), config.build() as algo:
        results = train_until(algo, lambda r: r["num_healthy_workers"] < 2)
        assert results[-1]["num_worker_restarts"] == 1
        results += train_until(algo, lambda r: r["num_healthy_workers"] == 2)
        seen = []
        for _ in range(2):
            samples = algo.runner.sample()
            seen += [(r.runner, r.incarnation) for sample in samples for r in sample.rollouts]
        assert set(seen) == {(1, 0), (2, 1)}
    if how == "grows":
        HELD.append(np.ones(40_000_000))
        time.sleep(0.6)
        return
    if how == "hangs in C":  # of what came before in that fragment nothing was told
        assert results[-1]["discarded"] == {}
    else:  # 12 of the fragment, and what had been told by then of the one after
        assert 0 < results[-1]["discarded"]["runner_lost"] <= 12
    told = "hangs: its envs took no step for" if "hangs" in how else "died: it was ended from outside"
    assert caplog.text.count(f"runner 2: the process of a runner {told}") == 1
    assert all(np.isfinite(algo.get_weights()["default_policy"]))


def test_another_process_begins_before_a_runner_is_given_up(tmp_path, monkeypatch):
    begun, begin = [], RayCrew._begun
    with frail("hangs in C", tmp_path, env_step_timeout=3.0).build() as algo:
        monkeypatch.setattr(
            RayCrew, "_begun", lambda self, options: begun.append(time.monotonic()) or begin(self, options)
        )
        train_until(algo, lambda r: r["num_worker_restarts"] == 1)
        given_up = time.monotonic()
        train_until(algo, lambda r: r["num_healthy_workers"] == 2)
    assert len(begun) == 1  # the one that takes its place
    assert begun[0] < given_up - 1


@SLOW
def test_one_that_grows_is_replaced(tmp_path, caplog):
    with frail("grows", tmp_path, max_memory_mb_per_env_runner=350).build() as algo:
        train_until(algo, lambda r: r["num_worker_restarts"] == 1)
        train_until(algo, lambda r: r["num_healthy_workers"] == 2)
    assert "runner 2: the process of a runner is too large: it has" in caplog.text


class Simulated(Frail):
    """Starts a program beside itself."""

    def __init__(self, env_config):
        super().__init__(env_config)
        self.simulator = subprocess.Popen(["sleep", "1000"])


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_what_envs_have_started_ends_with_their_process(tmp_path):
    with frail("", tmp_path, env=Simulated, at=0).build() as algo:
        algo.train()
        before = algo.foreach_env(lambda env: env.simulator.pid)
        os.kill(algo.foreach_runner(lambda runner: os.getpid())[1], signal.SIGKILL)
        train_until(algo, lambda r: r["num_worker_restarts"] == 1)
        train_until(algo, lambda r: r["num_healthy_workers"] == 2)
        after = algo.foreach_env(lambda env: env.simulator.pid)
        assert [alive(pid) for pid in before] == [True, True, False, False]
        assert after[:2] == before[:2]
        assert all(map(alive, after))
    end = time.monotonic() + 10.0
    while any(map(alive, after)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, after))


def test_one_that_is_killed_from_outside_is_replaced_and_the_run_can_be_saved_meanwhile(tmp_path):
    with frail("", tmp_path, at=0).build() as algo:
        adds_up(algo.train())
        pids = algo.foreach_runner(lambda runner: os.getpid())
        os.kill(pids[0], signal.SIGKILL)
        assert len(algo.foreach_runner(lambda runner: os.getpid())) in (1, 2)  # noticed sooner or later
        path = algo.save(tmp_path / "c")
        train_until(algo, lambda r: r["num_healthy_workers"] == 2)
        again = algo.foreach_runner(lambda runner: os.getpid())
        assert again[1] == pids[1]
        assert again[0] not in pids
        saved = algo.save(tmp_path / "d")
    with steppe.load(path, env=Frail, local_mode=True) as algo:
        assert algo.train()["training_iteration"] == 2
    with steppe.load(saved, env=Frail, local_mode=True) as algo:
        samples = algo.runner.sample()
        assert {r.incarnation for sample in samples for r in sample.rollouts} == {0, 1}


def test_one_that_never_took_a_step_is_not_replaced(tmp_path):
    (tmp_path / "once").touch()
    with frail("at reset", tmp_path).build() as algo:
        with pytest.raises(RunnerError, match="the process of a runner died") as failed:
            algo.train()
        assert "runner 2, of which 1 processes were made by now" in "\n".join(failed.value.__notes__)


@SLOW
def test_the_third_in_a_row_that_takes_no_step_ends_the_run(tmp_path):
    with frail("at reset", tmp_path, at=20).build() as algo:  # dies at step 20, and then at every reset
        with pytest.raises(RunnerError) as failed:
            train_until(algo, lambda r: False, seconds=60.0)
        assert "of which 4 processes were made by now" in "\n".join(failed.value.__notes__)


@SLOW
def test_without_restarts_the_first_loss_ends_the_run(tmp_path):
    config = frail("dies", tmp_path, restart_failed_env_runners=False)
    with config.build() as algo:
        for _ in range(2):  # and it is over
            with pytest.raises(RunnerError, match="the process of a runner died"):
                train_until(algo, lambda r: False)


# ---------------------------------------------------------------- asynchronously


def ahead(**changes):
    small = {name: value for name, value in TINY.items() if name not in ("minibatch_size", "num_epochs")}
    small |= {"sample_async": True, "min_sample_timesteps_per_iteration": 24}
    return steppe.IMPALAConfig(**{"env": Frail, **small, **changes})


def test_a_slow_runner_holds_up_nobody():
    slow = {"whose": 2, "nap": 0.2}
    with ahead(env_config=slow, rollout_fragment_length=6).build() as algo:
        algo.train()
        runners = []
        for _ in range(10):
            runners += [r.runner for sample in algo.runner.sample() for r in sample.rollouts]
    assert runners.count(1) >= 8


def test_staleness_is_measured_and_bounded():
    results = []
    for most in (None, 0):
        with ahead(max_staleness=most, local_mode=True).build() as algo:
            results.append([adds_up(algo.train()) for _ in range(8)][-1])
    free, bounded = results
    assert free["staleness_max"] >= 1
    assert "stale" not in free["discarded"]
    assert bounded["staleness_max"] == 0
    assert bounded["discarded"]["stale"] > 0
    assert bounded["discarded"]["stale"] + bounded["trained"] == bounded["timesteps_total"]


@pytest.mark.parametrize("local", [True, False], ids=["here", "ray"])
def test_a_run_that_samples_ahead_is_saved_and_says_that_it_is_not_exact(local, tmp_path, caplog):
    with ahead(local_mode=local).build() as algo:
        adds_up(algo.train())
        path = algo.save(tmp_path / "c")
        adds_up(algo.train())
    with caplog.at_level(logging.WARNING, "steppe"), steppe.load(path, env=Frail) as algo:
        assert "runners that sample asynchronously: what was under way is sampled anew" in caplog.text
        assert algo.train()["training_iteration"] == 2


@SLOW
def test_the_driver_holds_no_more_than_it_asked_for():
    with ahead(rollout_fragment_length=6, max_requests_in_flight_per_env_runner=2).build() as algo:
        runner = algo.runner
        assert isinstance(runner, ManyRunners)
        runner.sample()
        time.sleep(1.0)  # nobody takes anything meanwhile
        samples = [sample for _ in range(2) for sample in runner.sample()]
        counts = [sum(r.runner == i for s in samples for r in s.rollouts) for i in (1, 2)]
        assert max(counts) <= 4
        assert adds_up(algo.train())["in_flight"] <= 2 * 2 * 12 + 24


def test_an_error_of_an_env_that_samples_ahead_comes_as_it_is(tmp_path):
    class Wrong(Frail):
        def step(self, action):
            raise ZeroDivisionError("nobody asked")

    with ahead(env=Wrong).build() as algo, pytest.raises(ZeroDivisionError, match="nobody asked"):
        algo.train()
