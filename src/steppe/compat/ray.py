"""The few functions of ``ray`` that an RLlib 1.x program calls. Nothing is started by any of them."""

from __future__ import annotations

from typing import Any

from steppe.compat.absent import mirror

__all__ = ["init", "is_initialized", "shutdown"]
__getattr__ = mirror(__name__)
_state: dict[str, bool] = {"initialized": False, "local_mode": False}


def init(address: str | None = None, *, local_mode: bool = False, **settings: Any) -> dict[str, Any]:
    """Note that the program wants Ray; only runners that are asked for would start it.

    Args:
        address: accepted; there is no cluster to join until a runner needs one.
        local_mode: sample in this process, whatever ``num_workers`` says.
        settings: whatever else Ray takes (``num_cpus``, ``ignore_reinit_error`` ...); without effect.

    Returns:
        An empty dict, where Ray gives its addresses.
    """
    _state.update(initialized=True, local_mode=local_mode)
    return {}


def shutdown() -> None:
    """Forget :func:`init`; may be called at any time."""
    _state.update(initialized=False, local_mode=False)


def is_initialized() -> bool:
    """Whether :func:`init` was called and :func:`shutdown` was not."""
    return _state["initialized"]


def is_local_mode() -> bool:
    """Whether :func:`init` was told ``local_mode=True``."""
    return _state["local_mode"]
