"""Mirrors ``gym.logger``, over Python's logger ``gym``."""

from __future__ import annotations

import logging
from typing import Any

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50
_logger = logging.getLogger("gym")


def set_level(level: int) -> None:
    """Say only what is at least as grave as ``level``."""
    _logger.setLevel(level)


def debug(msg: str, *args: Any) -> None:
    """Log ``msg % args``."""
    _logger.debug(msg, *args)


def info(msg: str, *args: Any) -> None:
    """Log ``msg % args``."""
    _logger.info(msg, *args)


def warn(msg: str, *args: Any) -> None:
    """Log ``msg % args``."""
    _logger.warning(msg, *args)


def error(msg: str, *args: Any) -> None:
    """Log ``msg % args``."""
    _logger.error(msg, *args)
