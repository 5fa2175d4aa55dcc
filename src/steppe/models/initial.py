"""Initial weights, drawn with numpy: op by op in JAX they would cost seconds of compilation."""

from __future__ import annotations

import numpy as np

from steppe.types import FloatArray

HIDDEN_GAIN = 2.0**0.5
"""Scale of orthogonal hidden layers: keeps the variance of rectified features."""


def orthogonal(rng: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> FloatArray:
    """A ``(rows, columns)`` matrix whose shorter side is orthonormal, times ``gain`` (Saxe et al., 2014)."""
    normal = rng.standard_normal((max(rows, columns), min(rows, columns)), dtype=np.float32)
    q, r = np.linalg.qr(normal)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # without the signs QR does not draw uniformly
    return np.ascontiguousarray(gain * (q if rows >= columns else q.T), dtype=np.float32)
