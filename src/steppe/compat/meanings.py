"""What settings of RLlib's mean here, where an algorithm has other words or another count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steppe.algorithms import config_class
from steppe.compat.absent import table
from steppe.config import AlgorithmConfig
from steppe.errors import ConfigError

_WORDS = table("words.toml")
_MIXERS = {"qmix": "QMIX", "vdn": "VDN"}


def class_of(algo: str, settings: Mapping[str, Any]) -> type[AlgorithmConfig]:
    """The config that stands for an algorithm of RLlib's, by its name there.

    Raises:
        ConfigError: no such algorithm, or no such mixer.
    """
    if algo != "QMIX":
        return config_class(_WORDS["algorithms"].get(algo, algo))
    mixer = settings.get("mixer")
    if mixer not in _MIXERS:
        raise ConfigError(
            f'mixer={mixer!r}: "qmix" mixes the values of a group and "vdn" sums them; where agents learn '
            "each for itself, train with DQNTrainer and without groups"
        )
    return config_class(_MIXERS[mixer])


def meant(cls: type[AlgorithmConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` in words that ``cls`` reads."""
    told = dict(settings)
    if cls.algo_name == "DQN":  # these layers follow those of the model
        model, last = told.get("model"), told.get("hiddens")
        if isinstance(model, Mapping) and isinstance(last, list):
            told["model"] = {**model, "fcnet_hiddens": [*model.get("fcnet_hiddens", ()), *last]}
            del told["hiddens"]
    elif cls.algo_name == "ES" and "stepsize" in told:  # beside which RLlib does not look at lr
        told["lr"] = told.pop("stepsize")
    elif cls.algo_name == "SAC" and told.get("target_entropy", ...) is None:
        told["target_entropy"] = "auto"
    elif cls.algo_name in _MIXERS.values():
        told.pop("mixer", None)
        if cls.algo_name == "VDN":
            told.pop("mixing_embed_dim", None)
    return told


def unsaid(algo: str) -> dict[str, Any]:
    """Fields with what RLlib does without a setting for it, or with one that counts something else."""
    return dict(_WORDS["here"].get(algo, {}))


def with_updates(config: AlgorithmConfig, workers: int) -> AlgorithmConfig:
    """A replay without ``training_intensity`` is learned from once for each fragment of all workers."""
    if vars(config).get("training_intensity", ...) is not None:
        return config
    sampled = config.fragment_length * config.envs * max(1, workers)
    return config.copy(training_intensity=vars(config)["train_batch_size"] / sampled)
