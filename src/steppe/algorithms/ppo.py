"""Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe import returns
from steppe.config import AlgorithmConfig, Schedule, above, at_least, between, policy_field, scheduled
from steppe.learning.independent import PolicyLearner
from steppe.learning.learner import Stats
from steppe.learning.minibatches import FragmentQueue, shuffled
from steppe.learning.networks import ActorCriticNetworks, arrays_of, refilled
from steppe.learning.normalizer import moments, normalized, return_scale_init, scaled_rewards
from steppe.learning.optimizer import clipped_adam, clipped_adam_init
from steppe.learning.schedules import adapted_penalty, points
from steppe.models.catalog import ActorCritic
from steppe.models.distributions import Distribution
from steppe.policies.actor_critic import Layout
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
            "minibatch_size": 128,
            "num_epochs": 30,
            "lambda_": 1.0,
            "clip_param": 0.3,
            "vf_clip_param": 10.0,
            "vf_loss_coeff": 1.0,
            "kl_coeff": 0.2,
            "grad_clip": None,
            "fcnet_hiddens": [256, 256],
            "observation_filter": "NoFilter",
            "reward_scale": "none",
        }
    }

    lambda_: float = policy_field(0.98, check=between(0, 1), alias="lambda")
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

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> PPOLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        return PPOLearner(self, pair, seed)


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
    """Everything that learning changes: flat parameters, optimizer, running statistics."""

    params: Any
    opt: Any
    normalizer: Any
    return_scale: Any


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


@lru_cache(maxsize=64)
def _compiled(static: Static) -> tuple[Any, Any]:
    """The two halves of an update, shared by all policies of this structure.

    Two programs and not one: compiled together they take 490 MB at the peak, one by one 425 MB.
    """
    return jax.jit(partial(_rows, static)), jax.jit(partial(_update, static))


def _update(
    static: Static, state: LearnerState, rows: Any, statistics: Any, order: Any, count: Any, hyper: Hyper
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """All epochs over one batch; if a number in it is not finite, the state stays as it was.

    ``order (epochs, capacity)`` lists the acted rows anew for each epoch and ``count`` says how many there
    are. The number of minibatches is a traced loop bound: time follows the acted rows, shapes do not.
    """
    params, opt, sums, epochs, steps = _epochs(static, state, rows, order, count, hyper)
    new = LearnerState(params, opt, *statistics)
    fine = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((new, sums))]).all()
    new = jax.tree.map(partial(jnp.where, fine), new, state)
    return new, {**{n: total / steps for n, total in sums.items()}, "epochs": epochs, "skipped": ~fine}


def _rows(
    static: Static, state: LearnerState, batch: Any, continues: Any, hyper: Hyper
) -> tuple[dict[str, Any], tuple[Any, Any], jax.Array]:
    """The batch as flat rows with advantages and targets, the new statistics, and the explained variance."""
    acted = returns.acted(batch["terminated"], batch["truncated"], batch["filled"])
    obs, normalizer, first = normalized(static.observation, state.normalizer, batch["obs"], acted)
    reward, return_scale = batch["reward"], state.return_scale
    if static.scale_rewards:
        reward, return_scale = scaled_rewards(return_scale, batch, acted, continues, hyper.gamma)

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)

    obs, action = flat(obs), flat(batch["action"])
    model = static.layout.unravel(state.params)
    value, actor = jax.vmap(model.value)(obs).reshape(acted.shape), jax.vmap(model.actor)
    # A first batch's ratios start from the policy as its fresh statistics make it.
    then = flat(batch["logp"])
    logp = jax.lax.cond(first, lambda: static.distribution.logp(actor(obs), action), lambda: then)
    ends = (batch["terminated"], batch["truncated"], batch["filled"])
    advantage, target = returns.gae(reward, value, *ends, gamma=hyper.gamma, lam=hyper.lam)
    mean, variance = moments(advantage, acted)
    scaled = (advantage - mean) / (jnp.sqrt(variance) + 1e-8)
    unexplained, total = moments(target - value, acted)[1], moments(target, acted)[1]
    rows = {"obs": obs, "action": action, "logp": logp, "advantage": flat(scaled), "target": flat(target)}
    return rows, (normalizer, return_scale), 1.0 - unexplained / jnp.maximum(total, 1e-8)


def _epochs(
    static: Static, state: LearnerState, rows: Any, order: Any, count: Any, hyper: Hyper
) -> tuple[Any, Any, dict[str, jax.Array], jax.Array, jax.Array]:
    """Minibatch steps, epoch by epoch, until all are done or the policy has moved too far."""
    optimizer, size = clipped_adam(static.grad_clip), static.minibatch
    minibatches = jnp.maximum((count + size // 2) // size, 1)

    def step(i: jax.Array, carry: Any) -> Any:
        epoch, params, opt, sums = carry
        index = jax.lax.dynamic_slice(order, (epoch, i * size), (1, size))[0]
        part = jax.tree.map(lambda a: a[index], rows)
        # The order repeats itself behind the last row, so only a batch below one minibatch has idle rows.
        part["weight"] = ((jnp.arange(size) < count) | (count >= size)).astype(jnp.float32)

        def loss(model: ActorCritic) -> tuple[jax.Array, dict[str, jax.Array]]:
            return ppo_loss(model, static.distribution, part, hyper)

        # By parts, then joined: through the slices of a flat vector each part would cost the whole length.
        by_part, parts = jax.grad(loss, has_aux=True)(static.layout.unravel(params))
        gradient = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(by_part)])
        parts["grad_norm"] = jnp.linalg.norm(gradient)
        change, opt = optimizer.update(gradient, opt)
        return epoch, params - hyper.lr * change, opt, jax.tree.map(jnp.add, sums, parts)

    def epoch_step(carry: Any) -> Any:
        epoch, params, opt, before, _ = carry
        _, params, opt, sums = jax.lax.fori_loop(0, minibatches, step, (epoch, params, opt, before))
        return epoch + 1, params, opt, sums, (sums["kl"] - before["kl"]) / minibatches

    def goes_on(carry: Any) -> jax.Array:
        return jnp.logical_and(carry[0] < order.shape[0], carry[4] <= hyper.kl_stop)

    names = ("policy_loss", "vf_loss", "entropy", "kl", "clip_fraction", "total_loss", "grad_norm")
    zero = {name: jnp.float32(0.0) for name in names}
    start = (jnp.int32(0), state.params, state.opt, zero, jnp.float32(0.0))
    epochs, params, opt, sums, _ = jax.lax.while_loop(goes_on, epoch_step, start)
    return params, opt, sums, epochs, epochs * minibatches


@final
class PPOLearner(PolicyLearner):
    """Learns one policy by PPO.

    Args:
        config: of the policy.
        pair: its spaces.
        seed: parameters and minibatches are drawn from streams of their own.
    """

    def __init__(self, config: PPOConfig, pair: SpacePair, seed: int) -> None:
        self._config, self._rng = config, stream(seed, "minibatches")
        distribution = Distribution(pair.action, **config.action_settings)
        rng = stream(seed, "parameters")
        self._networks = nets = ActorCriticNetworks(pair, distribution, rng, **config.model_settings)
        self._size = min(config.minibatch_size, config.train_batch_size)
        sizes = (nets.layout, self._size, config.grad_clip, config.reward_scale == "running")
        self._rows, self._update = _compiled(Static(pair.observation, distribution, *sizes))
        self._lr, self._entropy_coeff = points(config.lr), points(config.entropy_coeff)
        self.policy = nets.policy
        opt = clipped_adam_init(nets.params)
        self._state = LearnerState(nets.params, opt, nets.normalizer, return_scale_init())
        self._queue = FragmentQueue(config.train_batch_size)
        self._capacity = self._version = self._skipped = 0
        self._kl_coeff = config.kl_coeff

    def add(self, rollout: Rollout) -> None:
        """Queue a fragment."""
        self._queue.add(rollout)

    def update(self, env_steps: int) -> Stats | None:
        """Learn from a batch once it is full."""
        if (taken := self._queue.take(self.on_batch)) is None:
            return self._queue.answer
        batch, acted, continues = taken
        config, size = self._config, self._size
        order, count = shuffled(self._rng, acted, config.num_epochs, size, self._capacity)
        self._capacity = order.shape[1]
        *moments, old = self._state.return_scale
        carry = np.zeros(len(continues), np.float32)  # lanes that are new begin with nothing
        carry[: len(old)] = old
        state = self._state._replace(return_scale=(*moments, carry))
        hyper = self._hyper(env_steps)
        rows, statistics, explained = self._rows(state, batch, continues, hyper)
        self._state, parts = self._update(state, rows, statistics, order, np.int32(count), hyper)
        parts["vf_explained_var"] = explained
        stats = {name: float(value) for name, value in jax.device_get(parts).items()}
        self._version += 1
        self._skipped += int(stats.pop("skipped"))
        if config.kl_coeff:
            self._kl_coeff = adapted_penalty(self._kl_coeff, stats["kl"], config.kl_target)
        own = {"cur_lr": hyper.lr, "entropy_coeff": hyper.entropy_coeff, "cur_kl_coeff": self._kl_coeff}
        own |= {"updates_skipped": self._skipped, "rows": count}
        return stats | {name: float(value) for name, value in own.items()}

    def _hyper(self, env_steps: int) -> Hyper:
        config, inf = self._config, float("inf")
        numbers = Hyper(
            lr=np.interp(env_steps, *self._lr),
            clip=config.clip_param,
            vf_coeff=config.vf_loss_coeff,
            vf_clip=config.vf_clip_param or inf,
            entropy_coeff=np.interp(env_steps, *self._entropy_coeff),
            kl_coeff=self._kl_coeff,
            kl_stop=config.kl_stop or inf,
            gamma=config.gamma,
            lam=config.lambda_,
        )
        return Hyper(*map(np.float32, numbers))

    def publish(self) -> Weights:
        """The actor and the observation statistics."""
        actor = np.asarray(self._state.params)[: self._networks.actor_size]
        return Weights(self._version, actor, tuple(np.asarray(a) for a in self._state.normalizer))

    def get_weights(self) -> FloatArray:
        """Parameters of actor and critic, flat."""
        flat: FloatArray = np.asarray(self._state.params).copy()
        return flat

    def set_weights(self, weights: Array) -> None:
        """Replace the parameters; the optimizer keeps its moments."""
        self._state = self._state._replace(params=np.array(weights, np.float32))
        self._version += 1

    def summary(self) -> str:
        """Network and parameter count."""
        return self._networks.summary()

    def get_state(self) -> State:
        """Parameters, optimizer, statistics, stream, queue and counters."""
        return {
            "arrays": arrays_of(self._state),
            "rng": self._rng.bit_generator.state,
            "queue": self._queue.get_state(),
            "counters": [self._version, self._skipped, self._capacity],
            "kl_coeff": self._kl_coeff,
        }

    def checked(self, state: State) -> LearnerState:
        """The arrays in their places; the open returns, one a lane, are of any number."""
        return refilled(self._state, state["arrays"], ragged=1)

    def set_state(self, state: State, checked: LearnerState) -> None:
        """Go on from ``state``."""
        self._state, self._kl_coeff = checked, float(state["kl_coeff"])
        self._rng.bit_generator.state = state["rng"]
        self._queue.set_state(state["queue"])
        self._version, self._skipped, self._capacity = (int(value) for value in state["counters"])
