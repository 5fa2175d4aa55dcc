"""Mirrors ``ray.tune.logger``."""

from steppe.compat.tune.logger import pretty_print

__all__ = ["pretty_print"]
