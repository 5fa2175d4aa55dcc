"""Several runners, in this process and in processes of Ray: the same batches, errors and runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import RunnerError
from tests.states import state_hash

pytestmark = pytest.mark.usefixtures("ray")

TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 24,
    "minibatch_size": 12,
    "num_epochs": 1,
    "fcnet_hiddens": [4],
    "write_run": False,
    "seed": 3,
}


class Walk(gymnasium.Env):
    """A walk by chance, whose step 5 may fail; seven steps long."""

    observation_space, action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(3)

    def __init__(self, env_config=None):
        self.config = env_config if env_config is not None else {}
        if "built" in self.config:
            with open(self.config["built"], "a") as file:
                file.write(f"{os.getpid()}\n")
        if self.config.get("unbuilt") == getattr(env_config, "worker_index", 0):
            raise UnluckyError("built", 13)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.at = 0, self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.at.copy(), {}

    def step(self, action):
        self.t += 1
        if self.t == 5 and "fails" in self.config and self.config["fails"] == self.config.worker_index:
            fail(self.config.get("how"))
        self.at += self.np_random.uniform(-0.1, 0.1, 2).astype(np.float32) * (action + 1)
        return np.clip(self.at, -9, 9), float(self.at[0]), self.t == 7, False, {}


class UnluckyError(Exception):
    """Its constructor asks for more than an exception keeps."""

    def __init__(self, what, number):
        super().__init__(f"{what} badly")
        self.what, self.number = what, number


def fail(how):
    """Fail in the way that is asked for."""
    if how == "unlucky":
        raise UnluckyError("walked", 7)
    if how == "file":
        open("no/such/file").close()
    if how == "unsendable":
        error = ValueError("holds a door")
        error.door = threading.Lock()
        raise error
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("nobody asked how")


class Measured(steppe.Callbacks):
    """Counts its episodes where they happen, and says it in their metrics."""

    def __init__(self):
        self.ended = 0

    def on_episode_end(self, *, worker, episode):
        self.ended += 1
        episode.custom_metrics.update(runner=worker.worker_index, ended=self.ended)

    def get_state(self):
        return {"ended": self.ended}

    def set_state(self, state):
        self.ended = state["ended"]


def tiny(**changes):
    return steppe.PPOConfig(**{"env": Walk, **TINY, **changes})


PLACES = pytest.mark.parametrize("local", [True, False], ids=["here", "ray"])
SLOWER = pytest.mark.parametrize(
    "local", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["here", "ray"]
)


def columns(rollout):
    """All that is learned from; neither whose it is nor where it was made."""
    names = ("obs", "action", "logp", "reward", "terminated", "truncated", "filled", "version", "env", "t")
    return {name: getattr(rollout, name) for name in (*names, "episode", "agent", "lane_continues")}


def batches(algo, n):
    """Hashes of what is sampled in ``n`` iterations, with the updates between them."""
    made, sample = [], algo.runner.sample

    def sampled():
        fragments = sample()
        made.extend(state_hash(columns(r)) for fragment in fragments for r in fragment.rollouts)
        return fragments

    algo.runner.sample = sampled
    for _ in range(n):
        algo.train()
    algo.runner.sample = sample
    return made


def run(n=2, **changes):
    with tiny(**changes).build() as algo:
        return batches(algo, n), algo.get_weights()["default_policy"].tolist()


# ---------------------------------------------------------------- batches


def test_one_runner_samples_what_one_process_does_and_the_same_is_learned():
    alone = run()
    assert len(alone[0]) == len(set(alone[0])) == 2
    assert run(num_env_runners=1) == alone
    assert run(num_env_runners=1, local_mode=True) == alone


def test_several_runners_give_the_same_batches_run_after_run_wherever_they_are():
    here = run(num_env_runners=2, local_mode=True)
    assert len(set(here[0])) == 4  # no two runners see the same
    assert run(num_env_runners=2) == here
    assert run(num_env_runners=2, local_mode=True, seed=4) != here


def test_the_first_of_several_runners_is_the_one_of_one():
    """Its seeds do not depend on how many there are: the first fragment is the same, if it is as long."""
    fixed = {"rollout_fragment_length": 12, "n": 1}
    one, three = run(**fixed), run(num_env_runners=3, local_mode=True, train_batch_size=72, **fixed)
    assert three[0][0] == one[0][0]


@SLOWER
def test_what_replays_learns_from_several_runners(local):
    small = {name: value for name, value in TINY.items() if name not in ("minibatch_size", "num_epochs")}
    small |= {"num_env_runners": 2, "num_steps_sampled_before_learning_starts": 24}
    with steppe.DQNConfig(env=Walk, local_mode=local, **small).build() as algo:
        before = algo.get_weights()["default_policy"]
        result = algo.train()
        assert (algo.get_weights()["default_policy"] != before).any()
        assert result["num_healthy_workers"] == 2


@SLOWER
def test_fragments_are_the_batch_split_over_all_envs_and_can_be_written_to(local):
    with tiny(num_env_runners=2, local_mode=local).build() as algo:
        samples = algo.runner.sample()
        assert [sample.env_steps for sample in samples] == [12, 12]  # 24 / (2 x 2) steps of 2 envs
        assert [rollout.runner for sample in samples for rollout in sample.rollouts] == [1, 2]
        samples[1].rollouts[0].reward[0] = 5.0
        assert algo.train()["timesteps_this_iter"] == 24


@pytest.mark.slow
def test_seconds_of_processes_that_work_side_by_side_are_no_more_than_the_clock_has():
    with tiny(num_env_runners=2).build() as algo:
        time = algo.train()["time"]
        assert 0 < time["env"] + time["inference"] <= time["iteration_s"]


# ---------------------------------------------------------------- resume


@PLACES
def test_a_resumed_run_goes_on_exactly_callbacks_included(local, tmp_path, caplog):
    changes = {"num_env_runners": 2, "local_mode": local, "callbacks_class": Measured}
    with tiny(**changes).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        wanted = batches(algo, 2), algo.train()["custom_metrics"]
    with caplog.at_level(logging.WARNING, "steppe"):
        again = steppe.load(path, env=Walk, callbacks=Measured)
    with again as algo:
        assert (batches(algo, 2), algo.train()["custom_metrics"]) == wanted
        assert wanted[1]["ended_max"] == 6
        algo.restore(path)
        assert batches(algo, 2) == wanted[0]
    assert "not exact" not in caplog.text


def test_processes_go_on_exactly_where_this_process_stopped(tmp_path):
    with tiny(num_env_runners=2, local_mode=True).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        wanted = batches(algo, 2)
    with steppe.load(path, env=Walk, local_mode=False) as algo:
        assert batches(algo, 2) == wanted


@pytest.mark.parametrize("runners", [0, 1, 3])
def test_with_other_runners_episodes_begin_anew_and_it_is_said(runners, tmp_path, caplog):
    with tiny(num_env_runners=2, local_mode=True).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
    with caplog.at_level(logging.WARNING, "steppe"):
        again = steppe.load(path, env=Walk, num_env_runners=runners)
    with again as algo:
        assert f"num_env_runners={runners} instead of 2: the episodes of envs begin anew" in caplog.text
        assert algo.train()["training_iteration"] == 2


# ---------------------------------------------------------------- errors


@PLACES
def test_an_error_of_an_env_comes_as_it_is(local):
    changes = {"num_env_runners": 2, "local_mode": local}
    config = tiny(**changes, env_config={"fails": 2, "how": "unlucky"})
    with config.build() as algo:
        with pytest.raises(UnluckyError, match="walked badly") as failed:
            algo.train()
        assert (failed.value.what, failed.value.number) == ("walked", 7)
        notes = "\n".join(getattr(failed.value, "__notes__", []))
        assert local or ("process of a runner" in notes and 'raise UnluckyError("walked", 7)' in notes)
        for use in (algo.train, lambda: algo.save("c")):
            with pytest.raises(RuntimeError, match=r"in mid-fragment: restore a checkpoint"):
                use()


@SLOWER
def test_an_error_of_a_constructor_comes_out_of_build(local):
    with pytest.raises(UnluckyError, match="built badly") as failed:
        tiny(num_env_runners=2, local_mode=local, env_config={"unbuilt": 2}).build()
    assert "while building Walk, runner 2, env 0" in "\n".join(failed.value.__notes__)


def failure(how):
    with tiny(num_env_runners=1, env_config={"fails": 1, "how": how}).build() as algo:
        with pytest.raises(Exception) as failed:  # noqa: PT011
            algo.train()
        return failed.value


@pytest.mark.slow
def test_what_the_system_says_of_a_file_is_kept():
    error = failure("file")
    assert type(error) is FileNotFoundError
    assert error.filename == "no/such/file"


@pytest.mark.slow
def test_an_error_that_cannot_be_sent_is_told_in_words():
    error = failure("unsendable")
    assert (type(error), str(error)) == (RunnerError, "ValueError: holds a door")
    assert "raise error\nValueError: holds a door" in "\n".join(error.__notes__)


def test_a_broken_contract_names_the_runner():
    class Wrong(Walk):
        def step(self, action):
            return np.full(2, np.nan, np.float32), 0.0, False, False, {}

    with tiny(env=Wrong, num_env_runners=2).build() as algo:
        with pytest.raises(steppe.EnvError, match=r"^E104 .*\n  in Wrong, runner 1, env 0") as failed:
            algo.train()
        assert (failed.value.code, failed.value.runner) == ("E104", 1)


@pytest.mark.slow
def test_a_process_that_is_ended_from_outside_is_said():
    error = failure("killed")
    assert isinstance(error, RunnerError)
    assert str(error).startswith("the process of a runner died: it was ended from outside")


# ---------------------------------------------------------------- what runners are asked


@PLACES
def test_functions_go_to_where_the_envs_are_which_are_built_once_and_nowhere_else(local, tmp_path):
    built = {"env_config": {"built": str(tmp_path / "built")}}
    with tiny(num_env_runners=2, local_mode=local, **built).build() as algo:
        places = algo.foreach_env(lambda env: (env.config.worker_index, env.config.vector_index))
        assert places == [(1, 0), (1, 1), (2, 0), (2, 1)]
        found = algo.foreach_runner(lambda runner: (runner.worker_index, os.getpid()))
        assert [index for index, _ in found] == [1, 2]
        assert len({process for _, process in found} | {os.getpid()}) == (1 if local else 3)
        builders = [int(line) for line in (tmp_path / "built").read_text().split()]
        assert sorted(builders) == sorted(2 * [process for _, process in found])
        assert algo.foreach_env(lambda env: env.config.num_workers) == [2] * 4
        with pytest.raises(ZeroDivisionError):
            algo.foreach_env(lambda env: 1 / 0)
        assert algo.train()["training_iteration"] == 1


def test_in_one_process_the_one_runner_is_asked():
    with tiny().build() as algo:
        assert algo.foreach_runner(lambda runner: runner.worker_index) == [0]


@SLOWER
def test_hooks_of_episodes_run_where_the_episodes_are(local):
    with tiny(num_env_runners=2, local_mode=local, callbacks_class=Measured).build() as algo:
        metrics = [algo.train() for _ in range(2)][1]["custom_metrics"]
        assert (metrics["runner_min"], metrics["runner_max"], metrics["runner_mean"]) == (1, 2, 1.5)


def test_actions_and_evaluations_are_of_this_process_with_the_newest_weights():
    one = tiny(evaluation_interval=1)
    two = one.copy(num_env_runners=1, local_mode=True)
    with one.build() as alone, two.build() as algo:
        results = [a.train()["evaluation"] for a in (alone, algo)]
        assert results[0]["episode_reward_mean"] == results[1]["episode_reward_mean"]
        obs = np.ones(2, np.float32)
        for explore in (False, True):
            assert algo.compute_single_action(obs, explore=explore) == alone.compute_single_action(
                obs, explore=explore
            )
        algo.set_weights({"default_policy": algo.get_weights()["default_policy"] * 2})
        assert batches(algo, 1) != batches(alone, 1)


def test_names_that_this_process_has_registered_mean_the_same_there():
    steppe.register_env("a walk", lambda config: Walk(config))
    door = threading.Lock()
    steppe.register_env("unsendable", lambda config: Walk({"door": door}))
    gymnasium.register("steppe/Walk-v0", Walk)
    try:
        for name in ("a walk", "steppe/Walk-v0"):
            assert len(run(env=name, num_env_runners=1, n=1)[0]) == 1
        with pytest.raises(steppe.ConfigError, match="the creator of env 'unsendable' holds something"):
            tiny(env="unsendable", num_env_runners=1).build()
    finally:
        del gymnasium.registry["steppe/Walk-v0"]


@SLOWER
def test_agents_are_mapped_where_they_are(local):
    def mapping(agent_id, episode, worker):
        return f"in_{worker.worker_index}" if agent_id == 0 else "both"

    crowd = steppe.make_multi_agent(lambda config: Walk(config))
    policies = {"policies": {"in_1", "in_2", "both"}, "policy_mapping_fn": mapping}
    changes = {"env_config": {"num_agents": 2}, "num_env_runners": 2, "local_mode": local}
    with tiny(env=crowd, **policies, **changes).build() as algo:
        for index, sample in enumerate(algo.runner.sample(), start=1):
            acted = {r.policy: int(r.acted.sum()) for r in sample.rollouts}
            assert acted[f"in_{index}"] > 0
            assert acted["both"] == acted[f"in_{index}"]
            assert acted[f"in_{3 - index}"] == 0
        assert set(algo.train()["info"]) == {"in_1", "in_2", "both"}


# ---------------------------------------------------------------- what cannot be


def test_too_few_cpus_are_said_before_anything_waits(monkeypatch):
    monkeypatch.setattr("steppe.runners.ray._PATIENCE_S", 1.0)
    config = tiny(num_env_runners=2, num_cpus_per_env_runner=2)
    with pytest.raises(steppe.ConfigError, match=r"num_env_runners=2: .*no room .*4 CPU \(3 free\)"):
        config.build()
    with tiny(num_env_runners=1, num_cpus_per_env_runner=0).build() as algo:
        assert algo.train()["num_healthy_workers"] == 1


def test_a_config_that_cannot_be_sent_is_refused_in_words():
    door = threading.Lock()

    def made(env_config):
        return Walk({"door": door})

    with pytest.raises(steppe.ConfigError, match=r"cannot be sent to the runners' processes.*local_mode"):
        tiny(num_env_runners=1, env=made).build()


def test_envs_that_are_elsewhere_are_not_shared_with_evaluation():
    with pytest.raises(steppe.ConfigError, match=r"evaluation_envs='shared': .*num_env_runners=0"):
        tiny(num_env_runners=1, evaluation_envs="shared").build()


def test_runners_keep_their_policies():
    with tiny(num_env_runners=1, local_mode=True).build() as algo:
        for use in (lambda: algo.add_policy("b"), lambda: algo.remove_policy("default_policy")):
            with pytest.raises(steppe.ConfigError, match=r"num_env_runners=1: runners keep the policies"):
                use()


def test_without_ray_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(steppe.ConfigError, match=r"pip install 'steppe\[ray\]'"):
        tiny(num_env_runners=1).build()
    with tiny(num_env_runners=1, local_mode=True).build() as algo:
        algo.train()


# ---------------------------------------------------------------- Ray itself


class Talker(Walk):
    """A walk that says where it begins."""

    def reset(self, *, seed=None, options=None):
        self.config.logger.info("begins at %d", 0)
        return super().reset(seed=seed)


@SLOWER
def test_envs_are_made_anew_in_runners_and_what_is_said_there_is_heard_here(local, caplog):
    config = steppe.PPOConfig(
        env=Talker,
        env_config={"fails": 2, "how": "unlucky"},
        **TINY,
        num_env_runners=2,
        local_mode=local,
        on_env_error="restart",
        log_level="INFO",
    )
    try:
        with config.build() as algo:
            results = [algo.train() for _ in range(3)]
    finally:
        logging.getLogger("steppe").setLevel(logging.NOTSET)
    # Each of 2 envs of runner 2 fails after every fourth of the 18 steps that it took.
    assert results[-1]["env_health"] == {"E503 UnluckyError": 8}
    assert results[-1]["num_healthy_workers"] == 2
    assert results[-1]["executed"] == 72
    failed = [record.getMessage() for record in caplog.records if "E503" in record.getMessage()]
    assert len(failed) == 8
    assert all("Talker, runner 2, env" in text for text in failed)
    begun = [record for record in caplog.records if record.name.startswith("steppe.env.")]
    assert {(record.worker_index, record.vector_index) for record in begun} == {
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    }
    assert begun[-1].getMessage() == f"runner 2 env {begun[-1].vector_index}: begins at 0"
    assert begun[-1].levelno == logging.INFO


PROGRAM = """
import ray, steppe, gymnasium

class Loud(gymnasium.Wrapper):
    def __init__(self, config):
        super().__init__(gymnasium.make("CartPole-v1"))
        print("env", config.worker_index, "is here")

small = {"num_envs_per_env_runner": 1, "train_batch_size": 8, "minibatch_size": 8, "num_epochs": 1}
config = steppe.PPOConfig(env=Loud, num_env_runners=1, fcnet_hiddens=[4], write_run=False, **small)
with config.build() as algo, config.copy(seed=1).build() as other:
    algo.train()
    algo.close()
    other.train()
    print("still there", ray.is_initialized())
print("gone", not ray.is_initialized())
"""


def test_a_program_without_ray_gets_one_and_what_envs_print(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("still there True") < done.stdout.index("gone True")
    assert "env 1 is here" in done.stdout + done.stderr


def test_one_process_never_imports_ray():
    code = f"import sys\n{PROGRAM}".replace("import ray, ", "import ").replace("num_env_runners=1", "seed=1")
    code = code.replace("ray.is_initialized()", "'ray' in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "still there False\ngone True" in done.stdout


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else takes it, and not listened at
        address = address.format(taken.getsockname()[1])
        code = (
            "import steppe\n"
            f"config = steppe.PPOConfig(env='CartPole-v1', num_env_runners=1, ray_address={address!r})\n"
            "try:\n    config.build()\nexcept steppe.ConfigError as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
    assert f"no Ray answers at ray_address='{address}': start one there" in done.stdout
