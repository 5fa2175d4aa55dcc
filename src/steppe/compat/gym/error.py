"""Mirrors ``gym.error``: Gymnasium's exceptions."""

from gymnasium.error import (
    DependencyNotInstalled,
    Error,
    InvalidAction,
    NameNotFound,
    ResetNeeded,
    UnregisteredEnv,
    UnsupportedMode,
    VersionNotFound,
)

from steppe.compat.absent import of_module

__all__ = ["DependencyNotInstalled", "Error", "InvalidAction", "NameNotFound", "ResetNeeded"]
__all__ += ["UnregisteredEnv", "UnsupportedMode", "VersionNotFound"]
__getattr__ = of_module(__name__)
