"""CartPole, played by several clients of one policy server at once, which learns from all of them.

``python -m benchmarks.serving_players http://127.0.0.1:9900 local`` is a client, which prints how it does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SCORE = 150.0
_STEPS = 200_000
_WARM_S = 5.0
"""Before rates are taken: the clients begin, and the learner compiles."""


class Played(NamedTuple):
    """What came of a run.

    Attributes:
        mean: of one client's newest 100 episodes, the best such client.
        steps: that the learner had taken by then.
        rate: env steps a second of all clients, from a while after they began.
        discarded: steps that came too late to be learned from.
    """

    mean: float
    steps: int
    rate: float
    discarded: int


def play(address: str, mode: str) -> None:
    """Play until somebody ends it."""
    import gymnasium

    from steppe.serving.client import PolicyClient

    env, steps, rewards, said = gymnasium.make("CartPole-v1"), 0, deque[float](maxlen=100), 0.0
    client = PolicyClient(address, mode)
    while True:
        (obs, _), total, over, truncated = env.reset(), 0.0, False, False
        episode = client.start_episode()
        while not over and not truncated:
            obs, reward, over, truncated, _ = env.step(client.get_action(episode, obs))
            client.log_returns(episode, float(reward))
            total, steps = total + float(reward), steps + 1
        client.end_episode(episode, obs, truncated=truncated)
        rewards.append(total)
        if (now := time.monotonic()) > said + 0.5:
            mean = sum(rewards) / 100 if len(rewards) == 100 else 0.0
            print(json.dumps({"at": now, "steps": steps, "mean": mean, "lost": client.discarded}), flush=True)
            said = now


def played(mode: str, clients: int = 3, seconds: float = 900.0) -> Played:
    """A run of PPO and its clients, until the score, the most steps or the time is reached."""
    import steppe
    from steppe.serving.env import PolicyServer

    server = PolicyServer(port=0)
    config = steppe.PPOConfig(env="CartPole-v1", input=server, seed=0, write_run=False)
    told: list[list[dict[str, Any]]] = [[] for _ in range(clients)]
    processes: list[subprocess.Popen[str]] = []
    result: dict[str, Any] = {"timesteps_total": 0}
    with config.build() as algo:
        command = [sys.executable, "-m", "benchmarks.serving_players", server.address, mode]
        for own in told:
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
            threading.Thread(target=_hear, args=(processes[-1], own), daemon=True).start()
        began = time.monotonic()
        try:
            while _best(told) < SCORE and result["timesteps_total"] < _STEPS:
                result = algo.train()
                if time.monotonic() > began + seconds:
                    break
        finally:
            for process in processes:
                process.kill()
                process.wait()
    rate = 0.0
    for own in told:
        later = [one for one in own if one["at"] > own[0]["at"] + _WARM_S]
        if len(later) > 1:
            rate += (later[-1]["steps"] - later[0]["steps"]) / (later[-1]["at"] - later[0]["at"])
    discarded = sum(own[-1]["lost"] for own in told if own)
    return Played(_best(told), int(result["timesteps_total"]), rate, discarded)


def _hear(process: subprocess.Popen[str], told: list[dict[str, Any]]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            told += [json.loads(line)]


def _best(told: list[list[dict[str, Any]]]) -> float:
    return max((one["mean"] for own in told for one in own), default=0.0)


if __name__ == "__main__":
    play(*sys.argv[1:])
