"""The runner in this process: an env, a sampler, and the seeds that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, final

import numpy as np

from steppe.config import AlgorithmConfig
from steppe.envs import registry
from steppe.envs.context import EnvContext
from steppe.errors import ConfigError
from steppe.runners.policies import PolicyMapping, given_spaces, spaces_of, specs_of
from steppe.sampling.callbacks import OF_EPISODES, Callbacks, Surroundings, hook_of
from steppe.sampling.metrics import Sample, Standing
from steppe.sampling.sampler import Sampler
from steppe.seeding import EVALUATION_RUNNER, stream
from steppe.types import AsyncEnv, Policy, SpacePair, State, Weights

if TYPE_CHECKING:
    from steppe.envs.driven import Decider
    from steppe.runners.chance import GlobalChance


@final
class LocalRunner:
    """Steps the envs of one worker.

    Args:
        config: of the run; its seed is set.
        worker_index: 0 in the driver's own runner.
        seed_runner: place in the seed tree, where it is not ``worker_index``.
        num_envs: envs to build, where it is not the config's.
        env: step this one, built by another runner, instead of building any.
        callbacks: whose hooks are called here.

    Attributes:
        worker_index: 0 in the driver's own runner.
        in_evaluation: whether nobody learns from what it samples.
        spaces: of each policy, by id.
        observing: what is done to the observations of agents; None where it is nothing.
        around: what hooks are given beside the episode.
        chance: what functions of the config draw from; None where there is none.
    """

    def __init__(
        self,
        config: AlgorithmConfig,
        *,
        worker_index: int = 0,
        seed_runner: int | None = None,
        num_envs: int | None = None,
        env: AsyncEnv | None = None,
        callbacks: Sequence[Callbacks] = (),
    ) -> None:
        self._config, self.worker_index, self._callbacks = config, worker_index, callbacks
        self.in_evaluation = (seed_runner or 0) >= EVALUATION_RUNNER
        self._place = worker_index if seed_runner is None else seed_runner
        specs = specs_of(config)
        self.mapping = PolicyMapping(config.policy_mapping_fn, specs, self)
        self.spaces, self.observing = given_spaces(specs), None
        named = len(self.spaces) == len(specs)
        if config.observation_fn is not None or config.add_agent_id:
            from steppe.runners.observing import made_observing  # most runs observe what envs return

            self.observing = made_observing(self, config, policies_say=named)
        build: Callable[..., AsyncEnv] = registry.build
        if config.remote_worker_envs or config.on_env_error != "raise" or config.input is not None:
            from steppe.runners.building import builder  # most envs are stepped here, and errors end the run

            build = builder(config)
        self._deciders: list[Decider] = []
        self.env: AsyncEnv = env or build(
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
            created=self._created,
            pair_for=(lambda info: self.spaces[self.mapping.ahead(info)]) if named else None,
            observing=self.observing,
            action_mask=config.action_mask,
            decides=self._deciders.append,
        )
        # They may draw from the global generators.
        drawn = config.policy_mapping_fn is not None or config.observation_fn is not None
        self.chance = self._made_chance() if drawn else None
        try:
            self.spaces = spaces_of(specs, self.env, self.mapping)
        except BaseException:
            if env is None:
                self.env.close()
            raise
        self.sampler: Sampler
        self.around: Surroundings

    def _made_chance(self) -> GlobalChance:
        from steppe.runners.chance import GlobalChance  # most runs ask no mapping function

        return GlobalChance(self._stream("mapping"))

    def _stream(self, name: str) -> np.random.Generator:
        return stream(int(self._config.seed or 0), name, self._place)

    def _created(self, env: Any, context: EnvContext) -> None:
        """One env was built."""
        hook = hook_of(self._callbacks, "on_sub_environment_created")
        if hook is not None:
            index = context.vector_index
            hook(worker=self, sub_environment=env, env_context=context, env_index=index)

    @property
    def policy_ids(self) -> list[str]:
        """The policies that agents can be mapped to; a ``policy_mapping_fn`` may choose among them."""
        return list(self.mapping.ids)

    def start(
        self,
        policies: Mapping[str, Policy],
        *,
        trained: Sequence[str],
        explore: bool,
        fragment_length: int,
        complete: bool,
    ) -> None:
        """Make the sampler; the envs are reset by the first :meth:`sample`.

        Raises:
            ConfigError: episodes cannot be completed one by one in envs that step together.
        """
        if (self.env.steps_together or self._deciders) and self._config.evaluation_envs == "shared":
            raise ConfigError(
                "evaluation_envs='shared': the envs of a vector env step together, and external ones by "
                "themselves, so that evaluation would leave episodes half played to training; use 'separate'"
            )
        if complete and trained and self.env.steps_together:
            raise ConfigError(
                "batch_mode='complete_episodes': the envs of a vector env step together, so that no episode "
                "can be waited for alone; use 'truncate_episodes'"
            )
        self.around = Surroundings(self, self.env, policies)
        self.sampler = Sampler(
            self.env,
            policies,
            trained=trained,
            mapping=self.mapping,
            fragment_length=fragment_length,
            complete_episodes=complete,
            explore=explore,
            rng=self._stream("noise"),
            runner=self.worker_index,
        )
        for decider in self._deciders:
            self.sampler.driven, how = True, {"whole": complete, "evaluation": self.in_evaluation}
            decider.begin(policies, self.mapping, self._stream("decisions"), **how)
        if any(hook_of(self._callbacks, name) for name in OF_EPISODES):
            from steppe.sampling.episodes import EpisodeHooks  # most runs have none

            self.sampler.hooks = EpisodeHooks(self._callbacks, self.around, self.worker_index)

    def lend(self, runner: LocalRunner) -> None:
        """Let another runner step the envs, until this one is named again."""
        if self.observing is not None and self.observing.function is not None:
            self.observing.function.runner = runner

    def add_policy(self, id: str, policy: Policy, config: AlgorithmConfig, *, trained: bool) -> None:
        """Let agents be mapped to a further policy, by the mapping of ``config``."""
        self.spaces[id] = SpacePair(policy.observation, policy.action)
        self.mapping.ids.append(id)
        self.mapping.ask_by(config.policy_mapping_fn)
        if config.policy_mapping_fn is not None and self.chance is None:
            self.chance = self._made_chance()
        self.sampler.add_policy(id, policy, trained=trained)

    def remove_policy(self, id: str, config: AlgorithmConfig, *, trained: Sequence[str]) -> None:
        """Let a policy leave; the mapping of ``config`` says who acts for its agents from now on.

        Raises:
            ConfigError: it says nobody who could; nothing changed.
        """
        if config.policy_mapping_fn is not None and self.chance is None:
            self.chance = self._made_chance()
        before, rest = self.mapping, [one for one in self.mapping.ids if one != id]
        self.mapping = PolicyMapping(config.policy_mapping_fn, rest, self)
        try:
            with self.chance or nullcontext():
                self.sampler.remove_policy(id, self.mapping, trained)
        except BaseException:
            self.mapping = before
            raise
        del self.spaces[id]
        for decider in self._deciders:
            decider.mapping = self.mapping

    def set_weights(self, weights: Mapping[str, Weights], explore: bool | None = None) -> None:
        """Act with these from now on, and ``explore``, or as before."""
        self.sampler.explore = self.sampler.explore if explore is None else explore
        self.sampler.set_weights(weights)
        for decider in self._deciders:
            decider.set_weights(weights, self.sampler.explore)

    def weights_of(self, policy: str) -> Any:
        """What ``policy`` acts with now, as its ``load`` made it."""
        return self.sampler.weights_of(policy)

    def sample(self) -> Sequence[Sample]:
        """The next fragments: one."""
        with self.chance or nullcontext():
            sample = self.sampler.sample()
        if self.sampler.hooks is not None:
            self.sampler.hooks.sampled(sample)
        return [sample]

    def sample_episodes(self, quota: Sequence[int]) -> Sample:
        """``quota[i]`` whole episodes of env ``i``."""
        with self.chance or nullcontext():
            sample = self.sampler.sample_episodes(quota)
        if self.sampler.hooks is not None:
            self.sampler.hooks.sampled(sample)
        return sample

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function`` makes of each env, as its constructor gave it."""
        return [function(registry.user_env(env)) for env in self.env.get_sub_environments()]

    def foreach_runner(self, function: Callable[[LocalRunner], Any]) -> list[Any]:
        """What ``function`` makes of this runner, the only one."""
        return [function(self)]

    def standing(self) -> Standing:
        """One worker, in good health."""
        return Standing(self.env.health())

    def health(self) -> Mapping[str, int]:
        """Counts of what was odd about the envs, by code and leaf."""
        return self.env.health()

    def get_state(self) -> State:
        """The sampler's state, envs included."""
        own = {} if self.chance is None else self.chance.get_state()
        return {**self.sampler.get_state(), "chance": own}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`; returns what could not be restored exactly, and whose that is."""
        if self.chance is not None and state["chance"]:
            self.chance.set_state(state["chance"])
        whose = "evaluation envs" if self.in_evaluation else "training envs"
        return [f"{whose}: {note}" for note in self.sampler.set_state(state)]

    def close(self) -> None:
        """Close the envs."""
        self.env.close()
