"""One Ray for the tests of a module: each start takes seconds, and algorithms join the one that runs."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'steppe[ray]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init("local", num_cpus=3, include_dashboard=False, logging_level="error")
    yield ray
    ray.shutdown()
