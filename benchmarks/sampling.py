"""Sampling alone: how much of the bare env loop is left, and the ratio to Stable-Baselines3."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import steppe
from benchmarks import peers
from benchmarks.report import Row, against

REPEATS = 21


def ours(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: env steps per second of one fragment, as the training loop asks for it."""

    def measure() -> float:
        start = time.perf_counter()
        rollouts = algo.runner.sample()
        return sum(rollout.env_steps for rollout in rollouts) / (time.perf_counter() - start)

    return measure


def compare(
    env_id: str, num_envs: int, polls: int, theirs: Mapping[str, Callable[[], float]]
) -> tuple[float, float]:
    """Our rate and the peer's, with the same envs and the same number of steps."""
    config = steppe.PPOConfig(
        env=env_id,
        num_envs_per_env_runner=num_envs,
        rollout_fragment_length=polls,
        train_batch_size=num_envs * polls,
        fcnet_hiddens=[64, 64],
        seed=0,
        write_run=False,
    )
    with config.build() as algo:
        return against(ours(algo), theirs, REPEATS)


def cost(algo: steppe.Algorithm) -> Callable[[], float]:
    """A measure: seconds of the CPU per env step of one fragment, whatever else the machine does."""

    def measure() -> float:
        start = time.process_time()
        rollouts = algo.runner.sample()
        return (time.process_time() - start) / sum(rollout.env_steps for rollout in rollouts)

    return measure


def agents_of_one(env_id: str, num_envs: int, polls: int) -> tuple[float, float]:
    """Microseconds per env step of envs of many agents that have one agent each, and of the plain ones."""
    settings: dict[str, Any] = {
        "num_envs_per_env_runner": num_envs,
        "rollout_fragment_length": polls,
        "train_batch_size": num_envs * polls,
        "fcnet_hiddens": [64, 64],
        "seed": 0,
        "write_run": False,
    }
    many = steppe.PPOConfig(env=steppe.make_multi_agent(env_id), env_config={"num_agents": 1}, **settings)
    with many.build() as algo, steppe.PPOConfig(env=env_id, **settings).build() as plain:
        value, peer = against(cost(algo), {"plain": cost(plain)}, REPEATS)
    return 1e6 * value, 1e6 * peer


class Crowd(steppe.MultiAgentEnv):
    """256 agents that always see and earn the same: what is left is the plumbing."""

    def __init__(self, env_config: Any) -> None:
        self.possible_agents = list(range(256))
        self.observation_space, self.action_space = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)
        self._obs = dict.fromkeys(self.possible_agents, np.zeros(4, np.float32))
        self._rewards = dict.fromkeys(self.possible_agents, 1.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._obs, {}

    def step(self, action_dict: dict[Any, Any]) -> Any:
        return self._obs, self._rewards, {"__all__": False}, {"__all__": False}, {}


class Zeros(steppe.Policy):
    """Always the same."""

    def act(self, obs: Any, state: Any, rng: Any) -> int:
        return 0

    def act_batch(self, obs: Any, states: Any, rng: Any) -> Any:
        return np.zeros(len(obs), np.int64)


def crowd(polls: int) -> float:
    """Agent rows per second of 4 envs of 256 agents each, with a policy that does nothing."""
    learned = steppe.PolicySpec(None, spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    config = steppe.PPOConfig(
        env=Crowd,
        policies={"zeros": steppe.PolicySpec(Zeros), "learned": learned},
        policy_mapping_fn=lambda agent_id: "zeros",
        num_envs_per_env_runner=4,
        rollout_fragment_length=polls,
        train_batch_size=4 * polls,
        max_episode_steps=200,
        seed=0,
        write_run=False,
    )
    with config.build() as algo:

        def measure() -> float:
            start = time.perf_counter()
            samples = algo.runner.sample()
            return sum(sample.agent_steps for sample in samples) / (time.perf_counter() - start)

        return statistics.median([measure() for _ in range(REPEATS)])


def native(num_envs: int, polls: int) -> float:
    """Env steps per second of Gymnasium's own vector CartPole, with a policy of 64-64."""
    config = steppe.PPOConfig(
        env=lambda ctx: gymnasium.make_vec("CartPole-v1", ctx.num_envs, "vector_entry_point"),
        num_envs_per_env_runner=num_envs,
        rollout_fragment_length=polls,
        train_batch_size=num_envs * polls,
        seed=0,
        write_run=False,
    )
    with config.build() as algo:
        measure = ours(algo)
        return statistics.median([measure() for _ in range(REPEATS)])


def rows() -> Iterator[Row]:
    """Yield a row as soon as it is measured."""
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        value, peer = compare(env_id, 64, 128, {"loop": peers.bare_loop(env_id, 64, 128)})
        name = f"sampling against the bare env loop, 64 {env_id}"
        yield Row(name=name, unit="steps/s", value=value, peer=peer, bar=0.75, at_least=True)
    value, peer = agents_of_one("CartPole-v1", 64, 128)
    name = "sampling 64 envs of one agent each, made with make_multi_agent, against 64 plain CartPole-v1"
    yield Row(name=name, unit="us/step", value=value, peer=peer, bar=1.3, at_least=False)
    name = "4 envs of 256 agents each, a policy that does nothing"
    yield Row(name=name, unit="agent rows/s", value=crowd(100), bar=400_000, at_least=True)
    name = "sampling 256 envs of Gymnasium's vector CartPole-v1"
    yield Row(name=name, unit="steps/s", value=native(256, 64), bar=400_000, at_least=True)
    theirs = peers.by_threads(partial(peers.sb3_sampling, "CartPole-v1", 8, 512))
    value, peer = compare("CartPole-v1", 8, 512, theirs)
    name = "sampling against Stable-Baselines3, 8 CartPole-v1"
    yield Row(name=name, unit="steps/s", value=value, peer=peer, bar=3.0, at_least=True)
