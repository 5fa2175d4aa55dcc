"""Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from steppe import returns
from steppe.config import AlgorithmConfig, Schedule, above, at_least, between, policy_field, scheduled
from steppe.learning.on_policy import Method, OnPolicyLearner
from steppe.learning.policy_gradient import averaged, outputs
from steppe.models.catalog import ActorCritic
from steppe.models.distributions import Distribution
from steppe.types import SpacePair


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
        },
        "mappo": {"critic_only": ["state"], "add_agent_id": True, "lambda_": 0.95, "entropy_coeff": 0.01},
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

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OnPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        inf = float("inf")
        return OnPolicyLearner(
            PPO,
            pair,
            seed,
            coefficients={
                "lr": self.lr,
                "clip": self.clip_param,
                "vf_coeff": self.vf_loss_coeff,
                "vf_clip": self.vf_clip_param or inf,
                "entropy_coeff": self.entropy_coeff,
                "kl_stop": self.kl_stop or inf,
                "gamma": self.gamma,
                "lam": self.lambda_,
            },
            minibatch_size=self.minibatch_size,
            num_epochs=self.num_epochs,
            scale_rewards=self.reward_scale == "running",
            kl_coeff=self.kl_coeff,
            kl_target=self.kl_target,
            **self.learning_settings,
        )


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


def ppo_loss(
    model: ActorCritic, distribution: Distribution, rows: Mapping[str, Any], hyper: Hyper
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped surrogate with value loss and entropy bonus (equations 7 and 9 of the paper).

    Args:
        model: see :func:`~steppe.learning.policy_gradient.outputs`.
        distribution: of the actions.
        rows: obs, action, logp, advantage, target, and weight (1 where a row counts); ``(n, ...)`` each.
        hyper: coefficients.

    Returns:
        The loss, and its parts averaged over the rows that count.
    """
    params, value = outputs(model, rows)
    log_ratio = distribution.logp(params, rows["action"]) - rows["logp"]
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - hyper.clip, 1.0 + hyper.clip)
    columns = {
        "policy_loss": -jnp.minimum(ratio * rows["advantage"], clipped * rows["advantage"]),
        "vf_loss": jnp.minimum((value - rows["target"]) ** 2, hyper.vf_clip),
        "entropy": distribution.entropy(params, rows["action"]),
        "kl": ratio - 1.0 - log_ratio,  # Schulman's estimator: unbiased, never negative
        "clip_fraction": jnp.abs(ratio - 1.0) > hyper.clip,
    }
    parts = averaged(columns, rows["weight"])
    loss = (
        parts["policy_loss"]
        + hyper.vf_coeff * parts["vf_loss"]
        - hyper.entropy_coeff * parts["entropy"]
        + hyper.kl_coeff * parts["kl"]
    )
    return loss, {**parts, "total_loss": loss}


def gae_targets(
    reward: jax.Array, value: jax.Array, log_ratio: jax.Array, ends: tuple[jax.Array, ...], hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets by generalised advantage estimation (equations 11 and 12 of the paper)."""
    return returns.gae(reward, value, *ends, gamma=hyper.gamma, lam=hyper.lam)


PPO = Method(
    Hyper,
    ppo_loss,
    gae_targets,
    parts=("policy_loss", "vf_loss", "entropy", "kl", "clip_fraction", "total_loss"),
    told=("entropy_coeff",),
)
"""What :class:`~steppe.learning.on_policy.OnPolicyLearner` makes a learner of."""
