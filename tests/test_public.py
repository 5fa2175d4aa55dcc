"""The public surface: exactly these names, loaded lazily."""

from __future__ import annotations

import subprocess
import sys

import pytest

import steppe

NAMES = {
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
}


def test_exactly_these_names_are_public_and_each_loads():
    assert set(steppe.__all__) == set(dir(steppe)) == NAMES
    assert list(steppe.__all__) == sorted(steppe.__all__)
    for name in NAMES:
        assert getattr(steppe, name).__doc__


def test_importing_steppe_loads_neither_jax_nor_ray_nor_gymnasium():
    program = "import sys, steppe; print(*sorted({'jax', 'ray', 'gymnasium', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'PPO'.*PPOConfig"):
        _ = steppe.PPO


def test_errors_of_bad_values_are_value_errors_too():
    assert issubclass(steppe.ConfigError, ValueError)
    assert issubclass(steppe.SpaceError, steppe.SteppeError)
