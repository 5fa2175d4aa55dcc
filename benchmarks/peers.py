"""What we compare with on the CPU: the bare loop over envs, Stable-Baselines3, and SBX."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

# Ours makes its envs so, too: it looks at every row itself.
UNCHECKED = {"disable_env_checker": True}


def bare_loop(env_id: str, num_envs: int, polls: int) -> Callable[[], float]:
    """A measure: env steps per second of stepping and resetting, with actions drawn beforehand."""
    envs = [gymnasium.make(env_id, **UNCHECKED) for _ in range(num_envs)]
    for i, env in enumerate(envs):
        env.reset(seed=i)
        env.action_space.seed(i)
    actions = [[_plain(env.action_space.sample()) for env in envs] for _ in range(polls)]

    def measure() -> float:
        start = time.perf_counter()
        for row in actions:
            for env, action in zip(envs, row, strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
        return polls * num_envs / (time.perf_counter() - start)

    return measure


def _plain(action: Any) -> Any:
    """Discrete actions as Python ints, which is what a fast caller hands over."""
    return int(action) if isinstance(action, np.integer) else action


def sb3(env_id: str, num_envs: int, n_steps: int, **settings: Any) -> Any:
    """Stable-Baselines3's PPO over a DummyVecEnv, its defaults unless ``settings`` say otherwise."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(env_id, n_envs=num_envs, seed=0, env_kwargs=UNCHECKED)
    return PPO("MlpPolicy", env, n_steps=n_steps, device="cpu", seed=0, **settings)


def sb3_sampling(env_id: str, num_envs: int, polls: int) -> Callable[[], float]:
    """A measure: env steps per second of its rollout collection alone."""
    model = sb3(env_id, num_envs, polls, batch_size=num_envs * polls)
    _, callback = model._setup_learn(total_timesteps=1 << 30)

    def measure() -> float:
        start = time.perf_counter()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=polls)
        return polls * num_envs / (time.perf_counter() - start)

    return measure


def sb3_training(
    env_id: str, num_envs: int, n_steps: int, epochs: int, minibatch: int
) -> Callable[[], float]:
    """A measure: env steps per second of one whole iteration, sampling and learning."""
    model = sb3(env_id, num_envs, n_steps, n_epochs=epochs, batch_size=minibatch)

    def measure() -> float:
        start = time.perf_counter()
        model.learn(num_envs * n_steps, reset_num_timesteps=False, log_interval=None)
        return num_envs * n_steps / (time.perf_counter() - start)

    return measure


def sb3_updates(
    env: Callable[[], Any], num_envs: int, n_steps: int, epochs: int, minibatch: int
) -> Callable[[], float]:
    """A measure: minibatch steps per second of its PPO's learning alone, by the network for pictures."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "CnnPolicy",
        make_vec_env(env, n_envs=num_envs, seed=0),
        n_steps=n_steps,
        n_epochs=epochs,
        batch_size=minibatch,
        device="cpu",
        seed=0,
    )
    model.learn(num_envs * n_steps, log_interval=None)

    def measure() -> float:
        start = time.perf_counter()
        model.train()
        return epochs * num_envs * n_steps // minibatch / (time.perf_counter() - start)

    return measure


def off_policy(
    package: str,
    algo: str,
    env_id: str,
    num_envs: int,
    steps: int,
    *,
    each: int | None = None,
    **settings: Any,
) -> Callable[[], float]:
    """A measure: env steps per second of DQN or SAC that make one update for each.

    Args:
        package: ``stable_baselines3`` or ``sbx``, which has the same interface.
        algo: name of the class.
        env_id: of Gymnasium.
        num_envs: stepped one after the other.
        steps: of one measure, all envs together.
        each: steps between two rounds of as many updates; ``num_envs`` if None.
        settings: of the class, where they are not its defaults.
    """
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(env_id, n_envs=num_envs, seed=0, env_kwargs=UNCHECKED)
    rate = {"train_freq": (each or num_envs) // num_envs, "gradient_steps": each or num_envs}
    extra = {} if package == "sbx" else {"device": "cpu"}
    cls = getattr(importlib.import_module(package), algo)
    model = cls("MlpPolicy", env, seed=0, **rate, **extra, **settings)
    model.learn(400, log_interval=None)  # learning has begun

    def measure() -> float:
        start = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False, log_interval=None)
        return steps / (time.perf_counter() - start)

    return measure


def by_threads(make: Callable[[], Callable[[], float]]) -> dict[str, Callable[[], float]]:
    """The measure with PyTorch's own choice of threads, and with one; each with a model of its own."""
    import torch

    def limited(measure: Callable[[], float], threads: int) -> Callable[[], float]:
        def measured() -> float:
            torch.set_num_threads(threads)
            return measure()

        return measured

    counts = {"default": torch.get_num_threads(), "1": 1}
    return {f"threads {name}": limited(make(), threads) for name, threads in counts.items()}
