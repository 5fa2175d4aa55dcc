"""What every test needs: JAX on the CPU with a persistent cache, repeatable examples, a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Set before anything imports JAX; subprocesses started by tests inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Most of the fast tests' time is compiling: XLA is told not to try hard.
# At level 0 it would compile faster yet, and training would take twice as long.
HASTY = (
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Derandomized: a red test is red again tomorrow. No deadline: the first call of a jitted function compiles.
hypothesis.settings.register_profile(
    "steppe",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("steppe")


def pytest_configure(config):
    """Slow tests run what users run."""
    if "not slow" in config.option.markexpr:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {HASTY}".strip()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs write below the working folder: each test works in a fresh one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """Let compiled programs go before they fill the process: each has maps, of which Linux allows 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        import jax

        jax.clear_caches()
