"""Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steppe import returns
from steppe.config import AlgorithmConfig, Schedule, above, at_least, between, policy_field, scheduled
from steppe.errors import CheckpointError, ConfigError
from steppe.learning.learner import Learner, Stats
from steppe.learning.minibatches import FragmentQueue, shuffled
from steppe.learning.schedules import value_at
from steppe.models.catalog import ActorCritic, make_actor_critic
from steppe.models.distributions import Distribution
from steppe.models.encoders import norm_init, norm_merge, normalize, normalized_leaves
from steppe.policies.actor_critic import ActorCriticPolicy, Layout
from steppe.seeding import stream
from steppe.spaces import Spec
from steppe.types import Array, FloatArray, Rollout, SpacePair, State, Weights


@dataclass(kw_only=True, eq=False, repr=False)
class PPOConfig(AlgorithmConfig):
    """Settings of PPO."""

    algo_name: ClassVar[str] = "PPO"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rllib": {
            "num_envs_per_env_runner": 1,
            "lr": 5e-5,
            "train_batch_size": 4000,
            "minibatch_size": 128,
            "num_epochs": 30,
            "lambda_": 1.0,
            "clip_param": 0.3,
            "vf_clip_param": 10.0,
            "vf_loss_coeff": 1.0,
            "kl_coeff": 0.2,
            "kl_target": 0.01,
            "grad_clip": None,
            "fcnet_hiddens": [256, 256],
            "observation_filter": "NoFilter",
            "reward_scale": "none",
        }
    }

    lambda_: float = policy_field(0.95, check=between(0, 1), alias="lambda")
    """GAE's weight between one-step errors (0) and whole returns (1)."""
    num_epochs: int = policy_field(10, check=at_least(1))
    """Passes over each batch."""
    minibatch_size: int = policy_field(256, check=at_least(1))
    """Rows of one gradient step."""
    clip_param: float = policy_field(0.2, check=above(0))
    """The probability ratio is clipped to 1 - this ... 1 + this."""
    vf_loss_coeff: float = policy_field(0.5, check=at_least(0))
    """Weight of the value loss."""
    vf_clip_param: float | None = policy_field(None, check=above(0))
    """Largest squared value error that still has a gradient; None does not clip."""
    entropy_coeff: Schedule = policy_field(0.0, check=scheduled(at_least(0)))
    """Weight of the entropy bonus, or a schedule [[env steps, value], ...]."""
    kl_coeff: float = policy_field(0.0, check=at_least(0))
    """Initial weight of the penalty on the divergence from the policy that acted; adapted to kl_target."""
    kl_target: float = policy_field(0.01, check=above(0))
    """The divergence that kl_coeff is adapted to."""
    kl_stop: float | None = policy_field(None, check=above(0))
    """No further epoch once an epoch's mean divergence exceeds this; None never stops early."""
    reward_scale: Literal["running", "none"] = policy_field("running")
    """"running" divides rewards by the running deviation of the discounted return; "none" leaves them."""

    def make_learner(self, policies: Mapping[str, SpacePair]) -> PPOLearner:
        """The learner of these policies."""
        return PPOLearner({id: (self, pair) for id, pair in policies.items()}, int(self.seed or 0))


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    clip: Any
    vf_coeff: Any
    vf_clip: Any
    entropy_coeff: Any
    kl_coeff: Any
    kl_stop: Any
    gamma: Any
    lam: Any


class LearnerState(NamedTuple):
    """Everything that learning changes.

    ``params`` is flat; ``reward_stats`` holds count, mean and sum of squared deviations of the discounted
    return, ``carry`` that return in each lane.
    """

    params: Any
    opt: Any
    normalizer: Any
    reward_stats: Any
    carry: Any


class Static(NamedTuple):
    """What the compiled update is keyed by."""

    observation: Spec
    distribution: Distribution
    layout: Layout
    minibatch: int
    grad_clip: float | None
    scale_rewards: bool


def ppo_loss(
    model: ActorCritic, distribution: Distribution, rows: Mapping[str, Any], hyper: Hyper
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped surrogate with value loss and entropy bonus (equations 7 and 9 of the paper).

    Args:
        model: for one observation.
        distribution: of the actions.
        rows: obs, action, logp, advantage, target, and weight (1 where a row counts); ``(n, ...)`` each.
        hyper: coefficients.

    Returns:
        The loss, and its parts averaged over the rows that count.
    """
    params, value = jax.vmap(model)(rows["obs"])
    log_ratio = distribution.logp(params, rows["action"]) - rows["logp"]
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - hyper.clip, 1.0 + hyper.clip)
    gain = jnp.minimum(ratio * rows["advantage"], clipped * rows["advantage"])
    vf_error = jnp.minimum((value - rows["target"]) ** 2, hyper.vf_clip)
    entropy = distribution.entropy(params)
    kl = ratio - 1.0 - log_ratio  # Schulman's estimator: unbiased, never negative
    weight, total = rows["weight"], jnp.maximum(rows["weight"].sum(), 1.0)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(weight > 0, x, 0.0).sum() / total

    parts = {
        "policy_loss": -mean(gain),
        "vf_loss": mean(vf_error),
        "entropy": mean(entropy),
        "kl": mean(kl),
        "clip_fraction": mean(jnp.abs(ratio - 1.0) > hyper.clip),
    }
    loss = (
        parts["policy_loss"]
        + hyper.vf_coeff * parts["vf_loss"]
        - hyper.entropy_coeff * parts["entropy"]
        + hyper.kl_coeff * parts["kl"]
    )
    return loss, {**parts, "total_loss": loss}


def _optimizer(static: Static) -> optax.GradientTransformation:
    clip = [] if static.grad_clip is None else [optax.clip_by_global_norm(static.grad_clip)]
    return optax.chain(*clip, optax.scale_by_adam(eps=1e-5))


def _scaled_rewards(
    state: LearnerState, batch: Mapping[str, Any], outcome: jax.Array, gamma: Any
) -> tuple[jax.Array, Any, jax.Array]:
    """Rewards divided by the running deviation of the discounted return (Engstrom et al., 2020)."""
    final = batch["terminated"] | batch["truncated"]

    def step(total: jax.Array, row: Any) -> tuple[jax.Array, jax.Array]:
        reward, counts, ends = row
        total = jnp.where(counts, gamma * total + reward, total)
        return jnp.where(ends, 0.0, total), total

    carry, discounted = jax.lax.scan(step, state.carry, (batch["reward"], outcome, final))
    count, mean, m2 = state.reward_stats
    n = outcome.sum().astype(jnp.float32)
    own = jnp.where(outcome, discounted, 0.0).sum() / jnp.maximum(n, 1.0)
    own_m2 = jnp.where(outcome, (discounted - own) ** 2, 0.0).sum()
    total, delta = count + n, own - mean
    merged = (
        total,
        mean + delta * n / jnp.maximum(total, 1.0),
        m2 + own_m2 + delta**2 * count * n / jnp.maximum(total, 1.0),
    )
    deviation = jnp.sqrt(merged[2] / jnp.maximum(total, 1.0) + 1e-8)
    return batch["reward"] / jnp.maximum(deviation, 1e-4), merged, carry


@partial(jax.jit, static_argnums=0)
def _update(
    static: Static,
    state: LearnerState,
    batch: Mapping[str, Any],
    order: jax.Array,
    count: jax.Array,
    continues: jax.Array,
    hyper: Hyper,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """All epochs of one batch in one compiled call.

    ``order (epochs, capacity)`` lists the acted rows anew for each epoch, ``count`` says how many there are:
    the number of minibatches is a traced loop bound, so time follows the acted rows and shapes do not.
    """
    optimizer, size = _optimizer(static), min(static.minibatch, order.shape[1])
    acted = returns.acted(batch["terminated"], batch["truncated"], batch["filled"])
    merged = state.normalizer
    first = jnp.bool_(False)
    stats = state.normalizer
    obs = batch["obs"]
    if state.normalizer:
        merged = norm_merge(static.observation, state.normalizer, obs, acted)
        # A first batch was acted by a policy that is uniform by construction: with its statistics known,
        # its rows are normalised by them, and their ratios start from the policy as it then is.
        first = state.normalizer[0] == 0
        stats = jax.tree.map(partial(jnp.where, first), merged, state.normalizer)
        obs = normalize(static.observation, stats, obs)
    state = state._replace(carry=jnp.where(continues, state.carry, 0.0))
    reward, reward_stats, carry = batch["reward"], state.reward_stats, state.carry
    if static.scale_rewards:
        outcome = jnp.concatenate([jnp.zeros_like(acted[:1]), acted[:-1]])
        reward, reward_stats, carry = _scaled_rewards(state, batch, outcome, hyper.gamma)

    flatten = partial(jax.tree.map, lambda a: a.reshape(-1, *a.shape[2:]))
    rows = {"obs": flatten(obs), "action": flatten(batch["action"])}
    model = static.layout.unravel(state.params)
    params, value = jax.vmap(model)(rows["obs"])
    logp = jnp.where(first, static.distribution.logp(params, rows["action"]), batch["logp"].reshape(-1))
    advantage, target = returns.gae(
        reward,
        value.reshape(acted.shape),
        batch["terminated"],
        batch["truncated"],
        batch["filled"],
        gamma=hyper.gamma,
        lam=hyper.lam,
    )
    total = jnp.maximum(count, 1)
    mean = jnp.where(acted, advantage, 0.0).sum() / total
    spread = jnp.sqrt(jnp.where(acted, (advantage - mean) ** 2, 0.0).sum() / total)
    rows |= {
        "logp": logp,
        "advantage": ((advantage - mean) / (spread + 1e-8)).reshape(-1),
        "target": target.reshape(-1),
    }
    minibatches = jnp.maximum((count + size // 2) // size, 1)

    def step(i: jax.Array, carry: Any) -> Any:
        epoch, params, opt, sums = carry
        index = jax.lax.dynamic_slice(order, (epoch, i * size), (1, size))[0]
        part = jax.tree.map(lambda a: a[index], rows)
        part["weight"] = ((i * size + jnp.arange(size) < count) | (count >= size)).astype(jnp.float32)

        def loss(flat: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return ppo_loss(static.layout.unravel(flat), static.distribution, part, hyper)

        gradient, parts = jax.grad(loss, has_aux=True)(params)
        parts["grad_norm"] = jnp.linalg.norm(gradient)
        change, opt = optimizer.update(gradient, opt)
        return epoch, params - hyper.lr * change, opt, jax.tree.map(jnp.add, sums, parts)

    names = ("policy_loss", "vf_loss", "entropy", "kl", "clip_fraction", "total_loss", "grad_norm")
    zero = {name: jnp.float32(0.0) for name in names}

    def epoch_step(carry: Any) -> Any:
        epoch, params, opt, sums, _ = carry
        before = sums["kl"]
        _, params, opt, sums = jax.lax.fori_loop(0, minibatches, step, (epoch, params, opt, sums))
        return epoch + 1, params, opt, sums, (sums["kl"] - before) / minibatches

    def goes_on(carry: Any) -> jax.Array:
        return (carry[0] < order.shape[0]) & (carry[4] <= hyper.kl_stop)

    start = (jnp.int32(0), state.params, state.opt, zero, jnp.float32(0.0))
    epochs, params, opt, sums, last_kl = jax.lax.while_loop(goes_on, epoch_step, start)
    new = LearnerState(params, opt, merged, reward_stats, carry)
    fine = jnp.isfinite(params).all() & jnp.isfinite(sums["total_loss"])
    new = jax.tree.map(partial(jnp.where, fine), new, state)
    old_value = jnp.where(acted, value.reshape(acted.shape), 0.0)
    residual = jnp.where(acted, target - old_value, 0.0)
    stats_out = {name: total / (epochs * minibatches) for name, total in sums.items()}
    stats_out |= {
        "vf_explained_var": 1.0 - _variance(residual, acted) / jnp.maximum(_variance(target, acted), 1e-8),
        "epochs": epochs,
        "last_kl": last_kl,
        "update_skipped": 1 - fine.astype(jnp.int32),
    }
    return new, stats_out


def _variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    n = jnp.maximum(mask.sum(), 1)
    mean = jnp.where(mask, x, 0.0).sum() / n
    return jnp.where(mask, (x - mean) ** 2, 0.0).sum() / n


@final
class PPOLearner(Learner):
    """Learns each of its policies from batches of their own rows.

    Args:
        policies: config and spaces by policy id.
        seed: of the run; parameters and minibatches are drawn from streams of their own.
    """

    def __init__(self, policies: Mapping[str, tuple[PPOConfig, SpacePair]], seed: int) -> None:
        self._owned = {
            id: _Owned(id, config, pair, seed + index)
            for index, (id, (config, pair)) in enumerate(policies.items())
        }

    @property
    def policies(self) -> Mapping[str, ActorCriticPolicy]:
        """What runners act with."""
        return {id: own.policy for id, own in self._owned.items()}

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Queue the fragments."""
        for rollout in rollouts:
            self._owned[rollout.policy].queue.add(rollout)

    def update(self, env_steps: int) -> dict[str, Stats] | None:
        """One update of every policy whose batch is full."""
        full = {id: own for id, own in self._owned.items() if own.queue.full}
        return {id: own.update(env_steps) for id, own in full.items()} or None

    def publish(self) -> dict[str, Weights]:
        """The newest actors and observation statistics."""
        return {id: own.publish() for id, own in self._owned.items()}

    def get_weights(self) -> dict[str, FloatArray]:
        """Parameters of actor and critic, flat."""
        return {id: own.get_weights() for id, own in self._owned.items()}

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Replace parameters; all of the given ones or none."""
        for id, values in weights.items():
            if id not in self._owned:
                raise ConfigError(f"no policy {id!r} to set weights of; there are {sorted(self._owned)}")
            if np.shape(values) != (len(self._owned[id].get_weights()),):
                raise ConfigError(
                    f"weights of {id!r} have shape {np.shape(values)}, "
                    f"not ({len(self._owned[id].get_weights())},)"
                )
        for id, values in weights.items():
            self._owned[id].set_weights(values)

    def summary(self) -> str:
        """Networks and parameter counts."""
        return "\n".join(own.summary() for own in self._owned.values())

    def get_state(self) -> State:
        """Per policy: parameters, optimizer, statistics, stream, queue and counters."""
        return {id: own.get_state() for id, own in self._owned.items()}

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`; all policies or none."""
        if set(state) != set(self._owned):
            raise CheckpointError(f"the checkpoint holds policies {sorted(state)}, not {sorted(self._owned)}")
        states = {id: own.checked(state[id]) for id, own in self._owned.items()}
        for id, own in self._owned.items():
            own.set_state(state[id], states[id])


class _Owned:
    """One policy of the learner: its networks, its state, its batches."""

    def __init__(self, id: str, config: PPOConfig, pair: SpacePair, seed: int) -> None:
        self._id, self._config = id, config
        distribution = Distribution(
            pair.action,
            squash=config.squash_actions,
            normalize=config.normalize_actions,
            clip=config.clip_actions,
        )
        self._model = make_actor_critic(
            pair.observation,
            distribution,
            stream(seed, "parameters"),
            hiddens=config.fcnet_hiddens,
            activation=config.fcnet_activation,
            share_layers=config.vf_share_layers,
            conv_filters=config.conv_filters,
            free_log_std=config.free_log_std,
        )
        self._rng = stream(seed, "minibatches")
        filtered = config.observation_filter == "MeanStdFilter" and normalized_leaves(pair.observation)
        normalizer = norm_init(pair.observation) if filtered else ()
        self._actor = Layout.of(self._model.actor)
        self.policy = ActorCriticPolicy(
            pair.observation, distribution, Layout.of((self._model.actor, normalizer))
        )
        self._static = Static(
            pair.observation,
            distribution,
            Layout.of(self._model),
            min(config.minibatch_size, config.train_batch_size),
            config.grad_clip,
            config.reward_scale == "running",
        )
        params = self._static.layout.ravel(self._model)
        self.queue = FragmentQueue(config.train_batch_size)
        zero = np.zeros_like(params)
        scale = tuple(np.zeros((), np.float32) for _ in range(3))
        adam = optax.ScaleByAdamState(count=np.zeros((), np.int32), mu=zero, nu=zero)
        opt = (adam,) if config.grad_clip is None else (optax.EmptyState(), adam)
        self._state = LearnerState(params, opt, normalizer, scale, np.zeros(0, np.float32))
        self._capacity = self._version = self._skipped = 0
        self._kl_coeff = config.kl_coeff

    def update(self, env_steps: int) -> Stats:
        config = self._config
        batch, acted, continues = self.queue.take()
        size = self._static.minibatch
        needed = -(-int(acted.sum()) // size) * size
        self._capacity = max(self._capacity, needed, size)
        order, count = shuffled(self._rng, acted, config.num_epochs, self._capacity)
        carry = np.zeros(len(continues), np.float32)
        carry[: len(self._state.carry)] = self._state.carry
        hyper = self._hyper(env_steps)
        self._state, parts = _update(
            self._static, self._state._replace(carry=carry), batch, order, np.int32(count), continues, hyper
        )
        stats = {name: float(value) for name, value in jax.device_get(parts).items()}
        self._version += 1
        self._skipped += int(stats.pop("update_skipped"))
        if config.kl_coeff:  # section 4 of the paper
            factor = 1.5 if stats["kl"] > 2.0 * config.kl_target else 0.5 if 2.0 * stats["kl"] < config.kl_target else 1.0
            self._kl_coeff *= factor
        return {
            **stats,
            "cur_lr": float(hyper.lr),
            "entropy_coeff": float(hyper.entropy_coeff),
            "cur_kl_coeff": self._kl_coeff,
            "updates_skipped": float(self._skipped),
            "rows": float(count),
        }

    def _hyper(self, env_steps: int) -> Hyper:
        config, inf = self._config, float("inf")
        values = Hyper(
            lr=value_at(config.lr, env_steps),
            clip=config.clip_param,
            vf_coeff=config.vf_loss_coeff,
            vf_clip=inf if config.vf_clip_param is None else config.vf_clip_param,
            entropy_coeff=value_at(config.entropy_coeff, env_steps),
            kl_coeff=self._kl_coeff,
            kl_stop=inf if config.kl_stop is None else config.kl_stop,
            gamma=config.gamma,
            lam=config.lambda_,
        )
        return Hyper(*(np.float32(value) for value in values))

    def get_weights(self) -> FloatArray:
        return np.array(self._state.params)

    def set_weights(self, weights: Array) -> None:
        self._state = self._state._replace(params=np.array(weights, np.float32))
        self._version += 1

    def publish(self) -> Weights:
        model = self._static.layout.unravel(np.asarray(self._state.params))
        normalizer = tuple(np.asarray(a) for a in jax.tree.leaves(self._state.normalizer))
        return Weights(self._version, self._actor.ravel(model.actor), normalizer)

    def summary(self) -> str:
        total, actor = self._static.layout.size, self._actor.size
        return f"{self._id}: {total} parameters, {actor} of them acting\n{self._model}"

    def get_state(self) -> State:
        return {
            "arrays": [np.asarray(leaf) for leaf in jax.tree.leaves(self._state)],
            "rng": self._rng.bit_generator.state,
            "queue": self.queue.get_state(),
            "version": self._version,
            "skipped": self._skipped,
            "capacity": self._capacity,
            "kl_coeff": self._kl_coeff,
        }

    def checked(self, state: State) -> LearnerState:
        """The learner state in ``state``, if it fits this architecture."""
        own, treedef = jax.tree.flatten(self._state)
        arrays: list[Array] = state["arrays"]
        pairs = zip(own[:-1], arrays[:-1], strict=False)  # the last, per lane, has any length
        if len(own) != len(arrays) or any(np.shape(a) != np.shape(b) for a, b in pairs):
            mine, theirs = ([np.shape(a) for a in leaves] for leaves in (own, arrays))
            raise CheckpointError(
                f"policy {self._id}: the checkpoint's arrays {theirs} do not fit this network's {mine}; "
                "build with the settings that it was trained with"
            )
        state_: LearnerState = jax.tree.unflatten(treedef, arrays)
        return state_

    def set_state(self, state: State, learner_state: LearnerState) -> None:
        self._state = learner_state
        self._rng.bit_generator.state = state["rng"]
        self.queue.set_state(state["queue"])
        self._version, self._skipped = int(state["version"]), int(state["skipped"])
        self._capacity, self._kl_coeff = int(state["capacity"]), float(state["kl_coeff"])
