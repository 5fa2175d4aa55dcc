"""What the settings of one config say together: contradictions, and what is not there yet."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from steppe.config.values import has_text_keys, short
from steppe.errors import ConfigError

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig

_RUNNERS = {"num_env_runners": "samples", "evaluation_num_env_runners": "evaluates"}
_OF_ENVS = ("env", "env_config", "max_episode_steps", "on_out_of_space")


def check_together(config: AlgorithmConfig) -> list[str]:
    """Check what several fields say together.

    Returns:
        What is to be said about settings that stand.

    Raises:
        ConfigError: fields contradict each other, or ask for what is not there yet.
    """
    name = type(config).__name__
    if config.env is None and (config.observation_space is None or config.action_space is None):
        raise ConfigError(
            f'{name}: env is missing: {name}(env="CartPole-v1"), or a class, or "file.py:Class"'
        )
    for field, does in _RUNNERS.items():
        if getattr(config, field) > 0:
            raise ConfigError(
                f"{name}: {config.spelt(field)}: runners on Ray are not available yet; write "
                f"{config.spelling(field)}=0, which {does} in this process"
            )
    if config.squash_actions and not config.normalize_actions:
        raise ConfigError(f"{name}: squash_actions=True needs normalize_actions=True")
    _check_evaluation(config)
    _check_policies(config)
    return _notes(config)


def _check_evaluation(config: AlgorithmConfig) -> None:
    """Find the envs of evaluation, else they would be looked for after hours of training."""
    name, changes = type(config).__name__, config.evaluation_config
    own = [f"evaluation_config.{key}" for key in _OF_ENVS if key in changes]
    own += ["evaluation_num_envs"] if config.evaluation_num_envs is not None else []
    if config.evaluation_envs == "shared" and own:
        raise ConfigError(
            f'{name}: evaluation_envs="shared" evaluates in the training envs, and '
            f"{own[0]} asks for others; leave one of them out"
        )
    if "env" in changes or "env_config" in changes:
        from steppe.envs import registry

        try:
            registry.check(
                changes.get("env", config.env), {**config.env_config, **changes.get("env_config", {})}
            )
        except ConfigError as error:
            raise ConfigError(f"{name}: evaluation_config: {error}") from None


def _check_policies(config: AlgorithmConfig) -> None:
    from steppe.runners.policies import specs_of, trained_ids

    trained_ids(config, specs_of(config))


def _notes(config: AlgorithmConfig) -> list[str]:
    notes = []
    fragment = config.fragment_length * config.envs
    batch = math.ceil(config.train_batch_size / fragment) * fragment
    if batch != config.train_batch_size and config.batch_mode == "truncate_episodes":
        notes.append(
            f"{config.spelt('train_batch_size')} is no multiple of {config.envs} envs x "
            f"{config.fragment_length} steps: each update learns from {batch} steps"
        )
    minibatch = vars(config).get("minibatch_size")  # a field of the algorithms that have minibatches
    if minibatch is not None and minibatch > config.train_batch_size:
        notes.append(
            f"{config.spelt('minibatch_size')} is more than {config.spelt('train_batch_size')}: "
            "the batch is one minibatch"
        )
    if not has_text_keys(config.env_config):
        notes.append(
            f"env_config={short(config.env_config)} has keys that are no text: envs get them as they are, "
            "the files of a run hold them as text, and load(path, env_config=...) takes them anew"
        )
    return notes
