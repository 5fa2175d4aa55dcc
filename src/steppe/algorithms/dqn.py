"""Deep Q-networks (Mnih et al., 2015), with the parts of Rainbow (Hessel et al., 2018, arXiv:1710.02298)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steppe.buffers.making import Lengths, make_replay
from steppe.buffers.prioritized import Prioritized
from steppe.config import (
    AlgorithmConfig,
    Schedule,
    above,
    at_least,
    between,
    policy_field,
    run_field,
    scheduled,
)
from steppe.config.checks import FRAGMENT
from steppe.config.exploration import epsilon_schedule
from steppe.errors import ConfigError
from steppe.learning.off_policy import LearnerState, Method, OffPolicyLearner, Priorities, followed
from steppe.learning.optimizer import (
    clipped_adam,
    clipped_adam_form,
    clipped_adam_init,
    descended,
    global_norm,
)
from steppe.learning.policy_gradient import averaged
from steppe.learning.q_networks import looked, looked_along, make_q, shrunk, stretched
from steppe.learning.walks import by_sequence
from steppe.models.custom import own_encoder
from steppe.models.framestack import framed
from steppe.models.observations import norm_init
from steppe.models.q_network import QNetwork, scaled_noise
from steppe.models.sight import sight_of
from steppe.policies.actor_critic import Layout
from steppe.seeding import stream
from steppe.spaces import DiscreteSpec, summary
from steppe.types import SpacePair, Tree

_RAINBOW: dict[str, Any] = {
    "num_atoms": 51,
    "noisy": True,
    "epsilon": 0.0,
    "prioritized_replay": True,
}


@dataclass(kw_only=True, eq=False, repr=False)
class DQNConfig(AlgorithmConfig):
    """Settings of DQN."""

    algo_name: ClassVar[str] = "DQN"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rllib": {
            "num_envs_per_env_runner": 1,
            "rollout_fragment_length": 1,
            "train_batch_size": 32,
            "grad_clip": 40.0,
            "adam_epsilon": 1e-8,
            "fcnet_hiddens": [256, 256],
            "fcnet_activation": "tanh",
            "n_step": 1,
            "td_error_loss_fn": "huber",
            "epsilon": [[0, 1.0], [10_000, 0.05]],
            "target_network_update_freq": 500,
            "prioritized_replay": True,
        }
    }

    rollout_fragment_length: int | Literal["auto"] = run_field(4, section="env_runners", check=FRAGMENT)
    """Env steps per env between updates; "auto" splits train_batch_size evenly over the envs."""
    observation_filter: Literal["MeanStdFilter", "NoFilter"] = run_field("NoFilter", section="env_runners")
    """Observations are shifted and scaled by their running mean and deviation, or left alone."""
    min_sample_timesteps_per_iteration: int = run_field(1000, section="reporting", check=at_least(0))
    """An iteration goes on until it has sampled so many env steps."""
    lr: Schedule = policy_field(5e-4, check=scheduled(at_least(0)))
    """Learning rate, or a schedule [[env steps, value], ...]."""
    train_batch_size: int = policy_field(64, check=at_least(1))
    """Rows of one update."""
    training_intensity: float | None = policy_field(None, check=above(0))
    """Rows learned from for each env step; None is train_batch_size, one update an env step."""
    grad_clip: float | None = policy_field(10.0, check=above(0))
    """Largest global norm of a gradient; None does not clip."""
    adam_epsilon: float = policy_field(1e-5, check=above(0))
    """What Adam adds to the deviation that it divides by."""
    fcnet_activation: Literal["tanh", "relu", "swish", "silu", "elu", "linear"] = policy_field("relu")
    """Activation of the hidden layers."""

    double_q: bool = policy_field(True)
    """The network chooses the action whose value its target says; otherwise the target does both."""
    dueling: bool = policy_field(True)
    """Value and advantages have streams of their own, which part before the last hidden layer."""
    value_rescaling: bool = policy_field(False)
    """Values are learned on a scale that shrinks large returns, about as their roots."""
    n_step: int = policy_field(3, check=at_least(1))
    """Rewards that are summed before the value of a state stands for the rest."""
    num_atoms: int = policy_field(1, check=at_least(1))
    """Points of the distribution of returns; 1 learns its mean only."""
    v_min: float = policy_field(-10.0)
    """Lowest return of that distribution."""
    v_max: float = policy_field(10.0)
    """Highest return of that distribution."""
    noisy: bool = policy_field(False)
    """The weights of the streams are noisy, and explore by that."""
    sigma0: float = policy_field(0.5, check=above(0))
    """Initial deviation of that noise, times the root of a layer's inputs."""
    rainbow: bool = policy_field(False)
    """Turns on what Rainbow adds: num_atoms 51, noisy without epsilon, prioritized_replay; see v_min."""
    td_error_loss_fn: Literal["huber", "mse"] = policy_field("mse")
    """How errors count: squared up to 1 and linear beyond, or squared."""
    epsilon: Schedule = policy_field(
        [[0, 1.0], [10_000, 0.02]],
        check=scheduled(between(0, 1)),
        alias="exploration_config",
        convert=epsilon_schedule,
    )
    """Probability of a random action, or a schedule [[env steps, value], ...]."""
    target_network_update_freq: int = policy_field(0, check=at_least(0))
    """Env steps between updates of the target network; 0 moves it after each update."""
    tau: float | None = policy_field(None, check=between(0, 1))
    """How far the target then moves towards the network; None is 0.02 after each update, else 1, a copy."""
    num_steps_sampled_before_learning_starts: int = policy_field(
        1000, check=at_least(0), alias="learning_starts"
    )
    """Env steps before the first update."""
    replay_buffer_capacity: int = policy_field(50_000, check=at_least(1), alias="buffer_size")
    """Rows that are remembered."""
    prioritized_replay: bool = policy_field(False)
    """Rows are drawn by their last TD error instead of evenly."""
    prioritized_replay_alpha: float = policy_field(0.6, check=at_least(0))
    """How much the error decides; 0 draws evenly."""
    prioritized_replay_beta: Schedule = policy_field(0.4, check=scheduled(between(0, 1)))
    """How far weights make up for drawing unevenly, or a schedule [[env steps, value], ...]."""
    prioritized_replay_eps: float = policy_field(1e-6, check=above(0))
    """Added to each error, so that no row is forgotten."""
    burn_in: int = policy_field(0, check=at_least(0))
    """Rows before those of a sequence that only bring its memory up to today's weights."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OffPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree.

        Raises:
            ConfigError: actions that have no values each, or a setting that DQN has no use for.
        """
        if self.rainbow:
            own = {name: value for name, value in _RAINBOW.items() if name not in self.changes()}
            return self.copy(rainbow=False, **own).make_learner(id, pair, seed)
        self._check(id, pair)
        frames, pair = framed(pair, self.framestack, *filter(None, [self.action_embeddings]))
        sight = sight_of(pair, (), False, self.action_embeddings)
        spec = pair.action
        assert isinstance(spec, DiscreteSpec)
        memory, length = self.model_settings["memory"], self.max_seq_len
        network, acts = make_q(
            sight,
            spec,
            stream(seed, "parameters"),
            memory,
            hiddens=self.fcnet_hiddens,
            activation=self.fcnet_activation,
            conv_filters=self.image_filters,
            encoder=own_encoder(self),
            dueling=self.dueling,
            support=(self.v_min, self.v_max, self.num_atoms) if self.num_atoms > 1 else None,
            sigma0=self.sigma0 if self.noisy else None,
        )
        layout, normalizes = Layout.of(network), self.observation_filter == "MeanStdFilter"
        params, normalizer = layout.ravel(network), norm_init(sight.actor) if normalizes else ()
        loss = self.double_q, self.td_error_loss_fn, self.value_rescaling
        tau = (1.0 if self.target_network_update_freq else 0.02) if self.tau is None else self.tau
        form = LearnerState(layout, layout, clipped_adam_form(layout), None)
        static = Static(*loss, self.grad_clip, self.adam_epsilon, self.burn_in)
        ranked = self.prioritized_replay_alpha, self.prioritized_replay_eps
        replay = make_replay(
            self.replay_buffer_capacity,
            n_step=self.n_step,
            gamma=self.gamma,
            framestack=self.framestack,
            sequences=None if memory is None else Lengths(length, self.burn_in),
            priorities=ranked if self.prioritized_replay else None,
        )
        beta = self.prioritized_replay_beta
        return OffPolicyLearner(
            Method(Hyper, update, values, static, form, sight.actor, frames, memory is not None),
            acts(sight, spec, network, Layout.of((network, normalizer))),
            LearnerState(params, params.copy(), clipped_adam_init(params), normalizer),
            seed,
            replay=replay,
            coefficients={"lr": self.lr, "tau": tau},
            acting=layout.size,
            batch_size=self.train_batch_size if memory is None else max(self.train_batch_size // length, 1),
            updates_per_step=(self.training_intensity or self.train_batch_size) / self.train_batch_size,
            learning_starts=self.num_steps_sampled_before_learning_starts,
            target_update_freq=self.target_network_update_freq,
            observed=2 if memory is None else self.burn_in + length + self.n_step,
            scalars={"epsilon": self.epsilon},
            priorities=Priorities(replay.update, beta) if isinstance(replay, Prioritized) else None,
            about=f"{layout.size} parameters\n{network}",
        )

    def _check(self, id: str, pair: SpacePair) -> None:
        if not isinstance(pair.action, DiscreteSpec):
            raise ConfigError(
                f"policy {id!r}: DQN gives each action of a Discrete space a value, and this one is "
                f"{summary(pair.action)}; use PPOConfig, which takes any"
            )
        for name in ("critic_only", "share", "extra_loss", "autoregressive_actions"):
            if getattr(self, name):
                raise ConfigError(
                    f"policy {id!r}: {self.spelt(name)} is not for DQN, whose one network acts and judges; "
                    "leave it out, or use PPOConfig"
                )
        if self.replay_buffer_capacity < self.train_batch_size:
            raise ConfigError(
                f"policy {id!r}: {self.spelt('replay_buffer_capacity')} is less than the "
                f"{self.train_batch_size} rows of an update (train_batch_size): give it room for thousands"
            )
        if self.num_atoms > 1 and self.value_rescaling:
            raise ConfigError(f"policy {id!r}: value_rescaling is for num_atoms=1, not {self.num_atoms}")
        if self.num_atoms > 1 and self.v_min >= self.v_max:
            raise ConfigError(
                f"policy {id!r}: v_min={self.v_min} must be below v_max={self.v_max}: they bound the returns"
            )


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    tau: Any


class Static(NamedTuple):
    """What compiled programs are keyed by."""

    double_q: bool
    td_error_loss: str
    rescaled: bool
    grad_clip: float | None
    adam_epsilon: float
    burn_in: int = 0


def dqn_loss(
    network: QNetwork, target: QNetwork, rows: Mapping[str, Any], static: Any, noise: Any = (None,) * 3
) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
    """The weighted loss of chosen actions' values against their targets (equation 1 of the Rainbow paper).

    Args:
        network: what learns.
        target: its slowly following copy.
        rows: see :class:`~steppe.learning.off_policy.Method`.
        static: ``double_q``, ``td_error_loss`` and ``rescaled``.
        noise: of the noisy layers: of the network, of the target, and of the network as it chooses.

    Returns:
        The loss, its parts, and an error ``(n,)`` per row: of values the TD error, of distributions the loss.
    """
    if "end" in rows:
        seen = looked_along(network, target, rows, static.double_q, noise, static.burn_in)
    else:
        seen = looked(network, target, rows, static.double_q, noise)
    head, rows, out, after, judged, then = seen
    taken = rows["action"][:, None, None] == np.arange(head.actions)[:, None]
    chosen = jnp.where(taken, out, 0.0).sum(1)  # no gather: its gradient is a slow scatter on CPU
    best = jax.vmap(head.legal)(head.expected(judged), after).argmax(-1)
    outcome = jax.lax.stop_gradient(jnp.take_along_axis(then, best[:, None, None], 1)[:, 0])
    if head.support is None:
        after = stretched(outcome[:, 0]) if static.rescaled else outcome[:, 0]
        goal = rows["reward"] + rows["discount"] * after
        error = chosen[:, 0] - (shrunk(goal) if static.rescaled else goal)
        small = 0.5 * error**2
        by_row = (
            small
            if static.td_error_loss == "mse"
            else jnp.where(jnp.abs(error) <= 1.0, small, jnp.abs(error) - 0.5)
        )
    else:
        wanted = projected(jax.nn.softmax(outcome), rows["reward"], rows["discount"], head.support)
        by_row = error = -(wanted * jax.nn.log_softmax(chosen)).sum(-1)
    loss, q, counts = (rows["weight"] * by_row).mean(), head.expected(chosen), rows["learned"]
    parts = averaged({"mean_q": q, "mean_td_error": error}, counts)
    least, most = jnp.where(counts, q, jnp.inf).min(), jnp.where(counts, q, -jnp.inf).max()
    return loss, ({**parts, "total_loss": loss, "min_q": least, "max_q": most}, error)


def projected(
    p: jax.Array, reward: jax.Array, discount: jax.Array, support: tuple[float, float, int]
) -> jax.Array:
    """A distribution of returns ``(n, atoms)`` after a step, on its support again (algorithm 1 of C51).

    Each atom moves to reward + discount * atom, and its probability to the two nearest by their distance.
    """
    low, high, atoms = support
    moved = reward[:, None] + discount[:, None] * np.linspace(*support, dtype=np.float32)
    place = (jnp.clip(moved, low, high) - low) * ((atoms - 1) / (high - low))
    near = jnp.clip(1.0 - jnp.abs(place[:, :, None] - np.arange(atoms)), 0.0, 1.0)
    return (p[:, :, None] * near).sum(1)


def update(
    static: Static, state: LearnerState, batch: dict[str, Any], hyper: Hyper, key: jax.Array
) -> tuple[LearnerState, dict[str, jax.Array], jax.Array]:
    """One step of Adam, then of the target; see :class:`~steppe.learning.off_policy.Method`."""
    network = state.params
    noise: Any = (None,) * 3
    if size := (network.out if "end" in batch else network).noise_size:
        noise = scaled_noise(jax.random.normal(key, (3, size)))
    gradient, (parts, error) = jax.grad(dqn_loss, has_aux=True)(network, state.target, batch, static, noise)
    change, opt = clipped_adam(static.grad_clip, static.adam_epsilon).update(gradient, state.opt)
    params = descended(network, change, hyper.lr)
    after = followed(state.target, params, batch["sync"], hyper.tau)
    parts["grad_norm"] = global_norm(gradient)
    if "end" in batch:
        error = by_sequence(error.reshape(batch["learned"].shape), batch["learned"])
    return state._replace(params=params, target=after, opt=opt), parts, error


def values(static: Static, network: QNetwork, obs: Tree) -> jax.Array:
    """The value of the best action, ``(n,)``."""
    best: jax.Array = jax.vmap(lambda one: network.legal(network.expected(network(one)), one).max())(obs)
    return stretched(best) if static.rescaled else best
