"""Twin delayed deep deterministic policy gradients (Fujimoto et al., 2018, arXiv:1802.09477)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from steppe.buffers.replay import Replay
from steppe.config import AlgorithmConfig, above, at_least, between, each, policy_field, run_field, scheduled
from steppe.config.checks import FRAGMENT
from steppe.config.exploration import noise_deviation
from steppe.config.fields import Schedule
from steppe.errors import ConfigError
from steppe.learning.action_networks import UNUSED, Structure, likeliest, make_action_networks
from steppe.learning.off_policy import LearnerState, Method, OffPolicyLearner, followed
from steppe.learning.optimizer import (
    clipped_adam,
    clipped_adam_form,
    clipped_adam_init,
    descended,
    global_norm,
)
from steppe.models.action_values import ActionValue, action_inputs, action_values
from steppe.models.catalog import Actor
from steppe.models.custom import own_encoder
from steppe.models.framestack import framed
from steppe.policies.actor_critic import Layout
from steppe.policies.noisy import NoisyPolicy
from steppe.seeding import SMALLEST_NOISE, stream
from steppe.types import SpacePair, Tree


@dataclass(kw_only=True, eq=False, repr=False)
class TD3Config(AlgorithmConfig):
    """Settings of TD3; with twin_q=False, policy_delay=1 and target_noise=0 it is DDPG."""

    algo_name: ClassVar[str] = "TD3"

    num_envs_per_env_runner: int = run_field(1, section="env_runners", check=between(1, 1 << 16))
    """Copies of the env that one runner steps."""
    rollout_fragment_length: int | Literal["auto"] = run_field(8, section="env_runners", check=FRAGMENT)
    """Env steps per env between two rounds of updates."""
    min_sample_timesteps_per_iteration: int = run_field(1000, section="reporting", check=at_least(0))
    """An iteration goes on until it has sampled so many env steps."""
    observation_filter: Literal["MeanStdFilter", "NoFilter"] = run_field("NoFilter", section="env_runners")
    """Observations are shifted and scaled by their running mean and deviation, or left alone."""
    lr: Schedule = policy_field(1e-3, check=scheduled(at_least(0)))
    """Learning rate, or a schedule [[env steps, value], ...]."""
    train_batch_size: int = policy_field(256, check=at_least(1))
    """Rows of one update."""
    grad_clip: float | None = policy_field(None, check=above(0))
    """Largest norm of the gradient of the policy, and of that of the critics; None does not clip."""
    fcnet_hiddens: list[int] = policy_field([256, 256], check=each(at_least(1)))
    """Sizes of the hidden layers."""
    fcnet_activation: Literal["tanh", "relu", "swish", "silu", "elu", "linear"] = policy_field("relu")
    """Activation of the hidden layers."""

    actor_lr: float | None = policy_field(None, check=at_least(0))
    """Learning rate of the policy; None takes lr."""
    critic_lr: float | None = policy_field(None, check=at_least(0))
    """Learning rate of the critics; None takes lr."""
    twin_q: bool = policy_field(True)
    """Two critics, the smaller of whose values counts; otherwise one."""
    policy_delay: int = policy_field(2, check=at_least(1))
    """Updates of the critics for one of the policy and the targets."""
    target_noise: float = policy_field(0.2, check=at_least(0))
    """Deviation of the noise on the target policy's actions, where the bounds are -1 and 1."""
    target_noise_clip: float = policy_field(0.5, check=at_least(0))
    """Largest such noise."""
    tau: float = policy_field(0.005, check=between(0, 1))
    """How far the targets move at each of their updates."""
    n_step: int = policy_field(1, check=at_least(1))
    """Rewards that are summed before the critics' values take over."""
    replay_buffer_capacity: int = policy_field(1_000_000, check=at_least(1), alias="buffer_size")
    """Rows that are remembered."""
    num_steps_sampled_before_learning_starts: int = policy_field(
        1500, check=at_least(0), alias="learning_starts"
    )
    """Env steps before the first update; until then actions are uniform."""
    training_intensity: float | None = policy_field(None, check=above(0))
    """Rows learned from for each env step; None is train_batch_size, one update an env step."""
    exploration_noise: float = policy_field(
        0.1, check=above(0), alias="exploration_config", convert=noise_deviation
    )
    """Deviation of the noise on actions, where the bounds are -1 and 1."""
    exploration_noise_correlation: float = policy_field(0.0, check=between(0, 0.9999))
    """Of that noise from one row to the next: 0 is white, else an Ornstein-Uhlenbeck process."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OffPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        if self.memory != "none":
            raise ConfigError(
                f"policy {id!r}: {self.spelt('memory')} is not for TD3, which remembers nothing; use "
                "SACConfig or PPOConfig, or framestack"
            )
        frames, pair = framed(pair, self.framestack)
        nets = make_action_networks(
            pair,
            stream(seed, "parameters"),
            algorithm="TD3",
            unused=[self.spelt(name) for name in UNUSED if getattr(self, name)],
            discrete=False,
            count=2 if self.twin_q else 1,
            normalize=self.observation_filter == "MeanStdFilter",
            hiddens=self.fcnet_hiddens,
            activation=self.fcnet_activation,
            conv_filters=self.image_filters,
            encoder=own_encoder(self),
            log_std=math.log(self.exploration_noise),
        )
        layout, structure = Layout.of(nets.trees), nets.structure
        params = layout.ravel(nets.trees)
        opt = clipped_adam_init(nets.actor), clipped_adam_init(nets.critics)
        forms = clipped_adam_form(structure.actor), clipped_adam_form(structure.critics)
        form = LearnerState(layout, layout, forms, None)
        starts, static = self.num_steps_sampled_before_learning_starts, Static(nets.structure, self.grad_clip)
        return OffPolicyLearner(
            Method(Hyper, td3_update, td3_values, static, form, nets.structure.seen, frames),
            NoisyPolicy(
                nets.policy,
                nets.structure.distribution.actions,
                deviation=self.exploration_noise,
                correlation=self.exploration_noise_correlation,
                draws=False,
            ),
            LearnerState(params, params.copy(), opt, nets.normalizer),
            seed,
            replay=Replay(
                self.replay_buffer_capacity, n_step=self.n_step, gamma=self.gamma, framestack=self.framestack
            ),
            coefficients={
                "lr": self.lr,
                "actor_lr": self.lr if self.actor_lr is None else self.actor_lr,
                "critic_lr": self.lr if self.critic_lr is None else self.critic_lr,
                "policy_delay": self.policy_delay,
                "noise": self.target_noise,
                "noise_clip": self.target_noise_clip,
                "tau": self.tau,
            },
            scalars={"random": [[starts - 1, 1.0], [starts, 0.0]] if starts else 0.0},
            acting=len(nets.actor),
            batch_size=self.train_batch_size,
            updates_per_step=(self.training_intensity or self.train_batch_size) / self.train_batch_size,
            learning_starts=starts,
            about=f"{len(params)} parameters, {len(nets.actor)} of them act",
        )


class Static(NamedTuple):
    """What updates are compiled for."""

    networks: Structure
    grad_clip: float | None


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    actor_lr: Any
    critic_lr: Any
    policy_delay: Any
    noise: Any
    noise_clip: Any
    tau: Any


def td3_critic_loss(
    networks: Structure,
    critics: ActionValue,
    targets: tuple[Actor, ActionValue],
    rows: dict[str, Any],
    normal: jax.Array,
    hyper: Hyper,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
    """Squared TD errors, with clipped double Q-learning and target policy smoothing (algorithm 1).

    Args:
        networks: their structure.
        critics: what is learned.
        targets: slowly following actor and critics.
        rows: obs, action, reward, discount, next_obs, weight; ``(n, ...)`` each.
        normal: ``(n, K)`` noise of the target policy's actions, of deviation 1.
        hyper: coefficients.

    Returns:
        The loss; its parts, and the first critic's TD errors ``(n,)``.
    """
    actor, slow = targets
    actions = networks.distribution.actions
    best = action_inputs(actions, likeliest(networks, actor, rows["next_obs"]))
    shift = jnp.clip(hyper.noise * normal, -hyper.noise_clip, hyper.noise_clip)
    least = action_values(slow, rows["next_obs"], jnp.clip(best + shift, -1.0, 1.0)).min(0)[:, 0]
    value = networks.values(critics, rows["obs"], rows["action"])
    td_error = value - (rows["reward"] + rows["discount"] * least)
    loss = (rows["weight"] * td_error**2).mean(1).sum()
    parts = {"critic_loss": loss, "mean_q": value.mean(), "td_error": jnp.abs(td_error).mean()}
    return loss, (parts, td_error[0])


def td3_actor_loss(networks: Structure, actor: Actor, critics: ActionValue, obs: Tree) -> jax.Array:
    """What the first critic makes of the actor's actions, negative (the deterministic policy gradient)."""
    first = jax.tree.map(lambda a: a[:1], critics)
    best = action_inputs(networks.distribution.actions, likeliest(networks, actor, obs))
    return -action_values(first, obs, best).mean()


def td3_update(
    static: Static, state: LearnerState, rows: dict[str, Any], hyper: Hyper, key: jax.Array
) -> tuple[LearnerState, dict[str, jax.Array], jax.Array]:
    """A step of Adam for the critics; where it is due, one for the actor, and then the targets follow."""
    networks, (actor, critics) = static.networks, state.params
    optimizer = clipped_adam(static.grad_clip)
    shape = len(rows["reward"]), networks.distribution.noise_size
    normal = jax.scipy.special.ndtri(jax.random.uniform(key, shape, minval=SMALLEST_NOISE))
    slope, (parts, td_error) = jax.grad(
        lambda own: td3_critic_loss(networks, own, state.target, rows, normal, hyper), has_aux=True
    )(critics)
    change, critic_opt = optimizer.update(slope, state.opt[1])
    later = descended(critics, change, hyper.critic_lr)

    def delayed(opt: Any) -> Any:
        loss, slope = jax.value_and_grad(lambda own: td3_actor_loss(networks, own, later, rows["obs"]))(actor)
        change, opt = optimizer.update(slope, opt)
        return descended(actor, change, hyper.actor_lr), opt, loss, global_norm(slope)

    due = rows["number"] % hyper.policy_delay.astype(jnp.uint32) == 0
    none = jnp.float32(0.0)
    acts, actor_opt, loss, norm = jax.lax.cond(
        due, delayed, lambda opt: (actor, opt, none, none), state.opt[0]
    )
    params = acts, later
    target = followed(state.target, params, rows["sync"] & due, hyper.tau)
    new = state._replace(params=params, target=target, opt=(actor_opt, critic_opt))
    parts |= {"actor_loss": loss * hyper.policy_delay, "actor_grad_norm": norm * hyper.policy_delay}
    return new, {**parts, "grad_norm": global_norm(slope)}, td_error


def td3_values(static: Static, params: tuple[Actor, ActionValue], obs: Tree) -> jax.Array:
    """The least of the critics' values of the actor's actions."""
    networks, (actor, critics) = static.networks, params
    return networks.values(critics, obs, likeliest(networks, actor, obs)).min(0)
