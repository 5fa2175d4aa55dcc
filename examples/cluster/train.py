"""One program for a laptop, a workstation and a cluster: only the number of runners differs.

``python train.py --runners 2`` has a Ray of its own. With ``RAY_ADDRESS`` set it joins that one, and waits
until its hosts are there. ``slurm.sbatch``, ``ray-up.yaml`` and the files for KubeRay beside it run it so.
"""

import argparse
import os
import sys
import time

import steppe


def wait_for_cpus(cpus, patience_s):
    """Hosts come one after the other, and with an autoscaler only if asked; build() waits for seconds."""
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(os.environ["RAY_ADDRESS"], logging_level="error")  # steppe uses the Ray that it finds
    request_resources(num_cpus=cpus)
    began = time.monotonic()
    while (there := ray.cluster_resources().get("CPU", 0)) < cpus:
        if time.monotonic() - began > patience_s:
            sys.exit(f"{there:g} of {cpus} CPUs are there after {patience_s} s: ask for fewer --runners")
        time.sleep(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runners", type=int, default=0)
    parser.add_argument("--envs", type=int, default=16, help="of each runner")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--patience", type=float, default=600, help="seconds that hosts have to come")
    args = parser.parse_args()
    if args.runners and "RAY_ADDRESS" in os.environ:
        wait_for_cpus(args.runners, args.patience)
    config = steppe.APPOConfig(
        env="Pendulum-v1",  # yours: a class of this file, or of a package that all hosts have
        num_env_runners=args.runners,
        num_envs_per_env_runner=args.envs,
        rollout_fragment_length=50,
        sample_async=True,  # learn while runners sample, and wait for no slow one
        checkpoint_freq=10,
        seed=0,
    )
    with config.build() as algo:
        for _ in range(args.iterations):
            result = algo.train()
            print(
                f"{result['timesteps_total']} steps, reward {result['episode_reward_mean']:.1f}, "
                f"{result['num_healthy_workers']} runners, {result['time']['iteration_s']:.1f} s",
                flush=True,
            )
        print("checkpoint", algo.save_to_run())


if __name__ == "__main__":
    main()
