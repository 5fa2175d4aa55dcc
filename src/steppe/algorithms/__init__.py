"""One file an algorithm: its config, its pure loss, its learner."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from steppe.errors import ConfigError

if TYPE_CHECKING:
    from steppe.config import AlgorithmConfig

ALGORITHMS = {
    "A2C": "steppe.algorithms.a2c:A2CConfig",
    "APPO": "steppe.algorithms.appo:APPOConfig",
    "DQN": "steppe.algorithms.dqn:DQNConfig",
    "ES": "steppe.algorithms.es:ESConfig",
    "IMPALA": "steppe.algorithms.impala:IMPALAConfig",
    "PG": "steppe.algorithms.pg:PGConfig",
    "PPO": "steppe.algorithms.ppo:PPOConfig",
    "QMIX": "steppe.algorithms.qmix:QMIXConfig",
    "SAC": "steppe.algorithms.sac:SACConfig",
    "TD3": "steppe.algorithms.td3:TD3Config",
    "VDN": "steppe.algorithms.vdn:VDNConfig",
}
"""Where each algorithm's config lives; imported when asked for."""


def config_class(name: str) -> type[AlgorithmConfig]:
    """The config class of an algorithm, by its name in any case.

    Raises:
        ConfigError: no such algorithm.
    """
    if name.upper() not in ALGORITHMS:
        raise ConfigError(f"no algorithm {name!r}; there are {', '.join(sorted(ALGORITHMS))}")
    module, attribute = ALGORITHMS[name.upper()].split(":")
    found: type[AlgorithmConfig] = getattr(import_module(module), attribute)
    return found
