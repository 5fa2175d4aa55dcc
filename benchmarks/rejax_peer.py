"""PPO of rejax, in an environment of its own: prints its compile seconds, then a rate for each line it reads.

``.venv-rejax/bin/python benchmarks/rejax_peer.py '{"num_envs": 64, ...}'``; it imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time

import jax
from rejax import PPO


def main() -> None:
    """Compile, and train from scratch as often as asked; evaluations are left out."""
    settings = json.loads(sys.argv[1])
    steps = settings["total_timesteps"]
    algo = PPO.create(**settings, eval_freq=steps, skip_initial_evaluation=True)
    train = jax.jit(algo.replace(eval_callback=lambda algo, state, key: ()).train)
    start = time.perf_counter()
    compiled = train.lower(jax.random.key(0)).compile()
    print(json.dumps(time.perf_counter() - start), flush=True)
    for seed, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        jax.block_until_ready(compiled(jax.random.key(seed)))
        print(json.dumps(steps / (time.perf_counter() - start)), flush=True)


if __name__ == "__main__":
    main()
