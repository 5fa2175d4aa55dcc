"""The policy gradient of whole returns, REINFORCE (Williams, 1992), with or without a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from steppe import returns
from steppe.config import AlgorithmConfig, Schedule, at_least, between, policy_field, scheduled
from steppe.learning.on_policy import Method, OnPolicyLearner
from steppe.learning.policy_gradient import PARTS, policy_gradient_loss
from steppe.types import SpacePair


@dataclass(kw_only=True, eq=False, repr=False)
class PGConfig(AlgorithmConfig):
    """Settings of PG."""

    algo_name: ClassVar[str] = "PG"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "rllib": {
            "num_envs_per_env_runner": 1,
            "train_batch_size": 200,
            "lr": 4e-4,
            "use_critic": False,
            "grad_clip": None,
            "fcnet_hiddens": [256, 256],
            "observation_filter": "NoFilter",
            "reward_scale": "none",
        }
    }

    lr: Schedule = policy_field(3e-3, check=scheduled(at_least(0)))
    train_batch_size: int = policy_field(2000, check=at_least(1))
    use_critic: bool = policy_field(True)
    """Returns are compared with a critic's values; else with each other, and all behind a cut counts as 0."""
    lambda_: float = policy_field(1.0, check=between(0, 1), alias="lambda")
    """GAE's weight between the critic's one-step errors (0) and whole returns (1)."""
    vf_loss_coeff: float = policy_field(0.5, check=at_least(0))
    """Weight of the value loss."""
    entropy_coeff: Schedule = policy_field(0.0, check=scheduled(at_least(0)))
    """Weight of the entropy bonus, or a schedule [[env steps, value], ...]."""
    reward_scale: Literal["running", "none"] = policy_field("running")
    """"running" divides rewards by the running deviation of the discounted return; "none" leaves them."""

    def make_learner(self, id: str, pair: SpacePair, seed: int) -> OnPolicyLearner:
        """The learner of one policy; ``seed`` is its place in the run's tree."""
        return OnPolicyLearner(
            PG,
            pair,
            seed,
            coefficients={
                "lr": self.lr,
                "critic": float(self.use_critic),
                "vf_coeff": self.vf_loss_coeff if self.use_critic else 0.0,
                "entropy_coeff": self.entropy_coeff,
                "kl_stop": float("inf"),
                "gamma": self.gamma,
                "lam": self.lambda_ if self.use_critic else 1.0,
            },
            minibatch_size=None,
            num_epochs=1,
            scale_rewards=self.reward_scale == "running",
            **self.learning_settings,
        )


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    critic: Any
    vf_coeff: Any
    entropy_coeff: Any
    kl_stop: Any
    gamma: Any
    lam: Any


def return_targets(
    reward: jax.Array, value: jax.Array, log_ratio: jax.Array, ends: tuple[jax.Array, ...], hyper: Hyper
) -> tuple[jax.Array, jax.Array]:
    """Discounted returns less the critic's value, and the returns themselves.

    Without a critic its values count as 0: the return is less nothing, and ends where a fragment does.
    """
    return returns.gae(reward, hyper.critic * value, *ends, gamma=hyper.gamma, lam=hyper.lam)


PG = Method(Hyper, policy_gradient_loss, return_targets, parts=PARTS, told=("entropy_coeff",))
"""What :class:`~steppe.learning.on_policy.OnPolicyLearner` makes a learner of."""
