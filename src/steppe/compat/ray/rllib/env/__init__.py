"""Mirrors ``ray.rllib.env``: steppe's own env classes under their old names, as far as they are written."""

from __future__ import annotations

from typing import Any

import steppe

_NAMES = [
    *("BaseEnv", "EnvContext", "ExternalEnv", "ExternalMultiAgentEnv", "MultiAgentEnv"),
    *("ParallelPettingZooEnv", "PettingZooEnv", "PolicyClient", "PolicyServerInput", "VectorEnv"),
]


def __getattr__(name: str) -> Any:
    """Steppe's class of this name."""
    if name in _NAMES and name in steppe.__all__:
        return getattr(steppe, name)
    known = ", ".join(one for one in _NAMES if one in steppe.__all__)
    reason = "is not available yet" if name in _NAMES else "is no env class"
    raise AttributeError(f"ray.rllib.env.{name} {reason}; there is {known}")
