"""APPO: PPO's clipped surrogate on V-trace advantages, for rows that older weights may have acted.

Schulman et al., 2017 (arXiv:1707.06347), Espeholt et al., 2018 (arXiv:1802.01561) and, for the policy that
steps are held near to, Luo et al., 2020 (arXiv:1912.00167).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from steppe import returns
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
from steppe.learning.on_policy import Method, OnPolicyLearner
from steppe.learning.policy_gradient import averaged, outputs
from steppe.models.catalog import ActorCritic
from steppe.models.distributions import Distribution
from steppe.types import SpacePair


@dataclass(kw_only=True, eq=False, repr=False)
class APPOConfig(AlgorithmConfig):
    """Settings of APPO."""

    algo_name: ClassVar[str] = "APPO"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rllib": {
            "num_envs_per_env_runner": 1,
            "rollout_fragment_length": 50,
            "train_batch_size": 500,
            "lr": 5e-4,
            "num_epochs": 1,
            "minibatch_size": None,
            "lambda_": 1.0,
            "clip_param": 0.4,
            "entropy_coeff": 0.01,
            "grad_clip": 40.0,
            "fcnet_hiddens": [256, 256],
            "observation_filter": "NoFilter",
            "reward_scale": "none",
        }
    }

    lr: Schedule = policy_field(5e-4, check=scheduled(at_least(0)))
    train_batch_size: int = policy_field(1024, check=at_least(1))
    min_sample_timesteps_per_iteration: int = run_field(4000, section="reporting", check=at_least(0))
    num_epochs: int = policy_field(2, check=at_least(1))
    """Passes over each batch."""
    minibatch_size: int | None = policy_field(256, check=at_least(1))
    """Rows of one gradient step; None takes the whole batch."""
    vtrace: bool = policy_field(True)
    """Rows that older weights acted are corrected for; else they count as the newest weights' own."""
    clip_rho: float = policy_field(1.0, check=above(0), alias="vtrace_clip_rho_threshold")
    """Largest importance weight of a row's own error; those of its traces are at most 1."""
    lambda_: float = policy_field(0.98, check=between(0, 1), alias="lambda")
    """Weight between one-step errors (0) and whole returns (1)."""
    clip_param: float = policy_field(0.2, check=above(0))
    """The probability ratio to the policy before the update is clipped to 1 - this ... 1 + this."""
    use_kl_loss: bool = policy_field(False)
    """Divergence from the policy before the update is penalised."""
    kl_coeff: float = policy_field(1.0, check=at_least(0))
    """Initial weight of that penalty; adapted to kl_target."""
    kl_target: float = policy_field(0.01, check=above(0))
    """The divergence that kl_coeff is adapted to."""
    vf_loss_coeff: float = policy_field(0.5, check=at_least(0))
    """Weight of the value loss."""
    entropy_coeff: Schedule = policy_field(0.0, check=scheduled(at_least(0)))
    """Weight of the entropy bonus, or a schedule [[env steps, value], ...]."""
    reward_scale: Literal["running", "none"] = policy_field("running")
    """"running" divides rewards by the running deviation of the discounted return; "none" leaves them."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OnPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        return OnPolicyLearner(
            APPO,
            pair,
            seed,
            coefficients={
                "lr": self.lr,
                "clip": self.clip_param,
                "vf_coeff": self.vf_loss_coeff,
                "entropy_coeff": self.entropy_coeff,
                "correction": float(self.vtrace),
                "clip_rho": self.clip_rho,
                "kl_stop": float("inf"),
                "gamma": self.gamma,
                "lam": self.lambda_,
            },
            minibatch_size=self.minibatch_size,
            num_epochs=self.num_epochs,
            scale_rewards=self.reward_scale == "running",
            kl_coeff=self.kl_coeff if self.use_kl_loss else 0.0,
            kl_target=self.kl_target,
            **self.learning_settings,
        )


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    clip: Any
    vf_coeff: Any
    entropy_coeff: Any
    kl_coeff: Any
    correction: Any
    clip_rho: Any
    kl_stop: Any
    gamma: Any
    lam: Any


def appo_loss(
    model: ActorCritic, distribution: Distribution, rows: Mapping[str, Any], hyper: Hyper
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO's surrogate around the policy before the update, whoever acted, with value loss and entropy bonus.

    Args:
        model: see :func:`~steppe.learning.policy_gradient.outputs`.
        distribution: of the actions.
        rows: obs, action, logp when it was chosen, log_ratio of the policy before the update to that,
            advantage, target, and weight (1 where a row counts); ``(n, ...)`` each.
        hyper: coefficients.

    Returns:
        The loss, and its parts averaged over the rows that count.
    """
    params, value = outputs(model, rows)
    moved = distribution.logp(params, rows["action"]) - rows["logp"] - rows["log_ratio"]
    ratio = jnp.exp(moved)
    clipped = jnp.clip(ratio, 1.0 - hyper.clip, 1.0 + hyper.clip)
    columns = {
        "policy_loss": -jnp.minimum(ratio * rows["advantage"], clipped * rows["advantage"]),
        "vf_loss": (value - rows["target"]) ** 2,
        "entropy": distribution.entropy(params, rows["action"]),
        "kl": ratio - 1.0 - moved,  # Schulman's estimator: unbiased, never negative
        "clip_fraction": jnp.abs(ratio - 1.0) > hyper.clip,
        "staleness": jnp.expm1(rows["log_ratio"]) - rows["log_ratio"],
    }
    parts = averaged(columns, rows["weight"])
    loss = (
        parts["policy_loss"]
        + hyper.vf_coeff * parts["vf_loss"]
        - hyper.entropy_coeff * parts["entropy"]
        + hyper.kl_coeff * parts["kl"]
    )
    return loss, {**parts, "total_loss": loss}


def vtrace_targets(
    reward: jax.Array, value: jax.Array, log_ratio: jax.Array, ends: tuple[jax.Array, ...], hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets by V-trace, corrected to the policy before the update."""
    log_rho = hyper.correction * log_ratio
    target, advantage = returns.vtrace(
        log_rho, reward, value, *ends, gamma=hyper.gamma, lam=hyper.lam, clip_rho=hyper.clip_rho
    )
    return advantage, target


APPO = Method(
    Hyper,
    appo_loss,
    vtrace_targets,
    parts=("policy_loss", "vf_loss", "entropy", "kl", "clip_fraction", "staleness", "total_loss"),
    told=("entropy_coeff",),
    corrects=True,
)
"""What :class:`~steppe.learning.on_policy.OnPolicyLearner` makes a learner of."""
