"""What the parts of an algorithm are made with: plain arguments, out of a config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig


def of_actions(config: AlgorithmConfig) -> dict[str, Any]:
    """Of a :class:`~steppe.models.distributions.Distribution`, besides its space."""
    return {
        "squash": config.squash_actions,
        "normalize": config.normalize_actions,
        "clip": config.clip_actions,
        "autoregressive": config.autoregressive_actions,
        "own": config.models.get("distribution"),
    }


def of_images(config: AlgorithmConfig) -> Any:
    """Of a :class:`~steppe.models.cnn.CNN`, besides the images' shape."""
    if not config.mixed_precision:
        return config.conv_filters
    from steppe.models.observations import MixedFilters  # few runs have them

    return MixedFilters(config.conv_filters or ())


def of_networks(config: AlgorithmConfig) -> dict[str, Any]:
    """Of :class:`~steppe.learning.networks.ActorCriticNetworks`, besides the spaces."""
    memory = (
        config.memory,
        config.memory_size,
        config.attention_memory,
        config.prev_action,
        config.prev_reward,
        config.max_seq_len,
    )
    return {
        "normalize": config.observation_filter == "MeanStdFilter",
        "hiddens": config.fcnet_hiddens,
        "activation": config.fcnet_activation,
        "share_layers": config.vf_share_layers,
        "conv_filters": of_images(config),
        "free_log_std": config.free_log_std,
        "critic_only": config.critic_only,
        "embeddings": config.action_embeddings,
        "encoder": config.models.get("encoder"),
        "whole": config.models.get("actor_critic"),
        "memory": None if config.memory == "none" else memory,
        "framestack": config.framestack,
    }


def of_learning(config: AlgorithmConfig) -> dict[str, Any]:
    """Of an :class:`~steppe.learning.on_policy.OnPolicyLearner`, whatever its method."""
    return {
        "train_batch_size": config.train_batch_size,
        "grad_clip": config.grad_clip,
        "extra_loss": config.extra_loss,
        "share": config.share,
        "num_learners": config.num_learners,
        "actions": of_actions(config),
        "model": of_networks(config),
    }
