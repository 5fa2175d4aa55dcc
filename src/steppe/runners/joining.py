"""Policies that join a run, or leave it, between two iterations."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from steppe.config import AlgorithmConfig
from steppe.errors import ConfigError
from steppe.runners.policies import is_scripted, learner_of, spaces_of, specs_of, trained_ids
from steppe.types import Policy

if TYPE_CHECKING:
    from steppe.learning.independent import PolicyLearner
    from steppe.runners.local import LocalRunner


def joined(
    config: AlgorithmConfig,
    id: str,
    spec: Any,
    runner: LocalRunner,
    like: str | None,
    trained: Sequence[str],
    mapping: Callable[..., str] | None,
) -> tuple[AlgorithmConfig, PolicyLearner | None, Policy]:
    """The config of a run that gets the policy ``id``, what that policy learns by, and what acts.

    The arguments are those of ``Algorithm.add_policy``; ``trained`` are all policies that learn from then on.
    """
    _check_here(config, "add")
    specs, by = specs_of(config), runner.mapping  # asked for first: not every runner has one
    if id in specs:
        raise ConfigError(f"there is a policy {id!r}; a run's policies are {', '.join(specs)}")
    if like is not None and (like not in specs or is_scripted(specs[like])):
        raise ConfigError(f"like={like!r} is no policy with parameters; there are {', '.join(specs)}")
    if like is not None and spec is not None:
        raise ConfigError(f"policy {id!r}: give spec or like={like!r}, not both")
    if like is not None:
        spec = specs[like]
        if id not in trained:  # what it shared would go on to learn
            spec = replace(spec, config={**spec.config, "share": {}})
    changes: dict[str, Any] = {"policies": {**specs, id: spec}}
    changes["policies_to_train"] = list(trained)
    if mapping is not None:
        changes["policy_mapping_fn"] = mapping
    config = config.copy(copy_frozen=True, **changes)
    if config.num_learners:
        from steppe.config.learners import notes_on_learners  # most runs have one device

        notes_on_learners(config)  # it refuses who learns on one only
    spec = specs_of(config)[id]
    pair = runner.spaces[like] if like else spaces_of({id: spec}, runner.env, by)[id]
    if is_scripted(spec):
        from steppe.policies.scripted import scripted

        return config, None, scripted(id, spec.policy_class, *pair)
    # By name: places in the list are taken again when policies leave.
    learner = learner_of(config, id, spec, pair, int(config.seed or 0) + zlib.crc32(id.encode()))
    return config, learner, learner.policy


def left(
    config: AlgorithmConfig,
    id: str,
    trained: Sequence[str],
    mapping: Callable[..., str] | None,
    to_train: Iterable[str] | Callable[..., bool] | None,
) -> AlgorithmConfig:
    """The config of a run that the policy ``id`` leaves.

    The arguments are those of ``Algorithm.remove_policy``; ``trained`` are the policies that learn by now.
    """
    _check_here(config, "remove")
    specs = specs_of(config)
    if id not in specs:
        raise ConfigError(f"no policy {id!r} to remove; there are {', '.join(specs)}")
    rest = {one: spec for one, spec in specs.items() if one != id}
    if not rest:
        raise ConfigError(f"{id!r} is the last policy: a run needs one; add another before")
    asked = [one for one in trained if one != id] if to_train is None else to_train
    changes: dict[str, Any] = {"policies": rest, "policies_to_train": asked}
    if mapping is not None:
        changes["policy_mapping_fn"] = mapping
    config = config.copy(copy_frozen=True, **changes)
    learns = trained_ids(config, rest)
    for one in learns:
        if one not in trained:
            raise ConfigError(
                f"policies_to_train names {one!r}, which does not learn by now: "
                f"add_policy(..., like={one!r}, trained=True) gives a copy that does"
            )
    return config.copy(copy_frozen=True, policies_to_train=learns)


def _check_here(config: AlgorithmConfig, what: str) -> None:
    if config.num_env_runners:
        raise ConfigError(
            f"{config.spelt('num_env_runners')}: runners keep the policies that they began with; to {what} "
            f"one, sample in one process: {config.spelling('num_env_runners')}=0"
        )
