"""RLlib's runners, in an environment of their own: prints a rate of sampling for each line it reads.

``.venv-rllib/bin/python benchmarks/rllib_peer.py '{"env": ..., "runners": 2, "envs": 64, "fragment": 64}'``;
it imports nothing of ours.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")

import ray  # noqa: E402
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig  # noqa: E402


def main() -> None:
    """Build the runners, and let all of them sample a fragment as often as asked."""
    given = json.loads(sys.argv[1])
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, num_cpus=8)
    steps = given["envs"] * given["fragment"]
    config = (
        PPOConfig()
        .environment(given["env"])
        .env_runners(
            num_env_runners=given["runners"],
            num_envs_per_env_runner=given["envs"],
            rollout_fragment_length=given["fragment"],
        )
        .training(train_batch_size_per_learner=steps * given["runners"])
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], vf_share_layers=False))
    )
    runners = config.build_algo().env_runner_group
    for _ in sys.stdin:
        start = time.perf_counter()
        sampled = runners.foreach_env_runner(
            lambda runner: sum(len(episode) for episode in runner.sample(num_timesteps=steps)),
            local_env_runner=False,
        )
        print("rate", sum(sampled) / (time.perf_counter() - start), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
