"""What an env's constructor is told: its config, and where in the run it lives."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, final

_steppe = logging.getLogger("steppe")


@final
class EnvContext(dict[str, Any]):
    """The ``env_config`` dict, with the place of the env in the run as attributes.

    Attributes:
        worker_index: 0 in the driver, 1..N in runners.
        vector_index: 0..M-1 among the envs of one runner.
        num_workers: N, the runners of this run.
        remote: whether the env lives in a process of its own.
        num_envs: M, the envs that this runner wants; for creators of vector envs.
        log_level: least level of the run's messages in the process that this came from; None in that process.
    """

    log_level: int | None = None

    def __init__(
        self,
        env_config: Mapping[str, Any] | None = None,
        worker_index: int = 0,
        vector_index: int = 0,
        num_workers: int = 0,
        remote: bool = False,
        num_envs: int = 1,
    ) -> None:
        super().__init__(env_config or {})
        self.worker_index, self.vector_index = worker_index, vector_index
        self.num_workers, self.remote, self.num_envs = num_workers, remote, num_envs

    def copy_with_overrides(
        self,
        env_config: Mapping[str, Any] | None = None,
        worker_index: int | None = None,
        vector_index: int | None = None,
        num_workers: int | None = None,
        remote: bool | None = None,
        num_envs: int | None = None,
    ) -> EnvContext:
        """A new context; what is None stays as it is here. ``env_config`` replaces the whole dict."""
        given: list[Any] = [worker_index, vector_index, num_workers, remote, num_envs]
        place = [own if new is None else new for own, new in zip(self._place(), given, strict=True)]
        return EnvContext(self if env_config is None else env_config, *place)

    @property
    def logger(self) -> logging.Logger:
        """Takes messages of the env to where steppe's own go: the screen and the run's ``log.txt``.

        Its records have ``worker_index`` and ``vector_index``, and their text begins with both. From a
        process of Ray they reach the screen of the program that was started.
        """
        own = logging.getLogger(f"steppe.env.{self.worker_index}.{self.vector_index}")
        if not own.filters:
            own.addFilter(partial(_placed, self.worker_index, self.vector_index))
        if self.remote and self.log_level is not None and not _steppe.handlers:  # nobody else does it there
            _steppe.setLevel(self.log_level)
            _steppe.addHandler(logging.StreamHandler())
        return own

    def set_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Add the keys of ``defaults`` that are missing here."""
        for key, value in defaults.items():
            self.setdefault(key, value)

    def __repr__(self) -> str:
        return (
            f"EnvContext({dict(self)!r}, worker_index={self.worker_index}, vector_index={self.vector_index}, "
            f"num_workers={self.num_workers}, remote={self.remote}, num_envs={self.num_envs})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        level = self.log_level or _steppe.getEffectiveLevel()
        return EnvContext, (dict(self), *self._place()), {"log_level": level}

    def _place(self) -> tuple[Any, ...]:
        return self.worker_index, self.vector_index, self.num_workers, self.remote, self.num_envs


def _placed(worker_index: int, vector_index: int, record: logging.LogRecord) -> bool:
    """Let a record say which env it is from."""
    record.worker_index, record.vector_index = worker_index, vector_index
    record.msg = f"runner {worker_index} env {vector_index}: {record.msg}"
    return True
