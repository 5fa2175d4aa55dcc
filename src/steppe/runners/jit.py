"""The runner of envs written in JAX: a whole fragment is sampled in one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, final

import jax
import numpy as np

from steppe.config import AlgorithmConfig, field_specs
from steppe.errors import ConfigError, EnvError
from steppe.jaxenvs.protocol import JaxEnv, checked
from steppe.jaxenvs.rollouts import Carry, Plan, begin, rollout
from steppe.models.actions import Actions
from steppe.policies.actor_critic import ActorCriticPolicy
from steppe.policies.q import QPolicy
from steppe.runners.policies import specs_of
from steppe.sampling.callbacks import OF_EPISODES, Callbacks, hook_of
from steppe.sampling.metrics import EpisodeRecord, Sample, Standing
from steppe.seeding import env_seed
from steppe.spaces import leaves, map_leaves, narrowed, spec_of, tupled, zeros
from steppe.types import SINGLE_AGENT, Policy, Rollout, SpacePair, State, Weights

if TYPE_CHECKING:
    from steppe.runners.jit_evaluation import JitEvaluator

_ONE_BY_ONE = (
    *("num_env_runners", "remote_worker_envs", "on_env_error", "batch_mode", "evaluation_envs"),
    *("policy_mapping_fn", "observation_fn", "add_agent_id", "action_mask"),
)
"""Settings that only have a meaning where envs are."""
_OF_ITS_OWN = "(a memory, stacked observations, added noise, a distribution of your own)"
_AS_GYMNASIUM = (
    "compiled rollouts do not know {what}; leave it out, or let the env be stepped one by one, as "
    "Gymnasium's are: env=lambda env_config: {env}(**env_config)"
)


@final
class Copies:
    """The copies of one env, which none of them is by itself.

    Attributes:
        spaces: of its only agent.
        num_envs: how many copies there are.
    """

    def __init__(self, env: JaxEnv, num_envs: int) -> None:
        self._env, self.num_envs = env, num_envs
        self.spaces = (SpacePair(spec_of(env.observation_space), spec_of(env.action_space)),)

    def get_sub_environments(self) -> list[Any]:
        """The env, which stands for all of its copies."""
        return [self._env]


@final
class JitRunner:
    """Steps many copies of an env written in JAX, with one policy; see :class:`LocalRunner`.

    A fragment ends, as elsewhere, once all copies together have taken its steps. A copy whose episode is over
    takes none until its next row, which is the first of the next episode.

    Args:
        config: of the run; its seed is set.
        env: of which there are ``num_envs_per_env_runner`` copies.
        callbacks: of the run; none of them may be told of single envs and episodes.

    Attributes:
        env: the copies.
        spaces: of the policy, by id.
        worker_index: 0.
        in_evaluation: False.
    """

    def __init__(self, config: AlgorithmConfig, env: JaxEnv, *, callbacks: Sequence[Callbacks] = ()) -> None:
        self.worker_index, self.in_evaluation, self._config = 0, False, config
        self._name = type(env).__name__
        self._check(config)
        self.env, self._env = Copies(env, config.num_envs_per_env_runner), env
        self._params = env.default_params
        self._state = checked(env, self._params)
        self.spaces = dict.fromkeys(specs_of(config), self.env.spaces[0])
        for name in ("on_sub_environment_created", *OF_EPISODES):
            if hook_of(callbacks, name) is not None:
                raise self._unknown(f"the hook {name}")
        self._key: Any
        self._carry: Carry | None
        self.begin_anew(env_seed(int(config.seed or 0), 0, 0))
        self._sequence = 0
        self._weights: Any = None
        self._version, self._id = 0, ""
        self._load: Callable[[Weights], Any]
        self._begin: Callable[..., Carry]
        self._rollout: Callable[..., Any]

    def _unknown(self, what: str) -> ConfigError:
        return ConfigError(f"{self._name}: " + _AS_GYMNASIUM.format(what=what, env=self._name))

    def _check(self, config: AlgorithmConfig) -> None:
        """Refuse what needs to see single steps."""
        if len(specs_of(config)) > 1:
            raise self._unknown("several policies")
        if config.algo_name == "ES":  # its perturbations are of whole episodes
            raise self._unknown("ES")
        usual = field_specs(AlgorithmConfig)
        for name in _ONE_BY_ONE:
            if getattr(config, name) != usual[name].default():
                raise self._unknown(config.spelt(name))

    def start(
        self,
        policies: Mapping[str, Policy],
        *,
        trained: Sequence[str],
        explore: bool,
        fragment_length: int,
        complete: bool,
    ) -> None:
        """Compile for a policy; the envs are reset by the first :meth:`sample`.

        Raises:
            ConfigError: the policy remembers, or acts otherwise than by one compiled function.
        """
        self._id = next(iter(policies))
        policy: Any = policies[self._id]
        if not isinstance(policy, ActorCriticPolicy | QPolicy) or "own" in policy.options:
            raise self._unknown(f"a {type(policy).__name__} {_OF_ITS_OWN}")
        if policy.acting is not policy.observation:
            raise self._unknown("critic_only")
        wanted = narrowed(policy.observation, zeros(policy.observation, 1))
        plan = Plan(
            env=self._env,
            envs=self.env.num_envs,
            steps=fragment_length * self.env.num_envs,
            limit=self._config.max_episode_steps,
            dtypes=map_leaves(lambda a: jax.dtypes.canonicalize_dtype(a.dtype), wanted),
            state=self._state,
            act=policy.sample if explore else lambda weights, obs, _: policy.mode(weights, obs),
            noise=policy.noise_size,
            actions=Actions(policy.action, **policy.options),
        )
        self._load = policy.load
        self._begin, self._rollout = jax.jit(partial(begin, plan)), jax.jit(partial(rollout, plan))

    def begin_anew(self, seed: int) -> None:
        """Let the next fragment begin with the first rows of episodes 0; all chance comes from ``seed``."""
        self._key, self._carry = np.asarray(jax.random.key_data(jax.random.key(seed))), None

    def set_weights(self, weights: Mapping[str, Weights]) -> None:
        """Act with these from now on."""
        self._weights, self._version = self._load(weights[self._id]), weights[self._id].version

    def weights_of(self, policy: str) -> Any:
        """What the policy acts with now, as its ``load`` made it."""
        return self._weights

    def sample(self) -> Sequence[Sample]:
        """The next fragments: one.

        Raises:
            EnvError: the env made a number that is not finite.
        """
        began = perf_counter()
        if self._carry is None:
            self._carry = self._begin(self._params, self._key)
        self._carry, count, columns = self._rollout(self._params, self._weights, self._carry)
        made: Any = jax.tree.map(partial(_rows, int(count) + 1), columns)
        row = made.row
        self._check_finite(made)
        final = row.terminated | row.truncated
        env_steps = int(np.count_nonzero(~final[:-1]))
        like = np.zeros(final.shape, np.int32)
        self._sequence += 1
        fragment = Rollout(
            obs=row.obs,
            action=made.action,
            logp=made.logp,
            reward=row.reward,
            terminated=row.terminated,
            truncated=row.truncated,
            filled=np.ones(final.shape, np.bool_),
            version=like + np.int32(self._version),
            env=np.broadcast_to(np.arange(self.env.num_envs, dtype=np.int32), final.shape).copy(),
            agent=like,
            episode=row.episode,
            t=row.t,
            policy=self._id,
            runner=self.worker_index,
            incarnation=0,
            sequence=self._sequence - 1,
            lane_continues=~final[-1],
            agents=(SINGLE_AGENT,),
            env_steps=env_steps,
        )
        reward = float(row.reward[1:].sum(dtype=np.float64))
        return [
            Sample([fragment], self._ended(made, final), env_steps, env_steps, reward, perf_counter() - began)
        ]

    def _ended(self, made: Any, final: Any) -> list[EpisodeRecord]:
        """The episodes whose last rows are here, in the order of time; row 0 was in the fragment before."""
        i, env = np.nonzero(final[1:])
        columns = (made.row.episode, made.row.t, made.row.earned)
        ended = zip(env.tolist(), *(column[1:][i, env].tolist() for column in columns), strict=True)
        runner, agent, policy = self.worker_index, SINGLE_AGENT, self._id
        return [
            EpisodeRecord(env, episode, runner, length, earned, {agent: earned}, {policy: [earned]})
            for env, episode, length, earned in ended
        ]

    def _check_finite(self, made: Any) -> None:
        parts = [("E201", "reward", made.row.reward)] + [("E104", "obs", a) for a in leaves(made.row.obs)]
        for code, leaf, column in parts:
            if column.dtype.kind == "f" and not np.isfinite(column.sum()) and not np.isfinite(column).all():
                i, env = np.argwhere(~np.isfinite(column))[0].tolist()[:2]
                step, episode = int(made.row.t[i, env]), int(made.row.episode[i, env])
                raise EnvError(
                    code,
                    f"{leaf} is NaN or infinite; find the division or overflow, also in branches that "
                    "jnp.where does not take",
                    env_class=self._name,
                    env=env,
                    episode=episode,
                    step=step,
                    leaf=leaf,
                )

    @property
    def mapping(self) -> Any:
        """There is one policy only: nobody else can join.

        Raises:
            ConfigError: always.
        """
        raise self._unknown("policies that join")

    def foreach_env(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function`` makes of the env, which stands for all of its copies."""
        return [function(self._env)]

    def foreach_runner(self, function: Callable[[JitRunner], Any]) -> list[Any]:
        """What ``function`` makes of this runner, the only one."""
        return [function(self)]

    def standing(self) -> Standing:
        """One worker, in good health."""
        return Standing(self.health())

    def health(self) -> Mapping[str, int]:
        """Nothing: what is odd raises."""
        return {}

    def get_state(self) -> State:
        """Of all copies."""
        copies = [] if self._carry is None else [np.asarray(a) for a in jax.tree.leaves(self._carry)]
        return {"copies": copies, "sequence": self._sequence}

    def set_state(self, state: State) -> list[str]:
        """Go on from :meth:`get_state`, exactly."""
        self._sequence, self._carry = int(state["sequence"]), None
        if state["copies"]:
            like = jax.eval_shape(self._begin, self._params, self._key)
            saved = map_leaves(np.asarray, tupled(state["copies"]))
            shapes = [tuple(a.shape) for a in jax.tree.leaves(like)]
            if [np.shape(a) for a in saved] != shapes:
                return [f"{self._name}: its state has other shapes by now: episodes begin anew"]
            self._carry = jax.tree.unflatten(jax.tree.structure(like), list(saved))
        return []

    def close(self) -> None:
        """Nothing is open."""


def _rows(count: int, column: Any) -> Any:
    """The first rows, in memory of their own: others may change them."""
    return np.asarray(column)[:count].copy()


def evaluator_beside(
    runner: Any, config: AlgorithmConfig, policies: Mapping[str, Policy]
) -> JitEvaluator | None:
    """What evaluates by the same means as a runner; None where that is another one, or the env is to be."""
    if not isinstance(runner, JitRunner) or not config.evaluation_config.keys() <= {"explore"}:
        return None
    from steppe.runners.jit_evaluation import JitEvaluator

    (env,) = runner.env.get_sub_environments()
    return JitEvaluator(config, env, policies)
