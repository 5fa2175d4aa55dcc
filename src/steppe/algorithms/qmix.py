"""QMIX: monotonic value functions of a team (Rashid et al., 2018, arXiv:1803.11485)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from steppe.buffers.making import Lengths, make_replay
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
from steppe.learning.joint_q import UNUSED, make_joint_learner, make_joint_value
from steppe.learning.off_policy import OffPolicyLearner
from steppe.models.members import members_of
from steppe.seeding import stream
from steppe.types import SpacePair


@dataclass(kw_only=True, eq=False, repr=False)
class QMIXConfig(AlgorithmConfig):
    """Settings of QMIX, which learns groups of agents (``env.with_agent_groups``)."""

    algo_name: ClassVar[str] = "QMIX"

    rollout_fragment_length: int | Literal["auto"] = run_field(4, section="env_runners", check=FRAGMENT)
    """Env steps per env between updates; "auto" splits train_batch_size evenly over the envs."""
    observation_filter: Literal["MeanStdFilter", "NoFilter"] = run_field("NoFilter", section="env_runners")
    """Observations are shifted and scaled by their running mean and deviation, or left alone."""
    min_sample_timesteps_per_iteration: int = run_field(1000, section="reporting", check=at_least(0))
    """An iteration goes on until it has sampled so many env steps."""
    lr: Schedule = policy_field(5e-4, check=scheduled(at_least(0)))
    """Learning rate, or a schedule [[env steps, value], ...]."""
    train_batch_size: int = policy_field(32, check=at_least(1))
    """Rows of one update; with a memory, of sequences of max_seq_len rows."""
    training_intensity: float | None = policy_field(None, check=above(0))
    """Rows learned from for each env step; None is train_batch_size, one update an env step."""
    grad_clip: float | None = policy_field(10.0, check=above(0))
    """Largest global norm of a gradient; None does not clip."""
    adam_epsilon: float = policy_field(1e-5, check=above(0))
    """What Adam adds to the deviation that it divides by."""
    fcnet_activation: Literal["tanh", "relu", "swish", "silu", "elu", "linear"] = policy_field("relu")
    """Activation of the hidden layers."""

    mixing_embed_dim: int = policy_field(32, check=at_least(1))
    """Width of the layer that mixes the members' values."""
    double_q: bool = policy_field(True)
    """The network chooses the actions whose value its target says; otherwise the target does both."""
    td_error_loss_fn: Literal["huber", "mse"] = policy_field("mse")
    """How errors count: squared up to 1 and linear beyond, or squared."""
    epsilon: Schedule = policy_field(
        [[0, 1.0], [10_000, 0.02]],
        check=scheduled(between(0, 1)),
        alias="exploration_config",
        convert=epsilon_schedule,
    )
    """Probability of a random action, of each member by itself; or a schedule [[env steps, value], ...]."""
    target_network_update_freq: int = policy_field(500, check=at_least(0))
    """Env steps between updates of the target networks; 0 moves them after each update."""
    tau: float = policy_field(1.0, check=between(0, 1))
    """How far the targets then move towards the networks; 1 is a copy."""
    num_steps_sampled_before_learning_starts: int = policy_field(
        1000, check=at_least(0), alias="learning_starts"
    )
    """Env steps before the first update."""
    replay_buffer_capacity: int = policy_field(10_000, check=at_least(1), alias="buffer_size")
    """Rows that are remembered."""
    burn_in: int = policy_field(0, check=at_least(0))
    """Rows before those of a sequence that only bring its memory up to today's weights."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OffPolicyLearner:
        """The learner of one team; ``seed`` is its place in the run's tree.

        Raises:
            ConfigError: no team that QMIX can learn, or a setting that it has no use for.
        """
        name = f"policy {id!r}: {self.algo_name}"
        members, changed = members_of(pair, name), self.changes()
        if self.replay_buffer_capacity < self.train_batch_size:
            raise ConfigError(
                f"{name}: {self.spelt('replay_buffer_capacity')} is less than the {self.train_batch_size} "
                "rows of an update (train_batch_size): give it room for thousands"
            )
        memory, length = self.model_settings["memory"], self.max_seq_len
        lengths = None if memory is None else Lengths(length, self.burn_in)
        replay = make_replay(self.replay_buffer_capacity, n_step=1, gamma=self.gamma, sequences=lengths)
        model = make_joint_value(
            members,
            stream(seed, "parameters"),
            algorithm=name,
            unused=[self.spelt(field) for field in UNUSED if field in changed],
            memory=memory,
            mixing=self.mixing_embed_dim,
            hiddens=self.fcnet_hiddens,
            activation=self.fcnet_activation,
            conv_filters=self.image_filters,
        )
        return make_joint_learner(
            model,
            members,
            seed,
            action=pair.action,
            replay=replay,
            normalize=self.observation_filter == "MeanStdFilter",
            double_q=self.double_q,
            td_error_loss=self.td_error_loss_fn,
            grad_clip=self.grad_clip,
            adam_epsilon=self.adam_epsilon,
            lr=self.lr,
            tau=self.tau,
            epsilon=self.epsilon,
            batch_size=self.train_batch_size if memory is None else max(self.train_batch_size // length, 1),
            updates_per_step=(self.training_intensity or self.train_batch_size) / self.train_batch_size,
            learning_starts=self.num_steps_sampled_before_learning_starts,
            target_update_freq=self.target_network_update_freq,
            burn_in=self.burn_in,
        )
