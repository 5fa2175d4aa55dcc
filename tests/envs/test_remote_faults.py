"""Remote envs that raise, die or hang: others take their places, and nobody else notices."""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path

import cloudpickle
import gymnasium
import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="envs in processes of their own need Ray: pip install 'steppe[ray]'")

from steppe import PPOConfig  # noqa: E402
from steppe.envs import remote  # noqa: E402
from steppe.errors import EnvError  # noqa: E402
from steppe.types import EpisodeEnd  # noqa: E402

RESTARTS = remote.Rules(restarts=True)
TOGETHER = remote.Rules(restarts=True, wait_ms=60_000)


class Fragile(gymnasium.Env):
    """Episodes of six steps; env 1 does what its config says in its third step, unless it is a successor."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, env_config):
        self.context, self.pid, self.first = env_config, os.getpid(), False
        marker = Path(env_config["marker"]) / str(env_config.vector_index)
        if not marker.exists():
            marker.touch()
            self.first = True
        self.child = subprocess.Popen(["sleep", "1000"]) if env_config.get("child") else None

    def child_pid(self):
        return self.child.pid

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        if self.context.get("fails") == "reset":
            raise OSError("no map")
        return self.look(), {}

    def step(self, action):
        self.t += 1
        if self.context.vector_index == 1 and self.t == 3 and (self.first or self.context.get("always")):
            self.fail(self.context.get("fails"))
        time.sleep(self.context.get("sleep", 0))
        return self.look(), 1.0, self.t == 6, False, {}

    def fail(self, how):
        if how == "raise":
            raise OSError("the simulator has gone away")
        if how == "exit":
            os._exit(3)
        if how == "hang":
            time.sleep(60)

    def look(self):
        return np.array([0 if self.context.get("nameless") else self.pid, self.t], np.float64)


@pytest.fixture(scope="module", autouse=True)
def _ray():
    for pickler in (cloudpickle, ray.cloudpickle):  # tests are no modules of the actors
        pickler.register_pickle_by_value(sys.modules[__name__])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks, where another file of tests has loaded it
        ray.init("local", num_cpus=1, include_dashboard=False, logging_level="warning", log_to_driver=False)
    yield
    ray.shutdown()


def built(tmp_path, rules, num_envs=3, **config):
    config["marker"] = str(tmp_path)
    return remote.build(Fragile, config, num_envs=num_envs, run_seed=0, rules=rules)


class Driver:
    """Answers every row, and keeps what it is told of each env."""

    def __init__(self, env):
        self.env, self.n = env, env.num_envs
        self.rows = [[] for _ in range(self.n)]  # (pid, t, episode)
        self.lost, self.opened, self.closed = [], [], []
        self.episode = {}

    def round(self, timeout=None):
        steps = self.env.poll(timeout)
        for step in steps:
            self.lost += step.lost
            self.opened += step.opened
            self.closed += step.closed
            self.episode |= {one.slot: one.episode for one in step.opened}
            for slot, (pid, t) in zip(step.slot.tolist(), step.obs.tolist(), strict=True):
                self.rows[slot % self.n].append((int(pid), int(t), self.episode[slot]))
            waiting = step.slot[~(step.terminated | step.truncated)]
            self.env.send_actions(waiting, np.zeros(len(waiting), np.int64))

    def until(self, done, seconds=30):
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline
            self.round(1.0)

    def successor(self, env, seconds=30):
        """Go on until another process tells rows of an env."""
        self.until(lambda: len({pid for pid, _, _ in self.rows[env]}) > 1, seconds)


def is_gone(pid):
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True


def assert_ends(pid):
    deadline = time.monotonic() + 20
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "exit"])
def test_where_all_are_waited_for_one_that_fails_is_replaced_within_the_poll(tmp_path, how, caplog):
    with closing(built(tmp_path, TOGETHER, num_envs=2, fails=how)) as env:
        driver = Driver(env)
        with caplog.at_level(logging.WARNING, "steppe"):
            for _ in range(10):
                driver.round()
        assert driver.lost == [EpisodeEnd(1, 0, 2)]
        assert [t for _, t, _ in driver.rows[0]] == [0, 1, 2, 3, 4, 5, 0, 6, 1, 2, 3]  # final rows come last
        assert [(t, episode) for _, t, episode in driver.rows[1]] == [
            *((0, 0), (1, 0), (2, 0)),  # whose third step failed
            *((0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (0, 2), (6, 1)),
        ]
        seeds = [info.seed for info in driver.opened if info.env == 1]
        assert len({*seeds[:2]}) == 2
        assert {info.seed for info in driver.opened if info.env == 0}.isdisjoint(seeds)
        assert env.env_steps == 9 + 2 + 6
        (code,) = env.health()
        assert code == ("E503 OSError" if how == "raise" else "E503 EnvError")
        assert env.health()[code] == 1
    said = [r.getMessage() for r in caplog.records if "E503" in r.getMessage()]
    assert len(said) == 1
    assert f"Fragile, runner 0, env 1, episode 0, step {3 if how == 'raise' else 2}" in said[0]
    assert ("OSError: the simulator has gone away" if how == "raise" else "E501 process of an env") in said[0]


def test_one_that_is_killed_is_back_soon_and_the_others_go_on(tmp_path):
    with closing(built(tmp_path, RESTARTS, sleep=0.01)) as env:
        driver = Driver(env)
        driver.until(lambda: all(len(rows) > 5 for rows in driver.rows))
        before, taken = [len(rows) for rows in driver.rows], env.env_steps
        os.kill(driver.rows[1][-1][0], signal.SIGKILL)
        driver.successor(1)
        (lost,) = driver.lost
        old = [row for row in driver.rows[1] if row[0] == driver.rows[1][0][0]]
        assert (lost.env, lost.episode, lost.length) == (1, old[-1][2], old[-1][1])
        assert driver.rows[1][-1][1:] == (0, lost.episode + 1)
        assert min(len(driver.rows[i]) - before[i] for i in (0, 2)) > 5
        assert env.env_steps > taken
        assert ray.get(env.get_sub_environments()[1].pid.remote()) == driver.rows[1][-1][0]
        while not any((step.slot % 3 == 0).any() for step in env.poll()):
            pass
        os.kill(driver.rows[0][-1][0], signal.SIGKILL)  # while it waits for an action
        state = env.get_state()
        assert state["envs"][0] is None
        assert env.get_state()["awaits"] == state["awaits"]


@pytest.mark.slow
def test_one_that_hangs_is_ended_and_its_late_answer_reaches_nobody(tmp_path):
    rules = remote.Rules(restarts=True, step_timeout=0.5)
    with closing(built(tmp_path, rules, num_envs=2, fails="hang", sleep=0.01)) as env:
        driver = Driver(env)
        driver.until(lambda: len(driver.rows[1]) == 3)
        hung = driver.rows[1][0][0]
        driver.successor(1)
        assert driver.lost == [EpisodeEnd(1, 0, 2)]
        assert_ends(hung)
        assert [t for _, t, _ in driver.rows[1][:4]] == [0, 1, 2, 0]


@pytest.mark.slow
def test_without_restarts_what_hangs_ends_the_run(tmp_path):
    rules = remote.Rules(step_timeout=0.5, wait_ms=60_000)
    with closing(built(tmp_path, rules, num_envs=2, fails="hang")) as env:
        driver = Driver(env)
        with pytest.raises(EnvError, match=r"env_step_timeout=0\.5 s.*on_env_error='restart'") as caught:
            driver.until(lambda: False)
        assert (caught.value.code, caught.value.env, caught.value.env_class) == ("E502", 1, "Fragile")
        assert_ends(driver.rows[1][0][0])
        with pytest.raises(RuntimeError, match="failed before"):
            env.poll()


@pytest.mark.slow
def test_who_has_not_answered_for_long_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(remote, "_TELL_S", 0.2)
    with closing(built(tmp_path, remote.Rules(), num_envs=2, sleep=0.6)) as env:
        driver = Driver(env)
        with caplog.at_level(logging.WARNING, "steppe"):
            driver.until(lambda: all(len(rows) > 1 for rows in driver.rows))
    said = [r.getMessage() for r in caplog.records if "has not answered" in r.getMessage()]
    assert {text.partition(" has")[0] for text in said} == {f"Fragile, runner 0, env {i}" for i in (0, 1)}
    assert "see env_step_timeout" in said[0]


def test_what_an_env_has_started_ends_with_it(tmp_path):
    with closing(built(tmp_path, RESTARTS, num_envs=2, child=True)) as env:
        driver = Driver(env)
        driver.until(lambda: all(len(rows) > 1 for rows in driver.rows))
        children = ray.get([one.child_pid.remote() for one in env.get_sub_environments()])
        assert not any(is_gone(child) for child in children)
        os.kill(driver.rows[1][-1][0], signal.SIGKILL)
        driver.successor(1)
        assert_ends(children[1])
        assert not is_gone(children[0])
        env._links[0]._line.close()  # as where the process that samples has died
        assert_ends(children[0])
        children[1] = ray.get(env.get_sub_environments()[1].child_pid.remote())
    assert_ends(children[1])


@pytest.mark.slow
def test_an_error_of_the_first_reset_is_the_users_own_at_once(tmp_path):
    with closing(built(tmp_path, RESTARTS, num_envs=1, fails="reset")) as env:
        with pytest.raises(OSError, match="no map"):
            env.poll()
        assert env.health() == {}


@pytest.mark.slow
def test_after_enough_restarts_the_error_comes_out(tmp_path):
    rules = remote.Rules(restarts=True, most_restarts=1, wait_ms=60_000)
    with closing(built(tmp_path, rules, num_envs=2, fails="raise", always=True)) as env:
        with pytest.raises(OSError, match="gone away") as caught:
            Driver(env).until(lambda: False)
        assert "max_env_restarts is 1" in caught.value.__notes__[-1]
        assert env.health() == {"E503 OSError": 1}


@pytest.mark.slow
def test_a_state_with_restarts_behind_it_goes_on_in_other_processes(tmp_path):
    with closing(built(tmp_path, TOGETHER, num_envs=2, fails="raise", nameless=True)) as env:
        driver = Driver(env)
        for _ in range(7):
            driver.round()
        env.poll()
        state = env.get_state()
    with closing(built(tmp_path, TOGETHER, num_envs=2, fails="raise", nameless=True)) as env:
        assert env.set_state(state) == []
        (pending,) = env.pending()
        episodes = {info.env: (info.episode, info.seed) for info in pending.opened}
        expected = {info.env: (info.episode, info.seed) for info in driver.opened}
        assert episodes[1] == expected[1]
        assert episodes[1][0] == 1
        assert env.get_state()["renewed"] == 1
        assert env.health() == {"E503 OSError": 1}


@pytest.mark.slow
def test_training_goes_on_and_tells_of_the_restart(tmp_path):
    config = PPOConfig(
        env=Fragile,
        env_config={"marker": str(tmp_path), "fails": "exit"},
        remote_worker_envs=True,
        on_env_error="restart",
        num_envs_per_env_runner=2,
        train_batch_size=64,
        minibatch_size=32,
        num_epochs=1,
        fcnet_hiddens=[8],
        seed=0,
        write_run=False,
    )
    with config.build() as algo:
        result = algo.train()
        assert result["env_health"] == {"E503 EnvError": 1}
        assert result["timesteps_total"] >= 64
