"""The seeds' policy server and client, and what programs for RLlib serve with."""

import contextlib
import socket
import threading

import gymnasium
import numpy as np
import pytest

from steppe.compat.ray.rllib.agents.ppo import PPOTrainer
from steppe.compat.ray.rllib.env.policy_client import PolicyClient
from steppe.compat.ray.rllib.env.policy_server_input import PolicyServerInput
from steppe.compat.ray.rllib.examples.env.random_env import RandomMultiAgentEnv
from steppe.errors import ConfigError
from tests.compat.seed_programs import program


class Stub:
    """What the seeds' programs leave open."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)


def execute(name, **names):
    exec(compile(program(name), f"{name}.py", "exec"), names)
    return names


def free(port):
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def play(port, stop):
    """The seeds' client, again and again; its address names the port that the page has."""
    while not stop.is_set():
        obs = np.zeros(4, np.float32)
        source = program("policy_client").replace("9900", str(port))
        names = {"PolicyClient": PolicyClient, "cur_obs": obs, "last_obs": obs}
        exec(compile(source, "policy_client.py", "exec"), names)
        assert names["action"] in (0, 1)
        client, id = names["client"], names["client"].start_episode()
        for _ in range(8):
            client.get_action(id, obs)
            client.log_returns(id, 1.0)
        client.end_episode(id, obs)
        client.close()


def test_the_seeds_server_trains_by_what_the_seeds_client_does(quick):
    port = 9900 if free(9900) else 0
    told = {"YOUR_ENV_STUB": Stub, "SERVER_ADDRESS": "localhost", "SERVER_PORT": port}
    config = execute("policy_server", PolicyServerInput=PolicyServerInput, **told)["trainer_config"]
    trainer, stop = PPOTrainer(config={**config, "train_batch_size": 32}), threading.Event()
    port = int(trainer.algorithm.runner.env.address.rpartition(":")[2])
    client = threading.Thread(target=play, args=(port, stop))
    client.start()
    try:
        result = trainer.train()
    finally:
        stop.set()
        client.join()
        trainer.stop()
    assert result["timesteps_total"] >= 32
    assert result["episodes_this_iter"] > 0
    assert result["episode_reward_max"] == 8.0


def test_an_input_may_be_one_per_worker_and_has_to_be_a_server(quick):
    seen = []

    def input_(ioctx):
        seen.append((ioctx.worker_index, ioctx.worker.num_workers, ioctx.config["num_envs_per_env_runner"]))
        return None

    with pytest.raises(ConfigError, match="input made None: return a PolicyServer"):
        PPOTrainer(config={"env": Stub, "input": input_, "num_workers": 0})
    assert seen == [(0, 0, 1)]


def test_the_stub_for_many_agents():
    one = gymnasium.spaces.Box(-1, 1, (738,)), gymnasium.spaces.MultiDiscrete([3, 3, 3])
    env = RandomMultiAgentEnv({"goalie": one, "striker": (gymnasium.spaces.Discrete(5), one[1])})
    assert env.possible_agents == ["goalie", "striker"]
    obs, _ = env.reset(seed=0)
    assert obs["goalie"].shape == (738,)
    obs, rewards, *_ = env.step({"goalie": [0, 0, 0]})
    assert set(obs) == {"goalie", "striker"}
    assert set(rewards) == {"goalie"}
    same = RandomMultiAgentEnv({"num_agents": 3, "p_done": 0.0, "max_episode_len": 2})
    same.reset()
    assert [same.step({0: 1})[3]["__all__"] for _ in range(2)] == [False, True]
    assert same.observation_spaces[2] == gymnasium.spaces.Discrete(2)
