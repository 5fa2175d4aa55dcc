"""What is measured while sampling: episodes, and their means in a result."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, final

import numpy as np

from steppe.errors import ConfigError
from steppe.types import EpisodeEnd, Rollout, State


@dataclass(slots=True)
class EpisodeRecord:
    """One finished episode.

    Attributes:
        env: vector index.
        episode: counts the episodes of that env.
        runner: worker index.
        length: in env steps.
        reward: sum over agents.
        agent_rewards: by agent id.
        policy_rewards: for each policy, the returns of its agents.
        custom_metrics: what callbacks measured.
    """

    env: int
    episode: int
    runner: int
    length: int = 0
    reward: float = 0.0
    agent_rewards: dict[str, float] = field(default_factory=dict)
    policy_rewards: dict[str, list[float]] = field(default_factory=dict)
    custom_metrics: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What a run writes down of it."""
        return {name: getattr(self, name) for name in ("reward", "length", "env", "episode")}


@dataclass(slots=True)
class Sample:
    """One fragment: a Rollout per trained policy, the episodes it ended, and where its time went.

    Attributes:
        discarded: those of ``env_steps`` that nobody can learn from, by reason.
    """

    rollouts: list[Rollout]
    episodes: list[EpisodeRecord]
    env_steps: int
    agent_steps: int
    reward: float
    env_time: float = 0.0
    inference_time: float = 0.0
    discarded: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Env steps."""
        return self.env_steps


class Standing(NamedTuple):
    """How a runner stands at the end of an iteration.

    Attributes:
        health: see ``AsyncEnv.health``.
        healthy: workers that can sample.
        restarts: workers that were replaced since it was asked last.
        discarded: env steps since then that were in no fragment, by reason.
        in_flight: env steps, as far as they are known of, that are in no fragment yet.
        staleness: mean and largest number of updates that came out between the weights that acted a row and
            its arrival; since then.
    """

    health: Mapping[str, int]
    healthy: int = 1
    restarts: int = 0
    discarded: Mapping[str, int] = {}
    in_flight: int = 0
    staleness: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class Tally:
    """What the running fragment has counted so far."""

    episodes: list[EpisodeRecord] = field(default_factory=list)
    agent_steps: int = 0
    reward: float = 0.0
    env_time: float = 0.0
    inference_time: float = 0.0
    lost: list[EpisodeEnd] = field(default_factory=list)
    """Episodes that will not come to their end, with their env steps in this fragment."""


class EpisodeWindow:
    """Means over the last ``size`` episodes, or over all of an iteration where it brought more."""

    def __init__(self, size: int) -> None:
        self._recent: deque[EpisodeRecord] = deque(maxlen=size)
        self.total = 0
        self.mean_reward = float("nan")
        """Of the newest summary."""
        self.summarized: list[EpisodeRecord] = []
        """The episodes that the newest summary is over."""

    def summarize(self, new: list[EpisodeRecord]) -> dict[str, Any]:
        """Add the episodes of one iteration and return its result keys; ``nan`` before the first."""
        self._recent.extend(new)
        self.total += len(new)
        self.summarized = new if len(new) > len(self._recent) else list(self._recent)
        summary = summarize(self.summarized)
        self.mean_reward = summary["episode_reward_mean"]
        return {**summary, "episodes_this_iter": len(new), "episodes_total": self.total}

    def get_state(self) -> State:
        """The window, the count, and the newest mean."""
        recent = [asdict(record) for record in self._recent]
        return {"recent": recent, "total": self.total, "mean_reward": self.mean_reward}

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`."""
        self._recent.clear()
        self._recent.extend(EpisodeRecord(**record) for record in state["recent"])
        self.summarized = list(self._recent)
        self.total, self.mean_reward = int(state["total"]), float(state["mean_reward"])


@final
class Account:
    """Counts env steps, episodes and seconds of a run.

    Every env step that was executed was trained on, or was discarded for a reason, or is in flight.

    Args:
        smoothing: episodes that means are over.

    Attributes:
        env_steps: in all fragments so far.
        total_s: seconds of all iterations.
        window: the episodes that means are over.
    """

    def __init__(self, smoothing: int) -> None:
        self.env_steps, self.total_s, self.window = 0, 0.0, EpisodeWindow(smoothing)
        self._agent_steps = self._outside = 0
        self._discarded: Counter[str] = Counter()

    def report(
        self, samples: Sequence[Sample], standing: Standing, iteration_s: float, learning_s: float
    ) -> dict[str, Any]:
        """What a result says of sampling; an iteration had these fragments."""
        episodes = [episode for sample in samples for episode in sample.episodes]
        steps = sum(sample.env_steps for sample in samples)
        env = sum(sample.env_time for sample in samples)
        inference = sum(sample.inference_time for sample in samples)
        other = max(0.0, iteration_s - env - inference - learning_s)
        phases = {"env": env, "inference": inference, "learning": learning_s, "other": other}
        self._agent_steps += sum(sample.agent_steps for sample in samples)
        self.total_s += iteration_s
        self._outside += sum(standing.discarded.values())  # of fragments that never came
        for lost in (standing.discarded, *(sample.discarded for sample in samples)):
            self._discarded.update(lost)
        taken = self.env_steps + self._outside
        return {
            **self.window.summarize(episodes),
            "reward_per_step": sum(sample.reward for sample in samples) / max(steps, 1),
            "timesteps_this_iter": steps,
            "timesteps_total": self.env_steps,
            "agent_timesteps_total": self._agent_steps,
            "env_health": dict(standing.health),
            "num_healthy_workers": standing.healthy,
            "num_worker_restarts": standing.restarts,
            "executed": taken + standing.in_flight,
            "trained": taken - self._discarded.total(),
            "discarded": dict(self._discarded),
            "in_flight": standing.in_flight,
            "staleness_mean": standing.staleness[0],
            "staleness_max": standing.staleness[1],
            "time": {
                "total_s": self.total_s,
                "iteration_s": iteration_s,
                **phases,
                "share": {name: seconds / iteration_s for name, seconds in phases.items()},
            },
        }

    def get_state(self) -> State:
        """All of it but the seconds."""
        return {
            "window": self.window.get_state(),
            "env_steps": self.env_steps,
            "agent_steps": self._agent_steps,
            "discarded": [dict(self._discarded), self._outside],
        }

    def set_state(self, state: Mapping[str, Any], total_s: float) -> None:
        """Go on from :meth:`get_state`."""
        self.window.set_state(state["window"])
        self.env_steps, self._agent_steps = int(state["env_steps"]), int(state["agent_steps"])
        discarded, self._outside = state.get("discarded", ({}, 0))  # older checkpoints know of none
        self._discarded, self.total_s = Counter(discarded), total_s


def summarize(episodes: Iterable[EpisodeRecord]) -> dict[str, Any]:
    """Result keys of some episodes: rewards, lengths, and rewards by policy and agent."""
    episodes = list(episodes)
    rewards = [record.reward for record in episodes]
    by_policy: dict[str, list[float]] = {}
    by_agent: dict[str, list[float]] = {}
    for record in episodes:
        for policy, values in record.policy_rewards.items():
            by_policy.setdefault(policy, []).extend(values)
        for agent, value in record.agent_rewards.items():
            by_agent.setdefault(agent, []).append(value)
    return {
        "episode_reward_mean": _mean(rewards),
        "episode_reward_min": min(rewards, default=float("nan")),
        "episode_reward_max": max(rewards, default=float("nan")),
        "episode_len_mean": _mean([record.length for record in episodes]),
        "policy_reward_mean": {policy: _mean(values) for policy, values in by_policy.items()},
        "policy_reward_min": {policy: min(values) for policy, values in by_policy.items()},
        "policy_reward_max": {policy: max(values) for policy, values in by_policy.items()},
        "agent_reward_mean": {agent: _mean(values) for agent, values in by_agent.items()},
        "custom_metrics": {} if not any(record.custom_metrics for record in episodes) else _custom(episodes),
    }


def _custom(episodes: Iterable[EpisodeRecord]) -> dict[str, float]:
    """Mean, least and largest of what callbacks measured, over the episodes that have it."""
    found: dict[str, list[float]] = {}
    for record in episodes:
        for name, value in record.custom_metrics.items():
            if np.ndim(value) or not isinstance(value, int | float | np.number | np.bool_ | np.ndarray):
                raise ConfigError(f"episode.custom_metrics[{name!r}]={value!r} must be one number")
            found.setdefault(name, []).append(float(value))
    named = sorted(found.items())
    return {
        **{f"{name}_mean": _mean(values) for name, values in named},
        **{f"{name}_min": min(values) for name, values in named},
        **{f"{name}_max": max(values) for name, values in named},
    }


def _mean(values: list[Any]) -> float:
    return float(np.mean(values)) if values else float("nan")


@final
class Result(Mapping[str, Any]):
    """What one iteration did: a read-only mapping; ``result["episode_reward_mean"]``."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Result({self._values!r})"

    def __str__(self) -> str:
        """Key by key, sorted and indented, as a reader wants it."""
        return block(self._values)


def block(values: Mapping[str, Any], indent: str = "") -> str:
    """One line a key, sorted; what is nested stands below its key, further in. Empty dicts are left out.

    The form is that of RLlib's printed results.
    """
    lines = []
    for key in sorted(values, key=str):
        value = values[key]
        if not isinstance(value, Mapping):
            lines.append(f"{indent}{key}: {value}")
        elif value:
            lines.append(f"{indent}{key}:\n{block(value, indent + '  ')}")
    return "\n".join(lines)
