"""Train reinforcement-learning policies in the environments that you write yourself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steppe.algorithm import Algorithm, load
    from steppe.algorithms.a2c import A2CConfig
    from steppe.algorithms.appo import APPOConfig
    from steppe.algorithms.dqn import DQNConfig
    from steppe.algorithms.es import ESConfig
    from steppe.algorithms.impala import IMPALAConfig
    from steppe.algorithms.pg import PGConfig
    from steppe.algorithms.ppo import PPOConfig
    from steppe.algorithms.qmix import QMIXConfig
    from steppe.algorithms.sac import SACConfig
    from steppe.algorithms.td3 import TD3Config
    from steppe.algorithms.vdn import VDNConfig
    from steppe.envs.base_env import BaseEnv
    from steppe.envs.base_view import to_base_env
    from steppe.envs.context import EnvContext
    from steppe.envs.copies import make_multi_agent
    from steppe.envs.external import ExternalEnv, ExternalMultiAgentEnv
    from steppe.envs.multi_agent import MultiAgentEnv
    from steppe.envs.pettingzoo import ParallelPettingZooEnv, PettingZooEnv
    from steppe.envs.registry import make, register_env
    from steppe.envs.vector import VectorEnv
    from steppe.errors import CheckpointError, ConfigError, EnvError, LearningError, SpaceError, SteppeError
    from steppe.loading import load_policy
    from steppe.sampling.metrics import Result
    from steppe.serving.client import AsyncPolicyClient, PolicyClient
    from steppe.serving.env import PolicyServer
    from steppe.types import Policy

_HOME = {
    "A2CConfig": "algorithms.a2c",
    "APPOConfig": "algorithms.appo",
    "Algorithm": "algorithm",
    "AsyncPolicyClient": "serving.client",
    "BaseEnv": "envs.base_env",
    "Callbacks": "sampling.callbacks",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DQNConfig": "algorithms.dqn",
    "ESConfig": "algorithms.es",
    "EnvContext": "envs.context",
    "EnvError": "errors",
    "ExternalEnv": "envs.external",
    "ExternalMultiAgentEnv": "envs.external",
    "IMPALAConfig": "algorithms.impala",
    "LearningError": "errors",
    "MultiAgentEnv": "envs.multi_agent",
    "PGConfig": "algorithms.pg",
    "PPOConfig": "algorithms.ppo",
    "ParallelPettingZooEnv": "envs.pettingzoo",
    "PettingZooEnv": "envs.pettingzoo",
    "Policy": "policies.scripted",
    "PolicyClient": "serving.client",
    "PolicyServer": "serving.env",
    "PolicySpec": "config",
    "QMIXConfig": "algorithms.qmix",
    "Result": "sampling.metrics",
    "SACConfig": "algorithms.sac",
    "SpaceError": "errors",
    "SteppeError": "errors",
    "TD3Config": "algorithms.td3",
    "VDNConfig": "algorithms.vdn",
    "VectorEnv": "envs.vector",
    "load": "algorithm",
    "load_policy": "loading",
    "make": "envs.registry",
    "make_multi_agent": "envs.copies",
    "register_env": "envs.registry",
    "to_base_env": "envs.base_view",
}
__version__ = "0.1.0"
__all__ = [
    "A2CConfig",
    "APPOConfig",
    "Algorithm",
    "AsyncPolicyClient",
    "BaseEnv",
    "Callbacks",
    "CheckpointError",
    "ConfigError",
    "DQNConfig",
    "ESConfig",
    "EnvContext",
    "EnvError",
    "ExternalEnv",
    "ExternalMultiAgentEnv",
    "IMPALAConfig",
    "LearningError",
    "MultiAgentEnv",
    "PGConfig",
    "PPOConfig",
    "ParallelPettingZooEnv",
    "PettingZooEnv",
    "Policy",
    "PolicyClient",
    "PolicyServer",
    "PolicySpec",
    "QMIXConfig",
    "Result",
    "SACConfig",
    "SpaceError",
    "SteppeError",
    "TD3Config",
    "VDNConfig",
    "VectorEnv",
    "load",
    "load_policy",
    "make",
    "make_multi_agent",
    "register_env",
    "to_base_env",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use: ``import steppe`` stays cheap (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'steppe' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"steppe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
