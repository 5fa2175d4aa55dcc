"""Whole runs that are served: each algorithm learns from what clients bring, and goes on exactly."""

import threading

import gymnasium
import numpy as np
import pytest

import steppe
from steppe import checkpoint
from steppe.compat.serving import RandomMultiAgentEnv
from steppe.errors import ConfigError
from steppe.serving.env import PolicyServer
from tests.serving.clients import Asking, GoneError

BOX = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
MASKED = gymnasium.spaces.Dict(
    {
        "action_mask": gymnasium.spaces.MultiBinary(3),
        "seen": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
    }
)
SMALL = {
    "fcnet_hiddens": [4],
    "train_batch_size": 32,
    "num_envs_per_env_runner": 2,
    "write_run": False,
    "seed": 0,
}


class Stub:
    """Two numbers, three choices."""

    observation_space = BOX
    action_space = gymnasium.spaces.Discrete(3)


def stub(observation=BOX, action=Stub.action_space):
    return lambda: type("Made", (), {"observation_space": observation, "action_space": action})()


class Playing:
    """Clients that play episodes of six steps, side by side."""

    def __init__(self, algo, n=2, obs=(0.5, -0.5), rewards=1.0, name="c"):
        self._stop, self._obs, self._reward = threading.Event(), obs, rewards
        self.actions, self.errors = [], []
        address = algo.runner.env.address
        self._threads = [threading.Thread(target=self._run, args=(address, f"{name}{i}")) for i in range(n)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []

    def _run(self, address, name):
        with Asking(address, name, stop=self._stop) as client:
            try:
                while not self._stop.is_set():
                    self.actions += client.play([self._obs] * 6, [self._reward] * 6)[1]
            except GoneError:
                return
            except BaseException as error:
                self.errors.append(error)


RUNS = {
    "PPO": (steppe.PPOConfig, {"num_epochs": 1, "minibatch_size": 32}, Stub, (0.5, -0.5)),
    "a recurrent PPO": (
        steppe.PPOConfig,
        {
            "memory": "lstm",
            "memory_size": 4,
            "max_seq_len": 4,
            "prev_action": True,
            "prev_reward": True,
            "num_epochs": 1,
        },
        Stub,
        (0.5, -0.5),
    ),
    "masks": (
        steppe.PPOConfig,
        {"num_epochs": 1},
        stub(MASKED),
        {"action_mask": [0, 1, 0], "seen": [0.0, 0.0]},
    ),
    "DQN": (steppe.DQNConfig, {"num_steps_sampled_before_learning_starts": 32}, Stub, (0.5, -0.5)),
    "IMPALA": (steppe.IMPALAConfig, {}, Stub, (0.5, -0.5)),
    "SAC": (
        steppe.SACConfig,
        {"num_steps_sampled_before_learning_starts": 32},
        stub(action=BOX),
        (0.5, -0.5),
    ),
    "TD3": (
        steppe.TD3Config,
        {"num_steps_sampled_before_learning_starts": 32},
        stub(action=BOX),
        (0.5, -0.5),
    ),
}


def check_run(name):
    config, settings, env, obs = RUNS[name]
    with config(env=env, input=PolicyServer(port=0), **SMALL, **settings).build() as algo:
        with Playing(algo, obs=obs) as clients:
            results = [algo.train() for _ in range(2)]
        assert results[-1]["timesteps_total"] >= 64
        assert results[-1]["episode_reward_mean"] == 6.0
        assert results[-1]["episode_len_mean"] == 6.0
        assert results[-1]["env_health"] == {}
        assert np.isfinite(list(results[-1]["info"]["default_policy"].values())).all()
        return clients.actions


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_each_algorithm_learns_from_clients(name):
    actions = check_run(name)
    if name == "PPO":
        assert set(actions) <= {0, 1, 2}
    if name == "masks":
        assert set(actions) == {1}
    if name in ("SAC", "TD3"):
        assert np.abs(actions).max() <= 1.0


@pytest.mark.slow
def test_a_served_run_goes_on_from_its_checkpoint(tmp_path, caplog):
    server = {"port": 0, "log_dir": tmp_path / "log"}
    config = steppe.PPOConfig(env=Stub, input=PolicyServer(**server), num_epochs=1, **SMALL)
    with config.build() as algo:
        with Playing(algo):
            steps = algo.train()["timesteps_total"]
        path = algo.save(tmp_path / "c")
    with pytest.raises(steppe.CheckpointError, match="pass what the run was made with"):
        steppe.load(path, env=Stub)
    saved = checkpoint.load(path, ["runner"])[0]["runner"]["env"]
    with steppe.load(path, env=Stub, input=PolicyServer(**server)) as again:
        state = again.runner.env.get_state()
        assert state["log"] == saved["log"]
        assert state["position"] >= saved["position"] > 0
        with Playing(again, n=1, name="d"):
            result = again.train()
        assert result["timesteps_total"] >= steps + 32
        assert result["training_iteration"] == 2
        again.restore(path)  # while it serves
        assert again.train()["training_iteration"] == 2
    assert "not exact" not in caplog.text


@pytest.mark.slow
def test_many_agents_with_policies_of_their_own():
    pair = BOX, Stub.action_space
    env = RandomMultiAgentEnv({"left": pair, "right": (MASKED, pair[1])})
    config = steppe.PPOConfig(
        env=env,
        input=PolicyServer(port=0),
        policies={"a", "b"},
        policy_mapping_fn=lambda agent_id: "a" if agent_id == "left" else "b",
        num_epochs=1,
        **SMALL,
    )
    obs = {"left": [0.5, 0.0], "right": {"action_mask": [0, 0, 1], "seen": [0.0, 0.0]}}
    with config.build() as algo, Playing(algo, obs=obs, rewards={"left": 1.0, "right": 2.0}) as clients:
        result = algo.train()
    assert set(result["info"]) == {"a", "b"}
    assert result["policy_reward_mean"] == {"a": 6.0, "b": 12.0}
    assert {action["right"] for action in clients.actions} == {2}


def test_an_evaluation_needs_an_env_that_can_be_stepped():
    settings = {"num_epochs": 1, **SMALL}
    config = steppe.PPOConfig(env=Stub, input=PolicyServer(port=0), **settings)
    with config.build() as algo, pytest.raises(ConfigError, match="that is not an env"):
        algo.evaluate(num_episodes=1)
    config = steppe.PPOConfig(env="CartPole-v1", input=PolicyServer(port=0), **settings)
    with config.build() as algo:
        assert algo.evaluate(num_episodes=1)["episodes_this_iter"] == 1


def test_without_clients_an_iteration_is_one_of_no_steps():
    server = PolicyServer(port=0, idle_timeout=0.3)
    with steppe.PPOConfig(env=Stub, input=server, num_epochs=1, **SMALL).build() as algo:
        result = algo.train()
        assert (result["timesteps_this_iter"], result["training_iteration"]) == (0, 1)
        assert np.isnan(result["episode_reward_mean"])


class Scripted(steppe.Policy):
    """A rule of the run's own."""

    def act(self, obs, state, rng):
        return 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_env_runners": 2}, "write num_env_runners=0"),
        ({"evaluation_envs": "shared"}, "write evaluation_envs='separate'"),
        ({"env": None}, "env is missing"),
        ({"env": object}, "has no observation_space"),
        ({"policies": {"a": steppe.PolicySpec(), "b": steppe.PolicySpec(policy_class=Scripted)}}, "own code"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is(settings, said):
    mapping = {"policy_mapping_fn": lambda agent_id: "a"} if "policies" in settings else {}
    given = {"env": Stub, "input": PolicyServer(port=0), **SMALL, **mapping, **settings}
    with pytest.raises(ConfigError, match=said):
        steppe.PPOConfig(**given).build()
