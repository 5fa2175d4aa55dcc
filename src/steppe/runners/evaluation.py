"""Evaluation: whole episodes with the newest weights, apart from training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, final

import numpy as np

from steppe.config import AlgorithmConfig, say_once
from steppe.errors import ConfigError
from steppe.runners.local import LocalRunner
from steppe.sampling.callbacks import Callbacks, get_callbacks_state, make_callbacks, set_callbacks_state
from steppe.sampling.metrics import Result, Sample, summarize
from steppe.seeding import EVALUATION_RUNNER
from steppe.spaces import described, misfits
from steppe.types import Policy, State, Weights


@final
class Evaluator:
    """Plays evaluations, in envs of its own or, between fragments, in those of the training runner.

    Args:
        config: of the run; its ``evaluation_config`` is applied here.
        policies: by id.
        callbacks: of the run; ``evaluation_config`` may name others.
        training: the runner whose envs are shared, if they are.
        index: of several that share an evaluation out among them.
    """

    def __init__(
        self,
        config: AlgorithmConfig,
        policies: Mapping[str, Policy],
        callbacks: Sequence[Callbacks],
        training: LocalRunner | None = None,
        index: int = 0,
    ) -> None:
        changes = dict(config.evaluation_config)
        if "env_config" in changes:  # says what differs; the rest of the env's arguments stays
            changes["env_config"] = {**config.env_config, **changes["env_config"]}
        own = config.copy(input=None, **changes)  # clients bring what is learned from
        self._own = make_callbacks(own.callbacks_class) if "callbacks_class" in changes else ()
        self._training = training if config.evaluation_envs == "shared" else None
        self._explore = bool(config.evaluation_config.get("explore", False))
        self._timed = config.evaluation_duration_unit == "timesteps"
        self._duration = config.evaluation_duration
        self.runner = LocalRunner(
            own,
            callbacks=self._own if "callbacks_class" in changes else callbacks,
            worker_index=index,
            seed_runner=EVALUATION_RUNNER + max(index - 1, 0),
            num_envs=config.evaluation_num_envs,
            env=None if self._training is None else self._training.env,
        )
        self._check_spaces(policies, changes)
        self.runner.start(
            policies,
            trained=(),
            explore=False,
            fragment_length=math.ceil(self._duration / self.runner.env.num_envs) if self._timed else 1,
            complete=True,
        )

    def _check_spaces(self, policies: Mapping[str, Policy], changes: Mapping[str, Any]) -> None:
        """The spaces must be those that the policies were made for; bounds of observations may differ."""
        own = [f"evaluation_config.{name}" for name in ("env", "env_config") if name in changes]
        where = " and ".join(own) or "evaluation"
        for id, pair in self.runner.spaces.items():
            trained = described(policies[id].observation, policies[id].action)
            wrong, odd = misfits(trained, described(*pair))
            if wrong:
                self.close()
                raise ConfigError(
                    f"{where}: policy {id!r} trains with {wrong}: "
                    "evaluate in an env with the spaces of training"
                )
            if odd:
                say_once(f"{where}: policy {id!r} trains with {odd}: it is evaluated with these bounds")

    def evaluate(self, weights: Mapping[str, Weights], episodes: int | None, explore: bool | None) -> Sample:
        """Play one evaluation.

        Episodes are shared out to the envs in advance and all awaited, or short ones would win. Of a number
        of env steps, every episode that was begun within them is awaited.

        Args:
            weights: to act with.
            episodes: how many; None for what the config says.
            explore: draw actions instead of taking the most likely ones; None for what the config says.
        """
        sampler = self.runner.sampler
        self.runner.set_weights(weights, self._explore if explore is None else explore)
        if self._training is None:
            return self._play(episodes)
        try:
            self._training.lend(self.runner)
            sampler.adopt(anew=True)
            # Training episodes that are under way are played to their end, and count for nothing.
            with self.runner.chance or nullcontext():
                sampler.sample_episodes([0] * self.runner.env.num_envs)
            sample = self._play(episodes)
            self._training.sampler.adopt()
        except BaseException:
            self._training.sampler.cut_short = True
            raise
        finally:
            self._training.lend(self._training)
        return sample

    def _play(self, episodes: int | None) -> Sample:
        if episodes is None and self._timed:
            (sample,) = self.runner.sample()
            return sample
        count, envs = self._duration if episodes is None else episodes, self.runner.env.num_envs
        return self.runner.sample_episodes([count // envs + (i < count % envs) for i in range(envs)])

    def metrics(self, sample: Sample) -> dict[str, Any]:
        """The episode keys of a result, over the evaluation that was played."""
        return evaluation_metrics(sample, self.runner.health())

    def get_state(self) -> State:
        """Of its callbacks, its noise, and of the envs unless they are the training runner's."""
        own = {"rng": self.runner.sampler.rng.bit_generator.state}
        runner = self.runner.get_state() if self._training is None else own
        return {"callbacks": get_callbacks_state(self._own), "runner": runner}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly."""
        set_callbacks_state(self._own, state["callbacks"])
        if self._training is None:
            return self.runner.set_state(state["runner"])
        self.runner.sampler.rng.bit_generator.state = state["runner"]["rng"]
        return []

    def close(self) -> None:
        """Close the envs, unless they are the training runner's."""
        if self._training is None:
            self.runner.close()


def evaluation_metrics(sample: Sample, health: Mapping[str, int]) -> dict[str, Any]:
    """The episode keys of a result, over an evaluation that was played."""
    return {
        **summarize(sample.episodes),
        "episodes_this_iter": len(sample.episodes),
        "timesteps_this_iter": sample.env_steps,
        "env_health": dict(health),
    }


def checked_metrics(metrics: dict[str, Any]) -> Result:
    """What ``on_evaluate_end`` left of an evaluation's metrics.

    Raises:
        ConfigError: the mean reward, which runs are judged by, is no number any more.
    """
    score = metrics.get("episode_reward_mean", 0.0)
    if isinstance(score, bool) or not isinstance(score, int | float | np.number):
        raise ConfigError(f"on_evaluate_end made episode_reward_mean {score!r}: it must be one number")
    return Result(metrics)
