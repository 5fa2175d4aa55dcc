"""What a checkpoint asks of a run that goes on from it: its settings, its spaces, its networks."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from steppe.algorithms import config_class
from steppe.config import AlgorithmConfig
from steppe.envs import registry
from steppe.errors import CheckpointError, SpaceError
from steppe.learning.learner import Learner
from steppe.loading import POLICIES, checkpoint_at, read_checkpoint
from steppe.spaces import described, misfits
from steppe.types import Policy, State

logger = logging.getLogger("steppe")

_OWNERS = ("actions", "algorithm", "callbacks", "learner", "runner")
_META = ("algo", "code", "config", "run_id", "total_s")
SHAPING = (
    "fcnet_hiddens",
    "fcnet_activation",
    "vf_share_layers",
    "conv_filters",
    "critic_only",
    "free_log_std",
    "action_embeddings",
    "autoregressive_actions",
    "observation_filter",
    "framestack",
    "memory",
    "memory_size",
    "attention_memory",
    "prev_action",
    "prev_reward",
    "mixing_embed_dim",
    "dueling",
    "num_atoms",
    "noisy",
    "rainbow",
)
"""Settings that make networks what they are: a checkpoint goes on with the same ones only."""


def read_run(path: str | os.PathLike[str]) -> tuple[Path, dict[str, State], dict[str, Any]]:
    """The checkpoint of a training that a path means: its folder, its owners, its meta data.

    Raises:
        CheckpointError: it is damaged, or not of a training.
        ConfigError: no path.
    """
    folder = checkpoint_at(path)
    owners, meta = read_checkpoint(folder)
    absent = [name for name in _OWNERS if name not in owners] + [name for name in _META if name not in meta]
    if absent:
        raise CheckpointError(
            f"{folder} is no checkpoint of a training: it holds no {absent[0]}, only {', '.join(owners)}"
        )
    return folder, owners, meta


def settings_of(config: AlgorithmConfig) -> dict[str, Any]:
    """What the meta data of a checkpoint say of the settings; :func:`saved_config` takes it back."""
    settings = {"config": config.to_dict(), "code": config.code_fields()}
    return {"algo": config.algo_name, "steppe": metadata.version("steppe"), **settings}


def saved_config(folder: Path, meta: Mapping[str, Any], code: Mapping[str, Any]) -> AlgorithmConfig:
    """The config of a checkpoint, with further settings of the caller.

    Args:
        folder: of the checkpoint.
        meta: its meta data.
        code: by any name that :meth:`~steppe.config.AlgorithmConfig.from_dict` takes.

    Raises:
        CheckpointError: code is missing; the message lists what to pass.
        ConfigError: ``code`` is unknown or illegal.
    """
    cls = config_class(meta["algo"])
    given = cls.resolved(code)  # first: what is misspelt here is not missing there
    there = {name: value for name, value in meta["config"].items() if name not in given}
    missing = [
        f"{name}=... (it was {there[name]!r})"
        for name in meta["code"]
        if name in there and not (name == "env" and registry.is_registered(there[name]))
    ]
    if missing:
        raise CheckpointError(
            f"{folder} names no code to import; pass what the run was made with: "
            f"load(path, {', '.join(missing)})"
        )
    own_folder = there.pop("run_dir", None)
    config = cls(**cls.resolved(there), **given)
    if own_folder is not None and config.write_run:
        logger.warning(
            "run_dir=%r belongs to the run that was saved: this one gets a folder of its own under runs/, "
            "or the one that load(path, run_dir=...) names",
            own_folder,
        )
    return config


def check_spaces(owners: Mapping[str, State], policies: Mapping[str, Policy]) -> None:
    """Compare the spaces that policies were trained in with those of this run's envs.

    Raises:
        CheckpointError: a policy cannot act here.
    """
    saved = owners.get(POLICIES, {})  # older checkpoints lack them
    for id in saved.keys() & policies.keys():
        here = described(policies[id].acting, policies[id].action)
        try:
            wrong, odd = misfits(saved[id]["network"], here)
        except (SpaceError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the spaces of policy {id!r} make no sense: {error!r}") from error
        if wrong:
            hidden = saved[id]["network"].get("critic_only", [])
            also = hidden or policies[id].acting is not policies[id].observation
            raise CheckpointError(
                f"policy {id!r} was trained with {wrong}: go on in an env with the spaces of training"
                + (f", with critic_only={hidden}" if also else "")
            )
        if odd:
            logger.warning("policy %r was trained with %s: it goes on with the bounds of this env", id, odd)


def other_envs(there: Mapping[str, Any], config: AlgorithmConfig) -> tuple[str, list[str]]:
    """Why the training envs of a checkpoint, and those of its evaluations, cannot go on; empty if they can.

    Args:
        there: the settings of the run that was saved.
        config: of the one that goes on.
    """
    runners, n = there["num_env_runners"], there["num_envs_per_env_runner"]
    here, own = config.num_env_runners, config.num_envs_per_env_runner
    training = "" if n == own else f"{own} envs instead of {n}: their episodes begin anew"
    if runners != here:
        training = f"num_env_runners={here} instead of {runners}: the episodes of envs begin anew"
    place, evaluating = there["evaluation_envs"], there["evaluation_num_envs"] or n
    if place != config.evaluation_envs:
        return training, [f"evaluation_envs={place!r} before: what evaluations kept begins anew"]
    if evaluating != (config.evaluation_num_envs or own):
        return training, [f"not the {evaluating} evaluation envs of before: their episodes begin anew"]
    return training, []


def adopt_learner(learner: Learner, state: State, meta: Mapping[str, Any], config: AlgorithmConfig) -> None:
    """Let the learner go on from a checkpoint's state, or not at all.

    Raises:
        CheckpointError: its networks are others; the settings that make them differ are named first.
    """
    there, here = meta["config"], config.to_dict()
    unlike = {name: there[name] for name in SHAPING if name in there and there[name] != here[name]}
    try:
        if "fcnet_activation" in unlike:  # the one that no shape shows
            raise CheckpointError("the same arrays would compute something else")
        learner.set_state(state)
    except CheckpointError as error:
        settings = ", ".join(f"{name}={value!r}, here {here[name]!r}" for name, value in unlike.items())
        if not settings:
            raise
        raise CheckpointError(f"the checkpoint was trained with {settings}: {error}") from None
