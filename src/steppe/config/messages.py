"""What settings have to say: once, through the logger "steppe"."""

from __future__ import annotations

import logging
import sys
from typing import final

logger = logging.getLogger("steppe")

_said: set[str] = set()


def say_once(text: str) -> None:
    """Warn through the ``steppe`` logger, once per process and text."""
    if text not in _said:
        _said.add(text)
        logger.warning(text)


@final
class _Screen(logging.Handler):
    """Writes messages to standard error, unless the program says where messages go."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)


def show_messages(level: str) -> None:
    """Set the least level. A run's log file would else be the one place where messages go."""
    logger.setLevel(level)
    if not any(isinstance(handler, _Screen) for handler in logger.handlers):
        logger.addHandler(_Screen())
