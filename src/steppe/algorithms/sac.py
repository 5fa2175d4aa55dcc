"""Soft actor-critic (Haarnoja et al., 2018, arXiv:1812.05905; for choices Christodoulou, 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steppe.buffers.making import Lengths, make_replay
from steppe.config import (
    AlgorithmConfig,
    above,
    at_least,
    between,
    each,
    policy_field,
    run_field,
)
from steppe.config.checks import FRAGMENT
from steppe.config.exploration import noise_deviation
from steppe.errors import ConfigError
from steppe.learning.action_networks import UNUSED, Networks, Structure, make_action_networks
from steppe.learning.off_policy import LearnerState, Method, OffPolicyLearner, followed
from steppe.learning.optimizer import (
    clipped_adam,
    clipped_adam_form,
    clipped_adam_init,
    descended,
    global_norm,
)
from steppe.learning.walks import acting_params, by_sequence, judged, opened
from steppe.models.action_values import action_inputs
from steppe.models.custom import own_encoder
from steppe.models.framestack import framed
from steppe.policies.actor_critic import Layout
from steppe.policies.noisy import NoisyPolicy
from steppe.seeding import SMALLEST_NOISE, stream
from steppe.spaces import DiscreteSpec
from steppe.types import SpacePair, Tree


@dataclass(kw_only=True, eq=False, repr=False)
class SACConfig(AlgorithmConfig):
    """Settings of SAC."""

    algo_name: ClassVar[str] = "SAC"

    num_envs_per_env_runner: int = run_field(1, section="env_runners", check=between(1, 1 << 16))
    """Copies of the env that one runner steps."""
    rollout_fragment_length: int | Literal["auto"] = run_field(8, section="env_runners", check=FRAGMENT)
    """Env steps per env between two rounds of updates."""
    min_sample_timesteps_per_iteration: int = run_field(1000, section="reporting", check=at_least(0))
    """An iteration goes on until it has sampled so many env steps."""
    observation_filter: Literal["MeanStdFilter", "NoFilter"] = run_field("NoFilter", section="env_runners")
    """Observations are shifted and scaled by their running mean and deviation, or left alone."""
    train_batch_size: int = policy_field(256, check=at_least(1))
    """Rows of one update."""
    grad_clip: float | None = policy_field(None, check=above(0))
    """Largest global norm of a gradient; None does not clip."""
    fcnet_hiddens: list[int] = policy_field([256, 256], check=each(at_least(1)))
    """Sizes of the hidden layers."""
    fcnet_activation: Literal["tanh", "relu", "swish", "silu", "elu", "linear"] = policy_field("relu")
    """Activation of the hidden layers."""

    actor_lr: float | None = policy_field(None, check=at_least(0))
    """Learning rate of the policy; None takes lr."""
    critic_lr: float | None = policy_field(None, check=at_least(0))
    """Learning rate of the critics; None takes lr."""
    alpha_lr: float | None = policy_field(None, check=at_least(0))
    """Learning rate of the temperature; 0 keeps initial_alpha, None takes lr."""
    initial_alpha: float = policy_field(1.0, check=above(0))
    """Temperature before training: what a nat of entropy is worth."""
    target_entropy: float | Literal["auto"] = policy_field("auto")
    """Entropy that the temperature is adapted to; "auto" is -1 an element, 0.98 of the most for choices."""
    twin_q: bool = policy_field(True)
    """Two critics, the smaller of whose values counts; otherwise one."""
    tau: float = policy_field(0.005, check=between(0, 1))
    """How far the targets move towards the critics at each of their updates."""
    target_network_update_freq: int = policy_field(0, check=at_least(0))
    """Env steps between updates of the targets; 0 moves them with every update."""
    n_step: int = policy_field(1, check=at_least(1))
    """Rewards that are summed before the critics' values take over."""
    replay_buffer_capacity: int = policy_field(1_000_000, check=at_least(1), alias="buffer_size")
    """Rows that are remembered."""
    num_steps_sampled_before_learning_starts: int = policy_field(
        1500, check=at_least(0), alias="learning_starts"
    )
    """Env steps before the first update."""
    training_intensity: float | None = policy_field(None, check=above(0))
    """Rows learned from for each env step; None is train_batch_size, one update an env step."""
    exploration_noise: float = policy_field(
        0.0, check=at_least(0), alias="exploration_config", convert=noise_deviation
    )
    """Deviation of noise on top of the sampled actions, where the bounds are -1 and 1."""
    exploration_noise_correlation: float = policy_field(0.0, check=between(0, 0.9999))
    """Of that noise from one row to the next: 0 is white, else an Ornstein-Uhlenbeck process."""
    burn_in: int = policy_field(10, check=at_least(0))
    """Rows before those of a sequence that only bring memories up to date; critics begin with none."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OffPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        frames, pair = framed(pair, self.framestack)
        memory, rows = self.model_settings["memory"], self.train_batch_size
        nets = make_action_networks(
            pair,
            stream(seed, "parameters"),
            algorithm="SAC",
            unused=[self.spelt(name) for name in UNUSED if getattr(self, name)],
            discrete=True,
            count=2 if self.twin_q else 1,
            normalize=self.observation_filter == "MeanStdFilter",
            hiddens=self.fcnet_hiddens,
            activation=self.fcnet_activation,
            conv_filters=self.image_filters,
            encoder=own_encoder(self),
            memory=memory,
        )
        parts = nets.trees
        whole = (parts[0], np.float32(math.log(self.initial_alpha)), parts[1])
        layout = Layout.of(whole)
        params = layout.ravel(whole)
        actions = nets.structure.distribution.actions
        size = float(actions.noise_size)
        auto = 0.98 * math.log(actions.param_size) if isinstance(pair.action, DiscreteSpec) else -size
        static = Static(nets.structure, self.grad_clip, self.burn_in)
        form = LearnerState(layout, nets.structure.critics, clipped_adam_form(layout), None)
        replay = make_replay(
            self.replay_buffer_capacity,
            n_step=self.n_step,
            gamma=self.gamma,
            framestack=self.framestack,
            sequences=None if memory is None else Lengths(self.max_seq_len, self.burn_in),
        )
        return OffPolicyLearner(
            Method(
                Hyper, sac_update, sac_values, static, form, nets.structure.seen, frames, memory is not None
            ),
            self._acting(id, nets) if self.exploration_noise else nets.policy,
            LearnerState(params, nets.critics.copy(), clipped_adam_init(params), nets.normalizer),
            seed,
            replay=replay,
            coefficients={
                "lr": self.lr,
                "actor_lr": self.lr if self.actor_lr is None else self.actor_lr,
                "critic_lr": self.lr if self.critic_lr is None else self.critic_lr,
                "alpha_lr": self.lr if self.alpha_lr is None else self.alpha_lr,
                "target_entropy": auto if self.target_entropy == "auto" else self.target_entropy,
                "tau": self.tau,
            },
            acting=len(nets.actor),
            batch_size=rows if memory is None else max(rows // self.max_seq_len, 1),
            updates_per_step=(self.training_intensity or rows) / rows,
            learning_starts=self.num_steps_sampled_before_learning_starts,
            target_update_freq=self.target_network_update_freq,
            observed=2 if memory is None else self.burn_in + self.max_seq_len + self.n_step,
            about=f"{len(params)} parameters, {len(nets.actor)} of them act",
        )

    def _acting(self, id: str, nets: Networks) -> Any:
        """What acts: numbers get a noise of their own; choices are drawn anyway."""
        if isinstance(nets.structure.distribution.spec, DiscreteSpec):
            return nets.policy
        if self.model_settings["memory"] is not None:
            raise ConfigError(
                f"policy {id!r}: exploration_noise does not go with memory={self.memory!r}; leave it out: "
                "SAC draws its actions anyway"
            )
        noise = {"deviation": self.exploration_noise, "correlation": self.exploration_noise_correlation}
        return NoisyPolicy(nets.policy, nets.structure.distribution.actions, draws=True, **noise)


class Static(NamedTuple):
    """What updates are compiled for."""

    networks: Structure
    grad_clip: float | None
    burn_in: int = 0


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    actor_lr: Any
    critic_lr: Any
    alpha_lr: Any
    target_entropy: Any
    tau: Any


def outlook(
    networks: Structure, actor: Any, critics: Any, obs: Tree, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The least of the critics' values, and the log-probability, of what the actor would do.

    Of one action, drawn by the noise ``(n, K)``; where there are choices, the mean over all of them.
    Observations may be a :class:`~steppe.learning.walks.Walk`.

    Returns:
        Two ``(n,)``.
    """
    distribution = networks.distribution
    params = acting_params(actor, obs)
    if isinstance(distribution.spec, DiscreteSpec):
        logp = jax.nn.log_softmax(params)
        least = judged(critics, obs, jnp.zeros((len(params), 0))).min(0)
        return (jnp.exp(logp) * least).sum(-1), (jnp.exp(logp) * logp).sum(-1)
    action = distribution.sample(params, noise)
    values = judged(critics, obs, action_inputs(distribution.actions, action))
    return values.min(0)[:, 0], distribution.logp(params, action)


def sac_losses(
    networks: Structure,
    learned: tuple[Any, jax.Array, Any],
    targets: Any,
    rows: dict[str, Any],
    noise: tuple[jax.Array, jax.Array],
    target_entropy: Any,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
    """The losses of critics, policy and temperature (equations 5, 9 and 18 of the paper), summed.

    No part of one has a gradient for another's parameters, so that one backward pass does for all.

    Args:
        networks: their structure.
        learned: actor, logarithm of the temperature, and critics.
        targets: slowly following critics.
        rows: obs, action, reward, discount, next_obs, weight; ``(n, ...)`` each; and ``counts``, where some
            do not, 1 on average.
        noise: uniforms ``(n, K)`` that draw actions, in ``obs`` and in ``next_obs``.
        target_entropy: what the temperature is adapted to.

    Returns:
        The sum; its parts, and the first critic's TD errors ``(n,)``.
    """
    actor, log_alpha, critics = learned
    still_actor, still_alpha, still = jax.lax.stop_gradient((actor, jnp.exp(log_alpha), critics))
    value, logp = outlook(networks, still_actor, targets, rows["next_obs"], noise[1])
    target = rows["reward"] + rows["discount"] * (value - still_alpha * logp)
    td_error = networks.values(critics, rows["obs"], rows["action"]) - target
    critic_loss = 0.5 * (rows["weight"] * td_error**2).mean(1).sum()
    value, logp = outlook(networks, actor, still, rows["obs"], noise[0])
    counts = rows.get("counts", 1.0)
    actor_loss = (counts * (still_alpha * logp - value)).mean()
    entropy = -jax.lax.stop_gradient((counts * logp).mean())
    alpha_loss = log_alpha * (entropy - target_entropy)
    parts = {
        "critic_loss": critic_loss,
        "actor_loss": actor_loss,
        "alpha_loss": alpha_loss,
        "alpha": still_alpha,
        "entropy": entropy,
        "mean_q": (counts * value).mean(),
        "td_error": (counts * jnp.abs(td_error)).mean(),
    }
    return critic_loss + actor_loss + alpha_loss, (parts, td_error[0])


def sac_update(
    static: Static, state: LearnerState, rows: dict[str, Any], hyper: Hyper, key: jax.Array
) -> tuple[LearnerState, dict[str, jax.Array], jax.Array]:
    """One step of Adam for all, then the targets follow."""
    networks = static.networks
    drawn = rows
    rows = opened(rows, static.burn_in) if "end" in rows else rows
    shape = (2, len(rows["reward"]), networks.distribution.noise_size)
    noise = jax.random.uniform(key, shape, minval=SMALLEST_NOISE)

    def loss(learned: Any) -> Any:
        return sac_losses(networks, learned, state.target, rows, (noise[0], noise[1]), hyper.target_entropy)

    gradient, (parts, td_error) = jax.grad(loss, has_aux=True)(state.params)
    parts["grad_norm"] = global_norm(gradient)
    change, opt = clipped_adam(static.grad_clip).update(gradient, state.opt)
    rates = hyper.actor_lr, hyper.alpha_lr, hyper.critic_lr
    params = tuple(map(descended, state.params, change, rates))
    target = followed(state.target, params[2], rows["sync"], hyper.tau)
    if "end" in drawn:
        td_error = by_sequence(td_error.reshape(drawn["learned"].shape), drawn["learned"])
    return state._replace(params=params, target=target, opt=opt), parts, td_error


def sac_values(static: Static, params: tuple[Any, jax.Array, Any], obs: Tree) -> jax.Array:
    """The least of the critics' values of the likeliest action; of choices the mean."""
    networks = static.networks
    actor, _, critics = params
    n = jax.tree.leaves(obs)[0].shape[0]
    return outlook(networks, actor, critics, obs, jnp.full((n, networks.distribution.noise_size), 0.5))[0]
