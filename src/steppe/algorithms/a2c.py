"""Advantage actor-critic, the synchronous form of A3C (Mnih et al., 2016, arXiv:1602.01783)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from steppe import returns
from steppe.config import AlgorithmConfig, Schedule, at_least, between, policy_field, run_field, scheduled
from steppe.learning.on_policy import Method, OnPolicyLearner
from steppe.learning.policy_gradient import PARTS, policy_gradient_loss
from steppe.types import SpacePair


@dataclass(kw_only=True, eq=False, repr=False)
class A2CConfig(AlgorithmConfig):
    """Settings of A2C."""

    algo_name: ClassVar[str] = "A2C"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rllib": {
            "num_envs_per_env_runner": 1,
            "rollout_fragment_length": 20,
            "train_batch_size": 200,
            "lr": 1e-4,
            "lambda_": 1.0,
            "entropy_coeff": 0.01,
            "grad_clip": 40.0,
            "fcnet_hiddens": [256, 256],
            "observation_filter": "NoFilter",
            "reward_scale": "none",
        }
    }

    lr: Schedule = policy_field(1e-3, check=scheduled(at_least(0)))
    train_batch_size: int = policy_field(256, check=at_least(1))
    min_sample_timesteps_per_iteration: int = run_field(4000, section="reporting", check=at_least(0))
    lambda_: float = policy_field(0.95, check=between(0, 1), alias="lambda")
    """GAE's weight between one-step errors (0) and returns up to the batch's edge (1), as in the paper."""
    vf_loss_coeff: float = policy_field(0.5, check=at_least(0))
    """Weight of the value loss."""
    entropy_coeff: Schedule = policy_field(0.0, check=scheduled(at_least(0)))
    """Weight of the entropy bonus, or a schedule [[env steps, value], ...]."""
    reward_scale: Literal["running", "none"] = policy_field("running")
    """"running" divides rewards by the running deviation of the discounted return; "none" leaves them."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OnPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        return OnPolicyLearner(
            A2C,
            pair,
            seed,
            coefficients={
                "lr": self.lr,
                "vf_coeff": self.vf_loss_coeff,
                "entropy_coeff": self.entropy_coeff,
                "kl_stop": float("inf"),
                "gamma": self.gamma,
                "lam": self.lambda_,
            },
            minibatch_size=None,
            num_epochs=1,
            scale_rewards=self.reward_scale == "running",
            **self.learning_settings,
        )


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    vf_coeff: Any
    entropy_coeff: Any
    kl_stop: Any
    gamma: Any
    lam: Any


def gae_targets(
    reward: jax.Array, value: jax.Array, log_ratio: jax.Array, ends: tuple[jax.Array, ...], hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets by generalised advantage estimation; the paper's returns with lam = 1."""
    return returns.gae(reward, value, *ends, gamma=hyper.gamma, lam=hyper.lam)


A2C = Method(
    Hyper, policy_gradient_loss, gae_targets, parts=PARTS, told=("entropy_coeff",), standardized=False
)
"""What :class:`~steppe.learning.on_policy.OnPolicyLearner` makes a learner of."""
