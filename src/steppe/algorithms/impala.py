"""IMPALA's learner: actor-critic with V-trace (Espeholt et al., 2018, arXiv:1802.01561)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from steppe import returns
from steppe.config import AlgorithmConfig, Schedule, above, at_least, policy_field, run_field, scheduled
from steppe.learning.on_policy import Method, OnPolicyLearner
from steppe.learning.policy_gradient import PARTS, policy_gradient_loss
from steppe.types import SpacePair


@dataclass(kw_only=True, eq=False, repr=False)
class IMPALAConfig(AlgorithmConfig):
    """Settings of IMPALA."""

    algo_name: ClassVar[str] = "IMPALA"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rllib": {
            "num_envs_per_env_runner": 1,
            "rollout_fragment_length": 50,
            "train_batch_size": 500,
            "lr": 5e-4,
            "entropy_coeff": 0.01,
            "grad_clip": 40.0,
            "fcnet_hiddens": [256, 256],
            "observation_filter": "NoFilter",
            "reward_scale": "none",
        }
    }

    lr: Schedule = policy_field(1e-3, check=scheduled(at_least(0)))
    train_batch_size: int = policy_field(512, check=at_least(1))
    min_sample_timesteps_per_iteration: int = run_field(4000, section="reporting", check=at_least(0))
    num_epochs: int = policy_field(1, check=at_least(1))
    """Passes over each batch."""
    minibatch_size: int | None = policy_field(None, check=at_least(1))
    """Rows of one gradient step; None takes the whole batch."""
    vtrace: bool = policy_field(True)
    """Rows that older weights acted are corrected for; else they count as the newest weights' own."""
    clip_rho: float = policy_field(1.0, check=above(0), alias="vtrace_clip_rho_threshold")
    """Largest importance weight of a row's own error; those of its traces are at most 1."""
    vf_loss_coeff: float = policy_field(0.5, check=at_least(0))
    """Weight of the value loss."""
    entropy_coeff: Schedule = policy_field(0.0, check=scheduled(at_least(0)))
    """Weight of the entropy bonus, or a schedule [[env steps, value], ...]."""
    reward_scale: Literal["running", "none"] = policy_field("running")
    """"running" divides rewards by the running deviation of the discounted return; "none" leaves them."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OnPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        return OnPolicyLearner(
            IMPALA,
            pair,
            seed,
            coefficients={
                "lr": self.lr,
                "vf_coeff": self.vf_loss_coeff,
                "entropy_coeff": self.entropy_coeff,
                "correction": float(self.vtrace),
                "clip_rho": self.clip_rho,
                "kl_stop": float("inf"),
                "gamma": self.gamma,
            },
            minibatch_size=self.minibatch_size,
            num_epochs=self.num_epochs,
            scale_rewards=self.reward_scale == "running",
            **self.learning_settings,
        )


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    vf_coeff: Any
    entropy_coeff: Any
    correction: Any
    clip_rho: Any
    kl_stop: Any
    gamma: Any


def vtrace_targets(
    reward: jax.Array, value: jax.Array, log_ratio: jax.Array, ends: tuple[jax.Array, ...], hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets by V-trace (section 4.1 of the paper)."""
    log_rho = hyper.correction * log_ratio
    target, advantage = returns.vtrace(
        log_rho, reward, value, *ends, gamma=hyper.gamma, clip_rho=hyper.clip_rho
    )
    return advantage, target


IMPALA = Method(
    Hyper,
    policy_gradient_loss,
    vtrace_targets,
    parts=PARTS,
    told=("entropy_coeff",),
    corrects=True,
    standardized=False,
)
"""What :class:`~steppe.learning.on_policy.OnPolicyLearner` makes a learner of."""
