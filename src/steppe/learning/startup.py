"""What a process needs before and after the first compilation."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any


def prepare_jax() -> None:
    """Settings that small networks need, unless the user chose otherwise; before JAX's first use."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "steppe" / "jax"
    settings: dict[str, Any] = {
        "jax_cpu_enable_async_dispatch": False,  # a small step costs less than its dispatch
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if jax.config.values["jax_compilation_cache_dir"] is None:
        settings["jax_compilation_cache_dir"] = str(cache)
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]


def give_back_memory() -> None:
    """Return to the system what compiling freed: about 150 MB, which glibc would keep for the process."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
