"""What ``num_learners`` asks of the other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steppe.errors import ConfigError
from steppe.learning.minibatches import BLOCKS

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig

ALGORITHMS = ("PPO", "APPO", "IMPALA", "A2C", "PG")
"""Those that learn on several devices."""


def notes_on_learners(config: AlgorithmConfig) -> list[str]:
    """What is to be said about a ``num_learners`` that stands.

    Raises:
        ConfigError: its blocks cannot be dealt out evenly, or a policy learns by what has one device.
    """
    name, number = type(config).__name__, config.spelt("num_learners")
    if BLOCKS % config.num_learners:
        raise ConfigError(
            f"{name}: {number}: lanes are dealt out in {BLOCKS} blocks, as many to each device; write 1, 2, "
            "4 or 8, or 0 for one device without blocks"
        )
    from steppe.runners.policies import is_scripted, specs_of

    for id, spec in specs_of(config).items():
        kind: Any = spec.policy_class or config
        if not is_scripted(spec) and kind.algo_name not in ALGORITHMS:
            raise ConfigError(
                f"{name}: {number}: policy {id!r} learns by {kind.algo_name}, on one device; leave it out, "
                f"or use {', '.join(f'{one}Config' for one in ALGORITHMS)}"
            )
    size = vars(config).get("minibatch_size")
    if size is None or size % BLOCKS == 0:
        return []
    rounded = max(size // BLOCKS, 1) * BLOCKS
    return [
        f"{config.spelt('minibatch_size')} is no multiple of {BLOCKS} blocks: a step takes {rounded} rows"
    ]
