"""The runner in this process: an env, a sampler, and the seeds that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from steppe.config import AlgorithmConfig
from steppe.envs import registry
from steppe.sampling.sampler import Sample, Sampler
from steppe.seeding import stream
from steppe.types import DEFAULT_POLICY, AsyncEnv, Policy, SpacePair, State, Weights


@final
class LocalRunner:
    """Steps the envs of one worker.

    Args:
        config: of the run; its seed is set.
        worker_index: 0 in the driver's own runner.
        seed_runner: place in the seed tree, where it is not ``worker_index``.
        num_envs: envs to build, where it is not the config's.
    """

    def __init__(
        self,
        config: AlgorithmConfig,
        *,
        worker_index: int = 0,
        seed_runner: int | None = None,
        num_envs: int | None = None,
    ) -> None:
        self._config, self._index = config, worker_index
        self._place = worker_index if seed_runner is None else seed_runner
        self.env: AsyncEnv = registry.build(
            config.env,
            config.env_config,
            num_envs=num_envs or config.num_envs_per_env_runner,
            worker_index=worker_index,
            num_workers=config.num_env_runners,
            run_seed=int(config.seed or 0),
            seed_runner=seed_runner,
            max_episode_steps=config.max_episode_steps,
            on_out_of_space=config.on_out_of_space,
            max_sequence_length=config.max_sequence_length,
            observation_space=config.observation_space,
            action_space=config.action_space,
        )
        self.sampler: Sampler

    @property
    def spaces(self) -> Mapping[str, SpacePair]:
        """Spaces by policy id."""
        return {DEFAULT_POLICY: self.env.spaces[0]}

    def start(
        self,
        policies: Mapping[str, Policy],
        *,
        trained: Sequence[str],
        explore: bool,
        fragment_length: int,
        complete: bool,
    ) -> None:
        """Make the sampler; the envs are reset by the first :meth:`sample`."""
        self.sampler = Sampler(
            self.env,
            policies,
            trained=trained,
            mapping=lambda info: DEFAULT_POLICY,
            fragment_length=fragment_length,
            complete_episodes=complete,
            explore=explore,
            rng=stream(int(self._config.seed or 0), "noise", self._place),
            runner=self._index,
        )

    def set_weights(self, weights: Mapping[str, Weights]) -> None:
        """Act with these from now on."""
        self.sampler.set_weights(weights)

    def sample(self) -> Sequence[Sample]:
        """The next fragments: one."""
        return [self.sampler.sample()]

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd about the envs, by code and leaf."""
        return self.env.health()

    def get_state(self) -> State:
        """The sampler's state, envs included."""
        return self.sampler.get_state()

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly."""
        return self.sampler.set_state(state)

    def close(self) -> None:
        """Close the envs."""
        self.env.close()
