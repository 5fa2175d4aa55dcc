"""Evaluation in envs written in JAX: whole episodes of many copies, compiled as training is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from steppe.config import AlgorithmConfig
from steppe.jaxenvs.protocol import JaxEnv
from steppe.runners.evaluation import evaluation_metrics
from steppe.runners.jit import JitRunner
from steppe.sampling.metrics import EpisodeRecord, Sample
from steppe.seeding import EVALUATION_RUNNER, stream
from steppe.types import Policy, State, Weights

logger = logging.getLogger("steppe")

_FRAGMENT, _PATIENCE = 64, 10_000
_NEVER_ENDS = (
    "evaluation waits for episodes to end, %d steps of each env by now; if the env has no end of its own, "
    "set max_episode_steps to truncate its episodes"
)


@final
class JitEvaluator:
    """What :class:`~steppe.runners.evaluation.Evaluator` is; each evaluation begins its episodes anew.

    Args:
        config: of the run.
        env: of the training runner.
        policies: by id.
    """

    def __init__(self, config: AlgorithmConfig, env: JaxEnv, policies: Mapping[str, Policy]) -> None:
        self._config, self._env, self._policies = config, env, policies
        self._envs = config.evaluation_num_envs or config.num_envs_per_env_runner
        self._rng = stream(int(config.seed or 0), "noise", EVALUATION_RUNNER)
        self._runners: dict[tuple[int, bool], JitRunner] = {}

    def evaluate(self, weights: Mapping[str, Weights], episodes: int | None, explore: bool | None) -> Sample:
        """Play one evaluation; the arguments are those of the other evaluator, and so is what counts.

        Copies go on until the last of them is done; what some play meanwhile counts for nothing.
        """
        config = self._config
        count = config.evaluation_duration if episodes is None else episodes
        timed = episodes is None and config.evaluation_duration_unit == "timesteps"
        envs = min(self._envs, count)
        if explore is None:
            explore = bool(config.evaluation_config.get("explore", False))
        runner = self._runner(envs, explore)
        runner.begin_anew(int(self._rng.integers(1 << 32)))
        runner.set_weights(weights)
        # Shared out in advance, or short episodes would win.
        shares = (
            np.full(envs, -(-count // envs)) if timed else count // envs + (np.arange(envs) < count % envs)
        )
        done, played, told = np.zeros(envs, np.int64), list[EpisodeRecord](), 0
        while (done < shares).any():
            (sample,) = runner.sample()
            for episode in sample.episodes:
                if done[episode.env] < shares[episode.env]:
                    done[episode.env] += episode.length if timed else 1
                    played.append(episode)
            told += _FRAGMENT
            if told - _FRAGMENT < _PATIENCE <= told:
                logger.warning(_NEVER_ENDS, told)
        steps = sum(episode.length for episode in played)
        return Sample([], played, steps, steps, sum(episode.reward for episode in played))

    def _runner(self, envs: int, explore: bool) -> JitRunner:
        if (envs, explore) not in self._runners:
            runner = JitRunner(self._config.copy(num_envs_per_env_runner=envs), self._env)
            how: dict[str, Any] = {"trained": (), "complete": False, "fragment_length": _FRAGMENT}
            runner.start(self._policies, explore=explore, **how)
            self._runners[envs, explore] = runner
        return self._runners[envs, explore]

    def metrics(self, sample: Sample) -> dict[str, Any]:
        """The episode keys of a result, over the evaluation that was played."""
        return evaluation_metrics(sample, {})

    def get_state(self) -> State:
        """Where its chance comes from."""
        return {"callbacks": [], "runner": {"rng": self._rng.bit_generator.state}}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`."""
        self._rng.bit_generator.state = state["runner"]["rng"]
        return []

    def close(self) -> None:
        """Nothing is open."""
