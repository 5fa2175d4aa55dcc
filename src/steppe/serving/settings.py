"""What a policy server is told, checked where it is said: before any process begins."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steppe.errors import ConfigError
from steppe.serving.control import Settings
from steppe.serving.limits import Limits
from steppe.serving.security import Tokens, check_exposure

_ADDRESS = re.compile(r"(?:https?://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^:/\[\]]+)(?::(?P<port>\d+))?/?")
_PORT = 9900
_NUMBERS: dict[str, tuple[type[int] | type[float], float, bool]] = {
    "episode_ttl": (float, 0, False),
    "idle_timeout": (float, 0, True),
    "guard": (float, float("-inf"), True),
    "queue_bytes": (int, 1, False),
    "held_rows": (int, 0, False),
    "max_weight_lag": (int, 0, True),
}
"""Which are whole, their least, and whether they may be None."""
_NAMES = {
    "allow_hosts": (re.compile(r"[^:/*]+|\[?[0-9a-fA-F:.]+\]?"), "shop.example"),
    "allow_origins": (re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/*]+/?"), "https://shop.example"),
}
"""How each looks, and one of them."""
_NEEDED = ("httptools", "websockets")
_File = str | os.PathLike[str] | None


def settings_of(
    address: str,
    port: int | None = None,
    *,
    token_file: _File = None,
    tls_cert: _File = None,
    tls_key: _File = None,
    insecure: bool = False,
    allow_hosts: Iterable[str] = (),
    allow_origins: Iterable[str] = (),
    episode_ttl: float = 300.0,
    guard: float | None = None,
    queue_bytes: int = 64 << 20,
    limits: Limits | None = None,
) -> Settings:
    """The settings of a server process; what they mean is told in :class:`~steppe.serving.env.PolicyServer`.

    Raises:
        ConfigError: the address makes no sense, or is not to be had without a token and TLS.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"a policy server needs {' and '.join(missing)}: pip install 'steppe[serve]'")
    host, number = parsed(address, port)
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("TLS needs tls_cert and tls_key, the certificate and its key: give both")
    check_numbers(episode_ttl=episode_ttl, guard=guard, queue_bytes=queue_bytes)
    if not episode_ttl > 0:
        raise ConfigError(f"episode_ttl={episode_ttl!r}: give seconds, more than 0")
    if not isinstance(limits, Limits | None):
        raise ConfigError(f"limits={limits!r}: give Limits(...), of steppe.serving.limits")
    Tokens(None if token_file is None else Path(token_file))  # says what is wrong with it
    check_exposure(host, tokens=token_file is not None, tls=tls_cert is not None, insecure=insecure)
    return Settings(
        host=host,
        port=number,
        token_file=_absolute(token_file),
        tls_cert=_absolute(tls_cert),
        tls_key=_absolute(tls_key),
        insecure=insecure,
        allow_hosts=_names("allow_hosts", allow_hosts),
        allow_origins=_names("allow_origins", allow_origins),
        episode_ttl=float(episode_ttl),
        guard=guard,
        queue_bytes=queue_bytes,
        limits=dataclasses.asdict(limits or Limits()),
    )


def url_of(settings: Settings, port: int) -> str:
    """Where clients find a server that listens at ``port``."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'http' if settings.tls_cert is None else 'https'}://{host}:{port}"


def parsed(address: str, port: int | None) -> tuple[str, int]:
    """Host and port, which may stand in the address.

    Raises:
        ConfigError: it is none.
    """
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    said = None if found is None or found["port"] is None else int(found["port"])
    if found is None or (said is not None and port is not None and said != port):
        raise ConfigError(f"address={address!r}, port={port!r}: write '127.0.0.1:9900', or a host and a port")
    number = next(one for one in (port, said, _PORT) if one is not None)
    if not isinstance(number, int) or not 0 <= number < 1 << 16:
        raise ConfigError(f"port={number!r} must be a whole number from 0 to 65535")
    return found["host"].strip("[]"), number


def check_numbers(**values: Any) -> None:
    """Check settings by name.

    Raises:
        ConfigError: one is no number, or too small.
    """
    for name, value in values.items():
        kind, least, optional = _NUMBERS[name]
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not value >= least:
            what = (
                f"a {'whole number' if kind is int else 'number'}{f' from {least} on' if least >= 0 else ''}"
            )
            raise ConfigError(f"{name}={value!r}: give {what}{' or None' if optional else ''}")


def _names(setting: str, given: Iterable[str]) -> tuple[str, ...]:
    form, example = _NAMES[setting]
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str) or not form.fullmatch(name):
            raise ConfigError(f"{setting}: {name!r}: each must look like {example!r}, without anything else")
    return names


def _absolute(path: _File) -> str | None:
    return None if path is None else str(Path(path).absolute())
