"""Evolution strategies as a black-box optimiser of policies (Salimans et al., 2017, arXiv:1703.03864)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe.config import (
    AlgorithmConfig,
    Schedule,
    above,
    at_least,
    between,
    field_specs,
    policy_field,
    run_field,
    scheduled,
)
from steppe.config.checks import FRAGMENT
from steppe.errors import ConfigError
from steppe.learning.independent import PolicyLearner
from steppe.learning.learner import Stats
from steppe.learning.networks import arrays_of, refilled
from steppe.learning.optimizer import clipped_adam, clipped_adam_init
from steppe.learning.schedules import points
from steppe.models.catalog import make_actor
from steppe.models.distributions import Distribution
from steppe.models.encoders import norm_merge
from steppe.models.observations import norm_init
from steppe.models.sight import sight_of
from steppe.policies.actor_critic import ActorCriticPolicy, Layout
from steppe.policies.perturbed import PerturbedPolicy, direction, noise_table
from steppe.seeding import stream
from steppe.spaces import Spec, map_leaves
from steppe.types import Array, FloatArray, Rollout, SpacePair, State, Tree, Weights

_UNUSED = (
    *("share", "extra_loss", "vf_share_layers", "memory", "prev_action", "prev_reward", "framestack"),
    *("models", "action_embeddings", "autoregressive_actions"),
)
"""Settings that mean nothing here."""


@dataclass(kw_only=True, eq=False, repr=False)
class ESConfig(AlgorithmConfig):
    """Settings of ES."""

    algo_name: ClassVar[str] = "ES"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rllib": {
            "num_envs_per_env_runner": 1,
            "train_batch_size": 10_000,
            "episodes_per_batch": 1000,
            "noise_stdev": 0.02,
            "lr": 0.01,
            "fcnet_hiddens": [256, 256],
        }
    }

    num_envs_per_env_runner: int = run_field(32, section="env_runners", check=between(1, 1 << 16))
    """Copies of the env that one runner steps; an even number, so that perturbations come in pairs."""
    rollout_fragment_length: int | Literal["auto"] = run_field(1, section="env_runners", check=FRAGMENT)
    """Env steps per env, after which episodes are only finished: 1 plays one episode an env."""
    batch_mode: Literal["truncate_episodes", "complete_episodes"] = run_field(
        "complete_episodes", section="env_runners"
    )
    """Fragments end at the end of episodes, or anywhere: then episodes that an update cuts are dropped."""
    train_batch_size: int = policy_field(1000, check=at_least(1))
    """Env steps that one update needs at least."""
    episodes_per_batch: int = policy_field(64, check=at_least(2))
    """Trajectories that one update needs at least."""
    noise_stdev: float = policy_field(0.05, check=above(0))
    """Deviation of the perturbations of the parameters."""
    lr: Schedule = policy_field(0.03, check=scheduled(at_least(0)))
    """Learning rate of Adam, or a schedule [[env steps, value], ...]."""
    l2_coeff: float = policy_field(0.005, check=at_least(0))
    """Weight of the parameters' own size, which is kept small."""
    grad_clip: float | None = policy_field(None, check=above(0))
    """Largest global norm of a gradient; None does not clip."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> ESLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        specs = field_specs(type(self))
        for name in _UNUSED:
            if getattr(self, name) != specs[name].default():
                raise ConfigError(f"{self.spelt(name)} has no meaning for ES; leave it out, or use PPOConfig")
        if not self.explore:
            raise ConfigError("explore=False moves no parameters, and ES learns from that; leave it out")
        return ESLearner(
            pair,
            seed,
            lr=self.lr,
            l2_coeff=self.l2_coeff,
            deviation=self.noise_stdev,
            env_steps=self.train_batch_size,
            episodes=self.episodes_per_batch,
            grad_clip=self.grad_clip,
            normalize=self.observation_filter == "MeanStdFilter",
            critic_only=self.critic_only,
            actions=self.action_settings,
            model={
                "hiddens": self.fcnet_hiddens,
                "activation": self.fcnet_activation,
                "conv_filters": self.image_filters,
            },
        )


def centered_ranks(returns: Array) -> FloatArray:
    """Ranks of ``(n,)`` returns, from -0.5, the worst, to 0.5, the best; equal ones share theirs."""
    _, place, counts = np.unique(returns, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts + 1) / 2.0)[place]
    return (rank / max(len(returns) - 1, 1) - 0.5).astype(np.float32)


class LearnerState(NamedTuple):
    """Everything that learning changes: ``seen`` are the statistics of the next update."""

    params: Any
    opt: Any
    normalizer: Any
    seen: Any


def es_step(
    grad_clip: float | None,
    params: jax.Array,
    opt: Any,
    table: jax.Array,
    perturbations: jax.Array,
    weights: jax.Array,
    count: Any,
    hyper: tuple[Any, Any, Any],
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """One step of Adam along the directions that paid (the paper's algorithm 2).

    Args:
        grad_clip: largest norm of the gradient, or None.
        params: ``(p,)``.
        opt: of Adam.
        table: see :func:`~steppe.policies.perturbed.noise_table`.
        perturbations: ``(n,)``, as they were acted with.
        weights: ``(n,)``, what each trajectory is worth.
        count: how many of the ``n`` there are.
        hyper: learning rate, weight of the parameters' size, deviation of the perturbations.
    """
    lr, l2_coeff, deviation = hyper

    def add(i: Any, total: jax.Array) -> jax.Array:
        return total + weights[i] * direction(table, perturbations[i], len(params))

    climb = jax.lax.fori_loop(0, count, add, jnp.zeros_like(params)) / (count * deviation)
    gradient = l2_coeff * params - climb
    change, opt = clipped_adam(grad_clip).update(gradient, opt)
    norms = {"grad_norm": jnp.linalg.norm(gradient), "weights_norm": jnp.linalg.norm(params)}
    return params - lr * change, opt, norms


@lru_cache(maxsize=64)
def _compiled(spec: Spec, grad_clip: float | None) -> tuple[Any, Any]:
    """The merge of rows into statistics, and the step; shared by all policies of this structure."""
    return jax.jit(partial(norm_merge, spec)), jax.jit(partial(es_step, grad_clip))


@final
class ESLearner(PolicyLearner):
    """Learns one policy from what whole trajectories of moved parameters earned.

    Args:
        pair: spaces of the policy.
        seed: parameters are drawn from a stream of their own.
        lr: a number or a schedule.
        l2_coeff: weight of the parameters' size.
        deviation: of the perturbations.
        env_steps: that one update needs at least.
        episodes: trajectories that one update needs at least.
        grad_clip: largest norm of a gradient, or None.
        normalize: keep observation statistics.
        critic_only: keys of a Dict observation that acting does not see.
        actions: arguments of :class:`~steppe.models.distributions.Distribution` besides the space.
        model: arguments of :func:`~steppe.models.catalog.make_actor` besides spaces and source.
    """

    def __init__(
        self,
        pair: SpacePair,
        seed: int,
        *,
        lr: Schedule,
        l2_coeff: float,
        deviation: float,
        env_steps: int,
        episodes: int,
        grad_clip: float | None,
        normalize: bool,
        critic_only: list[str],
        actions: dict[str, Any],
        model: dict[str, Any],
    ) -> None:
        sight, distribution = sight_of(pair, critic_only, False), Distribution(pair.action, **actions)
        actor = make_actor(
            sight.actor, distribution, stream(seed, "parameters"), masked=sight.masked, **model
        )
        params, normalizer = Layout.of(actor).ravel(actor), norm_init(sight.actor) if normalize else ()
        if len(params) > len(noise_table()) // 2:
            raise ConfigError(
                f"ES moves at most {len(noise_table()) // 2:,} parameters, and the network has "
                f"{len(params):,}; make it smaller (fcnet_hiddens, conv_filters), or use PPOConfig"
            )
        layout = Layout.of((actor, normalizer))
        plain = ActorCriticPolicy(sight, distribution, layout)
        moved = PerturbedPolicy(plain, sight, distribution, layout, len(params), deviation)
        self.policy, self._table = moved, moved.table
        self.state = LearnerState(params, clipped_adam_init(params), normalizer, normalizer)
        self._merge, self._step = _compiled(sight.actor, grad_clip)
        self._lr, self._rest = points(lr), (np.float32(l2_coeff), np.float32(deviation))
        self._env_steps, self._episodes, self._about = env_steps, episodes, str(actor)
        self._version = self._sampled = 0
        # Perturbations and returns of trajectories that count; of those under way, by runner, env, episode,
        # agent and perturbation, what they have earned so far and whether older weights had a part in it.
        self._over: list[tuple[int, float]] = []
        self._open: dict[tuple[int, ...], tuple[float, bool]] = {}

    def add(self, rollout: Rollout) -> None:
        """Add up what trajectories earned; those that are over under the weights they began with count."""
        self._sampled += rollout.env_steps
        row, lane = np.nonzero(rollout.acted)
        if not len(row):
            return
        if self.state.seen:
            rows = 1 << (len(rollout.filled) - 1).bit_length()  # padded: else every length compiles anew
            obs, acted = map_leaves(partial(_padded, rows), rollout.obs), _padded(rows, rollout.acted)
            self.state = self.state._replace(seen=self._merge(self.state.seen, obs, acted))
        here, after = (row, lane), (row + 1, lane)
        if np.isnan(rollout.logp[here]).any():
            raise ConfigError(
                f"policy {rollout.policy!r}: an action was chosen elsewhere, and ES learns from its own "
                "alone: leave off_policy_actions out, or use DQNConfig, SACConfig or TD3Config"
            )
        who = (rollout.env, rollout.episode, rollout.agent, rollout.action["perturbation"])
        ids, index = np.unique(np.stack([column[here] for column in who], 1), axis=0, return_inverse=True)
        final = rollout.terminated[after] | rollout.truncated[after]
        older = rollout.version[here] != self._version
        earned, over, mixed = (
            np.bincount(index.ravel(), column).tolist() for column in (rollout.reward[after], final, older)
        )
        for id, reward, ends, other in zip(ids.tolist(), earned, over, mixed, strict=True):
            key = (rollout.runner, *id)
            before, stale = self._open.pop(key, (0.0, False))
            total, stale = before + reward, stale or other > 0
            if not ends:
                self._open[key] = total, stale
            elif not stale:
                self._over.append((key[-1], total))

    def update(self, env_steps: int) -> Stats | None:
        """One step, once there are enough env steps and trajectories; {} where nobody has acted in these."""
        if self._sampled < self._env_steps or len(self._over) < self._episodes:
            idle = self._sampled >= self._env_steps and not (self._over or self._open)
            self._sampled = 0 if idle else self._sampled
            return {} if idle else None
        batch: dict[str, Any] = {
            "perturbations": np.array([code for code, _ in self._over], np.int32),
            "returns": np.array([earned for _, earned in self._over]),
        }
        if self.on_batch is not None:
            self.on_batch(batch)
        count, returns = len(self._over), batch["returns"]
        padded = partial(_padded, 1 << (count - 1).bit_length())
        given = padded(batch["perturbations"]), padded(centered_ranks(returns)), np.int32(count)
        lr = np.float32(np.interp(env_steps, *self._lr))
        now = self.state.params, self.state.opt, self._table
        params, opt, norms = self._step(*now, *given, (lr, *self._rest))
        self.state = LearnerState(params, opt, self.state.seen, self.state.seen)
        self._renew()
        told = {"episodes": count, "return_mean": returns.mean(), "return_max": returns.max(), "cur_lr": lr}
        return {name: float(value) for name, value in (told | norms).items()}

    def values(self, obs: Tree) -> FloatArray:
        """There is no critic.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("ES has no critic, so observations have no values; use PPOConfig, which has one")

    def publish(self) -> Weights:
        """The parameters that are moved, and the statistics."""
        normalizer = tuple(np.asarray(a) for a in self.state.normalizer)
        return Weights(self._version, np.asarray(self.state.params), normalizer)

    def get_weights(self) -> FloatArray:
        """The parameters, flat."""
        return np.array(self.state.params, np.float32)

    def set_weights(self, weights: Array) -> None:
        """Replace the parameters; the optimizer keeps its moments, and running trajectories do not count."""
        self.state = self.state._replace(params=np.array(weights, np.float32))
        self._renew()

    def _renew(self) -> None:
        """Other parameters act from now on: what began with the old ones counts no more."""
        self._version += 1
        self._over, self._sampled = [], 0
        self._open = {key: (earned, True) for key, (earned, _) in self._open.items()}

    def summary(self) -> str:
        """Network and parameter count."""
        return f"{len(self.state.params)} parameters\n{self._about}"

    def get_state(self) -> State:
        """Parameters, optimizer, statistics, counters, and what trajectories earned so far."""
        return {
            "arrays": arrays_of(self.state),
            "counters": [self._version, self._sampled],
            "over": [list(one) for one in self._over],
            "open": [[*key, *earned] for key, earned in self._open.items()],
        }

    def checked(self, state: State) -> LearnerState:
        """The arrays in their places."""
        return refilled(self.state, state["arrays"])

    def set_state(self, state: State, checked: LearnerState) -> None:
        """Go on from ``state``."""
        self.state = checked
        self._version, self._sampled = (int(value) for value in state["counters"])
        self._over = [(int(code), float(earned)) for code, earned in state["over"]]
        self._open = {
            tuple(map(int, key)): (float(earned), bool(stale)) for *key, earned, stale in state["open"]
        }


def _padded(rows: int, column: Array) -> Array:
    """``column`` with zeros behind it, up to so many rows."""
    return np.concatenate([column, np.zeros((rows - len(column), *column.shape[1:]), column.dtype)])
